"""What workers print on stderr: bounded, stripped of control characters, kept in a ring.

Runs in the supervisor. Foreign bytes: they are decoded with replacement, never formatted,
evaluated or interpreted. A flood is held back by not reading, so that it costs the worker and
not the supervisor.
"""

import asyncio
import os
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from vsm.core.redaction import Redactor

KEPT_LINES: Final = 500
MAX_LINE_BYTES: Final = 2048
BURST_BYTES: Final = 128 * 1024
BYTES_PER_S: Final = 32 * 1024
_LINE_COST_BYTES: Final = 64  # a line costs more than its bytes
_READ_BYTES: Final = 16 * 1024
# C0 and C1 controls, and the characters that reorder or hide text on a terminal.
_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]")

Listener = Callable[[str, str], None]


def printable(raw: bytes) -> str:
    """Text without control characters; what cannot be decoded is replaced."""
    return _CONTROL.sub("\ufffd", raw.decode("utf-8", "replace"))


class OutputRing:
    """The last lines of one worker, over all its incarnations, and who follows them."""

    def __init__(self, name: str, on_line: Listener) -> None:
        self.name = name
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.followers: set[Callable[[str], None]] = set()
        self._on_line = on_line

    def add(self, line: str) -> None:
        """Keep a line and pass it on."""
        self.lines.append(line)
        self._on_line(self.name, line)
        for follower in tuple(self.followers):
            follower(line)


class OutputReader:
    """Reads one incarnation's stderr into a ring. Owns `fd` and closes it at the end of file.

    Args:
        label: what each line begins with, where several write into one ring.
        hidden: the worker's secrets, by name; their values do not get into the ring.
    """

    def __init__(
        self, fd: int, ring: OutputRing, label: str = "", hidden: Mapping[str, str] | None = None
    ) -> None:
        self._fd = fd
        self._ring = ring
        self._label = label
        self._redactor = Redactor(hidden or {})
        self._partial = b""
        self._skipping = False
        self._allowance = float(BURST_BYTES)
        self._loop = asyncio.get_running_loop()
        self._refilled = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            block = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            block = b""
        if not block:
            self.close()
            return
        cost = len(block) + _LINE_COST_BYTES * block.count(b"\n")
        self._take(block)
        self._charge(cost)

    def _charge(self, cost: int) -> None:
        now = self._loop.time()
        refill = (now - self._refilled) * BYTES_PER_S
        self._allowance = min(BURST_BYTES, self._allowance + refill) - cost
        self._refilled = now
        if self._allowance < 0 and not self.closed and self._timer is None:
            self._loop.remove_reader(self._fd)
            pause_s = (-self._allowance + _READ_BYTES) / BYTES_PER_S
            self._timer = self._loop.call_later(pause_s, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._fd, self._readable)

    def _take(self, block: bytes) -> None:
        *lines, rest = (self._partial + block).split(b"\n")
        for line in lines:
            self._line(line)
        if len(rest) > MAX_LINE_BYTES:
            if not self._skipping:
                self._cut(rest)
            self._skipping, rest = True, b""
        self._partial = rest

    def _line(self, raw: bytes) -> None:
        if self._skipping:  # the tail of a line whose head was kept
            self._skipping = False
            return
        if len(raw) > MAX_LINE_BYTES:
            self._cut(raw)
        else:
            self._ring.add(self._label + printable(self._redactor.line(raw)))

    def _cut(self, raw: bytes) -> None:
        self._ring.add(self._label + printable(self._redactor.cut(raw[:MAX_LINE_BYTES])) + " …")

    def finish(self) -> None:
        """Take what the pipe still holds (64 KiB at most), then close: the worker is gone."""
        for _ in range(64 * 1024 // _READ_BYTES):
            if self.closed:
                return
            self._readable()
        self.close()

    def close(self) -> None:
        """Stop reading and close the descriptor."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        if self._partial and not self._skipping:
            self._line(self._partial)
            self._partial = b""
