"""What goes between gateway, worker and remote server beyond MCP's messages."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.inbound import decode_header_value

from vsm.protocol import jsonrpc
from vsm.protocol.envelope import check_headers, unwrap_header
from vsm.protocol.frames import tagged, untagged
from vsm.protocol.mirror import Mirror, without, wrap
from vsm.protocol.tables import META_VERSION, MODERN_VERSION


@given(st.text().filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_a_wrapped_header_is_read_back_by_us_and_by_the_sdk(value: str) -> None:
    header = wrap(value)
    assert header.isascii()
    assert header.isprintable()
    assert unwrap_header(header) == value
    assert decode_header_value(header) == value


@given(st.dictionaries(st.text(), st.integers()), st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,31}\Z"))
def test_a_tag_comes_off_as_it_went_on(params: dict[str, int], client: str) -> None:
    frame = jsonrpc.request(1, "tools/call", jsonrpc.encode(params))
    sent = tagged(frame, client)
    assert json.loads(sent)["client"] == client
    assert untagged(sent) == (frame, client)


def test_a_frame_without_a_tag_is_nobodys() -> None:
    frame = jsonrpc.request(1, "x", b'{"client":"alice"}')
    assert untagged(frame) == (frame, "")


@pytest.mark.parametrize(
    ("method", "key"),
    [("tools/call", "name"), ("prompts/get", "name"), ("resources/read", "uri")],
)
def test_mirrored_headers_pass_the_check_of_a_server(method: str, key: str) -> None:
    params = {key: " ä name ", "_meta": {META_VERSION: MODERN_VERSION}}
    message = jsonrpc.decode(jsonrpc.request(1, method, jsonrpc.encode(params)))
    members = jsonrpc.members(message.params)
    headers = Mirror().headers(message, members, MODERN_VERSION)
    check_headers(method, members, MODERN_VERSION, headers)
    assert headers["mcp-name"].startswith("=?base64?")


def test_a_tool_that_no_longer_wants_headers_gets_none() -> None:
    mirror = Mirror()
    wanting = {"type": "string", "x-mcp-header": "Region"}
    for schema, expected in ((wanting, "eu"), ({"type": "string"}, None)):
        tool = {"name": "t", "inputSchema": {"type": "object", "properties": {"a": schema}}}
        mirror.listed(msgspec.Raw(json.dumps({"tools": [tool]}).encode()))
        call = {"name": "t", "arguments": {"a": "eu"}}
        message = jsonrpc.decode(jsonrpc.request(1, "tools/call", jsonrpc.encode(call)))
        found = mirror.headers(message, jsonrpc.members(message.params), MODERN_VERSION)
        assert found.get("mcp-param-region") == expected


BROKEN = {
    "empty": {"a": {"type": "string", "x-mcp-header": ""}},
    "object": {"a": {"type": "object", "x-mcp-header": "A"}},
    "number": {"a": {"type": "number", "x-mcp-header": "A"}},
    "space": {"a": {"type": "string", "x-mcp-header": "A B"}},
    "twice": {
        "a": {"type": "string", "x-mcp-header": "Same"},
        "b": {"type": "string", "x-mcp-header": "SAME"},
    },
}


def test_tools_whose_headers_are_against_the_rules_are_left_out_and_no_other() -> None:
    sound = {"a": {"type": "string", "x-mcp-header": "Region"}}
    tools = [
        {"name": name, "inputSchema": {"type": "object", "properties": properties}, "more": [1.50]}
        for name, properties in {**BROKEN, "sound": sound, "plain": {}}.items()
    ]
    page = msgspec.Raw(json.dumps({"tools": tools, "nextCursor": "n", "x": {"y": 1}}).encode())
    unfit = Mirror().listed(page)
    assert [tools[place]["name"] for place in unfit] == list(BROKEN)
    kept = json.loads(without(page, unfit))
    assert kept == {"tools": tools[len(BROKEN) :], "nextCursor": "n", "x": {"y": 1}}


def test_a_list_that_is_none_changes_nothing() -> None:
    for result in (msgspec.UNSET, msgspec.Raw(b"[]"), msgspec.Raw(b'{"tools":[1]}')):
        Mirror().listed(result)
