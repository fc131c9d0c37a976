"""Forecasts for every demand class: steps, warnings, and the record of what was expected.

One owner, no I/O: `now` is an argument. Counts come as totals since the start, as a board has
them; a step closes when its time is over. Classes that rest for a season are forgotten.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from vsm.core.answered_shares import AnsweredShares
from vsm.core.demand import UNSERVED
from vsm.core.demand_window import Key
from vsm.core.figures import figure
from vsm.core.forecast import Forecast, Score, Series

MOST_SERIES: Final = 256
MOST_SKIPPED: Final = 16
"""So many steps without a look are filled with nothing; a longer gap begins anew."""
MOST_SURPRISES: Final = 8
SURGE: Final = 2.0
SURGE_EVENTS: Final = 30

Totals = Mapping[Key, Sequence[int]]
Counts = Mapping[Key, tuple[int, int]]
"""What was asked in one step, and how much of it nobody served."""


class Forewarning(NamedTuple):
    """What is likely to come.

    Args:
        kind: "surge": much more than usual is asked; "unserved": what nobody serves is asked on.
    """

    kind: str
    key: Key
    forecast: Forecast
    usual: float


def words(warning: Forewarning, step_s: float) -> str:
    """A warning, for people."""
    name = " ".join(warning.key)
    found = warning.forecast
    span = f"{figure(found.low)} to {figure(found.high)} in the next {step_s:g} s"
    if warning.kind == "unserved":
        return f"{name} is asked for and not served: {span}"
    return f"{name} is asked for more than usual: {span}, usually {figure(warning.usual)}"


class Told(NamedTuple):
    """A forecast beside what came; the chance of that, where it is a surprise."""

    key: Key
    forecast: Forecast
    came: int
    surprise: float | None = None


class DemandSeries:
    """What was asked of each class, step by step.

    Args:
        step_s: the length of a step. season: after so many steps demand may repeat itself.
        now_s: the clock's reading at which the first step begins.
        score: of the forecasts of a predecessor.

    Attributes:
        latest: what came in the last step that is over; None while no class is known.
    """

    def __init__(
        self, *, step_s: float, season: int, now_s: float, score: Score | None = None
    ) -> None:
        self.step_s = step_s
        self.season = season
        self.closed = 0
        self.score = score or Score()
        self.latest: Counts | None = None
        self._ends_s = now_s + step_s
        self._shares = AnsweredShares()
        self._asked: dict[Key, Series] = {}
        self._unserved: dict[Key, Series] = {}
        self._before: dict[Key, tuple[int, int]] | None = None

    def look(self, totals: Totals, now_s: float) -> list[Told]:
        """Close the steps that are over; what had been expected of them, and what came."""
        if self._before is None:
            self._before = _counts(totals)
        if now_s < self._ends_s:
            return []
        over = 1 + int((now_s - self._ends_s) // self.step_s)
        self._ends_s += over * self.step_s
        counts, before = _counts(totals), self._before
        self._before = counts
        new = {key: _since(row, before.get(key, (0, 0))) for key, row in counts.items()}
        told = self._close_all(new)
        if over > 1:  # what came in several steps surprises nobody who expected that of one
            told = [one._replace(surprise=None) for one in told]
        self.latest = {key: row for key, row in new.items() if row[0]} if self._asked else None
        self._rest(over - 1)
        self._forget()
        self.closed += over
        return told

    def relearn(self, steps: Sequence[tuple[float, Counts]], now_s: float) -> int:
        """Learn from what a predecessor saw, before the first look.

        A gap of a few steps is one in which nothing came; a longer one ends what was before it:
        nobody knows what was asked while vsm was away. Scores stay the predecessor's.

        Args:
            steps: how long ago each ended, and what came in it; the oldest first.
            now_s: the clock's reading.

        Returns:
            How many steps count.
        """
        kept, learned = self.score, 0
        nexts = [*(ago_s + self.step_s for ago_s, _ in steps[1:]), 0.0][: len(steps)]
        for (ago_s, counts), next_s in zip(steps, nexts, strict=True):
            self._close_all(counts)
            learned += 1
            gap = (ago_s - next_s) / self.step_s
            missing = round(gap) if next_s else int(gap)  # the step of this moment is not over
            if missing > MOST_SKIPPED:
                self._asked.clear()
                self._unserved.clear()
                learned = 0
            else:
                self._rest(missing)
            self._forget()
        self.score = kept
        for series in [*self._asked.values(), *self._unserved.values()]:
            series.score = Score()
        if learned:
            self._ends_s = now_s + self.step_s - steps[-1][0] % self.step_s
        self.closed += learned
        return learned

    def _close_all(self, counts: Counts) -> list[Told]:
        """The most asked first: of more classes than there is room for, those are forecast."""
        told: list[Told] = []
        keys = {*counts, *self._asked}
        for key in sorted(keys, key=lambda one: (-counts.get(one, (0, 0))[0], one)):
            told += self._close(key, *counts.get(key, (0, 0)))
        return told

    def _rest(self, steps: int) -> None:
        """Nothing came in so many steps."""
        for _ in range(min(steps, MOST_SKIPPED)):
            for series in [*self._asked.values(), *self._unserved.values()]:
                series.add(0)

    def _close(self, key: Key, asked: int, unserved: int) -> Iterator[Told]:
        known = self._asked.get(key)
        if known is None and (not asked or len(self._asked) >= MOST_SERIES):
            return
        series = self._asked.setdefault(key, Series(self.season))
        told = series.forecast()
        series.add(asked)
        if told is not None:
            yield Told(key, told, asked, series.surprise)
        if unserved or key in self._unserved:
            self._unserved.setdefault(key, Series(self.season)).add(unserved)

    def _forget(self) -> None:
        for key in [key for key, series in self._asked.items() if series.is_idle()]:
            self.score = self.score.plus(self._asked.pop(key).score)
            self._unserved.pop(key, None)

    def forecasts(self) -> dict[Key, Forecast]:
        """What is expected of the next step, where there is evidence."""
        found = {key: series.forecast() for key, series in self._asked.items()}
        return {key: one for key, one in found.items() if one is not None}

    def warnings(self) -> list[Forewarning]:
        """What even the low end of an interval says; nobody is warned by noise."""
        found = []
        for key, series in self._unserved.items():
            coming = series.forecast()
            if coming is not None and coming.low > 0:
                found.append(Forewarning("unserved", key, coming, series.mean))
        for key, series in self._asked.items():
            coming = series.forecast()
            enough = series.total >= SURGE_EVENTS
            if coming is not None and enough and coming.low > SURGE * series.mean:
                found.append(Forewarning("surge", key, coming, series.mean))
        return sorted(found, key=lambda one: -one.forecast.expected)

    def surprises(self, told: Iterable[Told], totals: Totals) -> list[dict[str, Any]]:
        """What came, and how little was answered well, as it hardly is by chance; as JSON.

        Args:
            told: of the step that is over.
            totals: at its end.
        """
        found = [one for one in told if one.surprise is not None]
        rows: list[dict[str, Any]] = [
            {
                "measure": "asked",
                "integration": one.key[0],
                "demand": one.key[1],
                "came": one.came,
                "expected": round(one.forecast.expected, 3),
                "chance": one.surprise,
                "step_s": self.step_s,
            }
            for one in found[:MOST_SURPRISES]
        ]
        return [*rows, *self._shares.close(totals, self.step_s)]

    def whole_score(self) -> Score:
        """Of the forecasts of all classes, forgotten ones and a predecessor's included."""
        score = self.score
        for series in self._asked.values():
            score = score.plus(series.score)
        return score

    def calibration(self) -> dict[str, Any] | None:
        """How good the forecasts were; None where none was held against a count."""
        return self.whole_score().report()


def recorded(rows: Iterable[Any], step_s: float) -> list[tuple[float, Counts]]:
    """What `relearn` takes, of records of steps of this length."""
    return [
        (row["ago_s"], {(i, d): (asked, unserved) for i, d, asked, unserved in row["counts"]})
        for row in rows
        if row["step_s"] == step_s
    ]


def _since(now: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    return max(0, now[0] - before[0]), max(0, now[1] - before[1])


def _counts(totals: Totals) -> dict[Key, tuple[int, int]]:
    return {key: (sum(row), row[UNSERVED]) for key, row in totals.items()}
