"""Arguments repeated in headers: which schemas ask for it, and when the two agree."""

import base64
from typing import Any

import pytest
from mcp.shared.inbound import encode_header_value, find_invalid_x_mcp_header, x_mcp_header_map
from msgspec import Raw

from vsm.protocol import jsonrpc
from vsm.protocol.envelope import unwrap_header
from vsm.protocol.jsonrpc import DecodeError
from vsm.protocol.parameter_headers import HeaderRule, check, rules_of


def schema(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


REGION = schema(region={"type": "string", "x-mcp-header": "Region"})
NESTED = schema(a=schema(b={"type": "integer", "x-mcp-header": "Deep"}))
TWICE = schema(
    a={"type": "string", "x-mcp-header": "Same"}, b={"type": "string", "x-mcp-header": "same"}
)


@pytest.mark.parametrize(
    "wanted",
    [
        REGION,
        NESTED,
        TWICE,
        schema(),
        schema(a={"type": "number", "x-mcp-header": "N"}),
        schema(a={"type": "string", "x-mcp-header": "no token"}),
        schema(a={"type": "string", "x-mcp-header": 5}),
        schema(a={"type": ["string"], "x-mcp-header": "A"}),
        {"x-mcp-header": "Root", "type": "object"},
    ],
)
def test_a_schema_asks_for_the_headers_that_the_sdk_finds_in_it(wanted: dict[str, Any]) -> None:
    expected = {} if find_invalid_x_mcp_header(wanted) else x_mcp_header_map(wanted)
    found = {rule.path: rule.header for rule in rules_of(jsonrpc.raw_of(wanted))}
    assert found == {path: f"mcp-param-{token.lower()}" for path, token in expected.items()}


@pytest.mark.parametrize(
    ("wanted", "arguments", "header", "agrees"),
    [
        (REGION, {"region": "eu"}, "eu", True),
        (REGION, {"region": "eu"}, "us", False),
        (REGION, {"region": "eu"}, None, False),
        (REGION, {}, None, True),
        (REGION, {"region": None}, None, True),
        (REGION, {}, "eu", False),
        (REGION, {"region": "straße"}, encode_header_value("straße"), True),
        (REGION, {"region": "eu"}, "=?base64?!!?=", False),
        (REGION, {"region": "eu"}, f"=?base64?{base64.b64encode(b'eu').decode()}?=", True),
        (REGION, {"region": ["eu"]}, None, True),
        (REGION, {"region": ["eu"]}, "eu", False),
        (NESTED, {"a": {"b": 42}}, "42", True),
        (NESTED, {"a": {"b": 42}}, "42.0", True),
        (NESTED, {"a": {"b": 42}}, "43", False),
        (NESTED, {"a": {"b": True}}, "true", True),
        (NESTED, {"a": 5}, None, True),
    ],
)
def test_header_and_argument_agree_or_are_absent_together(
    wanted: dict[str, Any], arguments: dict[str, Any], header: str | None, agrees: bool
) -> None:
    rules = rules_of(jsonrpc.raw_of(wanted))
    params = {"arguments": jsonrpc.raw_of(arguments)}
    headers = {} if header is None else {rules[0].header: header}
    if agrees:
        check(rules, params, headers, unwrap_header)
    else:
        with pytest.raises(DecodeError, match="does not match the argument"):
            check(rules, params, headers, unwrap_header)


@pytest.mark.parametrize("body", [b"1" + b"0" * 5000, b"[" * 100_000 + b"]" * 100_000])
def test_arguments_that_cannot_be_read_are_refused(body: bytes) -> None:
    params = {"arguments": Raw(b'{"a":{"b":%b}}' % body)}
    with pytest.raises(DecodeError, match="out of range"):
        check(rules_of(jsonrpc.raw_of(NESTED)), params, {}, unwrap_header)


def test_rules_know_their_kind() -> None:
    assert rules_of(jsonrpc.raw_of(NESTED)) == (
        HeaderRule(("a", "b"), "mcp-param-deep", "integer"),
    )
