"""What a tool may be called with: a bound on size and depth, and nothing that its schema lacks.

Runs in S1's event loop, for calls of an integration that has such terms; others have no gate.
Parameters that no schema names are how a tool that was talked into something gets more than it
should: they never reach the server.
"""

from typing import Final

import msgspec
from msgspec import Raw

from vsm.gateway.call import Call
from vsm.gateway.finder import RequestError
from vsm.gateway.integration import Integration
from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import Object

MAX_TOLD: Final = 5
_anything: Final = msgspec.json.Decoder()


def arguments_gate(integration: Integration) -> "ArgumentsGate | None":
    """The gate of an integration that has terms."""
    terms = integration.settings
    if terms.most_argument_bytes or terms.most_argument_depth or terms.strict_arguments:
        return ArgumentsGate(
            integration,
            most_bytes=terms.most_argument_bytes,
            most_depth=terms.most_argument_depth,
            strict=terms.strict_arguments,
        )
    return None


class ArgumentsGate:
    """The terms of one integration.

    Args:
        most_bytes: of the arguments as JSON; 0 is no bound but that of a message.
        most_depth: of nesting; 0 is no bound.
        strict: whether a parameter that the tool's schema does not name is refused.
    """

    def __init__(
        self, integration: Integration, *, most_bytes: int, most_depth: int, strict: bool
    ) -> None:
        self._integration = integration
        self._most_bytes = most_bytes
        self._most_depth = most_depth
        self._strict = strict
        self._tools: list[Object] | None = None
        self._known: dict[str, frozenset[str] | None] = {}

    def admit(self, call: Call, _go: object, /) -> bool:
        """Refuse what goes beyond the terms.

        Raises:
            RequestError: it does.
        """
        if call.method != "tools/call":
            return True
        raw = call.params.get("arguments")
        if raw is None:
            return True
        where = f"{call.integration}: {call.label}"
        size = len(memoryview(raw))
        if self._most_bytes and size > self._most_bytes:
            raise _refusal(f"{where}: {size} bytes of arguments, at most {self._most_bytes}")
        if self._most_depth and is_deeper(bytes(raw), self._most_depth):
            raise _refusal(f"{where}: arguments nested deeper than {self._most_depth}")
        if self._strict:
            self._check_names(call, raw, where)
        return True

    def _check_names(self, call: Call, raw: Raw, where: str) -> None:
        known = self._names_of(call.label)
        if known is None:
            return
        unknown = sorted(jsonrpc.members(raw).keys() - known)
        if unknown:
            named = ", ".join(name[:64] for name in unknown[:MAX_TOLD])
            raise _refusal(f"{where}: parameters that its schema does not name: {named}")

    def _names_of(self, tool: str) -> frozenset[str] | None:
        """The parameters that a tool's schema names; None where it takes any."""
        tools = self._integration.surface.lists.get("tools/list", [])
        if tools is not self._tools:
            self._tools, self._known = tools, {}
        if tool not in self._known:
            found = next((item for item in tools if jsonrpc.text(item, "name") == tool), {})
            self._known[tool] = names_of(jsonrpc.nested(found, "inputSchema"))
        return self._known[tool]


def names_of(schema: Object) -> frozenset[str] | None:
    """The parameters that a JSON schema names; None where it says that others are welcome.

    Only a plain list of properties is understood. A schema that builds on others (`allOf`, `$ref`,
    patterns) is the server's own to judge.
    """
    built = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "if"}
    if "properties" not in schema or schema.keys() & built:
        return None
    more = schema.get("additionalProperties")
    if more is not None and bytes(more) != b"false":
        return None
    return frozenset(jsonrpc.nested(schema, "properties"))


def is_deeper(raw: bytes, most: int) -> bool:
    """Whether valid JSON is nested deeper than `most`."""
    if raw.count(b"{") + raw.count(b"[") <= most:
        return False
    try:
        level = [_anything.decode(raw)]
    except RecursionError:  # a message may be nested a little deeper than can be looked at here
        return True
    for _ in range(most):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)


def _refusal(text: str) -> RequestError:
    return RequestError(jsonrpc.INVALID_PARAMS, text)
