"""Lasting workers as a restart group: what `vsm.core.restart` decides, done by the runner.

Runs in the program, on its event loop. `Supervisor`, `Pool` and `Gateway` are made of this.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Final, Literal

from vsm.core import restart
from vsm.errors import ConfigurationError, ConfinementError, VsmError
from vsm.library.order import VALUE_BYTES, Case, prepare
from vsm.library.process import Process
from vsm.library.result import Cause, judge
from vsm.library.spec import EventKind, WorkerEvent, WorkerSpec
from vsm.library.values import Answer
from vsm.library.work import Visible
from vsm.supervision.group import GroupRunner

KEPT_EVENTS: Final = 1000
_LAST_WORDS_BYTES: Final = 4096
_MOST_HINT: Final = 200
_SETTLED: Final[tuple[restart.Phase, ...]] = ("ready", "stopped", "quarantined")
_HOPELESS: Final = (ConfigurationError, ConfinementError)


class Events:
    """What happened, for any number of readers; the last thousand are kept."""

    def __init__(self) -> None:
        self._kept: deque[WorkerEvent] = deque(maxlen=KEPT_EVENTS)
        self._count = 0
        self._closed = False
        self._news = asyncio.Event()

    def add(self, event: WorkerEvent) -> None:
        """One more."""
        self._kept.append(event)
        self._count += 1
        self._wake()

    def close(self) -> None:
        """There will be no more; the readers end."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def read(self) -> AsyncIterator[WorkerEvent]:
        """From the first that is kept, to the end of the supervisor."""
        at = self._count - len(self._kept)
        while True:
            at = max(at, self._count - len(self._kept))  # a slow reader misses the oldest
            while at < self._count:
                event = self._kept[at - self._count]
                at += 1
                yield event
            if self._closed:
                return
            await self._news.wait()


class Hooks:
    """What its owner adds to a group of workers; without, a worker is ready when it has begun."""

    serves = False
    value_bytes = VALUE_BYTES

    def began(self, workers: "Workers", process: Process) -> None:
        """Every layer is in force."""
        workers.ready(process)

    def said(self, workers: "Workers", process: Process, answer: Answer | None, unfit: str) -> None:
        """It sent something."""

    def ended(self, workers: "Workers", process: Process, reason: str) -> bool:  # noqa: ARG002
        """It is gone. True where that was not its own fault: it is started again at once."""
        return False

    def changed(self, change: restart.Changed) -> None:
        """Its phase or the reason for it changed."""


