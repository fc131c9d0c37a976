"""What a sender keeps until the journal has it on disk: bounded, numbered, counted.

Owns the sequence numbers, the bound, what is dropped when it is reached, and the record that says
so. Pure: no clock, no I/O. Runs in the supervisor.
"""

from collections import deque
from typing import Final

from vsm.journal.records import (
    MAX_RECORDS,
    Event,
    Record,
    encode,
    event_fields,
    records_message,
    severity_index,
)

CAPACITY_RECORDS: Final = 8192
CAPACITY_BYTES: Final = 8 * 2**20
_MESSAGE_BYTES: Final = 96 * 1024  # well below the link's bound, unless one record is larger
_WARNING: Final = severity_index("warning")


class JournalQueue:
    """Records that are not on disk yet, oldest first.

    The last quarter is for what is at least a warning, and for decisions: a flood of small news
    cannot push out the news of its cause. What does not fit is counted, and the count becomes a
    record of its own as soon as there is room.
    """

    def __init__(
        self, capacity_records: int = CAPACITY_RECORDS, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        self._capacity_records = capacity_records
        self._capacity_bytes = capacity_bytes
        self._encoded: deque[str] = deque()
        self._bytes = 0
        self._under_way: deque[int] = deque()  # the last number of each message that is
        self.acknowledged = 0  # everything up to here is on disk
        self.sent = 0  # everything up to here is under way or on disk
        self.dropped = 0  # in all
        self._unreported = 0
        self._unreported_since_ns = 0

    def __len__(self) -> int:
        return len(self._encoded)

    @property
    def size(self) -> int:
        """How many characters wait; compare it with the bytes of the capacity."""
        return self._bytes

    @property
    def under_way(self) -> int:
        """How many messages are sent and not acknowledged."""
        return len(self._under_way)

    @property
    def last(self) -> int:
        """The sequence number of the newest record."""
        return self.acknowledged + len(self._encoded)

    def add(self, record: Record) -> int:
        """Number and keep a record; 0 when there is no room for it."""
        important = not isinstance(record, Event) or record.severity >= _WARNING
        at = (record.at_ns, getattr(record, "monotonic_ns", 0))
        return self.add_encoded(encode(record), at, important=important)

    def add_encoded(self, text: str, at: tuple[int, int], *, important: bool) -> int:
        """The same for a record that is a JSON array already.

        Args:
            text: as `encode` makes it; the journal checks it.
            at: its wall and monotonic time, in nanoseconds.
            important: may use the last quarter.
        """
        if self._unreported and self._has_room(0, important=False):
            self._report_dropped(at)
        if not self._has_room(len(text), important=important):
            self._unreported_since_ns = self._unreported_since_ns or at[0]
            self._unreported += 1
            self.dropped += 1
            return 0
        return self._keep(text)

    def _keep(self, text: str) -> int:
        self._encoded.append(text)
        self._bytes += len(text)
        return self.last

    def _has_room(self, size_bytes: int, *, important: bool) -> bool:
        share = 1.0 if important else 0.75
        return (
            len(self._encoded) < self._capacity_records * share
            and self._bytes + size_bytes <= self._capacity_bytes * share
        )

    def _report_dropped(self, at: tuple[int, int]) -> None:
        """Say how many were dropped, before the first record that is kept again."""
        detail = event_fields({"count": self._unreported, "since_ns": self._unreported_since_ns})
        note = Event(*at, "journal", "journal.dropped", None, None, _WARNING, detail)
        self._keep(encode(note))
        self._unreported = self._unreported_since_ns = 0

    def next_message(self) -> bytes | None:
        """The next unsent records as one message, from now on under way; None for none."""
        begin = self.sent - self.acknowledged
        chosen: list[str] = []
        size_bytes = 0
        for index in range(begin, min(begin + MAX_RECORDS, len(self._encoded))):
            text = self._encoded[index]
            if chosen and size_bytes + len(text) > _MESSAGE_BYTES:
                break
            chosen.append(text)
            size_bytes += len(text)
        if not chosen:
            return None
        first = self.sent + 1
        self.sent += len(chosen)
        self._under_way.append(self.sent)
        return records_message(first, chosen)

    def acknowledge(self, sequence: int) -> None:
        """Forget what is on disk; a number that was never given is ignored."""
        if sequence > self.last:
            return
        while self.acknowledged < sequence:
            self._bytes -= len(self._encoded.popleft())
            self.acknowledged += 1
        self.sent = max(self.sent, self.acknowledged)
        while self._under_way and self._under_way[0] <= self.acknowledged:
            self._under_way.popleft()

    def rewind(self, sequence: int) -> None:
        """Send again what follows `sequence`."""
        if sequence <= self.sent:
            self.sent = max(sequence, self.acknowledged)
            while self._under_way and self._under_way[-1] > self.sent:
                self._under_way.pop()
