"""`vsm.run` and `vsm.run_async`: one piece of work, confined, and what it came to.

Runs in the program, in any thread or event loop; forks nothing (the runner does), and leaves
nothing behind but the runner, which ends with the program.
"""

import asyncio
import os
import select
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vsm.configuration.profile import Profile
from vsm.errors import VsmError
from vsm.library import runner_link
from vsm.library.code import run_text
from vsm.library.exchange import Exchange
from vsm.library.order import VALUE_BYTES, Request, What, prepare
from vsm.library.result import Result, judge

_ANSWER_TIMEOUT_S = 20.0
_TIMEOUT_S = 60.0
_MOST_WAIT_S = 86400.0  # poll(2) counts milliseconds in an int
_OUTPUT_BYTES = 1 << 20
_WHERE = "vsm.run"


def run(
    what: What,
    *args: object,
    profile: str | Profile = "integration",
    limits: Mapping[str, float | None] | None = None,
    timeout_s: float | None = _TIMEOUT_S,
    read: Sequence[str | os.PathLike[str]] = (),
    write: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: bytes = b"",
    tier: str | None = None,
    output_bytes: int = _OUTPUT_BYTES,
    value_bytes: int = VALUE_BYTES,
) -> Result:
    """Run a callable or an argv confined, and wait for its end.

    Args:
        what: a callable, which gets `args` and returns JSON, bytes or a numpy array of numbers;
            or an argv, to which `args` are added.
        args: see above; for a callable, whatever `multiprocess`' serialiser takes.
        profile: its name, its file, or a `Profile`.
        limits: other limits than the profile's, by the names of its fields: `memory_bytes`,
            `processes`, `cpu_cores`, …; None lifts one.
        timeout_s: kill it after that time; None waits for ever.
        read: host paths that it may read, beside its interpreter's.
        write: host paths that it may write.
        env: its environment, beside the profile's; nothing of the program's.
        cwd: its working directory, a path that it sees.
        stdin: what an argv reads there.
        tier: insist on "namespaced" or "landlocked".
        output_bytes: how much of stdout and of stderr is kept.
        value_bytes: how large a value may be.

    Raises:
        ConfigurationError: an argument or the profile is wrong.
        ConfinementError: a layer that the profile requires cannot be applied here.
        VsmError: the work cannot travel, or the runner died.
    """
    started = time.monotonic()
    request = Request(what, args, profile, limits, read, write, env, cwd, tier, value_bytes)
    exchange = _begin(request, stdin, output_bytes)
    try:
        _wait(exchange, timeout_s)
        return _result(exchange, callable(what), started)
    finally:
        exchange.close()


async def run_async(
    what: What,
    *args: object,
    profile: str | Profile = "integration",
    limits: Mapping[str, float | None] | None = None,
    timeout_s: float | None = _TIMEOUT_S,
    read: Sequence[str | os.PathLike[str]] = (),
    write: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: bytes = b"",
    tier: str | None = None,
    output_bytes: int = _OUTPUT_BYTES,
    value_bytes: int = VALUE_BYTES,
) -> Result:
    """As `run`, without blocking the event loop; cancelling it kills the worker."""
    started = time.monotonic()
    request = Request(what, args, profile, limits, read, write, env, cwd, tier, value_bytes)
    exchange = _begin(request, stdin, output_bytes)
    try:
        await _Watch(exchange, timeout_s).wait()
        return _result(exchange, callable(what), started)
    finally:
        exchange.close()


def run_code(
    text: str,
    *,
    inputs: Mapping[str, object] | None = None,
    profile: str | Profile = "integration",
    limits: Mapping[str, float | None] | None = None,
    timeout_s: float | None = _TIMEOUT_S,
    read: Sequence[str | os.PathLike[str]] = (),
    write: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    tier: str | None = None,
    output_bytes: int = _OUTPUT_BYTES,
    value_bytes: int = VALUE_BYTES,
) -> Result:
    """Run generated Python code, as text; its value is what it leaves in `result`.

    Args:
        text: a module's source. Nothing of it is compiled in the program.
        inputs: global names that it begins with.
        profile: as of `run`, and so are the others.
        limits: other limits than the profile's.
        timeout_s: kill it after that time.
        read: host paths that it may read.
        write: host paths that it may write.
        env: its environment, beside the profile's.
        tier: insist on "namespaced" or "landlocked".
        output_bytes: how much of stdout and of stderr is kept.
        value_bytes: how large the value may be.
    """
    return run(
        run_text,
        text,
        dict(inputs or {}),
        profile=profile,
        limits=limits,
        timeout_s=timeout_s,
        read=read,
        write=write,
        env=env,
        tier=tier,
        output_bytes=output_bytes,
        value_bytes=value_bytes,
    )


