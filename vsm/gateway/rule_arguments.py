"""The arguments of a call as rules look at them: the values under a path, and their shape.

Pure. What cannot be looked at as its server will see it is found incomplete: rules that allow do
not match it, rules that deny do. That is so for a member that is there twice (which of the two a
server takes is its own affair), and beyond bounds.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Raw

from vsm.core.policy_glob import ANY
from vsm.core.policy_rules import Found
from vsm.protocol.jsonrpc import Object

MOST_BYTES: Final = 256 * 1024
MOST_VALUES: Final = 256
MOST_MEMBERS: Final = 16
_MOST_NAME: Final = 64
_NOTHING: Final = Found(())
_UNSEEN: Final = Found((), complete=False)


class _TwiceError(ValueError):
    """A member is there more than once."""


class Arguments:
    """What a request passes to a tool, prompt or resource; parsed when first asked for."""

    def __init__(self, params: Object) -> None:
        self._raw = params.get("arguments")
        self._parsed: dict[str, Any] | None = None
        self._seen = False

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
        parsed = self._parse()
        if parsed is None:
            return _UNSEEN
        values: list[str] = []
        for node in _nodes(parsed, path):
            for value in _leaves(node):
                if len(values) >= MOST_VALUES:
                    return Found(tuple(values), complete=False)
                values.append(value)
        return Found(tuple(values)) if values else _NOTHING

    def shape(self) -> dict[str, str]:
        """The first members, each with its kind and size; their names are the client's words."""
        parsed = self._parse()
        if parsed is None:
            return {}
        first = list(parsed.items())[:MOST_MEMBERS]
        return {name[:_MOST_NAME]: _kind(value) for name, value in first}

    def _parse(self) -> dict[str, Any] | None:
        if not self._seen:
            self._seen = True
            self._parsed = _parsed(self._raw)
        return self._parsed


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
