"""One downstream client: what it speaks, what it has in flight, what it wants to hear.

Owns the state of a session; the transports (unix socket, HTTP) subclass it for how bytes
leave. Runs in S1's event loop.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, cast

from msgspec import UNSET, Raw

from vsm.gateway.call import Call, Sink
from vsm.gateway.upstream import Upstream
from vsm.gateway.views import View
from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import Message, Object
from vsm.protocol.tables import (
    CHANGE_OF_LIST,
    LEGACY_VERSION,
    LISTEN_FILTERS,
    META_SUBSCRIPTION,
)

MAX_IN_FLIGHT = 256
MAX_ASKED = 16
MAX_LISTENS = 64
MAX_SUBSCRIBED_URIS = 1024
MAX_NAME_CHARS = 128
MAX_LISTED = 64


class Asked(Protocol):
    """What a client was asked, and who takes its answer."""

    def answered(self, message: Message) -> None:
        """The client answered."""

    def dropped(self, reason: str) -> None:
        """The client will not answer any more."""


@dataclass(eq=False)
class Question:
    """A legacy server's request that was passed to a legacy client.

    Args:
        progress: the server's token, where it wants to hear how far the client is.
    """

    upstream: Upstream
    id_bytes: bytes
    call: Call
    progress: Raw | None = None

    @property
    def is_late(self) -> bool:
        """Whether the call that it belongs to is over."""
        return self.call.client.in_flight.get(self.call.id_bytes) is not self.call

    def answered(self, message: Message) -> None:
        """Pass the answer back; the call gets its full time again."""
        if message.result is not UNSET:
            frame = jsonrpc.answer(self.id_bytes, message.result)
        else:
            frame = jsonrpc.forwarded_error(self.id_bytes, cast("Raw", message.error))
        self.upstream.tell(frame)
        if self.call.timeout_s is not None and not self.is_late:
            self.upstream.postpone(self.call, self.call.timeout_s)

    def dropped(self, reason: str) -> None:
        """Tell the server."""
        self.upstream.tell(jsonrpc.failure(self.id_bytes, jsonrpc.INTERNAL_ERROR, reason))


@dataclass(eq=False)
class SessionQuestion:
    """What the server of one session alone asked that session outside any call.

    Args:
        progress: as of a `Question`.
    """

    upstream: Upstream
    id_bytes: bytes
    progress: Raw | None = None
    timer: asyncio.TimerHandle | None = None
    is_late: ClassVar[bool] = False  # it has a time of its own

    def answered(self, message: Message) -> None:
        """Pass the answer back."""
        self.end()
        if message.result is not UNSET:
            self.upstream.tell(jsonrpc.answer(self.id_bytes, message.result))
        else:
            self.upstream.tell(jsonrpc.forwarded_error(self.id_bytes, cast("Raw", message.error)))

    def dropped(self, reason: str) -> None:
        """Tell the server."""
        self.end()
        self.upstream.tell(jsonrpc.failure(self.id_bytes, jsonrpc.INTERNAL_ERROR, reason))

    def end(self) -> None:
        """Wait no longer."""
        if self.timer is not None:
            self.timer.cancel()


@dataclass(eq=False)
class Listen:
    """A modern client's open subscription: one request whose answer is its end.

    Args:
        wanted: the notification methods that it asked for. uris: the resources it watches.
    """

    client: "Client"
    sink: Sink
    id_bytes: bytes
    wanted: frozenset[str]
    uris: frozenset[str]

    def hears(self, method: str, uri: str | None) -> bool:
        """Whether it asked for this notification."""
        return uri in self.uris if uri is not None else method in self.wanted

    def notify(self, method: str, params: Object) -> None:
        """Send a notification, marked as this subscription's."""
        meta = {**jsonrpc.nested(params, "_meta"), META_SUBSCRIPTION: Raw(self.id_bytes)}
        body = jsonrpc.encode({**params, "_meta": meta})
        self.sink.notify(jsonrpc.notification(method, body))

    def acknowledge(self) -> None:
        """The first frame: what will be heard."""
        honoured: dict[str, object] = {
            LISTEN_FILTERS[method]: True for method in sorted(self.wanted)
        }
        if self.uris:
            honoured["resourceSubscriptions"] = sorted(self.uris)
        params = {"notifications": jsonrpc.raw_of(honoured)}
        self.notify("notifications/subscriptions/acknowledged", params)

    def end(self) -> None:
        """The last frame: the subscription ended on purpose."""
        result = b'{"resultType":"complete","_meta":{"%b":%b}}'
        body = result % (META_SUBSCRIPTION.encode(), self.id_bytes)
        self.sink.answer(jsonrpc.answer(self.id_bytes, body))


