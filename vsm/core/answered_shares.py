"""Whether an integration answers worse than it used to, or not more than chance allows.

One owner, no I/O: totals since the start, as a board has them, are taken at the end of each step.
The share answered well before is an estimate, so the chance of so few or fewer is the beta-binomial
tail of all that was asked before the step (Jeffreys' prior).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vsm.core.anomaly import MOST_TERMS, NOTHING, RARE, beta_below
from vsm.core.demand import OK
from vsm.core.demand_window import Key

LEAST_ASKED: Final = 10
"""In the step; below that a share says little."""
LEAST_HISTORY: Final = 100
"""Before it."""
MOST: Final = 8
_PRIOR: Final = 0.5

Tally = tuple[int, int]  # answered well, asked


class AnsweredShares:
    """What each integration was asked and answered well until the last step's end."""

    def __init__(self) -> None:
        self._before: dict[str, Tally] = {}

    def close(self, totals: Mapping[Key, Sequence[int]], step_s: float) -> list[dict[str, Any]]:
        """A step is over: who answered so little well as he hardly does by chance, as JSON."""
        now, before = _tallies(totals), self._before
        self._before = now
        found: list[dict[str, Any]] = []
        for name, (well, asked) in sorted(now.items()):
            earlier_well, earlier = before.get(name, (0, 0))
            new, came = well - earlier_well, asked - earlier
            if came < LEAST_ASKED or earlier < LEAST_HISTORY or new < 0:
                continue
            if new * earlier >= came * earlier_well:  # as well as before, or better
                continue
            chance = so_few(new, came, earlier_well, earlier, enough=RARE)
            if chance < RARE:
                expected = round(came * earlier_well / earlier, 3)
                found.append({
                    "measure": "answered_well", "integration": name, "demand": "", "came": new,
                    "of": came, "expected": expected, "chance": chance, "step_s": step_s,
                })  # fmt: skip
        return sorted(found, key=lambda row: row["chance"])[:MOST]


def so_few(well: int, asked: int, earlier_well: int, earlier: int, *, enough: float = 1.0) -> float:
    """The chance of `well` or fewer of `asked`, after `earlier_well` of `earlier`.

    Any number may be asked in a step, so only terms that count are added, the largest first, and
    where those are too many `beta_below` answers. Where the chance is `enough` or more, something
    between that and the chance is the answer.
    """
    a, b = earlier_well + _PRIOR, earlier - earlier_well + _PRIOR
    if well >= asked:
        return 1.0
    if well * (a + b) > asked * a:  # above the mean the terms of the other side are the small ones
        return max(0.0, 1.0 - _tail(asked - well - 1, asked, b, a, 1.0))
    return _tail(well, asked, a, b, enough)


def _tail(k: int, asked: int, a: float, b: float, enough: float) -> float:
    """P(X <= k) below the mean, from k down, by the ratio of a term to the one before."""
    log_term = _log_choose(asked, k) + _log_beta(k + a, asked - k + b) - _log_beta(a, b)
    term = total = math.exp(log_term)
    for last in range(k, k - MOST_TERMS, -1):
        if last <= 0 or total >= enough or term <= total * NOTHING:
            return min(1.0, total)
        term *= last * (asked - last + b) / ((asked - last + 1) * (last - 1 + a))
        total += term
    return _below_as_beta(k, asked, a, b)


def _below_as_beta(k: int, asked: int, a: float, b: float) -> float:
    """P(X <= k) by the beta distribution that has the mean and the variance of X / asked."""
    whole = a + b
    scale = ((whole + 1.0) / (1.0 + whole / asked) - 1.0) / whole
    return beta_below((k + 0.5) / asked, a * scale, b * scale)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _tallies(totals: Mapping[Key, Sequence[int]]) -> dict[str, Tally]:
    found: dict[str, Tally] = {}
    for (name, _), row in totals.items():
        well, asked = found.get(name, (0, 0))
        found[name] = well + row[OK], asked + sum(row)
    return found
