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


class Bucket:
    """One client's. It begins full."""

    __slots__ = ("_ahead_s", "_step_s", "_wait_s", "full_at_s", "rate")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.full_at_s = 0.0
        self._step_s = 1 / rate.per_second
        self._ahead_s = (rate.burst - 1) * self._step_s + _ROUNDING_S
        self._wait_s = rate.wait_s + self._ahead_s

    def take(self, now_s: float) -> float:
        """Take one call's token, in advance where the call may wait for it.

        Returns:
            0: it may go now. Above: it may go after so many seconds. Below: nothing was taken,
            and a call after so many seconds might be.
        """
        full_at_s = self.full_at_s
        if full_at_s < now_s:  # noqa: PLR1730 - the hot path: max() costs as much as the rest
            full_at_s = now_s
        late_s = full_at_s - now_s
        if late_s > self._wait_s:
            return self._wait_s - late_s
        self.full_at_s = full_at_s + self._step_s
        return late_s - self._ahead_s if late_s > self._ahead_s else 0.0

    def give_back(self) -> None:
        """The call that was just let through did not go."""
        self.full_at_s -= self._step_s
