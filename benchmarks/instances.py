"""How long a new session waits for a server of its own: spare, fork of a zygote, cold start.

A real vsm with a light server (standard library only) and the demo's unmodified Python and node
servers, each as it is. A session connects and says who it is; what is measured is its first call,
until the answer, and its second. Rounds alternate; the base is the first call of a server that
was started before, without vsm.
"""

import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare import spread
from confined import skipped
from neighbours import Client
from running import DEMO, Running, running
from supervised import ask, rows

NOTEBOOK = Path(__file__).resolve().parents[1] / "tests/servers/notebook.py"
SERVERS = {
    "light": ("python-server", "note", {"text": "x"}),
    "python": ("python-server", "get_current_time", {"timezone": "UTC"}),
    "node": ("node-server", "echo", {"message": "x"}),
}
COMMANDS = {
    "light": ["/usr/bin/python3", str(NOTEBOOK), "light"],
    "python": ["servers/time/bin/mcp-server-time", "--local-timezone", "UTC"],
    "node": ["servers/everything/node_modules/.bin/mcp-server-everything"],
}
KINDS = {
    "shared": "",
    "cold": 'instances = "session"\nstart = "lazy"\nmax_instances = 3',
    "spare": 'instances = "session"\nspares = 1\nmax_instances = 3',
    "zygote": 'instances = "session"\nzygote = true\nmax_instances = 3',
    "zygote-spare": 'instances = "session"\nzygote = true\nspares = 1\nmax_instances = 3',
}
START_S = 120.0
SPARED = ("spare", "zygote-spare")
TABLE = """
[integrations.{kind}]
command = {command}
profile = "{profile}"
{terms}
"""


def kinds_of(language: str) -> dict[str, str]:
    """Only Python can be forked."""
    return {k: v for k, v in KINDS.items() if language != "node" or "zygote" not in k}


@contextlib.contextmanager
def started(language: str) -> Iterator[Running]:
    """A vsm with one integration of each kind."""
    profile = SERVERS[language][0]
    program, *arguments = COMMANDS[language]
    command = json.dumps([str(DEMO / program), *arguments])
    tables = [
        TABLE.format(kind=kind, command=command, profile=profile, terms=terms)
        for kind, terms in kinds_of(language).items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "vsm.toml"
        config.write_text("".join(tables), encoding="utf-8")
        with running(config) as vsm:
            kinds = kinds_of(language)
            end = time.monotonic() + START_S  # five servers at once, on a machine that is busy
            while any(rows(vsm)[kind]["state"] != "ready" for kind in kinds):
                if time.monotonic() > end:
                    raise RuntimeError(vsm.log())
                time.sleep(0.2)
            yield vsm
            vsm.stop()


def wait_idle(vsm: Running) -> None:
    """No session has a server any more, and a spare is there."""
    while True:
        answer = ask(vsm, "status")["systems"]["system1"]["integrations"]
        states = {kind: {i["state"] for i in one["instances"]} for kind, one in answer.items()}
        spared = all(states[kind] == {"spare"} for kind in SPARED if kind in states)
        if spared and all(states[kind] <= {"spare"} for kind in states if kind != "shared"):
            return
        time.sleep(0.05)


def first_and_second_s(vsm: Running, kind: str, language: str) -> tuple[float, float]:
    """What a new session's first and second call take."""
    tool, arguments = SERVERS[language][1:]
    with contextlib.closing(Client(vsm.folder / "run/mcp.sock")) as client:
        times = []
        for _ in range(2):
            began = time.perf_counter()
            params = {"name": f"{kind}__{tool}", "arguments": arguments}
            answer = client.request("tools/call", params)
            times.append(time.perf_counter() - began)
            if "result" not in answer:
                raise RuntimeError(answer)
    return times[0], times[1]


def direct_s(language: str) -> tuple[float, float]:
    """What the first and second call of a server take that is only its own."""
    program, *words = COMMANDS[language]
    tool, arguments = SERVERS[language][1:]
    argv = [str(DEMO / program), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(argv, **pipes) as server:  # type: ignore[call-overload]
        requests = iter(range(100))

        def request(method: str, params: dict[str, Any]) -> None:
            number = next(requests)
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            server.stdin.write(json.dumps(message).encode() + b"\n")
            server.stdin.flush()
            while json.loads(server.stdout.readline()).get("id") != number:
                continue

        who = {"protocolVersion": "2025-11-25", "capabilities": {}}
        request("initialize", {**who, "clientInfo": {"name": "b", "version": "1"}})
        server.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        request("tools/list", {})
        times = []
        for _ in range(2):
            began = time.perf_counter()
            request("tools/call", {"name": tool, "arguments": arguments})
            times.append(time.perf_counter() - began)
        server.kill()
    return times[0], times[1]


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure both languages."""
    rows = []
    for language in SERVERS:
        if not (DEMO / COMMANDS[language][0]).exists():
            rows.append(skipped("instances", language, "first call", "the server is not there"))
            continue
        rows += _run(language, rounds)
    return rows


def _run(language: str, rounds: int) -> list[dict[str, Any]]:
    times: dict[tuple[str, str], list[float]] = {}
    with started(language) as vsm:
        for round_number in range(rounds + 1):  # the first is not counted
            for kind in ("direct", *kinds_of(language)):
                wait_idle(vsm)
                by_vsm = kind in KINDS
                both = first_and_second_s(vsm, kind, language) if by_vsm else direct_s(language)
                for which, value_s in zip(("first", "second"), both, strict=True):
                    kept = times.setdefault((kind, which), [])
                    if round_number:
                        kept.append(value_s)
    base = times["direct", "first"]
    return [
        {
            "benchmark": "instances",
            "variant": f"{language}, {kind}",
            "metric": f"{which} call of a session",
            "value": statistics.median(values) * 1e3,
            "unit": "ms",
            "ratio": statistics.median(values) / statistics.median(base),
            "ratio_to": "direct, first",
            "spread": spread(values, base),
            "runs": rounds,
        }
        for (kind, which), values in times.items()
    ]
