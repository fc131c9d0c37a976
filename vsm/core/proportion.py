"""A share with its interval. Pure."""

import math
from typing import Final

_DEVIATIONS_95: Final = 1.959963984540054


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share of at least one trial (Wilson 1927)."""
    z2 = _DEVIATIONS_95**2
    share = successes / trials
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = share * (1 - share) / trials + z2 / (4 * trials**2)
    half = _DEVIATIONS_95 / (1 + z2 / trials) * math.sqrt(spread)
    return max(0.0, middle - half), min(1.0, middle + half)
