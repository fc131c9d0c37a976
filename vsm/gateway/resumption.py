"""Streams of a legacy HTTP session that outlive their connection: what was sent is kept, bounded.

Every event has an id, and a client that lost its connection asks for what followed the last one
it saw (revision 2025-11-25, transports, resumability). Owns the kept events of all sessions and
their bound. Runs in S1's event loop.
"""

from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from vsm.gateway.http_exchange import Exchange, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_KEPT_BYTES: Final = 16 * 1024 * 1024
MAX_KEPT_OF_STREAM: Final = 256
_MOST_ID_DIGITS: Final = 9
_ACCEPTED: Final = 202


class Backlog:
    """The events of every stream, the oldest of which go first."""

    def __init__(self, most_bytes: int = MAX_KEPT_BYTES) -> None:
        self._most = most_bytes
        self._order: deque[EventStream] = deque()
        self._held = 0
        self.held_bytes = 0

    def keep(self, stream: "EventStream", size_bytes: int) -> None:
        """A stream has one more event."""
        self._order.append(stream)
        self._held += 1
        self.held_bytes += size_bytes
        while self.held_bytes > self._most:
            self._order.popleft().drop_oldest()

    def forget(self, size_bytes: int) -> None:
        """A stream has one event less; its place in the order goes when its turn comes."""
        self.held_bytes -= size_bytes
        self._held -= 1
        if len(self._order) > 2 * (self._held + MAX_KEPT_OF_STREAM):
            self._tidy()

    def _tidy(self) -> None:
        """Leave each stream as many places as it has events, the last of them."""
        places: Counter[EventStream] = Counter()
        kept: deque[EventStream] = deque()
        for stream in reversed(self._order):
            if places[stream] < len(stream.kept):
                places[stream] += 1
                kept.appendleft(stream)
        self._order = kept


class EventStream:
    """One stream: where the answer to a request goes, or what belongs to no request.

    Args:
        backlog: bounds what is kept. number: unique in the session.
        exchange: the connection's side, now. on_done: called once its answer is under way.
        primed: its reader knows events without data (from revision 2025-11-25 on).
        request: the id of the request that it answers, as JSON.
    """

    __slots__ = (
        "_backlog",
        "_on_done",
        "done",
        "exchange",
        "kept",
        "last",
        "number",
        "primed",
        "request",
    )

    def __init__(
        self,
        backlog: Backlog,
        number: int,
        exchange: Exchange | None,
        on_done: "Callable[[EventStream], None] | None" = None,
        *,
        primed: bool = False,
        request: bytes = b"",
    ) -> None:
        self.request = request
        self._backlog = backlog
        self._on_done = on_done
        self.primed = primed
        self.number = number
        self.exchange = exchange
        self.kept: deque[tuple[int, bytes]] = deque()
        self.last = 0
        self.done = False

    @property
    def is_attached(self) -> bool:
        """Whether somebody reads it now."""
        return self.exchange is not None and not self.exchange.over

    def answer(self, frame: bytes) -> None:
        """Send the one answer; as plain JSON where nothing came before it."""
        exchange = self.exchange
        self.done = True
        if exchange is not None and not exchange.over and not exchange.streaming:
            exchange.answer(frame)
        else:
            self._event(frame)
            if exchange is not None:
                exchange.end()
        if self._on_done is not None:
            self._on_done(self)

    def cancel(self) -> None:
        """There will be no answer, and nobody waits for it."""
        self.done = True
        self.clear()
        if self.exchange is not None and self.exchange.streaming:
            self.exchange.end()
        elif self.exchange is not None:
            self.exchange.respond(_ACCEPTED)

    def notify(self, frame: bytes) -> None:
        """Send what comes before the answer."""
        exchange = self.exchange
        if exchange is not None and not exchange.over and not exchange.streaming:
            self.begin(exchange)
        self._event(frame)

    ask = notify

    def begin(self, exchange: Exchange) -> None:
        """Begin with an id, so that the stream can be taken up before its first event."""
        self.exchange = exchange
        exchange.stream()
        if self.primed:
            exchange.event(self._id(self.last), b"")
        else:
            exchange.comment(b"connected")

    def _event(self, frame: bytes) -> None:
        self.last += 1
        self.kept.append((self.last, frame))
        self._backlog.keep(self, len(frame))
        if len(self.kept) > MAX_KEPT_OF_STREAM:
            self.drop_oldest()
        if self.exchange is not None and not self.exchange.over:
            self.exchange.event(self._id(self.last), frame)

    def _id(self, event: int) -> bytes:
        return b"%d-%d" % (self.number, event)

    def drop_oldest(self) -> None:
        """Forget one event; whoever resumes before it is told that it is too late."""
        if self.kept:
            _, frame = self.kept.popleft()
            self._backlog.forget(len(frame))

    def clear(self) -> None:
        """Nobody will ask for it again."""
        while self.kept:
            self.drop_oldest()

    def resume(self, exchange: Exchange, after: int) -> None:
        """Go on with another connection, from the event that follows `after`.

        Raises:
            RefusedError: what followed is not kept any more, or somebody reads the stream.
        """
        if self.is_attached:
            raise RefusedError(409, "The stream is being read.\n")
        first = self.kept[0][0] if self.kept else self.last + 1
        if not first - 1 <= after <= self.last:
            raise RefusedError(404, "What followed this event is not kept any more.\n")
        self.exchange = exchange
        exchange.stream()
        for number, frame in self.kept:
            if number > after:
                exchange.event(self._id(number), frame)
        if self.done:
            exchange.end()


def parse_event_id(text: str) -> tuple[int, int] | None:
    """Stream and event of a Last-Event-ID; None where it is none of ours."""
    stream, dash, event = text.partition("-")
    if not dash or not (stream.isascii() and stream.isdigit() and event.isascii()):
        return None
    if not event.isdigit() or max(len(stream), len(event)) > _MOST_ID_DIGITS:
        return None
    return int(stream), int(event)
