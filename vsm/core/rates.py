"""A token bucket as one number: when may the next call go.

Pure. The generic cell rate algorithm (ITU-T I.371, annex A): a bucket is the time at which it is
full again, so that taking from it is a comparison and an addition, and nothing has to be refilled.
"""

from typing import Final, NamedTuple

_ROUNDING_S: Final = 1e-6
"""Clocks have large values and steps are small: what is less than this late is in time."""


class Rate(NamedTuple):
    """Calls per second in the long run, calls at once, and how long one may wait for its turn."""

    per_second: float
    burst: int
    wait_s: float = 0.0


class Turn(NamedTuple):
    """What a call is told.

    Args:
        wait_s: it may go after so long; above the rate's `wait_s` it may not, and
            nothing was taken.
        full_at_s: the bucket afterwards.
    """

    wait_s: float
    full_at_s: float


def take(rate: Rate, full_at_s: float, now_s: float) -> Turn:
    """Take one call's token from the bucket, in advance where the call may wait for it."""
    step_s = 1 / rate.per_second
    begin_s = max(full_at_s, now_s)
    wait_s = begin_s - now_s - (rate.burst - 1) * step_s
    if wait_s > rate.wait_s + _ROUNDING_S:
        return Turn(wait_s, full_at_s)
    return Turn(wait_s if wait_s > _ROUNDING_S else 0.0, begin_s + step_s)
