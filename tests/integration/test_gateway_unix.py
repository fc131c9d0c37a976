"""The unix socket and `vsm connect`: who may connect, both ends' ends, names and errors."""

import asyncio
import dataclasses
import json
import os
import re
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import gateway_harness as harness
import pytest
import uvloop
from gateway_harness import Raw

from vsm.gateway.own_tools import OwnTools
from vsm.gateway.unix import UnixListener
from vsm.link import MAX_MESSAGE_BYTES

CONNECT = [sys.executable, "-m", "vsm", "connect"]


def environment(folder: str | Path) -> dict[str, str]:
    return {**os.environ, "VSM_RUNTIME_DIR": str(folder)}


def line(method: str, request_id: Any = None, **params: Any) -> bytes:
    message = {"jsonrpc": "2.0", "method": method, "params": params}
    if request_id is not None:
        message["id"] = request_id
    return json.dumps(message).encode() + b"\n"


INITIALIZE = line("initialize", 0, protocolVersion="2025-11-25", capabilities={})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_turned_away() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            folder, name = os.path.split(gateway.socket_path)
            os.chmod(folder, 0o711)
            os.chmod(gateway.socket_path, 0o666)
            code = (
                "import os, socket, sys\n"
                "os.chdir(sys.argv[1])\n"
                "if len(sys.argv) > 3: os.setgroups([]); os.setuid(int(sys.argv[3]))\n"
                "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[2]); s.settimeout(20)\n"
                'try: s.send(b\'{"jsonrpc":"2.0","id":1,"method":"ping"}\\n\')\n'
                "except BrokenPipeError: pass\n"
                "try: print(s.recv(100))\n"
                "except ConnectionResetError: print(b'')\n"
            )
            for uid, expected in (((), b'"result":{}'), (("65534",), b"b''")):
                argv = ["/usr/bin/python3", "-c", code, folder, name, *uid]
                process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
                out, _ = await asyncio.wait_for(process.communicate(), 20)
                assert expected in out

    uvloop.run(main())


def test_broken_frames_of_a_client_are_answered_and_the_next_is_served() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            client = await gateway.raw()
            for broken in (b"{\n", b"\xff\n", b"[]\n", b'{"jsonrpc":"2.0","id":1}\n'):
                client.writer.write(broken)
                answer = await client.receive()
                assert answer["id"] is None
                assert answer["error"]["code"] in (-32700, -32600)
            client.writer.write(b"x" * 9_000_000 + b"\n")
            assert "more than" in (await client.receive())["error"]["message"]
            assert (await client.request(2, "ping"))["result"] == {}

    uvloop.run(main())


def test_a_request_before_initialize_and_an_id_in_flight_are_refused() -> None:
    async def main() -> None:
        async with harness.running({"old": harness.echo_legacy("old")}) as gateway:
            client = await Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            refused = await client.request(1, "tools/list")
            assert "initialize first" in refused["error"]["message"]
            await client.initialize()
            params = {"name": "old__slow", "arguments": {"seconds": 0.3}}
            client.send(id=5, method="tools/call", params=params)
            client.send(id=5, method="tools/call", params=params)
            assert "in flight already" in (await client.receive())["error"]["message"]
            assert "result" in await client.receive()

    uvloop.run(main())


def test_clashing_bare_names_are_served_by_none_and_a_prefix_helps() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await gateway.start("one", harness.echo_legacy("one"), prefix="")
            await gateway.start("two", harness.echo_legacy("two"), prefix="two")
            await gateway.ready()
            client = await gateway.raw()
            assert "result" in await client.call(1, "echo")
            await gateway.start("three", harness.echo_legacy("three"), prefix="")
            await gateway.ready()
            error = (await client.call(2, "echo"))["error"]
            assert "Unknown tool" in error["message"]
            assert "result" in await client.call(3, "two__echo")
            notes = gateway.gateway.status()["notes"]
            assert "echo: claimed by one, three, served by none; give them a prefix" in notes
            shared = await client.request(4, "resources/read", uri="mem://shared")
            assert "claimed by one, three, two" in shared["error"]["message"]
            fleet, long = gateway.gateway.fleet, ("mem://" + "\u20ac" * 8000,) * 500
            fleet.catalogue = dataclasses.replace(fleet.catalogue, notes=long)
            told = json.dumps(gateway.gateway.status(), ensure_ascii=False).encode()
            assert len(told) < MAX_MESSAGE_BYTES // 2, "however long servers' URIs are"

    uvloop.run(main())


def test_connect_without_a_running_vsm_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        CONNECT, env=environment(tmp_path), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 4
    assert "vsm up" in done.stderr
    assert done.stdout == ""


