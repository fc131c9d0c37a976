"""Keeps the egress process: started with the first worker that needs it, replaced when it dies.

Runs in the supervisor. Owns duplicates of the workers' listeners, so that a successor gets them
with the connections that wait in them; connections that were open die with the process.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vsm.confinement.execution import Plan
from vsm.core import restart
from vsm.core.egress import Rules
from vsm.egress.link import EgressLink
from vsm.errors import VsmError
from vsm.link import close_fds
from vsm.supervision import provision
from vsm.supervision.group import GroupRunner

EGRESS: Final = "egress"
# worker id, host, why: a connection that was not made, told once for each host of a worker.
Refused = Callable[[str, str, str], None]


@dataclass
class Served:
    """One worker's way out; owns its listeners."""

    rules: Rules
    listeners: tuple[int, ...]


class EgressActor:
    """Starts and ends the egress process for its restart group.

    Args:
        host: what the host gives.
        changed: its phase or reason changed.
        refused: a worker asked for what it may not have.
    """

    def __init__(
        self,
        host: Callable[[], provision.Host],
        changed: Callable[[restart.Changed], None],
        refused: Refused,
    ) -> None:
        self.changed = changed
        self.runner = GroupRunner([_spec()], self)
        self.link: EgressLink | None = None
        self.started_at = 0.0
        self._host = host
        self._refused = refused
        self._told: set[tuple[str, str]] = set()
        self._plan: Plan | None = None
        self._incarnation = 0
        self._workers: dict[str, Served] = {}

    # ---- workers ---------------------------------------------------------------------------

    def serve(self, worker: str, rules: Rules, listeners: tuple[int, ...]) -> None:
        """Serve a worker; the listeners are this object's from now on."""
        if not listeners:
            return
        self._workers[worker] = Served(rules, listeners)
        if self.runner.phase(EGRESS) in {"stopped", "quarantined"}:
            self.runner.send(restart.Start(EGRESS))
        elif self.link is not None and self.link.layers:
            self.link.serve(worker, rules, listeners)

    def forget(self, worker: str) -> None:
        """The worker is gone: close what is open for it."""
        served = self._workers.pop(worker, None)
        if served is None:
            return
        close_fds(list(served.listeners))
        self._told = {told for told in self._told if told[0] != worker}
        if self.link is not None:
            self.link.forget(worker)

    def counts(self, worker: str) -> dict[str, dict[str, Any]]:
        """What a worker asked for, by host."""
        return self.link.counts.get(worker, {}) if self.link is not None else {}

    def pids(self) -> frozenset[int]:
        """The process's, while there is one: no orphan that may be swept."""
        return frozenset() if self.link is None else frozenset({self.link.pid})

    async def stop(self) -> None:
        """End it; its workers are gone."""
        for worker in list(self._workers):
            self.forget(worker)
        self.runner.send(restart.Stop(EGRESS, drain=False, reason="shutting down"))
        await self.runner.wait_all_dead()
        self.runner.close()

    # ---- what the restart decisions do -----------------------------------------------------

    def spawn(self, name: str, incarnation: int) -> None:
        """Exec it; it confines itself and says that it is ready."""
        del name
        loop = asyncio.get_running_loop()
        self._incarnation, self.started_at = incarnation, loop.time()
        try:
            if self._plan is None:
                self._plan = provision.egress_plan(self._host())
            self.link = EgressLink(self._plan)
        except (VsmError, OSError) as error:
            self._exited(f"could not be started: {error}")
            return
        loop.add_reader(self.link.fileno(), self._readable)
        loop.add_reader(self.link.pidfd, self._ended)

    def _readable(self) -> None:
        link = self.link
        if link is None:
            return
        was_ready = bool(link.layers)
        if not link.hear():
            asyncio.get_running_loop().remove_reader(link.fileno())
            return
        if link.layers and not was_ready:
            self.runner.send(restart.Ready(EGRESS, self._incarnation))
            for worker, served in self._workers.items():
                link.serve(worker, served.rules, served.listeners)
        self._tell_refused(link)

    def _tell_refused(self, link: EgressLink) -> None:
        for worker, table in link.counts.items():
            for host, row in table.items():
                if row["refused"] and (worker, host) not in self._told and worker in self._workers:
                    self._told.add((worker, host))
                    self._refused(worker, host, row["reason"])

    def _ended(self) -> None:
        link, self.link = self.link, None
        if link is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(link.pidfd)
        loop.remove_reader(link.fileno())
        link.close(linger=False)  # it is dead: nothing is waited for
        self._exited(link.failure or "died")

    def _exited(self, reason: str) -> None:
        self.runner.send(restart.Exited(EGRESS, self._incarnation, reason))

    def drain(self, name: str) -> None:
        """Nothing to drain."""
        self.runner.send(restart.Drained(name))

    def terminate(self, name: str) -> None:
        """End the link, at which it ends."""
        del name
        if self.link is not None:
            self.link.hang_up()

    def ask_stack(self, name: str) -> None:
        """It has no stack dump worth a wait."""
        self.kill(name)

    def kill(self, name: str) -> None:
        """Kill it."""
        del name
        if self.link is not None:
            self.link.kill()


def _spec() -> restart.WorkerSpec:
    return restart.WorkerSpec(
        name=EGRESS,
        intensity=5,
        backoff_initial_s=0.1,
        backoff_max_s=10.0,
        start_timeout_s=20.0,
        escalates=True,
    )
