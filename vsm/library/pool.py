"""`vsm.Pool`: a function served by confined workers that stay, and outlives any of them.

Runs in the program, on its event loop. A worker has one call at a time; a call that kills its
worker fails, and the worker is replaced.
"""

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from vsm.configuration.profile import Profile
from vsm.core import restart
from vsm.errors import ConfigurationError, VsmError
from vsm.library.order import VALUE_BYTES
from vsm.library.process import Process
from vsm.library.result import Cause, RunError, judge
from vsm.library.spec import WorkerEvent, WorkerSpec
from vsm.library.values import Answer
from vsm.library.work import pack
from vsm.library.workers import Hooks, Workers

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one call of a pool came to.

    Args:
        value: what the function returned.
        cause: as of a `vsm.Result`: "ok"; "exit" (an exception, or the worker ended), "signal",
            "timeout", "memory", "violation" or "refused".
        error: in words, what went wrong; "" where nothing did.
        worker: who had the call, "" where nobody did.
        wall_s: from the call to the reply.
    """

    value: Any
    cause: Cause
    error: str
    worker: str
    wall_s: float

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.cause == "ok"

    def check(self) -> Any:  # noqa: ANN401 - what the function returned
        """The value; raises RunError if there is none."""
        if not self.ok:
            raise RunError(self, "vsm.Pool")
        return self.value


class _Call:
    """One call in flight."""

    def __init__(self, number: int, content: bytes) -> None:
        self.number, self.content = number, content
        self.worker = ""
        self.done: asyncio.Future[tuple[Any, Cause, str]] = (
            asyncio.get_running_loop().create_future()
        )

    def settle(self, value: object, cause: Cause, error: str) -> None:
        if not self.done.done():
            self.done.set_result((value, cause, error))


class _Desk(Hooks):
    """Who is free, who waits, and which worker has which call."""

    serves = True

    def __init__(self, size: int, value_bytes: int) -> None:
        self.size, self.value_bytes = size, value_bytes
        self.waiting: deque[_Call] = deque()
        self.free: deque[Process] = deque()
        self.busy: dict[Process, _Call] = {}
        self.given_up: set[str] = set()

    def assign(self) -> None:
        """Give free workers what waits."""
        while self.waiting and self.free:
            call = self.waiting.popleft()
            if call.done.done():
                continue
            process = self.free.popleft()
            call.worker = process.name
            self.busy[process] = call
            if not process.call(call.number, call.content):
                process.kill()  # its end is the call's

    def withdraw(self, call: _Call) -> bool:
        """Nobody waits for it any more: its worker is killed. False if no worker had it."""
        if call in self.waiting:
            self.waiting.remove(call)
        for process, held in self.busy.items():
            if held is call:
                process.kill(late=True)
                return True
        return False

    def began(self, workers: Workers, process: Process) -> None:
        """It is ready when it has loaded the function, and says so."""

    def said(self, workers: Workers, process: Process, answer: Answer | None, unfit: str) -> None:
        """It is ready, or answers the call that it has; anything else ends it."""
        call = self.busy.get(process)
        if answer is not None and answer.kind == "ready" and call is None:
            if workers.worker(process.name).phase == "starting":
                workers.ready(process)
                workers.keep(process.name)
                self.free.append(process)
                self.assign()
                return
        elif answer is not None and answer.kind == "start" and answer is process.last:
            return  # its end follows
        elif call is not None and (answer is None or answer.call == call.number):
            self._answered(process, call, answer, unfit)
            return
        if process in self.free:
            self.free.remove(process)
        workers.failed(process, unfit or "it spoke without being asked")
        process.kill()

    def _answered(self, process: Process, call: _Call, answer: Answer | None, unfit: str) -> None:
        if answer is None:
            call.settle(None, "refused", unfit)
            process.kill()  # who knows what it is now
            return
        if process.late or call.done.done():
            return  # it is killed already
        del self.busy[process]
        if answer.kind == "value":
            call.settle(answer.value, "ok", "")
        elif answer.kind == "unfit":
            call.settle(None, "refused", answer.text)
        else:
            call.settle(None, _cause(answer), answer.text)
        self.free.append(process)
        self.assign()

    def changed(self, change: restart.Changed) -> None:
        """Whether anybody is left to wait for."""
        if change.phase != "quarantined":
            self.given_up.discard(change.name)
            return
        self.given_up.add(change.name)
        if len(self.given_up) == self.size:
            self.fail_all(f"every worker was given up: {change.reason}")

    def fail_all(self, reason: str) -> None:
        """Nobody will answer."""
        for call in (*self.waiting, *self.busy.values()):
            call.settle(None, "exit", reason)
        self.waiting.clear()

    def ended(self, workers: Workers, process: Process, reason: str) -> bool:  # noqa: ARG002
        """Its call fails with it, and is no reason to distrust the next worker."""
        if process in self.free:
            self.free.remove(process)
        call = self.busy.pop(process, None)
        if call is None:
            return False
        if not process.report:
            call.settle(None, "exit", reason)
            return True
        cause, text = judge(process.report, None, "", expects_value=True, late=process.late)
        call.settle(None, cause, text)
        return True


def _cause(answer: Answer) -> Cause:
    if answer.denied == "memory":
        return "memory"
    return "violation" if answer.denied == "violation" else "exit"


class Pool:
    """A function behind a few confined workers that stay: an async context manager.

    A worker has one call at a time, and keeps what earlier calls left in its memory: use
    `vsm.run` where one piece of work must find nothing of another.

    Args:
        function: called with the arguments of each call; returns what a `vsm.run` may return.
        size: how many workers.
        name: theirs, with a number.
        profile: its name, its file, or a `Profile`.
        limits: other limits than the profile's, for each worker.
        read: host paths that they may read.
        write: host paths that they may write.
        env: their environment, beside the profile's.
        tier: insist on "namespaced" or "landlocked".
        value_bytes: how large a value may be.

    Raises:
        ConfigurationError: an argument or the profile is wrong, or the function cannot be loaded.
        ConfinementError: a layer that the profile requires cannot be applied here.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *,
        size: int = 2,
        name: str = "pool",
        profile: str | Profile = "integration",
        limits: Mapping[str, float | None] | None = None,
        read: Sequence[str | os.PathLike[str]] = (),
        write: Sequence[str | os.PathLike[str]] = (),
        env: Mapping[str, str] | None = None,
        tier: str | None = None,
        value_bytes: int = VALUE_BYTES,
    ) -> None:
        if not callable(function) or size < 1:
            raise ConfigurationError("vsm.Pool", "expected a callable and at least one worker")
        self._desk = _Desk(size, value_bytes)
        self._numbers = itertools.count(1)
        self._workers = Workers(
            [
                WorkerSpec(
                    f"{name}-{number}",
                    function,
                    profile=profile,
                    limits=limits,
                    read=read,
                    write=write,
                    env=env,
                    tier=tier,
                    backoff_initial_s=0.1,
                    backoff_max_s=5.0,
                )
                for number in range(1, size + 1)
            ],
            "one_for_one",
            self._desk,
        )

    async def __aenter__(self) -> Self:
        await self._workers.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._workers.stop()
        finally:
            self._desk.fail_all("the pool ended")

    async def call(self, *args: object, timeout_s: float | None = _TIMEOUT_S) -> Reply:
        """Have one worker call the function, as soon as one is free.

        Cancelling it kills the worker that has the call.

        Args:
            args: the function's; whatever `multiprocess`' serialiser takes.
            timeout_s: for the wait and the call together; None waits for ever.

        Raises:
            VsmError: the arguments cannot travel, or the pool does not run.
        """
        began = time.monotonic()
        if not self._workers.is_running:
            raise VsmError("vsm.Pool", "no worker runs", "Use it inside `async with`.")
        if len(self._desk.given_up) == self._desk.size:
            reason = self._workers.worker(next(iter(self._desk.given_up))).reason
            what = f"every worker was given up: {reason}"
            raise VsmError("vsm.Pool", what, "Mend that, and make another one.")
        content = pack(args, self._workers.visible)
        call = _Call(next(self._numbers), content)
        self._desk.waiting.append(call)
        self._desk.assign()
        try:
            async with asyncio.timeout(timeout_s):
                value, cause, error = await asyncio.shield(call.done)
        except TimeoutError:
            value, cause, error = await self._expire(call)
        except asyncio.CancelledError:
            self._desk.withdraw(call)
            raise
        return Reply(
            value=value,
            cause=cause,
            error=error,
            worker=call.worker,
            wall_s=time.monotonic() - began,
        )

    async def _expire(self, call: _Call) -> tuple[Any, Cause, str]:
        """Its time is over; a worker that has it is dead when this returns."""
        if not self._desk.withdraw(call):
            call.settle(None, "timeout", "no worker was free in time")
        return await call.done

    def events(self) -> AsyncIterator[WorkerEvent]:
        """What happens to the workers, as `Supervisor.events`."""
        return self._workers.events.read()

    @property
    def pids(self) -> dict[str, int]:
        """The workers' pids, by name, of those that run."""
        return {
            name: int(process.facts["pid"])
            for name, process in self._workers.processes.items()
            if process.facts
        }
