"""Pain: from the call that causes it to the line that an operator reads in `vsm events --follow`.

A real vsm with a server behind it. Each of 40 rules has a budget of no call at all, so that the
first call under it hurts once: the call goes through the gateway, S1 signals S5, S5 tells the
supervisor, the journal commits, the follower looks. Quiet, and while four clients call as fast
as they can.
"""

import json
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import running

RULES = 40
CLIENTS = 4
SERVER = Path(__file__).resolve().parents[1] / "tests/servers/outcomes.py"

Row = dict[str, Any]


class Client:
    """A client on the unix socket."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(folder / "run/mcp.sock"))
        self._lines = self._socket.makefile("rb")
        information = {"name": "benchmark", "version": "1"}
        version = {"protocolVersion": "2025-11-25"}
        self._ask("initialize", {**version, "capabilities": {}, "clientInfo": information})
        self._socket.sendall(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')

    def _ask(self, method: str, params: dict[str, Any]) -> None:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        while b'"id":1' not in self._lines.readline():
            pass

    def call(self, **arguments: str) -> None:
        """Call and wait for the answer."""
        self._ask("tools/call", {"name": "it__works", "arguments": arguments})


def run(rounds: int) -> list[Row]:
    """Measure quiet and busy."""
    del rounds  # 20 signals each
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "vsm.toml"
        config.write_text(_config(), encoding="utf-8")
        with running.running(config) as vsm:
            return [*_measure(vsm, "quiet", 0), *_measure(vsm, "busy", RULES // 2)]


def _config() -> str:
    rules = [
        f'[[policy.rules]]\naction = "allow"\nargument = {{ key = "{n}" }}\n'
        "budget = { calls = 0, period_s = 3600 }\n"
        for n in range(RULES)
    ]
    command = json.dumps(["/usr/bin/python3", "-SI", str(SERVER)])
    return f'[integrations.it]\ncommand = {command}\nread = ["{SERVER.parent}"]\n' + "".join(rules)


def _measure(vsm: running.Running, variant: str, first: int) -> list[Row]:
    words = [running.VSM, "events", "--follow", "--json", "--kind", "algedonic.pain"]
    follower = subprocess.Popen(
        [*words, "--since", "1s"], env=vsm.environment, stdout=subprocess.PIPE, text=True
    )
    done = threading.Event()
    callers = [] if variant == "quiet" else [_caller(vsm.folder, done) for _ in range(CLIENTS)]
    client, taken = Client(vsm.folder), []
    try:
        time.sleep(1.5)  # the follower imports, and what it would show of before is too old
        for number in range(first, first + RULES // 2):
            began = time.monotonic()
            client.call(key=str(number))
            while follower.stdout and f"rule {number + 1}" not in follower.stdout.readline():
                pass
            taken.append((time.monotonic() - began) * 1000)
    finally:
        done.set()
        for caller in callers:
            caller.join()
        follower.kill()
        follower.wait()
    values = {"median": statistics.median(taken), "longest": max(taken)}
    return [
        {
            "benchmark": "pain",
            "variant": variant,
            "metric": f"call to operator, {metric}",
            "value": value,
            "unit": "ms",
            "ratio": None,
            "ratio_to": None,
            "runs": len(taken),
        }
        for metric, value in values.items()
    ]


def _caller(folder: Path, done: threading.Event) -> threading.Thread:
    def work() -> None:
        client = Client(folder)
        while not done.is_set():
            client.call(key="none")

    thread = threading.Thread(target=work)
    thread.start()
    return thread
