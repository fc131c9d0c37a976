"""A gateway in this process, in front of servers started plainly: no supervisor, no sandbox."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop
from mcp import Client
from mcp.client._transport import TransportStreams
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

from vsm.gateway.gateway import Gateway
from vsm.gateway.integration import Settings
from vsm.gateway.views import View

uvloop.new_event_loop().close()  # the first one opens descriptors for the process's life

SERVERS = Path(__file__).parent / "servers"
TOKEN = "test-token-with-no-meaning"


def echo_legacy(name: str = "echo", mode: str = "") -> list[str]:
    return [sys.executable, "-SI", str(SERVERS / "echo_legacy.py"), name, mode]


def echo_modern(name: str = "modern") -> list[str]:
    return [sys.executable, "-SI", str(SERVERS / "echo_modern.py"), name]


class Reported:
    """What the supervisor would hear."""

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Any]] = {}
        self.unfit_reasons: dict[str, str] = {}
        self.idle_names: list[str] = []
        self.notices: list[tuple[str, str]] = []
        self.breakers: list[tuple[str, str, str]] = []
        self.offers: list[tuple[str, bytes]] = []
        self.retries: list[tuple[str, int, int]] = []
        self.letters: list[tuple[str, dict[str, Any]]] = []
        self.counts: dict[str, int] = {}
        self.releases: dict[str, dict[str, str]] = {}
        self.surfaces: dict[str, bytes] = {}
        self.changed = asyncio.Event()

    def session(self, worker: str, record: dict[str, Any]) -> None:
        self.sessions[worker] = record
        self.changed.set()

    def unfit(self, worker: str, reason: str) -> None:
        self.unfit_reasons[worker] = reason
        self.changed.set()

    def noticed(self, worker: str, text: str) -> None:
        self.notices.append((worker, text))
        self.changed.set()

    def idle(self, integration: str, worker: str | None = None) -> None:
        self.idle_names.append(worker or integration)
        self.changed.set()

    def breaker(self, integration: str, phase: str, detail: str) -> None:
        self.breakers.append((integration, phase, detail))
        self.changed.set()

    def retried(self, integration: str, answered: int, failed: int) -> None:
        self.retries.append((integration, answered, failed))
        self.changed.set()

    def dead_letter(self, integration: str, letter: dict[str, Any]) -> None:
        self.letters.append((integration, letter))
        self.changed.set()

    def offered(self, integration: str, document: bytes) -> None:
        self.offers.append((integration, document))

    def wanted(self, integration: str, count: int, release: dict[str, str]) -> None:
        self.counts[integration] = count
        self.releases[integration] = release
        self.changed.set()

    def learnt(self, integration: str, content: bytes) -> None:
        self.surfaces[integration] = content
        self.changed.set()

    async def wait_unfit(self, worker: str) -> str:
        async with asyncio.timeout(20):
            while worker not in self.unfit_reasons:
                self.changed.clear()
                await self.changed.wait()
        return self.unfit_reasons[worker]

    async def wait_notice(self) -> None:
        async with asyncio.timeout(20):
            while not self.notices:
                self.changed.clear()
                await self.changed.wait()

    async def wait_idle(self, name: str) -> None:
        async with asyncio.timeout(20):
            while name not in self.idle_names:
                self.changed.clear()
                await self.changed.wait()


class Harness:
    """The gateway, its servers and how clients reach it."""

    def __init__(self, gateway: Gateway, reported: Reported, folder: Path, url: str) -> None:
        self.gateway = gateway
        self.reported = reported
        self.socket_path = str(folder / "mcp.sock")
        self.url = url
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        self.raws: list[Raw] = []
        self.played: list[Played] = []

    async def start(self, name: str, argv: Sequence[str], **settings: Any) -> str:
        """Start a server and hand its pipes to the gateway; returns the worker's name."""
        prefix = settings.pop("prefix", name)
        self.gateway.add(Settings(name=name, prefix=prefix, **settings))
        return await self.attach(name, argv)

    async def attach(self, name: str, argv: Sequence[str], instance: int = 0, **how: Any) -> str:
        worker = f"{name}-{len(self.servers) + 1}"
        server = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.servers[worker] = server
        assert server.stdin is not None
        assert server.stdout is not None
        pipes = (os.dup(server.stdin.fileno()), os.dup(server.stdout.fileno()))
        server.stdin.close()
        server.stdout.close()
        self.gateway.fleet.attach(worker, name, pipes, instance=instance, **how)
        return worker

    def play(self, name: str, instance: int = 0, **settings: Any) -> "Played":
        """Attach a server that the test plays itself, `settings` being the integration's."""
        if settings or name not in self.gateway.fleet.integrations:
            self.gateway.add(Settings(name=name, prefix=name, **settings))
        to_server, from_gateway = os.pipe()
        to_gateway, from_server = os.pipe()
        worker = f"{name}-played-{len(self.played) + 1}"
        played = Played(worker, to_server, from_server)
        self.played.append(played)
        self.gateway.fleet.attach(worker, name, (from_gateway, to_gateway), instance=instance)
        return played

    async def ready(self) -> None:
        await self.gateway.fleet.settling.wait()

    def kill(self, worker: str) -> None:
        server = self.servers[worker]
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    async def raw(self, **capabilities: Any) -> "Raw":
        """A legacy client that reads and writes frames as they are; closed with the harness."""
        client = await Raw.connect(self.socket_path)
        self.raws.append(client)
        await client.initialize(**capabilities)
        return client

    def client(self, transport: str = "unix", **arguments: Any) -> Client:
        if transport == "unix":
            return Client(unix_transport(self.socket_path), **arguments)
        if transport == "stdio":
            environment = {"VSM_RUNTIME_DIR": str(Path(self.socket_path).parent)}
            argv = ["-m", "vsm", "connect"]
            parameters = StdioServerParameters(command=sys.executable, args=argv, env=environment)
            return Client(stdio_client(parameters), **arguments)
        return Client(http_transport(self.url), **arguments)


