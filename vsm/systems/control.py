"""S3, control: the resource bargain of inside-and-now. S3* is in vsm.systems.audits.

Runs in its own confined process. Divides the configured budget by what the supervisor measures,
asks the supervisor to move limits (which judges every wish), explains each move in the journal,
and says why it moves none. What S2 found to go to and fro, and what was refused lately, is left
alone.
"""

import asyncio
import itertools
import random
from collections import deque
from typing import Any, Final, NamedTuple

from vsm.core.budget import Change, Claim, Plan, need_of, plan
from vsm.core.policy_weighing import CEILING
from vsm.messages import (
    Body,
    Budgets,
    Configure,
    Decided,
    Move,
    Moved,
    Noted,
    Outlook,
    Policy,
    Proposal,
    Rates,
    ResourceRow,
    Resources,
    Settled,
    SnapshotOut,
    Start,
    Summary,
)
from vsm.systems.audits import Audits
from vsm.systems.base import SystemContext
from vsm.systems.samples import is_pressed, used_of

LEAST: Final = {"memory": 2.0 * 2**20, "cpu": 0.02, "processes": 2.0}
"""A limit is not moved by less."""
QUANTUM: Final = {"memory": 2.0**20, "cpu": 0.01, "processes": 1.0}
REMEMBERED: Final = 6  # samples whose greatest use counts
MOST_MOVES: Final = 8  # at once; the rest waits for the next sample
REFUSED_FOR_S: Final = 60.0
PROPOSE_EVERY_S: Final = 600.0
KEPT: Final = 16
SAFE: Final = 1.05  # memory is never limited below what is in use

NO_BUDGET: Final = "no budget is configured: limits stay as the profiles have them"
NO_SAMPLE: Final = "nothing was measured yet"


class _Foreseen(NamedTuple):
    """What S4 foresaw and S5 approved: somebody should have so much, until then."""

    proposal: int
    amount: float
    until_s: float


class _Made(NamedTuple):
    """A move on its way, and what is to be compared when it came through."""

    key: str
    resource: str
    change: Change
    pressure: float
    killed: int


