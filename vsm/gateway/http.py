"""Streamable HTTP on loopback: /mcp for both eras, /healthz, and who may ask.

Owns the HTTP listener, legacy sessions and the server-sent event streams. Runs in S1's event
loop under uvicorn's httptools protocol, as a raw ASGI application. A foreign Host or Origin is
refused before anything else is looked at, then a missing token.
"""

import asyncio
import hmac
import secrets
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import uvicorn
import uvicorn.lifespan.off  # uvicorn imports it by name; a confined process could not
from msgspec import UNSET
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from vsm.gateway.call import id_json
from vsm.gateway.client import Client
from vsm.gateway.router import Router
from vsm.protocol import envelope, jsonrpc
from vsm.protocol.jsonrpc import DecodeError, Message
from vsm.protocol.tables import LEGACY_VERSIONS, META_VERSION, MODERN_VERSIONS

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_DISCARDED_BYTES: Final = 4 * MAX_BODY_BYTES
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_CONNECTIONS: Final = 512
MAX_SESSIONS: Final = 1024
MAX_EVENTS: Final = 1024
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
SESSION_IDLE_S: Final = 3600.0
PING_INTERVAL_S: Final = 15.0
KEEP_ALIVE_S: Final = 75
HTTP_PORT: Final = 80
NO_CONTENT: Final = 204

SESSION_HEADER: Final = "mcp-session-id"
_JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_ROUTING_HEADERS: Final = frozenset(
    {envelope.VERSION_HEADER, envelope.METHOD_HEADER, envelope.NAME_HEADER}
)
# The HTTP status of a modern error; others go with 200.
_STATUS: Final = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    jsonrpc.INVALID_PARAMS: 400,
    jsonrpc.HEADER_MISMATCH: 400,
    jsonrpc.UNSUPPORTED_VERSION: 400,
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
        body = b"".join(_event(frame) for frame in self.events)
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


def _event(frame: bytes) -> bytes:
    return b"event: message\r\ndata: %b\r\n\r\n" % frame


class RequestClient(Client):
    """The client of one modern request; it has nothing beside that request."""

    def notify(self, frame: bytes) -> None:
        """There is no stream beside the request's own."""


class HttpSession(Client):
    """A legacy client's session."""

    def __init__(self, now: float) -> None:
        super().__init__()
        self.id = secrets.token_urlsafe(24)
        self.stream: Exchange | None = None
        self.used_at = now

    def notify(self, frame: bytes) -> None:
        """Send on the stream that the client keeps open for it, if it does."""
        if self.stream is not None:
            self.stream.notify(frame)


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
            if name in self.headers and name in _ROUTING_HEADERS:
                self.repeated = name
            self.headers[name] = raw_value.decode("latin-1")

    def accepts(self, kind: str) -> bool:
        """Whether the client takes an answer of this media type."""
        accept = self.headers.get("accept", "*/*").lower()
        return kind in accept or "*/*" in accept or kind.partition("/")[0] + "/*" in accept


