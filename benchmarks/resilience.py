"""What a client feels of another that floods the same server, of a restart, of its server's death.

A real vsm with confined servers. Quiet and flooded stretches alternate within each round; the
flood is a process of its own that keeps 200 calls under way. The restart is by `vsm restart`, with
one call after the other. The death is a SIGKILL of the server
with one call in flight: how long until that call fails.
"""

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neighbours import SERVER, Client
from running import VSM, Running, running

CALLS = 200
PACE_S = 0.001
UNDER_WAY = 200
# What is asked, with which arguments, of a server with how many places.
FLOODS = {
    "calls of 5 ms, 16 places": ("slow", {"seconds": 0.005}, 16),
    "quick calls, 1 place": ("echo", {}, 1),
    "quick calls, 64 places": ("echo", {}, 64),
}
CONFIG = """
[integrations.x]
command = {command}
profile = "python-server"
read = {read}
concurrency = {places}
resilience = {{ failures = 0 }}
restart = {{ intensity = 1000 }}
"""


def p95_us(client: Client, tool: str, arguments: dict[str, Any]) -> float:
    """The 95th percentile of paced calls."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        answer = client.request("tools/call", {"name": f"x__{tool}", "arguments": arguments})
        times.append(time.perf_counter() - began)
        if "result" not in answer:
            raise RuntimeError(answer)
        time.sleep(PACE_S)
    return statistics.quantiles(times, n=20)[-1] * 1e6


@contextlib.contextmanager
def vsm_with(places: int) -> Iterator[tuple[Running, Client]]:
    """A vsm, and a client that it serves."""
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "vsm.toml"
        command = json.dumps([sys.executable, "-SI", str(SERVER), "x"])
        read = json.dumps([str(SERVER.parent)])
        text = CONFIG.format(command=command, read=read, places=places)
        config.write_text(text, encoding="utf-8")
        with running(config) as vsm:
            with contextlib.closing(Client(vsm.folder / "run/mcp.sock")) as client:
                if "result" not in client.request("tools/call", {"name": "x__echo"}):
                    raise RuntimeError("x does not serve")
                yield vsm, client
            vsm.stop()


@contextlib.contextmanager
def flooded(vsm: Running, tool: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Another client that never has fewer than so many calls under way."""
    path = str(vsm.folder / "run/mcp.sock")
    words = [sys.executable, __file__, path, tool, json.dumps(arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE) as process:
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError("the flood did not begin")
        try:
            yield
        finally:
            process.kill()


def flood(path: str, tool: str, arguments: str) -> None:
    """Send a call for each answer; the first word on stdout says that it has begun."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "f"}}
        first = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
        connection.sendall(json.dumps(first).encode() + b"\n")
        connection.recv(1 << 16)
        call = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":%b}\n'
        params = json.dumps({"name": f"x__{tool}", "arguments": json.loads(arguments)}).encode()
        number = UNDER_WAY
        connection.sendall(b"".join(call % (n, params) for n in range(1, number + 1)))
        began = False
        while data := connection.recv(1 << 18):
            if not began:
                began = True
                print("begun", flush=True)
            answered = data.count(b"\n")
            numbers = range(number + 1, number + answered + 1)
            number += answered
            connection.sendall(b"".join(call % (n, params) for n in numbers))


def death_us(vsm: Running, client: Client) -> float:
    """From the SIGKILL of the server to the error of the call in flight."""
    workers = vsm.status()["workers"]
    pid = next(worker["pid"] for worker in workers if worker["integration"] == "x")
    wanted = client.ask("tools/call", {"name": "x__slow", "arguments": {"seconds": 600}})
    client.request("ping", {})
    time.sleep(0.05)
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    answer = client.answer(wanted)
    took_us = (time.perf_counter() - began) * 1e6
    if "may have run" not in str(answer.get("error")):
        raise RuntimeError(answer)
    while "error" in client.request("tools/call", {"name": "x__echo"}):
        time.sleep(0.05)
    return took_us


def restart_us(vsm: Running, client: Client) -> float:
    """The longest that a call takes while its server is restarted by command; none may fail."""
    longest = 0.0
    with subprocess.Popen([VSM, "restart", "x"], env=vsm.environment) as command:
        while command.poll() is None:
            began = time.perf_counter()
            answer = client.request("tools/call", {"name": "x__echo", "arguments": {}})
            longest = max(longest, time.perf_counter() - began)
            if "result" not in answer:
                raise RuntimeError(answer)
    return longest * 1e6


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure the floods, then the deaths."""
    rows = []
    for name, (tool, arguments, places) in FLOODS.items():
        quiet, loud = [], []
        with vsm_with(places) as (vsm, client):
            p95_us(client, tool, arguments)
            for _ in range(rounds):
                quiet.append(p95_us(client, tool, arguments))
                with flooded(vsm, tool, arguments):
                    loud.append(p95_us(client, tool, arguments))
        ratio = statistics.median(loud) / statistics.median(quiet)
        row = _row(f"flood: {name}", "p95 of another client", statistics.median(loud), rounds)
        rows.append(row | {"ratio": ratio, "ratio_to": "quiet"})
    with vsm_with(64) as (vsm, client):
        restarts = [restart_us(vsm, client) for _ in range(rounds)]
        took = [death_us(vsm, client) for _ in range(rounds)]
    rows.append(_row("restart by command", "longest call", statistics.median(restarts), rounds))
    rows.append(
        _row("death of the server", "until its call fails", statistics.median(took), rounds)
    )
    rows.append(_row("death of the server", "until its call fails, worst", max(took), rounds))
    return rows


def _row(variant: str, metric: str, value: float, rounds: int) -> dict[str, Any]:
    return {
        "benchmark": "resilience",
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": "us",
        "ratio": None,
        "ratio_to": None,
        "runs": rounds,
    }


if __name__ == "__main__":
    flood(*sys.argv[1:])
