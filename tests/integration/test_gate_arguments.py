"""Arguments beyond their bounds, or that no schema names, never reach the server."""

import json
from typing import Any

import gateway_harness as harness
import uvloop
from gateway_harness import Harness
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from vsm.gateway.gate_arguments import is_deeper, names_of
from vsm.gateway.rule_arguments import Arguments, single_members

JSON = st.recursive(
    st.none() | st.booleans() | st.text("ab[]{}", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=12,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.integers(1, 6))
def test_depth_is_that_of_the_deepest(value: Any, most: int) -> None:
    assert is_deeper(json.dumps(value).encode(), most) is (depth(value) > most)


def test_what_is_nested_too_deeply_to_be_looked_at_is_too_deep() -> None:
    deep = b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    assert is_deeper(deep, 6)
    assert single_members(deep) is None
    assert not Arguments({"arguments": Raw(deep)}).find("a").complete


def test_only_a_plain_list_of_properties_is_understood() -> None:
    def names(**schema: Any) -> frozenset[str] | None:
        return names_of({key: Raw(json.dumps(value).encode()) for key, value in schema.items()})

    assert names(properties={"a": {}, "b": {}}) == frozenset("ab")
    assert names(properties={"a": {}}, additionalProperties=False) == frozenset("a")
    assert names(properties={"a": {}}, additionalProperties=True) is None
    assert names(properties={"a": {}}, additionalProperties={"type": "string"}) is None
    assert names(properties={"a": {}}, allOf=[{}]) is None
    assert names(type="object") is None


def test_calls_beyond_the_terms_are_refused_and_others_pass() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            argv = harness.echo_modern("strict")
            terms = {"most_argument_bytes": 200, "most_argument_depth": 3}
            await gateway.start("strict", argv, strict_arguments=True, **terms)
            await gateway.start("loose", argv)
            await gateway.ready()
            await _calls(gateway)

    uvloop.run(main())


async def _calls(gateway: Harness) -> None:
    fleet = gateway.gateway.fleet
    schema = Raw(b'{"type":"object","properties":{"text":{},"deep":{}}}')
    for name in ("strict", "loose"):
        for item in fleet.integrations[name].surface.lists["tools/list"]:
            item["inputSchema"] = schema
    client = await gateway.raw()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"text": "x", "sidenote": "the whole conversation"}, "does not name: sidenote"),
        ({"text": "x" * 300}, "bytes of arguments, at most 200"),
        ({"deep": {"a": {"b": {"c": 1}}}}, "nested deeper than 3"),
    ]
    for arguments, says in refused:
        answer = await client.call(1, "strict__echo", **arguments)
        assert says in answer["error"]["message"]
        assert "result" in await client.call(2, "loose__echo", **arguments)
    assert "result" in await client.call(3, "strict__echo", text="x", deep={"a": {"b": 1}})
    assert "result" in await client.call(4, "strict__echo")
