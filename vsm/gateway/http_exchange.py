"""HTTP's parts under the endpoint: connections, one request's answer, bodies and status codes.

Owns the bounds on what an HTTP client can make us hold; knows nothing of sessions or of who may
ask. Runs in S1's event loop under uvicorn's httptools protocol.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, TypeAlias

from msgspec import UNSET
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vsm.protocol import envelope, jsonrpc, parameter_headers

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_DISCARDED_BYTES: Final = 4 * MAX_BODY_BYTES
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_EVENTS: Final = 1024
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
NO_CONTENT: Final = 204
_ROUTING_HEADERS: Final = (
    envelope.VERSION_HEADER,
    envelope.METHOD_HEADER,
    envelope.NAME_HEADER,
    parameter_headers.PREFIX,
)
# The HTTP status of a modern error; others go with 200.
_STATUS: Final = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    jsonrpc.INVALID_PARAMS: 400,
    jsonrpc.HEADER_MISMATCH: 400,
    jsonrpc.UNSUPPORTED_VERSION: 400,
    jsonrpc.MISSING_CAPABILITY: 400,
    jsonrpc.METHOD_NOT_FOUND: 404,
}


class RefusedError(Exception):
    """A request is refused at the HTTP level."""

    def __init__(self, status: int, text: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.headers = tuple(headers)


class Connection(HttpToolsProtocol):
    """uvicorn's connection with a bound on headers, which tells who waits when it is lost."""

    def __init__(self, *args: Any, **keywords: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **keywords)
        self.waiting: set[Exchange] = set()
        self._header_bytes = 0
        self._in_headers = True

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._header_bytes, self._in_headers = 0, True
        self.scope["vsm.connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        """A request's headers are there."""
        self._in_headers = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Take bytes; headers without end are cut off."""
        super().data_received(data)
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        for exchange in list(self.waiting):
            exchange.disconnected()


class Exchange:
    """One HTTP request's answer: a JSON body, or a stream of events that ends with it."""

    __slots__ = ("_bytes", "_waiter", "connection", "events", "final", "gone")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events: deque[bytes] = deque()
        self.final: bytes | None = None
        self.gone = False
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    def answer(self, frame: bytes) -> None:
        """The answer."""
        self.final = frame
        self._wake()

    def notify(self, frame: bytes) -> None:
        """Something that comes before it; a client that does not read is cut off."""
        self.events.append(frame)
        self._bytes += len(frame)
        if len(self.events) > MAX_EVENTS or self._bytes > MAX_EVENT_BYTES:
            self.connection.transport.abort()
            self.disconnected()
        self._wake()

    def ask(self, frame: bytes) -> None:
        """A question that comes before it."""
        self.notify(frame)

    def disconnected(self) -> None:
        """Nobody will read the rest."""
        self.gone = True
        self.events.clear()
        self._wake()

    def take(self) -> bytes:
        """The events so far, as they go over the wire."""
        body = b"".join(event_bytes(frame) for frame in self.events)
        self.events.clear()
        self._bytes = 0
        return body

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Wait for an event, the answer or the disconnection; at most `timeout_s`."""
        if self.final is not None or self.events or self.gone:
            return
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._wake)
        self.connection.waiting.add(self)
        try:
            await waiter
        finally:
            self.connection.waiting.discard(self)
            timer.cancel()
            self._waiter = None


def event_bytes(frame: bytes) -> bytes:
    """A frame as a server-sent event."""
    return b"event: message\r\ndata: %b\r\n\r\n" % frame


class Request:
    """A request's parts, looked up once."""

    __slots__ = ("connection", "headers", "method", "path", "repeated")

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.connection: Connection = scope["vsm.connection"]
        self.headers: dict[str, str] = {}
        self.repeated: str | None = None
        for raw_name, raw_value in scope["headers"]:
            name = raw_name.decode("latin-1")
            if name in self.headers and name.startswith(_ROUTING_HEADERS):
                self.repeated = name
            self.headers[name] = raw_value.decode("latin-1").strip(" \t")

    def accepts(self, kind: str) -> bool:
        """Whether the client takes an answer of this media type."""
        accept = self.headers.get("accept", "*/*").lower()
        return kind in accept or "*/*" in accept or kind.partition("/")[0] + "/*" in accept


def status_of(frame: bytes) -> int:
    """The HTTP status with which a modern answer goes."""
    if b',"error":{' not in frame[:512]:
        return 200
    error = jsonrpc.decode(frame).error
    body = None if error is UNSET else jsonrpc.error_of(error)
    return 200 if body is None else _STATUS.get(body.code, 200)


async def read_body(request: Request, receive: Receive) -> bytes:
    """The body, within its bound.

    Raises:
        RefusedError: it is too large, or the client went away.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > MAX_DISCARDED_BYTES:
        raise RefusedError(413, _TOO_LARGE, [_CLOSE])
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise RefusedError(400, "The body ended early.\n", [_CLOSE])
        part = event.get("body", b"")
        size += len(part)
        # A client that is still sending would not read the refusal: discard a bounded rest.
        if size > MAX_BODY_BYTES:
            parts.clear()
        else:
            parts.append(part)
        ended = not event.get("more_body", False)
        if size > (MAX_BODY_BYTES if ended else MAX_DISCARDED_BYTES):
            raise RefusedError(413, _TOO_LARGE, [_CLOSE])
        if ended:
            return parts[0] if len(parts) == 1 else b"".join(parts)


_CLOSE: Final = (b"connection", b"close")
_TOO_LARGE: Final = f"A body has at most {MAX_BODY_BYTES} bytes.\n"


async def start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Send the status and the headers."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def more(send: Send, body: bytes) -> None:
    """Send a part of the body."""
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def last(send: Send, body: bytes) -> None:
    """Send the last part of the body."""
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a whole answer."""
    length = (b"content-length", b"%d" % len(body))
    await start(send, status, [*headers, length] if status != NO_CONTENT else headers)
    await last(send, body)
