"""SEQPACKET links between the processes: one JSON object a message, a few descriptors with it.

Owns framing, bounds and the ownership of descriptors in transit. Knows no message kind: the
model at the receiver decides what is valid. Runs in every process except the launcher, with
that process's own privilege. Nothing received is ever unpickled or evaluated.
"""

import array
import asyncio
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar

MAX_MESSAGE_BYTES = 128 * 1024
MAX_FDS = 16
MAX_QUEUED = 64
MAX_URGENT = 64  # beyond those
POLLRDHUP = 0x2000  # linux/eventpoll.h; the select module has it on most builds only
_NOBODY_READS = (errno.EPIPE, errno.ECONNRESET)
_READS_PER_WAKEUP = 32  # one noisy peer must not hold the loop
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Wire(Protocol):
    """What a link carries: a validated model that names the descriptors sent with it."""

    @property
    def fds(self) -> tuple[str, ...]:
        """One name for each descriptor, in order."""

    is_urgent: ClassVar[bool]
    """Whether it overtakes what waits, and has room where that has none."""

    def to_wire(self) -> bytes:
        """The message as one JSON object."""


MessageT = TypeVar("MessageT", bound=Wire)


@dataclass(frozen=True)
class LinkStatistics:
    """What one end of a link has seen; `queued` is messages, the rest are totals.

    `sent_bytes` are those of the messages of `sent`, without descriptors.
    """

    sent: int
    dropped: int
    received: int
    invalid: int
    queued: int
    sent_bytes: int = 0


@dataclass
class _Counts:
    sent: int = 0
    sent_bytes: int = 0
    dropped: int = 0
    received: int = 0
    invalid: int = 0


@dataclass
class _Outgoing:
    """A message that waits for room, with its own duplicates of the descriptors."""

    payload: bytes
    fds: list[int] = field(default_factory=list)
    is_urgent: bool = False


def close_fds(fds: Sequence[int]) -> None:
    """Close every descriptor in `fds`; one that is closed already is no error."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue


def duplicate(fds: Sequence[int]) -> list[int]:
    """Close-on-exec copies, all or (OSError) none."""
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))  # noqa: PERF401 - what was made has to be known
    except OSError:
        close_fds(copies)
        raise
    return copies


def socketpair() -> tuple[socket.socket, socket.socket]:
    """A non-blocking SEQPACKET pair, closed on exec."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.settimeout(0)
    right.settimeout(0)
    return left, right


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """A one-directional pair `(sender, receiver)`: no receiver can write, no sender can read."""
    sender, receiver = socketpair()
    receiver.shutdown(socket.SHUT_WR)
    return sender, receiver


