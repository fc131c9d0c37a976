"""The demand board: for every integration demand class by outcome, and latency, in shared memory.

Written by S1 alone. A segment is one sealed memfd of rows of a fixed size, one row an
integration; more integrations come in a new segment, never by growing an old one. A row is
published whole: the writer counts in memory of its own, claims the older of the row's two slots,
copies, then moves `latest`. A writer that dies in between leaves `latest` at a whole slot; a
reader that was overtaken sees it by `claimed` and reads again; neither waits for the other.
Labels of classes are written once, before the first row that counts them. docs/board.md has the
layout; `vsm.board.reader` reads it.
"""

import os
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import vsm.core.demand as names
from vsm.board.memory import STORES_IN_ORDER, create

MAGIC: Final = 0x56534D44  # "VSMD"
VERSION: Final = 1
HEADER: Final = "<IIQQIII"  # magic, version, epoch, pid, rows, row_bytes, checked
HEADER_BYTES: Final = 64
NAME_BYTES: Final = 64
CLAIMED_OFFSET: Final = 64  # then `latest`; both u64
LABELS_OFFSET: Final = 80  # length byte, bytes, …
LABELS_BYTES: Final = 464
SLOTS_OFFSET: Final = LABELS_OFFSET + LABELS_BYTES
SEQ, CRC, USED, EVENTS, CANCELLED, SPARE, LATENCY = range(7)  # words of a slot, u32 each
COUNTS: Final = LATENCY + names.LATENCY_BUCKETS
SLOT_WORDS: Final = COUNTS + names.CLASSES * len(names.OUTCOMES)
SLOT_BYTES: Final = 4 * SLOT_WORDS
ROW_BYTES: Final = SLOTS_OFFSET + 2 * SLOT_BYTES
MASK: Final = 0xFFFFFFFF
MAX_ROWS: Final = 1024
"""Of a whole set: more integrations than one vsm can be told of, so a reader has a bound."""
SPARE_ROWS: Final = 4
"""A set with more free rows than this and than used ones is rewritten smaller."""
MAX_SEGMENTS: Final = 8
"""A set of more is rewritten as one; all of a set's descriptors fit one message."""

_now_ns: Final = time.perf_counter_ns
_WIDTH: Final = len(names.OUTCOMES)
_DENIED: Final = names.DENIED
_SHIFT: Final = names.LATENCY_SHIFT
_TOP: Final = (1 << names.LATENCY_BUCKETS - 1) - 1


class Segment:
    """One memfd of rows. Owns the descriptor and the writable mapping."""

    def __init__(self, epoch: int, rows: int) -> None:
        import struct

        self.rows = rows
        self.fd, self._map = create("demand", HEADER_BYTES + rows * ROW_BYTES)
        header = (MAGIC, VERSION, epoch, os.getpid(), rows, ROW_BYTES, not STORES_IN_ORDER)
        struct.pack_into(HEADER, self._map, 0, *header)
        self.free = list(range(rows - 1, -1, -1))

    def take(self) -> tuple[int, memoryview]:
        """A free row: its index and its memory, zeroed."""
        index = self.free.pop()
        start = HEADER_BYTES + index * ROW_BYTES
        memory = memoryview(self._map)[start : start + ROW_BYTES]
        memory[:] = bytes(ROW_BYTES)
        return index, memory

    def close(self) -> None:
        """Close the descriptor; the mapping goes with the last row that refers to it."""
        os.close(self.fd)


class Place:
    """Where a row lives; views of its parts. Without a segment nobody can read it."""

    def __init__(self, segment: Segment | None, name: str) -> None:
        self.segment = segment
        self.index, memory = segment.take() if segment else (0, memoryview(bytearray(ROW_BYTES)))
        self.memory = memory
        self.heads = memory[CLAIMED_OFFSET:LABELS_OFFSET].cast("Q")
        self.labels = memory[LABELS_OFFSET:SLOTS_OFFSET]
        middle = SLOTS_OFFSET + SLOT_BYTES
        self.slots = (memory[SLOTS_OFFSET:middle], memory[middle:ROW_BYTES])
        raw = name.encode()
        if len(raw) > NAME_BYTES:
            raise ValueError(f"{name}: longer than {NAME_BYTES} bytes")
        memory[: len(raw)] = raw


class Counted(Protocol):
    """A row that was read."""

    @property
    def name(self) -> str:
        """The integration."""

    @property
    def labels(self) -> Sequence[str]:
        """Its classes."""

    @property
    def counts(self) -> Sequence[int]:
        """Outcomes of the first class, of the second, …."""

    @property
    def latency(self) -> Sequence[int]:
        """Calls by bucket."""

    @property
    def cancelled(self) -> int:
        """Calls that their clients took back."""


