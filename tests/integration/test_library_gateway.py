"""`vsm.Gateway` and `vsm.Profile`: what a program embeds, on real processes."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

import vsm
from vsm.library.run import close

BOUND_S = 60.0
SERVERS = Path(__file__).resolve().parents[1] / "servers"


@pytest.fixture(autouse=True, scope="module")
def runner() -> Iterator[None]:
    """The runner outlives a test by design; it is this module's."""
    vsm.run(int)
    yield
    close()


def run_bounded(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, BOUND_S))


def echo(name: str, **terms: Any) -> vsm.WorkerSpec:
    script = SERVERS / "echo_modern.py"
    argv = [sys.executable, "-SI", str(script), name]
    return vsm.WorkerSpec(name, argv, read=[script], **terms)


@asynccontextmanager
async def client_of(gateway: vsm.Gateway) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers=gateway.headers) as http:
        transport = streamable_http_client(gateway.url, http_client=http)
        async with Client(transport) as client:
            yield client


async def say(client: Client, tool: str) -> str:
    answer = await client.call_tool(tool, {"text": "hello"})
    return str(answer.content)


def test_two_confined_servers_are_one_endpoint_and_outlive_a_sigkill() -> None:
    async def main() -> None:
        async with vsm.Gateway([echo("one"), echo("two")]) as gateway:
            states = {layer["name"]: layer["state"] for layer in gateway["one"].layers}
            assert (states["seccomp"], states["landlock"]) == ("in force", "in force")
            async with client_of(gateway) as client:
                tools = {tool.name for tool in (await client.list_tools()).tools}
                assert {"one__echo", "two__echo"} <= tools
                assert "hello" in await say(client, "one__echo")
                os.kill(gateway["one"].pid, signal.SIGKILL)
                assert "hello" in await say(client, "two__echo")
                async for event in gateway.events():
                    if (event.worker, event.kind) == ("one", "restarted"):
                        break
                assert "hello" in await say(client, "one__echo")

    run_bounded(main())


def test_gateway_that_is_given_up_as_it_begins_to_listen_leaves_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pids = []

    async def given_up(*_: object, **__: object) -> None:
        pids.append(gateway["one"].pid)
        raise asyncio.CancelledError

    monkeypatch.setattr("vsm.gateway.gateway.Gateway.listen_http", given_up)
    gateway = vsm.Gateway([echo("one")])

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await gateway.__aenter__()
        assert (gateway["one"].phase, gateway["one"].pid) == ("stopped", 0)
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)

    run_bounded(main())


def test_a_gateway_that_is_entered_twice_goes_on_as_it_was() -> None:
    async def main() -> None:
        async with vsm.Gateway([echo("one")]) as gateway:
            with pytest.raises(vsm.VsmError, match="entered before"):
                await gateway.__aenter__()
            async with client_of(gateway) as client:
                assert "hello" in await say(client, "one__echo")

    run_bounded(main())


def test_a_server_that_is_stopped_before_it_begins_is_served_by_nobody() -> None:
    async def main() -> None:
        failures: list[dict[str, Any]] = []
        async with vsm.Gateway([echo("one")]) as gateway:
            asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
            for _ in range(3):
                await gateway["one"].stop()
                starting = asyncio.create_task(gateway["one"].start())
                await asyncio.sleep(0)  # it is ordered
                await gateway["one"].stop()
                await starting
                assert (gateway["one"].phase, failures) == ("stopped", [])
            await gateway["one"].start()
            async with client_of(gateway) as client:
                assert "hello" in await say(client, "one__echo")

    run_bounded(main())


def test_nobody_calls_without_the_token() -> None:
    async def main() -> None:
        async with vsm.Gateway([echo("one")]) as gateway, httpx2.AsyncClient() as http:
            for headers, status in (({}, 401), ({"Authorization": "Bearer no"}, 401)):
                answer = await http.post(gateway.url, json={}, headers=headers)
                assert answer.status_code == status
            answer = await http.post(gateway.url, json={}, headers=dict(gateway.headers))
            assert answer.status_code != 401

    run_bounded(main())


def test_a_worker_that_speaks_no_mcp_is_an_error_and_nothing_listens() -> None:
    mute = vsm.WorkerSpec("mute", ["/usr/bin/true"], intensity=0)
    gateway = vsm.Gateway([mute])

    async def main() -> None:
        with pytest.raises(vsm.VsmError, match="given up"):
            await gateway.__aenter__()

    run_bounded(main())
    assert gateway.url == ""


def test_a_taken_port_and_a_short_token_are_errors() -> None:
    with pytest.raises(vsm.ConfigurationError, match="fewer than 16"):
        vsm.Gateway([echo("one")], token="short")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        gateway = vsm.Gateway([echo("one")], port=taken.getsockname()[1])

        async def main() -> None:
            with pytest.raises(vsm.VsmError, match="it is taken"):
                await gateway.__aenter__()

        run_bounded(main())


# -- profiles --------------------------------------------------------------------------------------


def fill(size: int) -> int:
    return len(bytearray(size))


def test_an_extended_profile_confines_as_it_says(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "note").write_text("here")
    profile = vsm.Profile.load("integration").extended(
        files={"read": [tmp_path]}, limits={"memory_bytes": 128 << 20, "processes": None}
    )
    assert (profile.limits.memory_bytes, profile.limits.processes) == (128 << 20, None)
    assert vsm.Profile.load("integration").limits.memory_bytes == 512 << 20

    def read() -> str:
        with open(tmp_path / "note") as file:
            return file.read()

    assert vsm.run(read, profile=profile).check() == "here"
    assert vsm.run(read).cause == "exit"
    assert vsm.run(fill, 300 << 20, profile=profile).cause == "memory"
    assert vsm.run(fill, 300 << 20).check() == 300 << 20  # the control


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"limits": {"memry": 1}}, "Did you mean 'memory'"),
    ({"limits": {"memory": 1, "memory_bytes": 1}}, "named twice"),
    ({"files": {"read": ["/proc"]}}, "kernel's"),
    ({"files": {"read": ["-/absent"]}}, "not inherited"),
    ({"network": {"mode": "all"}}, "none, proxy, host"),
    ({"syscalls": {"allow": ["no_such_call"]}}, "no such system call"),
    ({"tier": "none"}, "namespaced, landlocked"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_a_wrong_extension_is_an_error(change: dict[str, Any], says: str) -> None:
    with pytest.raises(vsm.ConfigurationError, match=says):
        vsm.Profile.load("integration").extended(**change)


def test_explain_names_layers_and_reasons() -> None:
    found = vsm.Profile.load("integration").explain(["/usr/bin/true"])
    text = str(found)
    assert text.startswith(f"tier {found.tier}\n")
    assert "exec /usr/bin/true" in text
    assert {layer["name"] for layer in found.layers} >= {"seccomp", "landlock", "network"}
    assert found.syscalls["allowed"] > 100