class Link(Generic[MessageT]):
    """One end of a link. Owns `sock`.

    Args:
        sock: a SEQPACKET socket, which the link makes non-blocking.
        parse: turns the bytes of one message into a validated model, or raises ValueError.
        most_queued: messages that wait for room, beyond those that are urgent.
    """

    def __init__(
        self,
        sock: socket.socket,
        parse: Callable[[bytes], MessageT],
        *,
        most_queued: int = MAX_QUEUED,
    ) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._parse = parse
        self._most_queued = most_queued
        self._counts = _Counts()
        self._queue: deque[_Outgoing] = deque()
        self._urgent = 0  # how many of those, at the head
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writing = False
        self._on_message: Callable[[MessageT, list[int]], None] | None = None
        self._on_close: Callable[[], None] | None = None
        self.closed = False

    def fileno(self) -> int:
        """The socket's descriptor, still owned by the link."""
        return self._sock.fileno()

    def statistics(self) -> LinkStatistics:
        """Totals so far, frozen."""
        counts = self._counts
        return LinkStatistics(
            counts.sent,
            counts.dropped,
            counts.received,
            counts.invalid,
            len(self._queue),
            counts.sent_bytes,
        )

    def send(self, message: Wire, fds: Sequence[int] = ()) -> bool:
        """Send or queue; never blocks. The caller keeps its descriptors.

        Returns:
            False when the message was dropped: the link is closed, its queue is full, the
            message is over MAX_MESSAGE_BYTES, or there is no room for its descriptors.
        """
        if len(message.fds) != len(fds) or len(fds) > MAX_FDS:
            raise ValueError(f"{len(fds)} descriptors for the names {message.fds}")
        payload = message.to_wire()
        if self.closed or len(payload) > MAX_MESSAGE_BYTES:
            self._counts.dropped += 1
            return False
        if not self._queue and (done := self._try_send(payload, fds)) is not None:
            return done
        return self._enqueue(payload, fds, is_urgent=message.is_urgent)

    def _enqueue(self, payload: bytes, fds: Sequence[int], *, is_urgent: bool) -> bool:
        others = len(self._queue) - self._urgent
        is_full = self._urgent >= MAX_URGENT if is_urgent else others >= self._most_queued
        if self.closed or is_full:
            self._counts.dropped += 1
            return False
        try:
            outgoing = _Outgoing(payload, duplicate(fds), is_urgent)
        except OSError:  # there is no descriptor left to keep them by
            self._counts.dropped += 1
            return False
        self._queue.insert(self._urgent if is_urgent else len(self._queue), outgoing)
        self._urgent += is_urgent
        self._want_write()
        return True

    def _try_send(self, payload: bytes, fds: Sequence[int]) -> bool | None:
        """Whether it is sent, or nobody is left to miss it; None: there is no room yet."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([payload], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            self._counts.dropped += 1
            return error.errno in _NOBODY_READS  # its end of file reports the close
        self._counts.sent += 1
        self._counts.sent_bytes += len(payload)
        return True

    def flush(self) -> None:
        """Send what is queued, as far as the peer takes it."""
        while self._queue:
            if self._try_send(self._queue[0].payload, self._queue[0].fds) is None:
                break
            sent = self._queue.popleft()
            self._urgent -= sent.is_urgent
            close_fds(sent.fds)
        self._want_write()

    def _want_write(self) -> None:
        if self._loop is None or self.closed or self._writing == bool(self._queue):
            return
        self._writing = bool(self._queue)
        if self._writing:
            self._loop.add_writer(self._sock.fileno(), self.flush)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def receive(self, timeout_s: float | None = None) -> tuple[MessageT, list[int]] | None:
        """Wait for one valid message, without an event loop.

        Returns:
            The message and the descriptors that came with it, now the caller's; None at the end
            of file or after `timeout_s` without a message (`closed` tells which).
        """
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while not self.closed:
            if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            received = self._receive_one()
            if received is not None:
                return received
        return None

    def _receive_one(self) -> tuple[MessageT, list[int]] | None:
        """One message; None for nothing there, an invalid one, or the end of file (closes)."""
        try:
            payload, ancillary, flags, _ = self._sock.recvmsg(
                MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            # The peer died with our message unread. The kernel says so once, before the last
            # words of the peer; the end of file comes after them.
            return None
        except OSError:
            self.close()
            return None
        fds = _received_fds(ancillary)
        if not payload and self._has_ended():
            close_fds(fds)
            self.close()
            return None
        return self._validated(payload, fds, flags)

    def _has_ended(self) -> bool:
        """An empty message looks like the end of file, and would deafen us to all successors."""
        poll = select.poll()
        poll.register(self._sock, POLLRDHUP)
        return bool(poll.poll(0))

    def _validated(
        self, payload: bytes, fds: list[int], flags: int
    ) -> tuple[MessageT, list[int]] | None:
        try:
            message = self._parse(payload)
        except ValueError:
            message = None
        cut = flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        if cut or message is None or len(message.fds) != len(fds):
            self._counts.invalid += 1
            close_fds(fds)
            return None
        self._counts.received += 1
        return message, fds

    def start(
        self,
        on_message: Callable[[MessageT, list[int]], None],
        on_close: Callable[[], None],
    ) -> None:
        """Deliver messages from the running event loop; the callback owns the descriptors."""
        self._loop = asyncio.get_running_loop()
        self._on_message, self._on_close = on_message, on_close
        self._loop.add_reader(self._sock.fileno(), self._readable)
        self._want_write()

    def _readable(self) -> None:
        for _ in range(_READS_PER_WAKEUP):
            before = self._counts.invalid
            received = self._receive_one()
            if received is not None and self._on_message is not None:
                self._on_message(*received)
            elif self._counts.invalid == before:
                return
            if self.closed:
                return

    def close(self) -> None:
        """Close the socket and what waits in the queue; reports it once to `on_close`."""
        if self.closed:
            return
        self.closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for outgoing in self._queue:
            close_fds(outgoing.fds)
        self._queue.clear()
        self._urgent = 0
        if self._on_close is not None:
            self._on_close()


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
