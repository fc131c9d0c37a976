"""What a server feels of a neighbour that misbehaves: p95 of its calls, against its quiet p95.

A real vsm with two confined servers: one answers, the other has a CPU limit and breaks one rule
at a time. Quiet and misbehaving stretches alternate within each round. In the first row it does
nothing: what of the others' ratios is the machine's, and not the neighbour's.
"""

import contextlib
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare import spread
from running import running

SERVER = Path(__file__).resolve().parents[1] / "tests/servers/echo_legacy.py"
NOTHING = "nothing"
WAYS = (
    NOTHING,
    "garbage",
    "bad_utf8",
    "unknown_id",
    "duplicate",
    "deep",
    "endless",
    "big",
    "silence",
    "flood",
    "deaf",
    "late",
    "change",
    "die",
)
CALLS = 300
PACE_S = 0.001
BIG_BYTES = 4_000_000
CONFIG = """
[integrations.good]
command = {good}
profile = "python-server"
read = {read}
[integrations.bad]
command = {bad}
profile = "limited.toml"
read = {read}
call_timeout_s = 2
"""
PROFILE = 'extends = "python-server"\n[limits]\ncpu = 0.25\n'


class Client:
    """A legacy client on the socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._ids = 0
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "b"}}
        self.request("initialize", params)
        self._send({"method": "notifications/initialized"})

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def ask(self, method: str, params: dict[str, Any]) -> int:
        """Send a request and return its id."""
        self._ids += 1
        self._send({"id": self._ids, "method": method, "params": params})
        return self._ids

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        return self.answer(self.ask(method, params))

    def answer(self, wanted: int) -> dict[str, Any]:
        """Wait for the answer to a request."""
        while line := self._lines.readline():
            message: dict[str, Any] = json.loads(line)
            if message.get("id") == wanted:
                return message
        raise ConnectionError("vsm closed the connection")

    def p95_us(self, bad: "Client | None" = None, way: str = "") -> float:
        """The 95th percentile of paced calls to the good server."""
        times = []
        for number in range(CALLS):
            if bad is not None and way != NOTHING and number % 30 == 0:
                params = {"name": f"bad__{way}", "arguments": {"bytes": BIG_BYTES}}
                bad.ask("tools/call", params)
            began = time.perf_counter()
            answer = self.request("tools/call", {"name": "good__echo", "arguments": {}})
            times.append(time.perf_counter() - began)
            if "result" not in answer:
                raise RuntimeError(answer)
            time.sleep(PACE_S)
        return statistics.quantiles(times, n=20)[-1] * 1e6


@contextlib.contextmanager
def clients(way: str) -> Iterator[tuple[Client, Client]]:
    """A client for each server; a fresh vsm for each way, as some never end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "limited.toml").write_text(PROFILE, encoding="utf-8")
        read = json.dumps([str(SERVER.parent)])
        words = [sys.executable, "-SI", str(SERVER)]
        good, bad = json.dumps([*words, "good"]), json.dumps([*words, "bad"])
        config = folder / "vsm.toml"
        config.write_text(CONFIG.format(good=good, bad=bad, read=read), encoding="utf-8")
        with running(config) as vsm:
            path = vsm.folder / "run/mcp.sock"
            with contextlib.closing(Client(path)) as one, contextlib.closing(Client(path)) as two:
                for client, server in ((one, "good"), (two, "bad")):
                    answer = client.request("tools/call", {"name": f"{server}__echo"})
                    if "result" not in answer:
                        raise RuntimeError(f"{way}: {answer}")
                yield one, two
            vsm.stop()


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure every way of misbehaving."""
    rows = []
    for way in WAYS:
        quiet, loud = [], []
        with clients(way) as (good, bad):
            good.p95_us()
            for _ in range(rounds):
                quiet.append(good.p95_us())
                loud.append(good.p95_us(bad, way))
        value, base = statistics.median(loud), statistics.median(quiet)
        rows.append(
            {
                "benchmark": "neighbours",
                "variant": way,
                "metric": "p95 of a neighbour",
                "value": value,
                "unit": "us",
                "ratio": value / base,
                "ratio_to": "quiet",
                "spread": spread(loud, quiet),
                "runs": rounds,
            }
        )
    return rows