@dataclass(eq=False)
class Client(ABC):
    """A client's session.

    Args:
        view: what it sees; None is everything.
        identity: who it is by the transport's word: "unix:UID", by the kernel's, or "http", which
            is whoever holds the token.
        calls_itself: the name that it gives itself; nothing proves it.
        capabilities: what a legacy client declared at its handshake.
        rejoined: it goes on with a session that it had with a gateway before.
        envelope: what a modern server is told of a legacy client, with every request.
        log_level: the index in LOG_LEVELS below which it wants no log messages, if it said so.
        owed: answers that it waits for beside those to calls.
        listed: the latest turns of its view's `Listings` in which it was listed resources.
    """

    lasts: ClassVar[bool] = True  # beyond one request
    view: View | None = None
    identity: str = ""
    calls_itself: str = ""
    version: str = LEGACY_VERSION
    initialized: bool = False
    rejoined: bool = False
    closed: bool = False
    log_level: int | None = None
    capabilities: Object = field(default_factory=dict)
    envelope: Object = field(default_factory=dict)
    in_flight: dict[bytes, Call] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    questions: int = 0
    owed: int = 0
    listens: dict[bytes, Listen] = field(default_factory=dict)
    subscribed: set[tuple[str, str]] = field(default_factory=set)
    listed: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_LISTED))

    def number_question(self) -> str:
        """The id of the next thing that it is asked: its own count, which tells of nobody else."""
        self.questions += 1
        return f"vsm-{self.questions}"

    @property
    def owner(self) -> "Client | str":
        """To whom belongs what outlives a request: a session, or all requests of one view."""
        if self.lasts:
            return self
        return f"{self.identity} {'' if self.view is None else self.view.name}"

    def introduces_itself(self, information: Object) -> None:
        """Take the name of a `clientInfo`; without one it has none."""
        self.calls_itself = (jsonrpc.text(information, "name") or "")[:MAX_NAME_CHARS]

    @abstractmethod
    def notify(self, frame: bytes) -> None:
        """Send a notification that belongs to no request; dropped where nobody listens."""

    @property
    def can_answer(self) -> bool:
        """Whether it may still say something to what it is asked."""
        return True

    def make_room(self) -> None:
        """Forget what servers that ended asked it; where it is asked much, also for past calls."""
        full = len(self.asked) >= MAX_ASKED
        for asked_id, question in list(self.asked.items()):
            if not isinstance(question, Question | SessionQuestion):
                continue
            if question.upstream.lost or (full and question.is_late):
                del self.asked[asked_id]
                question.dropped("the client did not answer")

    def ask_session(self, frame: bytes) -> bool:  # noqa: ARG002 - of those who can be asked
        """Send a question that belongs to no request; False: nobody would hear it."""
        return False

    def wants_no_answer(self, id_bytes: bytes) -> None:  # noqa: B027 - of most, none is open
        """It cancelled a request, whose answer it may have kept a connection open for."""

    def hears_of(self, method: str) -> bool:
        """Whether it will be told that the list of `method` changed."""
        change = CHANGE_OF_LIST[method]
        return self.initialized or any(one.hears(change, None) for one in self.listens.values())

    def end(self, reason: str) -> None:
        """The client is gone: cancel what it has in flight and forget what it wanted."""
        if self.closed:
            return
        self.closed = True
        # The newest first: what waits must not be sent in the place of what is cancelled.
        for call in reversed(list(self.in_flight.values())):
            call.cancel(reason)
        self.in_flight.clear()
