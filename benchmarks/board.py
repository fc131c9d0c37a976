"""What counting costs a call, how fast counts are visible elsewhere, how fast they are read.

`counted` and `uncounted` are the same gateway with and without the counting of calls, measured
alternately, in an order that alternates too: the difference of the least CPU time that each took
for one call is what counting adds, for what else runs on the machine only ever adds. The others
are loops in this process: their unit is one event.
"""

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import route
import uvloop

from vsm.board.demand import DemandBoard, DemandRow
from vsm.board.reader import DemandReader
from vsm.core.demand import OK
from vsm.gateway.accounting import Accounting, now_ns, outcome_of

EVENTS = 20_000
CALLS, BURST = 1500, 12_000
VISIBLE = 300
READS = 200
FRAME = b'{"jsonrpc":"2.0","id":1234,"result":{"content":[{"type":"text","text":"%b"}]}}' % (
    b"x" * 32
)
WATCH = """
import sys
from vsm.board.reader import DemandReader
reader = DemandReader([int(word) for word in sys.argv[1].split(",")], epoch=1, pid=None)
changes, seen = reader.changes(), 0
print("READY", flush=True)
while seen < int(sys.argv[2]):
    now = reader.changes()
    if now != changes:
        changes, seen = now, reader.totals()["a"].events
        sys.stdout.write(f"{seen}\\n")
        sys.stdout.flush()
"""


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure everything in each round and report medians."""
    found: dict[tuple[str, str, str], list[float]] = {}
    with gateways() as variants:
        for number in range(rounds):
            ordered = dict(sorted(variants.items(), reverse=bool(number % 2)))
            for key, value in [*_gateway(ordered), *_loops(), *_reading(), *_visible()]:
                found.setdefault(key, []).append(value)
    medians = {key: statistics.median(values) for key, values in found.items()}
    rows = [_row(*key, value, rounds) for key, value in medians.items()]
    for metric in ("CPU/call, 1 at a time", "CPU/call, 32 in flight"):
        added = min(found["counted", metric, "us"]) - min(found["uncounted", metric, "us"])
        rows.append(_row("counting", f"added {metric}", "us", added, rounds))
    return rows


def uncounted(directory: str) -> None:
    """The routing benchmark's gateway, without counting."""
    import route_peers

    from vsm.gateway import call

    DemandRow.count = lambda *_: None  # type: ignore[method-assign]
    vars(call).update(outcome_of=lambda _: OK, now_ns=lambda: 0)
    route_peers.gateway(directory)


@contextlib.contextmanager
def gateways() -> Iterator[dict[str, tuple[route.Lines, int]]]:
    """Both gateways with a client each."""
    started = {
        "counted": [*route.PEERS, "gateway"],
        "uncounted": [sys.executable, __file__],
    }
    with contextlib.ExitStack() as stack:
        found = {}
        for name, argv in started.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            process = stack.enter_context(route.peer(*argv, folder, ready=True))
            local = stack.enter_context(socket.socket(socket.AF_UNIX))
            local.connect(f"{folder}/mcp.sock")
            found[name] = route.Lines(local.fileno(), local.fileno()), process.pid
        yield found


Found = Iterator[tuple[tuple[str, str, str], float]]


def _gateway(variants: dict[str, tuple[route.Lines, int]]) -> Found:
    for name, (driver, pid) in variants.items():
        driver.burst(2 * route.IN_FLIGHT)
        before = route.cpu_s(pid)
        for _ in range(CALLS):
            driver.one()
        between = route.cpu_s(pid)
        driver.burst(BURST)
        after = route.cpu_s(pid)
        yield (name, "CPU/call, 1 at a time", "us"), (between - before) / CALLS * 1e6
        yield (name, "CPU/call, 32 in flight", "us"), (after - between) / BURST * 1e6


def _loops() -> Found:
    async def main(per_turn: int) -> float:
        accounting = Accounting(1, ["a"])
        row = accounting.row("a")
        empty = await _turns(per_turn, lambda: None)
        counted = await _turns(per_turn, lambda: row.count("echo", outcome_of(FRAME), now_ns()))
        accounting.close()
        return (counted - empty) / EVENTS

    for per_turn in (1, 32):
        spent_s = uvloop.run(main(per_turn))
        yield ("accounting", f"CPU/event, {per_turn} a turn", "us"), spent_s * 1e6
        yield ("accounting", f"events/s, {per_turn} a turn", "1/s"), 1 / spent_s


async def _turns(per_turn: int, do: Callable[[], object]) -> float:
    began = time.process_time()
    for _ in range(EVENTS // per_turn):
        for _ in range(per_turn):
            do()
        await asyncio.sleep(0)
    return time.process_time() - began


def _reading() -> Found:
    board = DemandBoard(1, [f"integration{index}" for index in range(100)])
    for row in board.rows.values():
        for label in range(10):
            row.count(f"tool{label}", OK, now_ns())
    reader = DemandReader([os.dup(fd) for fd in board.filenos()], epoch=1, pid=None)
    for what, read, times in (
        ("one row", lambda: reader.segments[0].read_row(1), 20 * READS),
        ("whether 100 changed", reader.changes, READS),
        ("all of 100", reader.totals, READS // 10),
    ):
        began = time.perf_counter()
        for _ in range(times):
            read()
        yield ("reading", what, "us"), (time.perf_counter() - began) / times * 1e6
    reader.close()
    board.close()


def _visible() -> Found:
    """From a count to the line of a process that saw it; the pipe's way back is part of it."""
    board = DemandBoard(1, ["a"])
    fds = board.filenos()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    argv = [sys.executable, "-c", WATCH, ",".join(map(str, fds)), str(VISIBLE)]
    with subprocess.Popen(argv, pass_fds=fds, stdout=subprocess.PIPE, env=environment) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        delays = []
        for _ in range(VISIBLE):
            began = time.perf_counter()
            board.rows["a"].count("echo", OK, now_ns())
            watcher.stdout.readline()
            delays.append(time.perf_counter() - began)
    board.close()
    yield ("visible elsewhere", "p50", "us"), statistics.median(delays) * 1e6
    yield ("visible elsewhere", "p95", "us"), sorted(delays)[len(delays) * 95 // 100] * 1e6


def _row(variant: str, metric: str, unit: str, value: float, runs: int) -> dict[str, Any]:
    return {
        "benchmark": "board",
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": unit,
        "ratio": None,
        "ratio_to": None,
        "runs": runs,
    }


if __name__ == "__main__":
    uncounted(sys.argv[1])
