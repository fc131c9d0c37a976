"""HTTP/1.1 to one server: a connection for each exchange, kept for the next one where it may be.

Runs in a remote server's worker, on bytes that a foreign server wrote. Parsing is llhttp's; what
is held of a response is one block and 64 KiB of head. Nothing is followed, decoded or retried
here, and an exchange that is left before its end closes its connection.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Final, NamedTuple, Self, SupportsIndex

import httptools

CONNECT_TIMEOUT_S: Final = 15.0
MOST_HEAD_BYTES: Final = 64 * 1024
REST_TIMEOUT_S: Final = 1.0
_BLOCK_BYTES: Final = 65536
_IDLE_S: Final = 4.0  # widespread servers close an idle connection after five seconds
_MOST_IDLE: Final = 8
_INFORMATIONAL: Final = range(100, 200)
_BODILESS: Final = frozenset({204, 304})

Header = tuple[str, str]
Resolve = Callable[[str, int], Awaitable[str]]


class HttpError(Exception):
    """An exchange that did not come about, or broke off.

    Args:
        sent: whether the server may have acted on the request.
    """

    def __init__(self, what: str, *, sent: bool) -> None:
        super().__init__(what)
        self.sent = sent


class Origin(NamedTuple):
    """Where a server is: what `http` and `https` URLs name before their path."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return host if self.port == usual else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class _Reader(asyncio.StreamReader):
    """Counts what came, so that one sees whether something waits to be read."""

    came = 0

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Take what the server sent."""
        self.came += len(bytes(data))
        super().feed_data(data)


class _Connection:
    """A connection and what its parser has found since `begin`."""

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.idle_since = 0.0
        self._taken = 0
        self.begin()

    def begin(self) -> None:
        """Expect a new response."""
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.blocks: deque[bytes] = deque()
        self.head_done = self.done = self.keeps = False
        self.heard = 0

    @property
    def is_silent(self) -> bool:
        """Whether the server neither ended it nor said anything that was not read, as a 408."""
        ended = self.reader.at_eof() or self.writer.is_closing()
        return not ended and self.reader.came == self._taken

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection ends the body."""
        return "content-length" not in self.headers and "transfer-encoding" not in self.headers

    async def more(self) -> bool:
        """Read once; whether there was something.

        Raises:
            HttpError: it is no HTTP, or its head is too long.
        """
        data = await self.reader.read(_BLOCK_BYTES)
        if not data:
            return False
        self.heard += len(data)
        self._taken += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise HttpError(f"its answer is no HTTP: {error}", sent=True) from None
        except httptools.HttpParserUpgrade:
            raise HttpError("it answers in another protocol", sent=True) from None
        if not self.head_done and self.heard > MOST_HEAD_BYTES:
            raise HttpError(f"its answer has more than {MOST_HEAD_BYTES} bytes of head", sent=True)
        return True

    async def read_head(self) -> None:
        """Read up to the end of the head.

        Raises:
            HttpError: it ends before.
        """
        while not self.head_done:
            if not await self.more():
                raise HttpError("it closed the connection without an answer", sent=True)

    # -- the parser's callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.done:
            self.keeps = False  # it says more than it was asked

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_done:
            return  # a trailer
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        if self.done:
            return
        self.status = self._parser.get_status_code()
        if self.status in _INFORMATIONAL:
            self.headers = {}
            return
        self.head_done = True
        self.keeps = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        if not self.done:
            self.blocks.append(data)

    def on_message_complete(self) -> None:
        self.done = self.head_done

    def close(self) -> None:
        """Cut it."""
        self.writer.transport.abort()


