"""The gate that holds the operator's rules: a call passes, is refused, or waits for a person.

Owns the rules in force, what they let pass lately, and the calls that wait. Without rules there
is no gate; with rules that are not here yet, calls wait for them and are refused after a while,
never let through. Only the rules that the supervisor named by their digest are taken, whoever
sends them. Runs in S1's event loop, on the hot path: what is settled by who asks what of whom is
one look into a dictionary.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from vsm.core.policy_rules import (
    Asked,
    Budgets,
    Circumstances,
    Decision,
    Rule,
    RuleError,
    Rules,
    candidates,
    compile_rules,
    decide,
)
from vsm.core.repeats import Repeats, Surges
from vsm.gateway.accounting import outcome_of_failure
from vsm.gateway.call import Call, Gate, Go
from vsm.gateway.finder import RequestError
from vsm.gateway.integration import Integration
from vsm.gateway.rule_arguments import Arguments
from vsm.protocol import jsonrpc

RULES_TIMEOUT_S: Final = 10.0
GRACE_S: Final = 5.0  # beyond the time-out of an approval, which the supervisor keeps
SWEEP_S: Final = 0.5
SAVE_S: Final = 0.5
REPORT_INTERVAL_S: Final = 10.0
MAX_WAITING: Final = 256
MAX_HELD: Final = 64
MAX_HELD_OF_CLIENT: Final = 16
QUESTIONS_PER_MINUTE: Final = 60  # of one client: a person is not to be flooded
MAX_KNOWN: Final = 4096
_SHOWN_BYTES: Final = 2048

Key = tuple[str, str, str, str, str]
GrantKey = tuple[str, str, str, str, str]


class Outlet(Protocol):
    """Who hears of what the gate does."""

    def denied(self, asked: Asked, decision: Decision, repeats: int) -> None:
        """A call was denied, and `repeats` like it that nobody was told of."""

    def asking(self, question: "Question") -> bool:
        """A person shall approve a call; False where nobody can be asked now."""

    def withdrawn(self, question_id: int) -> None:
        """The client of a call that waits for a person no longer wants it."""

    def spent(self, calls: dict[str, int]) -> None:
        """So many calls the rules with a budget let pass, by their digest."""

    def hurt(self, severity: str, subject: str, cause: str, detail: str) -> None:
        """It hurts, or no longer does."""


@dataclass(frozen=True)
class Question:
    """What a person has to decide."""

    id: int
    asked: Asked
    rule: Rule | None
    arguments: Arguments
    show_arguments: bool
    timeout_s: float

    @property
    def text(self) -> str:
        """The arguments, where they may be shown."""
        shown = self.arguments.text[:_SHOWN_BYTES] if self.show_arguments else b""
        return shown.decode(errors="replace")


@dataclass(frozen=True)
class _Held:
    call: Call
    go: Go
    timer: asyncio.TimerHandle
    rules: Rules


class _Known(NamedTuple):
    """Who asks what of whom, the rules that can decide, and whether one depends on the time."""

    asked: Asked
    rules: tuple[Rule, ...]
    look_at_clock: bool


class RuleGate(Gate):
    """All integrations' gate.

    Args:
        outlet: who hears of it.
        digest: the rules that hold, "" for none; their text comes by `take`.
        denials_per_minute: more of one client hurt.
    """

    def __init__(self, outlet: Outlet, *, digest: str, denials_per_minute: int = 30) -> None:
        self._outlet = outlet
        self._loop = asyncio.get_running_loop()
        self._digest = digest
        self._rules: Rules | None = Rules() if not digest else None
        self._known: dict[Key, _Known] = {}
        self._passing: set[Key] = set()
        self._budgets = Budgets()
        self._exhausted: dict[str, str] = {}  # digest → name of the rule
        self._saver: asyncio.TimerHandle | None = None
        self._grants: dict[GrantKey, float] = {}
        self._waiting: list[tuple[Call, Go]] = []
        self._waiting_timer: asyncio.TimerHandle | None = None
        self._held: dict[int, _Held] = {}
        self._last = 0
        self._told = Repeats(REPORT_INTERVAL_S)
        self._surges = Surges(denials_per_minute)
        self._questions = Surges(QUESTIONS_PER_MINUTE)
        self._sweeper: asyncio.TimerHandle | None = None

    def guards(self, integration: Integration) -> Gate | None:
        """Itself where any rule can keep a call from the integration."""
        rules = self._rules
        needed = rules is None or rules.concern(integration.settings.name)
        return self if needed else None

    # ---- rules -----------------------------------------------------------------------------

    def expect(self, digest: str, *, denials_per_minute: int) -> None:
        """Other rules hold from now on; calls wait until they are here."""
        self._surges.threshold = denials_per_minute
        if digest != self._digest:
            self._digest = digest
            self._forget(Rules() if not digest else None)

    def take(self, body: dict[str, Any]) -> bool:
        """Take the rules that hold; False, and nothing changes, for any others."""
        try:
            rules = compile_rules(body)
        except RuleError:
            return False
        if not self._digest or rules.digest != self._digest:
            return False
        if self._rules is None or rules.digest != self._rules.digest:
            self._forget(rules)
            self._budgets.keep(rules.rules)
        self._serve_waiting()
        return True

    def grant(self, grants: dict[GrantKey, float]) -> None:
        """What a person approved beforehand: rule, client, integration, kind, name → until when."""
        self._grants = grants

    def _forget(self, rules: Rules | None) -> None:
        self._rules = rules
        self._known.clear()
        self._passing.clear()

    def status(self) -> dict[str, Any]:
        """What it knows of itself."""
        rules = self._rules
        return {
            "rules": None if rules is None else len(rules.rules),
            "default": None if rules is None else rules.default,
            "digest": self._digest,
            "waiting_for_rules": len(self._waiting),
            "waiting_for_approval": len(self._held),
            "grants": len(self._grants),
        }

    # ---- calls -----------------------------------------------------------------------------

    def admit(self, call: Call, go: Go, /) -> bool:
        """Whether the call may be sent now; see `Gate`."""
        client = call.client
        key = client.identity, client.calls_itself, call.integration, call.method, call.label
        if key in self._passing:
            return True
        try:
            return self._judge(call, go, key)
        except RequestError as error:
            call.row.count(call.label, outcome_of_failure(error.code), call.began_ns)
            raise

    def _judge(self, call: Call, go: Go, key: Key) -> bool:
        rules = self._rules
        if rules is None:
            return self._wait_for_rules(call, go)
        known = self._known.get(key)
        asked, found, look_at_clock = known or self._find(rules, _asked(call), key)
        if not found and rules.default == "allow":
            return True
        arguments = Arguments(call.params)
        clock = time.localtime() if look_at_clock else None
        circumstances = Circumstances(
            arguments,
            clock.tm_hour * 60 + clock.tm_min if clock else 0,
            clock.tm_wday if clock else 0,
        )
        now_s = self._loop.time()
        decision = decide(found, rules.default, circumstances, self._budgets, now_s)
        if decision.rule is not None and decision.rule.calls is not None:
            self._feel_budget(decision.rule, decision)
        if decision.action == "allow":
            return True
        if decision.action == "deny":
            raise self._denial(asked, decision)
        return self._ask(call, go, asked, decision, arguments)

    def _find(self, rules: Rules, asked: Asked, key: Key) -> "_Known":
        """The rules that can decide; remembered where the label says all that is asked."""
        found = candidates(rules, asked)
        clock = any(rule.between is not None or rule.days for rule in found)
        known = _Known(asked, found, look_at_clock=clock)
        if asked.kind == "resource":  # many URIs share a label
            return known
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
            self._passing.clear()
        self._known[key] = known
        settled = found[0] if found and found[0].is_settled else None
        if (settled and settled.action == "allow") or (not found and rules.default == "allow"):
            self._passing.add(key)
        return known

    def _denial(self, asked: Asked, decision: Decision) -> RequestError:
        """Tell of it, and say to the client by which rule."""
        now_s = self._loop.time()
        rule = "the default" if decision.rule is None else f"the rule {decision.rule.name!r}"
        kind = (asked.client, asked.integration, asked.kind, asked.name, rule)
        repeats = self._told.passes(kind, now_s)
        if repeats is not None:
            self._outlet.denied(asked, decision, repeats)
        if self._surges.add(asked.client, now_s):
            text = f"more than {self._surges.threshold} calls of {asked.client} denied in a minute"
            self._outlet.hurt("pain", asked.client, "denials", text)
            self._sweep_later()
        why = f": {decision.reason}" if decision.reason else ""
        hint = "Try again later" if decision.exhausted else "Do not try again unchanged"
        text = f"Denied by {rule} of this gateway's operator{why}. {hint}."
        data = {"integration": asked.integration, "denied_by": rule, "reason": decision.reason}
        return RequestError(jsonrpc.DENIED, text, data)

    def restore(self, spent: dict[str, int]) -> None:
        """What a predecessor let pass counts here too."""
        self._budgets.restore(spent, self._loop.time())

    def _save(self) -> None:
        self._saver = None
        if self._rules is not None:
            self._outlet.spent(self._budgets.spent(self._rules.rules, self._loop.time()))

    def _feel_budget(self, rule: Rule, decision: Decision) -> None:
        if self._saver is None:
            self._saver = self._loop.call_later(SAVE_S, self._save)
        if decision.exhausted and rule.digest not in self._exhausted:
            self._exhausted[rule.digest] = rule.name
            self._outlet.hurt("pain", rule.name, "budget", decision.reason)
        elif not decision.exhausted and self._exhausted.pop(rule.digest, None) is not None:
            self._outlet.hurt("relief", rule.name, "budget", "calls are let pass again")

    # ---- waiting for rules -----------------------------------------------------------------

    def _wait_for_rules(self, call: Call, go: Go) -> bool:
        if len(self._waiting) >= MAX_WAITING:
            raise _no_rules()
        self._waiting.append((call, go))
        if self._waiting_timer is None:
            self._waiting_timer = self._loop.call_later(RULES_TIMEOUT_S, self._give_up_waiting)
        return False

    def _stop_waiting(self) -> list[tuple[Call, Go]]:
        waiting, self._waiting = self._waiting, []
        if self._waiting_timer is not None:
            self._waiting_timer.cancel()
            self._waiting_timer = None
        return [(call, go) for call, go in waiting if _wanted(call)]

    def _give_up_waiting(self) -> None:
        error = _no_rules()
        for call, _ in self._stop_waiting():
            call.failed(error.code, error.message)

    def _serve_waiting(self) -> None:
        for call, go in self._stop_waiting():
            self._judge_again(call, go)

    def _judge_again(self, call: Call, go: Go) -> None:
        """Let go of a call that was held, if the rules that hold now let it pass."""
        client = call.client
        key = client.identity, client.calls_itself, call.integration, call.method, call.label
        try:
            if self._judge(call, go, key):
                go(call)
        except RequestError as error:
            call.failed(error.code, error.message)

    # ---- waiting for a person --------------------------------------------------------------

    def _ask(
        self, call: Call, go: Go, asked: Asked, decision: Decision, arguments: Arguments
    ) -> bool:
        rules, rule = self._rules, decision.rule
        digest = rule.digest if rule else ""
        grant = (digest, asked.client, asked.integration, asked.kind, asked.name)
        if self._grants.get(grant, 0.0) > time.clock_gettime(time.CLOCK_BOOTTIME):
            return True
        # By identity: connections and sessions can be had by the dozen.
        of_client = sum(1 for h in self._held.values() if h.call.client.identity == asked.client)
        if len(self._held) >= MAX_HELD or of_client >= MAX_HELD_OF_CLIENT or rules is None:
            raise self._denial(
                asked, decision._replace(action="deny", reason="too many calls wait for approval")
            )
        self._questions.add(asked.client, self._loop.time())
        if asked.client in self._questions.in_pain:
            self._sweep_later()
            raise self._denial(asked, decision._replace(action="deny", reason="asks too often"))
        self._last += 1
        timeout_s = rules.ask_timeout_s
        question = Question(self._last, asked, rule, arguments, rules.show_arguments, timeout_s)
        if not self._outlet.asking(question):
            raise self._denial(
                asked, decision._replace(action="deny", reason="nobody can be asked now")
            )
        timer = self._loop.call_later(timeout_s + GRACE_S, self._overdue, self._last)
        self._held[self._last] = _Held(call, go, timer, rules)
        self._sweep_later()
        return False

    def verdict(self, question_id: int, reason: str, *, approved: bool) -> None:
        """A person decided, or the time is over."""
        held = self._held.pop(question_id, None)
        if held is None:
            return
        held.timer.cancel()
        if not _wanted(held.call):
            return
        if approved and held.rules is not self._rules:
            self._judge_again(held.call, held.go)  # what was approved was approved by others
        elif approved:
            held.go(held.call)
        else:
            held.call.failed(jsonrpc.DENIED, f"Not approved: {reason}.")

    def _overdue(self, question_id: int) -> None:
        self.verdict(question_id, "nobody approved it in time", approved=False)

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Notice calls that nobody waits for any more, and denials that have become rare."""
        self._sweeper = None
        for question_id, held in list(self._held.items()):
            if not _wanted(held.call):
                del self._held[question_id]
                held.timer.cancel()
                self._outlet.withdrawn(question_id)
        for who in self._surges.relieved(self._loop.time()):
            self._outlet.hurt("relief", who, "denials", "denials have become rare again")
        self._questions.relieved(self._loop.time())
        if self._held or self._surges.in_pain or self._questions.in_pain:
            self._sweep_later()

    def close(self, reason: str) -> None:
        """Fail what waits."""
        held, self._held = self._held, {}
        for one in held.values():
            one.timer.cancel()
        for call in [*(call for call, _ in self._stop_waiting()), *(h.call for h in held.values())]:
            if _wanted(call):
                call.failed(jsonrpc.UNAVAILABLE, reason)
        for timer in (self._sweeper, self._saver):
            if timer is not None:
                timer.cancel()


def _wanted(call: Call) -> bool:
    """Whether its client still waits for it."""
    return call.client.in_flight.get(call.id_bytes) is call


def _asked(call: Call) -> Asked:
    kind, name = _what(call)
    return Asked(call.client.identity, call.client.calls_itself, call.integration, kind, name)


def _what(call: Call) -> tuple[str, str]:
    """The kind and the name of what is asked, as its server knows it."""
    if call.method == "tools/call":
        return "tool", call.label
    if call.method == "prompts/get":
        return "prompt", jsonrpc.text(call.params, "name") or ""
    if call.method == "resources/read":
        return "resource", jsonrpc.text(call.params, "uri") or ""
    return "other", call.method


def _no_rules() -> RequestError:
    text = "The operator's rules are not here yet. Try again shortly."
    return RequestError(jsonrpc.UNAVAILABLE, text)
