"""Lists while servers start: nobody waits for what is known, and nobody misses what comes."""

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

import gateway_harness as harness
import httpx2
import pytest
import uvloop
from gateway_harness import Harness, Raw
from running import running
from supervised import rows, wait_until

from vsm.gateway import known

CHANGED = "notifications/tools/list_changed"
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
AUTHORIZED = {
    "authorization": f"Bearer {harness.TOKEN}",
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
}


def names(answer: dict[str, Any]) -> set[str]:
    return {tool["name"] for tool in answer["result"]["tools"]}


def rpc(method: str, request_id: Any = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


async def connect(gateway: Harness) -> Raw:
    """A client that has said nothing yet."""
    client = await Raw.connect(gateway.socket_path)
    gateway.raws.append(client)
    return client


async def wait_changed(client: Raw) -> None:
    """Until it is told that the tools changed; other lists may come before."""
    while (await client.receive()).get("method") != CHANGED:
        pass


async def order_of_answers(client: Raw) -> list[Any]:
    """Ask for the tools, then ping: whatever is not held back is answered in this order."""
    client.send(id="list", method="tools/list", params={})
    client.send(id="ping", method="ping", params={})
    return [(await client.receive())["id"], (await client.receive())["id"]]


def test_a_client_that_hears_of_changes_does_not_wait_for_a_server_never_seen() -> None:
    async def main() -> None:
        async with harness.running({"slow": harness.echo_legacy("x", "mute")}, ready=False) as it:
            client = await it.raw()
            assert await order_of_answers(client) == ["list", "ping"]
            await it.attach("slow", harness.echo_legacy("slow"))
            await wait_changed(client)
            assert "slow__echo" in names(await client.request(2, "tools/list"))

    uvloop.run(main())


def test_a_subscription_of_the_modern_era_is_told_when_the_server_is_there() -> None:
    async def main() -> None:
        async with harness.running({"slow": harness.echo_legacy("x", "mute")}, ready=False) as it:
            client = await connect(it)
            wanted = {"toolsListChanged": True}
            client.send(**rpc("subscriptions/listen", "listen", notifications=wanted, _meta=META))
            assert (await client.receive())["method"].endswith("acknowledged")
            listed = await client.request("list", "tools/list", _meta=META)
            assert names(listed) == set()
            assert listed["result"]["ttlMs"] == 0
            await it.attach("slow", harness.echo_legacy("slow"))
            await wait_changed(client)
            assert "slow__echo" in names(await client.request(3, "tools/list", _meta=META))

    uvloop.run(main())


def test_who_does_not_hear_of_changes_waits_for_a_server_never_seen() -> None:
    async def main() -> None:
        async with harness.running({"slow": harness.echo_legacy("x", "mute")}, ready=False) as it:
            it.gateway.fleet.list_wait_s = 10.0  # so that a busy machine changes nothing
            client = await connect(it)
            client.send(**rpc("tools/list", "list", _meta=META))
            client.send(**rpc("server/discover", "discover", _meta=META))
            assert (await client.receive())["id"] == "discover"
            await it.attach("slow", harness.echo_legacy("slow"))
            assert "slow__echo" in names(await client.answer("list"))

    uvloop.run(main())


@pytest.mark.parametrize("legacy", [True, False])
def test_a_list_waits_as_long_as_configured_for_every_client(legacy: bool) -> None:
    async def main() -> None:
        async with harness.running({"slow": harness.echo_legacy("x", "mute")}, ready=False) as it:
            it.gateway.fleet.list_wait_s = 0.2
            if legacy:
                client, params = await it.raw(), {}
            else:
                client, params = await connect(it), {"_meta": META}
            began = asyncio.get_running_loop().time()
            answer = await client.request("list", "tools/list", **params)
            took_s = asyncio.get_running_loop().time() - began
            assert names(answer) == set()
            assert took_s >= 0.19
            assert answer["result"].get("ttlMs") == (None if legacy else 0)

    uvloop.run(main())


def test_what_a_server_offered_when_it_last_ran_is_listed_before_it_runs_again() -> None:
    async def main() -> None:
        async with harness.running({"echo": harness.echo_legacy()}) as first:
            kept = first.reported.surfaces["echo"]
        assert known.unpack(kept) is not None
        async with harness.running({"echo": harness.echo_legacy("x", "mute")}, ready=False) as it:
            it.gateway.fleet.list_wait_s = 10.0
            it.gateway.fleet.know("echo", kept)
            client = await connect(it)
            client.send(**rpc("tools/list", "list", _meta=META))
            client.send(**rpc("server/discover", "discover", _meta=META))
            listed = await client.receive()
            assert listed["id"] == "list"
            assert "echo__echo" in names(listed)
            assert listed["result"]["ttlMs"] == 0, "it may be another one by now"
            called = asyncio.create_task(
                client.request("call", "tools/call", name="echo__echo", arguments={}, _meta=META)
            )
            await it.attach("echo", harness.echo_legacy())
            assert "result" in await called

    uvloop.run(main())


def test_what_a_server_changes_while_it_runs_is_kept_too() -> None:
    async def main() -> None:
        async with harness.running({"echo": harness.echo_legacy()}) as it:
            client = await it.raw()
            await client.call(1, "echo__change")
            await wait_changed(client)
            found = known.unpack(it.reported.surfaces["echo"])
            assert found is not None
            tools = found[1]["tools/list"]
            assert any(bytes(tool["name"]) == b'"extra0"' for tool in tools)

    uvloop.run(main())


async def opened(client: httpx2.AsyncClient, url: str) -> dict[str, str]:
    """The headers of a new legacy session."""
    said = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t"}}
    answer = await client.post(url, headers=AUTHORIZED, json=rpc("initialize", **said))
    return {**AUTHORIZED, "mcp-session-id": answer.headers["mcp-session-id"]}


async def wait_event(lines: Any) -> None:
    """Until the stream tells that the tools changed."""
    async with asyncio.timeout(20):
        while CHANGED not in str(await anext(lines)):
            pass


def test_a_session_over_http_that_missed_a_change_is_told_when_it_opens_its_stream() -> None:
    async def main() -> None:
        slow = {"slow": harness.echo_legacy("x", "mute")}
        async with harness.running(slow, ready=False) as it, httpx2.AsyncClient(timeout=20) as http:
            it.gateway.fleet.list_wait_s = 0.1
            session = await opened(http, it.url)
            answer = await http.post(it.url, headers=session, json=rpc("tools/list"))
            assert names(answer.json()) == set()
            await it.attach("slow", harness.echo_legacy("slow"))
            await it.ready()
            async with http.stream("GET", it.url, headers=session) as stream:
                await wait_event(stream.aiter_lines())

    uvloop.run(main())


def test_a_session_over_http_waits_unless_it_keeps_a_stream_open() -> None:
    async def main() -> None:
        slow = {"slow": harness.echo_legacy("x", "mute")}
        async with harness.running(slow, ready=False) as it, httpx2.AsyncClient(timeout=20) as http:
            session = await opened(http, it.url)
            (client,) = it.gateway.router.clients
            assert not client.hears_of("tools/list")
            async with http.stream("GET", it.url, headers=session) as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "id: 0-0"
                assert client.hears_of("tools/list")
                answer = await http.post(it.url, headers=session, json=rpc("tools/list"))
                assert names(answer.json()) == set()
                await it.attach("slow", harness.echo_legacy("slow"))
                await wait_event(lines)
                answer = await http.post(it.url, headers=session, json=rpc("tools/list"))
                assert "slow__echo" in names(answer.json())

    uvloop.run(main())


def test_a_new_vsm_lists_at_once_what_the_servers_of_the_last_one_offered(tmp_path: Path) -> None:
    script, folder = tmp_path / "server.py", tmp_path / "vsm"
    folder.mkdir()
    config = tmp_path / "vsm.toml"
    command = json.dumps(["/usr/bin/python3", str(script), "one"])
    entry = f"[integrations.one]\ncommand = {command}\nstop_timeout_s = 0.5\n"
    config.write_text(f"[gateway]\nlist_wait_s = 20\n{entry}", encoding="utf-8")
    shutil.copy(harness.SERVERS / "echo_legacy.py", script)
    with running(config, again=folder) as vsm:
        wait_until(vsm, lambda seen: seen["one"]["state"] == "ready")
        offered = vsm.vsm("tools", "--json").stdout
        assert vsm.stop() == 0
    script.write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
    with running(config, again=folder) as vsm:
        assert rows(vsm)["one"]["state"] == "starting"
        began = time.monotonic()
        listed = vsm.vsm("tools", "--json")
        assert listed.stdout == offered
        assert "still starting" in listed.stderr
        assert time.monotonic() - began < 10, "half of what a list waits for an unknown server"
        assert rows(vsm)["one"]["state"] == "starting"
        assert vsm.stop() == 0
