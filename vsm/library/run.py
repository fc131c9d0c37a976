"""`vsm.run` and `vsm.run_async`: one piece of work, confined, and what it came to.

Runs in the program, in any thread or event loop; forks nothing (the runner does), and leaves
nothing behind but the runner, which ends with the program.
"""

import asyncio
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vsm.errors import ConfigurationError, VsmError
from vsm.library import runner_link
from vsm.library.exchange import Exchange
from vsm.library.result import Result, judge
from vsm.library.work import Work
from vsm.profile import Profile, load_profile

What = Callable[..., object] | Sequence[str]
_ANSWER_TIMEOUT_S = 20.0
_TIMEOUT_S = 60.0
_OUTPUT_BYTES = 1 << 20
_VALUE_BYTES = 256 << 20
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
    value_bytes: int = _VALUE_BYTES,
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
    case = _prepare(_Request(what, args, profile, limits, read, write, env, cwd, tier, value_bytes))
    exchange = Exchange(
        case.message, case.work, stdin, output_bytes=output_bytes, most_bytes=value_bytes
    )
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
    value_bytes: int = _VALUE_BYTES,
) -> Result:
    """As `run`, without blocking the event loop; cancelling it kills the worker."""
    started = time.monotonic()
    case = _prepare(_Request(what, args, profile, limits, read, write, env, cwd, tier, value_bytes))
    exchange = Exchange(
        case.message, case.work, stdin, output_bytes=output_bytes, most_bytes=value_bytes
    )
    try:
        await _Watch(exchange, timeout_s).wait()
        return _result(exchange, callable(what), started)
    finally:
        exchange.close()


# -- before ----------------------------------------------------------------------------------------


class _Request(NamedTuple):
    """The arguments of one run."""

    what: What
    args: tuple[object, ...]
    profile: str | Profile
    limits: Mapping[str, float | None] | None
    read: Sequence[str | os.PathLike[str]]
    write: Sequence[str | os.PathLike[str]]
    env: Mapping[str, str] | None
    cwd: str | None
    tier: str | None
    value_bytes: int


class _Case(NamedTuple):
    """What the runner and what the worker gets."""

    message: bytes
    work: Work


def _prepare(request: _Request) -> _Case:
    profile = _profile(request)
    read, write = _paths(request.read, "read"), _paths(request.write, "write")
    work = Work(
        request.what,
        request.args,
        env=_environment(request.env),
        base_env=profile.environment,
        read=(*read, *write),
        head={"most_bytes": request.value_bytes, "memory_bytes": profile.limits.memory_bytes},
    )
    order = {
        "profile": profile,
        "executable": work.executable,
        "cwd": request.cwd,
        "read": [path for path in work.read if path not in write],
        "write": write,
        "tier": request.tier,
        "identity": [_identity(p) for p in (*work.read, *profile.files.read, *profile.files.write)],
        "warm": ["numpy"] if "numpy" in sys.modules else [],
    }
    return _Case(msgspec.json.encode(order), work)


def _profile(request: _Request) -> Profile:
    profile = request.profile
    if not isinstance(profile, Profile):
        profile = load_profile(profile)
    if profile.confine != "exec":
        raise ConfigurationError(_WHERE, f"the profile {profile.name} is for vsm's own", "")
    if profile.network.mode == "proxy":
        what = f'network mode "proxy" of the profile {profile.name} is not built yet for vsm.run'
        raise ConfigurationError(_WHERE, what, "Use a profile without it, or vsm.toml.")
    if request.tier not in {None, "namespaced", "landlocked"}:
        raise ConfigurationError(_WHERE, f"no such tier: {request.tier!r}", "")
    return _limited(profile, dict(request.limits or {}))


def _limited(profile: Profile, limits: dict[str, float | None]) -> Profile:
    known = {field: getattr(profile.limits, field) for field in profile.limits.__struct_fields__}
    for name, value in limits.items():
        if name not in known:
            remedy = f"Known are {', '.join(known)}."
            raise ConfigurationError(_WHERE, f"no such limit: {name!r}", remedy)
        kinds = (int, float) if name == "cpu_cores" else (int,)
        if value is not None and (type(value) not in kinds or value < 0):
            raise ConfigurationError(_WHERE, f"limits: {name}: not {value!r}", "Give a number.")
    changed = msgspec.structs.replace(profile.limits, **limits)
    return msgspec.structs.replace(profile, limits=changed)


def _paths(paths: Sequence[str | os.PathLike[str]], name: str) -> list[str]:
    if isinstance(paths, str):
        raise ConfigurationError(_WHERE, f"{name}: expected a list of paths", f"Write [{paths!r}].")
    found = [Path(path).resolve() for path in paths]
    for path in found:
        if not path.exists():
            raise ConfigurationError(_WHERE, f"{name}: {path} does not exist", "Correct the path.")
    return [str(path) for path in found]


def _identity(path: str) -> tuple[int, int]:
    """What a path names now: a worker confined ahead must not show what it named before."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0  # whoever compiles the plan says so
    return found.st_dev, found.st_ino


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    table = dict(env or {})
    for name, value in table.items():
        # The value may be a secret: it is in no error.
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(_WHERE, f"env: {name!r:.60}: expected text", "")
        if not name or "=" in name or "\0" in name + value:
            raise ConfigurationError(_WHERE, f"env: {name!r:.60} is no variable", "")
    return table


# -- meanwhile -------------------------------------------------------------------------------------


def _wait(exchange: Exchange, timeout_s: float | None) -> None:
    poll = select.poll()
    for fd in exchange.fds:
        poll.register(fd, select.POLLIN)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while exchange.ended is None:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        events = poll.poll(None if left_s is None else left_s * 1000 + 1)
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
    )


def close() -> None:
    """End the runner now instead of at the program's exit; the next run starts another."""
    runner_link.close()
