"""Streamable HTTP on loopback: /mcp for both eras, /healthz, and who may ask.

Owns the HTTP listener, legacy sessions and the server-sent event streams. Runs in S1's event
loop. A foreign Host or Origin is refused before anything else is looked at, then a missing
token; all of that before a body is read.
"""

import asyncio
import hmac
import secrets
import socket
from typing import Final
from urllib.parse import urlsplit

from msgspec import UNSET

from vsm.gateway.call import id_json
from vsm.gateway.client import Client
from vsm.gateway.http_connection import Connection
from vsm.gateway.http_exchange import HOST, Exchange, RefusedError, Request
from vsm.gateway.resumption import Backlog, EventStream, parse_event_id
from vsm.gateway.router import Router
from vsm.protocol import envelope, jsonrpc
from vsm.protocol.jsonrpc import DecodeError, Message
from vsm.protocol.tables import CHANGED, LEGACY_VERSIONS, META_VERSION, MODERN_VERSIONS

MAX_CONNECTIONS: Final = 1024
MAX_SESSIONS: Final = 2048
PRIMED_SINCE: Final = "2025-11-25"
MAX_STREAMS: Final = 64
"""Of one session, kept for who lost the connection; those that wait for an answer are more."""
SESSION_IDLE_S: Final = 3600.0
SESSION_SPARED_S: Final = 60.0
"""Where there is no room, the session that was unused for longest goes, but not before this."""
SWEEP_INTERVAL_S: Final = 1.0
HTTP_PORT: Final = 80

IDENTITY: Final = "http"
SESSION_HEADER: Final = "mcp-session-id"
_JSON: Final = (b"content-type", b"application/json")
_LIST_CHANGES: Final = frozenset(jsonrpc.notification(method) for method in CHANGED)
_META_VERSION: Final = META_VERSION.encode()
_GONE: Final = "the client closed the connection"


class RequestClient(Client):
    """The client of one modern request; it has nothing beside that request."""

    lasts = False

    def notify(self, frame: bytes) -> None:
        """There is no stream beside the request's own."""


class HttpSession(Client):
    """A legacy client's session."""

    def __init__(self, now: float, request: Request, backlog: Backlog) -> None:
        super().__init__(view=request.view, identity=_identity(request))
        self.id = secrets.token_urlsafe(24)
        self.used_at = now
        self._backlog = backlog
        self._opened = 0
        self.stream = EventStream(backlog, 0, None)
        """What belongs to no request."""
        self.streams: dict[int, EventStream] = {0: self.stream}
        self._missed: dict[bytes, None] = {}

    def notify(self, frame: bytes) -> None:
        """Send on the stream that the client keeps open for it, or keep it for when it does.

        Before it opened one only the news that a list changed is kept, and between two for
        whoever opens another one without saying what it saw last.
        """
        if self.stream.exchange is not None:
            self.stream.notify(frame)
        if not self.stream.is_attached and frame in _LIST_CHANGES:
            self._missed[frame] = None

    def ask_session(self, frame: bytes) -> bool:
        """Send a question on the stream for what belongs to no request, while it is open."""
        if self.stream.is_attached:
            self.stream.ask(frame)
            return True
        return False

    def hears_of(self, method: str) -> bool:
        """Only while it keeps a stream open for what belongs to no request."""
        return self.stream.is_attached and super().hears_of(method)

    def begin_stream(self, exchange: Exchange) -> None:
        """Take the stream for what belongs to no request; what was missed comes first."""
        self.stream.primed = self.version >= PRIMED_SINCE
        self.stream.begin(exchange)
        for frame in self._missed:
            self.stream.notify(frame)
        self._missed.clear()

    @property
    def is_used(self) -> bool:
        """Whether a call of it is in flight, or somebody reads a stream of it."""
        return bool(self.in_flight) or any(one.is_attached for one in self.streams.values())

    def open_stream(self, exchange: Exchange, request: bytes) -> EventStream:
        """A stream for the answer to the request of this id."""
        self._opened += 1
        stream = EventStream(
            self._backlog,
            self._opened,
            exchange,
            self._answered,
            primed=self.version >= PRIMED_SINCE,
            request=request,
        )
        self.streams[self._opened] = stream
        return stream

    def _answered(self, stream: EventStream) -> None:
        """Keep what was sent as events, the newest of them; a plain answer is there or lost."""
        if not stream.kept:
            self.streams.pop(stream.number, None)
        for old in list(self.streams.values()):
            if len(self.streams) <= MAX_STREAMS:
                break
            if old.done:
                old.clear()
                del self.streams[old.number]

    def wants_no_answer(self, id_bytes: bytes) -> None:
        """End the stream of a request that it cancelled, so that its connection is free again."""
        for stream in list(self.streams.values()):
            if stream.request == id_bytes and not stream.done:
                del self.streams[stream.number]
                stream.cancel()

    def resume(self, event_id: str, exchange: Exchange) -> None:
        """Go on after an event that the client saw.

        Raises:
            RefusedError: there is no such event, or somebody reads its stream.
        """
        where = parse_event_id(event_id)
        stream = self.streams.get(where[0]) if where else None
        if where is None or stream is None:
            raise RefusedError(404, "There is no such event.\n")
        stream.resume(exchange, where[1])
        if stream is self.stream:
            self._missed.clear()

    def end_streams(self) -> None:
        """The session is over."""
        for stream in self.streams.values():
            if stream.exchange is not None:
                stream.exchange.end()
            stream.clear()


