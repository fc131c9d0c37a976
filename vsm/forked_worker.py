"""The parent's side of one mini-init: fork it, hear from it, signal it, clean up after it.

Used by the launcher, and in process by `vsm.launch.spawn_confined`; single-threaded callers
only. Standard library only.
"""

import json
import os
import signal
import stat
from contextlib import suppress
from typing import Any

from vsm import mini_init
from vsm.execution import Plan
from vsm.linux import namespaces, pidfd
from vsm.operations import Site
from vsm.root_operations import open_id_maps

_MOST_STATUS_BYTES = 65536


class ForkedWorker:
    """A mini-init that was forked.

    Attributes:
        pid: its pid here.
        pidfd: owned by this object.
        status_fd: the reading end of its status pipe, non-blocking; owned by this object.
        hung_up: the status pipe has ended.
    """

    def __init__(self, plan: Plan, stdio: tuple[int, int, int], *, tty: bool = False) -> None:
        """Fork; raises OSError, having undone everything."""
        self.plan = plan
        self.hung_up = False
        self._heard: list[dict[str, Any]] = []
        self._pending = b""
        liveness, self._liveness = os.pipe2(os.O_CLOEXEC)
        self.status_fd, status = os.pipe2(os.O_CLOEXEC)
        site = Site()
        try:
            if plan.scratch_dir:
                make_scratch(plan.scratch_dir, plan.uid)
            site.id_maps = open_id_maps(plan.operations)
            self.pid, self.pidfd = namespaces.fork_into(plan.clone_flags)
            if self.pid == 0:
                mini_init.run(plan, site, stdio=stdio, liveness=liveness, status=status, tty=tty)
        except BaseException:
            os.close(self._liveness)
            os.close(self.status_fd)
            self.remove_scratch()
            raise
        finally:
            for fd in (liveness, status, *site.id_maps.values()):
                os.close(fd)
        os.set_blocking(self._liveness, False)
        os.set_blocking(self.status_fd, False)

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
        self._heard += heard
        return heard

    @property
    def heard(self) -> list[dict[str, Any]]:
        """Every status line so far."""
        return self._heard

    def signal(self, signo: int) -> bool:
        """Have the mini-init signal the server; False if that is not possible (any more)."""
        with suppress(BlockingIOError, BrokenPipeError):
            return os.write(self._liveness, bytes([signo])) == 1
        return False

    def kill(self) -> None:
        """Kill the mini-init: the kernel or the subreaper above it kills the rest."""
        pidfd.send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """After it was reaped: close the fds, remove the private directory."""
        for fd in (self._liveness, self.status_fd, self.pidfd):
            os.close(fd)
        self.remove_scratch()

    def remove_scratch(self) -> None:
        """Remove the private directory, whatever the worker made of it."""
        remove_tree(self.plan.scratch_dir)


def make_scratch(path: str, uid: int) -> None:
    """Make a private directory for `uid`; an existing name, whatever it is, is an error."""
    os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if uid != os.geteuid():
            os.fchown(fd, uid, uid)
        os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def remove_tree(path: str) -> None:
    """Remove a directory that a foreign program filled: by fd, following no link; "" is none."""
    if not path:
        return
    parent, _, name = path.rpartition("/")
    with suppress(OSError):
        fd = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _remove_entry(fd, name)
        finally:
            os.close(fd)


def _remove_entry(parent: int, name: str) -> None:
    """Depth first with one open fd per level; too deep a tree is left, not a crash."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    with suppress(OSError):
        os.chmod(name, 0o700, dir_fd=parent)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for entry in os.listdir(fd):
            with suppress(OSError, RecursionError):
                _remove_entry(fd, entry)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _parse(line: bytes) -> dict[str, Any] | None:
    """A status line; the mini-init is ours, but it shares its uid with the server."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
