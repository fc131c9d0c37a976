"""Rules: the first that matches decides, the same way every time, and never too widely."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from vsm.configuration.config import load_config
from vsm.configuration.policy import compile_policy
from vsm.core.policy_glob import matches, spellings
from vsm.core.policy_rules import (
    Asked,
    Budgets,
    Circumstances,
    Decision,
    Found,
    Rule,
    RuleError,
    Rules,
    applies,
    candidates,
    compile_rules,
    concerns,
    decide,
    is_between,
    to_body,
)
from vsm.errors import ConfigurationError
from vsm.gateway.rule_arguments import Arguments, _found, _parsed

WORDS = st.sampled_from(["read", "write", "it", "other", "unix:0", "http"])
PATTERNS = st.sampled_from(["*", "read", "w*", "*t*", "unix:*", "it", "nothing"])
VALUES = st.sampled_from(["/tmp/a", "/etc/x", "/tmp/../etc/x", "b"])
RULES = st.lists(
    st.builds(
        Rule,
        name=st.just(""),
        action=st.sampled_from(["allow", "deny", "ask"]),
        client=PATTERNS,
        calls_itself=PATTERNS,
        integration=PATTERNS,
        kind=st.sampled_from([None, "tool", "resource"]),
        what=PATTERNS,
        argument=st.sampled_from([(), (("path", "/tmp/*"),), (("path", "/etc/*"),)]),
        larger_than=st.sampled_from([None, 0, 10]),
        between=st.sampled_from([None, (0, 720), (720, 60)]),
        days=st.sampled_from([(), (0,), (1, 2)]),
        calls=st.sampled_from([None, 0, 2]),
        period_s=st.just(10.0),
    ),
    max_size=6,
).map(lambda rules: compile_rules({"rules": [named(r, i) for i, r in enumerate(rules)]}))


def named(rule: Rule, number: int) -> dict[str, Any]:
    row = to_body(Rules((rule,)))["rules"][0]
    return {**row, "name": f"rule {number}"}


class Passing(NamedTuple):
    """Arguments with these values under any path."""

    size_bytes: int
    values: tuple[str, ...]

    def find(self, path: str, /) -> Found:
        del path
        return Found(self.values)


ASKED = st.builds(Asked, WORDS, WORDS, WORDS, st.sampled_from(["tool", "resource", "other"]), WORDS)
CALLS = st.builds(
    lambda size, minute, day, values: Circumstances(Passing(size, values), minute, day),
    st.integers(0, 20),
    st.integers(0, 1439),
    st.integers(0, 6),
    st.lists(VALUES, max_size=2).map(tuple),
)


@given(RULES, ASKED, CALLS)
def test_the_first_rule_that_matches_decides_and_no_other_matters(
    rules: Rules, asked: Asked, call: Circumstances
) -> None:
    found = decide(candidates(rules, asked), "deny", call, Budgets(), 0.0)
    first = next((r for r in rules.rules if concerns(r, asked) and applies(r, call)), None)
    assert found.rule == first
    if first is None:
        assert found == Decision("deny", None, "no rule matches")
    else:
        assert found.exhausted == (first.calls == 0)
        assert found.action == ("deny" if first.calls == 0 else first.action)
    again = decide(candidates(rules, asked), "deny", call, Budgets(), 0.0)
    assert again == found, "the same input, the same decision"
    if first is not None:
        shorter = compile_rules(to_body(rules) | {"rules": to_body(Rules((first,)))["rules"]})
        assert decide(candidates(shorter, asked), "ask", call, Budgets(), 0.0) == found


@given(RULES)
def test_rules_travel_unchanged_and_have_one_digest(rules: Rules) -> None:
    there = compile_rules(json.loads(json.dumps(to_body(rules))))
    assert there == rules
    assert there.digest == rules.digest
    assert [r.digest for r in there.rules] == [r.digest for r in rules.rules]


@given(RULES, ASKED, CALLS)
def test_a_gate_is_left_out_only_where_nothing_can_be_kept(
    rules: Rules, asked: Asked, call: Circumstances
) -> None:
    if not rules.concern(asked.integration):
        found = decide(candidates(rules, asked), rules.default, call, Budgets(), 0.0)
        assert found.action == "allow"


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(0, 5), st.floats(0.1, 20))
def test_a_budget_lets_no_more_pass_in_any_period(
    steps: list[float], calls: int, period_s: float
) -> None:
    rule = Rule("r", "allow", calls=calls, period_s=period_s, digest="d")
    budgets, now_s = Budgets(), 0.0
    passed: list[float] = []
    for step in steps:
        now_s += step
        due = sum(1 for at_s in passed if at_s > now_s - period_s)
        taken = budgets.take(rule, now_s)
        assert taken == (due < calls), "and no fewer"
        if taken:
            passed.append(now_s)
    assert budgets.spent([rule], now_s).get("d", 0) == sum(t > now_s - period_s for t in passed)
    successor = Budgets()
    successor.restore(budgets.spent([rule], now_s), now_s)
    left = calls - sum(t > now_s - period_s for t in passed)
    assert sum(successor.take(rule, now_s) for _ in range(calls + 1)) == left
    budgets.keep([])
    assert budgets.take(rule, now_s) == (calls > 0)


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_a_pattern_matches_like_its_regular_expression(pattern: str, text: str) -> None:
    import re

    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None
    assert matches(pattern, text) == expected


def test_a_pattern_takes_time_linear_in_the_text() -> None:
    assert not matches("*a" * 50 + "*b", "a" * 1_000_000)


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("/tmp/../etc/passwd", "/etc/passwd"),
        ("//etc//passwd", "/etc/passwd"),
        ("/tmp/%2e%2e/etc/passwd", "/etc/passwd"),
        ("/tmp/%252e%252e/etc/passwd", "/etc/passwd"),
        ("\\etc\\passwd", "/etc/passwd"),
        ("file:///tmp/../etc/passwd", "file:///etc/passwd"),
        ("/../../etc/./passwd", "/etc/passwd"),
    ],
)
def test_a_path_is_no_way_around_a_rule(written: str, means: str) -> None:
    assert means in spellings(written)
    folder = means.removesuffix("passwd") + "*"
    tmp = "file:///tmp/*" if means.startswith("file") else "/tmp/*"
    call = Circumstances(Passing(0, (written,)), 0, 0)
    assert applies(Rule("", "deny", argument=(("path", folder),)), call)
    assert applies(Rule("", "ask", argument=(("path", folder),)), call)
    assert not applies(Rule("", "allow", argument=(("path", tmp),)), call)


def arguments(text: str) -> Arguments:
    return Arguments({"arguments": Raw(text.encode())})


@pytest.mark.parametrize(
    ("text", "path", "found"),
    [
        ('{"path": "/x"}', "path", ("/x",)),
        ('{"a": {"b": "y"}}', "a.b", ("y",)),
        ('{"a.b": "literal", "a": [{"b": 1.50}]}', "a.b", ("literal", "1.50")),
        ('{"paths": ["/a", {"deep": "/b"}, true]}', "paths", ("/a", "/b", "true")),
        ('{"x": "1", "y": null}', "*", ("1", "null")),
        ('{"x": 1}', "y", ()),
    ],
)
def test_an_argument_is_found_wherever_it_is(text: str, path: str, found: tuple[str]) -> None:
    said = arguments(text).find(path)
    assert said.complete
    assert sorted(said.values) == sorted(found)


@pytest.mark.parametrize(
    "text",
    ['{"path": "/tmp/a", "path": "/etc/x"}', "[1]", "[" * 9000 + "]" * 9000,
     '{"path": "' + "x" * 300_000 + '"}', '{"a": ' + "9" * 5000 + ', "path": "/tmp/a", "a": 1}'],
    ids=["twice", "list", "deep", "large", "number"],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_denied_and_never_allowed(text: str) -> None:
    call = Circumstances(arguments(text), 0, 0)
    assert applies(Rule("", "deny", argument=(("path", "/etc/*"),)), call)
    assert not applies(Rule("", "allow", argument=(("path", "*"),)), call)


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c), max_leaves=20))  # fmt: skip # noqa: E501 - a strategy
def test_any_arguments_can_be_looked_at(value: Any) -> None:
    said = arguments(json.dumps({"x": value}))
    assert said.find("x").complete
    assert len(said.shape()["x"]) < 30


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(1, 1440))
def test_hours_and_the_other_hours_make_a_day(minute: int, begin: int, end: int) -> None:
    inside = is_between(minute, begin, end)
    if begin != end:
        assert inside != is_between(minute, end % 1440, begin) or end == 1440 or begin == 0


@pytest.mark.parametrize(
    "table",
    [{"rules": {}}, {"rules": [{"name": "x"}]}, {"rules": [{"name": "x", "action": "maybe"}]},
     {"rules": [{"name": "x", "action": "deny", "kind": "file"}]}, {"default": "perhaps"},
     {"rules": [{"name": 1, "action": "deny"}]}, {"rules": [{"action": "deny", "y": 1}]},
     {"rules": [{"name": "x", "action": "deny", "between": [1]}]}, {"rules": [3]},
     {"rules": [{"name": "x", "action": "deny"}] * 300}],
)  # fmt: skip
def test_what_is_no_set_of_rules_is_refused_as_a_whole(table: dict[str, Any]) -> None:
    with pytest.raises(RuleError):
        compile_rules(table)


def configured(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "vsm.toml"
    path.write_text(text, encoding="utf-8")
    return compile_policy(load_config(path).policy, "policy")


def test_rules_are_read_from_the_configuration(tmp_path: Path) -> None:
    text = """
