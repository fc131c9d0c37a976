"""Outcomes by demand class that fade with time, as vsm.core.variety_window fades counts.

One owner, no I/O: `now` is an argument. When a half-life has passed every count is halved,
rounded down, and a class without counts is forgotten; between halvings nothing fades.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from vsm.core.demand import OUTCOMES

Key: TypeAlias = tuple[str, str]
"""An integration and the label of one of its demand classes."""
_FORGOTTEN_AFTER: Final = 64


class DemandWindow:
    """What was asked lately.

    Args:
        half_life_s: after this time an event weighs half.
        now_s: the clock's reading from which the first half-life runs.
    """

    def __init__(self, *, half_life_s: float, now_s: float) -> None:
        if not half_life_s > 0:
            raise ValueError("expected a half-life above 0")
        self.half_life_s = half_life_s
        self._faded_s = now_s
        self._table: dict[Key, list[int]] = {}

    @property
    def table(self) -> Mapping[Key, Sequence[int]]:
        """The counts by outcome of every class that is remembered."""
        return self._table

    def fade(self, now_s: float) -> None:
        """Halve once for every half-life that has passed; a clock that runs back does nothing."""
        due = int((now_s - self._faded_s) // self.half_life_s)
        if due <= 0:
            return
        self._faded_s += due * self.half_life_s
        shift = min(due, _FORGOTTEN_AFTER)
        faded = {key: [count >> shift for count in row] for key, row in self._table.items()}
        self._table = {key: row for key, row in faded.items() if any(row)}

    def add(self, key: Key, outcomes: Sequence[int]) -> None:
        """Add events of one class, by outcome; a negative count counts as none."""
        row = self._table.setdefault(key, [0] * len(OUTCOMES))
        for outcome, count in enumerate(outcomes):
            row[outcome] += max(0, count)
