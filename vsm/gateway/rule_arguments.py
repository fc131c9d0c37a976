"""The arguments of a call as rules look at them: the values under a path, and their shape.

Pure. What cannot be looked at as its server will see it is found incomplete: rules that allow do
not match it, rules that deny do. That is so for a member that is there twice (which of the two a
server takes is its own affair), and beyond bounds.

On the hot path, so only the members that a path leads through are decoded. For that each member
has to be there once, which is shown by arithmetic; where that shows nothing, all is parsed by a
parser that sees every member. A twin below a member that no path leads through changes nothing of
what is found, and need not be noticed.
"""

import enum
import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from vsm.core.policy_glob import ANY
from vsm.core.policy_rules import Found
from vsm.protocol.jsonrpc import Object

MOST_BYTES: Final = 256 * 1024
MOST_VALUES: Final = 256
MOST_MEMBERS: Final = 16
_SHORT_BYTES: Final = 256  # counting is quicker than adding up
_MOST_NAME: Final = 64
_NOTHING: Final = Found(())
_UNSEEN: Final = Found((), complete=False)
_WORDS: Final = {b"true": True, b"false": False, b"null": None}
_members: Final = msgspec.json.Decoder(dict[str, Raw])
_text: Final = msgspec.json.Decoder(str)
_QUOTE: Final = ord('"')
_CONTAINERS: Final = frozenset(b"{[")


class _Unread(enum.Enum):
    """Nobody has looked yet."""

    IT = enum.auto()


_UNREAD: Final = _Unread.IT


class _TwiceError(ValueError):
    """A member is there more than once."""


class Arguments:
    """What a request passes to a tool, prompt or resource; parsed when first asked for."""

    __slots__ = ("_parsed", "_raw", "_top")

    def __init__(self, params: Object) -> None:
        self._raw = params.get("arguments")
        self._top: dict[str, Raw] | _Unread | None = _UNREAD
        self._parsed: dict[str, Any] | _Unread | None = _UNREAD

    @property
    def size_bytes(self) -> int:
        """As JSON."""
        return 0 if self._raw is None else memoryview(self._raw).nbytes

    @property
    def text(self) -> bytes:
        """As they came."""
        return b"" if self._raw is None else bytes(self._raw)

    def digest(self) -> str:
        """Names exactly these bytes."""
        return hashlib.sha256(self.text).hexdigest()

    def find(self, path: str) -> Found:
        """Every value under a path such as "options.path"; "*" is all of them."""
        top = self._top
        if top is _UNREAD:
            top = self._top = None if self._raw is None else single_members(bytes(self._raw))
        try:
            if top is None:
                return _found(self._parse(), path)
            if "." in path or path == ANY:
                return _found(_on_path(top, path), path)
            value = _value(top[path]) if path in top else None
            if isinstance(value, str):
                return Found((value,))
            return _found({path: value}, path) if path in top else _NOTHING
        except (ValueError, RecursionError):
            return _UNSEEN

    def shape(self) -> dict[str, str]:
        """The first members, each with its kind and size; their names are the client's words."""
        parsed = self._parse()
        if parsed is None:
            return {}
        first = list(parsed.items())[:MOST_MEMBERS]
        return {name[:_MOST_NAME]: _kind(value) for name, value in first}

    def _parse(self) -> dict[str, Any] | None:
        parsed = self._parsed
        if parsed is _UNREAD:
            parsed = self._parsed = _parsed(self._raw)
        return parsed


def _found(parsed: dict[str, Any] | None, path: str) -> Found:
    if parsed is None:
        return _UNSEEN
    values: list[str] = []
    for node in _nodes(parsed, path):
        for value in _leaves(node):
            if len(values) >= MOST_VALUES:
                return Found(tuple(values), complete=False)
            values.append(value)
    return Found(tuple(values)) if values else _NOTHING


class _Number(str):
    """A number, as text."""

    __slots__ = ()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _TwiceError
    return found


# Numbers as they are written: a pattern compares text.
_decoder: Final = json.JSONDecoder(object_pairs_hook=_once, parse_int=_Number, parse_float=_Number)


def _parsed(raw: Raw | None) -> dict[str, Any] | None:
    if raw is None:
        return {}
    if memoryview(raw).nbytes > MOST_BYTES:
        return None
    try:
        found = _decoder.decode(bytes(raw).decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def single_members(text: bytes) -> dict[str, Raw] | None:
    """The members of an object; None where it is none, or perhaps has one of them twice."""
    if len(text) > MOST_BYTES:
        return None
    try:
        if not text.isascii():
            text.decode()
        found = _members.decode(text)
    except (ValueError, RecursionError):
        return None
    if len(text) < _SHORT_BYTES and _has_colons(text, len(found)):
        return found
    # As long as these members without a blank: there is no room for another one.
    size = 1
    for name, value in found.items():
        size += len(name) + 4 + memoryview(value).nbytes
    if size == len(text) or (len(text) >= _SHORT_BYTES and _has_colons(text, len(found))):
        return found
    return None


def _has_colons(text: bytes, count: int) -> bool:
    """Whether there are so many, each behind a name: then there are no more members than these."""
    return text.count(b'":') == count == text.count(b":")


def _on_path(top: dict[str, Raw], path: str) -> dict[str, Any]:
    """The members that a path leads through, decoded.

    Raises:
        ValueError: one of them cannot be looked at.
    """
    if path == ANY:
        return {name: _value(raw) for name, raw in top.items()}
    return {name: _value(top[name]) for name in {path, path.partition(".")[0]} if name in top}


def _value(raw: Raw) -> Any:  # noqa: ANN401 - JSON
    text = bytes(raw)
    if text[0] == _QUOTE:
        try:
            return _text.decode(text)
        except msgspec.DecodeError:  # half a surrogate pair, which the other parser takes
            return _decoder.decode(text.decode())
    if text[0] in _CONTAINERS:
        return _decoder.decode(text.decode())
    return _WORDS[text] if text in _WORDS else _Number(text.decode())


def _nodes(parsed: dict[str, Any], path: str) -> Iterator[Any]:
    """What a path means: a member of that very name, and a member of a member."""
    if path == ANY:
        yield parsed
        return
    if path in parsed:
        yield parsed[path]
    first, dot, rest = path.partition(".")
    if not dot:
        return
    below = parsed.get(first)
    for one in below if isinstance(below, list) else (below,):
        if isinstance(one, dict):
            yield from _nodes(one, rest)


def _leaves(node: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Every value in it that holds no other, as text."""
    stack = [node]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, str):
            yield value
        else:
            yield json.dumps(value)


def _kind(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, _Number):
        return "number"
    if isinstance(value, str):
        return f"text of {len(value)}"
    if isinstance(value, list):
        return f"list of {len(value)}"
    if isinstance(value, dict):
        return f"object of {len(value)}"
    return "null" if value is None else "boolean"
