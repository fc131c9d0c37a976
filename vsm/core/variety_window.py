"""Demand counts that change with every event and fade with time, and their variety at any moment.

The sums behind a measurement are kept in exact integers, so asking costs nothing per class and
the answer equals a recomputation over the counts to the last bit. An event is noted at once and
settled when somebody asks, or a few thousand together: the sums are exact in any order, so nobody
sees the difference. Mutable, and so the one part of variety that is no function; it has one owner
and does no I/O: `now` is an argument.

Fading is exact: when a half-life has passed every count is halved, rounded down. A class asked
once is thus forgotten after one half-life, and between halvings nothing fades. Halving also is
what happens before a count would reach 65,536 or the total would pass 2^22: shares are kept (to
within the rounding of single events), absolute numbers are not, and `halvings` says so.
"""

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from vsm.core.variety import (
    NO_EVENTS,
    NotEnoughEvidence,
    Sums,
    Variety,
    from_sums,
    sum_counts,
)
from vsm.core.variety_fixed import COUNT_LIMIT, TOTAL_LIMIT, log2_table

_Counts = npt.NDArray[np.int64]
_FORGOTTEN_AFTER: Final = 17  # halvings that leave nothing of a count below 2^16
NOTED_MOST: Final = 4096
"""Events that wait to be settled at most, 32 KiB."""
_FEW: Final = 40  # events that are settled sooner one by one than as arrays


