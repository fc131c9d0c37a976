"""Processes by file descriptor: no pid is ever signalled after it may have been reused."""

import os
import select
import signal
from contextlib import suppress


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
