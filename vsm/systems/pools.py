"""What S1's summaries say of pools: how many instances are needed, and what a moved bound changed.

Pure; runs in system 3. The supervisor's sample says how many a pool may have, S1 how busy it is.
After a move nothing is known of the pool until a whole summary was taken since: so long its bound
is left alone, and what came of the move is not told.
"""

import math
from typing import Final

from vsm.configuration.regulation import INSTANCES
from vsm.messages import Body, ResourceRow, Summary
from vsm.systems.samples import THROTTLED

_SINCE: Final = 2  # summaries; the first began before the move


class _Seen:
    """One pool's last summary, and what they all add up to."""

    def __init__(self) -> None:
        self.summaries = 0
        self.crowded_s = 0.0
        self.turned_away = 0
        self.row: dict[str, int | float] = {}
        self.answered_per_s = 0.0


class Pools:
    """The pools that S1 tells of."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._known_at: dict[str, int] = {}  # as many summaries will tell what a move changed

    def hear(self, message: Summary) -> None:
        """Take a summary."""
        for name, row in message.integrations.items():
            if not row.keys() >= _TOLD:
                continue
            seen = self._seen.setdefault(name, _Seen())
            seen.summaries += 1
            seen.crowded_s += float(row["pool_crowded_share"]) * message.interval_s
            seen.turned_away += int(row["pool_turned_away"])
            seen.row = row
            interval_s = message.interval_s or 1.0
            seen.answered_per_s = round(float(row.get("ok", 0)) / interval_s, 3)
        for name in self._seen.keys() - message.integrations.keys():
            del self._seen[name]
            self._known_at.pop(name, None)

    def fill(self, name: str, row: ResourceRow) -> ResourceRow:
        """A sample's row with the use of a pool: calls in flight, and seconds that it was crowded.

        A call that was turned away counts as a second.
        """
        seen = self._seen.get(name)
        if seen is None or INSTANCES not in row.limit:
            return row
        used = float(seen.row["pool_in_flight"])
        met = round(seen.crowded_s + seen.turned_away, 3)
        update = {
            "usage": {**row.usage, INSTANCES: used},
            "pressure": {**row.pressure, INSTANCES: met},
        }
        return row.model_copy(update=update)

    def is_pressed(self, name: str) -> bool:
        """Whether it was crowded for more than a twentieth of the last summary, or refused."""
        seen = self._seen.get(name)
        if seen is None:
            return False
        row = seen.row
        return float(row["pool_crowded_share"]) > THROTTLED or int(row["pool_turned_away"]) > 0

    def evidence(self, name: str) -> Body:
        """The last summary, for the record."""
        seen = self._seen.get(name)
        if seen is None:
            return {}
        found: Body = {key.removeprefix("pool_"): seen.row[key] for key in _EVIDENCE}
        return {**found, "answered_per_s": seen.answered_per_s}

    def moved(self, name: str) -> None:
        """Its bound is another one from now on."""
        seen = self._seen.get(name)
        self._known_at[name] = _SINCE + (0 if seen is None else seen.summaries)

    def is_known(self, name: str) -> bool:
        """Whether a whole summary was taken since its bound moved."""
        seen = self._seen.get(name)
        count = 0 if seen is None else seen.summaries
        return count >= self._known_at.get(name, 0)


_EVIDENCE: Final = (
    "pool_in_flight",
    "pool_busy_share",
    "pool_crowded_share",
    "pool_queued",
    "pool_turned_away",
)
_TOLD: Final = frozenset(_EVIDENCE)


def whole(need: float) -> float:
    """Instances come whole."""
    return float(math.ceil(need - 1e-9))


def came_of(before: Body, after: Body, *, pressed: bool) -> Body:
    """What a moved bound changed: crowding and throughput before and after.

    Args:
        before: evidence of the summary before the move.
        after: the same of the first whole one since.
        pressed: whether it still has too few.
    """
    keys = ("crowded_share", "in_flight", "answered_per_s")
    told: Body = {key: [before.get(key), after.get(key)] for key in keys}
    return {**told, "relieved": not pressed}
