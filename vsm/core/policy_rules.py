"""The operator's rules: who may ask what of whom, decided the same way every time.

Pure: `now` and the time of day are arguments. The first rule that matches decides; where none
does, the default. What a rule says of the asker and the asked is settled once for each pair
(`candidates`); what it says of arguments, time and budget is settled for each call (`decide`).

A rule that allows is read narrowly and a rule that denies or asks is read widely: of several
values or spellings, all must fit to allow, and one is enough to deny.
"""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias, get_args

from vsm.core.policy_glob import ANY, matcher, matches, spellings

Action: TypeAlias = Literal["allow", "deny", "ask"]
Kind: TypeAlias = Literal["tool", "prompt", "resource", "other"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
ACTIONS: Final[tuple[str, ...]] = get_args(Action)
MOST_RULES: Final = 256
MOST_CALLS: Final = 100_000
DAY_MINUTES: Final = 24 * 60
_DIGEST_CHARS: Final = 32


class RuleError(ValueError):
    """Rules that cannot be read: they come from a compiler, so the whole is refused."""


class Asked(NamedTuple):
    """Who asks what of whom.

    Args:
        client: by the transport's word, such as "unix:1000" or "http".
        calls_itself: by the client's own word, which nothing proves.
        kind, name: a tool, prompt or resource, as its server calls it.
    """

    client: str
    calls_itself: str
    integration: str
    kind: str
    name: str


class Found(NamedTuple):
    """The values of one argument; `complete` is False where there are too many to look at."""

    values: tuple[str, ...]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. What it does not name does not matter to it.

    Args:
        kind, what: a tool, prompt or resource, and a pattern of its name; None is anything.
        argument: an argument's path, such as "options.path", and a pattern of its value.
        larger_than: bytes of arguments, as JSON.
        between: minutes of the day, from and up to; from > to goes over midnight.
        days: 0 is Monday.
        calls, period_s: how many calls it lets pass in any such time; what is beyond is denied.
    """

    name: str
    action: Action
    client: str = ANY
    calls_itself: str = ANY
    integration: str = ANY
    kind: str | None = None
    what: str = ANY
    argument: tuple[tuple[str, str], ...] = ()
    larger_than: int | None = None
    between: tuple[int, int] | None = None
    days: tuple[int, ...] = ()
    calls: int | None = None
    period_s: float = 0.0
    reason: str = ""
    digest: str = field(default="", compare=False)

    @property
    def is_settled(self) -> bool:
        """Nothing but who asks what of whom matters to it."""
        return self.always and self.calls is None

    @property
    def always(self) -> bool:
        """It matches whenever it concerns a call; a budget may still deny."""
        timed = self.between is not None or bool(self.days)
        return not self.argument and self.larger_than is None and not timed


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules, in order, and what happens where none matches.

    Args:
        digest: names exactly these rules.
        show_arguments: whoever approves sees the arguments, not only their digest.
    """

    rules: tuple[Rule, ...] = ()
    default: Action = "allow"
    ask_timeout_s: float = 60.0
    show_arguments: bool = False
    digest: str = ""

    @property
    def say_nothing(self) -> bool:
        """Everything is allowed: nobody has to be asked."""
        return self.default == "allow" and not self.rules

    @property
    def look_at_clock(self) -> bool:
        """Whether any rule depends on the time of day or the day."""
        return any(rule.between is not None or rule.days for rule in self.rules)

    def concern(self, integration: str) -> bool:
        """Whether anything can keep a call from this integration."""
        return self.default != "allow" or any(
            matches(rule.integration, integration)
            and (rule.action != "allow" or rule.calls is not None)
            for rule in self.rules
        )


class Passed(Protocol):
    """What a call passes on; looked at only where a rule needs it."""

    @property
    def size_bytes(self) -> int:
        """As JSON."""

    def find(self, path: str, /) -> Found:
        """Every value under a path."""


class Circumstances(NamedTuple):
    """What is settled for each call.

    Args:
        minute, weekday: of the host's local time.
    """

    arguments: Passed
    minute: int
    weekday: int


class Decision(NamedTuple):
    """What holds for one call, by which rule (None: the default), and why.

    Args:
        exhausted: the rule's budget is used up.
    """

    action: Action
    rule: Rule | None
    reason: str
    exhausted: bool = False


_UNMATCHED: Final = {
    action: Decision(action, None, "no rule matches") for action in get_args(Action)
}


class Budgets:
    """How many calls each rule let pass lately: at most `calls` in any `period_s`."""

    def __init__(self) -> None:
        self._passed: dict[str, deque[float]] = {}

    def take(self, rule: Rule, now_s: float) -> bool:
        """Count one call; False, and nothing is counted, where the budget is used up."""
        if rule.calls is None:
            return True
        passed = self._passed.setdefault(rule.digest, deque())
        while passed and passed[0] <= now_s - rule.period_s:
            passed.popleft()
        if len(passed) >= rule.calls:
            return False
        passed.append(now_s)
        return True

    def spent(self, rules: Iterable[Rule], now_s: float) -> dict[str, int]:
        """How many calls each rule let pass in its period until now, by its digest."""
        found = {}
        for rule in rules:
            passed = self._passed.get(rule.digest, ())
            count = sum(1 for at_s in passed if at_s > now_s - rule.period_s)
            if count:
                found[rule.digest] = count
        return found

    def restore(self, spent: Mapping[str, int], now_s: float) -> None:
        """Begin with what a predecessor let pass, as if it had been just now: no less is left."""
        for digest, count in spent.items():
            self._passed[digest] = deque([now_s] * min(count, MOST_CALLS))

    def keep(self, rules: Iterable[Rule]) -> None:
        """Forget what no rule asks for any more."""
        digests = {rule.digest for rule in rules}
        for digest in self._passed.keys() - digests:
            del self._passed[digest]


def concerns(rule: Rule, asked: Asked) -> bool:
    """Whether the rule is about this asker and this asked."""
    if rule.kind is not None and rule.kind != asked.kind:
        return False
    return (
        matches(rule.integration, asked.integration)
        and matches(rule.client, asked.client)
        and matches(rule.calls_itself, asked.calls_itself)
        and _fits(rule, rule.what, Found((asked.name,)))
    )


def candidates(rules: Rules, asked: Asked) -> tuple[Rule, ...]:
    """The rules that can decide, in order: none behind the first that always matches."""
    found: list[Rule] = []
    for rule in rules.rules:
        if concerns(rule, asked):
            found.append(rule)
            if rule.always:
                break
    return tuple(found)


def decide(
    found: Iterable[Rule], default: Action, call: Circumstances, budgets: Budgets, now_s: float
) -> Decision:
    """What holds for one call, by the candidates for it; the deciding rule's budget is counted.

    Args:
        found: the candidates.
        default: for a call that none matches.
        call: its circumstances.
        budgets: what was let pass lately.
        now_s: by a clock that never goes back.
    """
    for rule in found:
        if not applies(rule, call):
            continue
        if rule.calls is not None and not budgets.take(rule, now_s):
            what = f"its {rule.calls} calls in {rule.period_s:g} s are used up"
            reason = f"{rule.reason} ({what})" if rule.reason else what
            return Decision("deny", rule, reason, exhausted=True)
        return Decision(rule.action, rule, rule.reason)
    return _UNMATCHED[default]


def applies(rule: Rule, call: Circumstances) -> bool:
    """Whether a rule that concerns a call matches its circumstances."""
    if rule.larger_than is not None and call.arguments.size_bytes <= rule.larger_than:
        return False
    if rule.days and call.weekday not in rule.days:
        return False
    if rule.between is not None and not is_between(call.minute, *rule.between):
        return False
    for path, pattern in rule.argument:  # noqa: SIM110 - a generator costs what matching does
        if not _fits(rule, pattern, call.arguments.find(path)):
            return False
    return True


def is_between(minute: int, begin: int, end: int) -> bool:
    """Whether a minute of the day is in [begin, end), over midnight where end comes first."""
    if begin <= end:
        return begin <= minute < end
    return minute >= begin or minute < end


def _fits(rule: Rule, pattern: str, found: Found) -> bool:
    fits, allows = matcher(pattern), rule.action == "allow"
    if not found.complete or not found.values:
        return not allows and not found.complete
    for value in found.values:
        for spelling in spellings(value):
            if fits(spelling) is not allows:
                return not allows
    return allows


# ---- as they travel ------------------------------------------------------------------------


def compile_rules(table: Mapping[str, Any]) -> Rules:
    """The rules of a table as `to_body` writes it and the configuration gives it.

    Raises:
        RuleError: it is none.
    """
    try:
        rows = table.get("rules", [])
        if not isinstance(rows, list) or len(rows) > MOST_RULES:
            raise RuleError(f"expected at most {MOST_RULES} rules")
        rules = tuple(_rule(row) for row in rows)
        default = _action(table.get("default", "allow"))
        timeout_s = float(table.get("ask_timeout_s", 60.0))
        show = table.get("show_arguments", False) is True
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise RuleError(f"no rules: {error}") from error
    bare = Rules(rules, default, timeout_s, show)
    body = json.dumps(to_body(bare), sort_keys=True)
    return Rules(rules, default, timeout_s, show, _digest(body))


def to_body(rules: Rules) -> dict[str, Any]:
    """The rules as JSON."""
    return {
        "rules": [_row(rule) for rule in rules.rules],
        "default": rules.default,
        "ask_timeout_s": rules.ask_timeout_s,
        "show_arguments": rules.show_arguments,
        "digest": rules.digest,
        "configured": not rules.say_nothing,
    }


def _row(rule: Rule) -> dict[str, Any]:
    return {
        field.name: _listed(getattr(rule, field.name))
        for field in fields(Rule)
        if field.name != "digest" and getattr(rule, field.name) != field.default
    }


def _listed(value: Any) -> Any:  # noqa: ANN401 - a field's
    return [_listed(one) for one in value] if isinstance(value, tuple) else value


def _rule(row: Mapping[str, Any]) -> Rule:
    unknown = row.keys() - {field.name for field in fields(Rule)}
    if unknown:
        raise RuleError(f"unknown keys {sorted(unknown)}")
    known = dict(row)
    _action(known["action"])
    for name in ("name", "action", "client", "calls_itself", "integration", "what", "reason"):
        if not isinstance(known.get(name, ""), str):
            raise RuleError(f"{name}: expected text")
    if known.get("kind") not in {None, *KINDS}:
        raise RuleError("kind: expected tool, prompt, resource or other")
    known["argument"] = tuple((str(p), str(g)) for p, g in known.get("argument", ()))
    known["days"] = tuple(int(day) for day in known.get("days", ()))
    between = known.get("between")
    known["between"] = None if between is None else (int(between[0]), int(between[1]))
    for name in ("larger_than", "calls"):
        value = known.get(name)
        known[name] = None if value is None else int(value)
    known["period_s"] = float(known.get("period_s", 0.0))
    rule = Rule(**known | {"digest": ""})
    return replace(rule, digest=_digest(json.dumps(_row(rule), sort_keys=True)))


def _action(value: Any) -> Action:  # noqa: ANN401 - JSON
    for action in get_args(Action):
        if value == action:
            return action  # type: ignore[no-any-return]
    raise RuleError(f"expected allow, deny or ask, found {str(value)[:40]!r}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]
