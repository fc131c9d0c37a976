"""The worker of a remote server: MCP on stdin and stdout, streamable HTTP on the other side.

`main()` in a process that the launcher confined, like any server's: no network but the host that
its URL names, through the egress process; no files but its own. It ends when its stdin does, or
when only a person can help: status 78 when the server refuses its credentials, 75 when the
server changed under it.
"""

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, cast

from msgspec import UNSET

import vsm
from vsm.errors import ConfigurationError
from vsm.protocol import jsonrpc
from vsm.protocol.frames import untagged
from vsm.protocol.framing import LineSplitter
from vsm.protocol.jsonrpc import DecodeError, Message
from vsm.remote.door import Door, HandshakeRefusedError, Room
from vsm.remote.http_client import HttpClient, Origin
from vsm.remote.peer import Common, Peer, say
from vsm.remote.settings import Credentials, WorkerSettings
from vsm.remote.tokens import StoredTokens

EXIT_CREDENTIALS: Final = os.EX_CONFIG
EXIT_CHANGED: Final = os.EX_TEMPFAIL
MOST_LINE_BYTES: Final = 64 * 2**20
FAREWELL_S: Final = 3.0
_BLOCK_BYTES: Final = 65536
# Where systems keep the certificates that Python's own build may not know of.
_AUTHORITIES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
Task = asyncio.Task[None]
Work = Callable[[], Awaitable[None]]
AGENT: Final = f"vsm/{vsm.__version__}"


class Worker:
    """The process's state: the peers, what is in flight, and the way out."""

    def __init__(self, settings: WorkerSettings, writer: asyncio.StreamWriter) -> None:
        self._settings = settings
        self._writer = writer
        self._tls = tls_context(settings.ca_file) if settings.scheme == "https" else None
        self._common = Common(self._emit, self._failed, settings.most_frame_bytes)
        self._room = Room()
        self._peers = {"": self._peer("", settings.own)}
        self._tasks: dict[tuple[str, jsonrpc.Id], Task] = {}
        self._others: set[Task] = set()
        self._barrier: Task | None = None
        self._emitting = asyncio.Lock()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def _peer(self, client: str, credentials: Credentials) -> Peer:
        bearer = None
        if credentials.tokens:
            bearer = StoredTokens(credentials.tokens, self._reach)
        one = self._settings
        door = Door(
            one.name,
            self._reach(Origin(one.scheme, one.host, one.port)),
            one.target,
            credentials.resolved(os.environ),
            self._room,
            agent=AGENT,
            client_name=client,
            bearer=bearer,
        )
        return Peer(door, self._common, own=not client)

    def _reach(self, origin: Origin) -> HttpClient:
        tls = self._tls
        if origin.scheme == "https" and tls is None:
            tls = tls_context(self._settings.ca_file)
        return HttpClient(origin, tls)

    # ---- in ------------------------------------------------------------------------------------

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Take the gateway's lines until it closes the pipe."""
        splitter = LineSplitter(MOST_LINE_BYTES)
        while block := await reader.read(_BLOCK_BYTES):
            for frame in splitter.feed(block):
                if isinstance(frame, bytes):
                    self._take(frame)
        if not self.ended.done():
            self.ended.set_result(0)

    def _take(self, frame: bytes) -> None:
        frame, client = untagged(frame)
        try:
            message = jsonrpc.decode(frame)
        except DecodeError as error:
            say(f"an invalid line of the gateway: {error.message}")
            return
        if message.method is UNSET:
            self._answered(message)
        elif message.id is not UNSET:
            key = (client, cast("jsonrpc.Id", message.id))
            peer = self._peer_of(client)
            task = self._start(partial(peer.request, frame, message), self._barrier)
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
            if message.method == "initialize":
                self._barrier = task
        elif message.method == "notifications/cancelled":
            self._cancelled(frame, message)
        else:
            self._told(frame, message)

    def _told(self, frame: bytes, message: Message) -> None:
        """A notification is everybody's; the first one must be there before what follows it."""
        for name, peer in self._peers.items():
            task = self._start(partial(peer.notification, frame, message), self._barrier)
            if message.method == "notifications/initialized" and not name:
                self._barrier = task

    def _peer_of(self, client: str) -> Peer:
        if client not in self._peers:
            self._peers[client] = self._peer(client, self._settings.clients[client])
        return self._peers[client]

    def _start(self, work: Work, barrier: Task | None = None) -> Task:
        task = asyncio.create_task(_after(barrier, work))
        self._others.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: Task) -> None:
        self._others.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def _answered(self, message: Message) -> None:
        peer, asked = self._common.questions.open.pop(str(message.id), (None, ""))
        if peer is not None:
            self._start(partial(peer.answer, message, asked))

    def _cancelled(self, frame: bytes, message: Message) -> None:
        with suppress(DecodeError):
            request_id = jsonrpc.identifier(jsonrpc.members(message.params), "requestId")
            for (client, known), task in list(self._tasks.items()):
                if known == request_id:
                    task.cancel()
                    self._start(partial(self._peers[client].cancelled, frame))

    # ---- out -----------------------------------------------------------------------------------

    async def _emit(self, line: bytes) -> None:
        async with self._emitting:
            self._writer.write(line + b"\n")
            await self._writer.drain()

    def _failed(self, error: BaseException) -> None:
        """End: nothing that this process can do helps."""
        if self.ended.done():
            return
        if isinstance(error, HandshakeRefusedError):
            say(f"{self._settings.name}: {error}")
            self.ended.set_result(EXIT_CREDENTIALS)
        elif isinstance(error, OSError):
            self.ended.set_result(0)  # the gateway is gone
        else:
            say(f"{self._settings.name}: {type(error).__name__}: {error}")
            self.ended.set_result(EXIT_CHANGED)

    async def close(self) -> None:
        """Drop what is in flight, and take leave of the server."""
        for task in self._others:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await asyncio.gather(*(peer.close() for peer in self._peers.values()))


async def _after(barrier: Task | None, work: Work) -> None:
    """Do it once the handshake before it is over."""
    if barrier is not None and not barrier.done():
        await asyncio.wait([barrier])
    await work()


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Certificates are checked against the system's authorities, or against `ca_file` alone.

    Raises:
        ConfigurationError: `ca_file` cannot be read, or holds none.
    """
    if ca_file:
        try:
            return ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # also what OpenSSL says
            holds_none = isinstance(error, ssl.SSLError)
            what = "holds no certificates" if holds_none else f"cannot be read: {error.strerror}"
            raise ConfigurationError(f"ca_file: {ca_file}", what, "Name a file of PEM.") from None
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        for path in _AUTHORITIES:
            if Path(path).exists():
                context.load_verify_locations(path)
                break
    return context


async def serve(settings: WorkerSettings) -> int:
    """Until the gateway, or the server, has had enough; the exit status."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_BLOCK_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, sys.stdout.buffer
    )
    worker = Worker(settings, asyncio.StreamWriter(transport, protocol, None, loop))

    def end() -> None:
        if not worker.ended.done():
            worker.ended.set_result(0)

    for signo in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signo, end)
    if settings.scheme == "http":
        say(f"{settings.name} is spoken to in clear: http://{settings.host}:{settings.port}")
    reading = asyncio.create_task(worker.read(reader))
    status = await worker.ended
    reading.cancel()
    await worker.close()
    return status


def main() -> int:
    """Run on the inherited pipes."""
    settings = WorkerSettings.from_environment(os.environ)
    try:
        return asyncio.run(serve(settings))
    except ConfigurationError as error:
        say(f"{settings.name}: {error}")
        return 1
