"""The processes that the routing benchmark measures: a minimal server and the gateways before it.

`route_peers.py server` answers MCP on stdio as fast as Python can; `gateway DIRECTORY` is vsm's
gateway on a unix socket and HTTP; `sdk` is the SDK's own server forwarding to the SDK's client.
Each gateway starts a server of its own. A gateway says READY on stderr.
"""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

SERVER = [sys.executable, __file__, "server"]


def serve() -> None:
    """The upstream: each call is answered with a write of its own, as servers do."""
    import msgspec

    class Message(msgspec.Struct):
        method: str = ""
        id: int | str | None = None
        params: msgspec.Raw = msgspec.Raw(b"{}")

    decoder = msgspec.json.Decoder(Message)
    encode = msgspec.json.encode
    content = b'{"jsonrpc":"2.0","id":%b,"result":{"content":[{"type":"text","text":"%b"}]}}\n'
    capabilities: dict[str, Any] = {"tools": {}}
    tool = {"name": "echo", "inputSchema": {"type": "object"}}
    results: dict[str, Any] = {
        "initialize": {
            "protocolVersion": "2025-11-25",
            "capabilities": capabilities,
            "serverInfo": {"name": "minimal", "version": "1"},
        },
        "tools/list": {"tools": [tool]},
    }
    rest = b""
    while data := os.read(0, 1 << 18):
        *lines, rest = (rest + data).split(b"\n")
        for line in filter(None, lines):
            message = decoder.decode(line)
            if message.method == "tools/call":
                wanted = re.search(rb'"size":(\d+)', bytes(message.params))
                size = int(wanted[1]) if wanted else 32
                _write_all(content % (encode(message.id), b"x" * size))
            elif message.method in results:
                answer = {"jsonrpc": "2.0", "id": message.id, "result": results[message.method]}
                os.write(1, encode(answer) + b"\n")
            elif message.id is not None:
                error = {"code": -32601, "message": "Method not found"}
                os.write(1, encode({"jsonrpc": "2.0", "id": message.id, "error": error}) + b"\n")


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _say_ready() -> None:
    sys.stderr.write("READY\n")
    sys.stderr.flush()


class _Reports:
    """Says READY once all servers' sessions stand."""

    def __init__(self, servers: int) -> None:
        self._left = servers

    def session(self, worker: str, record: dict[str, Any]) -> None:  # noqa: ARG002
        self._left -= 1
        if self._left == 0:
            _say_ready()

    def noticed(self, worker: str, text: str) -> None: ...

    def breaker(self, integration: str, phase: str, detail: str) -> None: ...

    def retried(self, integration: str, answered: int, failed: int) -> None: ...

    def dead_letter(self, integration: str, letter: dict[str, Any]) -> None: ...

    def wanted(self, integration: str, count: int, release: dict[str, str]) -> None: ...

    def learnt(self, integration: str, content: bytes) -> None: ...

    def unfit(self, worker: str, reason: str) -> None:
        sys.exit(f"{worker}: {reason}")

    def idle(self, integration: str, worker: str | None = None) -> None:
        pass

    def offered(self, integration: str, document: bytes) -> None: ...


def gateway(directory: str, servers: str = "", role: str = "server") -> None:
    """Run vsm's gateway, without the processes around it.

    Args:
        directory: where its socket and its port's number go.
        servers: how many, called up0 and on; "" is one whose tools have bare names.
        role: "silent" for pipes at whose end nobody answers; it is ready at once then.
    """
    import uvloop

    from vsm.gateway.gateway import Gateway
    from vsm.gateway.integration import Settings

    silent: list[int] = []
    names = [f"up{number}" for number in range(int(servers))] if servers else ["up"]

    async def main() -> None:
        it = Gateway(1, _Reports(len(names)))
        local = socket.socket(socket.AF_UNIX)
        local.bind(f"{directory}/mcp.sock")
        local.listen(1024)
        tcp = socket.create_server(("127.0.0.1", 0))
        os.symlink(str(tcp.getsockname()[1]), f"{directory}/port")
        await it.listen_unix(local)
        await it.listen_http(tcp, token="")
        started = []
        for name in names:
            it.add(Settings(name=name, prefix=name if servers else ""))
            if role == "silent":
                (theirs, write_fd), (read_fd, mine) = os.pipe(), os.pipe()
                silent.extend((theirs, mine))
                it.fleet.attach(f"{name}-1", name, (write_fd, read_fd))
                continue
            server = subprocess.Popen(  # noqa: ASYNC220 - before anything is served
                [*SERVER[:-1], role], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            started.append(server)
            assert server.stdin is not None
            assert server.stdout is not None
            pipes = (os.dup(server.stdin.fileno()), os.dup(server.stdout.fileno()))
            server.stdin.close()
            server.stdout.close()
            it.fleet.attach(f"{name}-1", name, pipes)
        if role == "silent":
            _say_ready()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await it.stop()
        for server in started:
            server.wait()

    uvloop.run(main())


def relay() -> None:
    """What looks at nothing: bytes from one pipe into the other, as they come."""
    import select

    server = subprocess.Popen(SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    ways = {0: server.stdin.fileno(), server.stdout.fileno(): 1}
    waiting = select.epoll()
    for fd in ways:
        waiting.register(fd, select.EPOLLIN)
    _say_ready()
    while True:
        for fd, _ in waiting.poll():
            data = os.read(fd, 1 << 18)
            if not data:
                server.stdin.close()
                server.wait()
                return
            os.write(ways[fd], data)


def sdk() -> None:
    """What one writes with the SDK: its server in front, its client behind."""
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.server import Server
    from mcp.server.stdio import stdio_server
    from mcp_types import (
        CallToolRequestParams,
        CallToolResult,
        InputRequiredResult,
        ListToolsResult,
    )

    async def main() -> None:
        parameters = StdioServerParameters(command=SERVER[0], args=SERVER[1:])
        async with Client(stdio_client(parameters), mode="legacy") as client:

            async def list_tools(_context: object, _params: object) -> ListToolsResult:
                return await client.list_tools()

            async def call_tool(
                _context: object, params: CallToolRequestParams
            ) -> CallToolResult | InputRequiredResult:
                return await client.call_tool(params.name, params.arguments)

            server: Any = Server("proxy", on_list_tools=list_tools, on_call_tool=call_tool)
            sys.stderr.write("READY\n")
            sys.stderr.flush()
            async with stdio_server() as (reading, writing):
                await server.run(reading, writing, server.create_initialization_options())

    asyncio.run(main())


if __name__ == "__main__":
    roles: dict[str, Callable[..., None]] = {
        "server": serve,
        "gateway": gateway,
        "relay": relay,
        "sdk": sdk,
    }
    roles[sys.argv[1]](*sys.argv[2:])