class Window:
    """Asked and answered counts of a fixed number of demand classes.

    Args:
        classes: how many demand classes there are.
        half_life_s: after this time an event weighs half.
        now_s: the clock's reading from which the first half-life runs.
    """

    def __init__(self, classes: int, *, half_life_s: float, now_s: float) -> None:
        if classes < 1 or not half_life_s > 0:
            raise ValueError("expected at least one class and a half-life above 0")
        self.half_life_s = half_life_s
        self._halvings = 0
        self._faded_s = now_s
        self._class_count = classes
        self._noted: list[int] = []  # a class, or ~class where it was not answered well
        self._asked = array("q", bytes(8 * classes))
        self._answered = array("q", bytes(8 * classes))
        self._events = self._well = self._classes = 0
        self._asked_log = self._answered_log = 0

    @property
    def asked(self) -> list[int]:
        """A copy of the asked counts."""
        self._settle()
        return self._asked.tolist()

    @property
    def answered(self) -> list[int]:
        """A copy of the answered counts."""
        self._settle()
        return self._answered.tolist()

    @property
    def halvings(self) -> int:
        """How often all counts were halved, by time or because they grew too large."""
        self._settle()
        return self._halvings

    @property
    def sums(self) -> Sums:
        """The sums over the counts as they are now."""
        self._settle()
        return Sums(self._events, self._well, self._classes, self._asked_log, self._answered_log)

    def measure(self) -> Variety | NotEnoughEvidence:
        """Measure what is in the window, at a cost that does not depend on its classes."""
        sums = self.sums
        if not sums.events:
            return NotEnoughEvidence(reason=NO_EVENTS, events=0, events_needed=1)
        return from_sums(sums)

    def fade(self, now_s: float) -> None:
        """Halve once for every half-life that has passed; a clock that runs back does nothing."""
        due = int((now_s - self._faded_s) // self.half_life_s)
        if due > 0:
            self._settle()
            self._faded_s += due * self.half_life_s
            self._halve(due)

    def add(self, demand: int, *, well: bool) -> None:
        """Count one event of a demand class, and whether it was answered well.

        Raises:
            IndexError: no such class.
        """
        if not 0 <= demand < self._class_count:
            raise IndexError(demand)
        self._noted.append(demand if well else ~demand)
        if len(self._noted) >= NOTED_MOST:
            self._settle()

    def add_batch(self, demands: npt.NDArray[np.integer], well: npt.NDArray[np.bool_]) -> None:
        """Count many events at once; the result is that of `add` for each in turn, bit for bit.

        Args:
            demands: one class a row.
            well: the same length, true where it was answered well.
        """
        self._settle()
        self._count_batch(demands, well)

    def merge(self, asked: Sequence[int], answered: Sequence[int]) -> None:
        """Add another node's counts, halving the sum where it would pass the limits.

        Raises:
            ValueError: other classes, or counts that are none.
        """
        if len(asked) != self._class_count:
            raise ValueError(f"expected {self._class_count} classes, found {len(asked)}")
        self._settle()
        sum_counts(asked, answered)
        more = [left + right for left, right in zip(self._asked, asked, strict=True)]
        shift = _excess(more)
        well = zip(self._answered, answered, strict=True)
        self._asked = array("q", [count >> shift for count in more])
        self._answered = array("q", [(left + right) >> shift for left, right in well])
        self._halvings += shift
        self._recompute()

    def _settle(self) -> None:
        """Bring what was noted into the counts and the sums, in the order in which it came."""
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        if len(noted) <= _FEW:
            for demand in noted:
                self._count(demand if demand >= 0 else ~demand, well=demand >= 0)
            return
        codes = np.fromiter(noted, np.int64, len(noted))
        well = codes >= 0
        self._count_batch(np.where(well, codes, ~codes), well)

    def _count(self, demand: int, *, well: bool) -> None:
        asked = self._asked[demand]
        if asked + 1 >= COUNT_LIMIT or self._events >= TOTAL_LIMIT:
            self._halve(1)
            asked = self._asked[demand]
        table = log2_table()
        before, after = table[asked], table[asked + 1]
        answered = self._answered[demand]
        self._asked[demand] = asked + 1
        self._answered[demand] = answered + well
        self._events += 1
        self._well += well
        self._classes += not asked
        self._asked_log += (asked + 1) * after - asked * before
        self._answered_log += (answered + well) * after - answered * before

    def _count_batch(self, demands: npt.NDArray[np.integer], well: npt.NDArray[np.bool_]) -> None:
        asked = np.bincount(demands, minlength=self._class_count)
        answered = np.bincount(demands[well], minlength=self._class_count)
        if len(asked) > self._class_count:
            raise IndexError(len(asked) - 1)
        if self._fits(asked):
            self._apply(asked, answered)
        elif len(demands) == 1:
            self._count(int(demands[0]), well=bool(well[0]))
        else:
            middle = len(demands) // 2
            self._count_batch(demands[:middle], well[:middle])
            self._count_batch(demands[middle:], well[middle:])

    def _fits(self, asked: _Counts) -> bool:
        counts = np.frombuffer(self._asked, dtype=np.int64) + asked
        return int(counts.max()) < COUNT_LIMIT and int(counts.sum()) <= TOTAL_LIMIT

    def _apply(self, asked: _Counts, answered: _Counts) -> None:
        self._asked_log, self._answered_log = self._without(asked)
        np.frombuffer(self._asked, dtype=np.int64)[:] += asked
        np.frombuffer(self._answered, dtype=np.int64)[:] += answered
        self._asked_log, self._answered_log = self._with(asked)
        self._events += int(asked.sum())
        self._well += int(answered.sum())
        self._classes = self._class_count - self._asked.count(0)

    def _without(self, touched: _Counts) -> tuple[int, int]:
        asked, answered = self._logs_of(touched)
        return self._asked_log - asked, self._answered_log - answered

    def _with(self, touched: _Counts) -> tuple[int, int]:
        asked, answered = self._logs_of(touched)
        return self._asked_log + asked, self._answered_log + answered

    def _logs_of(self, touched: _Counts) -> tuple[int, int]:
        """What the touched classes hold of the two sums."""
        rows = np.flatnonzero(touched)
        asked = np.frombuffer(self._asked, dtype=np.int64)[rows]
        answered = np.frombuffer(self._answered, dtype=np.int64)[rows]
        logs = np.frombuffer(log2_table(), dtype=np.int64)[asked]
        return int(asked @ logs), int(answered @ logs)

    def _halve(self, times: int) -> None:
        shift = min(times, _FORGOTTEN_AFTER)
        self._halvings += times
        for counts in (self._asked, self._answered):
            np.frombuffer(counts, dtype=np.int64)[:] >>= shift
        self._recompute()

    def _recompute(self) -> None:
        sums = sum_counts(self._asked, self._answered)
        self._events, self._well, self._classes = sums.events, sums.answered, sums.classes
        self._asked_log, self._answered_log = sums.asked_log, sums.answered_log


def _excess(asked: Sequence[int]) -> int:
    """How often counts must be halved to stay within the limits."""
    shift = 0
    while max(asked) >> shift >= COUNT_LIMIT or sum(c >> shift for c in asked) > TOTAL_LIMIT:
        shift += 1
    return shift
