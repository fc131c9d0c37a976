"""What a program asks for, checked and turned into an order for the runner and work for a worker.

Runs in the program. Nothing is started here.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from vsm.configuration.profile import Profile, check_foreign
from vsm.errors import ConfigurationError
from vsm.library import profile_cache
from vsm.library.work import Work

What = Callable[..., object] | Sequence[str]
VALUE_BYTES = 256 << 20
_WHERE = "vsm.run"


class Request(NamedTuple):
    """The arguments of one run, or of a worker.

    Args:
        lasting: it stays until it is told to end, and says when it has begun.
        serves: the callable is called for every message, instead of once.
    """

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
    lasting: bool = False
    serves: bool = False


class Case(NamedTuple):
    """What the runner and what the worker gets."""

    message: bytes
    work: Work


def prepare(request: Request) -> Case:
    """Check everything and pack the work.

    Raises:
        ConfigurationError: an argument or the profile is wrong.
        VsmError: the work cannot travel.
    """
    profile = _profile(request)
    read, write = _paths(request.read, "read"), _paths(request.write, "write")
    if not isinstance(request.cwd, str | None):
        raise ConfigurationError(_WHERE, f"cwd: expected text, found {request.cwd!r:.60}", "")
    work = Work(
        request.what,
        request.args,
        env=_environment(request.env),
        base_env=profile.environment,
        read=(*read, *write),
        head={
            "most_bytes": request.value_bytes,
            "memory_bytes": profile.limits.memory_bytes,
            "serves": request.serves,
            "isolated": profile.network.mode != "host",
        },
    )
    order = {
        "profile": profile,
        "executable": work.executable,
        "cwd": request.cwd,
        "path": work.path,
        "read": [path for path in work.read if path not in write],
        "kept": [path for path in read if path not in write],
        "write": write,
        "tier": request.tier,
        "identity": [_identity(path) for path in (*work.read, *_given(profile, request.cwd))],
        "lasting": request.lasting,
        "warm": ["numpy"] if "numpy" in sys.modules else [],
    }
    try:
        return Case(msgspec.json.encode(order), work)
    except UnicodeEncodeError as error:
        what = f"{error.object!s:.200} has a name that is not UTF-8"
        raise ConfigurationError(_WHERE, what, "Give it another name.") from error


def _profile(request: Request) -> Profile:
    profile = request.profile
    if not isinstance(profile, Profile):
        profile = profile_cache.load(profile)
    check_foreign(profile, _WHERE)
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
    found = [os.path.realpath(os.fspath(path)) for path in paths]
    for path in found:
        if not os.path.exists(path):
            raise ConfigurationError(_WHERE, f"{name}: {path} does not exist", "Correct the path.")
    return found


def _given(profile: Profile, cwd: str | None) -> tuple[str, ...]:
    """The paths at which a worker has what was there when it began."""
    return (*profile.files.read, *profile.files.write, *([] if cwd is None else [cwd]))


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
