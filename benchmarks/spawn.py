"""What confining costs: starting /bin/true, and work that only computes."""

import os
import statistics
import time
from typing import Any

from confined import Bench, row

WORK = (
    "import time\n"
    "def work(n):\n"
    "    total = 0\n"
    "    for i in range(n):\n"
    "        total += i * i % 7\n"
    "    return total\n"
    "work(10000)\n"
    "start = time.process_time(); work(2000000); print(time.process_time() - start)"
)
WORK_ROUNDS = 9


def run(rounds: int) -> list[dict[str, Any]]:
    """Median time to start and wait for /bin/true, and CPU time of a fixed amount of work."""
    return [*_starts(rounds), *_work(min(rounds, WORK_ROUNDS))]


def _starts(rounds: int) -> list[dict[str, Any]]:
    bench = Bench(["/bin/true"])
    taken: dict[str, list[float]] = {variant: [] for variant in bench.variants}
    for number in range(rounds + 2):
        for variant, times in taken.items():
            start = time.perf_counter()
            bench.run(variant, 1)
            if number >= 2:  # the first two fill caches
                times.append((time.perf_counter() - start) * 1e3)
    bare = taken["bare"]
    rows = [
        row("spawn", v, "start to exit", values=t, unit="ms", bare=bare) for v, t in taken.items()
    ]
    for variant, times in taken.items():
        if variant != "bare":
            added = statistics.median(times) - statistics.median(bare)
            rows.append(row("spawn", variant, "added", values=times, unit="ms", bare=bare))
            rows[-1] |= {"value": added, "ratio": None, "ratio_to": None}
    return rows


def _work(rounds: int) -> list[dict[str, Any]]:
    bench = Bench([os.path.realpath("/usr/bin/python3"), "-SI", "-c", WORK])
    taken: dict[str, list[float]] = {variant: [] for variant in bench.variants}
    for _ in range(rounds):
        for variant, times in taken.items():
            times.append(float(bench.output(variant)))
    return [
        row("spawn", v, "CPU-bound work", values=t, unit="s", bare=taken["bare"])
        for v, t in taken.items()
    ]