class Workers:
    """The group: performs what the restart decisions say (`vsm.supervision.group.Actor`).

    Args:
        specs: the workers, in their order of start.
        strategy: whom else the end of one concerns.
        hooks: the owner's.
    """

    def __init__(
        self, specs: Sequence[WorkerSpec], strategy: restart.Strategy, hooks: Hooks
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        if len(self.specs) != len(specs) or not specs:
            remedy = "Give each worker a name of its own."
            raise ConfigurationError("vsm.Supervisor", "no workers, or two of one name", remedy)
        if strategy not in {"one_for_one", "one_for_all", "rest_for_one"}:
            raise ConfigurationError("vsm.Supervisor", f"no such strategy: {strategy!r}")
        self.events = Events()
        self.processes: dict[str, Process] = {}
        self.is_running = self._entered = False
        self._hooks = hooks
        self._strategy = strategy
        self._cases: dict[str, Case] = {}
        self._failures: dict[str, VsmError] = {}
        self._last_words: dict[str, bytes] = {}
        self._causes: dict[tuple[str, int], Cause | Literal[""]] = {}
        self._group = GroupRunner([spec.terms() for spec in specs], self, strategy)
        self._group.observe = self._observe

    # -- the whole ---------------------------------------------------------------------------------

    def check_unused(self) -> None:
        """Raises VsmError if they were started before."""
        if self._entered:
            raise VsmError("vsm.Supervisor", "it was entered before", "Make another one.")

    async def start(self) -> None:
        """Start all, and wait until each serves or has ended.

        Raises:
            VsmError: one was given up; nothing runs then.
        """
        self.check_unused()
        hooks, self._entered = self._hooks, True
        for name, spec in self.specs.items():
            self._cases[name] = prepare(
                spec.request(serves=hooks.serves, value_bytes=hooks.value_bytes)
            )
        self.is_running = True
        try:
            for name in self.specs:
                self._group.send(restart.Start(name))
                if self._strategy != "one_for_one":
                    await self.wait_settled(name)
            for name in self.specs:
                await self.wait_settled(name)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all, the last one first, and wait until nothing of them is left."""
        self.is_running = False
        try:
            for name in reversed(self.specs):
                self._group.send(restart.Stop(name, drain=False, reason="the supervisor ends"))
                if self._strategy != "one_for_one":
                    await self._group.wait_phase(name, "stopped", "backing_off", "quarantined")
            await self._group.wait_all_dead()
        finally:
            self._group.close()
            for process in self.processes.values():
                process.abandon()
            self.processes.clear()
            self.events.close()

    @property
    def visible(self) -> Visible:
        """What of the host's files the first worker sees."""
        return next(iter(self._cases.values())).work.visible

    # -- one worker --------------------------------------------------------------------------------

    def worker(self, name: str) -> restart.Worker:
        """Its state."""
        return self._group.worker(name)

    def command(self, event: restart.Start | restart.Stop) -> None:
        """Start, stop or restart one.

        Raises:
            VsmError: the whole does not run.
        """
        if not self.is_running:
            raise VsmError(event.name, "its supervisor does not run", "Use it inside `async with`.")
        self._group.send(event)

    def ready(self, process: Process) -> None:
        """It serves."""
        self._group.send(restart.Ready(process.name, process.incarnation))

    def failed(self, process: Process, reason: str) -> None:
        """It runs but is of no use."""
        self._group.send(restart.Failed(process.name, process.incarnation, reason))

    def keep(self, name: str) -> None:
        """Never give it up from now on: it has shown that it can serve."""
        self._group.put(replace(self.worker(name).spec, escalates=True))

    async def wait_settled(self, name: str) -> None:
        """Wait until it serves or is stopped.

        Raises:
            VsmError: it was given up.
        """
        await self._group.wait_phase(name, *_SETTLED)
        worker = self.worker(name)
        if worker.phase == "quarantined":
            failure = self._failures.get(name)
            raise failure or VsmError(name, f"it was given up: {worker.reason}", self._words(name))

    def _words(self, name: str) -> str:
        """What it wrote last, as a hint."""
        lines = self._last_words.get(name, b"").decode(errors="replace").strip().splitlines()
        return f"It wrote {lines[-1][:_MOST_HINT]!r}." if lines else ""

    async def wait_dead(self, name: str) -> None:
        """Wait until it has no process."""
        await self._group.wait_phase(name, "stopped", "backing_off", "quarantined")

    # -- what the restart decisions do -------------------------------------------------------------

    def spawn(self, name: str, incarnation: int) -> None:
        """Order it from the runner."""
        self._failures.pop(name, None)
        self._last_words.pop(name, None)
        try:
            self.processes[name] = Process(
                name,
                incarnation,
                self._cases[name],
                self,
                serves=self._hooks.serves,
                most_bytes=self._hooks.value_bytes,
            )
        except (VsmError, OSError) as error:
            self._exited(name, incarnation, _words_of(error), error=error)

    def drain(self, name: str) -> None:
        """Nothing to drain."""
        self._group.send(restart.Drained(name))

    def terminate(self, name: str) -> None:
        """Ask it to end."""
        if process := self.processes.get(name):
            process.terminate()

    def ask_stack(self, name: str) -> None:
        """Foreign work has no stack for us."""
        self.kill(name)

    def kill(self, name: str) -> None:
        """Kill it and everything below it."""
        if process := self.processes.get(name):
            process.kill()

    def changed(self, change: restart.Changed) -> None:
        """Tell of it."""
        kind: EventKind | None = None
        if change.phase == "ready":
            kind = "restarted" if self.worker(change.name).restarts else "started"
        elif change.phase == "quarantined":
            kind = "gave_up"
        if kind:
            event = WorkerEvent(change.name, kind, change.incarnation, reason=change.reason)
            self.events.add(event)
        self._hooks.changed(change)

    # -- what processes say ------------------------------------------------------------------------

    def began(self, process: Process) -> None:
        """Every layer is in force."""
        self._hooks.began(self, process)

    def said(self, process: Process, answer: Answer | None, unfit: str) -> None:
        """It sent something."""
        self._hooks.said(self, process, answer, unfit)

    def ended(self, process: Process, error: VsmError | None) -> None:
        """It is gone."""
        name, incarnation = process.name, process.incarnation
        self._last_words[name] = process.stderr[-_LAST_WORDS_BYTES:]
        if self.processes.get(name) is process:
            del self.processes[name]
        if error is not None:
            reason, innocent = error.what, self.worker(name).phase == "ready"
            self._hooks.ended(self, process, reason)
            self._exited(name, incarnation, reason, error=error, innocent=innocent)
            return
        last = process.last
        began = last is None or last.kind != "start"
        if process.serves and began:
            last = None  # it was about a call, not about its end
        cause, text = judge(process.report, last, "", expects_value=False, late=process.late)
        innocent = self._hooks.ended(self, process, text or f"it ended: {cause}")
        failure = None if began else ConfigurationError(name, f"it cannot begin: {text}")
        self._exited(
            name, incarnation, text or "exit status 0", cause, error=failure, innocent=innocent
        )

    def _exited(
        self,
        name: str,
        incarnation: int,
        reason: str,
        cause: Cause | Literal[""] = "",
        *,
        error: Exception | None = None,
        innocent: bool = False,
    ) -> None:
        if isinstance(error, _HOPELESS):
            self._failures[name] = error
        exited = restart.Exited(
            name,
            incarnation,
            reason,
            clean=cause == "ok",
            collateral=innocent,
            hopeless=isinstance(error, _HOPELESS),
        )
        self._causes[name, incarnation] = cause
        self._group.send(exited)

    def _observe(self, before: restart.Group, event: restart.Event, after: restart.Group) -> None:
        """Ends are told before what follows from them."""
        del after
        if not isinstance(event, restart.Exited):
            return
        worker = before.workers[event.name]
        told = worker.after in {"stop", "restart"} and worker.phase in {"stopping", "draining"}
        kind: EventKind = "stopped" if told else "died"
        cause = self._causes.pop((event.name, event.incarnation), "")
        words = self._last_words.get(event.name, b"")
        self.events.add(
            WorkerEvent(event.name, kind, event.incarnation, cause, event.reason, words)
        )


def _words_of(error: Exception) -> str:
    return error.what if isinstance(error, VsmError) else str(error)
