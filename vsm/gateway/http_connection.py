"""One HTTP/1.1 connection: bytes to requests, one answer after the other, everything bounded.

Owns the parser (llhttp by way of httptools), the order of answers and the time a client may
take. A connection sets no timer of its own: the listener's sweep asks each in turn. Runs in
S1's event loop, on what an untrusted client wrote.
"""

import asyncio
from collections import deque
from math import inf
from typing import Final, Protocol, cast

import httptools

from vsm.gateway.http_exchange import Exchange, RefusedError, Request

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_DISCARDED_BYTES: Final = 4 * MAX_BODY_BYTES
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_URL_BYTES: Final = 8192
MAX_LENGTH_DIGITS: Final = 12
MAX_WAITING: Final = 8  # requests behind the one that is answered
HEADER_LIMIT_S: Final = 10.0
BODY_LIMIT_S: Final = 60.0
KEEP_ALIVE_S: Final = 75.0
UNREAD_LIMIT_S: Final = 30.0
PING_INTERVAL_S: Final = 15.0
HIGH_WATER_BYTES: Final = 1024 * 1024

_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_BAD: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Application(Protocol):
    """What answers requests."""

    def admit(self, request: Request) -> None:
        """Judge a request by its headers; raises RefusedError."""

    def serve(self, request: Request, body: bytes, exchange: Exchange) -> None:
        """Answer a request, now or later; raises RefusedError."""


class Connections(Protocol):
    """Who knows every connection: the listener."""

    def join(self, connection: "Connection") -> bool:
        """Know a connection; False where it is one too many."""

    def leave(self, connection: "Connection") -> None:
        """Forget a connection."""


