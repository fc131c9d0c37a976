"""One incarnation of a system, as the supervisor holds it.

Runs in the supervisor. Owns the descriptors of that incarnation and closes them when it is gone.
"""

import asyncio
import os
import signal
from dataclasses import dataclass, field

from vsm.board.heartbeat import BoardReader
from vsm.link import Link
from vsm.messages import Body, FromSystem, LayerReport
from vsm.output import OutputReader


@dataclass
class RunningSystem:
    """One incarnation of a system; owns its descriptors."""

    name: str
    incarnation: int
    epoch: int
    link: Link[FromSystem] | None = None
    output: OutputReader | None = None
    pid: int | None = None
    pidfd: int | None = None
    board: BoardReader | None = None
    layers: tuple[LayerReport, ...] = ()
    started_at: float = 0.0
    doomed: bool = False
    late: tuple[int, int] | None = None  # the last beat, once late, and `waited_ns` at that time
    queries: dict[int, asyncio.Future[Body]] = field(default_factory=dict)

    def close(self) -> None:
        """Give everything back; the process is gone."""
        for closable in (self.link, self.board):
            if closable is not None:
                closable.close()
        if self.output is not None:
            self.output.finish()
        if self.pidfd is not None:
            asyncio.get_running_loop().remove_reader(self.pidfd)
            os.close(self.pidfd)
        for future in self.queries.values():
            if not future.done():
                future.set_exception(TimeoutError)  # no answer will come


def waited_ns(pid: int | None) -> int:
    """How long a process's first thread was ready and waited for a processor, since its start.

    0 where the kernel does not say (its Documentation/scheduler/sched-stats.rst).
    """
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def send_signal(running: RunningSystem, signo: signal.Signals) -> None:
    """Send a signal; a process that is gone or not yet known gets none."""
    if running.pidfd is not None:
        try:
            signal.pidfd_send_signal(running.pidfd, signo)
        except ProcessLookupError:
            return


def kill(running: RunningSystem) -> None:
    """Kill it now, or as soon as it is known to exist."""
    running.doomed = True
    send_signal(running, signal.SIGKILL)
