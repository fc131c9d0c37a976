"""What a run does, packed for the worker: a function by value, or an argv, and its environment.

Runs in the program. What a worker will not see of the host's files it cannot import: functions
of such modules travel by value. Only the program pickles; only a confined worker loads it.
"""

import dis
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

from vsm.confinement.closure import DEFAULT_PATH, Closure, closure
from vsm.errors import ConfigurationError, VsmError

_IN_THE_RUNNER = {"dill", "numpy", "vsm"}  # loaded there already, visible or not
_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}
_SEARCHED = ("PATH", "PYTHONPATH", "NODE_PATH", "LD_LIBRARY_PATH")


class Work:
    """One piece of work: its memfd, and what the runner has to know of it.

    Args:
        what: a callable, or an argv.
        arguments: the callable's.
        env: added to the profile's environment.
        base_env: the profile's.
        read: host paths that the worker sees.
        head: more for the worker, as JSON.

    Attributes:
        executable: what is exec'ed, absolute.
        read: all that has to be readable.
        visible: what of the host's files the worker sees.
    """

    def __init__(
        self,
        what: Callable[..., object] | Sequence[str],
        arguments: tuple[object, ...],
        *,
        env: Mapping[str, str],
        base_env: Mapping[str, str],
        read: tuple[str, ...],
        head: Mapping[str, object],
    ) -> None:
        argv = _argv(what, arguments)
        path = env.get("PATH") or os.environ.get("PATH") or DEFAULT_PATH
        search = {**base_env, **env, "PATH": path}
        needed = closure(argv, env=search, cwd=_here()) if argv else _interpreter(search)
        self.executable = needed.executable
        self.path = needed.folders
        self.read = (*needed.read, *read)
        self.visible = Visible((*needed.read, *read))
        table = {**head, "argv": argv, "env": dict(env), "path": self.visible.of(sys.path)}
        content = b"" if argv else pack((what, arguments), self.visible)
        self._content = json.dumps(table).encode() + b"\n" + content

    def open(self) -> int:
        """A memfd with the work, at its start; the caller's."""
        return memory_file("work", self._content)


_interpreters: dict[tuple[str, ...], Closure] = {}


def _interpreter(search: Mapping[str, str]) -> Closure:
    """What this interpreter needs: looked up once, for it does not change while it runs."""
    key = (sys.executable, *(search.get(name, "") for name in _SEARCHED))
    if key not in _interpreters:
        _interpreters[key] = closure([sys.executable, "-c", ""], env=search, cwd="")
    return _interpreters[key]


def _here() -> str:
    """The program's directory; "", in which nothing is found, where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def memory_file(name: str, content: bytes) -> int:
    """A memfd that holds this, at its start; the caller's."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _argv(what: Any, arguments: tuple[object, ...]) -> list[str]:  # noqa: ANN401
    """The argv, empty for a callable."""
    if callable(what):
        return []
    if isinstance(what, str) or not isinstance(what, Sequence) or not what:
        remedy = 'Write ["/usr/bin/sort", "-n"], or pass a function.'
        raise ConfigurationError("vsm.run", f"expected an argv, found {what!r:.60}", remedy)
    argv = [*what, *arguments]
    for item in argv:
        if not isinstance(item, str) or "\0" in item:
            raise ConfigurationError("vsm.run", f"expected words, found {item!r:.60}", "")
    return argv


class Visible:
    """Which files a worker will see beside the system's."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self._paths = [os.path.realpath(path) for path in ("/usr", "/lib", "/lib64", *paths)]

    def sees(self, path: str) -> bool:
        """Whether it will see this one."""
        real = os.path.realpath(path)
        return any(real == folder or real.startswith(folder + "/") for folder in self._paths)

    def of(self, paths: Sequence[str]) -> list[str]:
        """The folders among `paths` that it sees."""
        return [path for path in paths if path.startswith("/") and self.sees(path)]

    def has_module(self, name: str) -> bool:
        """Whether a worker can import a module that is loaded here."""
        if name.partition(".")[0] in _IN_THE_RUNNER:
            return True
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        return name != "__main__" and module is not None and (file is None or self.sees(file))


def pack(what: object, visible: Visible) -> bytes:
    """A function and its arguments, or arguments alone, by `multiprocess`' serialiser.

    Raises:
        VsmError: something in it cannot travel.
    """
    import io

    import dill

    class ByValue(dill.Pickler):  # type: ignore[misc] # dill is untyped
        """Takes functions along whose modules a worker cannot import."""

        moved: dict[int, FunctionType]

        def save(self, obj: object, save_persistent_id: bool = True) -> None:  # noqa: FBT001, FBT002
            # By its own module's name a worker could not find it.
            if isinstance(obj, FunctionType) and not visible.has_module(obj.__module__ or ""):
                if id(obj) not in self.moved:
                    copy = self.moved[id(obj)] = _by_itself(obj)
                    self.moved[id(copy)] = copy
                obj = self.moved[id(obj)]
            super().save(obj, save_persistent_id)

    file = io.BytesIO()
    pickler = ByValue(file, protocol=5, recurse=False)
    pickler.moved = {}
    try:
        pickler.dump(what)
    except Exception as error:
        what = f"the work cannot travel to a worker: {type(error).__name__}: {error}"
        raise VsmError("vsm.run", what, "Pass plain values, and functions of modules.") from error
    return file.getvalue()


def _by_itself(function: FunctionType) -> FunctionType:
    """The same function with those globals alone that it names, of no module to be imported."""
    names = _names(function.__code__)
    copy = FunctionType(
        function.__code__,
        {name: value for name, value in function.__globals__.items() if name in names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__module__ = "__main__"
    return copy


def _names(code: CodeType) -> set[str]:
    """The globals that the code and the functions inside it name; attributes are no globals."""
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    own = {one.argval for one in dis.get_instructions(code) if one.opname in _GLOBALS}
    return own.union(*(_names(one) for one in inner))