class HttpApplication:
    """The ASGI application.

    Args:
        token: what a bearer must show; "" lets everybody in who reaches the listener.
        hosts: the Host values that are ours.
    """

    def __init__(self, router: Router, *, token: str, hosts: frozenset[str]) -> None:
        self._router = router
        self._token = token.encode()
        self._hosts = hosts
        self._sessions: dict[str, HttpSession] = {}
        self._loop = asyncio.get_running_loop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        request = Request(scope)
        try:
            self._admit(request)
            await self._serve(request, receive, send)
        except RefusedError as refusal:
            body = refusal.text.encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), *refusal.headers]
            await _respond(send, refusal.status, body, headers)

    # ---- who may ask -----------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        if request.headers.get("host", "").lower() not in self._hosts:
            raise RefusedError(403, "This host name is not served here.\n")
        origin = request.headers.get("origin")
        if origin is not None and not self._is_ours(origin):
            raise RefusedError(403, "This origin may not call.\n")

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() in self._hosts

    def _authorize(self, request: Request) -> None:
        if not self._token:
            return
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        shown_bytes = shown.strip().encode("latin-1")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown_bytes, self._token):
            challenge = [(b"www-authenticate", b"Bearer")]
            raise RefusedError(401, "A bearer token is needed.\n", challenge)

    async def _serve(self, request: Request, receive: Receive, send: Send) -> None:
        if request.path == "/healthz" and request.method == "GET":
            await _respond(send, 200, b'{"status":"ok"}', [_JSON])
            return
        if request.path != "/mcp":
            raise RefusedError(404, "Nothing is here; the endpoint is /mcp.\n")
        self._authorize(request)
        if request.method == "POST":
            await self._post(request, receive, send)
        elif request.method == "GET":
            await self._get(request, send)
        elif request.method == "DELETE":
            await self._delete(request, send)
        else:
            raise RefusedError(405, "POST, GET or DELETE.\n", [(b"allow", b"POST, GET, DELETE")])

    # ---- POST ------------------------------------------------------------------------------

    async def _post(self, request: Request, receive: Receive, send: Send) -> None:
        if not request.headers.get("content-type", "").lower().startswith("application/json"):
            raise RefusedError(415, "The body is application/json.\n")
        if not request.accepts("application/json"):
            raise RefusedError(406, "Accept application/json and text/event-stream.\n")
        body = await _body(request, receive)
        try:
            message = jsonrpc.decode(jsonrpc.compact(body))
        except DecodeError as error:
            await _respond(send, 400, jsonrpc.failure(b"null", error.code, error.message), [_JSON])
            return
        if self._is_modern(request, message):
            await self._post_modern(request, message, send)
        else:
            await self._post_legacy(request, message, send)

    @staticmethod
    def _is_modern(request: Request, message: Message) -> bool:
        if request.headers.get(envelope.VERSION_HEADER) in MODERN_VERSIONS:
            return True
        if (
            message.params is UNSET
            or META_VERSION.encode() not in memoryview(message.params).tobytes()
        ):
            return False
        try:
            return META_VERSION in jsonrpc.nested(jsonrpc.members(message.params), "_meta")
        except DecodeError:
            return False

    async def _post_modern(self, request: Request, message: Message, send: Send) -> None:
        if message.method is UNSET:
            text = "the body is one request or one notification"
            failure = jsonrpc.failure(b"null", jsonrpc.INVALID_REQUEST, text)
            await _respond(send, 400, failure, [_JSON])
            return
        if message.id is UNSET or message.id is None:
            await _respond(send, 202, b"", [])
            return
        id_bytes = id_json(message.id)
        if request.repeated is not None:
            text = f"the header {request.repeated} is there more than once"
            failure = jsonrpc.failure(id_bytes, jsonrpc.HEADER_MISMATCH, text)
            await _respond(send, 400, failure, [_JSON])
            return
        exchange, client = Exchange(request.connection), RequestClient()
        self._router.join(client)
        try:
            self._router.receive(client, exchange, message, request.headers)
            await self._finish(exchange, send, modern=True)
        finally:
            self._router.leave(client, "the client closed the connection")

    async def _post_legacy(self, request: Request, message: Message, send: Send) -> None:
        self._check_version(request)
        if message.method == "initialize" and message.id is not UNSET:
            session = self._open_session()
            headers = [(SESSION_HEADER.encode(), session.id.encode())]
        else:
            session, headers = self._session(request), []
        exchange = Exchange(request.connection)
        self._router.receive(session, exchange, message)
        if message.method is UNSET or message.id is UNSET:
            await _respond(send, 202, b"", headers)
        else:
            await self._finish(exchange, send, modern=False, headers=headers)

    async def _finish(
        self,
        exchange: Exchange,
        send: Send,
        *,
        modern: bool,
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        """Answer with JSON where nothing comes before the answer, else with events."""
        await exchange.wait(PING_INTERVAL_S)
        if exchange.gone:
            return
        if exchange.final is not None and not exchange.events:
            status = _status(exchange.final) if modern else 200
            await _respond(send, status, exchange.final, [_JSON, *(headers or ())])
            return
        await _start(send, 200, [*_EVENTS, *(headers or ())])
        while exchange.final is None and not exchange.gone:
            await _more(send, exchange.take() or b": ping\r\n\r\n")
            await exchange.wait(PING_INTERVAL_S)
        if exchange.final is not None and not exchange.gone:
            await _last(send, exchange.take() + _event(exchange.final))

    # ---- legacy sessions -------------------------------------------------------------------

    @staticmethod
    def _check_version(request: Request) -> None:
        version = request.headers.get(envelope.VERSION_HEADER)
        if version is not None and version not in LEGACY_VERSIONS:
            known = ", ".join((*LEGACY_VERSIONS, *MODERN_VERSIONS))
            raise RefusedError(400, f"Unsupported MCP-Protocol-Version; served are {known}.\n")

    def _open_session(self) -> HttpSession:
        now = self._loop.time()
        if len(self._sessions) >= MAX_SESSIONS:
            for session in list(self._sessions.values()):
                if now - session.used_at > SESSION_IDLE_S and not session.in_flight:
                    self._close_session(session)
        if len(self._sessions) >= MAX_SESSIONS:
            raise RefusedError(503, "There are too many sessions.\n")
        session = HttpSession(now)
        self._sessions[session.id] = session
        self._router.join(session)
        return session

    def _session(self, request: Request) -> HttpSession:
        session_id = request.headers.get(SESSION_HEADER)
        if session_id is None:
            raise RefusedError(400, "Mcp-Session-Id is missing; send initialize first.\n")
        session = self._sessions.get(session_id)
        if session is None:
            raise RefusedError(404, "There is no such session; send initialize.\n")
        session.used_at = self._loop.time()
        return session

    def _close_session(self, session: HttpSession) -> None:
        self._sessions.pop(session.id, None)
        if session.stream is not None:
            session.stream.disconnected()
        self._router.leave(session, "the client ended the session")

    async def _get(self, request: Request, send: Send) -> None:
        if request.headers.get(envelope.VERSION_HEADER) in MODERN_VERSIONS:
            raise RefusedError(405, "POST only.\n", [(b"allow", b"POST")])
        if "text/event-stream" not in request.headers.get("accept", ""):
            raise RefusedError(406, "Accept text/event-stream.\n")
        session = self._session(request)
        if session.stream is not None:
            raise RefusedError(409, "The session has a stream already.\n")
        session.stream = stream = Exchange(request.connection)
        try:
            await _start(send, 200, _EVENTS)
            await _more(send, b": connected\r\n\r\n")
            while not stream.gone:
                await stream.wait(PING_INTERVAL_S)
                if not stream.gone:
                    await _more(send, stream.take() or b": ping\r\n\r\n")
            await _last(send, b"")
        finally:
            session.stream = None

    async def _delete(self, request: Request, send: Send) -> None:
        self._close_session(self._session(request))
        await _respond(send, 204, b"", [])

    def stop(self) -> None:
        """End every session and stream."""
        for session in list(self._sessions.values()):
            self._close_session(session)


def _status(frame: bytes) -> int:
    if b',"error":{' not in frame[:512]:
        return 200
    error = jsonrpc.decode(frame).error
    body = None if error is UNSET else jsonrpc.error_of(error)
    return 200 if body is None else _STATUS.get(body.code, 200)


async def _body(request: Request, receive: Receive) -> bytes:
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


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _last(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _respond(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    length = (b"content-length", b"%d" % len(body))
    await _start(send, status, [*headers, length] if status != NO_CONTENT else headers)
    await _last(send, body)


def own_hosts(sock: socket.socket) -> frozenset[str]:
    """The Host values under which a listener is ours: its own address and loopback's names."""
    address, port = sock.getsockname()[:2]
    names = {"127.0.0.1", "localhost", "[::1]", f"[{address}]" if ":" in address else address}
    return frozenset({f"{name}:{port}" for name in names} | (names if port == HTTP_PORT else set()))


class HttpListener:
    """The listener and its connections.

    Args:
        sock: a listening TCP socket, whose ownership goes over.
        token: what a bearer must show; "" for none.
    """

    def __init__(self, router: Router, sock: socket.socket, *, token: str) -> None:
        self._sock = sock
        self.application = HttpApplication(router, token=token, hosts=own_hosts(sock))
        self._server: asyncio.AbstractServer | None = None
        self._state = ServerState()

    async def start(self) -> None:
        """Accept connections."""
        config = uvicorn.Config(
            self.application,
            loop="none",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.load()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(config=config, server_state=self._state, app_state={}),
            sock=self._sock,
        )

    def stop(self) -> None:
        """Accept nothing more and close what is open."""
        self.application.stop()
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
