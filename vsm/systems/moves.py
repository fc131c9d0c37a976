"""The moves that S3 has asked for: each explained in the journal, and what came of it.

Runs in system 3. What is moved is decided by `vsm.systems.control`; whether it is put in force,
by the supervisor. A limit's outcome is told with the next sample, a pool's when a whole summary
of S1 was taken since.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vsm.configuration.regulation import INSTANCES
from vsm.core.budget import Change, Claim
from vsm.core.figures import amount
from vsm.messages import Body, Budgets, Decided, Move, Moved, ResourceRow, Resources, Settled
from vsm.systems.base import SystemContext
from vsm.systems.pools import Pools, came_of
from vsm.systems.reasons import why
from vsm.systems.verdicts import STANDING_S, Verdicts, Where

KEPT: Final = 16
_MOST_OTHERS: Final = 20  # of whom the record says what they hold


class _Made(NamedTuple):
    """A move on its way, and what is to be compared when it came through."""

    key: str
    resource: str
    change: Change
    pressure: float
    pressure_before: float
    killed: int
    evidence: Body
    asked_s: float

    @property
    def where(self) -> Where:
        return self.change.name, self.resource


class Moves:
    """What was asked of the supervisor and is not settled.

    Args:
        numbers: of everything that S3 asks for.
    """

    def __init__(
        self, context: SystemContext, pools: Pools, verdicts: Verdicts, numbers: Iterator[int]
    ) -> None:
        self._context = context
        self._pools = pools
        self._verdicts = verdicts
        self._numbers = numbers
        self._made: dict[int, _Made] = {}
        self._unsettled: list[_Made] = []
        self.told: deque[Body] = deque(maxlen=KEPT)

    def on_their_way(self) -> frozenset[Where]:
        """Those of which the supervisor has not said what became of them."""
        return frozenset(one.where for one in self._made.values())

    def unsettled(self) -> frozenset[Where]:
        """Those whose outcome is not known."""
        return self.on_their_way() | {one.where for one in self._unsettled}

    def ask(
        self,
        resource: str,
        change: Change,
        claims: Sequence[Claim],
        *,
        budget: float,
        sample: Resources,
        before: Resources | None,
    ) -> None:
        """Ask the supervisor for it, and write down why; `before` was the sample before."""
        number = next(self._numbers)
        sent = self._context.report(
            Move(id=number, integration=change.name, limits={resource: change.after})
        )
        if not sent:
            return  # the link is full; the next sample decides again
        row = sample.rows.get(change.name, ResourceRow())
        last = before.rows.get(change.name) if before is not None else None
        pressure = row.pressure.get(resource, 0.0)
        met_before = pressure if last is None else pressure - last.pressure.get(resource, 0.0)
        evidence = self._pools.evidence(change.name) if resource == INSTANCES else {}
        made = _Made(
            key=f"move-{number}",
            resource=resource,
            change=change,
            pressure=pressure,
            pressure_before=max(0.0, met_before),
            killed=row.out_of_memory,
            evidence=evidence,
            asked_s=sample.at_s,
        )
        self._made[number] = made
        claim = next(one for one in claims if one.name == change.name)
        others = {one.name: round(one.held, 3) for one in claims if one.name != change.name}
        inputs: Body = {
            "why": why(resource, change, claims, budget),
            "resource": resource,
            "budget": budget,
            "held": change.before,
            "need": round(claim.need, 3),
            "floor": claim.floor,
            "ceiling": claim.ceiling,
            "weight": round(claim.weight, 3),
            "pressure": made.pressure,
            "out_of_memory": row.out_of_memory,
            **evidence,
            "others": dict(itertools.islice(others.items(), _MOST_OTHERS)),
            "at_s": round(sample.at_s, 3),
        }
        self._context.report(
            Decided(
                key=made.key,
                subject=change.name,
                rule=f"budget.{change.rule}",
                inputs=inputs,
                alternatives=(
                    f"keep {amount(resource, change.before)}",
                    f"ceiling {amount(resource, claim.ceiling)}",
                    f"floor {amount(resource, claim.floor)}",
                ),
                choice=f"{resource} {amount(resource, change.after)}",
            )
        )

    def on_moved(self, message: Moved, now_s: float) -> None:
        """The supervisor put a limit in force, or refused."""
        made = self._made.pop(message.id, None)
        if made is None:
            return
        self.told.append(
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
            if made.resource == INSTANCES:
                self._pools.moved(made.change.name)
            self._context.send("system2", Budgets(body={"moved": self.told[-1]}))
            return
        self._verdicts.refuse(made.where, f"refused: {message.detail}", now_s)
        outcome: Body = {"state": "refused", "detail": message.detail}
        self._context.report(Settled(key=made.key, outcome=outcome))
        self._verdicts.moved(made.where, made.change, outcome)

    def settle(self, now: Resources) -> None:
        """Tell what came of the moves: whether the limit was met again since."""
        self._give_up(now.at_s)
        waiting: list[_Made] = []
        for made in self._unsettled:
            row = now.rows.get(made.change.name)
            pool = made.resource == INSTANCES
            if pool and row is not None and not self._pools.is_known(made.change.name):
                waiting.append(made)
                continue
            outcome: Body = {"state": "in force"}
            if row is not None:
                outcome |= self._of_pool(made) if pool else _of_limit(made, row)
            self._context.report(Settled(key=made.key, outcome=outcome))
            self._verdicts.moved(made.where, made.change, outcome)
        self._unsettled = waiting

    def _give_up(self, now_s: float) -> None:
        """The supervisor's answer may be lost: no limit waits for it for ever."""
        for number, made in list(self._made.items()):
            if now_s >= made.asked_s + STANDING_S:
                del self._made[number]
                outcome: Body = {"state": "not answered"}
                self._context.report(Settled(key=made.key, outcome=outcome))
                self._verdicts.moved(made.where, made.change, outcome)

    def _of_pool(self, made: _Made) -> Body:
        name = made.change.name
        pressed = self._pools.is_pressed(name)
        return came_of(made.evidence, self._pools.evidence(name), pressed=pressed)


def _of_limit(made: _Made, row: ResourceRow) -> Body:
    met = row.pressure.get(made.resource, 0.0) - made.pressure
    killed = row.out_of_memory > made.killed
    relieved = met <= 0 and not killed
    return {
        "pressure_before": made.pressure_before,
        "pressure_since": met,
        "relieved": relieved,
    }
