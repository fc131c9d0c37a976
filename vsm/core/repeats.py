"""The same thing again and again: told once in a while, with a count of what was held back.

Pure: `now_s` is an argument. The first of a kind is never held back or delayed; nothing is lost
from the counts. And when something happens so often that it hurts, and when it no longer does.
"""

from collections import deque
from collections.abc import Hashable, MutableMapping
from typing import Any, Final

OTHERS: Final = "(others)"


class Repeats:
    """At most one of a kind in `interval_s`, and at most `most` of all kinds.

    Args:
        interval_s: so long what is like the last one is only counted.
        most: kinds in one interval; what is beyond counts as one more kind, OTHERS.
    """

    def __init__(self, interval_s: float, most: int = 64) -> None:
        self._interval_s = interval_s
        self._most = most
        self._told: dict[Hashable, tuple[float, int]] = {}  # kind → when, held back since

    def passes(self, kind: Hashable, now_s: float) -> int | None:
        """How many were held back before this one, which passes; None where it is held back."""
        known = self._told.get(kind)
        if known is None and len(self._told) >= self._most:
            self._forget(now_s)
            if len(self._told) >= self._most:
                kind, known = OTHERS, self._told.get(OTHERS)
        if known is None:
            self._told[kind] = (now_s, 0)
            return 0
        at_s, held = known
        if now_s - at_s < self._interval_s:
            self._told[kind] = (at_s, held + 1)
            return None
        self._told[kind] = (now_s, 0)
        return held

    def knows(self, kind: Hashable) -> bool:
        """Whether it is counted by itself, and not as one of the OTHERS."""
        return kind in self._told

    def ends(self, kind: Hashable) -> int:
        """It is over: the next of this kind is news again. How many were held back."""
        return self._told.pop(kind, (0.0, 0))[1]

    def due(self, now_s: float) -> list[tuple[Hashable, int]]:
        """The kinds whose interval is over and the counts that nobody was told; told now."""
        found = [
            (kind, held)
            for kind, (at_s, held) in self._told.items()
            if held and now_s - at_s >= self._interval_s
        ]
        for kind, _ in found:
            self._told[kind] = (now_s, 0)
        return found

    @property
    def holds(self) -> bool:
        """Whether anything was held back that nobody was told."""
        return any(held for _, held in self._told.values())

    def _forget(self, now_s: float) -> None:
        """Kinds that have nothing to tell and were quiet."""
        old = [
            k for k, (at, held) in self._told.items() if not held and now_s - at >= self._interval_s
        ]
        for kind in old:
            del self._told[kind]


def keep_newest_of(sender: str, causes: MutableMapping[Any, Any], most: int) -> None:
    """Drop the oldest of one sender's causes beyond so many: none pushes another's out.

    Args:
        sender: what the key of each of its causes begins with.
        causes: by key, the oldest first.
        most: of one sender.
    """
    mine = [key for key in causes if key[0] == sender]
    for key in mine[: max(0, len(mine) - most)]:
        del causes[key]


class Surges:
    """Who does something more often than `threshold` times in `window_s`.

    Pain begins with the first beyond the threshold and ends with half of it: no flapping between.
    """

    def __init__(self, threshold: int, window_s: float = 60.0, most: int = 256) -> None:
        self.threshold = threshold
        self._window_s = window_s
        self._most = most
        self._times: dict[str, deque[float]] = {}
        self.in_pain: set[str] = set()

    def add(self, who: str, now_s: float, times: int = 1) -> bool:
        """Count one or more; whether that begins to hurt."""
        if who not in self._times and len(self._times) >= self._most:
            self._forget(now_s)
            if len(self._times) >= self._most:
                who = OTHERS
        seen = self._times.get(who)
        if seen is None or seen.maxlen != self.threshold + 1:
            seen = self._times[who] = deque(seen or (), maxlen=self.threshold + 1)
        seen.extend([now_s] * min(times, self.threshold + 1))
        hurts = len(seen) > self.threshold and now_s - seen[0] < self._window_s
        if not hurts or who in self.in_pain:
            return False
        self.in_pain.add(who)
        return True

    def relieved(self, now_s: float) -> list[str]:
        """Who no longer hurts."""
        found = [
            who for who in sorted(self.in_pain) if 2 * self._count(who, now_s) <= self.threshold
        ]
        self.in_pain.difference_update(found)
        return found

    def _count(self, who: str, now_s: float) -> int:
        return sum(1 for at_s in self._times.get(who, ()) if now_s - at_s < self._window_s)

    def _forget(self, now_s: float) -> None:
        for who in [w for w in self._times if w not in self.in_pain and not self._count(w, now_s)]:
            del self._times[who]
