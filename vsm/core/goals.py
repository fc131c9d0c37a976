"""What the whole is held to: goals in figures that vsm measures, and whether they are met. Pure.

A goal is missed when the whole 95 % interval of its figure is below it, met when none of it is.
It hurts from when it is missed until the interval is above it by RELIEF of what is left to 1: so
nothing flaps in between, and what chance explains changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from vsm.core.demand import OK
from vsm.core.demand_window import Key
from vsm.core.proportion import wilson

Measure: TypeAlias = Literal["requisite_ratio", "answered_well"]
State: TypeAlias = Literal["met", "missed", "undecided", "not enough evidence"]
LEAST_EVENTS: Final = 30
RELIEF: Final = 1 / 6
_MOST_NAME: Final = 64
DEFAULT_RATIO: Final = 0.7
_CAUSES: Final[dict[Measure, str]] = {
    "requisite_ratio": "ratio too low",
    "answered_well": "too little answered well",
}


class Goal(NamedTuple):
    """The least of the requisite ratio, or of what is asked of an integration ("": of all)."""

    measure: Measure
    integration: str
    at_least: float

    @property
    def subject(self) -> str:
        """What hurts when it is missed."""
        whole = "requisite ratio" if self.measure == "requisite_ratio" else "all demand"
        return self.integration or whole

    @property
    def cause(self) -> str:
        """Why it hurts then."""
        return _CAUSES[self.measure]


class Standing(NamedTuple):
    """A goal and its figure's interval; None where the evidence carries none."""

    goal: Goal
    interval: tuple[float, float] | None

    @property
    def state(self) -> State:
        """Whether it is met."""
        if self.interval is None:
            return "not enough evidence"
        low, high = self.interval
        if high < self.goal.at_least:
            return "missed"
        return "met" if low >= self.goal.at_least else "undecided"

    @property
    def is_clear(self) -> bool:
        """Whether it is met by so much that a pain is over."""
        at_least = self.goal.at_least
        return self.interval is not None and self.interval[0] > at_least + RELIEF * (1 - at_least)


def goals_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Goal, ...]:
    """The goals of a compiled policy."""
    return tuple(Goal(row["measure"], row["integration"], row["at_least"]) for row in rows)


def recorded(rows: object) -> frozenset[Goal]:
    """Goals as S4 recorded them; what is none is left out."""
    found = rows if isinstance(rows, list) else []
    return frozenset(Goal(*row) for row in found if _is_goal(row))


def _is_goal(row: object) -> bool:
    if not isinstance(row, list) or len(row) != len(Goal._fields):
        return False
    what, integration, at_least = row
    known = isinstance(what, str) and what in get_args(Measure) and isinstance(integration, str)
    return known and len(integration) <= _MOST_NAME and _is_share(at_least)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and 0 <= value <= 1


def measure(
    goals: Iterable[Goal],
    table: Mapping[Key, Sequence[int]],
    ratio: tuple[float, float] | None,
) -> list[Standing]:
    """How each goal stands.

    Args:
        goals: what is wanted.
        table: counts by outcome of every demand class of late.
        ratio: the interval of the requisite ratio, where the evidence carries one.
    """
    return [
        Standing(one, ratio if one.measure == "requisite_ratio" else _answered(one, table))
        for one in goals
    ]


def _answered(goal: Goal, table: Mapping[Key, Sequence[int]]) -> tuple[float, float] | None:
    rows = [row for key, row in table.items() if goal.integration in ("", key[0])]
    events = sum(map(sum, rows))
    return wilson(sum(row[OK] for row in rows), events) if events >= LEAST_EVENTS else None


class Change(NamedTuple):
    """It begins to hurt, or no longer does."""

    severity: Literal["pain", "relief"]
    standing: Standing


def changes(
    missed: frozenset[Goal], standings: Sequence[Standing]
) -> tuple[frozenset[Goal], list[Change]]:
    """What is newly missed and what is clear again; a goal that is no more is relieved.

    Args:
        missed: the goals that hurt until now.
        standings: how each stands.

    Returns:
        the goals that hurt from now on, and what changed.
    """
    gone = missed - {one.goal for one in standings}
    found = [Change("relief", Standing(goal, None)) for goal in sorted(gone)]
    for one in standings:
        if one.goal not in missed and one.state == "missed":
            found.append(Change("pain", one))
        elif one.goal in missed and one.is_clear:
            found.append(Change("relief", one))
    pains = {c.standing.goal for c in found if c.severity == "pain"}
    return missed - {c.standing.goal for c in found} | pains, found


def words(one: Standing) -> str:
    """How a goal stands, for people."""
    goal = one.goal
    whole = f"what {goal.integration} is asked" if goal.integration else "all that is asked"
    what = (
        f"a requisite ratio of at least {goal.at_least:g}"
        if goal.measure == "requisite_ratio"
        else f"at least {goal.at_least:g} of {whole} answered well"
    )
    span = "" if one.interval is None else f" ({one.interval[0]:.3f} to {one.interval[1]:.3f})"
    return f"{what}: {one.state}{span}"
