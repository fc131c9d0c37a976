"""One incarnation of a lasting worker: its exchange and its pipes, on an event loop.

Runs in the program. Tells its ears what happens; decides nothing.
"""

import asyncio
import os
import signal
import socket
from contextlib import suppress
from typing import Any, Protocol

from vsm.errors import VsmError
from vsm.library.exchange import Exchange
from vsm.library.order import Case
from vsm.library.values import Answer

_TAIL_BYTES = 65536
_END_TIMEOUT_S = 1.0
_LINE_BYTES = 16 << 20

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Ears(Protocol):
    """Who hears of a process; called on the event loop, never from inside its constructor."""

    def began(self, process: "Process") -> None:
        """Every layer is in force, and the work begins."""

    def said(self, process: "Process", answer: Answer | None, unfit: str) -> None:
        """It sent something; `unfit` is why that made no sense."""

    def ended(self, process: "Process", error: VsmError | None) -> None:
        """It is gone, or was never there: then `error` says why. Heard once, as the last."""


class Process:
    """A worker from its order to its end; owns every fd.

    Args:
        name: the worker's.
        incarnation: which of the worker's.
        case: what the runner and what the worker gets.
        ears: hears what happens.
        serves: it answers calls on its channel; its stdin is empty and its stdout is kept.

    Attributes:
        last: what it said of its own end; of one that serves, its first word: how it began.
        late: it was killed because its time was over.
    """

    def __init__(
        self, name: str, incarnation: int, case: Case, ears: Ears, *, serves: bool, most_bytes: int
    ) -> None:
        self.name, self.incarnation, self.serves = name, incarnation, serves
        self.last: Answer | None = None
        self.late = False
        self._ears = ears
        self._loop = asyncio.get_running_loop()
        self._writer: asyncio.StreamWriter | None = None
        self._pipes: list[int] = []  # stdin and stdout, while nobody took them
        theirs: tuple[int, int] | None = None
        if not serves:
            ours, theirs = _pipes()
            self._pipes += ours
        try:
            self._exchange = Exchange(
                case.message,
                case.work,
                theirs[0] if theirs else b"",
                output_bytes=_TAIL_BYTES,
                most_bytes=most_bytes,
                stdout=theirs[1] if theirs else None,
                last=True,
            )
        except BaseException:
            self._close_pipes()
            raise
        finally:
            for fd in theirs or ():
                os.close(fd)
        self._heard_began = self._over = False
        self._channel = self._exchange.channel_fd
        self._watched = {*self._exchange.fds, self._channel}
        for fd in self._exchange.fds:
            self._loop.add_reader(fd, self._readable, fd)
        self._loop.add_reader(self._channel, self._hear)

    @property
    def facts(self) -> dict[str, Any]:
        """What the runner said when it began: pid, tier, layers."""
        return self._exchange.began or {}

    @property
    def report(self) -> dict[str, Any]:
        """What the runner said when it ended."""
        return self._exchange.ended or {}

    @property
    def stderr(self) -> bytes:
        """The last of what it wrote there."""
        return bytes(self._exchange.outputs[-1].kept)

    # -- what is done to it ------------------------------------------------------------------------

    def call(self, number: int, content: bytes) -> bool:
        """Send a call; False where it takes none."""
        return not self._over and self._exchange.call(number, content)

    def terminate(self) -> None:
        """Ask it to end: nothing more comes at stdin, and SIGTERM."""
        if self._over:
            return
        if self._writer is not None:
            self._writer.close()
        elif self._pipes:
            os.close(self._pipes.pop(0))
        self._exchange.signal(signal.SIGTERM)

    def kill(self, *, late: bool = False) -> None:
        """Kill it and everything below it; `late`: because its time was over."""
        self.late |= late
        if not self._over:
            self._exchange.give_up()

    def abandon(self) -> None:
        """Hear no more of it; the runner kills it."""
        if not self._over:
            self._close()

    def take_pipes(self) -> tuple[int, int]:
        """Its stdin to write to and its stdout to read from: the caller's from now on, once.

        Raises:
            VsmError: they are taken, or it is gone.
        """
        if len(self._pipes) != 2:  # noqa: PLR2004 - stdin, stdout
            what = "it is gone, or is to end, or its pipes are taken already"
            raise VsmError(self.name, what, "Connect once for each incarnation.")
        (stdin, stdout), self._pipes = self._pipes, []
        return stdin, stdout

    async def connect(self) -> Streams:
        """The same as streams; cancelled, it closes both."""
        stdin, stdout = self.take_pipes()
        reading, writing = os.fdopen(stdout, "rb", 0), os.fdopen(stdin, "wb", 0)
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        incoming: asyncio.BaseTransport | None = None
        try:
            incoming, _ = await self._loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), reading
            )
            transport, protocol = await self._loop.connect_write_pipe(
                lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), writing
            )
        except BaseException:  # whichever was awaited closes its own
            writing.close()
            if incoming is not None:
                incoming.close()
            raise
        writer = self._writer = asyncio.StreamWriter(transport, protocol, None, self._loop)
        if self._over:
            writer.close()
        return reader, writer

    # -- what happens to it ------------------------------------------------------------------------

    def _readable(self, fd: int) -> None:
        try:
            if not self._exchange.ready(fd):
                self._forget(fd)
        except VsmError as error:
            self._end(error)
            return
        if self._exchange.began and not self._heard_began:
            self._heard_began = True
            self._ears.began(self)
        if self._exchange.ended is not None:
            self._end(None)

    def _hear(self) -> None:
        """One message of the worker's, or the end of its channel."""
        if not _has_message(self._channel):
            self._forget(self._channel)
            if self.serves:  # nobody can call it any more; it is ending, or has closed its end
                self._loop.call_later(_END_TIMEOUT_S, self.kill)
            return
        answer, unfit = self._exchange.answer()
        self.last = self.last or answer
        if not self.serves:
            self._forget(self._channel)  # one answer is all that it has to give
        if answer is not None or unfit:
            self._ears.said(self, answer, unfit)

    def _end(self, error: VsmError | None) -> None:
        """What it said before its end is heard before its end is."""
        if self._over:
            return
        while not self._over and self._channel in self._watched and _has_message(self._channel):
            self._hear()
        if self._over:
            return
        self._close()
        self._ears.ended(self, error)

    def _forget(self, fd: int) -> None:
        self._watched.discard(fd)
        self._loop.remove_reader(fd)

    def _close(self) -> None:
        self._over = True
        for fd in self._watched:
            self._loop.remove_reader(fd)
        self._watched.clear()
        self._exchange.close()
        self._close_pipes()
        if self._writer is not None:
            self._writer.close()

    def _close_pipes(self) -> None:
        pipes, self._pipes = self._pipes, []
        for fd in pipes:
            os.close(fd)


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """Ours (stdin to write, stdout to read) and theirs (stdin to read, stdout to write)."""
    stdin_theirs, stdin = os.pipe2(os.O_CLOEXEC)
    try:
        stdout, stdout_theirs = os.pipe2(os.O_CLOEXEC)
    except OSError:
        os.close(stdin_theirs)
        os.close(stdin)
        raise
    return (stdin, stdout), (stdin_theirs, stdout_theirs)


def _has_message(fd: int) -> bool:
    """Whether a message waits there; an empty one is as good as the end."""
    with socket.socket(fileno=os.dup(fd)) as peek, suppress(OSError):
        return bool(peek.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False
