"""One HTTP request and its answer: JSON, or a stream of events that ends with it.

Owns how an answer looks on the wire and the bounds on what a slow reader can make us hold;
knows nothing of sessions or of who may ask. Runs in S1's event loop.
"""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, Protocol

from msgspec import UNSET

from vsm.gateway.views import View
from vsm.protocol import envelope, jsonrpc, parameter_headers

MAX_UNREAD_BYTES: Final = 16 * 1024 * 1024
MAX_NAMES: Final = 256
MAX_NAME_CHARS: Final = 64
HOST: Final = "host"
PING: Final = b": ping\r\n\r\n"

Header = tuple[bytes, bytes]

_ROUTING_HEADERS: Final = (
    HOST,
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
_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_JSON_OK: Final = _LINES[200] + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_JSON: Final = (b"content-type", b"application/json")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_EVENTS: Final = (
    b"content-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\n"
    b"x-accel-buffering: no\r\n"
)
_ERROR_WITHIN: Final = 6 * jsonrpc.MAX_ID_CHARS + 64  # an id comes first, escaped at worst
_OK: Final = 200
_NO_CONTENT: Final = 204


_names: dict[bytes, str] = {}
"""Names of headers as they came, and as they are looked up: clients repeat theirs."""


class RefusedError(Exception):
    """A request is refused at the HTTP level."""

    def __init__(self, status: int, text: str, headers: Iterable[Header] = ()) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.headers = tuple(headers)


class Request:
    """A request's method, path and headers, and what its sender sees.

    `repeated` is a header that may be there only once; the host's name before any other.
    """

    __slots__ = ("headers", "method", "path", "repeated", "view")

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.headers: dict[str, str] = {}
        self.repeated: str | None = None
        self.view: View | None = None

    def add(self, raw_name: bytes, raw_value: bytes) -> None:
        """Take one header."""
        name = _names.get(raw_name)
        if name is None:
            name = raw_name.decode("latin-1").lower()
            if len(_names) < MAX_NAMES and len(name) <= MAX_NAME_CHARS:
                _names[raw_name] = name
        if name in self.headers and name.startswith(_ROUTING_HEADERS) and self.repeated != HOST:
            self.repeated = name
        self.headers[name] = raw_value.decode("latin-1").strip(" \t")

    def accepts(self, kind: str) -> bool:
        """Whether the client takes an answer of this media type."""
        accept = self.headers.get("accept", "*/*").lower()
        return kind in accept or "*/*" in accept or kind.partition("/")[0] + "/*" in accept


class Wire(Protocol):
    """The connection, as an exchange sees it."""

    chunks: bool  # whether the client knows chunked bodies
    stays: bool  # whether another request may follow

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def unread_bytes(self) -> int:
        """How much waits for the client to read it."""

    def finished(self) -> None:
        """The request is answered."""

    def abort(self) -> None:
        """Cut the client off."""


class Exchange:
    """One request's answer.

    Args:
        headers: to go with it.
        modern: errors have an HTTP status of their own.
        on_end: called once when it is answered, or when nobody is there to answer any more.
    """

    __slots__ = ("_wire", "gone", "headers", "last_at", "modern", "on_end", "over", "streaming")

    def __init__(self, wire: Wire, now: float) -> None:
        self._wire = wire
        self.headers: tuple[Header, ...] = ()
        self.modern = False
        self.streaming = False
        self.over = False
        self.gone = False
        self.on_end: Callable[[], None] | None = None
        self.last_at = now

    def answer(self, frame: bytes) -> None:
        """The JSON-RPC answer, with JSON where nothing came before it, else as the last event."""
        if self.over:
            return
        if self.streaming:
            self._send(event_bytes(frame))
            self.end()
            return
        status = status_of(frame) if self.modern else _OK
        if status == _OK and self._wire.stays and not self.headers:
            self._over(_JSON_OK % (len(frame), frame))
        else:
            self.respond(status, frame, (_JSON, *self.headers))

    def respond(self, status: int, body: bytes = b"", headers: Iterable[Header] = ()) -> None:
        """A whole HTTP answer."""
        if self.over:
            return
        head = b"".join([b"%b: %b\r\n" % header for header in headers])
        length = b"" if status == _NO_CONTENT else b"content-length: %d\r\n" % len(body)
        close = b"" if self._wire.stays else b"connection: close\r\n"
        self._over(b"".join((_LINES[status], head, length, close, b"\r\n", body)))

    def refuse(self, refusal: RefusedError) -> None:
        """Answer with why the request is refused."""
        self.respond(refusal.status, refusal.text.encode(), (_TEXT, *refusal.headers))

    def notify(self, frame: bytes) -> None:
        """Something that comes before the answer."""
        if not self.over:
            self.stream()
            self._send(event_bytes(frame))

    ask = notify

    def ping(self, now: float) -> None:
        """Show that somebody is still here."""
        if not self.over:
            self.stream()
            self._send(PING)
            self.last_at = now

    def stream(self) -> None:
        """Begin a stream of events, unless it has begun."""
        if self.streaming or self.over:
            return
        self.streaming = True
        head = b"".join([b"%b: %b\r\n" % header for header in self.headers])
        chunks = b"transfer-encoding: chunked\r\n" if self._wire.chunks else b""
        close = b"" if self._wire.stays else b"connection: close\r\n"
        self._wire.write(b"".join((_LINES[200], _EVENTS, head, chunks, close, b"\r\n")))

    def event(self, event_id: bytes, frame: bytes) -> None:
        """An event that can be resumed from; an empty one only has its id."""
        self._send(b"id: %b\r\nevent: message\r\ndata: %b\r\n\r\n" % (event_id, frame))

    def comment(self, text: bytes) -> None:
        """A line that clients skip."""
        self._send(b": %b\r\n\r\n" % text)

    def _send(self, data: bytes) -> None:
        self._wire.write(b"%x\r\n%b\r\n" % (len(data), data) if self._wire.chunks else data)
        if self._wire.unread_bytes() > MAX_UNREAD_BYTES:
            self._wire.abort()

    def end(self) -> None:
        """End a stream of events, an empty one where none came."""
        if not self.over:
            self.stream()
            self._over(b"0\r\n\r\n" if self._wire.chunks else b"")

    def _over(self, data: bytes) -> None:
        self.over = True
        self._wire.write(data)
        self._ended()
        self._wire.finished()

    def disconnected(self) -> None:
        """Nobody will read the rest."""
        if not self.over:
            self.over = self.gone = True
            self._ended()

    def _ended(self) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()


def event_bytes(frame: bytes) -> bytes:
    """A frame as a server-sent event."""
    return b"event: message\r\ndata: %b\r\n\r\n" % frame


def status_of(frame: bytes) -> int:
    """The HTTP status with which a modern answer goes."""
    if b',"error":{' not in frame[:_ERROR_WITHIN]:
        return 200
    error = jsonrpc.decode(frame).error
    body = None if error is UNSET else jsonrpc.error_of(error)
    return 200 if body is None else _STATUS.get(body.code, 200)