class Connection(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, application: Application, connections: Connections) -> None:
        self._application = application
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._refusal: RefusedError | None = None
        self._body = bytearray()  # parts in a list take twenty times the room where they are small
        self._body_bytes = 0
        self._body_came = False
        self._head_bytes = 0
        self._in_head = True
        self._waiting: deque[tuple[Request, bytes, RefusedError | None, bool, bool]] = deque()
        self._exchange: Exchange | None = None
        self._limit_at = inf
        self._unread_at = inf
        self.chunks = True
        self.stays = True

    # ---- the transport's side --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, if there is room."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._connections.join(self):
            self._transport.write(_BUSY)
            self._transport.close()
            return
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self._limit_at = self._loop.time() + HEADER_LIMIT_S

    def data_received(self, data: bytes) -> None:
        """Take bytes; headers without end are cut off, and so are trailers."""
        in_head, self._body_came = self._in_head, False
        if in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._decline_upgrade()
        except httptools.HttpParserError:
            self._give_up()
            return
        self._serve_next()
        if not (in_head or self._in_head):
            self._head_bytes = 0 if self._body_came else self._head_bytes + len(data)
        if self._head_bytes > MAX_HEADER_BYTES:
            self.abort()

    def _decline_upgrade(self) -> None:
        """No other protocol is spoken here: what was read is answered, then the connection ends."""
        if self._waiting:
            request, body, refusal, _, chunks = self._waiting.pop()
            self._waiting.append((request, body, refusal, False, chunks))

    def _give_up(self) -> None:
        transport = cast("asyncio.Transport", self._transport)
        if not transport.is_closing():
            if self._exchange is None:
                transport.write(_BAD)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone."""
        self._limit_at = self._unread_at = inf
        self._waiting.clear()
        self._connections.leave(self)
        if self._exchange is not None:
            self._exchange.disconnected()

    def pause_writing(self) -> None:
        """The client is behind with reading; not for ever."""
        self._unread_at = self._loop.time() + UNREAD_LIMIT_S

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._unread_at = inf

    # ---- the parser's side -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._request = Request()
        self._refusal = None
        self._body.clear()
        self._body_bytes = 0
        self._in_head = True
        self._limit_at = self._loop.time() + HEADER_LIMIT_S

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._request.path += url.decode("latin-1")
        if len(self._request.path) > MAX_URL_BYTES:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are dropped: the request was judged without them."""
        if self._in_head:
            self._request.add(name, value)

    def on_headers_complete(self) -> None:
        """Judge a request before its body."""
        self._in_head = False
        self._head_bytes = 0
        self._limit_at = self._loop.time() + BODY_LIMIT_S
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.path = request.path.partition("?")[0]
        try:
            self._application.admit(request)
            self._admit_body(request)
        except RefusedError as refusal:
            self._refusal = refusal
        if self._refusal is None and request.headers.get("expect", "").lower() == "100-continue":
            self.write(_CONTINUE)

    def _admit_body(self, request: Request) -> None:
        if request.headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise RefusedError(501, "Send the body as it is, or in chunks.\n")
        declared = request.headers.get("content-length", "0")
        if not declared.isdigit() or len(declared) > MAX_LENGTH_DIGITS:
            raise RefusedError(413, _TOO_LARGE)
        if int(declared) > MAX_BODY_BYTES:
            raise RefusedError(413, _TOO_LARGE)

    def on_body(self, part: bytes) -> None:
        """A part of a body; some of a refused one is read too, so that the client sees why."""
        self._body_came = True
        self._body_bytes += len(part)
        if self._body_bytes > MAX_BODY_BYTES and self._refusal is None:
            self._refusal = RefusedError(413, _TOO_LARGE)
        if self._body_bytes > MAX_DISCARDED_BYTES:
            self.abort()
        if self._refusal is None:
            self._body += part
        else:
            self._body.clear()

    def on_message_complete(self) -> None:
        """A request is there: serve it, or let it wait for those before it."""
        body = bytes(self._body)
        self._in_head, self._head_bytes, self._limit_at = True, 0, inf
        if len(self._waiting) >= MAX_WAITING:
            self.abort()
            return
        chunks = self._parser.get_http_version() != "1.0"
        stays = chunks and self._parser.should_keep_alive()  # the end of an old one's stream
        self._waiting.append((self._request, body, self._refusal, stays, chunks))

    # ---- requests --------------------------------------------------------------------------

    def _serve_next(self) -> None:
        """Serve what waits, as long as it is answered at once."""
        while self._waiting and self._exchange is None:
            request, body, refusal, self.stays, self.chunks = self._waiting.popleft()
            exchange = self._exchange = Exchange(self, self._loop.time())
            try:
                if refusal is not None:
                    raise refusal
                self._application.serve(request, body, exchange)
            except RefusedError as error:
                exchange.refuse(error)

    def finished(self) -> None:
        """The request is answered: the connection ends, or the next one follows."""
        self._exchange = None
        if not self.stays:
            self._waiting.clear()
            self.close()
            return
        if self._waiting:
            self._loop.call_soon(self._serve_next)
        else:
            self._limit_at = self._loop.time() + KEEP_ALIVE_S

    def write(self, data: bytes) -> None:
        """Send bytes."""
        transport = cast("asyncio.Transport", self._transport)
        if not transport.is_closing():
            transport.write(data)

    def unread_bytes(self) -> int:
        """How much waits for the client to read it."""
        return cast("asyncio.Transport", self._transport).get_write_buffer_size()

    def sweep(self, now: float) -> None:
        """Cut off whoever took too long; show those who wait that we are here."""
        if now >= self._unread_at or now >= self._limit_at:
            self.abort()
        elif self._exchange is not None and now - self._exchange.last_at >= PING_INTERVAL_S:
            self._exchange.ping(now)

    def abort(self) -> None:
        """Cut the client off."""
        cast("asyncio.Transport", self._transport).abort()

    def close(self) -> None:
        """Close once what was written is on its way."""
        cast("asyncio.Transport", self._transport).close()


_TOO_LARGE: Final = f"A body has at most {MAX_BODY_BYTES} bytes.\n"
