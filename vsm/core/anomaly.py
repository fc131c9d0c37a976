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
    """P(X >= count) of the negative binomial of `size` failures and success probability `share`."""
    log_share, log_rest = math.log(share), math.log1p(-share)
    below = sum(
        math.exp(
            math.lgamma(k + size) - math.lgamma(k + 1) - math.lgamma(size)
            + k * log_share + size * log_rest
        )
        for k in range(count)
    )  # fmt: skip
    return max(0.0, 1.0 - below)
