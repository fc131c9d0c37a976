"""Reads a demand board that another process writes: whole rows or none, without holding it up.

Believes nothing: seals, size and header are checked before the memory is used, and every index
and label in a row is bounded, for the writer parses foreign bytes. Runs in the supervisor and in
systems; standard library only.
"""

import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import vsm.board.demand as layout
import vsm.core.demand as names
from vsm.board.memory import BoardError, map_verified

_READ_AGAIN = 200  # looks at torn rows, of a whole segment: no writer holds a reader up with many
_WIDTH = len(names.OUTCOMES)
_MOST_BYTES = layout.HEADER_BYTES + layout.MAX_ROWS * layout.ROW_BYTES


@dataclass
class Demand:
    """What was asked of one integration.

    Args:
        classes: label to counts by outcome. latency: counts by bucket.
    """

    classes: dict[str, list[int]] = field(default_factory=dict)
    latency: list[int] = field(default_factory=lambda: [0] * names.LATENCY_BUCKETS)
    cancelled: int = 0

    @property
    def events(self) -> int:
        """How many calls were counted."""
        return sum(map(sum, self.classes.values()))

    def add(self, row: "Row") -> None:
        """Add a row of the same integration."""
        for position, label in enumerate(row.labels):
            counts = row.counts[position * _WIDTH : (position + 1) * _WIDTH]
            if any(counts):
                known = self.classes.get(label)
                self.classes[label] = (
                    list(counts)
                    if known is None
                    else [a + b for a, b in zip(known, counts, strict=True)]
                )
        self.latency = [a + b for a, b in zip(self.latency, row.latency, strict=True)]
        self.cancelled += row.cancelled


@dataclass(frozen=True)
class Row:
    """One row as it was at one moment.

    Args:
        counts: outcomes of the first class, of the second, …
        latency: counts by bucket.
    """

    name: str
    seq: int
    events: int
    cancelled: int
    labels: tuple[str, ...]
    counts: Sequence[int]
    latency: Sequence[int]


class SegmentReader:
    """A read-only view of one segment. Owns its mapping, not the descriptor.

    Args:
        epoch: whose incarnation it must be, or None for any.
        pid: the same.

    Raises:
        BoardError: a seal is missing, or size, magic, version or owner is not as expected.
    """

    def __init__(self, fd: int, *, epoch: int | None = None, pid: int | None = None) -> None:
        self._map = map_verified(fd, least_bytes=layout.HEADER_BYTES, most_bytes=_MOST_BYTES)
        magic, version, whose, owner, rows, row_bytes, checked = struct.unpack_from(
            layout.HEADER, self._map, 0
        )
        fits = (magic, version, row_bytes) == (layout.MAGIC, layout.VERSION, layout.ROW_BYTES)
        size = layout.HEADER_BYTES + rows * layout.ROW_BYTES
        if not fits or size != len(self._map):
            self._map.close()
            raise BoardError(f"demand board: version {version}, {rows} rows of {row_bytes} bytes")
        if (whose, owner) != (whose if epoch is None else epoch, owner if pid is None else pid):
            self._map.close()
            raise BoardError(f"demand board of epoch {whose}, pid {owner}")
        self.rows, self.epoch, self.pid = rows, whose, owner
        self._checked = bool(checked)
        self._last: dict[int, Row] = {}

    def read(self) -> list[Row]:
        """Every row in use. One that its writer changed at every look is as it last was."""
        found, again = [], _READ_AGAIN
        for index in range(self.rows):
            row, again = self._look(index, again)
            if row is not None:
                found.append(row)
        return found

    def changes(self) -> int:
        """How often rows were published."""
        starts = range(layout.HEADER_BYTES, len(self._map), layout.ROW_BYTES)
        return sum(self._heads(start)[1] for start in starts)

    def read_row(self, index: int) -> Row | None:
        """One whole row; None where there is none."""
        return self._look(index, _READ_AGAIN)[0]

    def _look(self, index: int, again: int) -> tuple[Row | None, int]:
        """One whole row, looked at again `again` times at most, and how many of those are left."""
        start = layout.HEADER_BYTES + index * layout.ROW_BYTES
        for left in range(again, -1, -1):
            name = self._name(start)
            if not name:
                self._last.pop(index, None)
                return None, left
            row = self._attempt(start, name)
            if row is not None:
                self._last[index] = row
                return row, left
        return self._last.get(index), 0

    def _name(self, start: int) -> str:
        raw = self._map[start : start + layout.NAME_BYTES]
        return raw.rstrip(b"\0").decode("ascii", errors="replace")

    def _heads(self, start: int) -> tuple[int, int]:
        claimed, latest = struct.unpack_from("=QQ", self._map, start + layout.CLAIMED_OFFSET)
        return claimed, latest

    def _attempt(self, start: int, name: str) -> Row | None:
        _, latest = self._heads(start)
        slot = start + layout.SLOTS_OFFSET + (latest & 1) * layout.SLOT_BYTES
        raw = self._map[slot : slot + layout.SLOT_BYTES]
        labels = self._map[start + layout.LABELS_OFFSET : start + layout.SLOTS_OFFSET]
        claimed, _ = self._heads(start)
        # Claiming latest + 2 means that the slot which we copied is being overwritten.
        if not latest <= claimed <= latest + 1 or self._name(start) != name:
            return None
        words = array("I", raw)
        if words[layout.SEQ] != latest & layout.MASK or not self._is_intact(words):
            return None
        used = min(words[layout.USED], names.CLASSES)
        return Row(
            name=name,
            seq=latest,
            events=words[layout.EVENTS],
            cancelled=words[layout.CANCELLED],
            labels=_labels(labels, used),
            counts=words[layout.COUNTS : layout.COUNTS + used * _WIDTH],
            latency=words[layout.LATENCY : layout.COUNTS],
        )

    def _is_intact(self, words: "array[int]") -> bool:
        if not self._checked:
            return True
        expected, words[layout.CRC] = words[layout.CRC], 0
        return zlib.crc32(words.tobytes()) == expected

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def _labels(raw: bytes, used: int) -> tuple[str, ...]:
    """The first `used` labels; a broken one is empty and ends the list of what can be read."""
    found: list[str] = []
    position = 0
    for _ in range(used):
        length = raw[position] if position < len(raw) else 0
        found.append(raw[position + 1 : position + 1 + length].decode(errors="replace"))
        position += 1 + length
    return tuple(found)


