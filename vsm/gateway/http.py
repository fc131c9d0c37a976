"""Streamable HTTP on loopback: /mcp for both eras, /healthz, and who may ask.

Owns the HTTP listener, legacy sessions and the server-sent event streams. Runs in S1's event
loop under uvicorn's httptools protocol, as a raw ASGI application. A foreign Host or Origin is
refused before anything else is looked at, then a missing token.
"""

import asyncio
import hmac
import secrets
import socket
from typing import Final
from urllib.parse import urlsplit

import uvicorn
import uvicorn.lifespan.off  # uvicorn imports it by name; a confined process could not
from msgspec import UNSET
from uvicorn.server import ServerState

from vsm.gateway.call import id_json
from vsm.gateway.client import Client
from vsm.gateway.http_exchange import (
    Connection,
    Exchange,
    Receive,
    RefusedError,
    Request,
    Scope,
    Send,
    event_bytes,
    last,
    more,
    read_body,
    respond,
    start,
    status_of,
)
from vsm.gateway.router import Router
from vsm.protocol import envelope, jsonrpc
from vsm.protocol.jsonrpc import DecodeError, Message
from vsm.protocol.tables import LEGACY_VERSIONS, META_VERSION, MODERN_VERSIONS

MAX_CONNECTIONS: Final = 512
MAX_SESSIONS: Final = 1024
SESSION_IDLE_S: Final = 3600.0
PING_INTERVAL_S: Final = 15.0
KEEP_ALIVE_S: Final = 75
HTTP_PORT: Final = 80

SESSION_HEADER: Final = "mcp-session-id"
_JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class RequestClient(Client):
    """The client of one modern request; it has nothing beside that request."""

    lasts = False

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
            await respond(send, refusal.status, body, headers)

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
            await respond(send, 200, b'{"status":"ok"}', [_JSON])
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
        body = await read_body(request, receive)
        try:
            message = jsonrpc.decode(jsonrpc.compact(body))
        except DecodeError as error:
            await respond(send, 400, jsonrpc.failure(b"null", error.code, error.message), [_JSON])
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
            await respond(send, 400, failure, [_JSON])
            return
        if message.id is UNSET or message.id is None:
            await respond(send, 202, b"", [])
            return
        id_bytes = id_json(message.id)
        if request.repeated is not None:
            text = f"the header {request.repeated} is there more than once"
            failure = jsonrpc.failure(id_bytes, jsonrpc.HEADER_MISMATCH, text)
            await respond(send, 400, failure, [_JSON])
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
            await respond(send, 202, b"", headers)
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
            status = status_of(exchange.final) if modern else 200
            await respond(send, status, exchange.final, [_JSON, *(headers or ())])
            return
        await start(send, 200, [*_EVENTS, *(headers or ())])
        while exchange.final is None and not exchange.gone:
            await more(send, exchange.take() or b": ping\r\n\r\n")
            await exchange.wait(PING_INTERVAL_S)
        if exchange.final is not None and not exchange.gone:
            await last(send, exchange.take() + event_bytes(exchange.final))

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
            await start(send, 200, _EVENTS)
            await more(send, b": connected\r\n\r\n")
            while not stream.gone:
                await stream.wait(PING_INTERVAL_S)
                if not stream.gone:
                    await more(send, stream.take() or b": ping\r\n\r\n")
            await last(send, b"")
        finally:
            session.stream = None

    async def _delete(self, request: Request, send: Send) -> None:
        self._close_session(self._session(request))
        await respond(send, 204, b"", [])

    def stop(self) -> None:
        """End every session and stream."""
        for session in list(self._sessions.values()):
            self._close_session(session)


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
