"""How long `reload` takes with 50 integrations, and whether a call is dropped meanwhile.

Over the control socket, so without the start of a command line. The servers are small ones of the
tests' own; one that is not changed is called all the time.
"""

import json
import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

from running import Running, running

COUNT = 50
BOUND_S = 120.0
SERVER = Path(__file__).resolve().parents[1] / "tests/servers/echo_legacy.py"
VARIANTS = ("nothing changed", "50 time-outs changed", "50 limits moved", "1 of 50 replaced")


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure each kind of reload; the last row counts the calls that failed."""
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, timeout_s=60, memory="200M", changed=0)
        with running(folder / "vsm.toml") as vsm, _Control(vsm) as control:
            control.wait_ready()
            with _Caller(vsm) as caller:
                for number in range(rounds):
                    _round(folder, control, number, times)
            vsm.stop()
    rows = [_row(name, statistics.median(took) * 1e3, "ms", rounds) for name, took in times.items()]
    rows.append(_row("failed calls meanwhile", caller.failed, "calls", caller.made))
    return rows


def _round(folder: Path, control: "_Control", number: int, times: dict[str, list[float]]) -> None:
    terms: dict[str, Any] = {"timeout_s": 60 + number, "memory": f"{200 + number}M"}
    terms["changed"] = number
    times["nothing changed"].append(control.reload(changes=0))
    _write(folder, **terms | {"timeout_s": 61 + number})
    times["50 time-outs changed"].append(control.reload(changes=COUNT))
    _write(folder, **terms | {"timeout_s": 61 + number, "memory": f"{201 + number}M"})
    times["50 limits moved"].append(control.reload(changes=COUNT))
    terms = {"timeout_s": 61 + number, "memory": f"{201 + number}M", "changed": number + 1}
    _write(folder, **terms)
    times["1 of 50 replaced"].append(control.reload(changes=1))


def _write(folder: Path, *, timeout_s: int, memory: str, changed: int) -> None:
    (folder / "small.toml").write_text(
        f'extends = "python-server"\ndescription = "small"\n[limits]\nmemory = "{memory}"\n',
        encoding="utf-8",
    )
    command = json.dumps(["/usr/bin/python3", str(SERVER)])
    tables = [
        f"[integrations.i{index}]\ncommand = {command}\nprofile = './small.toml'\n"
        f"read = [{json.dumps(str(SERVER.parent))}]\ncall_timeout_s = {timeout_s}\n"
        f"env = {{ A = '{changed if index == COUNT - 1 else 0}' }}\n"
        for index in range(COUNT)
    ]
    (folder / "vsm.toml").write_text("\n".join(tables), encoding="utf-8")


class _Control:
    """The control socket of a running vsm."""

    def __init__(self, vsm: Running) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(BOUND_S)
        self._socket.connect(str(vsm.folder / "run/control.sock"))
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        question = json.dumps({"command": command, "arguments": arguments}) + "\n"
        self._socket.sendall(question.encode())
        answer = json.loads(self._lines.readline())
        if not answer["ok"]:
            raise RuntimeError(str(answer))
        return answer["result"]

    def reload(self, *, changes: int) -> float:
        """Seconds until the answer, with every server that was replaced ready."""
        began = time.perf_counter()
        answer = self.ask("reload")
        took_s = time.perf_counter() - began
        good = [row for row in answer["changes"] if row["outcome"] in {"changed", "replaced"}]
        if len(good) != changes or len(answer["changes"]) != changes:
            raise RuntimeError(f"expected {changes} changes: {answer}")
        return took_s

    def wait_ready(self) -> None:
        end = time.monotonic() + BOUND_S
        while time.monotonic() < end:
            rows = self.ask("status")["workers"]
            if all(row["state"] == "ready" for row in rows if row["kind"] == "integration"):
                return
            time.sleep(0.1)
        raise RuntimeError("the servers are not ready")


class _Caller:
    """Calls an integration that no reload changes, again and again, on one session."""

    def __init__(self, vsm: Running) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(BOUND_S)
        self._socket.connect(str(vsm.folder / "run/mcp.sock"))
        self._lines = self._socket.makefile("rb")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self.made = 0
        self.failed = 0

    def __enter__(self) -> Self:
        client = {"name": "benchmark", "version": "1"}
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
        self._ask("initialize", params)
        self._send({"method": "notifications/initialized"})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._lines.close()
        self._socket.close()

    def _call(self) -> None:
        while not self._over.is_set():
            answer = self._ask("tools/call", {"name": "i0__echo", "arguments": {"text": "x"}})
            self.made += 1
            self.failed += "result" not in answer or bool(answer["result"].get("isError"))

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._send({"id": self.made, "method": method, "params": params})
        while True:
            answer: dict[str, Any] = json.loads(self._lines.readline())
            if answer.get("id") == self.made:
                return answer


def _row(variant: str, value: float, unit: str, runs: int) -> dict[str, Any]:
    return {
        "benchmark": "reload",
        "variant": variant,
        "metric": "time to the answer" if unit == "ms" else "failed",
        "value": round(value, 1),
        "unit": unit,
        "ratio": None,
        "ratio_to": None,
        "runs": runs,
    }