class HttpApplication:
    """What answers HTTP requests.

    Args:
        token: what a bearer must show; "" lets everybody in who reaches the listener.
        hosts: the Host values that are ours.
    """

    def __init__(self, router: Router, *, token: str, hosts: frozenset[str]) -> None:
        self._router = router
        self._token = token.encode()
        self._hosts = hosts
        self._sessions: dict[str, HttpSession] = {}
        self._backlog = Backlog()
        self._loop = asyncio.get_running_loop()

    # ---- who may ask -----------------------------------------------------------------------

    def admit(self, request: Request) -> None:
        """Judge a request by its headers.

        Raises:
            RefusedError: it is not to be served.
        """
        headers = request.headers
        if headers.get(HOST, "").lower() not in self._hosts or request.repeated == HOST:
            raise RefusedError(403, "This host name is not served here.\n")
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin):
            raise RefusedError(403, "This origin may not call.\n")
        if request.path == "/healthz" and request.method == "GET":
            return
        if request.path != "/mcp":
            raise RefusedError(404, "Nothing is here; the endpoint is /mcp.\n")
        self._authorize(request)
        if request.method == "POST":
            if not headers.get("content-type", "").lower().startswith("application/json"):
                raise RefusedError(415, "The body is application/json.\n")
            if not request.accepts("application/json"):
                raise RefusedError(406, "Accept application/json and text/event-stream.\n")
        elif request.method not in ("GET", "DELETE"):
            raise RefusedError(405, "POST, GET or DELETE.\n", [(b"allow", b"POST, GET, DELETE")])

    def _is_ours(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() in self._hosts

    def _authorize(self, request: Request) -> None:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        shown_bytes = shown.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        named = self._router.views.by_token(shown_bytes)
        request.view = named or self._router.views.default
        if named is None and self._token and not hmac.compare_digest(shown_bytes, self._token):
            challenge = [(b"www-authenticate", b"Bearer")]
            raise RefusedError(401, "A bearer token is needed.\n", challenge)

    # ---- requests --------------------------------------------------------------------------

    def serve(self, request: Request, body: bytes, exchange: Exchange) -> None:
        """Answer an admitted request, now or later.

        Raises:
            RefusedError: it is not to be served.
        """
        if request.method == "POST":
            self._post(request, body, exchange)
        elif request.path == "/healthz":
            exchange.respond(200, b'{"status":"ok"}', (_JSON,))
        elif request.method == "GET":
            self._get(request, exchange)
        else:
            self._close_session(self._session(request))
            exchange.respond(204)

    def _post(self, request: Request, body: bytes, exchange: Exchange) -> None:
        try:
            message = jsonrpc.decode(jsonrpc.compact(body))
        except DecodeError as error:
            failure = jsonrpc.failure(b"null", error.code, error.message)
            exchange.respond(400, failure, (_JSON,))
            return
        if _is_modern(request, message):
            self._post_modern(request, message, exchange)
        else:
            self._post_legacy(request, message, exchange)

    def _post_modern(self, request: Request, message: Message, exchange: Exchange) -> None:
        if message.method is UNSET:
            text = "the body is one request or one notification"
            failure = jsonrpc.failure(b"null", jsonrpc.INVALID_REQUEST, text)
            exchange.respond(400, failure, (_JSON,))
            return
        if message.id is UNSET or message.id is None:
            exchange.respond(202)
            return
        if request.repeated is not None:
            text = f"the header {request.repeated} is there more than once"
            failure = jsonrpc.failure(id_json(message.id), jsonrpc.HEADER_MISMATCH, text)
            exchange.respond(400, failure, (_JSON,))
            return
        client = RequestClient(view=request.view, identity=_identity(request))
        exchange.modern = True
        exchange.on_end = lambda: self._router.leave(client, _GONE)
        self._router.join(client)
        self._router.receive(client, exchange, message, request.headers)

    def _post_legacy(self, request: Request, message: Message, exchange: Exchange) -> None:
        _check_version(request)
        if message.method == "initialize" and message.id is not UNSET:
            session = self._open_session(request)
            exchange.headers = ((SESSION_HEADER.encode(), session.id.encode()),)
        else:
            session = self._session(request)
        if message.method is UNSET or message.id is UNSET:
            exchange.respond(202)
            self._router.receive(session, exchange, message)
        else:
            stream = session.open_stream(exchange, jsonrpc.encode(message.id))
            self._router.receive(session, stream, message)
            if not session.initialized and message.method == "initialize":
                self._close_session(session)

    # ---- legacy sessions -------------------------------------------------------------------

    def _open_session(self, request: Request) -> HttpSession:
        now = self._loop.time()
        if len(self._sessions) >= MAX_SESSIONS:
            self._make_room(now)
        if len(self._sessions) >= MAX_SESSIONS:
            raise RefusedError(503, "There are too many sessions.\n")
        session = HttpSession(now, request, self._backlog)
        self._sessions[session.id] = session
        self._router.join(session)
        return session

    def _make_room(self, now: float) -> None:
        """End what clients left behind that never said so: all that is old, or else the oldest."""
        unused = sorted(
            (one for one in self._sessions.values() if not one.is_used), key=lambda one: one.used_at
        )
        limit_s = SESSION_SPARED_S
        for session in unused:
            if now - session.used_at < limit_s:
                return
            self._close_session(session)
            limit_s = SESSION_IDLE_S

    def _session(self, request: Request) -> HttpSession:
        session_id = request.headers.get(SESSION_HEADER)
        if session_id is None:
            raise RefusedError(400, "Mcp-Session-Id is missing; send initialize first.\n")
        session = self._sessions.get(session_id)
        if session is None or session.view is not request.view:
            raise RefusedError(404, "There is no such session; send initialize.\n")
        session.used_at = self._loop.time()
        return session

    def _close_session(self, session: HttpSession) -> None:
        self._sessions.pop(session.id, None)
        session.end_streams()
        self._router.leave(session, "the client ended the session")

    def _get(self, request: Request, exchange: Exchange) -> None:
        if request.headers.get(envelope.VERSION_HEADER) in MODERN_VERSIONS:
            raise RefusedError(405, "POST only.\n", [(b"allow", b"POST")])
        if "text/event-stream" not in request.headers.get("accept", ""):
            raise RefusedError(406, "Accept text/event-stream.\n")
        session = self._session(request)
        last_seen = request.headers.get("last-event-id")
        if last_seen is not None:
            session.resume(last_seen, exchange)
            return
        if session.stream.is_attached:
            raise RefusedError(409, "The session has a stream already.\n")
        session.begin_stream(exchange)

    def stop(self) -> None:
        """End every session and stream."""
        for session in list(self._sessions.values()):
            self._close_session(session)


def _identity(request: Request) -> str:
    """Who it is: whoever holds the endpoint's token, or that of a configured client."""
    view = request.view
    return f"{IDENTITY}:{view.name}" if view is not None and view.token else IDENTITY


def _is_modern(request: Request, message: Message) -> bool:
    if request.headers.get(envelope.VERSION_HEADER) in MODERN_VERSIONS:
        return True
    if message.params is UNSET or _META_VERSION not in memoryview(message.params).tobytes():
        return False
    try:
        return META_VERSION in jsonrpc.nested(jsonrpc.members(message.params), "_meta")
    except DecodeError:
        return False


def _check_version(request: Request) -> None:
    version = request.headers.get(envelope.VERSION_HEADER)
    if version is not None and version not in LEGACY_VERSIONS:
        known = ", ".join((*LEGACY_VERSIONS, *MODERN_VERSIONS))
        raise RefusedError(400, f"Unsupported MCP-Protocol-Version; served are {known}.\n")


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
        self._connections: set[Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Accept connections."""
        self._server = await self._loop.create_server(
            lambda: Connection(self.application, self), sock=self._sock
        )

    def join(self, connection: Connection) -> bool:
        """Know a connection; False where it is one too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        return True

    def leave(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def _sweep(self) -> None:
        """Look at every connection's time, as long as there is one."""
        now = self._loop.time()
        for connection in list(self._connections):
            connection.sweep(now)
        again = bool(self._connections) and self._server is not None
        self._timer = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep) if again else None

    def stop(self) -> None:
        """Accept nothing more and close what is open."""
        self.application.stop()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.close()
