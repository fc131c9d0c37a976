"""A remote server that plays a script on loopback, and the worker that speaks to it, unconfined."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BOUND_S = 20.0
START = "import sys; from vsm.remote.worker import main; sys.exit(main())"
LEGACY = "2025-11-25"
MODERN = "2026-07-28"
META = "io.modelcontextprotocol/"
ENVELOPE = {
    "_meta": {
        META + "protocolVersion": MODERN,
        META + "clientInfo": {"name": "test", "version": "1"},
        META + "clientCapabilities": {},
    }
}
CAPABILITIES = {"tools": {"listChanged": True}, "resources": {"subscribe": True}, "logging": {}}


class Request(BaseHTTPRequestHandler):
    """One request of the worker: what it asked, and ways to answer."""

    protocol_version = "HTTP/1.1"
    server: "ScriptedServer"

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def _play(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        body = self.rfile.read(length)
        self.message: dict[str, Any] = json.loads(body) if self.command == "POST" else {}
        self.what = str(self.message.get("method", self.command))
        self.server.seen.append((self.command, self.what, dict(self.headers.items()), self.message))
        self.server.arrived.put(self.what)
        self.server.play(self)

    do_GET = do_POST = do_DELETE = _play  # noqa: N815 - the base class's names

    def log_message(self, *_: Any) -> None:
        pass

    # -- answering -------------------------------------------------------------------------------

    def reply(
        self, status: int = 200, body: bytes = b"", kind: str = "application/json", **headers: str
    ) -> None:
        self.send_response(status)
        if body:
            self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def result(self, **members: Any) -> None:
        answer = {"jsonrpc": "2.0", "id": self.message["id"], "result": members}
        self.reply(body=json.dumps(answer).encode())

    def text(self, said: str) -> None:
        self.result(content=[{"type": "text", "text": said}])

    def stream(self) -> None:
        """Begin a stream of events, which the end of the connection ends."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, data: Any, event_id: str = "", retry_ms: int | None = None) -> None:
        lines = [f"id: {event_id}"] if event_id else []
        lines += [f"retry: {retry_ms}"] if retry_ms is not None else []
        lines.append(f"data: {data if isinstance(data, str) else json.dumps(data)}")
        self.chunk("\n".join([*lines, "", ""]).encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def cut(self) -> None:
        """End the connection in the middle."""
        self.close_connection = True

    def wait_closed(self) -> bool:
        """Whether the worker closed the connection, bounded."""
        self.connection.settimeout(BOUND_S)
        with contextlib.suppress(OSError):
            return self.connection.recv(1) == b""
        return True


class ScriptedServer(ThreadingHTTPServer):
    """Plays one function for every request; `seen` has what came, `arrived` tells it."""

    daemon_threads = True

    def __init__(self, play: Callable[[Request], None]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.play = play
        self.seen: list[tuple[str, str, dict[str, str], dict[str, Any]]] = []
        self.arrived: queue.Queue[str] = queue.Queue()
        self.closed: queue.Queue[bool] = queue.Queue()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def wait_for(self, what: str) -> None:
        while self.arrived.get(timeout=BOUND_S) != what:
            pass

    def of(self, what: str) -> list[dict[str, str]]:
        """The headers of every request that asked this, names in lower case."""
        return [
            {name.lower(): value for name, value in headers.items()}
            for _, method, headers, _ in self.seen
            if method == what
        ]


@contextlib.contextmanager
def scripted(play: Callable[[Request], None]) -> Iterator[ScriptedServer]:
    with ScriptedServer(play) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Worker:
    """The worker's process; what it says is read line by line."""

    def __init__(self, server: ScriptedServer, env: dict[str, str], **settings: Any) -> None:
        told = {
            "name": "far",
            "scheme": "http",
            "host": "127.0.0.1",
            "port": server.port,
            "target": "/mcp",
            "most_frame_bytes": 1 << 20,
        } | settings
        self.process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env, "VSM_REMOTE": json.dumps(told)},
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read),
            threading.Thread(target=self._read_errors),
        ]
        self.said = ""
        self._next = 0
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line.decode()

    def write(self, frame: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(frame + b"\n")
        self.process.stdin.flush()

    def tell(self, method: str, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        self.write(json.dumps(message, separators=(",", ":")).encode())

    def send(self, method: str, client: str = "", **params: Any) -> int:
        self._next += 1
        message = {"jsonrpc": "2.0", "id": self._next, "method": method, "params": params}
        tag = {"client": client} if client else {}
        self.write(json.dumps({**tag, **message}, separators=(",", ":")).encode())
        return self._next

    def line(self) -> bytes:
        line = self._lines.get(timeout=BOUND_S)
        assert line is not None, f"it ended: {self.said}"
        return line

    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.line())
        return found

    def answer(self, request_id: int) -> dict[str, Any]:
        """The answer to a request; whatever comes before it is dropped."""
        while True:
            message = self.message()
            if message.get("id") == request_id and "method" not in message:
                return message

    def ask(self, method: str, client: str = "", **params: Any) -> dict[str, Any]:
        return self.answer(self.send(method, client, **params))

    def call(self, client: str = "", **arguments: Any) -> dict[str, Any]:
        return self.ask("tools/call", client, name="tool", arguments=arguments)

    def handshake(self) -> dict[str, Any]:
        client = {"name": "test", "version": "1"}
        answer = self.ask("initialize", protocolVersion=LEGACY, capabilities={}, clientInfo=client)
        self.tell("notifications/initialized")
        return answer

    def end(self) -> int:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(BOUND_S)
        for thread in self._threads:
            thread.join()
        return status


@contextlib.contextmanager
def worker(
    server: ScriptedServer, env: dict[str, str] | None = None, **settings: Any
) -> Iterator[Worker]:
    started = Worker(server, env or {}, **settings)
    with started.process:
        try:
            yield started
        finally:
            if started.process.poll() is None:
                started.process.kill()
            started.wait()


def legacy(request: Request, session: str = "s1") -> bool:
    """Answer what a legacy session begins with; whether that was it."""
    if request.what == "initialize":
        info = {"name": "scripted", "version": "1"}
        result = {"protocolVersion": LEGACY, "capabilities": CAPABILITIES, "serverInfo": info}
        answer = {"jsonrpc": "2.0", "id": request.message["id"], "result": result}
        request.reply(body=json.dumps(answer).encode(), Mcp_Session_Id=session)
    elif request.command == "DELETE":
        request.reply()
    elif request.command == "GET":
        request.reply(405)
    elif "id" not in request.message:
        request.reply(202)
    else:
        return False
    return True
