"""The HTTP headers in which a modern request repeats its own body, made from the body.

Sans-io; the other direction of `vsm.protocol.envelope` and `vsm.protocol.parameter_headers`,
which judge them. Runs in the worker of a remote server.
"""

import base64
import re
from collections.abc import Container
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from vsm.protocol import jsonrpc, parameter_headers
from vsm.protocol.envelope import NAMED_BY
from vsm.protocol.jsonrpc import Message, Object
from vsm.protocol.parameter_headers import HeaderRule, InvalidRuleError
from vsm.protocol.tables import META_VERSION

_PLAIN: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_WRAPPED: Final = re.compile(r"=\?base64\?.*\?=")
MOST_TOOLS: Final = 10_000


def wrap(value: str) -> str:
    """A value as a header may carry it."""
    if _PLAIN.fullmatch(value) and not _WRAPPED.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def modern_version(params: Object) -> str | None:
    """The version in a request's envelope; None of a request of the legacy era."""
    return jsonrpc.text(jsonrpc.nested(params, "_meta"), META_VERSION)


class Mirror:
    """Makes headers; remembers which tools want arguments repeated, from the lists that pass."""

    def __init__(self) -> None:
        self._rules: dict[str, tuple[HeaderRule, ...]] = {}

    def listed(self, result: Raw | UnsetType) -> dict[int, str]:
        """Take note of a page of tools.

        Returns:
            What a client has to leave out, since its schema breaks the rules for headers: the
            place in the page, and the tool's name and why.
        """
        try:
            page = msgspec.json.decode(b"{}" if result is UNSET else result, type=_Page)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        unfit = {}
        for place, tool in enumerate(page.tools):
            schema = None if tool.inputSchema is UNSET else tool.inputSchema
            try:
                rules = parameter_headers.valid_rules(schema)
            except InvalidRuleError as error:
                unfit[place] = f"{tool.name[:100]!r}: {error}"
                rules = ()
            if rules and len(self._rules) < MOST_TOOLS:
                self._rules[tool.name] = rules
            elif not rules:
                self._rules.pop(tool.name, None)
        return unfit

    def headers(self, message: Message, params: Object, version: str) -> dict[str, str]:
        """What goes with a request of the modern era."""
        method = str(message.method)
        found = {"mcp-protocol-version": wrap(version), "mcp-method": wrap(method)}
        key = NAMED_BY.get(method)
        name = None if key is None else jsonrpc.text(params, key)
        if name is not None:
            found["mcp-name"] = wrap(name)
        if method == "tools/call" and name in self._rules:
            found.update(self._of_arguments(self._rules[name], params))
        return found

    @staticmethod
    def _of_arguments(rules: tuple[HeaderRule, ...], params: Object) -> dict[str, str]:
        shown = parameter_headers.shown(rules, params)
        return {header: wrap(value) for header, value in shown.items()}


def without(result: Raw, places: Container[int]) -> bytes:
    """A page of tools, less those at these places; all else stays as it came."""
    page = jsonrpc.members(result)
    tools = msgspec.json.decode(page["tools"], type=list[Raw])
    kept = [tool for place, tool in enumerate(tools) if place not in places]
    return jsonrpc.encode({**page, "tools": kept})


class _Tool(msgspec.Struct):
    name: str
    inputSchema: Raw | UnsetType = UNSET  # noqa: N815 - the wire's name


class _Page(msgspec.Struct):
    tools: list[_Tool] = msgspec.field(default_factory=list)
