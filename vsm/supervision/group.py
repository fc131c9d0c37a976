"""Runs a restart group: performs what `vsm.core.replacement` decides and keeps its deadlines.

Runs in the supervisor, on its event loop. Owns the clock, the jitter and the order of events;
who really starts and kills is the actor.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from vsm.core import replacement, restart


class Actor(Protocol):
    """Does things to real processes; never blocks. May report events from inside a call."""

    def spawn(self, name: str, incarnation: int) -> None:
        """Start the process; its end, or that it never began, is reported as Exited."""

    def drain(self, name: str) -> None:
        """Take nothing new, report Drained."""

    def terminate(self, name: str) -> None:
        """Ask it to end."""

    def ask_stack(self, name: str) -> None:
        """Make it print its stack and die of it."""

    def kill(self, name: str) -> None:
        """Kill it and everything below it."""

    def changed(self, change: restart.Changed) -> None:
        """A worker's phase or reason changed."""


# Told of every step: the group before it, the event, the group after it.
Observer: TypeAlias = Callable[[restart.Group, restart.Event, restart.Group], None]


def _ignore(_before: restart.Group, _event: restart.Event, _after: restart.Group) -> None:
    """Nobody keeps a record."""


def _no_successors(_change: replacement.Switched) -> None:
    """Nothing is replaced in this group."""


class GroupRunner:
    """One restart group on the event loop."""

    def __init__(
        self,
        specs: Iterable[restart.WorkerSpec],
        actor: Actor,
        strategy: restart.Strategy = "one_for_one",
    ) -> None:
        self.group = restart.new_group(specs, strategy)
        self._actor = actor
        self.observe: Observer = _ignore
        self.switched: Callable[[replacement.Switched], None] = _no_successors
        self._events: deque[restart.Event] = deque()
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[str, frozenset[str], asyncio.Future[None]]] = []

    def worker(self, name: str) -> restart.Worker:
        """A worker's state."""
        return self.group.workers[name]

    def phase(self, name: str) -> restart.Phase:
        """A worker's phase."""
        return self.group.workers[name].phase

    def put(self, spec: restart.WorkerSpec) -> None:
        """Add a worker, stopped, or change the terms of one."""
        self.group = restart.with_worker(self.group, spec)

    def remove(self, name: str) -> None:
        """Forget a worker that has no process."""
        self.group = restart.without_worker(self.group, name)
        self._wake()
        self._schedule()

    def send(self, event: restart.Event) -> None:
        """Apply an event and perform what follows; events from inside are applied after it."""
        self._events.append(event)
        if self._running:
            return
        self._running = True
        try:
            while self._events:
                self._step(self._events.popleft())
        finally:
            self._running = False
            self._schedule()  # whatever happened: nothing else would try again

    def _step(self, event: restart.Event) -> None:
        now = asyncio.get_running_loop().time()
        jitter = random.random()  # noqa: S311 - spreads restarts, guards nothing
        before = self.group
        self.group, actions = replacement.step(before, event, now, jitter)
        self.observe(before, event, self.group)
        for action in actions:
            self._perform(action)
        self._wake()

    def _perform(self, action: restart.Action) -> None:
        match action:
            case restart.Spawn():
                self._actor.spawn(action.name, action.incarnation)
            case restart.Drain():
                self._actor.drain(action.name)
            case restart.Terminate():
                self._actor.terminate(action.name)
            case restart.AskStack():
                self._actor.ask_stack(action.name)
            case restart.Kill():
                self._actor.kill(action.name)
            case restart.Changed():
                self._actor.changed(action)
            case replacement.Switched():
                self.switched(action)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = restart.next_deadline(self.group)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(deadline, self._tick) if deadline is not None else None

    def _tick(self) -> None:
        self.send(restart.Tick())

    def _wake(self) -> None:
        still = []
        for name, phases, future in self._waiters:
            if future.done():
                continue
            if name not in self.group.workers or self.phase(name) in phases:
                future.set_result(None)
            else:
                still.append((name, phases, future))
        self._waiters = still

    async def wait_phase(self, name: str, *phases: restart.Phase) -> None:
        """Wait until the worker is in one of `phases`, or gone from the group."""
        if name not in self.group.workers or self.phase(name) in phases:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((name, frozenset(phases), future))
        await future

    async def wait_all_dead(self) -> None:
        """Wait until no worker of the group has a process."""
        dead: tuple[restart.Phase, ...] = ("stopped", "backing_off", "quarantined")
        for name in tuple(self.group.workers):
            if name in self.group.workers:
                await self.wait_phase(name, *dead)

    def close(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