class DemandReader:
    """A writer's whole set of segments. Owns the descriptors given to it and the mappings.

    Raises:
        BoardError: a segment must not be believed.
        OSError: there is no descriptor or memory to map one with. Every one is closed in any case.
    """

    def __init__(self, fds: Sequence[int], *, epoch: int, pid: int | None) -> None:
        self.fds = list(fds)
        self.segments: list[SegmentReader] = []
        try:
            if len(self.fds) > layout.MAX_SEGMENTS:
                raise BoardError(f"demand board of {len(self.fds)} segments")  # noqa: TRY301 - closes all
            for fd in fds:
                self.segments.append(SegmentReader(fd, epoch=epoch, pid=pid))
            rows = sum(segment.rows for segment in self.segments)
            if rows > layout.MAX_ROWS:
                raise BoardError(f"demand board of {rows} rows")  # noqa: TRY301 - as above
        except BaseException:
            self.close()
            raise

    def changes(self) -> int:
        """A number that is another whenever a row was published since."""
        return sum(segment.changes() for segment in self.segments)

    def rows(self) -> list[Row]:
        """Every row in use; one name may have several."""
        return [row for segment in self.segments for row in segment.read()]

    def totals(self) -> dict[str, Demand]:
        """What was asked, by integration; places of one name added."""
        found: dict[str, Demand] = {}
        for row in self.rows():
            found.setdefault(row.name, Demand()).add(row)
        return found

    def close(self) -> None:
        """Unmap and close."""
        for segment in self.segments:
            segment.close()
        self.segments.clear()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def as_array(fd: int) -> tuple["mmap.mmap", object]:
    """A segment as a read-only structured numpy array over its mapping; rows may be torn.

    Look at `claimed` before and after: see docs/board.md.
    """
    import numpy as np

    mapping = map_verified(fd, least_bytes=layout.HEADER_BYTES, most_bytes=_MOST_BYTES)
    rows = (len(mapping) - layout.HEADER_BYTES) // layout.ROW_BYTES
    return mapping, np.frombuffer(mapping, layout.row_dtype(), rows, layout.HEADER_BYTES)
