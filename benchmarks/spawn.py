"""What confining costs: starting /bin/true, and work that only computes."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bubblewrap import BUBBLEWRAP, SKIPPED
from confined import Bench, row, skipped

HERE = Path(__file__).resolve().parent
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
    """In a process as small as the launcher: forking a large one costs more, bare or not."""
    argv = ["/bin/true"]
    bench = Bench(argv)
    order = {
        "argv": argv,
        "plans": {variant: plan.to_json() for variant, plan in bench.plans.items()},
        "others": {BUBBLEWRAP: bench.bubblewrap} if bench.bubblewrap else {},
    }
    done = subprocess.run(
        [sys.executable, "-SI", str(HERE / "starter.py"), str(HERE.parent), str(rounds)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=True,
    )
    taken: dict[str, list[float]] = json.loads(done.stdout)
    bare = taken["bare"]
    rows = [
        row("spawn", v, "start to exit", values=t, unit="ms", bare=bare) for v, t in taken.items()
    ]
    added = {v: statistics.median(t) - statistics.median(bare) for v, t in taken.items()}
    for variant, times in taken.items():
        if variant != "bare":
            rows.append(row("spawn", variant, "added", values=times, unit="ms", bare=bare))
            rows[-1] |= {"value": added[variant], **_ratio(variant, added)}
    if BUBBLEWRAP not in taken:
        rows.append(skipped("spawn", BUBBLEWRAP, "added", SKIPPED))
    return rows


def _ratio(variant: str, added: dict[str, float]) -> dict[str, Any]:
    """To bubblewrap, which has no tier without namespaces."""
    if BUBBLEWRAP not in added or not variant.startswith("namespaced"):
        return {"ratio": None, "ratio_to": None}
    return {"ratio": added[variant] / added[BUBBLEWRAP], "ratio_to": BUBBLEWRAP}


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
