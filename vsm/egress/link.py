"""The parent's side of the egress process: start it, give it workers, hear what it counted.

Used by the supervisor (which waits for `fileno` in its event loop) and by `vsm sandbox run`.
Nothing here blocks but `wait_ready`, `wait_last_counts` and `close`. The process parses what
workers send it, so what it says is checked: another word than its own, and it is killed.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

import msgspec

import vsm
from vsm.configuration.profile import load_profile
from vsm.confinement import uids
from vsm.confinement.execution import Plan
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.confinement.probe import HostFacts
from vsm.core.egress import Rules
from vsm.egress.counts import MOST_NAMES
from vsm.errors import ConfinementError
from vsm.processes.launcher import receive, send

READY_TIMEOUT_S: Final = 20.0
_END_TIMEOUT_S: Final = 5.0
_START: Final = (
    "import sys; sys.path.append(sys.argv[1]); from vsm.egress import process; "
    "sys.exit(process.main(sys.argv[2:]))"
)
_MOST_ROWS: Final = MOST_NAMES + 1  # and the others
_REMEDY: Final = "See `vsm sandbox probe` for what this host gives."


def egress_plan(
    host: HostFacts,
    uid: int | None,
    cgroups: tuple[str, ...] = (),
    cgroup_layers: tuple[str, ...] = (),
) -> Plan:
    """How the egress process confines itself; `uid` is None where the user's own stays.

    Raises:
        VsmError: its profile is wrong, or needs what this host lacks.
    """
    if uid is not None:
        uids.check_mapped(uid, where="egress")
    request = WorkerRequest(
        name="egress", argv=(), uid=uid, cgroups=cgroups, cgroup_layers=cgroup_layers
    )
    return compile_plan(load_profile("egress"), request, host)


def egress_plan_of_runs(host: HostFacts) -> Plan:
    """That of this process's runs.

    Raises:
        VsmError: as `egress_plan`.
    """
    return egress_plan(host, uids.run_uid(uids.EGRESS_SLOT) if host.root else None)


class _Row(TypedDict):
    """Of `vsm.egress.counts`."""

    asked: int
    allowed: int
    refused: int
    sent_bytes: int
    received_bytes: int
    reason: str


class _Said(msgspec.Struct):
    """A message of the process."""

    kind: Literal["ready", "counts", "failed"]
    layers: list[dict[str, str]] = []
    worker: str = ""
    counts: dict[str, _Row] = {}
    last: bool = False
    what: str = ""


class EgressLink:
    """One egress process.

    Args:
        plan: by which it confines itself.

    Attributes:
        layers: its layers in force; empty until it is ready.
        failure: why it is not going to be ready, or "".
        counts: worker → name → counts, the last that it said; none of a forgotten worker.
        pid: the process's.
        pidfd: owned by this object, closed by `close`.
    """

    def __init__(self, plan: Plan) -> None:
        self.layers: list[dict[str, str]] = []
        self.failure = ""
        self.counts: dict[str, dict[str, dict[str, Any]]] = {}
        self._served: set[str] = set()  # nobody else's counts are kept
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)  # noqa: FBT003 - the method takes no keyword
        with theirs:
            self._process = _start_process(theirs.fileno(), plan)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def fileno(self) -> int:
        """Readable when `hear` has something to do."""
        return self._link.fileno()

    def hear(self) -> bool:
        """Take in what it said; False at the end of the link."""
        while True:
            try:
                data, fds = receive(self._link)
            except BlockingIOError:
                return True
            except OSError:
                data, fds = b"", []
            except ValueError:
                return self._distrust()
            for fd in fds:  # it has none to give
                os.close(fd)
            if not data:
                self.failure = self.failure or "it ended"
                return False
            try:
                said = msgspec.json.decode(data, type=_Said)
            except (msgspec.DecodeError, RecursionError):
                return self._distrust()
            if not self._take(said):
                return self._distrust()

    def _take(self, said: _Said) -> bool:
        """False if it cannot be true."""
        if said.kind == "ready":
            self.layers = said.layers
        elif said.kind == "failed":
            self.failure = said.what
        else:
            if said.worker in self._served:
                known = self.counts.get(said.worker, {}).keys()  # no name is ever taken back
                if len(said.counts) > _MOST_ROWS or not known <= said.counts.keys():
                    return False
                self.counts[said.worker] = {name: {**row} for name, row in said.counts.items()}
            if said.last:
                self._served.discard(said.worker)
        return True

    def _distrust(self) -> bool:
        self.failure = "it said what it never says, and was killed"
        self.kill()
        return False

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until it is confined.

        Raises:
            ConfinementError: it could not confine itself, or did not come up in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self.layers:
            left_s = max(0.0, deadline - time.monotonic())
            if not _is_readable(self._link, left_s) or not self.hear():
                what = f"the egress process: {self.failure or 'did not become ready'}"
                raise ConfinementError("egress", what, _REMEDY, layer="network")

    def serve(self, worker: str, rules: Rules, listeners: Sequence[int]) -> bool:
        """Give it a worker; the fds stay the caller's. False if it does not take it."""
        self._served.add(worker)
        self.counts.pop(worker, None)
        message = {"kind": "serve", "worker": worker, "rules": rules.to_json()}
        return self._send(message, list(listeners))

    def forget(self, worker: str) -> None:
        """Close the worker's listeners and cut its connections."""
        self._send({"kind": "forget", "worker": worker}, [])
        self._served.discard(worker)  # it is counted once more at its end, which nobody asks for
        self.counts.pop(worker, None)

    def wait_last_counts(self, worker: str, timeout_s: float = 2.0) -> None:
        """Forget the worker, which a fork of ours may have it serve; wait for its last counts."""
        self._send({"kind": "forget", "worker": worker}, [])
        self._served.add(worker)
        deadline = time.monotonic() + timeout_s
        while worker in self._served:
            left_s = max(0.0, deadline - time.monotonic())
            if not _is_readable(self._link, left_s) or not self.hear():
                self._served.discard(worker)

    def _send(self, message: dict[str, Any], fds: list[int]) -> bool:
        try:
            send(self._link, json.dumps(message).encode(), fds)
        except BlockingIOError:
            self.kill()  # it has not listened for a hundred messages: it hangs
        except OSError:
            pass
        else:
            return True
        return False

    def kill(self) -> None:
        """End it at once; `close` still has to be called."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def hang_up(self) -> None:
        """Tell it that there will be no more; it ends."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)

    def close(self, *, linger: bool = True) -> None:
        """Close the link, wait for the process's end, reap it.

        Args:
            linger: False: it is dead already, or is to die at once.
        """
        self.hang_up()
        if linger:
            self._wait_end()
        else:
            self.kill()
        self._process.wait()
        self.hear()
        self._link.close()
        os.close(self.pidfd)
        self.pidfd = -1

    def _wait_end(self) -> None:
        if not _is_readable(self.pidfd, _END_TIMEOUT_S):
            self.kill()


def _is_readable(fd: int | socket.socket, timeout_s: float) -> bool:
    """Wait until it is; by poll(2), since select(2) knows no descriptor above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _start_process(link_fd: int, plan: Plan) -> subprocess.Popen[bytes]:
    """`python -SI`: no site-packages, no environment, nothing inherited but the link."""
    plan_text = json.dumps(plan.to_json())
    package_root = str(Path(vsm.__file__).resolve().parent.parent)
    return subprocess.Popen(
        [sys.executable, "-SI", "-c", _START, package_root, str(link_fd), plan_text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(link_fd,),
        cwd="/",
        env={"LANG": "C.UTF-8"},  # nothing of ours, which may hold secrets
        start_new_session=True,  # a terminal's ^C is for the worker
        umask=0o077,
    )