@asynccontextmanager
async def http_transport(url: str, token: str = TOKEN) -> AsyncIterator[TransportStreams]:
    """The SDK's streamable HTTP transport with our token."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        create_mcp_http_client(headers=headers) as http,
        streamable_http_client(url, http_client=http) as streams,
    ):
        yield streams


@asynccontextmanager
async def unix_transport(path: str) -> AsyncIterator[TransportStreams]:
    """The SDK's newline-delimited JSON transport over a unix socket."""
    import anyio
    import mcp_types as types
    from mcp.shared._context_streams import create_context_streams
    from mcp.shared.message import SessionMessage

    reader, writer = await asyncio.open_unix_connection(path, limit=64 * 1024 * 1024)
    to_client, from_server = create_context_streams[SessionMessage | Exception](0)
    to_server, from_client = create_context_streams[SessionMessage](0)

    async def read() -> None:
        async with to_client:
            while line := await reader.readline():
                try:
                    message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError as error:
                    await to_client.send(error)
                    continue
                await to_client.send(SessionMessage(message))

    async def write() -> None:
        async with from_client:
            async for message in from_client:
                body = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                writer.write(body.encode() + b"\n")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(write)
        try:
            yield from_server, to_server
        finally:
            tasks.cancel_scope.cancel()
            writer.close()
            for stream in (to_client, from_server, to_server, from_client):
                stream.close()


@asynccontextmanager
async def running(
    servers: Mapping[str, Sequence[str]] | None = None,
    *,
    ready: bool = True,
    views: Sequence[View] = (),
    **settings: Any,
) -> AsyncIterator[Harness]:
    """A gateway with `servers` attached; everything is stopped on the way out."""
    reported = Reported()
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(7, reported, views=views)
        tcp = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{tcp.getsockname()[1]}/mcp"
        local = socket.socket(socket.AF_UNIX)
        local.bind(f"{folder}/mcp.sock")
        local.listen()
        harness = Harness(gateway, reported, Path(folder), url)
        try:
            await gateway.listen_unix(local)
            await gateway.listen_http(tcp, token=TOKEN)
            for name, argv in (servers or {}).items():
                await harness.start(name, argv, **settings)
            if ready:
                await harness.ready()
            yield harness
        finally:
            for client in harness.raws:
                await client.close()
            await gateway.stop()
            for played in harness.played:
                played.close()
            for worker, server in harness.servers.items():
                if server.poll() is None:
                    harness.kill(worker)
            await asyncio.sleep(0.01)


