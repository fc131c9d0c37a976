"""The parent's side of one mini-init: fork it, hear from it, signal it, clean up after it.

Used by the launcher, and in process by `vsm.processes.launch.spawn_confined`; single-threaded
callers only. Standard library only.
"""

import json
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from vsm.confinement import scratch
from vsm.confinement.execution import Plan, same_steps
from vsm.confinement.network_operations import HANDED_OUT
from vsm.confinement.operations import LISTENER, IdMap, Site
from vsm.confinement.root_operations import open_id_maps
from vsm.linux import namespaces, pidfd, seccomp
from vsm.processes import mini_init

_MOST_STATUS_BYTES = 65536
_NUMBER_OR_NONE = (int, type(None))
_SHAPES: dict[str, dict[str, tuple[type, ...]]] = {  # of what a mini-init says
    "started": {"layers": (list,)},
    "failed": {"layer": (str,), "what": (str,)},
    "exited": {
        "status": _NUMBER_OR_NONE,
        "signal": _NUMBER_OR_NONE,
        "cpu_s": (float,),
        "peak_bytes": (int,),
        "limit": (str,),
    },
}


class Spare:
    """A mini-init forked ahead of need: namespaces made, the profile's part of the root built.

    Args:
        plan: of a worker; the spare serves any plan that begins alike.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan._replace(env={})
        self.process = _Process.fork(
            plan.clone_flags,
            lambda control, status: mini_init.run_ahead(self.plan, control=control, status=status),
        )
        json.dumps(self.plan.changes_from(self.plan))  # for this side what `rehearse` is for that

    def serves(self, plan: Plan) -> bool:
        """Whether this is the beginning of that plan."""
        own = self.plan
        return plan.clone_flags == own.clone_flags and same_steps(
            plan.operations[: plan.shared], own.operations[: own.shared]
        )

    def discard(self) -> None:
        """Kill and reap it."""
        pidfd.send_signal(self.process.pidfd, signal.SIGKILL)
        pidfd.reap(self.process.pidfd)
        self.process.close()


class _Process(NamedTuple):
    """A forked mini-init and the parent's ends of its two channels; owns the fds."""

    pid: int
    pidfd: int
    control: int
    status: int

    @classmethod
    def fork(cls, flags: int, child: Callable[[int, int], NoReturn]) -> "_Process":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        status_read, status = os.pipe2(os.O_CLOEXEC)
        try:
            pid, fd = namespaces.fork_into(flags)
            if pid == 0:
                child(theirs.fileno(), status)
        except OSError:
            ours.close()
            os.close(status_read)
            raise
        finally:
            theirs.close()
            os.close(status)
        os.set_blocking(status_read, False)
        return cls(pid, fd, ours.detach(), status_read)

    def close(self) -> None:
        for fd in (self.control, self.status, self.pidfd):
            os.close(fd)


