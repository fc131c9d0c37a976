"""Newline framing: bytes in, frames out, memory bounded whatever the peer sends.

Sans-io. Owns the split of a byte stream into lines; knows nothing of JSON.
Runs in S1, on bytes that an untrusted server or a client wrote.
"""

import re
from collections.abc import Iterator

HEAD_BYTES = 512
TAIL_BYTES = 256
LONG_BYTES = 8192
FOUND_LINES = 8
SMALL_BYTES = 1024

_ID_AT_HEAD = re.compile(
    rb'^\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,19})\s*[,}]'
)
_ID_AT_TAIL = re.compile(rb'"id"\s*:\s*(\d{1,19})\s*\}\s*$')


class OversizedFrame:
    """A line longer than the bound: reported once, when it ends, and kept nowhere.

    Args:
        head: its first bytes. tail: its last bytes. size_bytes: how long it was.
    """

    __slots__ = ("head", "size_bytes", "tail")

    def __init__(self, head: bytes, tail: bytes, size_bytes: int) -> None:
        self.head = head
        self.tail = tail
        self.size_bytes = size_bytes

    def __len__(self) -> int:
        """What of it is held: its bytes were skipped as they came."""
        return len(self.head) + len(self.tail)


def salvage_id(head: bytes, tail: bytes) -> int | None:
    """The integer id that a frame which cannot be decoded seems to answer.

    A guess from untrusted bytes: good enough to fail a call of the same server at once
    instead of letting it run into its time-out, and for nothing else.
    """
    match = _ID_AT_HEAD.search(head[:HEAD_BYTES]) or _ID_AT_TAIL.search(tail[-TAIL_BYTES:])
    return int(match.group(1)) if match else None


def _split_long(data: bytes) -> list[bytes]:
    """What `split` gives, much sooner where a line is long: find() runs at memory's speed.

    Only for the first lines: where there are many, they are short and `split` is the quicker one.
    """
    lines: list[bytes] = []
    start = 0
    while len(lines) < FOUND_LINES:
        end = data.find(b"\n", start)
        if end < 0:
            break
        lines.append(data[start:end])
        start = end + 1
    rest = data[start:] if start else data
    if len(lines) < FOUND_LINES:
        lines.append(rest)
        return lines
    return lines + rest.split(b"\n")


class LineSplitter:
    """Splits a byte stream at newlines; holds at most one frame of `max_frame_bytes`.

    A carriage return before the newline is dropped, empty lines are skipped.

    Args:
        blanks: how many were skipped; whoever charges for them sets it back.
    """

    __slots__ = (
        "_head",
        "_max",
        "_parts",
        "_plain_bytes",
        "_size",
        "_tail",
        "blanks",
        "skipping",
    )

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._plain_bytes = min(max_frame_bytes, LONG_BYTES - 1)
        self._parts: list[bytes | bytearray] = []
        self._size = 0
        self._head = b""
        self._tail = b""
        self.skipping = False
        self.blanks = 0

    @property
    def held_bytes(self) -> int:
        """How much of an unfinished line is held in memory."""
        return self._size if not self.skipping else len(self._head) + len(self._tail)

    def feed(self, data: bytes) -> Iterator[bytes | OversizedFrame]:
        """The frames that `data` completes, in order."""
        if len(data) > self._plain_bytes or self._size or data.find(b"\r") >= 0:
            return iter(self._feed_any(data))
        lines = data.split(b"\n")
        rest = lines.pop()
        if b"" in lines:
            lines = self._without_blanks(lines)
        if rest:
            self._hold(rest)
        return iter(lines)

    def _feed_any(self, data: bytes) -> list[bytes | OversizedFrame]:
        """The same where a line may be long, or was begun earlier, or ends in another way."""
        lines = data.split(b"\n") if len(data) < LONG_BYTES else _split_long(data)
        rest = lines.pop()
        frames: list[bytes | OversizedFrame] = []
        if lines and self._size:
            frame = self._finish(lines[0])
            if frame:
                frames.append(frame)
            lines[0] = b""
        for line in self._without_blanks(lines):
            if len(line) > self._max:
                frames.append(OversizedFrame(line[:HEAD_BYTES], line[-TAIL_BYTES:], len(line)))
            elif not line.endswith(b"\r"):
                frames.append(line)
            elif line != b"\r":
                frames.append(line[:-1])
            else:
                self.blanks += 1
        if rest:
            self._hold(rest)
        return frames

    def _without_blanks(self, lines: list[bytes]) -> list[bytes]:
        """The lines with something on them, at the speed of C: a server may send nothing else."""
        left = list(filter(None, lines))
        self.blanks += len(lines) - len(left)
        return left

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self.skipping:
            self._tail = (self._tail + part[-TAIL_BYTES:])[-TAIL_BYTES:]
            return
        if len(part) >= SMALL_BYTES:
            self._parts.append(part)
        elif self._parts and isinstance(small := self._parts[-1], bytearray):
            small += part
        else:  # each by itself would take twenty times its room
            self._parts.append(bytearray(part))
        if self._size > self._max:
            self._skip()

    def _skip(self) -> None:
        """Keep the ends of what is held; joining all of it would stop the loop for milliseconds."""
        head = tail = b""
        for part in self._parts:
            if len(head) >= HEAD_BYTES:
                break
            head += part[:HEAD_BYTES]
        for part in reversed(self._parts):
            if len(tail) >= TAIL_BYTES:
                break
            tail = bytes(part[-TAIL_BYTES:]) + tail
        self._head, self._tail = head[:HEAD_BYTES], tail[-TAIL_BYTES:]
        self._parts.clear()
        self.skipping = True

    def _finish(self, last: bytes) -> bytes | OversizedFrame:
        self._hold(last)
        size, self._size = self._size, 0
        if self.skipping:
            self.skipping = False
            return OversizedFrame(self._head, self._tail, size)
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole[:-1] if whole.endswith(b"\r") else whole
