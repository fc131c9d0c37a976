"""Strict TOML: a file or a table becomes a msgspec Struct, or a ConfigurationError says why not.

Runs in the command line and the supervisor, on files of the operator. Unknown keys are refused
with the nearest known one, a `bool` is never a number, and whatever bytes the file holds, nothing
but ConfigurationError leaves this module.
"""

import difflib
import json
import os
import stat
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vsm.errors import ConfigurationError

LIMIT_BYTES = 2**20
_LONGEST_SHOWN = 200
_LONGEST_WORDS = 80
_CHECK_PATH = "Check the path and its permissions."

StructT = TypeVar("StructT", bound=msgspec.Struct)


def read_toml(path: Path) -> dict[str, Any]:
    """The file's table."""
    try:
        text = _read_bounded(path).decode()
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(
            str(path), f"cannot be read: {error.strerror}", _CHECK_PATH
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            str(path),
            f"expected UTF-8, found byte {error.object[error.start]:#04x} at {error.start}",
        ) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigurationError(str(path), f"not valid TOML: {what}") from error


def _read_bounded(path: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO must not hang before the type is known.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigurationError(str(path), "expected a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(LIMIT_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > LIMIT_BYTES:
        raise ConfigurationError(str(path), f"larger than {LIMIT_BYTES} bytes")
    return content


def check_trust(path: Path) -> None:
    """Refuse a file that somebody else could have written, or that lies where he could swap it."""
    for item in (path, path.parent):
        try:
            status = item.stat()
        except OSError as error:
            raise ConfigurationError(
                str(item), f"cannot be read: {error.strerror}", _CHECK_PATH
            ) from error
        if status.st_uid not in (0, os.geteuid()):
            what = f"belongs to uid {status.st_uid}"
            raise ConfigurationError(str(item), what, "chown it to root or to yourself.")
        sticky_folder = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_mode & stat.S_IWOTH and not sticky_folder:
            raise ConfigurationError(str(item), "everybody may write it", "chmod o-w it.")


def build(table: Mapping[str, Any], model: type[StructT], *, file: str, key: str = "") -> StructT:
    """Validate a table against `model`, table by table, so that every error names its full key."""
    if not isinstance(table, Mapping):
        raise ConfigurationError(_where(file, key), f"expected a table, found {_kind(table)}")
    fields = {field.encode_name: field for field in msgspec.structs.fields(model)}
    hints = typing.get_type_hints(model, include_extras=True)
    for name in table:
        if name not in fields:
            where = _where(file, key)
            raise ConfigurationError(where, f"unknown key {name[:60]!r}", nearest(name, fields))
    values = {}
    for name, field in fields.items():
        full_key = f"{key}.{name}" if key else name
        if name in table:
            values[field.name] = _convert(table[name], hints[field.name], file, full_key)
        elif field.required:
            raise ConfigurationError(_where(file, full_key), "missing", f"Add {name} = …")
    return model(**values)


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy that names the known word nearest to `name`."""
    candidates = sorted(known)
    close = difflib.get_close_matches(name[:100], candidates, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(candidates)}." if candidates else ""


def _convert(value: Any, hint: Any, file: str, key: str) -> Any:  # noqa: ANN401 - TOML is dynamic
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return build(value, hint, file=file, key=key)
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        inner = typing.get_args(hint)[1]
        return {name: _convert(item, inner, file, f"{key}.{name}") for name, item in value.items()}
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        what, remedy = _explain(error, value, hint), _as_array(error, value, key)
        raise ConfigurationError(_where(file, key), what, remedy) from error


def _as_array(error: msgspec.ValidationError, value: object, key: str) -> str:
    """How it is written, for a line of words where an array of them is expected."""
    if not isinstance(value, str) or len(value) > _LONGEST_WORDS or "`array" not in str(error):
        return ""
    return f"Write {key.rpartition('.')[2]} = {json.dumps(value.split(), ensure_ascii=False)}."


def _explain(error: msgspec.ValidationError, value: Any, hint: Any) -> str:  # noqa: ANN401
    choices = _choices(hint)
    if choices and isinstance(value, str):
        return f"expected one of {', '.join(choices)}, found {value[:60]!r}"
    what, _, place = str(error).partition(" - at ")
    found = f", found {value!r}" if isinstance(value, str | int | float) else ""
    index = f" at item {place.strip('`$[]')}" if place.startswith("`$[") else ""
    return f"{what[:1].lower()}{what[1:200]}{found[:80]}{index}"


def _choices(hint: Any) -> list[str]:  # noqa: ANN401
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [word for part in typing.get_args(hint) for word in _choices(part)]
    return list(typing.get_args(hint)) if typing.get_origin(hint) is typing.Literal else []


def _kind(value: object) -> str:
    names = {"str": "a string", "list": "an array", "bool": "a boolean", "int": "an integer"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _where(file: str, key: str) -> str:
    return f"{file}: {key[:_LONGEST_SHOWN]}" if key else file
