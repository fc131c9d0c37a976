"""The demand board between its writer and its readers: kept while systems come and go.

Runs in the supervisor. Owns duplicates of the newest board's descriptors: a new S1 begins with
what its predecessor counted, a new S4 goes on reading. Where a service manager keeps the board, the
first S1 begins with what the last one of a dead supervisor counted. Reads it for `vsm board dump`.
"""

import time
from typing import Any

import vsm.core.demand as names
from vsm.board.demand import HEADER_BYTES, ROW_BYTES, VERSION
from vsm.board.memory import BoardError
from vsm.board.reader import Demand, DemandReader
from vsm.board.store import DemandStore
from vsm.link import close_fds
from vsm.messages import Segments


class DemandRelay:
    """The newest demand board of S1, or what a dead S1 left."""

    def __init__(self) -> None:
        self.store = DemandStore()
        self.refused = 0
        kept = self.store.take()
        self._pid = 0
        self._reader = kept.reader if kept else None
        self._epoch = kept.epoch if kept else 0
        self._began_s = kept.began_s if kept else time.monotonic()

    @property
    def age_s(self) -> float:
        """Since counting began: longer than vsm runs where a service manager kept the counts."""
        return time.monotonic() - self._began_s

    @property
    def events(self) -> int:
        """How many calls are on the board."""
        return sum(row.events for row in self._reader.rows()) if self._reader else 0

    def announced(self, fds: list[int], *, epoch: int, pid: int) -> bool:
        """Take a board over from an S1; False for one that must not be believed.

        Args:
            fds: all its segments, ours from now on.
            epoch: of the S1 that announced it.
            pid: its pid, or 0 where it is not known yet.
        """
        try:
            reader = DemandReader(fds, epoch=epoch, pid=pid or None)
        except BoardError:
            self.refused += 1
            return False
        self.close()
        self._reader, self._epoch, self._pid = reader, epoch, pid
        self.store.keep(reader.fds, epoch=epoch, began_s=self._began_s)
        return True

    def message(self) -> tuple[Segments, list[int]]:
        """What a system is told: the board as it is, without descriptors where there is none."""
        fds = self._reader.fds if self._reader else []
        return Segments(
            epoch=self._epoch,
            pid=self._pid,
            age_s=self.age_s,
            fds=tuple(f"segment{index}" for index in range(len(fds))),
        ), fds

    def dump(self) -> dict[str, Any]:
        """Everything that is on the board; labels are foreign text."""
        reader = self._reader
        rows = reader.rows() if reader else []
        return {
            "version": VERSION,
            "epoch": self._epoch,
            "pid": self._pid,
            "age_s": round(self.age_s, 3),
            "segments": len(reader.segments) if reader else 0,
            "row_bytes": ROW_BYTES,
            "bytes": len(rows) * ROW_BYTES + (len(reader.segments) if reader else 0) * HEADER_BYTES,
            "outcomes": list(names.OUTCOMES),
            "latency_limits_s": [names.bucket_limit_s(b) for b in range(names.LATENCY_BUCKETS)],
            "integrations": {
                name: _demand(demand)
                for name, demand in (reader.totals() if reader else {}).items()
            },
        }

    def close(self) -> None:
        """Give the descriptors back."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def take_segments(message: Segments, fds: list[int]) -> DemandReader | None:
    """A system's view of the board that a message brought; None for none, or a false one."""
    if not fds:
        return None
    try:
        return DemandReader(fds, epoch=message.epoch, pid=message.pid or None)
    except BoardError:
        close_fds(fds)
        return None


def _demand(demand: Demand) -> dict[str, Any]:
    return {
        "events": demand.events,
        "cancelled": demand.cancelled,
        "classes": demand.classes,
        "latency": demand.latency,
    }