class Played:
    """A server of either era whose every line the test says itself, in the order that it likes."""

    def __init__(self, worker: str, stdin: int, stdout: int) -> None:
        self.worker = worker
        self._stdin = os.fdopen(stdin, "rb", 0)
        self._stdout = os.fdopen(stdout, "wb", 0)
        self._lines: asyncio.StreamReader | None = None
        self._transport: asyncio.ReadTransport | None = None

    async def receive(self, method: str = "") -> dict[str, Any]:
        """The next line, or the next one of a method; what comes before that is passed over."""
        if self._lines is None:
            lines = self._lines = asyncio.StreamReader(limit=64 * 2**20)
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(lines), self._stdin
            )
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()
        async with asyncio.timeout(20):
            while True:
                message = dict(json.loads(await self._lines.readline()))
                if method in ("", message.get("method")):
                    return message

    def stop_reading(self) -> None:
        """Until it receives again."""
        assert self._transport is not None
        self._transport.pause_reading()

    def send_raw(self, data: bytes) -> None:
        self._stdout.write(data)

    def send(self, **message: Any) -> None:
        self.send_raw(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def answer(self, method: str, **result: Any) -> None:
        """Answer the next request of a method."""
        self.send(id=(await self.receive(method))["id"], result=result)

    async def handshake(self, **capabilities: Any) -> None:
        """As a legacy server, whose `era` the settings say."""
        server = {"name": "played", "version": "1"}
        version, more = "2025-11-25", {"capabilities": capabilities, "serverInfo": server}
        await self.answer("initialize", protocolVersion=version, **more)

    async def discovery(self, **capabilities: Any) -> None:
        """The same as a modern one."""
        version = {"supportedVersions": ["2026-07-28"], "ttlMs": 0, "cacheScope": "private"}
        await self.answer(
            "server/discover", resultType="complete", capabilities=capabilities, **version
        )

    def end_output(self) -> None:
        self._stdout.close()

    def close(self) -> None:
        self._stdout.close()
        if self._transport is not None:
            self._transport.close()
        else:
            self._stdin.close()


class Raw:
    """A client on the unix socket that writes and reads frames as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.early: list[dict[str, Any]] = []

    @classmethod
    async def connect(cls, path: str) -> "Raw":
        return cls(*await asyncio.open_unix_connection(path, limit=128 * 1024 * 1024))

    def send(self, **message: Any) -> None:

        self.writer.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        """The next message that nobody took yet."""
        if self.early:
            return self.early.pop(0)
        async with asyncio.timeout(20):
            return dict(json.loads(await self.reader.readline()))

    async def answer(self, request_id: Any) -> dict[str, Any]:
        """The answer to a request; what else comes waits for `receive`."""
        others: list[dict[str, Any]] = []
        while True:
            message = await self.receive()
            if message.get("id") == request_id and "method" not in message:
                self.early = others + self.early
                return message
            others.append(message)

    async def request(self, request_id: Any, method: str, **params: Any) -> dict[str, Any]:
        self.send(id=request_id, method=method, params=params)
        return await self.answer(request_id)

    async def initialize(self, **capabilities: Any) -> dict[str, Any]:
        answer = await self.request(
            "init",
            "initialize",
            protocolVersion="2025-11-25",
            capabilities=capabilities,
            clientInfo={"name": "raw", "version": "1"},
        )
        self.send(method="notifications/initialized")
        return answer

    async def call(self, request_id: Any, tool: str, **arguments: Any) -> dict[str, Any]:
        return await self.request(request_id, "tools/call", name=tool, arguments=arguments)

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()
