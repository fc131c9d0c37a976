"""S3, control: the resource bargain of inside-and-now. S3* is in vsm.systems.audits.

Runs in its own confined process. Divides the configured budget by what the supervisor measures,
asks the supervisor to move limits and the sizes of pools (which judges every wish), explains each
move in the journal (vsm.systems.moves), and says why it moves none. What S2 found to go to and
fro, and what was refused lately, is left alone.
"""

import itertools
import random
from collections import deque
from typing import Any, Final

from vsm.configuration.regulation import INSTANCES
from vsm.core.budget import Change, Claim, Plan, need_of, plan
from vsm.core.policy_weighing import CEILING
from vsm.messages import (
    Body,
    Budgets,
    Configure,
    Moved,
    Noted,
    Outlook,
    Policy,
    Proposal,
    Rates,
    ResourceRow,
    Resources,
    SnapshotOut,
    Start,
    Summary,
)
from vsm.systems import audits, exhaustion
from vsm.systems.audits import Audits
from vsm.systems.base import SystemContext
from vsm.systems.exhaustion import Exhaustion, lacking_of
from vsm.systems.moves import Moves
from vsm.systems.pools import Pools, whole
from vsm.systems.samples import gap_bits, gap_share, is_pressed, rising_of, used_of
from vsm.systems.verdicts import Verdicts

LEAST: Final = {"memory": 2.0 * 2**20, "cpu": 0.02, "processes": 2.0, INSTANCES: 0.5}
"""A limit is not moved by less."""
QUANTUM: Final = {"memory": 2.0**20, "cpu": 0.01, "processes": 1.0, INSTANCES: 1.0}
REMEMBERED: Final = 6  # samples whose greatest use counts
MOST_MOVES: Final = 8  # at once; the rest waits for the next sample
PROPOSE_EVERY_S: Final = 600.0
KEPT: Final = 16
SAFE: Final = 1.05  # memory is never limited below what is in use

