import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from mcp_types import ListToolsResult
from msgspec import Raw

from vsm.protocol import catalogue, jsonrpc
from vsm.protocol.catalogue import Surface, Template, merge, public_name

FIT = re.compile(r"[A-Za-z0-9_-]{1,64}")
names = st.text(min_size=1, max_size=100)
prefixes = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)


def items(*members: dict[str, Any]) -> list[jsonrpc.Object]:
    return [{k: jsonrpc.raw_of(v) for k, v in member.items()} for member in members]


def tools(prefix: str, *tool_names: str) -> Surface:
    listed = items(*({"name": n, "inputSchema": {"type": "object"}} for n in tool_names))
    return Surface(prefix, {"tools/list": listed})


@given(prefixes, names)
def test_a_public_name_is_always_fit_and_stable(prefix: str, name: str) -> None:
    public = public_name(prefix, name, prefix)
    assert FIT.fullmatch(public)
    assert public == public_name(prefix, name, prefix)


@given(prefixes, names, names)
def test_two_tools_of_one_integration_never_share_a_name(prefix: str, one: str, other: str) -> None:
    if one != other:
        assert public_name(prefix, one, prefix) != public_name(prefix, other, prefix)


@given(st.dictionaries(prefixes, st.lists(names, unique=True, max_size=5), max_size=4))
def test_every_listed_tool_leads_back_to_its_own(offered: dict[str, list[str]]) -> None:
    merged = merge({p: tools(p, *ns) for p, ns in offered.items()})
    page = json.loads(merged.legacy_page("tools/list"))
    ListToolsResult.model_validate(page)
    assert {tool["name"] for tool in page["tools"]} == set(merged.tools)
    for public, entry in merged.tools.items():
        assert entry.name in offered[entry.integration]
        assert public == public_name(entry.integration, entry.name, entry.integration)


def test_a_clash_of_bare_names_drops_all_claimants_and_says_so() -> None:
    merged = merge({"a": tools("", "read", "one"), "b": tools("", "read", "two")})
    assert set(merged.tools) == {"one", "two"}
    assert merged.notes == ("read: claimed by a, b, served by none; give them a prefix",)


def test_what_an_item_holds_beside_its_name_goes_through_untouched() -> None:
    odd = {"name": "x", "inputSchema": {"$ref": "#"}, "future": [1, {"a": None}], "_meta": {}}
    merged = merge({"a": Surface("a", {"tools/list": items(odd)})})
    (tool,) = json.loads(merged.modern_page("tools/list", 1000))["tools"]
    assert tool == {**odd, "name": "a__x"}


def test_a_modern_page_says_how_long_it_may_be_kept() -> None:
    page = json.loads(merge({}).modern_page("prompts/list", 250))
    expected = {"resultType": "complete", "ttlMs": 250, "cacheScope": "private"}
    assert page == {"prompts": [], **expected}


def resources(*uris: str) -> Surface:
    listed = items(*({"uri": uri, "name": uri} for uri in uris))
    return Surface("", {"resources/list": listed}, serves_resources=True)


def uris_of(merged: catalogue.Catalogue) -> list[str]:
    listed = json.loads(merged.legacy_page("resources/list"))["resources"]
    return [one["uri"] for one in listed]


def seen_by(merged: catalogue.Catalogue, *integrations: str) -> catalogue.Catalogue:
    return merged.restricted(lambda name: name in integrations, lambda _: True)


def test_a_contested_resource_is_served_by_none() -> None:
    merged = merge({"a": resources("x://1", "x://2"), "b": resources("x://2")})
    assert merged.resource_owner("x://1") == "a"
    assert merged.resource_owner("x://2") == ("a", "b")
    assert merged.resource_owner("x://3") == ()
    assert uris_of(merged) == ["x://1"]


def test_a_contested_resource_is_served_and_listed_where_one_claimant_is_seen() -> None:
    surfaces = {"a": resources("x://1", "x://2"), "b": resources("x://2"), "c": resources("x://2")}
    merged = merge(surfaces)
    for one, uris in (("a", ["x://1", "x://2"]), ("b", ["x://2"]), ("c", ["x://2"])):
        seen = seen_by(merged, one)
        assert seen.resource_owner("x://2") == one
        assert uris_of(seen) == uris
        assert not seen.contested
    both = seen_by(merged, "a", "c")
    assert both.resource_owner("x://2") == ("a", "c")
    assert uris_of(both) == ["x://1"]
    assert [set(who) for who in both.contested.values()] == [{"a", "c"}]
    nobody = seen_by(merged)
    assert (nobody.resource_owner("x://2"), uris_of(nobody)) == ((), [])


def test_a_template_itself_belongs_to_whoever_listed_it() -> None:
    def surface(pattern: str) -> Surface:
        listed = items({"uriTemplate": pattern, "name": "t"})
        return Surface("", {"resources/templates/list": listed}, serves_resources=True)

    merged = merge(
        {"a": surface("db://{x}"), "b": surface("db://{x}{y}"), "c": surface("db://{x}")}
    )
    assert merged.resource_owner("db://{x}{y}") == "b"
    assert merged.resource_owner("db://{x}") == ("a", "c")
    assert seen_by(merged, "b", "c").resource_owner("db://{x}") == "c"
    assert merged.resource_owner("db://rows") == ("a", "b", "c")


def test_the_most_specific_template_decides() -> None:
    def surface(pattern: str) -> Surface:
        listed = items({"uriTemplate": pattern, "name": "t"})
        return Surface("", {"resources/templates/list": listed}, serves_resources=True)

    merged = merge({"a": surface("db://{table}"), "b": surface("db://users/{id}")})
    assert merged.resource_owner("db://orders") == "a"
    assert merged.resource_owner("db://users/7") == "b"


@given(st.lists(st.text(max_size=4), min_size=1, max_size=5), st.lists(st.text(max_size=4)))
def test_a_template_matches_its_own_expansions(literals: list[str], expansions: list[str]) -> None:
    filled = [*expansions, *[""] * len(literals)]
    uri = "".join(a + b for a, b in zip(literals, filled, strict=False))
    uri = uri if len(literals) > 1 else literals[0]
    expanded = "".join(
        a + b for a, b in zip(literals, [*filled[: len(literals) - 1], ""], strict=True)
    )
    assert Template("a", tuple(literals)).matches(expanded)
    assert isinstance(Template("a", tuple(literals)).matches(uri), bool)


def test_a_page_that_is_no_list_of_objects_is_refused() -> None:
    for bad in (b"[]", b'{"tools":5}', b'{"tools":[1]}', b'{"tools":{}}'):
        try:
            catalogue.parse_page("tools/list", Raw(bad))
        except jsonrpc.DecodeError:
            continue
        raise AssertionError(bad)
