"""What `vsm.run` of a trivial function costs, beside starting an interpreter bare or by bubblewrap.

Interleaved in one run; then 1,000 runs in a row (20 for each round), and what they left or grew.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil  # type: ignore[import-untyped]

import vsm
from vsm.library import runner_link
from vsm.library.run import close

WARM_UP = 5
ROW = 20
PAUSE_S = 0.05  # the spares of the last run are made


def run(rounds: int) -> list[dict[str, Any]]:
    """Medians of each variant, then a row without a pause."""
    try:
        for _ in range(WARM_UP):
            _library()
        taken: dict[str, list[float]] = {name: [] for name in _variants()}
        for _ in range(rounds):
            for name, work in _variants().items():
                time.sleep(PAUSE_S)
                began = time.perf_counter()
                work()
                taken[name].append((time.perf_counter() - began) * 1e3)
        bare = statistics.median(taken["vsm.run"])
        rows = [
            _row(name, "call to result", statistics.median(times), "ms", rounds, ours=bare)
            for name, times in taken.items()
        ]
        return [*rows, *_in_a_row(rounds * ROW)]
    finally:
        close()


def _variants() -> dict[str, Callable[[], None]]:
    variants = {"vsm.run": _library, "python -SI": lambda: _start([])}
    if bwrap := shutil.which("bwrap"):
        inside = [bwrap, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
        variants["bubblewrap python -SI"] = lambda: _start(inside)
    return variants


def _library() -> None:
    vsm.run(pow, 2, 10).check()


def _start(prefix: list[str]) -> None:
    command = [*prefix, sys.executable, "-SI", "-c", "print(2 ** 10)"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _in_a_row(runs: int) -> list[dict[str, Any]]:
    runner = psutil.Process(runner_link.runner_pid())
    before = (runner.memory_info().rss, runner.num_fds(), len(os.listdir("/proc/self/fd")))
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        _library()
        times.append((time.perf_counter() - began) * 1e3)
    time.sleep(PAUSE_S * 4)
    after = (runner.memory_info().rss, runner.num_fds(), len(os.listdir("/proc/self/fd")))
    grown = [new - old for new, old in zip(after, before, strict=True)]
    return [
        _row("vsm.run", "in a row", statistics.median(times), "ms", runs),
        _row("runner", "grown", grown[0] / 1024, "KiB", runs),
        _row("runner", "descriptors more", grown[1], "", runs),
        _row("program", "descriptors more", grown[2], "", runs),
    ]


def _row(
    variant: str, metric: str, value: float, unit: str, runs: int, *, ours: float = 0.0
) -> dict[str, Any]:
    other = ours and variant != "vsm.run"
    return {
        "benchmark": "library",
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": unit,
        "ratio": value / ours if other else None,
        "ratio_to": "vsm.run" if other else None,
        "runs": runs,
    }
