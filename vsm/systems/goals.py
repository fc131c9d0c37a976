"""S4's part in what the whole is held to: it measures the goals that S5 is given, and hurts.

Runs in S4's process. The decisions are vsm.core.goals'. Which goals hurt is recorded whenever that
changes or is said again, and a successor goes on from there: between missed and met by enough its
own measurement would not tell.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vsm.core.demand_window import Key
from vsm.core.goals import (
    Change,
    Goal,
    Standing,
    changes,
    goals_of,
    measure,
    recorded,
    words,
)
from vsm.messages import Algedonic, Body, Noted

SAY_AGAIN_S: Final = 1800.0
"""What lasts is said again: S5 takes what nobody repeats for an hour to be over."""


class Goals:
    """The goals, and which of them hurt."""

    def __init__(self) -> None:
        self._goals: tuple[Goal, ...] = ()
        self._missed: frozenset[Goal] = frozenset()
        self._said_s = 0.0

    def relearn(self, rows: object) -> None:
        """A predecessor recorded that these hurt: so they do, and S5, who may be new, hears it."""
        self._missed = recorded(rows)
        self._said_s = -SAY_AGAIN_S

    def record(self) -> Noted:
        """Which hurt, for a successor."""
        missed: list[Any] = [list(goal) for goal in sorted(self._missed)]
        return Noted(event="intelligence.goals", detail={"missed": missed})

    def configure(self, policy: Body) -> None:
        """Take those of a compiled policy."""
        rows: Any = policy.get("goals", ())
        self._goals = goals_of(rows)

    def feel(
        self, table: Mapping[Key, Sequence[int]], outlook: Body, now_s: float
    ) -> list[Algedonic]:
        """Pain for what is newly missed and, now and then, still; relief for what is met again."""
        standings = self._measure(table, outlook)
        self._missed, found = changes(self._missed, standings)
        if now_s - self._said_s >= SAY_AGAIN_S:
            self._said_s = now_s
            new = {change.standing.goal for change in found}
            lasting = [one for one in standings if one.goal in self._missed - new]
            found += [Change("pain", one) for one in lasting]
        return [
            Algedonic(
                severity=change.severity,
                subject=change.standing.goal.subject,
                cause=change.standing.goal.cause,
                detail=_told(change),
            )
            for change in found
        ]

    def rows(self, table: Mapping[Key, Sequence[int]], outlook: Body) -> list[Any]:
        """How each stands, as JSON."""
        return [
            {
                **one.goal._asdict(),
                "state": one.state,
                "interval": None if one.interval is None else list(one.interval),
                "hurts": one.goal in self._missed,
                "words": words(one),
            }
            for one in self._measure(table, outlook)
        ]

    def _measure(self, table: Mapping[Key, Sequence[int]], outlook: Body) -> list[Standing]:
        ratio: Any = outlook.get("requisite_ratio")
        interval = None if ratio is None else (ratio["low"], ratio["high"])
        return measure(self._goals, table, interval)


def _told(change: Change) -> str:
    """A pain that lasts although its figure no longer shows it was felt on earlier evidence."""
    told = words(change.standing)
    lasts = change.severity == "pain" and change.standing.state != "missed"
    return f"{told} now, missed before" if lasts else told