class DemandRow:
    """One integration's counts: kept by its one writer, published soon after every change.

    Counts are 32-bit; before one would overflow the row begins anew in another place, and
    readers add all places of one name.
    """

    __slots__ = (
        "_board",
        "_bytes",
        "_cells",
        "_classes",
        "_defer",
        "_labels_used",
        "_place",
        "_publisher",
        "_seq",
        "_stale",
        "name",
    )

    def __init__(self, board: "DemandBoard", name: str, place: Place) -> None:
        self.name = name
        self._board = board
        self._defer = board.defer
        self._stale = False
        self._publisher = self._publish  # bound once
        self._begin(place)

    def _begin(self, place: Place) -> None:
        self._place = place
        self._seq = 0
        self._labels_used = 0
        self._cells = array("I", bytes(SLOT_BYTES))
        self._bytes = memoryview(self._cells).cast("B")
        self._classes: dict[str, int] = {}
        self._learn(names.OVERFLOW)
        self._publish()

    @property
    def place(self) -> Place:
        """Where it is published now."""
        return self._place

    @property
    def events(self) -> int:
        """How many calls were counted since the row began."""
        return self._cells[EVENTS]

    def outcomes(self) -> dict[str, int]:
        """How often each outcome was counted, all classes together."""
        counts = self._cells[COUNTS:]
        return {name: sum(counts[i::_WIDTH]) for i, name in enumerate(names.OUTCOMES)}

    def count(self, label: str, outcome: int, began_ns: int) -> None:
        """Count one call.

        Args:
            label: the demand class.
            outcome: an index in OUTCOMES.
            began_ns: when it began, by time.perf_counter_ns.
        """
        counts_at = self._classes.get(label)
        if counts_at is None:
            counts_at = self._learn(label)
        cells = self._cells
        try:
            cells[EVENTS] += 1  # the largest of all: it overflows first
        except OverflowError:
            self._renew()
            self.count(label, outcome, began_ns)
            return
        cells[counts_at + outcome] += 1
        if outcome < _DENIED:  # what no server saw has no latency
            late = (_now_ns() - began_ns) >> _SHIFT
            cells[LATENCY + (late if late <= _TOP else _TOP).bit_length()] += 1  # noqa: FURB136 - min() takes twice as long
        if not self._stale:
            self._stale = True
            self._defer(self._publisher)

    def cancel(self) -> None:
        """Count a call that its client took back: it has no outcome."""
        self._cells[CANCELLED] = (self._cells[CANCELLED] + 1) & MASK
        self._publish()

    def add(self, other: "Counted") -> bool:
        """Add another row's counts, such as a dead predecessor's; False for an incredible one."""
        events = sum(other.counts)
        if not sum(other.latency) <= events <= MASK:
            return False
        if self._cells[EVENTS] + events > MASK:
            self._renew()
        cells = self._cells
        for position, label in enumerate(other.labels):
            start = self._counts_of(label)
            for outcome in range(_WIDTH):
                cells[start + outcome] += other.counts[position * _WIDTH + outcome]
        for bucket, count in enumerate(other.latency):
            cells[LATENCY + bucket] += count
        cells[EVENTS] += events
        cells[CANCELLED] = (cells[CANCELLED] + other.cancelled) & MASK
        self._publish()
        return True

    def move(self, place: Place) -> None:
        """Go on in another place, with everything that was counted."""
        labels, used = bytes(self._place.labels), self._labels_used
        self._place, self._seq = place, 0
        place.labels[:used] = labels[:used]
        self._publish()

    def _renew(self) -> None:
        self._begin(self._board.another_place(self.name))

    def _counts_of(self, label: str) -> int:
        counts_at = self._classes.get(label)
        return self._learn(label) if counts_at is None else counts_at

    def _learn(self, label: str) -> int:
        """Give a label a class while there is room, else the overflow class; not remembered.

        Returns the cell of its first count.
        """
        raw = names.short_label(label)
        short = raw.decode()
        known = self._classes.get(short)
        if known is not None:
            return known
        index, end = self._cells[USED], self._labels_used + 1 + len(raw)
        if index == names.CLASSES or end > LABELS_BYTES:
            return COUNTS
        self._place.labels[self._labels_used : end] = bytes((len(raw),)) + raw
        self._labels_used = end
        self._cells[USED] = index + 1
        self._classes[label] = self._classes[short] = counts_at = COUNTS + index * _WIDTH
        return counts_at

    def _publish(self) -> None:
        self._stale = False
        place, cells = self._place, self._cells
        self._seq = seq = self._seq + 1
        place.heads[0] = seq
        cells[SEQ] = seq & MASK
        if not STORES_IN_ORDER:
            cells[CRC] = 0
            cells[CRC] = zlib.crc32(self._bytes)
        place.slots[seq & 1][:] = self._bytes
        place.heads[1] = seq


