"""The program's side of the runner: one per process, started at the first run, ended at exit.

Any thread may use it. A fork of the program starts a runner of its own. Runs in the program.
"""

import array
import atexit
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import vsm
from vsm.errors import VsmError
from vsm.linux import pidfd

_LINK_FD = 3
_END_TIMEOUT_S = 10.0
_MOST_ORDER_BYTES = 128 << 10  # what `vsm.processes.launcher.receive` takes
_START = (
    "import json, sys; sys.path += json.loads(sys.argv[1]); "
    "from vsm.library import runner; runner.main({}, {})"
)
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "OPENBLAS_NUM_THREADS": "1",  # no thread may exist where somebody forks
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class _Runner:
    """One runner process; owns the link and the pidfd."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = _start_process(theirs.fileno())
        self.pidfd = pidfd.open_pidfd(self.pid)

    def is_alive(self) -> bool:
        return not pidfd.wait(self.pidfd, 0)

    def close(self) -> None:
        """Kill what runs, and wait until nothing is left."""
        self.link.close()
        if not pidfd.wait(self.pidfd, _END_TIMEOUT_S):
            pidfd.send_signal(self.pidfd, signal.SIGKILL)
        pidfd.reap(self.pidfd)
        os.close(self.pidfd)

    def forget(self) -> None:
        """In a fork of the program: it is not ours to end."""
        self.link.close()
        os.close(self.pidfd)


_lock = threading.Lock()
_runner: _Runner | None = None


def order(message: bytes, fds: Sequence[int]) -> int:
    """Give the runner one run; starts it if there is none.

    Returns:
        The runner's pid.

    Raises:
        VsmError: the runner cannot be reached, or the message is too long.
    """
    if len(message) > _MOST_ORDER_BYTES:
        what = f"its paths and its profile exceed {_MOST_ORDER_BYTES >> 10} KiB"
        raise VsmError("vsm.run", what, "Give fewer paths, such as the folder that they are in.")
    with _lock:
        runner = _ensure()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            runner.link.sendmsg([message], rights, socket.MSG_NOSIGNAL)
        except OSError as error:
            what = f"the runner takes no order: {error.strerror}"
            raise VsmError("vsm.run", what, "Give fewer paths, or try again.") from error
        return runner.pid


def lost(pid: int) -> None:
    """This runner closed its side: wait until it is dead, so that nobody gives it another run."""
    with _lock:
        if _runner is not None and _runner.pid == pid:
            pidfd.wait(_runner.pidfd, _END_TIMEOUT_S)


def runner_pid() -> int:
    """The runner's pid, 0 where none runs."""
    with _lock:
        return _runner.pid if _runner is not None and _runner.is_alive() else 0


def close() -> None:
    """End the runner and everything that it runs; the next run starts another."""
    global _runner
    with _lock:
        runner, _runner = _runner, None
        if runner is not None:
            runner.close()


def _ensure() -> _Runner:
    global _runner  # noqa: PLW0603 - one per process
    if _runner is not None and not _runner.is_alive():
        _runner.close()
        _runner = None
    if _runner is None:
        _runner = _Runner()
    return _runner


def _after_fork() -> None:
    global _lock, _runner  # noqa: PLW0603 - one per process
    _lock = threading.Lock()  # whoever held it is not in this process
    if _runner is not None:
        _runner.forget()
        _runner = None


def _start_process(link_fd: int) -> int:
    """As `python -SI`: nothing of the program but where its libraries are."""
    if not sys.executable:
        raise VsmError("vsm.run", "sys.executable is empty", "Run under a Python interpreter.")
    root = str(Path(vsm.__file__).resolve().parent.parent)
    path = [entry for entry in (root, *sys.path) if entry.startswith("/")]
    code = _START.format(_LINK_FD, os.getpid())
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-SI", "-c", code, json.dumps(path)],
        _ENVIRONMENT,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, link_fd, _LINK_FD),  # first: it may have one of the others
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, _stderr(), 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=[signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD],
    )


def _stderr() -> int:
    """Its number in the runner so far: a program's may be closed, and be another file's by now."""
    try:
        return 2 if os.get_inheritable(2) else 0
    except OSError:
        return 0


os.register_at_fork(after_in_child=_after_fork)
atexit.register(close)