def test_connect_answers_all_that_was_sent_before_its_input_ended() -> None:
    async def main() -> None:
        async with harness.running({"old": harness.echo_legacy("old")}) as gateway:
            calls = b"".join(
                line("tools/call", n, name="old__slow", arguments={"seconds": 0.2})
                for n in range(1, 9)
            )
            folder = Path(gateway.socket_path).parent
            process = await asyncio.create_subprocess_exec(
                *CONNECT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(folder),
            )
            sent = INITIALIZE + calls
            out, _ = await asyncio.wait_for(process.communicate(sent), 30)
            answers = [json.loads(one) for one in out.splitlines()]
            assert sorted(a["id"] for a in answers) == list(range(9))
            assert all("result" in a for a in answers)
            assert process.returncode == 0

    uvloop.run(main())


def test_connect_waits_for_vsm_and_ends_with_an_error_when_vsm_ends(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as listener,
        subprocess.Popen(
            [*CONNECT, "--wait", "20", "--reconnect", "0"],
            env=environment(tmp_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        listener.bind(str(tmp_path / "mcp.sock"))
        listener.listen()
        listener.settimeout(20)
        connection, _ = listener.accept()
        assert process.stdin is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert connection.recv(100) == b"hello\n"
        connection.close()
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert b"vsm closed the connection" in process.stderr.read()


def test_connect_reads_a_pipe_that_somebody_made_non_blocking(tmp_path: Path) -> None:
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    with (
        socket.socket(socket.AF_UNIX) as listener,
        subprocess.Popen(
            CONNECT, env=environment(tmp_path), stdin=theirs, stdout=subprocess.DEVNULL
        ) as process,
    ):
        os.close(theirs)
        listener.bind(str(tmp_path / "mcp.sock"))
        listener.listen()
        listener.settimeout(20)
        connection, _ = listener.accept()
        connection.settimeout(20)
        try:
            assert select.select([connection], [], [], 0.3)[0] == [], "it looks in vain first"
            os.write(ours, b"hello\n")
            assert connection.recv(100) == b"hello\n"
            os.close(ours)
            assert connection.recv(100) == b""
        finally:
            connection.close()
            process.kill()


def test_connect_ends_with_a_client_that_goes_without_reading(tmp_path: Path) -> None:
    """Where one socket is its input and its output, as `socat` gives it."""
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mcp.sock"))
        listener.listen()
        listener.settimeout(20)
        with subprocess.Popen(
            CONNECT, env=environment(tmp_path), stdin=theirs, stdout=theirs
        ) as process:
            theirs.close()
            connection, _ = listener.accept()
            connection.settimeout(20)
            connection.sendall(b'{"jsonrpc":"2.0","method":"notifications/message"}\n')
            select.select([ours], [], [], 20)
            ours.close()
            try:
                assert connection.recv(100) == b"", "it asks for nothing more"
                connection.close()
                assert process.wait(20) == 0
            finally:
                connection.close()
                process.kill()


class Side:
    """A gateway's end of a connection that the test plays itself."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        self.connection = connection
        self.lines = connection.makefile("rb")

    def receive(self) -> dict[str, Any]:
        return dict(json.loads(self.lines.readline()))

    def send(self, text: str) -> None:
        self.connection.sendall(text.encode() + b"\n")

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


def test_connect_takes_the_session_up_again_when_vsm_is_back(tmp_path: Path) -> None:
    path = tmp_path / "mcp.sock"

    def listen() -> socket.socket:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        return listener

    result = '{"protocolVersion":"2025-11-25","capabilities":{"tools":{}}}'
    initialized = '{"jsonrpc":"2.0","id":%s,"result":' + result + "}"
    listener = listen()
    with subprocess.Popen(
        CONNECT, env=environment(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = Side(listener.accept()[0])
        process.stdin.write(INITIALIZE + line("notifications/initialized"))
        process.stdin.flush()
        assert first.receive()["method"] == "initialize"
        first.send(initialized % "0")
        assert json.loads(process.stdout.readline())["id"] == 0
        process.stdin.write(line("tools/call", 7, name="x"))
        process.stdin.flush()
        while first.receive().get("id") != 7:
            pass
        listener.close()
        path.unlink()
        first.close()
        lost = json.loads(process.stdout.readline())
        assert (lost["id"], lost["error"]["code"]) == (7, -32000)
        assert "may have run" in lost["error"]["message"]
        process.stdin.write(line("tools/call", 8, name="y"))  # waits for the next gateway
        process.stdin.flush()
        listener = listen()
        second = Side(listener.accept()[0])
        again = second.receive()
        assert (again["method"], again["params"]["protocolVersion"]) == ("initialize", "2025-11-25")
        second.send(initialized % json.dumps(again["id"]))
        assert second.receive()["method"] == "notifications/initialized"
        assert second.receive()["id"] == 8
        assert json.loads(process.stdout.readline())["method"].endswith("tools/list_changed")
        second.send('{"jsonrpc":"2.0","id":8,"result":{}}')
        assert json.loads(process.stdout.readline())["id"] == 8
        process.stdin.close()
        assert second.lines.readline() == b""
        second.close()
        assert process.wait(20) == 0
    listener.close()


def test_connect_imports_nothing_slow(tmp_path: Path) -> None:
    """A client starts it for each session; `scripts/bench start` says what that takes."""
    words = [sys.executable, "-X", "importtime", "-m", "vsm", "connect"]
    done = subprocess.run(
        words, env=environment(tmp_path), capture_output=True, text=True, timeout=30, check=False
    )
    imported = re.findall(r"\|\s+([a-z_]+)\S*$", done.stderr, re.MULTILINE)
    assert "vsm" in imported
    assert not {"pydantic", "numpy", "mcp", "asyncio", "msgspec", "structlog"} & set(imported)


def test_importing_the_gateway_starts_no_thread_and_no_loop() -> None:
    code = (
        "import asyncio, threading, vsm.systems.operations\n"
        "assert threading.active_count() == 1\n"
        "assert asyncio.events._get_running_loop() is None\n"
        "assert 'mcp' not in __import__('sys').modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def cancelled_in(gateway: harness.Harness) -> None:
    """The server has nothing in flight any more."""
    upstream = gateway.gateway.fleet.integrations["old"].upstream
    assert upstream is not None
    async with asyncio.timeout(20):
        while upstream.in_flight:  # noqa: ASYNC110 - the gateway tells nobody
            await asyncio.sleep(0)


def test_a_client_that_ended_its_side_and_then_closes_has_its_calls_cancelled() -> None:
    async def main() -> None:
        async with harness.running({"old": harness.echo_legacy("old")}) as gateway:
            fds = len(os.listdir("/proc/self/fd"))
            client, other = await gateway.raw(), await gateway.raw()
            params = {"name": "old__slow", "arguments": {"seconds": 600}}
            client.send(id=1, method="tools/call", params=params)
            client.writer.write_eof()
            await wait_ended_its_side(gateway)
            assert "result" in await other.call(2, "old__echo")
            assert gateway.gateway.status()["clients"] == 2, "it reads still"
            await client.close()
            await cancelled_in(gateway)
            assert gateway.gateway.status()["clients"] == 1
            assert len(os.listdir("/proc/self/fd")) <= fds + 2

    uvloop.run(main())


@pytest.mark.parametrize("server", ["old", "new"])
@pytest.mark.parametrize("when", ["asked before", "asked after"])
def test_a_client_that_ended_its_side_is_not_waited_for_to_answer(server: str, when: str) -> None:
    async def main() -> None:
        servers = {"old": harness.echo_legacy("old"), "new": harness.echo_modern("new")}
        async with harness.running(servers) as gateway:
            client = await gateway.raw(roots={}, elicitation={})
            tool = "old__ask" if server == "old" else "new__question"
            params = {"name": tool, "arguments": {"method": "roots/list"}}
            client.send(id=1, method="tools/call", params=params)
            if when == "asked before":
                assert (await client.receive())["id"] == "vsm-1"
            client.writer.write_eof()
            answer = await client.answer(1)
            assert "the client sends no more" in json.dumps(answer)
            assert await client.reader.read() == b""

    uvloop.run(main())


async def wait_ended_its_side(gateway: harness.Harness) -> None:
    listener = gateway.gateway._listeners[0]
    assert isinstance(listener, UnixListener)
    async with asyncio.timeout(20):
        while not any(one.ending for one in listener.connections):  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_a_client_that_ended_its_side_gets_the_answer_to_a_subscription() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            server = gateway.play("far", era="legacy")
            await server.handshake(resources={"subscribe": True})
            page = {"resources": [{"uri": "mem://one", "name": "one"}]}
            await server.answer("resources/list", **page)
            await server.answer("resources/templates/list", resourceTemplates=[])
            await gateway.ready()
            client = await gateway.raw()
            client.send(id=1, method="resources/subscribe", params={"uri": "mem://one"})
            client.writer.write_eof()
            await wait_ended_its_side(gateway)
            await server.answer("resources/subscribe")
            assert "result" in await client.answer(1)
            assert await client.reader.read() == b""

    uvloop.run(main())


def test_a_client_that_ended_its_side_gets_what_vsm_itself_answers() -> None:
    async def main() -> None:
        asked = asyncio.Event()

        async def consult(_what: str, _about: str) -> dict[str, Any]:
            await asked.wait()
            return {"said": "this"}

        async with harness.running({}) as gateway:
            gateway.gateway.fleet.offer(OwnTools(consult))
            client = await gateway.raw()
            client.send(id=1, method="tools/call", params={"name": "vsm__status"})
            client.writer.write_eof()
            await wait_ended_its_side(gateway)
            asked.set()
            assert "result" in await client.answer(1)
            assert await client.reader.read() == b""

    uvloop.run(main())
