"""Many clients and many servers: latency, the gateway's memory, and how soon it answers at all.

A thousand clients on the socket, each with one call in flight to one of a hundred servers chosen
at random, closed loop. The servers are minimal processes; the gateway stands alone, without the
processes around it. Also results of 100 kB, beside a direct connection and a relay that copies
bytes and looks at none (which no gateway in Python can be below), and the time from the gateway's
start to its first tools/list while its servers have not even begun to answer.
"""

import contextlib
import os
import random
import selectors
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from route import PEERS, Lines, lines_of, peer

CLIENTS = 1000
SERVERS = 100
CALLS = 20_000
LARGE_BYTES = 100_000
LARGE_CALLS = 200
HELLO = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
    b'"capabilities":{},"clientInfo":{"name":"scale","version":"1"}}}\n'
)
LIST = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}\n'
CALL = (
    b'{"jsonrpc":"2.0","id":%d,"method":"tools/call",'
    b'"params":{"name":"up%d__echo","arguments":{"a":"b"}}}\n'
)
LARGE = (
    b'{"jsonrpc":"2.0","id":%d,"method":"tools/call",'
    b'"params":{"name":"%b","arguments":{"size":%d}}}\n'
)


def run(rounds: int) -> list[dict[str, Any]]:
    """Medians over the rounds."""
    latencies, memory = _many(rounds)
    p50 = statistics.median(one[0] for one in latencies)
    p99 = statistics.median(one[1] for one in latencies)
    rate = statistics.median(one[2] for one in latencies)
    variant = f"{CLIENTS} clients, {SERVERS} servers"
    rows = [
        _row(variant, "p50", p50 * 1e3, "ms", rounds),
        _row(variant, "p99", p99 * 1e3, "ms", rounds) | {"ratio": p99 / p50, "ratio_to": "p50"},
        _row(variant, "calls/s", rate, "1/s", rounds),
        _row(variant, "gateway's memory (RSS)", memory / 2**20, "MiB", rounds),
    ]
    return [*rows, *_large(rounds), *_cold(rounds)]


def _row(variant: str, metric: str, value: float, unit: str, runs: int) -> dict[str, Any]:
    row = {"benchmark": "scale", "variant": variant, "metric": metric, "value": value}
    return row | {"unit": unit, "ratio": None, "ratio_to": None, "runs": runs}


@contextlib.contextmanager
def gateway(servers: int, *, silent: bool = False) -> Iterator[tuple[str, int]]:
    """A gateway before many servers: its socket and its pid."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["gateway", folder, str(servers), "silent" if silent else "server"]
        with peer(*PEERS, *words, ready=True) as process:
            yield f"{folder}/mcp.sock", process.pid


def _many(rounds: int) -> tuple[list[tuple[float, float, float]], int]:
    with gateway(SERVERS) as (path, pid), contextlib.ExitStack() as stack:
        clients = []
        for _ in range(CLIENTS):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            client.sendall(HELLO)
            client.recv(1 << 16)
            clients.append(client)
        found = [_closed_loop(clients, random.Random(number)) for number in range(rounds)]
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return found, int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _closed_loop(clients: list[socket.socket], chance: random.Random) -> tuple[float, float, float]:
    """Median and 99th percentile in seconds, calls per second."""
    began: dict[int, float] = {}
    took: list[float] = []
    left = CALLS
    number = 0

    def call(client: socket.socket) -> None:
        nonlocal number, left
        number += 1
        left -= 1
        began[client.fileno()] = time.perf_counter()
        client.sendall(CALL % (number, chance.randrange(SERVERS)))

    with selectors.DefaultSelector() as selector:
        start = time.perf_counter()
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
            call(client)
        while began:
            for key, _ in selector.select():
                caller = key.fileobj
                assert isinstance(caller, socket.socket)
                answer = caller.recv(1 << 16)
                if b'"result"' not in answer:
                    raise RuntimeError(answer[:300].decode())
                took.append(time.perf_counter() - began.pop(caller.fileno()))
                if left > 0:
                    call(caller)
        rate = len(took) / (time.perf_counter() - start)
    took.sort()
    return took[len(took) // 2], took[len(took) * 99 // 100], rate


def _large(rounds: int) -> list[dict[str, Any]]:
    """Results of 100 kB, one at a time: directly, through the gateway, through a bare relay."""
    times: dict[str, list[float]] = {"direct": [], "bare relay": [], "vsm, socket": []}
    with (
        peer(*PEERS, "server", ready=False) as direct,
        peer(*PEERS, "relay", ready=True) as relay,
        gateway(1) as (path, _),
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.connect(path)
        ways = {
            "direct": (lines_of(direct), b"echo"),
            "bare relay": (lines_of(relay), b"echo"),
            "vsm, socket": (Lines(local.fileno(), local.fileno()), b"up0__echo"),
        }
        for _ in range(rounds):
            for way, (lines, tool) in ways.items():
                began = time.perf_counter()
                for number in range(1, LARGE_CALLS + 1):
                    lines.ask(LARGE % (number, tool, LARGE_BYTES), number)
                times[way].append((time.perf_counter() - began) / LARGE_CALLS)
    base = statistics.median(times["direct"])
    rows = []
    for way, taken in times.items():
        median = statistics.median(taken)
        row = _row(way, "result of 100 kB", median * 1e6, "us", rounds)
        rows.append(row | {"ratio": median / base, "ratio_to": "direct"})
    return rows


def _cold(rounds: int) -> list[dict[str, Any]]:
    """From exec to the gateway's first list of tools, before servers that never say a word."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        with (
            gateway(10, silent=True) as (path, _),
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.connect(path)
            client.sendall(HELLO + LIST)
            answers = client.makefile("rb")
            while b'"tools":' not in answers.readline():
                pass
            times.append(time.perf_counter() - began)
            answers.close()
    value = statistics.median(times) * 1e3
    return [_row("10 silent servers", "start to first tools/list", value, "ms", rounds)]


if __name__ == "__main__":
    sys.exit("run by scripts/bench scale")
