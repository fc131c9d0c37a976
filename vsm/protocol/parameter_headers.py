"""Arguments that a tool wants repeated in HTTP headers (`x-mcp-header` in its input schema).

Sans-io. A header and its argument are there together and agree, or absent together; whoever
routes by the header can then rely on it. A schema that breaks the rules for these headers asks
for none, as clients are told to leave such tools out.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import DecodeError, Object

KEY: Final = "x-mcp-header"
PREFIX: Final = "mcp-param-"
MAX_DEPTH: Final = 16
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
_WHOLE_NUMBER = re.compile(r"(-?\d{1,40})(?:\.0*)?")
_TYPES: Final = frozenset({"string", "integer", "boolean"})


@dataclass(frozen=True)
class HeaderRule:
    """One argument and its header: `path` leads to the argument, `header` is in lower case."""

    path: tuple[str, ...]
    header: str
    kind: str


class InvalidRuleError(Exception):
    """A schema breaks the rules for these headers; the text says how."""


def rules_of(schema: Raw | None) -> tuple[HeaderRule, ...]:
    """The rules in a tool's input schema; none where any of them is invalid."""
    try:
        return valid_rules(schema)
    except InvalidRuleError:
        return ()


def valid_rules(schema: Raw | None) -> tuple[HeaderRule, ...]:
    """The rules in a tool's input schema.

    Raises:
        InvalidRuleError: one of them is invalid.
    """
    if schema is None or KEY.encode() not in memoryview(schema).tobytes():
        return ()
    try:
        rules = tuple(_found(msgspec.json.decode(schema), (), 0))
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRuleError("the schema cannot be read") from error
    if len({rule.header for rule in rules}) < len(rules):
        raise InvalidRuleError(f"two arguments have the same {KEY}")
    return rules


def _found(schema: object, path: tuple[str, ...], depth: int) -> Iterator[HeaderRule]:
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return
    if KEY in schema:
        yield _rule(schema, path)
    properties = schema.get("properties")
    if isinstance(properties, dict):
        for name, inner in properties.items():
            yield from _found(inner, (*path, name), depth + 1)


def _rule(schema: dict[str, Any], path: tuple[str, ...]) -> HeaderRule:
    token, kind = schema[KEY], schema.get("type")
    fits = isinstance(token, str) and _TOKEN.fullmatch(token) is not None
    if not path or not fits or not isinstance(kind, str) or kind not in _TYPES:
        raise InvalidRuleError(
            f"{KEY} of {'.'.join(path)[:200]!r} is no name, or of no plain value"
        )
    return HeaderRule(path, PREFIX + str(token).lower(), kind)


def check(
    rules: tuple[HeaderRule, ...],
    params: Object,
    headers: Mapping[str, str],
    unwrap: Callable[[str], str | None],
) -> None:
    """Judge a tools/call by its tool's rules; `unwrap` undoes a header value's wrapping.

    Raises:
        DecodeError: a header and its argument disagree.
    """
    try:
        arguments = msgspec.json.decode(params.get("arguments", b"null"))
    except (RecursionError, msgspec.DecodeError):
        text = "the arguments are nested too deeply, or hold a number out of range"
        raise DecodeError(jsonrpc.INVALID_PARAMS, text) from None
    for rule in rules:
        sent, value = headers.get(rule.header), _value_at(arguments, rule.path)
        shown = _shown(value)
        if sent is None and shown is None:
            continue
        decoded = None if sent is None else unwrap(sent)
        if decoded is None or shown is None or not _agree(rule.kind, shown, decoded):
            where = ".".join(rule.path)[:200]
            text = f"the header {rule.header} does not match the argument {where} of the body"
            raise DecodeError(jsonrpc.HEADER_MISMATCH, text)


def shown(rules: tuple[HeaderRule, ...], params: Object) -> dict[str, str]:
    """The headers that a call has to carry, by its tool's rules; none where there is no value."""
    try:
        arguments = msgspec.json.decode(params.get("arguments", b"null"))
    except (RecursionError, msgspec.DecodeError):
        return {}
    values = ((rule.header, _shown(_value_at(arguments, rule.path))) for rule in rules)
    return {header: value for header, value in values if value is not None}


def _value_at(arguments: object, path: tuple[str, ...]) -> object:
    for name in path:
        arguments = arguments.get(name) if isinstance(arguments, dict) else None
    return arguments


def _shown(value: object) -> str | None:
    """The text of a value in a header; None where it has none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) else None


def _agree(kind: str, shown: str, sent: str) -> bool:
    if kind == "integer":
        mine, theirs = _WHOLE_NUMBER.fullmatch(shown), _WHOLE_NUMBER.fullmatch(sent)
        if mine and theirs:
            return int(mine.group(1)) == int(theirs.group(1))
    return shown == sent
