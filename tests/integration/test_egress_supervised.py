"""One egress process serves the integrations of a running vsm, and is replaced when it dies."""

import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from running import Running, running

pytestmark = pytest.mark.isolation

SERVER = """
import json, socket, sys

def fetch(host, port):
    try:
        with socket.create_connection((host, port), 20) as sock:
            sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            return sock.makefile("rb").read().decode().rpartition("\\n")[2]
    except OSError as error:
        return type(error).__name__

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    answer = {"jsonrpc": "2.0", "id": message["id"]}
    parameters = message.get("params", {})
    if message["method"] == "initialize":
        answer["result"] = {
            "protocolVersion": parameters["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "fetcher", "version": "1"},
        }
    elif message["method"] == "tools/list":
        answer["result"] = {"tools": [{"name": "fetch", "inputSchema": {"type": "object"}}]}
    elif message["method"] == "tools/call":
        answer["result"] = {"content": [{"type": "text", "text": fetch(**parameters["arguments"])}]}
    else:
        answer["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(answer), flush=True)
"""


class Greeting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Of a web server on the host's loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Greeting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def vsm(tmp_path: Path, port: int) -> Iterator[Running]:
    """Two integrations, of which only the first one may reach the server."""
    (tmp_path / "server.py").write_text(SERVER)
    text = '[gateway]\nhttp = ""\n'
    for name, allowed in (("one", port), ("other", 1)):
        allow = f'["127.0.0.1:{allowed}", "*.example.com:443"]'
        (tmp_path / f"{name}.toml").write_text(
            f'extends = "networked"\n[network]\nallow = {allow}\n[limits]\ncpu = 2\n'
        )
        text += f'[integrations.{name}]\nprofile = "{name}.toml"\n'
        text += f'command = ["{sys.executable}", "{tmp_path}/server.py"]\n'
    (tmp_path / "vsm.toml").write_text(text)
    tmp_path.chmod(0o755)
    with running(tmp_path / "vsm.toml") as started:
        yield started


def fetch(vsm: Running, name: str, port: int) -> str:
    done = vsm.vsm("call", name, "fetch", f'{{"host": "127.0.0.1", "port": {port}}}')
    return done.stdout.removeprefix("> ").strip() or done.stderr


def row(vsm: Running, name: str) -> dict[str, Any]:
    return next(worker for worker in vsm.status()["workers"] if worker["name"] == name)


def test_each_integration_reaches_its_own_hosts_and_is_counted(vsm: Running, port: int) -> None:
    assert fetch(vsm, "one", port) == "hello"
    assert fetch(vsm, "one", port + 1) == "ConnectionRefusedError"
    assert fetch(vsm, "other", port) == "ConnectionRefusedError"
    assert fetch(vsm, "other", 1) == "ConnectionResetError"  # allowed, and nobody listens there
    egress = row(vsm, "egress")
    assert egress["state"] == "ready"
    states = {layer["name"]: layer["state"] for layer in egress["layers"]}
    assert states["seccomp"] == states["landlock"] == states["privileges"] == "in force"
    assert row(vsm, "one")["egress"][f"127.0.0.1:{port}"]["allowed"] == 1
    assert row(vsm, "other")["egress"]["127.0.0.1:1"]["refused"] == 1
    assert f"127.0.0.1:{port}" in vsm.vsm("status", "one").stdout
    assert "egress refused" in vsm.log()
    assert vsm.stop() == 0


def test_a_killed_egress_process_is_replaced_and_workers_stay(vsm: Running, port: int) -> None:
    assert fetch(vsm, "one", port) == "hello"
    before, worker = row(vsm, "egress"), row(vsm, "one")["pid"]
    os.kill(before["pid"], 9)
    assert fetch(vsm, "one", port) == "hello"  # it waits in the listener for the successor
    after = row(vsm, "egress")
    assert after["pid"] != before["pid"]
    assert after["restarts"] == 1
    assert row(vsm, "one")["pid"] == worker


def test_it_survives_the_launcher_and_ends_with_the_supervisor(
    vsm: Running, port: int, wait_gone: Any
) -> None:
    assert fetch(vsm, "one", port) == "hello"
    egress = row(vsm, "egress")["pid"]
    os.kill(row(vsm, "launcher")["pid"], 9)
    vsm.vsm("restart", "one")
    assert fetch(vsm, "one", port) == "hello"
    assert row(vsm, "egress")["pid"] == egress
    vsm.process.kill()
    vsm.process.wait()
    wait_gone(egress)