[policy]
default = "deny"
[[policy.rules]]
name = "no-etc"
action = "deny"
client = "unix:*"
client_name = "claude*"
integration = "files"
tool = "read_*"
argument = { path = "/etc/*", "options.deep" = "*" }
larger_than = "1K"
hours = "22:00-06:30"
days = ["sat", "mon"]
reason = "secrets"
[[policy.rules]]
action = "allow"
resource = "file:///data/*"
budget = { calls = 3, period_s = 60 }
"""
    first, second = compile_rules(configured(tmp_path, text)).rules
    assert first.name == "no-etc"
    assert (first.kind, first.what, first.between) == ("tool", "read_*", (1320, 390))
    assert (first.larger_than, first.days) == (1024, (0, 5))
    assert first.argument == (("options.deep", "*"), ("path", "/etc/*"))
    assert (second.name, second.kind, second.calls) == ("rule 2", "resource", 3)
    assert not second.is_settled


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ('action = "allow"\ntool = "x"\nprompt = "y"', "names tool and prompt"),
        ('action = "deny"\nbudget = { calls = 1, period_s = 1 }', "has no budget"),
        ('action = "deny"\nhours = "25:00-26:00"', "is no part of a day"),
        ('action = "deny"\nhours = "nine to five"', "expected hours"),
        ('action = "deny"\nlarger_than = "big"', "expected a size"),
        ('action = "deny"\ntols = "x"', "tols"),
        ('action = "deny"\nname = "a"\n[[policy.rules]]\naction = "deny"\nname = "a"', "two are"),
        ('action = "deny"\nargument = { "a..b" = "*" }', "names none"),
        ('tool = "x"', "action"),
    ],
)
def test_a_rule_that_contradicts_itself_is_named(tmp_path: Path, rule: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        configured(tmp_path, f"[[policy.rules]]\n{rule}\n")
    assert "policy.rules" in str(caught.value)


# ---- quick, and no less strict -------------------------------------------------------------

NAMES = st.sampled_from(["path", "a", "a.b", "b", "é", 'x":', ""])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(["http://a:1/b", '"a":', "a:b", "\\u0061"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
MEMBERS = st.lists(st.tuples(NAMES, JSON_VALUES), max_size=4)
PATHS = st.sampled_from(["path", "a", "a.b", "a.b.path", "b", "é", "*", "", "missing", 'x":'])
STYLES = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " :\t")])


def written(members: list[tuple[str, Any]], style: tuple[str, str], *, escaped: bool) -> str:
    """An object with these members, twins included."""
    comma, colon = style
    found = []
    for name, value in members:
        key = json.dumps(name)
        if escaped and name:
            key = '"' + "".join(f"\\u{ord(one):04x}" for one in name) + '"'
        found.append(f"{key}{colon}{json.dumps(value, separators=style, ensure_ascii=escaped)}")
    return "{" + comma.join(found) + "}"


def whole(text: str, path: str) -> Found:
    """What a look at all of it finds."""
    return _found(_parsed(Raw(text.encode())), path)


@given(MEMBERS, PATHS, STYLES, st.booleans())
def test_a_quick_look_finds_what_a_look_at_all_of_it_finds(
    members: list[tuple[str, Any]], path: str, style: tuple[str, str], escaped: bool
) -> None:
    text = written(members, style, escaped=escaped)
    quick, slow = arguments(text).find(path), whole(text, path)
    names = [name for name, _ in members]
    if len(names) == len(set(names)):
        assert (sorted(quick.values), quick.complete) == (sorted(slow.values), slow.complete)
    else:
        assert not quick.complete, "a twin"
        assert not slow.complete


@given(MEMBERS.filter(bool), st.tuples(st.integers(0, 3), JSON_VALUES), PATHS, STYLES)
def test_no_twin_is_ever_overlooked(
    members: list[tuple[str, Any]], twin: tuple[int, Any], path: str, style: tuple[str, str]
) -> None:
    which, value = twin
    name, _ = members[which % len(members)]
    for escaped in (True, False):
        first = written(members, style, escaped=False)
        second = written([(name, value)], style, escaped=escaped)
        text = f"{first[:-1]}{style[0]}{second[1:]}"
        assert not arguments(text).find(path).complete


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"path" :"/tmp/x","path":"/etc/x"}',  # a colon that no count of names sees
        '{"path":"/tmp/x","path"\n:"/etc/x","a":"\\":"}',
        '{"path":"/tmp/x","p\\u0061th":"/etc/x"}',
        '{ "path":"","path":"/etc/x"}',
    ],
)
def test_a_twin_is_noticed_however_it_is_written(text: str) -> None:
    assert not arguments(text).find("path").complete
    assert not arguments(text).find("*").complete


@pytest.mark.parametrize("inner", ['{"b":"/tmp","b":"/etc/x"}', '[{"b":"/tmp","b":"/etc/x"}]'])
def test_a_twin_on_the_way_of_a_path_is_noticed(inner: str) -> None:
    text = f'{{"a":{inner},"c":"d"}}'
    assert not arguments(text).find("a.b").complete
    assert not arguments(text).find("a").complete
    assert not arguments(text).find("*").complete
    assert arguments(text).find("c") == Found(("d",)), "nothing that leads there has a twin"


@pytest.mark.parametrize(
    "raw",
    [b'{"path":"/etc/\xff"}', b'{"pa\xffth":"/etc/x"}', b'{"path":"/tmp/a","x":"\xff"}'],
)
def test_what_is_no_text_is_not_looked_at(raw: bytes) -> None:
    assert not Arguments({"arguments": Raw(raw)}).find("path").complete


@pytest.mark.parametrize("text", ['"\\ud800"', '["\\ud800"]'])
def test_half_a_surrogate_pair_is_a_text_all_the_same(text: str) -> None:
    assert arguments(f'{{"path":{text}}}').find("path") == Found(("\ud800",))
