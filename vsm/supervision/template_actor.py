"""Starts and ends the template for its restart group.

Runs in the supervisor. The systems' side of it is in `vsm.supervision.system_group`.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from vsm.core import restart
from vsm.output import OutputReader
from vsm.processes.template_process import TemplateCallbacks, TemplateProcess
from vsm.processes.template_start import TemplateStart, execute
from vsm.systems.preload import ENTRY, PRELOAD

if TYPE_CHECKING:
    from vsm.supervision.system_group import SystemGroup

TEMPLATE: Final = "template"


class TemplateActor:
    """Starts and ends the template for its restart group.

    Args:
        ahead: one that was executed already: the first.
    """

    def __init__(self, group: "SystemGroup") -> None:
        self._group = group
        self.process: TemplateProcess | None = None
        self.ahead: TemplateStart | None = None
        self.incarnation = 0
        self.started_at = 0.0
        self._output: OutputReader | None = None

    @property
    def can_fork(self) -> bool:
        """It runs and has imported everything."""
        return self.process is not None and self.process.ready

    @property
    def pid(self) -> int:
        """Its process, the one executed ahead included; 0 where there is none."""
        if self.process is not None:
            return self.process.pid
        return self.ahead.process.pid if self.ahead is not None else 0

    def fork(self, system: str, epoch: int, plan: str, fds: dict[str, int]) -> None:
        """Ask for a system."""
        if self.process is not None:
            self.process.fork(system, epoch, plan, fds)

    def hung(self, reason: str) -> None:
        """It does not do what it is there for: it is replaced."""
        self._group.template.send(restart.Hung(TEMPLATE, self.incarnation, reason))

    def spawn(self, name: str, incarnation: int) -> None:
        """Exec it."""
        self.incarnation = incarnation
        tell = TemplateCallbacks(
            self._ready, self._group.on_forked, self._group.on_exited, self._lost, self.hung
        )
        try:
            started, self.ahead = self.ahead or execute(ENTRY, PRELOAD), None
            started.taken = True
            self.process = TemplateProcess(started, tell)
        except OSError as error:  # no process or descriptor is left just now
            reason = f"could not be started: {error}"
            self._group.template.send(restart.Exited(TEMPLATE, incarnation, reason))
            return
        self._output = OutputReader(started.output, self._group.hooks.ring(name))
        self.started_at = asyncio.get_running_loop().time()

    def _ready(self) -> None:
        self._group.template.send(restart.Ready(TEMPLATE, self.incarnation))
        self._group.fork_waiting()

    def _lost(self, reason: str) -> None:
        self.process = None
        if self._output is not None:
            self._output.finish()
        self._group.on_template_lost(reason)
        self._group.template.send(restart.Exited(TEMPLATE, self.incarnation, reason))

    def drain(self, name: str) -> None:
        """Nothing to drain."""
        self._group.template.send(restart.Drained(name))

    def terminate(self, name: str) -> None:
        """Close its link."""
        del name
        if self.process is not None:
            self.process.stop()

    def ask_stack(self, name: str) -> None:
        """It has no stack dump worth a wait."""
        self.kill(name)

    def kill(self, name: str) -> None:
        """Kill it."""
        del name
        if self.process is not None:
            self.process.kill()

    def changed(self, change: restart.Changed) -> None:
        """Pass on."""
        self._group.hooks.changed(change)