def _begin(request: Request, stdin: bytes, output_bytes: int) -> Exchange:
    """Hand the work to the runner; the caller closes what this gives."""
    case, most_bytes = prepare(request), request.value_bytes
    return Exchange(
        case.message, case.work, stdin, output_bytes=output_bytes, most_bytes=most_bytes
    )


# -- meanwhile -------------------------------------------------------------------------------------


def _wait(exchange: Exchange, timeout_s: float | None) -> None:
    poll = select.poll()
    for fd in exchange.fds:
        poll.register(fd, select.POLLIN)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while exchange.ended is None:
        left_s = _MOST_WAIT_S if deadline is None else max(0.0, deadline - time.monotonic())
        events = poll.poll(min(left_s, _MOST_WAIT_S) * 1000 + 1)
        for fd, _ in events:
            if not exchange.ready(fd):
                poll.unregister(fd)
        if deadline is not None and time.monotonic() >= deadline and exchange.ended is None:
            deadline = _expire(exchange)


def _expire(exchange: Exchange) -> float:
    """Its time is over, or the runner's to say that it has ended."""
    if exchange.late:
        what = "the runner does not answer"
        raise VsmError(_WHERE, what, "Look for a stopped process named vsm-runner.")
    exchange.give_up()
    return time.monotonic() + _ANSWER_TIMEOUT_S


class _Watch:
    """An event loop's eye on an exchange."""

    def __init__(self, exchange: Exchange, timeout_s: float | None) -> None:
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._watched = set(exchange.fds)
        self._timer: asyncio.TimerHandle | None = None
        for fd in exchange.fds:
            self._loop.add_reader(fd, self._ready, fd)
        if timeout_s is not None:
            self._timer = self._loop.call_later(timeout_s, self._expire)

    async def wait(self) -> None:
        try:
            await self._done
        finally:
            for fd in self._watched:
                self._loop.remove_reader(fd)
            if self._timer is not None:
                self._timer.cancel()

    def _ready(self, fd: int) -> None:
        try:
            if not self._exchange.ready(fd):
                self._loop.remove_reader(fd)
                self._watched.discard(fd)
        except VsmError as error:
            self._settle(error)
        if self._exchange.ended is not None:
            self._settle()

    def _expire(self) -> None:
        try:
            left_s = _expire(self._exchange) - time.monotonic()
        except VsmError as error:
            self._settle(error)
        else:
            self._timer = self._loop.call_later(left_s, self._expire)

    def _settle(self, error: VsmError | None = None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)


# -- afterwards ------------------------------------------------------------------------------------


def _result(exchange: Exchange, expects_value: bool, started: float) -> Result:  # noqa: FBT001
    ended: dict[str, Any] = exchange.ended or {}
    answer, unfit = exchange.answer()
    if answer and answer.kind == "start":
        raise VsmError(_WHERE, f"the work did not begin: {answer.text}", "")
    cause, error = judge(ended, answer, unfit, expects_value=expects_value, late=exchange.late)
    stdout, stderr = exchange.outputs
    return Result(
        value=answer.value if answer and cause == "ok" else None,
        stdout=bytes(stdout.kept),
        stderr=bytes(stderr.kept),
        cause=cause,
        error=error,
        status=ended["status"],
        signal=ended["signal"],
        tier=ended["tier"],
        layers=tuple(ended["layers"]),
        peak_bytes=ended["peak_bytes"],
        cpu_s=ended["cpu_s"],
        wall_s=time.monotonic() - started,
        truncated=stdout.truncated or stderr.truncated,
        refused_calls=ended["refused"],
        egress=ended["egress"],
    )


def close() -> None:
    """End the runner now instead of at the program's exit; the next run starts another."""
    runner_link.close()