class Control:
    """What S3 knows.

    Args:
        context: its links.
        dice: random numbers from 0 to 1, for audits.
    """

    def __init__(self, context: SystemContext, dice: random.Random | None = None) -> None:
        self.context = context
        self.snapshot: Body = {}
        self.last_summary: Summary | None = None
        self.outlook: Body | None = None
        self.policy: deque[Body] = deque(maxlen=KEPT)
        self.budget: dict[str, float] = {}
        self.plans: dict[str, Plan] = {}
        self.claims: dict[str, list[Claim]] = {}
        self.moves: deque[Body] = deque(maxlen=KEPT)
        self.audits = Audits(context, dice or random.Random())  # noqa: S311 - guards nothing
        self.samples = 0
        self._numbers = itertools.count(1)
        self._before: Resources | None = None
        self._used: dict[tuple[str, str], deque[float]] = {}
        self._made: dict[int, _Made] = {}
        self._unsettled: list[_Made] = []
        self._refused: dict[tuple[str, str], tuple[float, str]] = {}
        self._damped: dict[str, list[str]] = {}
        self._proposed: dict[tuple[str, str], float] = {}
        self._asked: dict[tuple[str, str], int] = {}  # what S5 is to decide, and the proposal
        self._approved: dict[tuple[str, str], float] = {}
        self._ceilings: dict[int, tuple[str, str]] = {}  # proposals about ceilings
        self._foreseen: dict[tuple[str, str], _Foreseen] = {}
        self._undone: list[Policy] = []  # refused: the next sample shows that nothing moved
        self._outcomes: list[Body] = []  # for S4, of what it had proposed
        self._told_limits: Body = {}
        self._killed: dict[str, int] = {}  # by want of memory, as the last sample had it

    # ---- what it hears ---------------------------------------------------------------------

    def on_summary(self, message: Summary, fds: list[int]) -> None:
        """Keep the newest load summary of S1."""
        del fds
        self.last_summary = message

    def reconfigure(self, message: Configure, fds: list[int]) -> None:
        """Take them again: vsm.toml was reloaded."""
        del fds
        self.configure(message)
        self.context.report(SnapshotOut(body=self.snapshot))

    def on_outlook(self, message: Outlook, fds: list[int]) -> None:
        """Keep the newest outlook of S4."""
        del fds
        self.outlook = message.body

    def on_policy(self, message: Policy, fds: list[int]) -> None:
        """S5 decided about a proposal: an approved one is carried out with the next sample."""
        del fds
        self.policy.append(message.model_dump(mode="json", exclude={"fds", "kind"}))
        now_s = self._before.at_s if self._before is not None else 0.0
        if message.verdict == "refused":
            self._undone.append(message)
        if message.sender == "system4":
            self._foresee(message, now_s)
        else:
            self._hear_of_own(message, now_s)

    def _foresee(self, message: Policy, now_s: float) -> None:
        """S4 has no way to a limit: what it foresaw and S5 approved, we do."""
        where = message.subject, message.change
        standing = self._foreseen.get(where)
        if message.verdict == "approved" and message.to_value is not None:
            until_s = now_s + REFUSED_FOR_S
            self._foreseen[where] = _Foreseen(message.proposal, message.to_value, until_s)
        elif standing is not None and standing.proposal == message.proposal:
            del self._foreseen[where]  # revoked; S5 has said so itself

    def _hear_of_own(self, message: Policy, now_s: float) -> None:
        where = message.subject, message.change
        if self._asked.get(where) != message.proposal:
            return
        if message.verdict == "approved":
            self._approved[where] = now_s + REFUSED_FOR_S
            return
        del self._asked[where]
        self._approved.pop(where, None)
        why = f"{message.verdict} by system 5: {'; '.join(message.reasons)}"[:200]
        self._refused[where] = (now_s + REFUSED_FOR_S, why)

    def on_rates(self, message: Rates, fds: list[int]) -> None:
        """S2 says what goes to and fro."""
        del fds
        damped = message.body.get("damped")
        self._damped = {}
        if isinstance(damped, dict):
            for name, series in damped.items():
                if isinstance(series, list):
                    self._damped[name] = [str(one) for one in series]

    def configure(self, start: Start | Configure) -> None:
        """Take the configured limits: of calls for S1, of resources for the record."""
        calls: Body = {
            row.name: {"concurrency": row.concurrency, "call_timeout_s": row.call_timeout_s}
            for row in start.integrations
        }
        resources = start.limits if isinstance(start, Start) else self.snapshot["resources"]
        self.snapshot = {"limits": calls, "resources": resources}
        self.audits.names = tuple(row.name for row in start.integrations)
        if isinstance(start, Start):
            budget: Any = start.settings.get("budget", {})
            self.budget = {str(name): float(value) for name, value in budget.items()}
            interval: Any = start.settings.get("audit_interval_s", 0.0)
            self.audits.interval_s = float(interval)

    # ---- the budget ------------------------------------------------------------------------

    def on_resources(self, message: Resources, fds: list[int]) -> None:
        """A sample: settle what was moved before it, then divide anew."""
        del fds
        before, self._before = self._before, message
        self.samples += 1
        self._settle(message)
        self._settle_undone(message)
        for key in [key for key in self._used if key[0] not in message.rows]:
            del self._used[key]
        killed = {
            name for name, row in message.rows.items() if row.out_of_memory > self._kills(name, row)
        }
        self._killed |= {name: row.out_of_memory for name, row in message.rows.items()}
        room = MOST_MOVES
        for resource, budget in self.budget.items():
            claims = [
                self._claim(name, resource, row, message, before, killed=name in killed)
                for name, row in sorted(message.rows.items())
                if resource in row.limit
            ]
            found = plan(budget, claims, least=LEAST[resource], quantum=QUANTUM[resource])
            found = self._explained(resource, found, claims)
            self.claims[resource], self.plans[resource] = claims, found
            spare = budget - sum(claim.held for claim in claims)
            for change in found.changes[:room]:
                if self._is_disputed(resource, change, message.at_s):
                    self._ask(resource, change, found, message.at_s)
                    continue
                more = change.after - change.before
                if 0 < more > spare + LEAST[resource]:
                    continue  # until somebody else has given
                spare -= more
                self._move(resource, change, claims, message.at_s)
                room -= 1
            self._propose(resource, found, claims, message.at_s)
            self._give_up_foreseen(resource, claims, message.at_s)
        self._tell_limits()

    def _kills(self, name: str, row: ResourceRow) -> int:
        """How often it was killed before; a worker may be away for the sample in between."""
        known = self._before is not None and self._killed
        return self._killed.get(name, 0 if known else row.out_of_memory)

    def _claim(
        self,
        name: str,
        resource: str,
        row: ResourceRow,
        now: Resources,
        before: Resources | None,
        *,
        killed: bool,
    ) -> Claim:
        last = before.rows.get(name) if before is not None else None
        span_s = now.at_s - before.at_s if before is not None else 0.0
        used = used_of(resource, row, last, span_s)
        history = self._used.setdefault((name, resource), deque(maxlen=REMEMBERED))
        if used is not None:
            history.append(used)
        held = row.limit[resource]
        pressed = is_pressed(resource, row, last, span_s, used or 0.0)
        pressed = pressed or (killed and resource == "memory")
        floor = row.floor.get(resource, 0.0)
        if resource == "memory":
            floor = max(floor, min(max(history, default=0.0) * SAFE, row.ceiling[resource]))
        need = need_of(list(history), held, pressed=pressed) if history else held
        foreseen = self._foreseen.get((name, resource))
        return Claim(
            name=name,
            floor=floor,
            ceiling=row.ceiling[resource],
            held=held,
            need=need if foreseen is None else max(need, foreseen.amount),
            weight=row.priority * (1.0 + self._gap_share(name)),
            fixed=self._fixed(name, resource, now.at_s),
        )

    def _fixed(self, name: str, resource: str, now_s: float) -> str:
        if resource in self._damped.get(name, ()):
            return "it went to and fro: damped by system 2"
        if any(one.change.name == name and one.resource == resource for one in self._made.values()):
            return "a move is on its way"
        if (name, resource) in self._foreseen:
            return ""  # it may be raised, whatever was refused before
        return self.refusal(name, resource, now_s)

    def refusal(self, name: str, resource: str, now_s: float = 0.0) -> str:
        """Why a limit was lately not to be moved, by system 5 or the supervisor; "" if it was."""
        until_s, why = self._refused.get((name, resource), (0.0, ""))
        return why if now_s < until_s else ""

    def _gap_bits(self, name: str) -> float:
        """The variety that is lost at an integration, by S4's outlook."""
        variety: Any = (self.outlook or {}).get("variety", {})
        parts = variety.get("gap_by_class") or ()
        return float(sum(part["bits"] for part in parts if part.get("integration") == name))

    def _gap_share(self, name: str) -> float:
        """Which part of the environment's variety is lost there."""
        variety: Any = (self.outlook or {}).get("variety", {})
        whole = variety.get("environmental_bits") or 0.0
        return min(1.0, self._gap_bits(name) / whole) if whole > 0 else 0.0

    # ---- what S4 foresaw and S5 approved ---------------------------------------------------

    def _explained(self, resource: str, found: Plan, claims: list[Claim]) -> Plan:
        """The plan, with what is raised for what S4 foresaw called so."""
        needs = {
            one.name: need_of(list(self._used.get((one.name, resource), ())), 0.0, pressed=False)
            for one in claims
        }
        changes = tuple(
            change._replace(rule="raise.foreseen")
            if change.rule == "raise.need"
            and (change.name, resource) in self._foreseen
            and needs[change.name] <= change.before
            else change
            for change in found.changes
        )
        return found._replace(changes=changes)

    def _give_up_foreseen(self, resource: str, claims: list[Claim], now_s: float) -> None:
        """What needs nothing, or could not be done in time, is over; S4 hears why."""
        held = {claim.name: claim for claim in claims}
        moving = {(one.change.name, one.resource) for one in self._made.values()}
        moving |= {(one.change.name, one.resource) for one in self._unsettled}
        for where, wish in list(self._foreseen.items()):
            if where[1] != resource or where in moving:
                continue
            claim = held.get(where[0])
            if (
                claim is not None
                and claim.held >= min(wish.amount, claim.ceiling) - LEAST[resource]
            ):
                self._tell_outcome(where, {"state": "nothing to do", "held": claim.held})
            elif now_s >= wish.until_s:
                reason = self.plans[resource].reason if claim is not None else "it does not run"
                self._tell_outcome(where, {"state": "not carried out", "reason": reason})

    def _tell_outcome(self, where: tuple[str, str], outcome: Body) -> None:
        """What became of what S4 proposed; S4 tells S5, so that it stands beside the decision."""
        wish = self._foreseen.pop(where, None)
        if wish is not None:
            self._outcomes.append({"proposal": wish.proposal, "outcome": outcome})

    def _settle_undone(self, now: Resources) -> None:
        """What S5 refused was not done: the limit that the kernel holds says so."""
        for verdict in self._undone:
            own = verdict.sender == "system3"
            name, resource = self._ceilings.pop(verdict.proposal, (verdict.subject, verdict.change))
            row = now.rows.get(name)
            held = row.limit.get(resource) if row is not None else None
            outcome: Body = {"state": "not carried out", "held": held}
            if own:
                self._answer(verdict.proposal, (verdict.subject, verdict.change), outcome)
            else:
                self._outcomes.append({"proposal": verdict.proposal, "outcome": outcome})
        self._undone = []

    def _answer(self, proposal: int, where: tuple[str, str], outcome: Body) -> None:
        """S5 hears what came of what it decided."""
        answer = Proposal(
            id=proposal, sender="system3", subject=where[0], change=where[1], outcome=outcome
        )
        self.context.send("system5", answer)

    # ---- inside and now against outside and then -------------------------------------------

    def _is_disputed(self, resource: str, change: Change, now_s: float) -> bool:
        """It takes from somebody of whom S4 expects that he will need more: S5 decides."""
        rising: Any = (self.outlook or {}).get("rising") or ()
        lowers = change.after < change.before and change.rule == "lower.budget"
        allowed = now_s < self._approved.get((change.name, resource), 0.0)
        return lowers and change.name in rising and not allowed

    def _ask(self, resource: str, change: Change, found: Plan, now_s: float) -> None:
        where = change.name, resource
        waits = where in self._asked and now_s < self._proposed.get(where, 0.0)
        if waits or now_s < self._refused.get(where, (0.0, ""))[0]:
            return
        self._proposed[where] = now_s + REFUSED_FOR_S
        short: list[Any] = sorted({*found.short, *(c.name for c in found.changes)} - {change.name})
        number = self._asked[where] = next(self._numbers)
        proposal = Proposal(
            id=number,
            sender="system3",
            subject=change.name,
            change=resource,
            from_value=change.before,
            to_value=change.after,
            evidence={"rule": f"budget.{change.rule}", "for": short},
            expected_gain_bits=sum(map(self._gap_bits, short)),
        )
        self.context.send("system5", proposal)

    def _tell_limits(self) -> None:
        """S4 hears what everybody is given, where that changed."""
        held: dict[str, Any] = {}
        for resource, claims in self.claims.items():
            for claim in claims:
                held.setdefault(claim.name, {})[resource] = claim.held
        if held != self._told_limits or self._outcomes:
            self._told_limits = held
            body: Body = {"held": held, "outcomes": list(self._outcomes)}
            self._outcomes = []
            self.context.send("system4", Budgets(body=body))

    def _move(self, resource: str, change: Change, claims: list[Claim], now_s: float) -> None:
        number = next(self._numbers)
        claim = next(one for one in claims if one.name == change.name)
        key = f"move-{number}"
        sent = self.context.report(
            Move(id=number, integration=change.name, limits={resource: change.after})
        )
        if not sent:
            return  # the link is full; the next sample decides again
        row = self._before.rows[change.name] if self._before is not None else ResourceRow()
        pressure = row.pressure.get(resource, 0.0)
        self._made[number] = _Made(key, resource, change, pressure, row.out_of_memory)
        others = {one.name: round(one.held, 3) for one in claims if one.name != change.name}
        self.context.report(
            Decided(
                key=key,
                subject=change.name,
                rule=f"budget.{change.rule}",
                inputs={
                    "resource": resource,
                    "budget": self.budget[resource],
                    "held": change.before,
                    "need": round(claim.need, 3),
                    "floor": claim.floor,
                    "ceiling": claim.ceiling,
                    "weight": round(claim.weight, 3),
                    "pressure": pressure,
                    "out_of_memory": row.out_of_memory,
                    "others": dict(itertools.islice(others.items(), 20)),
                    "at_s": round(now_s, 3),
                },
                alternatives=(
                    f"keep {_amount(resource, change.before)}",
                    f"ceiling {_amount(resource, claim.ceiling)}",
                    f"floor {_amount(resource, claim.floor)}",
                ),
                choice=f"{resource} {_amount(resource, change.after)}",
            )
        )

    def on_moved(self, message: Moved, fds: list[int]) -> None:
        """The supervisor put a limit in force, or refused."""
        del fds
        made = self._made.pop(message.id, None)
        if made is None:
            return
        self.moves.append(
            {
                "integration": made.change.name,
                "resource": made.resource,
                "from": made.change.before,
                "to": made.change.after,
                "rule": made.change.rule,
                "state": message.state,
                "detail": message.detail,
            }
        )
        if message.state == "in force":
            self._unsettled.append(made)
            self.context.send("system2", Budgets(body={"moved": self.moves[-1]}))
            return
        now_s = self._before.at_s if self._before is not None else 0.0
        where = made.change.name, made.resource
        self._refused[where] = (now_s + REFUSED_FOR_S, f"refused: {message.detail}"[:200])
        outcome: Body = {"state": "refused", "detail": message.detail}
        self.context.report(Settled(key=made.key, outcome=outcome))
        self._answer_for(made, outcome)

    def _settle(self, now: Resources) -> None:
        """Tell what came of the moves: whether the limit was met again since."""
        for made in self._unsettled:
            row = now.rows.get(made.change.name)
            outcome: Body = {"state": "in force"}
            if row is not None:
                met = row.pressure.get(made.resource, 0.0) - made.pressure
                killed = row.out_of_memory > made.killed
                outcome |= {"pressure_since": met, "relieved": met <= 0 and not killed}
            self.context.report(Settled(key=made.key, outcome=outcome))
            self._answer_for(made, outcome)
        self._unsettled = []

    def _answer_for(self, made: _Made, outcome: Body) -> None:
        """S5 hears what came of what it approved, of S4's by way of S4."""
        where = made.change.name, made.resource
        told: Body = {**outcome, "from": made.change.before, "to": made.change.after}
        if made.change.after > made.change.before:
            self._tell_outcome(where, told)
        if where in self._approved and where in self._asked:
            del self._approved[where]
            self._answer(self._asked.pop(where), where, told)

    def _propose(self, resource: str, found: Plan, claims: list[Claim], now_s: float) -> None:
        """What is beyond S3's power goes to S5: somebody needs more than his ceiling."""
        for name in found.bounded:
            if now_s < self._proposed.get((name, resource), 0.0):
                continue
            self._proposed[name, resource] = now_s + PROPOSE_EVERY_S
            claim = next(one for one in claims if one.name == name)
            number = next(self._numbers)
            self._ceilings[number] = name, resource
            proposal = Proposal(
                id=number,
                sender="system3",
                subject=name,
                change=f"{resource}{CEILING}",
                from_value=claim.ceiling,
                to_value=claim.need,
                evidence={"need": claim.need, "held": claim.held, "rule": "budget.ceiling"},
                expected_gain_bits=self._gap_bits(name),
                cost=claim.need - claim.ceiling,
            )
            self.context.send("system5", proposal)
            what = f"{name} needs more {resource} than its ceiling"
            detail: Body = {"what": what, "need": claim.need, "ceiling": claim.ceiling}
            self.context.report(
                Noted(event="control.ceiling", severity="notice", integration=name, detail=detail)
            )

    # ---- what it says ----------------------------------------------------------------------

    def state(self) -> Body:
        """What it has, what it does and why it does nothing, and what it lacks."""
        lacks = []
        if not self.budget:
            lacks.append(NO_BUDGET)
        if not self.audits.results:
            lacks.append("no audit yet")
        if self.last_summary is None:
            lacks.append("no load observed")
        if self.outlook is None:
            lacks.append("no outlook of system 4 yet")
        summary = self.last_summary
        return {
            "role": "control",
            "snapshot": self.snapshot,
            "budget": {resource: self._budget_row(resource) for resource in self.budget},
            "reason": self.reason(),
            "samples": self.samples,
            "moves": list(self.moves),
            "audits": list(self.audits.results),
            "audit_interval_s": self.audits.interval_s,
            "policy": list(self.policy),
            "outlook": self.outlook,
            "last_summary": None if summary is None else summary.model_dump(mode="json"),
            "lacks": list(lacks),
            **self.context.channel_state(),
        }

    def reason(self) -> str:
        """Why nothing moves now; "" while something does."""
        if not self.budget:
            return NO_BUDGET
        if not self.plans:
            return NO_SAMPLE
        reasons = [f"{resource}: {found.reason}" for resource, found in self.plans.items()]
        moving = any(found.changes for found in self.plans.values())
        return "" if moving else "; ".join(reasons)

    def _budget_row(self, resource: str) -> Body:
        claims, found = self.claims.get(resource, []), self.plans.get(resource)
        return {
            "budget": self.budget[resource],
            "held": sum(claim.held for claim in claims),
            "need": sum(claim.need for claim in claims),
            "reason": found.reason if found is not None else NO_SAMPLE,
            "claims": [{**claim._asdict(), "need": round(claim.need, 3)} for claim in claims[:50]],
        }


def _amount(resource: str, value: float) -> str:
    return f"{value / 2**20:.0f} MiB" if resource == "memory" else f"{value:.3g}"


async def main(context: SystemContext) -> None:
    """Publish the configured limits, then divide and audit until told to stop."""
    control = Control(context)
    context.handle("system1>system3:summary", control.on_summary)
    context.handle("system2>system3:rates", control.on_rates)
    context.handle("system5>system3:policy", control.on_policy)
    context.handle("configure", control.reconfigure)
    context.handle("resources", control.on_resources)
    context.handle("moved", control.on_moved)
    context.handle("audited", control.audits.on_audited)
    context.handle("system4>system3:outlook", control.on_outlook)
    context.answer("state", control.state)
    start, _ = await context.started()
    control.configure(start)
    context.report(SnapshotOut(body=control.snapshot))
    context.ready()
    audits = asyncio.create_task(control.audits.run())
    try:
        await context.stopping.wait()
    finally:
        audits.cancel()
