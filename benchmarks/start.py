"""From `vsm up` being typed to READY, `vsm status` to its end, a system's death to its replacement.

READY is what a service manager gets; a replacement counts from the SIGKILL until the supervisor's
log says that it is ready. Asking for the status meanwhile would measure the questions.
"""

import json
import os
import select
import signal
import socket
import statistics
import time
from pathlib import Path
from typing import IO, Any, Self

from running import Running, running

DEADLINE_S = 20.0
QUIET_S = 0.3  # the last answer and the making of spares are over
PACE_S = 0.0005
TYPED = 5


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure all three; the variants of the last are the five systems."""
    starts, answers = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with running(None) as vsm:
            starts.append(time.perf_counter() - began)
            answers.append(statistics.median(_typed_s(vsm, "status") for _ in range(TYPED)))
            vsm.stop()
    rows = [
        _row("vsm up", "to ready", statistics.median(starts) * 1e3, rounds),
        _row("vsm status", "to its end", statistics.median(answers) * 1e3, rounds * TYPED),
    ]
    for name in ("system1", "system2", "system3", "system4", "system5"):
        # A supervisor of its own for each: more deaths than its intensity allows make it wait.
        deaths = []
        for _ in range(min(rounds, 3)):
            with running(None) as vsm:
                deaths.append(_replacement_s(vsm, name))
                vsm.stop()
        rows.append(_row(name, "death to replacement ready", statistics.median(deaths) * 1e3, 3))
    return rows


def _typed_s(vsm: Running, command: str) -> float:
    began = time.perf_counter()
    vsm.vsm(command).check_returncode()
    return time.perf_counter() - began


def _row(variant: str, metric: str, value: float, runs: int) -> dict[str, Any]:
    return {
        "benchmark": "start",
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": "ms",
        "ratio": None,
        "ratio_to": None,
        "runs": runs,
    }


def _replacement_s(vsm: Running, name: str) -> float:
    with _Status(vsm.folder / "run/control.sock") as status:
        while not status.worker(name).get("spare"):  # what stands behind a system that serves
            pass
        old = status.worker(name)["pid"]
    with (vsm.folder / "log").open(encoding="utf-8", errors="replace") as log:
        select.select([], [], [], QUIET_S)
        log.seek(0, os.SEEK_END)
        began = time.perf_counter()
        os.kill(old, signal.SIGKILL)
        while not _says_ready(log, name):
            select.select([], [], [], PACE_S)
            if time.perf_counter() - began > DEADLINE_S:
                raise TimeoutError(f"{name}: no replacement within {DEADLINE_S} s")
        return time.perf_counter() - began


def _says_ready(log: IO[str], name: str) -> bool:
    return any(f"worker={name}" in line and " ready " in line for line in log)


class _Status:
    """Asks for the status again and again over one connection."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def worker(self, name: str) -> dict[str, Any]:
        self._socket.sendall(b'{"command": "status", "arguments": {}}\n')
        workers = json.loads(self._lines.readline())["result"]["workers"]
        found: dict[str, Any] = next(worker for worker in workers if worker["name"] == name)
        return found
