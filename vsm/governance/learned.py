"""What S4 had learned, for its successor: scores of forecasts, the last steps, which goals hurt.

Runs in the supervisor. S4 records each step (`intelligence.step`), how good its forecasts were
(`intelligence.forecast`) and which goals hurt (`intelligence.goals`); what it recorded since vsm
started is kept here, what it recorded before is read from the journal once. Nothing else of a
dead S4 counts.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from vsm.core.forecast import Score
from vsm.core.goals import recorded
from vsm.journal.reader import Filter, JournalError, JournalReader, Now

FORECAST: Final = "intelligence.forecast"
STEP: Final = "intelligence.step"
GOALS: Final = "intelligence.goals"
FORGOTTEN_S: Final = 3600.0
"""What an earlier vsm felt so long ago, and did not say again, is over."""
MOST_STEPS: Final = 240
MOST_BYTES: Final = 64 << 10
"""Of the steps in one message; the oldest are left out."""
MOST_COUNT: Final = 2**53
"""Of one class in one step, and of a sum of a score: what S4 has to add up as a float."""
_STEP_FIELDS: Final = 4  # integration, demand, asked, unserved


def _steady_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Learned:
    """What is known of S4's past.

    Args:
        path: of the journal, which need not be there; asked for when it is read.
        clock: seconds that go on whatever becomes of the wall clock.
    """

    def __init__(self, path: Callable[[], Path], clock: Callable[[], float] = _steady_s) -> None:
        self._path = path
        self._clock = clock
        self._score: list[Any] | None = None
        self._missed: list[Any] | None = None
        self._steps: deque[tuple[float, dict[str, Any]]] | None = None

    def note(self, event: str, detail: Any) -> None:  # noqa: ANN401 - JSON
        """S4 recorded something."""
        if event == FORECAST:
            self._score = _score_of(detail)
        elif event == GOALS:
            self._missed = _missed_of(detail)
        elif event == STEP and _is_step(detail):
            self._recall().append((self._clock(), detail))

    def settings(self) -> dict[str, Any]:
        """For the `start` of a new S4: score, goals, and steps with how long ago each ended."""
        steps, now = self._recall(), self._clock()
        if self._score is None:
            rows = self._rows(FORECAST, 1)
            self._score = _score_of(rows[0]["detail"]) if rows else []
        if self._missed is None:
            self._missed = self._read_missed()
        return {"score": self._score, "missed": self._missed, "steps": _that_fit(steps, now)}

    def _read_missed(self) -> list[Any]:
        rows = self._rows(GOALS, 1)
        if not rows or Now.read().age_ns(rows[0]) > FORGOTTEN_S * 1e9:
            return []
        return _missed_of(rows[0]["detail"])

    def _recall(self) -> "deque[tuple[float, dict[str, Any]]]":
        if self._steps is None:
            self._steps = deque(self._read_steps(), maxlen=MOST_STEPS)
        return self._steps

    def _read_steps(self) -> list[tuple[float, dict[str, Any]]]:
        rows, now_s, now = self._rows(STEP, MOST_STEPS), self._clock(), Now.read()
        return [
            (now_s - now.age_ns(row) / 1e9, row["detail"])
            for row in rows
            if _is_step(row["detail"])
        ]

    def _rows(self, kind: str, limit: int) -> list[Any]:
        try:
            with JournalReader(self._path()) as reader:
                chosen = Filter(kind=kind, source="system4")
                return list(reader.newest("events", chosen, limit, bounded=True))
        except JournalError:
            return []


def _missed_of(detail: Any) -> list[Any]:  # noqa: ANN401 - JSON
    """The goals of a record of S4, as rows."""
    found = detail.get("missed") if isinstance(detail, dict) else None
    return [list(goal) for goal in sorted(recorded(found))]


def _that_fit(steps: "deque[tuple[float, dict[str, Any]]]", now: float) -> list[Any]:
    """The newest that fit into a message, oldest first."""
    found: list[Any] = []
    size = 0
    for ended, detail in reversed(steps):
        row = {"ago_s": max(0.0, round(now - ended, 3)), **detail}
        size += len(msgspec.json.encode(row))
        if size > MOST_BYTES:
            break
        found.append(row)
    return found[::-1]


def _is_step(detail: Any) -> bool:  # noqa: ANN401 - JSON
    if not isinstance(detail, dict) or set(detail) != {"step_s", "counts"}:
        return False
    length, counts = detail["step_s"], detail["counts"]
    if not _is_number(length) or length <= 0 or not isinstance(counts, list):
        return False
    return all(map(_is_count, counts))


def _is_count(row: Any) -> bool:  # noqa: ANN401 - JSON
    if not isinstance(row, list) or len(row) != _STEP_FIELDS:
        return False
    names, numbers = row[:2], row[2:]
    return all(isinstance(one, str) for one in names) and all(
        type(one) is int and 0 <= one <= MOST_COUNT for one in numbers
    )


def _is_number(value: Any) -> bool:  # noqa: ANN401 - JSON
    return type(value) in {int, float} and abs(value) <= MOST_COUNT  # which no nan is


def _score_of(detail: Any) -> list[Any]:  # noqa: ANN401 - JSON
    """The sums of a record of S4; empty where they are not what they should be."""
    found = detail.get("score") if isinstance(detail, dict) else None
    if not isinstance(found, list) or len(found) != len(Score._fields):
        return []
    return found if all(map(_is_number, found)) else []
