"""A server's standard output as frames, no more of them at a time than the other servers can bear.

Owns the pipe's end and the order in which its frames are taken; what a frame means is its reader's
business. Runs in S1's event loop; every byte was written by an untrusted server.

A turn of the loop takes 64 frames of a server at most. What is of no use to anybody (messages that
answer no call, what cannot be decoded, lines without end, empty ones) and large messages, while
others are busy, may have a share of the loop's time (`vsm.core.pace`): a server that has used it
up is not read for a while, its pipe fills, and it waits.
"""

import asyncio
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Final, Protocol, cast

from vsm.core import pace
from vsm.protocol.framing import LineSplitter, OversizedFrame

FRAMES_PER_TURN: Final = 64
PIPE_BYTES: Final = 256 * 1024
"""What the loop reads at once: a server that writes more at once has to wait for us in between."""
LARGE_BYTES: Final = 512 * 1024

Frames = Iterator[bytes | OversizedFrame]


class Reader(Protocol):
    """Who takes the frames."""

    def take(self, frame: bytes | OversizedFrame) -> bool:
        """Take a frame; whether it was of use to anybody."""

    def turn_over(self) -> None:
        """Nothing more comes in this turn of the loop."""

    def is_alone(self) -> bool:
        """Whether nobody has called another server since it was asked last."""

    def output_ended(self) -> None:
        """The server closed its standard output, or died."""


class Intake(asyncio.Protocol):
    """One server's output.

    Args:
        reader: who takes the frames. max_frame_bytes: of the longest line that is read.
    """

    def __init__(self, reader: Reader, max_frame_bytes: int) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._splitter = LineSplitter(max_frame_bytes)
        self._pace = pace.Pace()
        self._left: Frames | None = None
        self._held: asyncio.Handle | None = None
        self._held_until = 0.0
        self._transport: asyncio.ReadTransport | None = None
        self._paused = False
        self._closed = False

    async def open(self, fd: int) -> None:
        """Read from a pipe, which is ours from now on."""
        pipe = os.fdopen(fd, "rb", 0)
        with suppress(OSError):  # its user may hold too many pages of pipes: then it stays as it is
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._transport, _ = await self._loop.connect_read_pipe(lambda: self, pipe)
        if self._closed:
            self._transport.close()

    def stop(self) -> None:
        """Take nothing more; the pipe stays open, so that its writer is not killed by it."""
        self._stop_reading()
        self._closed = True
        self._left = None

    def close(self) -> None:
        """Take nothing more and let go of the pipe."""
        self.stop()
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Nothing more will come."""
        self._reader.output_ended()

    def data_received(self, data: bytes) -> None:
        """Take what the server wrote."""
        if self._closed:
            return
        frames = self._splitter.feed(data)
        if self._left is not None:
            frames, self._left = chain(self._left, frames), None
        self._take_turn(frames)
        if self._splitter.skipping:
            self._charge(pace.cost_s(0, len(data)))

    def _take_turn(self, frames: Frames) -> None:
        take = self._reader.take
        useless = large_bytes = useless_bytes = 0
        for taken, frame in enumerate(frames, 1):
            if self._closed:
                return
            if not take(frame):
                useless += 1
                useless_bytes += len(frame)
            elif len(frame) > LARGE_BYTES:
                large_bytes += len(frame)
            if taken == FRAMES_PER_TURN:
                self._left = frames
                self._go_on_soon()
                break
        if useless or self._splitter.blanks:
            blanks, self._splitter.blanks = self._splitter.blanks, 0
            self._charge(pace.cost_s(useless, useless_bytes, blanks))
        if large_bytes and not self._reader.is_alone():
            self._charge(pace.cost_s(0, large_bytes))
        self._reader.turn_over()

    def _charge(self, spent_s: float) -> None:
        pause_s = self._pace.charge(spent_s, self._loop.time())
        if pause_s:
            self.hold(pause_s)

    def hold(self, pause_s: float) -> None:
        """Read nothing for a while."""
        until = self._loop.time() + pause_s
        if until <= self._held_until or self._closed:
            return
        self._held_until = until
        self._stop_reading()
        self._held = self._loop.call_at(until, self._go_on)

    def _go_on_soon(self) -> None:
        if self._held is None:
            self._stop_reading()
            self._held = self._loop.call_soon(self._go_on)

    def _stop_reading(self) -> None:
        if self._held is not None:
            self._held.cancel()
        if self._transport is not None and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Take what is left, then read again."""
        self._held = None
        left, self._left = self._left, None
        if left is not None and not self._closed:
            self._take_turn(left)
        if self._held is None and self._paused and not self._closed:
            self._paused = False
            cast("asyncio.ReadTransport", self._transport).resume_reading()
