"""What `vsm.run` of a trivial function costs, beside an interpreter started bare and in containers.

Interleaved in one run; then calls of a pool, and 1,000 runs in a row (20 for each round) with what
they left or grew. A container runtime that is absent, or cannot start here, is a row that says so.
"""

import asyncio
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from containers import Containers

import vsm
from vsm.library import runner_link
from vsm.library.run import close

WARM_UP = 5
ROW = 20
SPARES, SPARES_TIMEOUT_S = 4, 5.0  # two, each with its first process and its worker
PAUSE_S = 0.05  # the spares of the last run are made


def run(rounds: int) -> list[dict[str, Any]]:
    """Medians of each variant, then a pool, then a row without a pause."""
    try:
        for _ in range(WARM_UP):
            _library()
        with Containers() as containers:
            rows = _side_by_side({**_variants(), **containers.variants}, rounds)
            rows += [_skipped(name, why) for name, why in containers.absent.items()]
        return [*rows, asyncio.run(_pool(rounds * ROW)), *_in_a_row(rounds * ROW)]
    finally:
        close()


def _side_by_side(variants: dict[str, Callable[[], None]], rounds: int) -> list[dict[str, Any]]:
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, work in variants.items():
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            work()
            taken[name].append((time.perf_counter() - began) * 1e3)
    bare = statistics.median(taken["vsm.run"])
    return [
        _row(name, "call to result", statistics.median(times), "ms", rounds, ours=bare)
        for name, times in taken.items()
    ]


async def _pool(calls: int) -> dict[str, Any]:
    async with vsm.Pool(pow, size=1) as pool:
        times = [(await pool.call(2, 10)).wall_s * 1e3 for _ in range(calls)]
    return _row("vsm.Pool", "call to reply", statistics.median(times), "ms", calls)


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
    before = _held()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        _library()
        times.append((time.perf_counter() - began) * 1e3)
    time.sleep(PAUSE_S * 4)
    grown = {name: value - before[name] for name, value in _held().items()}
    return [
        _row("vsm.run", "in a row", statistics.median(times), "ms", runs),
        *(_row(who, what, value, unit, runs) for (who, what, unit), value in grown.items()),
    ]


def _held() -> dict[tuple[str, str, str], float]:
    """What a run could leave or grow, once both spares of the last one are there."""
    found: dict[tuple[str, str, str], float] = {}
    program, runner = psutil.Process(), psutil.Process(runner_link.runner_pid())
    deadline = time.monotonic() + SPARES_TIMEOUT_S
    while len(runner.children(recursive=True)) < SPARES and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
    for name, process in (("program", program), ("runner", runner)):
        found[name, "grown", "KiB"] = process.memory_info().rss / 1024
        found[name, "descriptors more", ""] = process.num_fds()
    workers = [one for one in program.children(recursive=True) if one != runner]
    found["program", "processes more", ""] = len(workers)
    groups = Path("/sys/fs/cgroup").glob(f"**/vsm-{runner.pid}-*/**/")
    found["program", "control groups more", ""] = len(list(groups))
    return found


def _skipped(variant: str, why: str) -> dict[str, Any]:
    return {
        "benchmark": "library",
        "variant": variant,
        "metric": "call to result",
        "value": 0.0,
        "unit": "ms",
        "skipped": f"skipped: {why}",
        "runs": 0,
    }


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
