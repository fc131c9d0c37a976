"""The time by which age is judged: the wall clock, held back while it may be wrong.

A wall clock that leaps ahead makes everything old at once, and what was deleted for that does not
come back when the clock is put right. So a leap counts only after it has stood for an hour of the
steady clock; until then time goes on from where it was. Pure.
"""

from collections.abc import Iterable
from typing import Final

HOUR_NS: Final = 3600 * 10**9
SETTLED_NS: Final = HOUR_NS
TOLERANCE_NS: Final = HOUR_NS
"""A clock that is ahead by less than this ages nothing by more than this: no leap."""


class AgeClock:
    """Judges readings of both clocks.

    Args:
        anchors: wall and steady time of moments before; the most cautious counts.
    """

    def __init__(self, anchors: Iterable[tuple[int, int]] = ()) -> None:
        self._ahead_ns = min((wall - steady for wall, steady in anchors), default=None)
        self._leap_ns = self._since_ns = 0

    def now_ns(self, wall_ns: int, steady_ns: int) -> int:
        """The time that age may be counted from."""
        ahead_ns = wall_ns - steady_ns
        if self._ahead_ns is None:
            self._ahead_ns = ahead_ns
        if ahead_ns <= self._ahead_ns + TOLERANCE_NS:
            self._leap_ns = 0
            return wall_ns
        if abs(ahead_ns - self._leap_ns) > TOLERANCE_NS:
            self._leap_ns, self._since_ns = ahead_ns, steady_ns
        if steady_ns - self._since_ns >= SETTLED_NS:
            self._ahead_ns = ahead_ns
            return wall_ns
        return steady_ns + self._ahead_ns
