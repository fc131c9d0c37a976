"""Whether something happens more often than it used to, or not more than chance allows. Pure.

Counts of rare events are taken as Poisson: the chance of so many or more, at the earlier rate, is
the upper tail. The earlier rate is not known but estimated; with half an event added (Jeffreys'
prior for a rate) a kind that never happened before has a rate too, and the tail is that of the
negative binomial that comes of it.
"""

import math
from typing import Final, NamedTuple

RARE: Final = 0.001
"""Below this chance it is told: of many kinds looked at often, few are told for nothing."""
NOTHING: Final = 1e-17
"""A term that changes a sum of larger ones no more."""
MOST_TERMS: Final = 4096
"""Of a sum; where they do not come to nothing by then, the distribution is wide and smooth."""
LEAST_HISTORY: Final = 6.0
"""How many times as long as the time looked at the history must be."""


class Unusual(NamedTuple):
    """More than usual: so many, where `expected` were to be expected; `chance` of that many."""

    times: int
    expected: float
    chance: float


def unusual(count: int, span_s: float, earlier: int, earlier_s: float) -> Unusual | None:
    """Compare `count` events in `span_s` with `earlier` ones in the `earlier_s` before it.

    Raises:
        ValueError: the history is too short to be compared with.
    """
    if earlier_s < LEAST_HISTORY * span_s or span_s <= 0:
        raise ValueError("the history is too short")
    share = span_s / (span_s + earlier_s)
    size = earlier + 0.5
    expected = size * span_s / earlier_s
    chance = tail(count, size, share)
    return Unusual(count, expected, chance) if chance < RARE and count > expected else None


def tail(count: int, size: float, share: float) -> float:
    """P(X >= count) of the negative binomial of `size` failures and success probability `share`.

    Any number may be counted, so the side of `count` that lies away from the mean is added, from
    `count` on, by the ratio of a term to the one before: it soon comes to nothing. Where it does
    not, `beta_below` answers, to a thousandth part of the chance.
    """
    if count <= 0:
        return 1.0
    if count * (1.0 - share) > size * share:
        above = _sum_above(count, size, share)
        return beta_below(share, count, size) if above is None else min(1.0, above)
    below = _sum_below(count, size, share)
    return beta_below(share, count, size) if below is None else max(0.0, 1.0 - below)


def _sum_above(count: int, size: float, share: float) -> float | None:
    term = total = _term(count, size, share)
    for k in range(count, count + MOST_TERMS):
        if term <= total * NOTHING:
            return total
        term *= (k + size) / (k + 1) * share
        total += term
    return None


def _sum_below(count: int, size: float, share: float) -> float | None:
    term = total = _term(count - 1, size, share)
    for k in range(count - 1, count - 1 - MOST_TERMS, -1):
        if k <= 0 or term <= total * NOTHING:
            return total
        term *= k / ((k - 1 + size) * share)
        total += term
    return None


def beta_below(x: float, a: float, b: float) -> float:
    """I_x(a, b), the beta distribution's share below x, by one normal deviate.

    The approximation of Camp and Paulson (Abramowitz and Stegun 1964, 26.5.22): the error of a
    chance near 0.001 is below a thousandth of it for a, b in the thousands, and a sixth where one
    of them is 1.5.
    """
    one, other = math.cbrt(b * x), math.cbrt(a * (1.0 - x))
    spread = math.sqrt(one * one / b + other * other / a)
    deviate = 3.0 * (one * (1.0 - 1.0 / (9.0 * b)) - other * (1.0 - 1.0 / (9.0 * a))) / spread
    return 0.5 * math.erfc(-deviate / math.sqrt(2.0))


def _term(k: int, size: float, share: float) -> float:
    return math.exp(
        math.lgamma(k + size) - math.lgamma(k + 1) - math.lgamma(size)
        + k * math.log(share) + size * math.log1p(-share)
    )  # fmt: skip
