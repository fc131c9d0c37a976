"""When S3 looks at whom without warning. Pure; the dice are arguments.

The time between two audits is exponential, so that having been looked at says nothing about when
the next look comes; who was not looked at for longest is the likeliest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

SHORTEST: Final = 0.1
LONGEST: Final = 4.0
"""In mean intervals."""


def pause_s(mean_s: float, dice: float) -> float:
    """How long until the next audit.

    Args:
        mean_s: the configured mean.
        dice: even between 0 and 1.
    """
    return mean_s * min(LONGEST, max(SHORTEST, -math.log(max(1.0 - dice, 1e-9))))


def choose(
    names: Sequence[str], last_s: Mapping[str, float], now_s: float, dice: float
) -> str | None:
    """Whom to look at: by the time since he was looked at last, never is longest; None: nobody."""
    if not names:
        return None
    ages = [max(1.0, now_s - last_s[name]) if name in last_s else 0.0 for name in names]
    never = max(ages, default=0.0) * 2 or 1.0
    weights = [age or never for age in ages]
    mark = dice * sum(weights)
    for name, weight in zip(names, weights, strict=True):
        mark -= weight
        if mark < 0:
            return name
    return names[-1]
