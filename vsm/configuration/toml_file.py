"""Strict TOML: a file or a table becomes a msgspec Struct, or a ConfigurationError says why not.

Runs in the command line and the supervisor, on files of the operator. Unknown keys are refused
with the nearest known one, a `bool` is never a number, and whatever bytes the file holds, nothing
but ConfigurationError leaves this module.
"""

import difflib
import json
import os
import re
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
_LONGEST_FOUND = 70
_WORD_BITS = 64
_CHECK_PATH = "Check the path and its permissions."
_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text in quotes",
    "array": "a list in brackets",
    "object": "a table",
}
# What msgspec says: "Expected `int | null` >= 1, got `str`".
_EXPECTED = re.compile(r"Expected `([^`]+)`([^,]*)(?:, got `(\w+)`)?")
_BARE = re.compile(r"[0-9]{1,15}|[0-9]{1,15}\.[0-9]{1,15}|true|false")

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
            "Save it as UTF-8.",
        ) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigurationError(str(path), f"not valid TOML: {what}") from error


def _read_bounded(path: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO must not hang before the type is known.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            what = "expected a regular file, found none"
            raise ConfigurationError(str(path), what, "Name the TOML file itself.")
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
        what = f"expected a table, found {_kind(table)}"
        raise ConfigurationError(_where(file, key), what, _as_table(model, key))
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


def _tables(value: object, file: str, key: str) -> list[tuple[str, Any]]:
    """The key of each table of a list, counted from 1, and the table."""
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        what = "expected a list of tables, found something else"
        raise ConfigurationError(_where(file, key), what, f"Write [[{key}]] above each.")
    return [(f"{key}.{number}", one) for number, one in enumerate(value, 1)]


def _as_table(model: type[msgspec.Struct], key: str) -> str:
    return _write(key, f"{{ {model.__struct_encode_fields__[0]} = … }}") if key else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy that names the known word nearest to `name`."""
    candidates = sorted(known)
    close = difflib.get_close_matches(name[:100], candidates, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(candidates)}." if candidates else ""


def _convert(value: Any, hint: Any, file: str, key: str) -> Any:  # noqa: ANN401 - TOML is dynamic
    model = _model(hint)
    if model is not None and (isinstance(value, Mapping) or not _may_be_else(hint)):
        return build(value, model, file=file, key=key)
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        inner = typing.get_args(hint)[1]
        return {name: _convert(item, inner, file, f"{key}.{name}") for name, item in value.items()}
    item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if _model(item) is not None:
        return tuple(_convert(one, item, file, where) for where, one in _tables(value, file, key))
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        what, remedy = _explain(error, value, hint), _rewritten(error, value, key)
        raise ConfigurationError(_where(file, key), what, remedy) from error


def _model(hint: Any) -> type[msgspec.Struct] | None:  # noqa: ANN401
    """The table that a hint is, or may be."""
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    return next((p for p in parts if isinstance(p, type) and issubclass(p, msgspec.Struct)), None)


def _may_be_else(hint: Any) -> bool:  # noqa: ANN401
    """Whether TOML has something else than a table for it; there is no null in TOML."""
    return bool({*typing.get_args(hint)} - {_model(hint), type(None)}) if _is_union(hint) else False


def _is_union(hint: Any) -> bool:  # noqa: ANN401
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _rewritten(error: msgspec.ValidationError, value: object, key: str) -> str:
    """How the value is written as the type that is expected, where that is plain to see."""
    wanted = _wanted(error)
    if isinstance(value, str) and "array" in wanted and len(value) <= _LONGEST_WORDS:
        return _write(key, json.dumps(value.split(), ensure_ascii=False))
    if isinstance(value, str) and wanted & {"int", "float", "bool"} and _BARE.fullmatch(value):
        return _write(key, value)
    if wanted == {"str"} and type(value) in (bool, int, float):
        text = _as_toml(value)
        return _write(key, f'"{text}"') if len(text) <= _LONGEST_WORDS else ""
    if wanted == {"bool"}:
        name = key.rpartition(".")[2]
        return f"Write {name} = true or {name} = false."
    return ""


def _write(key: str, value: str) -> str:
    return f"Write {key.rpartition('.')[2]} = {value}."


def _wanted(error: msgspec.ValidationError) -> set[str]:
    """The types that msgspec expected of the whole value; empty where it is about an item of it."""
    match = _EXPECTED.match(str(error))
    return set(match[1].split(" | ")) - {"null"} if match and " - at " not in str(error) else set()


def _explain(error: msgspec.ValidationError, value: Any, hint: Any) -> str:  # noqa: ANN401
    """What msgspec says, in the words of TOML."""
    text, _, place = str(error).partition(" - at ")
    index = f" at item {place.strip('`$[]')}" if place.startswith("`$[") else ""
    choices = _choices(hint)
    if choices and text.startswith("Invalid enum value"):
        found = repr(value[:60]) if isinstance(value, str) else text.partition("value ")[2][:60]
        return f"expected one of {', '.join(choices)}, found {found}{index}"
    match = _EXPECTED.match(text)
    if match is None:
        text = text.removeprefix("Object contains ").replace("missing required", "missing")
        return f"{text[:1].lower()}{text[1:200]}{index}".replace("field `", "key `")
    wanted = " or ".join(_WORDS.get(word, word) for word in match[1].split(" | ") if word != "null")
    found = _found(value, match[3]) if not index else _WORDS.get(match[3], "")
    return f"expected {wanted}{match[2]}{f', found {found}' if found else ''}{index}"


def _found(value: object, kind: str | None) -> str:
    """A value as it was written, or what it is where that would be long."""
    if isinstance(value, str):
        return repr(value[:_LONGEST_FOUND])
    if isinstance(value, bool | int | float):
        return _as_toml(value)[:_LONGEST_FOUND]
    return _WORDS.get(kind or "", "")


def _as_toml(value: object) -> str:
    """A boolean or a number; a huge one, which str() refuses, in the base in which it came."""
    if isinstance(value, bool):
        return str(value).lower()
    return hex(value) if isinstance(value, int) and value.bit_length() > _WORD_BITS else str(value)


def _choices(hint: Any) -> list[str]:  # noqa: ANN401
    """The words of a Literal, also where the hint is a list of it or leaves it out."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(word) for word in typing.get_args(hint)]
    if _is_union(hint) or typing.get_origin(hint) is tuple:
        return [word for part in typing.get_args(hint) for word in _choices(part)]
    return []


def _kind(value: object) -> str:
    names = {"str": "a string", "list": "an array", "bool": "a boolean", "int": "an integer"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _where(file: str, key: str) -> str:
    return f"{file}: {key[:_LONGEST_SHOWN]}" if key else file