class Exchange:
    """One response, its head read; its body is read block by block. An async context manager."""

    def __init__(self, client: "HttpClient", connection: _Connection) -> None:
        self._client = client
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers
        self._whole: bytes | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            await self._finish()
        else:
            self._connection.close()

    def leave(self) -> None:
        """Give up what is left of it."""
        self._connection.close()

    @property
    def media_type(self) -> str:
        """Of the body, without parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def blocks(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            HttpError: it broke off.
        """
        connection = self._connection
        try:
            while True:
                while connection.blocks:
                    yield connection.blocks.popleft()
                if connection.done or self.status in _BODILESS:
                    return
                if not await connection.more():
                    if connection.ends_with_connection:
                        connection.keeps = False
                        return
                    raise HttpError("the connection ended within an answer", sent=True)
        except OSError as error:
            raise HttpError(f"the connection broke: {_reason(error)}", sent=True) from None

    async def body(self, most_bytes: int) -> bytes:
        """The whole body; asked again, the same.

        Raises:
            HttpError: it broke off, or is larger than `most_bytes`.
        """
        if self._whole is not None:
            return self._whole
        whole = bytearray()
        async for block in self.blocks():
            whole += block
            if len(whole) > most_bytes:
                raise HttpError(f"its answer is larger than {most_bytes} bytes", sent=True)
        self._whole = bytes(whole)
        return self._whole

    async def _finish(self) -> None:
        """Keep the connection if the rest of the body comes at once."""
        connection = self._connection
        try:
            async with asyncio.timeout(REST_TIMEOUT_S):
                while not connection.done and not connection.ends_with_connection:
                    connection.blocks.clear()
                    if connection.heard > MOST_HEAD_BYTES << 4 or not await connection.more():
                        break
        except (HttpError, OSError):
            pass
        finally:  # also if it is cancelled meanwhile
            self._client.give_back(connection)


class HttpClient:
    """Makes exchanges with one origin; owns its idle connections.

    Args:
        tls: for `https`.
        resolve: chooses the address of a host, or raises HttpError; without it the system does.
    """

    def __init__(
        self, origin: Origin, tls: ssl.SSLContext | None, resolve: Resolve | None = None
    ) -> None:
        self.origin = origin
        self._resolve = resolve
        self._tls = tls if origin.scheme == "https" else None
        self._idle: list[_Connection] = []
        self._loop = asyncio.get_running_loop()

    async def exchange(
        self, method: str, target: str, headers: Iterable[Header], body: bytes = b""
    ) -> Exchange:
        """Send a request and wait for the head of its response, for as long as it takes.

        Raises:
            HttpError: it did not come about; says whether the server may have acted on it.
        """
        connection = self._take() or await self._connect()
        try:
            await self._send(connection, method, target, headers, body)
            await connection.read_head()
        except OSError as error:
            connection.close()
            raise HttpError(f"the connection broke: {_reason(error)}", sent=True) from None
        except BaseException:
            connection.close()
            raise
        return Exchange(self, connection)

    async def _send(
        self,
        connection: _Connection,
        method: str,
        target: str,
        headers: Iterable[Header],
        body: bytes,
    ) -> None:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.origin.authority}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        connection.writer.write(head + body)
        with contextlib.suppress(OSError):  # it may have answered before it heard all
            await connection.writer.drain()

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                host, port = self.origin.host, self.origin.port
                address = host if self._resolve is None else await self._resolve(host, port)
                reader = _Reader(limit=_BLOCK_BYTES)
                protocol = asyncio.StreamReaderProtocol(reader)
                transport, _ = await self._loop.create_connection(
                    lambda: protocol,
                    address,
                    port,
                    ssl=self._tls,
                    server_hostname=host if self._tls else None,
                )
        except TimeoutError:
            what = f"cannot be reached within {CONNECT_TIMEOUT_S:g} s"
            raise HttpError(what, sent=False) from None
        except ssl.SSLCertVerificationError as error:
            what = f"its certificate does not hold: {error.verify_message}"
            raise HttpError(what, sent=False) from None
        except OSError as error:
            what = f"cannot be reached: {_reason(error)}"
            if isinstance(error, ConnectionResetError) and self._resolve is None:
                # The egress process, which alone knows why there is no way, can only reset.
                what += "; `vsm status` of this integration says why, under EGRESS TO"
            raise HttpError(what, sent=False) from None
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        return _Connection(reader, writer)

    def _take(self) -> _Connection | None:
        now = self._loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_silent and now - connection.idle_since < _IDLE_S:
                connection.begin()
                return connection
            connection.close()
        return None

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection whose response ended, or close it."""
        at_end = connection.done and connection.keeps and connection.is_silent
        if at_end and len(self._idle) < _MOST_IDLE:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
