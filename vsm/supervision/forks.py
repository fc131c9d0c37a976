"""Instances that are forks of a zygote: how the group makes and ends them.

Runs in the supervisor. The zygote is the integration's own worker, started by the launcher; a
fork of it is a worker like other instances, but started through the zygote's channel, signalled
by its pidfd, and gone when that says so: the launcher does not know it. What confines it is what
confines the zygote.
"""

import asyncio
import signal
from typing import TYPE_CHECKING

from vsm.core.instance_demand import Terms
from vsm.link import close_fds
from vsm.linux import pidfd
from vsm.processes.launch import LaunchError, Spawned
from vsm.processes.zygote import Zygote
from vsm.supervision.instance_set import InstanceSet, number_of
from vsm.supervision.running_worker import RunningWorker, open_pipes, spec_of

if TYPE_CHECKING:
    from vsm.supervision.integration_group import IntegrationGroup


class Forks:
    """What the group does with zygotes."""

    def __init__(self, group: "IntegrationGroup") -> None:
        self._group = group

    def make_set(self, name: str, incarnation: int, terms: Terms, number: int) -> None:
        """The instances of an integration, which has no process of its own but, at most, a zygote.

        Args:
            name: the integration's.
            incarnation: of its own worker.
            terms: what its entry says.
            number: of the last instance that there ever was.
        """
        integration = self._group.integrations[name]
        self._group.sets[name] = InstanceSet(
            self._group.workers,
            spec_of(integration),
            terms,
            incarnation=incarnation,
            number=number,
            end_zygote=(lambda: self._end_zygote(name)) if integration.zygote else None,
        )
        if not integration.zygote:
            self._group.sets[name].open()

    def take(self, running: RunningWorker) -> bool:
        """Fork what is an instance, or get ready for what is a zygote, which others start."""
        if not number_of(running.key):
            running.zygote = self._make_zygote(running)
            return False
        running.base = self._group.running[running.name]
        self._group.run_task(self._fork(running, running.base))
        return True

    def _make_zygote(self, running: RunningWorker) -> Zygote:
        def unfit(reason: str, hopeless: bool) -> None:  # noqa: FBT001
            if self._group.running.get(running.key) is running:
                self._group.sets[running.name].give_up(f"its zygote: {reason}", hopeless=hopeless)

        return Zygote(self._group.sets[running.name].open, unfit)

    def _end_zygote(self, name: str) -> None:
        """Its forks have ended; its own end follows, or its worker is stopped by the deadline."""
        running = self._group.running[name]
        if running.zygote is not None:
            running.zygote.end()
        if running.spawned is not None:
            self._group.signal(running, signal.SIGTERM)
        elif running.provided is None:
            self._group.gone(running, "stopped before it was started")

    async def _fork(self, running: RunningWorker, base: RunningWorker) -> None:
        """One more process of a zygote, in place of one that the launcher would start."""
        if base.zygote is None or base.provided is None or base.spawned is None:
            self._group.gone(running, "its zygote does not run", collateral=True)
            return
        theirs: list[int] = []
        try:
            ring = self._group.hooks.ring(running.name)
            stdio = open_pipes(running, ring, base.provided.secrets, theirs)
            fork = await base.zygote.fork(number_of(running.key), stdio)
        except (LaunchError, OSError) as error:
            lost = self._group.running.get(base.key) is not base
            self._group.gone(running, str(error), collateral=lost)
            return
        finally:
            close_fds(theirs)
        running.tier = base.tier
        running.spawned = Spawned(fork.pid, fork.pidfd, base.spawned.layers, ())
        asyncio.get_running_loop().add_reader(fork.pidfd, self._fork_ended, running, fork.pidfd)
        if running.doomed:
            pidfd.send_signal(fork.pidfd, signal.SIGKILL)
        elif self._group.workers.phase(running.key) == "starting":
            self._group.attach(running)
        else:
            self._group.terminate(running.key)

    def _fork_ended(self, running: RunningWorker, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        self._group.gone(running, "its process ended")