class ForkedWorker:
    """A mini-init with its plan.

    Args:
        plan: what it does.
        stdio: the server's fds; stay the caller's.
        tty: keep the terminal's session.
        spare: one that serves the plan; from now on this object's.
        program: run this in a fork of the caller, instead of exec'ing `plan.argv`.

    Attributes:
        pid: its pid here.
        pidfd: owned by this object.
        status_fd: the reading end of its status pipe, non-blocking; owned by this object.
        hung_up: the status pipe has ended.
        heard: every status line so far.
    """

    def __init__(
        self,
        plan: Plan,
        stdio: tuple[int, int, int],
        *,
        tty: bool = False,
        spare: Spare | None = None,
        program: mini_init.Program | None = None,
    ) -> None:
        """Start; raises OSError, having undone everything (but for the spare)."""
        self.plan = plan._replace(env={})  # secrets: whoever is forked next has no business there
        self.hung_up = False
        self.heard: list[dict[str, Any]] = []
        self._pending = b""
        self._listeners: tuple[int, ...] = ()
        self._awaits_listeners = bool(plan.listeners)
        if plan.scratch_dir:
            scratch.make(plan.scratch_dir, plan.uid)
        id_maps: dict[IdMap, int] = {}
        try:
            id_maps = open_id_maps(plan.operations)
            if spare:
                self._process = spare.process
                fds = [*stdio, *id_maps.values()]
                mini_init.send_plan(self._process.control, plan, spare.plan, fds)
            else:
                self._process = _fork_for(plan, stdio, id_maps, program, tty=tty)
        except BaseException:
            self.remove_scratch()
            raise
        finally:
            for fd in id_maps.values():
                os.close(fd)
        self.pid, self.pidfd = self._process.pid, self._process.pidfd
        self.status_fd = self._process.status
        os.set_blocking(self._process.control, False)

    def events(self) -> list[dict[str, Any]]:
        """The status lines that have arrived; never blocks, bounded."""
        with suppress(BlockingIOError):
            while len(self._pending) < _MOST_STATUS_BYTES:
                block = os.read(self.status_fd, _MOST_STATUS_BYTES)
                if not block:
                    self.hung_up = True
                    break
                self._pending += block
        *lines, self._pending = self._pending.split(b"\n")
        heard = [event for line in lines if (event := _parse(line))]
        self.heard += heard
        return heard

    def take_listeners(self) -> tuple[int, ...]:
        """The sockets that the mini-init opened inside; once, after it said "started".

        Returns:
            Close-on-exec fds, the caller's; as many as the plan has listeners.

        Raises:
            OSError: it did not hand out what the plan says.
        """
        self._receive_listeners()
        fds, self._listeners = self._listeners, ()
        return fds

    def _receive_listeners(self) -> None:
        """They come first; once."""
        if self._awaits_listeners:
            self._listeners = self._receive(HANDED_OUT, len(self.plan.listeners))
            self._awaits_listeners = False

    @property
    def control_fd(self) -> int:
        """Readable when the mini-init hands something out."""
        return self._process.control

    def take_refusals(self) -> int:
        """The listener of the system call filter: a close-on-exec fd, the caller's.

        Raises:
            BlockingIOError: it is not there yet.
            OSError: something else came, or the other end is closed.
        """
        self._receive_listeners()
        (fd,) = self._receive(LISTENER, 1)
        if not seccomp.is_listener(fd):
            os.close(fd)
            raise OSError(5, "the listener of the system call filter did not come")
        return fd

    def _receive(self, name: bytes, count: int) -> tuple[int, ...]:
        """One message of the mini-init's with so many fds."""
        control = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=self._process.control
        )
        try:
            data, fds, flags, _ = socket.recv_fds(
                control, len(name), count, socket.MSG_CMSG_CLOEXEC
            )
        finally:
            control.detach()  # it stays this object's
        if data != name or len(fds) != count or flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise OSError(5, f"expected {count} fds of the mini-init, found {len(fds)}")
        return tuple(fds)

    def signal(self, signo: int) -> bool:
        """Have the mini-init signal the server; False if that is not possible (any more)."""
        with suppress(BlockingIOError, BrokenPipeError):
            return os.write(self._process.control, bytes([signo])) == 1
        return False

    def kill(self) -> None:
        """Kill the mini-init: the kernel or the subreaper above it kills the rest."""
        pidfd.send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """After it was reaped: close the fds; the private directory is the caller's to remove."""
        self._process.close()
        for fd in self._listeners:
            os.close(fd)

    def remove_scratch(self, *, budget_s: float = 30.0) -> bool:
        """Remove the private directory; False if there is more to do than the time allowed."""
        return scratch.remove(self.plan.scratch_dir, budget_s=budget_s)


def _fork_for(
    plan: Plan,
    stdio: tuple[int, int, int],
    id_maps: dict[IdMap, int],
    program: mini_init.Program | None,
    *,
    tty: bool,
) -> _Process:
    site = Site()
    site.id_maps = id_maps
    return _Process.fork(
        plan.clone_flags,
        lambda control, status: mini_init.run(
            plan,
            site,
            stdio=stdio,
            control=control,
            status=status,
            tty=tty,
            program=program,
        ),
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    """A status line; the mini-init is ours, but it shares its uid with the server."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    shape = _SHAPES.get(str(event.get("event"))) if isinstance(event, dict) else None
    if shape is None or not all(type(event.get(key)) in kinds for key, kinds in shape.items()):
        return None
    return event  # type: ignore[no-any-return] # a dict
