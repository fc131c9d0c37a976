"""Processes by file descriptor: no pid is ever signalled after it may have been reused."""

import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Final

HELD_AT_ONCE: Final = 16


def open_pidfd(pid: int) -> int:
    """A close-on-exec fd that becomes readable when the process ends."""
    return os.pidfd_open(pid)


def send_signal(pidfd: int, signo: int) -> bool:
    """Signal the process; False when it is gone."""
    try:
        signal.pidfd_send_signal(pidfd, signo)
    except ProcessLookupError:
        return False
    return True


def wait(pidfd: int, timeout_s: float | None = None) -> bool:
    """Wait until the process has ended (reaped or not); False on a time-out."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else int(timeout_s * 1000)))


def reap(pidfd: int, *, block: bool = True) -> os.waitid_result | None:
    """Collect a child of ours; None when it runs still, or is not (or no longer) our child."""
    options = os.WEXITED | (0 if block else os.WNOHANG)
    with suppress(ChildProcessError):
        return os.waitid(os.P_PIDFD, pidfd, options)
    return None


def kill_members(pids: Iterable[int], members: Callable[[], Collection[int]]) -> None:
    """Kill those that are members still, whatever became of their numbers since `pids` was read.

    Args:
        pids: who was seen.
        members: asks the kernel again; who is named then, once a handle is held, is who is killed.
            Asked for every few, so that however many there are, it finds a free descriptor.
    """
    seen = list(pids)
    for first in range(0, len(seen), HELD_AT_ONCE):
        _kill_few(seen[first : first + HELD_AT_ONCE], members)


def _kill_few(pids: Iterable[int], members: Callable[[], Collection[int]]) -> None:
    held: dict[int, int] = {}
    try:
        for pid in pids:
            with suppress(OSError):
                held[pid] = os.pidfd_open(pid)
        still = members()
        for pid, fd in held.items():
            if pid in still:
                send_signal(fd, signal.SIGKILL)
    finally:
        for fd in held.values():
            os.close(fd)


def children_file() -> int:
    """An fd that lists the calling thread's children, adopted orphans included, when read."""
    path = f"/proc/self/task/{os.getpid()}/children"
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def read_children(fd: int) -> list[int]:
    """The pids that `children_file` lists now."""
    content = b""
    while block := os.pread(fd, 65536, len(content)):
        content += block
    return [int(word) for word in content.split()]


def kill_children(listing: int, doomed: Callable[[int], bool], timeout_s: float = 1.0) -> bool:
    """Kill and reap those children, and whoever their deaths hand over.

    A tree that forks as fast as it can outruns whatever kills one process and then waits for it.
    So each round kills everyone who is there, the youngest first, with the whole process group,
    which no fork escapes, and only then waits for anyone.

    Args:
        listing: from `children_file`.
        doomed: whether a child is one of them.
        timeout_s: for those that die slowly.

    Returns:
        False if some have been killed and are dying still.
    """
    deadline = time.monotonic() + timeout_s
    while orphans := [pid for pid in read_children(listing) if doomed(pid)]:
        for pid in reversed(orphans):
            _kill_with_group(pid)
        if not _reap_any(orphans, deadline):
            return False
    return True


def _kill_with_group(pid: int) -> None:
    """Kill a child of ours (its pid is not used again before we reap it) and its process group.

    A dead child that nobody has reaped has a group still, and its descendants are in it. Not a
    group of our own session: there, whoever uses the terminal has other work.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        if os.getsid(pid) != os.getsid(0):
            os.killpg(os.getpgid(pid), signal.SIGKILL)


def _reap_any(pids: list[int], deadline: float) -> bool:
    """Collect those of `pids` that are dead; wait for the first if none is."""
    dead = sum(_reap_now(pid) for pid in pids)
    if dead:
        return True
    with suppress(ProcessLookupError):
        fd = open_pidfd(pids[0])
        try:
            return wait(fd, max(0.0, deadline - time.monotonic()))
        finally:
            os.close(fd)
    return True


def _reap_now(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
