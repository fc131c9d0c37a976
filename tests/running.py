"""A real `vsm up` in directories of its own, for tests, benchmarks and the demo's check."""

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

DEMO = Path(__file__).resolve().parents[1] / "demo"
NODE_SERVERS = ("filesystem", "everything", "memory")
VSM = str(Path(sys.executable).with_name("vsm"))
START_TIMEOUT_S = float(os.environ.get("VSM_TEST_START_S", "30"))  # longer where all is emulated
STOP_TIMEOUT_S = 60.0
SERVE_TIMEOUT_S = 60.0


def missing_servers() -> list[str]:
    """The demo's servers that cannot run because there is no node."""
    has_node = shutil.which("node") is not None
    return [n for n in NODE_SERVERS if not (has_node and (DEMO / "servers" / n).is_dir())]


class DidNotStartError(AssertionError):
    """`vsm up` died or said nothing; holds what it printed."""


@dataclasses.dataclass(kw_only=True)
class Running:
    """A supervisor that has said that it is ready.

    Args:
        environment: finds this vsm: pass it to `vsm status` and the like.
        prefix: words before those of every vsm command, which they begin.
        notified: where it tells a service manager how it is.
    """

    process: "subprocess.Popen[bytes]"
    folder: Path
    environment: dict[str, str]
    notified: socket.socket
    prefix: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """The MCP endpoint over HTTP."""
        endpoint = json.loads((self.folder / "run/endpoint.json").read_text(encoding="utf-8"))
        return str(endpoint["http"])

    @property
    def token(self) -> str:
        """The bearer token of the HTTP endpoint."""
        return (self.folder / "run/token").read_text(encoding="ascii").strip()

    def log(self) -> str:
        """Everything that it printed."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def vsm(self, *words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run another vsm command against it."""
        return subprocess.run(
            [*self.prefix, VSM, *words],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """What `vsm status --json` answers."""
        done = self.vsm("status", "--json")
        assert done.returncode == 0, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def wait_serving(self) -> None:
        """Until every integration is ready."""
        deadline_s = time.monotonic() + SERVE_TIMEOUT_S
        while waiting := [row for row in self.status()["workers"] if row["state"] != "ready"]:
            assert time.monotonic() < deadline_s, waiting
            time.sleep(0.1)  # each look is a command of its own

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        self.process.send_signal(signal_number)
        return self.process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def running(
    config: Path | None,
    *arguments: str,
    again: Path | None = None,
    prefix: tuple[str, ...] = (),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Running]:
    """Run `vsm up` until the block ends; a supervisor that still runs then is killed.

    Args:
        again: the folder of an earlier one, to start where it ended.
        prefix: words that begin vsm's commands, and become them by exec.
        settings: more of its environment.

    Raises:
        DidNotStartError: it was not ready in time.
    """
    folder = again or Path(tempfile.mkdtemp(prefix="vsm-r-"))
    words = [*prefix, VSM, "up", "--http", "127.0.0.1:0", *arguments]
    words += ["--config", str(config)] if config else []
    environment = _environment(folder)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        (folder / "log").open("wb") as log,
    ):
        (folder / "notify").unlink(missing_ok=True)
        notified.bind(str(folder / "notify"))
        process = subprocess.Popen(
            words,
            env={**environment, **settings, "NOTIFY_SOCKET": str(folder / "notify")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
        )
        vsm = Running(
            process=process,
            folder=folder,
            environment=environment,
            notified=notified,
            prefix=prefix,
        )
        try:
            _wait_ready(vsm, notified)
            yield vsm
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            _wait_journal(folder)
            if again is None:
                shutil.rmtree(folder)


def _wait_journal(folder: Path) -> None:
    """The journal processes outlive a killed supervisor until all they were sent is on disk."""
    for name in ("journal.db.lock", "calls.db.lock"):
        with contextlib.suppress(FileNotFoundError), (folder / "state" / name).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VSM_")}
    for variable, name in (("VSM_RUNTIME_DIR", "run"), ("VSM_STATE_DIR", "state")):
        kept[variable] = str(folder / name)
    return kept


def _wait_ready(vsm: Running, notified: socket.socket) -> None:
    """Wait for READY=1 as a service manager would, and for an early death by pidfd."""
    pidfd = os.pidfd_open(vsm.process.pid)
    try:
        while True:
            readable = select.select([notified.fileno(), pidfd], [], [], START_TIMEOUT_S)[0]
            if notified.fileno() not in readable:
                raise DidNotStartError(f"vsm up is not ready:\n{vsm.log()}")
            if b"READY=1" in notified.recv(4096):
                return
    finally:
        os.close(pidfd)