class DemandBoard:
    """All rows of one writer. Owns its segments.

    Args:
        epoch: the incarnation that the board belongs to.
        integrations: who gets a row in the first segment.
        defer: calls a function soon, such as a loop's call_soon: what is counted until then is
            published at once.

    Attributes:
        on_moved: called with the descriptors when a full row made the set of segments change.
    """

    def __init__(
        self,
        epoch: int,
        integrations: Iterable[str] = (),
        *,
        defer: Callable[[Callable[[], None]], object] = lambda publish: publish(),
    ) -> None:
        self.defer = defer
        self._epoch = epoch
        self.segments: list[Segment] = []
        self.rows: dict[str, DemandRow] = {}
        self._extra: list[Place] = []  # full ones, begun anew elsewhere
        self.on_moved: Callable[[list[int]], None] | None = None
        self.add([names.NOBODY, *integrations])

    @property
    def nobody(self) -> DemandRow:
        """The row for what no integration offers."""
        return self.rows[names.NOBODY]

    @property
    def row_bytes(self) -> int:
        """What the rows in use and the segments' headers take."""
        used = sum(segment.rows - len(segment.free) for segment in self.segments)
        return len(self.segments) * HEADER_BYTES + used * ROW_BYTES

    @property
    def page_bytes(self) -> int:
        """What the kernel keeps for all segments."""
        page = os.sysconf("SC_PAGE_SIZE")
        sizes = (HEADER_BYTES + segment.rows * ROW_BYTES for segment in self.segments)
        return sum(-(-size // page) * page for size in sizes)

    def filenos(self) -> list[int]:
        """The sealed memfds, for readers; the board keeps them."""
        return [segment.fd for segment in self.segments]

    def add(self, integrations: Iterable[str]) -> bool:
        """Give integrations rows; True where the set of segments changed."""
        new = [name for name in dict.fromkeys(integrations) if name not in self.rows]
        places = self._places(new)
        for name, place in zip(new, places, strict=True):
            self.rows[name] = DemandRow(self, name, place)
        return bool(new)

    def remove(self, name: str) -> bool:
        """Take an integration's row away; True where the set of segments changed."""
        row = self.rows.pop(name, None)
        if row is None:
            return False
        gone = [p for p in self._extra if _name_of(p) == name]
        self._extra = [place for place in self._extra if place not in gone]
        before = list(self.segments)
        last = row.place
        row.move(Place(None, name))  # calls in flight may still count there
        for place in (last, *gone):
            self._give_back(place)
        free = sum(len(segment.free) for segment in self.segments)
        if free > len(self.rows) + len(self._extra) + SPARE_ROWS:
            self._rewrite(0)
        return self.segments != before

    def inherit(self, rows: Iterable["Counted"]) -> None:
        """Add what a dead predecessor counted for the integrations that are still here."""
        for other in rows:
            row = self.rows.get(other.name)
            if row is not None:
                row.add(other)

    def another_place(self, name: str) -> Place:
        """A second place for a row whose first is full."""
        if name not in self.rows:
            return Place(None, name)
        place = self._places([name])[0]
        self._extra.append(self.rows[name].place)  # not before: a rewrite moves it
        if self.on_moved is not None:
            self.on_moved(self.filenos())
        return place

    def close(self) -> None:
        """Close every descriptor and mapping; whoever still counts does so for nobody."""
        self._extra.clear()
        for row in self.rows.values():
            row.move(Place(None, row.name))
        for segment in self.segments:
            segment.close()
        self.segments.clear()

    def _places(self, wanted: list[str]) -> list[Place]:
        """Places for new rows: free ones first, then one new segment for the rest."""
        segments = [s for segment in self.segments for s in [segment] * len(segment.free)]
        left = len(wanted) - len(segments)
        if left > 0:
            if len(self.segments) + 1 >= MAX_SEGMENTS:
                self._rewrite(left)
            else:
                self.segments.append(Segment(self._epoch, left))
            segments = [s for segment in self.segments for s in [segment] * len(segment.free)]
        return [Place(segment, name) for segment, name in zip(segments, wanted, strict=False)]

    def _rewrite(self, more: int) -> None:
        """Move every row into one new segment with room for `more`."""
        old = self.segments
        one = Segment(self._epoch, len(self.rows) + len(self._extra) + more)
        self.segments = [one]
        for row in self.rows.values():
            row.move(Place(one, row.name))
        moved = []
        for full in self._extra:
            place = Place(one, _name_of(full))
            place.memory[NAME_BYTES:] = full.memory[NAME_BYTES:]
            moved.append(place)
        self._extra = moved
        for segment in old:
            segment.close()

    def _give_back(self, place: Place) -> None:
        place.memory[:NAME_BYTES] = bytes(NAME_BYTES)
        segment = place.segment
        if segment is None:
            return
        segment.free.append(place.index)
        if len(segment.free) == segment.rows:
            self.segments.remove(segment)
            segment.close()


def _name_of(place: Place) -> str:
    return bytes(place.memory[:NAME_BYTES]).rstrip(b"\0").decode()


def row_dtype() -> Any:  # noqa: ANN401 - numpy is imported only by who wants arrays
    """The numpy dtype of a row, for who looks at a segment as a structured array."""
    import numpy as np

    slot = [
        *((name, "<u4") for name in ("seq", "crc", "used", "events", "cancelled", "spare")),
        ("latency", "<u4", (names.LATENCY_BUCKETS,)),
        ("counts", "<u4", (names.CLASSES, len(names.OUTCOMES))),
    ]
    return np.dtype(
        [
            ("name", f"S{NAME_BYTES}"),
            ("claimed", "<u8"),
            ("latest", "<u8"),
            ("labels", f"V{LABELS_BYTES}"),
            ("slots", slot, (2,)),
        ]
    )
