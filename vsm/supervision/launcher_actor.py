"""Starts and ends the launcher for its restart group.

Runs in the supervisor. The workers that it spawns are in `vsm.supervision.integration_group`.
"""

import asyncio
import signal
from typing import TYPE_CHECKING, Final

from vsm.core import restart
from vsm.processes.launch import LauncherLink, LaunchError
from vsm.processes.launcher_link import Order

if TYPE_CHECKING:
    from vsm.supervision.integration_group import IntegrationGroup

LAUNCHER: Final = "launcher"


def launcher_spec() -> restart.WorkerSpec:
    """Never given up: without it there is no integration."""
    return restart.WorkerSpec(
        name=LAUNCHER,
        intensity=5,
        backoff_initial_s=0.1,
        backoff_max_s=10.0,
        start_timeout_s=10.0,
        escalates=True,
    )


class LauncherActor:
    """Starts and ends the launcher for its restart group."""

    def __init__(self, group: "IntegrationGroup") -> None:
        self._group = group
        self.link: LauncherLink | None = None
        self.starting: LauncherLink | None = None
        self.incarnation = 0
        self.started_at = 0.0

    @property
    def usable_link(self) -> LauncherLink | None:
        """The link of a launcher that lives: between its death and `on_lost` there is none."""
        return self.link if self.link is not None and self.link.pidfd >= 0 else None

    @property
    def pid(self) -> int | None:
        """The launcher's pid, while there is one."""
        link = self.link or self.starting
        return link.pid if link is not None and link.pidfd >= 0 else None

    def spawn(self, name: str, incarnation: int) -> None:
        """Exec it."""
        del name
        self.incarnation = incarnation
        self.started_at = asyncio.get_running_loop().time()
        self._group.run_task(self._start())

    async def _start(self) -> None:
        hooks = self._group.hooks
        group = self._group
        link = LauncherLink(
            group.on_exit, self._lost, hooks.spared, hooks.remains, group.on_refused_calls
        )
        self.starting = link
        try:
            await link.start()
        except (OSError, LaunchError) as error:
            self.starting = None
            self._exited(f"could not be started: {error}")
            return
        self.starting = None
        if self._group.launcher.phase(LAUNCHER) == "stopping":
            await self._close(link)
            return
        self.link = link
        self._group.launcher.send(restart.Ready(LAUNCHER, self.incarnation))
        self._group.spawn_waiting(link)

    def _lost(self) -> None:
        self.link = None
        self._exited("died")

    def _exited(self, reason: str) -> None:
        self._group.launcher.send(restart.Exited(LAUNCHER, self.incarnation, reason))

    def tell(self, order: Order) -> None:
        """Send it what concerns no worker; its successor is told by `hooks.remains`."""
        link = self.link or self.starting
        if link is not None:
            link.tell(*order)

    def drain(self, name: str) -> None:
        """Nothing to drain."""
        self._group.launcher.send(restart.Drained(name))

    def terminate(self, name: str) -> None:
        """Let it kill what is left and end."""
        del name
        if self.link is not None:
            link, self.link = self.link, None
            self._group.run_task(self._close(link))

    async def _close(self, link: LauncherLink) -> None:
        await link.close()
        self._exited("closed")

    def ask_stack(self, name: str) -> None:
        """It has no stack dump worth a wait."""
        self.kill(name)

    def kill(self, name: str) -> None:
        """Kill it; its workers die with it."""
        del name
        link = self.link or self.starting
        if link is not None and link.pidfd >= 0:
            signal.pidfd_send_signal(link.pidfd, signal.SIGKILL)

    def changed(self, change: restart.Changed) -> None:
        """Pass on."""
        self._group.hooks.changed(change)
