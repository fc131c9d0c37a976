"""A short forecast of counts per step, and how good the forecasts were.

One owner, no I/O. Three kinds of model run side by side (the last value, the value of a season
ago, exponential smoothing at three speeds) and the one whose measured error was least lately is
believed. The interval is conformal: the quantile of the believed forecasts' own absolute errors,
which holds its share whatever the distribution, as long as it does not change (Vovk et al. 2005).
Before there are enough errors there is no forecast. Every forecast is held against what came.

A count surprises that is further off than every kept error was, and that chance hardly gives: the
first alone happens once in so many steps, the second alone with everything that comes in bursts.
"""

import math
from collections import deque
from typing import Any, Final, NamedTuple

from vsm.core.anomaly import RARE, tail

COVERAGE: Final = 0.9
"""The share of counts that an interval is to hold."""
LEAST_ERRORS: Final = 10
KEPT_ERRORS: Final = 64
LEAST_SURPRISED: Final = 32
"""So many errors must be known before anything is a surprise."""
SMOOTHING: Final = (0.2, 0.5, 0.8)
MEMORY: Final = 0.95
"""What an error weighs one step later, when models are compared."""
OCCURRENCE: Final = 0.1
"""How fast the probability that a class is asked for at all follows."""
_LAST, _SEASONAL = "last value", "seasonal"


class Forecast(NamedTuple):
    """What is expected of the next step.

    Args:
        low, high: between them `COVERAGE` of the counts are expected.
        model: which was believed. error: its mean absolute error lately.
        probability: that there will be any.
    """

    expected: float
    low: float
    high: float
    model: str
    error: float
    probability: float


class Score(NamedTuple):
    """How good forecasts were; sums, so that scores of several series add up.

    Args:
        forecasts: how many were held against a count. inside: counts within the interval.
        error: Σ |count - expected|. naive_error: the same, had the last value been expected.
        brier: Σ (probability - came)².
    """

    forecasts: int = 0
    inside: int = 0
    error: float = 0.0
    naive_error: float = 0.0
    bias: float = 0.0
    brier: float = 0.0

    def plus(self, other: "Score") -> "Score":
        """Both together."""
        return Score(
            self.forecasts + other.forecasts,
            self.inside + other.inside,
            self.error + other.error,
            self.naive_error + other.naive_error,
            self.bias + other.bias,
            self.brier + other.brier,
        )

    def report(self) -> dict[str, Any] | None:
        """Means; None where nothing was forecast yet."""
        count = self.forecasts
        if not count:
            return None
        naive = self.naive_error
        return {
            "forecasts": count,
            "coverage": self.inside / count,
            "wanted_coverage": COVERAGE,
            "mean_absolute_error": self.error / count,
            "relative_to_naive": self.error / naive if naive else None,
            "bias": self.bias / count,
            "brier": self.brier / count,
        }


class Series:
    """Counts of one class, step by step.

    Args:
        season: after so many steps it may repeat itself.

    Attributes:
        surprise: the chance of the last count, where that is a surprise.
    """

    def __init__(self, season: int) -> None:
        self.season = season
        self.steps = 0
        self.total = 0
        self.score = Score()
        self.surprise: float | None = None
        self._last = 0
        self._history: deque[int] = deque(maxlen=season)
        self._levels = [0.0] * len(SMOOTHING)
        self._errors: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._missed: deque[float] = deque(maxlen=KEPT_ERRORS)
        self._probability = 0.0

    def add(self, count: int) -> None:
        """The step is over: so many came."""
        if self.steps:
            self._learn(count)
        came = 1.0 if count else 0.0
        pace = OCCURRENCE if self.steps else 1.0
        self._probability += pace * (came - self._probability)
        for index, pace in enumerate(SMOOTHING):
            level = self._levels[index]
            self._levels[index] = level + pace * (count - level) if self.steps else float(count)
        self._history.append(count)
        self._last = count
        self.steps += 1
        self.total += count

    def forecast(self) -> Forecast | None:
        """What the next step brings; None without enough evidence."""
        if len(self._missed) < LEAST_ERRORS:
            return None
        model = self._believed()
        expected = self._predictions()[model]
        missed = sorted(self._missed)
        rank = min(len(missed), math.ceil(COVERAGE * (len(missed) + 1)))
        width = missed[rank - 1]
        return Forecast(
            expected=expected,
            low=max(0.0, expected - width),
            high=expected + width,
            model=model,
            error=self._errors[model] / self._weights[model],
            probability=self._probability,
        )

    @property
    def mean(self) -> float:
        """Of all steps."""
        return self.total / self.steps if self.steps else 0.0

    def is_idle(self) -> bool:
        """Whether nothing came for a season."""
        return len(self._history) == self.season and not any(self._history)

    def _predictions(self) -> dict[str, float]:
        found = {_LAST: float(self._last)}
        if len(self._history) == self.season:
            found[_SEASONAL] = float(self._history[0])
        for pace, level in zip(SMOOTHING, self._levels, strict=True):
            found[f"smoothed {pace:g}"] = level
        return found

    def _believed(self) -> str:
        predictions = self._predictions()
        known = [name for name in predictions if name in self._errors]
        return min(known, key=lambda name: self._errors[name] / self._weights[name], default=_LAST)

    def _learn(self, count: int) -> None:
        told = self.forecast()
        predictions = self._predictions()
        miss = abs(count - predictions[self._believed()])
        self.surprise = None if told is None else self._surprise(count, told.expected, miss)
        self._missed.append(miss)
        if told is not None:
            came = 1.0 if count else 0.0
            mark = Score(
                1,
                int(told.low <= count <= told.high),
                abs(count - told.expected),
                abs(count - self._last),
                told.expected - count,
                (told.probability - came) ** 2,
            )
            self.score = self.score.plus(mark)
        for name, expected in predictions.items():
            self._errors[name] = self._errors.get(name, 0.0) * MEMORY + abs(count - expected)
            self._weights[name] = self._weights.get(name, 0.0) * MEMORY + 1.0

    def _surprise(self, count: int, expected: float, miss: float) -> float | None:
        if len(self._missed) < LEAST_SURPRISED or miss <= max(self._missed):
            return None
        chance = _chance(count, expected)
        return chance if chance < RARE else None


def _chance(count: int, expected: float) -> float:
    """Of so many or more, or so few or fewer, where `expected` came in one step of the same kind.

    As in vsm.core.anomaly: the rate itself is an estimate, here of a single step's events.
    """
    size = expected + 0.5
    return tail(count, size, 0.5) if count > expected else 1.0 - tail(count + 1, size, 0.5)