NO_BUDGET: Final = "no budget is configured: limits stay as the profiles have them"
NO_SAMPLE: Final = "nothing was measured yet"


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
        self.exhaustion = Exhaustion()
        self.claims: dict[str, list[Claim]] = {}
        self.audits = Audits(context, dice or random.Random())  # noqa: S311 - guards nothing
        self.samples = 0
        self._numbers = itertools.count(1)
        self._before: Resources | None = None
        self._used: dict[tuple[str, str], deque[float]] = {}
        self.verdicts = Verdicts(self._answer)
        self.pools = Pools()
        self.moves = Moves(context, self.pools, self.verdicts, self._numbers)
        self._damped: dict[str, list[str]] = {}
        self._proposed: dict[tuple[str, str], float] = {}  # that somebody needs a higher ceiling
        self._told_limits: Body = {}
        self._killed: dict[str, int] = {}  # by want of memory, as the last sample had it

    # ---- what it hears ---------------------------------------------------------------------

    def on_summary(self, message: Summary, fds: list[int]) -> None:
        """Keep the newest load summary of S1."""
        del fds
        self.last_summary = message
        self.pools.hear(message)

    def reconfigure(self, message: Configure, fds: list[int]) -> None:
        """Take them again: vsm.toml was reloaded."""
        del fds
        self.configure(message)
        self.context.report(SnapshotOut(body=self.snapshot))

    def on_outlook(self, message: Outlook, fds: list[int]) -> None:
        """Keep the newest outlook of S4, which may be a new one that knows of no limits."""
        del fds
        self.outlook = message.body
        self._told_limits = {}

    def on_policy(self, message: Policy, fds: list[int]) -> None:
        """S5 decided about a proposal: an approved one is carried out with the next sample."""
        del fds
        self.policy.append(message.model_dump(mode="json", exclude={"fds", "kind"}))
        self.verdicts.hear(message, self._before.at_s if self._before is not None else 0.0)

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
        self.audits.forget()
        self._killed = {name: self._killed[name] for name in calls if name in self._killed}
        if isinstance(start, Start):
            budget: Any = start.settings.get("budget", {})
            self.budget = {str(name): float(value) for name, value in budget.items()}
            interval: Any = start.settings.get("audit_interval_s", 0.0)
            self.audits.interval_s = float(interval)
            hurting: Any = start.settings.get("hurting", [])
            for subject, cause in hurting:
                self._relearn(str(subject), str(cause))

    def _relearn(self, subject: str, cause: str) -> None:
        """A predecessor said that it hurts: we are the only one who can say that it is over."""
        if cause == exhaustion.CAUSE:
            self.exhaustion.relearn(subject)
        elif cause == audits.CAUSE and subject in self.audits.names:
            self.audits.relearn(subject)

    # ---- the budget ------------------------------------------------------------------------

    def on_resources(self, message: Resources, fds: list[int]) -> None:
        """A sample: settle what was moved before it, then divide anew."""
        del fds
        rows = {name: self.pools.fill(name, row) for name, row in message.rows.items()}
        message = Resources(at_s=message.at_s, rows=rows)
        before, self._before = self._before, message
        self.samples += 1
        self.moves.settle(message)
        self.verdicts.settle_undone(message.rows)
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
            lacking = lacking_of(found, claims)
            signal = self.exhaustion.feel(resource, budget, lacking, message.at_s)
            if signal is not None:
                self.context.send("system5", signal)
            spare = budget - sum(claim.held for claim in claims)
            for change in found.changes[:room]:
                if self._is_disputed(resource, change, message.at_s):
                    self._ask(resource, change, found, message.at_s)
                    continue
                more = change.after - change.before
                if 0 < more > spare + LEAST[resource]:
                    continue  # until somebody else has given
                spare -= more
                self.moves.ask(
                    resource, change, claims, budget=budget, sample=message, before=before
                )
                room -= 1
            self._propose(resource, found, claims, message.at_s)
            self._give_up(resource, message.at_s)
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
        if resource == INSTANCES:
            pressed = self.pools.is_pressed(name)
        floor = row.floor.get(resource, 0.0)
        if resource == "memory":
            floor = max(floor, min(max(history, default=0.0) * SAFE, row.ceiling[resource]))
        foreseen = self.verdicts.foreseen((name, resource))
        if foreseen and self.verdicts.refusal((name, resource), now.at_s):
            floor = max(floor, min(held, row.ceiling[resource]))  # raised it may be, not lowered
        need = need_of(list(history), held, pressed=pressed) if history else held
        if pressed:  # what is tried has to be worth a move, however little it has
            need = max(need, held + 2 * LEAST[resource])
        need = max(need, foreseen)
        return Claim(
            name=name,
            floor=floor,
            ceiling=row.ceiling[resource],
            held=held,
            need=whole(need) if resource == INSTANCES else need,
            weight=row.priority * (1.0 + gap_share(self.outlook, name)),
            fixed=self._fixed(name, resource, now.at_s),
            pressed=pressed,
        )

    def _fixed(self, name: str, resource: str, now_s: float) -> str:
        if resource in self._damped.get(name, ()):
            return "it went to and fro: damped by system 2"
        if (name, resource) in self.moves.on_their_way():
            return "a move is on its way"
        if resource == INSTANCES and not self.pools.is_known(name):
            return "what its last move changed is not known yet"
        if self.verdicts.foreseen((name, resource)):
            return ""  # it may be raised, whatever was refused before
        return self.verdicts.refusal((name, resource), now_s)

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
            and self.verdicts.foreseen((change.name, resource))
            and needs[change.name] <= change.before
            else change
            for change in found.changes
        )
        return found._replace(changes=changes)

    def _give_up(self, resource: str, now_s: float) -> None:
        """What S4 foresaw is not waited for longer than it makes sense."""
        self.verdicts.give_up(
            resource,
            self.claims[resource],
            reason=self.plans[resource].reason,
            moving=self.moves.unsettled(),
            least=LEAST[resource],
            now_s=now_s,
        )

    def _answer(self, proposal: int, where: tuple[str, str], outcome: Body) -> None:
        """S5 hears what came of what it decided."""
        answer = Proposal(
            id=proposal, sender="system3", subject=where[0], change=where[1], outcome=outcome
        )
        self.context.send("system5", answer)

    # ---- inside and now against outside and then -------------------------------------------

    def _is_disputed(self, resource: str, change: Change, now_s: float) -> bool:
        """It takes from somebody of whom S4 expects that he will need more: S5 decides."""
        lowers = change.after < change.before and change.rule == "lower.budget"
        allowed = self.verdicts.approves((change.name, resource), now_s)
        return lowers and change.name in rising_of(self.outlook) and not allowed

    def _ask(self, resource: str, change: Change, found: Plan, now_s: float) -> None:
        where = change.name, resource
        if not self.verdicts.may_ask(where, now_s):
            return
        short: list[Any] = sorted({*found.short, *(c.name for c in found.changes)} - {change.name})
        number = next(self._numbers)
        self.verdicts.asked(where, number, now_s)
        proposal = Proposal(
            id=number,
            sender="system3",
            subject=change.name,
            change=resource,
            from_value=change.before,
            to_value=change.after,
            evidence={"rule": f"budget.{change.rule}", "for": short},
            expected_gain_bits=sum(gap_bits(self.outlook, name) for name in short),
        )
        self.context.send("system5", proposal)

    def _tell_limits(self) -> None:
        """S4 hears what everybody is given, where that changed."""
        held: dict[str, Any] = {}
        for resource, claims in self.claims.items():
            for claim in claims:
                held.setdefault(claim.name, {})[resource] = claim.held
        outcomes = self.verdicts.outcomes
        if held != self._told_limits or outcomes:
            self._told_limits = held
            body: Body = {"held": held, "outcomes": list(outcomes)}
            outcomes.clear()
            self.context.send("system4", Budgets(body=body))

    def on_moved(self, message: Moved, fds: list[int]) -> None:
        """The supervisor put a limit in force, or refused."""
        del fds
        self.moves.on_moved(message, self._before.at_s if self._before is not None else 0.0)

    def _propose(self, resource: str, found: Plan, claims: list[Claim], now_s: float) -> None:
        """What is beyond S3's power goes to S5: somebody needs more than his ceiling."""
        self._proposed = {key: until for key, until in self._proposed.items() if now_s < until}
        for name in found.bounded:
            if (name, resource) in self._proposed:
                continue
            self._proposed[name, resource] = now_s + PROPOSE_EVERY_S
            claim = next(one for one in claims if one.name == name)
            number = next(self._numbers)
            self.verdicts.asked_for_ceiling((name, resource), number)
            proposal = Proposal(
                id=number,
                sender="system3",
                subject=name,
                change=f"{resource}{CEILING}",
                from_value=claim.ceiling,
                to_value=claim.need,
                evidence={"need": claim.need, "held": claim.held, "rule": "budget.ceiling"},
                expected_gain_bits=gap_bits(self.outlook, name),
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
            "moves": list(self.moves.told),
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
    audits = context.run_beside(control.audits.run())
    try:
        await context.stopping.wait()
    finally:
        audits.cancel()
