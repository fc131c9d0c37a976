"""The supervisor's side of the template: its link, its death.

Runs in the supervisor. One object is one incarnation of the template.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vsm.link import Link, close_fds
from vsm.linux import signals
from vsm.messages import (
    Exited,
    Fork,
    Forked,
    FromTemplate,
    Ping,
    Pong,
    TemplateReady,
    parse_from_template,
)
from vsm.processes.pulse import Pulse
from vsm.processes.template_start import TemplateStart

MOST_SILENT_S: Final = 3


@dataclass(frozen=True)
class TemplateCallbacks:
    """Who is told what; `forked` gets the pid and, to own, the pidfd; `hung` the reason."""

    ready: Callable[[], None]
    forked: Callable[[Forked, int], None]
    exited: Callable[[Exited], None]
    lost: Callable[[str], None]
    hung: Callable[[str], None]


class TemplateProcess:
    """A running template.

    Args:
        started: its process and link; its output stays the caller's.
        tell: the callbacks.

    Raises:
        OSError: nothing can watch over it; it was ended, and its output is closed.
    """

    def __init__(self, started: TemplateStart, tell: TemplateCallbacks) -> None:
        self.ready = False
        self.lost = False
        self._tell = tell
        self._process = started.process
        self.pid = self._process.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            started.end()
            raise
        asyncio.get_running_loop().add_reader(self._pidfd, self._died)
        self._link: Link[FromTemplate] = Link(started.link, parse_from_template)
        self._link.start(self._on_message, lambda: None)
        self._pulse = Pulse(self._ask, self._silent, most=MOST_SILENT_S)

    def fork(self, system: str, epoch: int, plan: str, fds: dict[str, int]) -> None:
        """Ask for a system; the descriptors stay the caller's."""
        request = Fork(system=system, epoch=epoch, plan=plan, fds=tuple(fds))
        self._link.send(request, list(fds.values()))

    def stop(self) -> None:
        """End it by closing the link."""
        self._pulse.stop()
        self._link.close()

    def kill(self) -> None:
        """Kill it; the systems die with it."""
        if not self.lost:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_message(self, message: FromTemplate, fds: list[int]) -> None:
        match message:
            case TemplateReady():
                self.ready = True
                self._pulse.start()
                self._tell.ready()
            case Pong():
                self._pulse.answered()
            case Forked() if len(fds) == 1:
                self._tell.forked(message, fds[0])
            case Exited():
                self._tell.exited(message)
            case _:
                close_fds(fds)

    def _ask(self) -> None:
        self._link.send(Ping())

    def _silent(self) -> None:
        self._tell.hung(f"hung: no answer for {MOST_SILENT_S} s")

    def _died(self) -> None:
        self._pulse.stop()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()  # has ended: does not block
        self.ready, self.lost = False, True
        self._link.close()
        self._tell.lost(describe_status(status))


def describe_status(status: int) -> str:
    """An exit status, or minus a signal's number, in words."""
    if status >= 0:
        return f"exited with status {status}"
    return f"killed by {signals.name(-status)}"
