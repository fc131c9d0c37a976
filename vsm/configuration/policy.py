"""[policy] of vsm.toml: rules in the operator's words, compiled to those of vsm.core.policy_rules.

Runs in the command line and the supervisor.
"""

import json
import re
from typing import Annotated, Any, Final, Literal

import msgspec

from vsm.configuration.units import parse_bytes
from vsm.core.goals import DEFAULT_RATIO
from vsm.core.policy_rules import DAY_MINUTES, MOST_CALLS, MOST_RULES, RuleError, compile_rules
from vsm.errors import ConfigurationError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MOST_BYTES: Final = 48 * 1024  # all rules together, as they travel: a message holds 128 KiB
MOST_ARGUMENTS: Final = 8
MOST_GOALS: Final = 32
_HOURS: Final = re.compile(r"(\d{2}):(\d{2})-(\d{2}):(\d{2})", re.ASCII)

Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Word = Annotated[str, msgspec.Meta(max_length=64)]
Action = Literal["allow", "deny", "ask"]


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most so many calls in any period of that length."""

    calls: Annotated[int, msgspec.Meta(ge=0, le=MOST_CALLS)]
    period_s: Annotated[float, msgspec.Meta(gt=0, le=2_678_400)]


class RuleDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[policy.rules]]. What it does not name does not matter to it."""

    name: Word = ""
    action: Action
    client: Pattern = "*"
    client_name: Pattern = "*"
    integration: Pattern = "*"
    tool: Pattern | None = None
    prompt: Pattern | None = None
    resource: Pattern | None = None
    argument: dict[str, str] = {}
    larger_than: str | int | None = None
    hours: str | None = None
    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = ()
    budget: Budget | None = None
    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""


class GoalDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One [[policy.goals]]: a figure that vsm measures, and the least that it should be.

    Args:
        measure: the requisite ratio of the whole, or the share that is answered well.
        integration: of whose calls; "" is all demand.
        at_least: what the figure should be.
    """

    measure: Literal["requisite_ratio", "answered_well"] = "answered_well"
    integration: Annotated[str, msgspec.Meta(max_length=32)] = ""
    at_least: Annotated[float, msgspec.Meta(ge=0.01, le=0.999)]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """[policy], as written.

    Args:
        purpose: what this vsm is for, in the operator's words.
        goals: what it is held to.
        default: what happens to a call that no rule matches.
        ask_timeout_s: what nobody decided by then is denied.
        show_arguments: whoever is asked sees the arguments, not only their digest.
        denials_per_minute: more than these hurt.
        attempts_per_minute: more than these system calls and connections that one integration
            tried and its sandbox refused hurt.
        weight_of_future: of S4's bits against S3's, where the two are in conflict.
        margin_bits: by so much a proposal must be better than one that stands against it.
        standing_s: so long an approved proposal stands.
    """

    purpose: Annotated[str, msgspec.Meta(max_length=300)] = ""
    goals: tuple[GoalDocument, ...] = ()
    default: Action = "allow"
    ask_timeout_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    show_arguments: bool = False
    denials_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 30
    attempts_per_minute: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 600
    weight_of_future: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5
    margin_bits: Annotated[float, msgspec.Meta(ge=0, le=64)] = 0.05
    standing_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0
    rules: tuple[RuleDocument, ...] = ()


def compile_policy(policy: Policy, where: str) -> dict[str, Any]:
    """The table that S5 starts with.

    Raises:
        ConfigurationError: a rule contradicts itself; names it.
    """
    if len(policy.rules) > MOST_RULES:
        raise ConfigurationError(f"{where}.rules", f"expected at most {MOST_RULES}")
    numbered = enumerate(policy.rules, 1)
    table = {name: getattr(policy, name) for name in policy.__struct_fields__ if name != "rules"}
    table["goals"] = _goals(policy.goals, f"{where}.goals")
    table["rules"] = [_rule(rule, number, f"{where}.rules.{number}") for number, rule in numbered]
    names = [row["name"] for row in table["rules"]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{where}.rules", f"two are called {twice[0]!r}", "Rename one.")
    if len(json.dumps(table)) > MOST_BYTES:
        raise ConfigurationError(f"{where}.rules", f"more than {MOST_BYTES} bytes in all")
    try:
        compile_rules(table)
    except RuleError as error:
        raise ConfigurationError(f"{where}.rules", str(error)) from error
    return table


def _goals(goals: tuple[GoalDocument, ...], where: str) -> list[dict[str, Any]]:
    """As S4 and S5 get them; the requisite ratio has a goal where none is written."""
    if len(goals) > MOST_GOALS:
        raise ConfigurationError(where, f"{len(goals)} goals, at most {MOST_GOALS} are taken")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, goal in enumerate(goals, 1):
        if goal.measure == "requisite_ratio" and goal.integration:
            remedy = 'Write measure = "answered_well" for one integration.'
            raise ConfigurationError(f"{where}.{number}", "the ratio is of the whole", remedy)
        key = goal.measure, goal.integration
        if key in found:
            raise ConfigurationError(f"{where}.{number}", "a second goal for the same", "Drop one.")
        found[key] = msgspec.to_builtins(goal)
    ratio = GoalDocument(measure="requisite_ratio", at_least=DEFAULT_RATIO)
    return list(({("requisite_ratio", ""): msgspec.to_builtins(ratio)} | found).values())


def _rule(rule: RuleDocument, number: int, where: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": rule.name or f"rule {number}",
        "action": rule.action,
        "client": rule.client,
        "calls_itself": rule.client_name,
        "integration": rule.integration,
        "reason": rule.reason,
        "argument": _arguments(rule, where),
        "days": sorted(DAYS.index(day) for day in set(rule.days)),
    }
    asked = {kind: getattr(rule, kind) for kind in ("tool", "prompt", "resource")}
    named = {kind: what for kind, what in asked.items() if what is not None}
    if len(named) > 1:
        remedy = "Write one rule for each."
        raise ConfigurationError(where, f"names {' and '.join(named)}", remedy)
    for kind, what in named.items():
        row |= {"kind": kind, "what": what}
    if rule.larger_than is not None:
        row["larger_than"] = _size(rule.larger_than, f"{where}.larger_than")
    if rule.hours is not None:
        row["between"] = _hours(rule.hours, f"{where}.hours")
    if rule.budget is not None:
        if rule.action == "deny":
            what = "a rule that denies has no budget"
            raise ConfigurationError(f"{where}.budget", what, 'Write action = "allow".')
        row |= {"calls": rule.budget.calls, "period_s": rule.budget.period_s}
    return {key: value for key, value in row.items() if value not in ("*", "", [])}


def _arguments(rule: RuleDocument, where: str) -> list[list[str]]:
    if len(rule.argument) > MOST_ARGUMENTS:
        raise ConfigurationError(f"{where}.argument", f"expected at most {MOST_ARGUMENTS}")
    for path in rule.argument:
        if not path or any(not part for part in path.split(".")):
            remedy = 'Write path = "/etc/*", or "options.path" = … for a member of a member.'
            raise ConfigurationError(f"{where}.argument", f"{path[:60]!r} names none", remedy)
    return [[path, pattern] for path, pattern in sorted(rule.argument.items())]


def _size(value: str | int, where: str) -> int:
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise ConfigurationError(where, str(error), 'Write "64K".') from error


def _hours(text: str, where: str) -> list[int]:
    found = _HOURS.fullmatch(text)
    remedy = 'Write "09:00-17:00", or "22:00-06:00" for over midnight.'
    if found is None:
        raise ConfigurationError(where, f"expected hours, found {text[:40]!r}", remedy)
    begin, end = (int(found[i]) * 60 + int(found[i + 1]) for i in (1, 3))
    in_the_hour = all(int(found[i]) < 60 for i in (2, 4))  # noqa: PLR2004 - minutes
    if not in_the_hour or begin >= DAY_MINUTES or end > DAY_MINUTES or begin == end:
        raise ConfigurationError(where, f"{text!r} is no part of a day", remedy)
    return [begin, end]
