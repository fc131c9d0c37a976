"""Server-sent events: bytes in, events out, memory bounded whatever the server sends.

Sans-io. Owns the split of a stream into events (WHATWG HTML, 9.2.6); knows nothing of JSON. Runs
in the worker of a remote server, on bytes that a foreign server wrote.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

MOST_ID_BYTES: Final = 1024
MOST_RETRY_MS: Final = 300_000
_END: Final = re.compile(rb"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class TooLargeError(Exception):
    """A line or an event is longer than the bound."""


class Event(NamedTuple):
    """One event.

    Args:
        name: its kind; "message" where the server gave none.
        data: its lines, joined by line ends; empty for one that only carries an id.
        event_id: where a stream that breaks off is taken up again; None where there is none.
    """

    name: bytes
    data: bytes
    event_id: bytes | None


class EventParser:
    """Splits one stream.

    `retry_s` is how long the server wants to be left alone before the stream is opened again,
    `last_id` the id of the last event that had one.

    Args:
        most_bytes: of one line, and of the data of one event.
    """

    def __init__(self, most_bytes: int) -> None:
        self.retry_s: float | None = None
        self.last_id: bytes | None = None
        self._most = most_bytes
        self._line_held = bytearray()
        self._skip_newline = False
        self._begun = False
        self._name = b""
        self._data = bytearray()
        self._has_data = False
        self._has_id = False

    def feed(self, block: bytes) -> Iterator[Event]:
        """The events that `block` completes, in order.

        Raises:
            TooLargeError: the stream cannot be read further.
        """
        if self._skip_newline and block:  # the other half of a line end across two blocks
            block = block[1:] if block.startswith(b"\n") else block
            self._skip_newline = False
        self._skip_newline = block.endswith(b"\r")
        start = 0
        for end in _END.finditer(block):
            line = self._line(block[start : end.start()])
            start = end.end()
            if line:
                self._field(line)
            elif self._has_data or self._has_id:
                yield self._dispatched()
            else:
                self._name = b""
        if start < len(block):
            self._hold(block[start:])

    def _hold(self, part: bytes) -> None:
        if len(self._line_held) + len(part) > self._most:
            raise TooLargeError(f"a line of more than {self._most} bytes")
        self._line_held += part

    def _line(self, last: bytes) -> bytes:
        self._hold(last)
        line = bytes(self._line_held)
        self._line_held.clear()
        if not self._begun:
            self._begun = True
            return line.removeprefix(_BOM)
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            if len(self._data) + len(value) >= self._most:
                raise TooLargeError(f"an event of more than {self._most} bytes")
            self._data += b"\n" + value if self._has_data else value
            self._has_data = True
        elif name == b"event":
            self._name = value[:MOST_ID_BYTES]
        elif name == b"id" and b"\0" not in value and len(value) <= MOST_ID_BYTES:
            self.last_id, self._has_id = value or None, True
        elif name == b"retry" and value.isdigit() and len(value) < MOST_ID_BYTES:
            self.retry_s = min(int(value), MOST_RETRY_MS) / 1000

    def _dispatched(self) -> Event:
        event_id = self.last_id if self._has_id else None
        event = Event(self._name or b"message", bytes(self._data), event_id)
        self._data.clear()
        self._name, self._has_data, self._has_id = b"", False, False
        return event
