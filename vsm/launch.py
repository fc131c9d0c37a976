"""Starting confined workers: in process for one command, or through the launcher process.

Runs in the supervisor or the command line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vsm.execution import Plan


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker whose server has been exec'ed: every layer below is in force.

    Args:
        pid: the mini-init's pid, in our pid namespace.
        pidfd: owned by the caller.
        layers: one `{"name", "state", "detail"}` each: what really happened.
    """

    pid: int
    pidfd: int
    layers: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a worker's server ended.

    Args:
        status: its exit status, or None when a signal ended it.
        signal: that signal, or None.
        cause: "server", "mini-init" (which was killed itself) or "launcher" (which was lost).
        cpu_s: user and system time of the server and its reaped descendants.
        peak_bytes: the largest resident set of one process among them.
    """

    status: int | None
    signal: int | None
    cause: str = "server"
    cpu_s: float = 0.0
    peak_bytes: int = 0


class LaunchError(RuntimeError):
    """The server could not be exec'ed; see also ConfinementError."""


def spawn_confined(
    plan: Plan, stdin: int, stdout: int, stderr: int, *, tty: bool = False
) -> Spawned:
    """Fork, confine and exec in this process; single-threaded callers only.

    The mini-init exits with the server's status, or 128 + n after signal n; signals sent to
    it are forwarded. It dies when the calling process does.

    Args:
        plan: from `compile_plan`.
        stdin: fd, kept by the caller.
        stdout: fd, kept by the caller.
        stderr: fd, kept by the caller.
        tty: stay in the caller's session and process group, so that the terminal works.
    """
    raise NotImplementedError


class LauncherLink:
    """The supervisor's end of the launcher: asyncio, one task reads.

    Args:
        on_exit: called with worker id and report, once per spawned worker.
        on_lost: called once when the launcher died.
    """

    pid: int
    pidfd: int

    def __init__(
        self,
        on_exit: Callable[[str, ExitReport], None],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Start the launcher process and wait for its READY."""

    async def spawn(
        self, worker_id: str, plan: Plan, stdin: int, stdout: int, stderr: int
    ) -> Spawned:
        """Start a worker; raises ConfinementError or LaunchError. The fds stay the caller's."""
        raise NotImplementedError

    async def signal(self, worker_id: str, signo: int) -> None:
        """Send a signal to the server (not to its whole tree)."""

    async def kill(self, worker_id: str) -> None:
        """Kill the worker's whole process tree at once."""

    async def close(self) -> None:
        """Kill every worker, end the launcher and wait for it."""

    def describe(self) -> dict[str, Any]:
        """For status."""
        raise NotImplementedError
