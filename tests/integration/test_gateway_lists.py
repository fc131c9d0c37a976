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


@pytest.mark.parametrize("how", ["error", "no list"])
def test_a_list_that_does_not_come_stays_as_it_was_and_is_asked_for_again(how: str) -> None:
    async def main() -> None:
        async with harness.running({"echo": harness.echo_legacy()}) as gateway:
            client = await gateway.raw()
            before = names(await client.request(1, "tools/list"))
            await client.call(2, "echo__unlist", how=[how])
            status = gateway.gateway.fleet.status
            await gateway.reported.wait_notice()
            assert status()["integrations"]["echo"]["lists_behind"] == ["tools/list"]
            assert names(await client.request(3, "tools/list")) == before
            (worker, notice), *others = gateway.reported.notices
            assert (worker, others) == ("echo-1", [])
            assert "echo: tools/list" in notice
            assert "if anything, still counts" in notice
            await wait_changed(client)
            assert names(await client.request(4, "tools/list")) == before | {"echo__extra0"}
            assert status()["integrations"]["echo"]["lists_behind"] == []

    uvloop.run(main())


def test_status_names_the_lists_that_did_not_come(tmp_path: Path) -> None:
    script = shutil.copy(harness.SERVERS / "echo_legacy.py", tmp_path)
    command = json.dumps(["/usr/bin/python3", script])
    config = tmp_path / "vsm.toml"
    config.write_text(f"[integrations.echo]\ncommand = {command}\n", encoding="utf-8")
    with running(config) as vsm:
        wait_until(vsm, lambda seen: seen["echo"]["state"] == "ready")
        offered = vsm.vsm("tools", "--json").stdout
        assert rows(vsm)["echo"]["lists_behind"] == []
        spoil = json.dumps({"how": ["error"] * 9})
        assert vsm.vsm("call", "echo", "unlist", spoil).returncode == 0
        wait_until(vsm, lambda seen: seen["echo"]["lists_behind"] == ["tools/list"])
        told = "echo: behind: tools/list did not come when asked for again"
        assert told in vsm.vsm("status").stdout
        assert told in vsm.vsm("status", "echo").stdout
        assert vsm.vsm("tools", "--json").stdout == offered
        assert vsm.stop() == 0


def test_a_server_that_ends_while_it_lists_loses_no_list() -> None:
    async def main() -> None:
        async with harness.running({"echo": harness.echo_legacy()}) as gateway:
            client = await gateway.raw()
            before = names(await client.request(1, "tools/list"))
            await client.call(2, "echo__unlist", how=["exit"])
            await gateway.reported.wait_unfit("echo-1")
            assert names(await client.request(3, "tools/list")) == before

    uvloop.run(main())


def test_a_successor_whose_list_does_not_come_is_shown_with_that_of_its_like() -> None:
    async def main() -> None:
        async with harness.running({"echo": harness.echo_legacy()}) as gateway:
            client = await gateway.raw()
            before = names(await client.request(1, "tools/list"))
            gateway.kill("echo-1")
            await gateway.reported.wait_unfit("echo-1")
            await gateway.attach("echo", harness.echo_legacy(mode="unlisted"))
            await gateway.ready()
            assert (await client.call(2, "echo__echo"))["result"]
            assert names(await client.request(3, "tools/list")) == before
            gateway.kill("echo-2")
            await gateway.reported.wait_unfit("echo-2")
            await gateway.attach("echo", harness.echo_legacy("other", mode="unlisted"))
            await gateway.ready()
            await client.request(4, "ping")
            assert names(await client.request(5, "tools/list")) == set()

    uvloop.run(main())


def test_a_list_that_a_server_no_longer_has_is_gone() -> None:
    async def main() -> None:
        async with harness.running({"echo": harness.echo_legacy()}) as gateway:
            client = await gateway.raw()
            await client.call(2, "echo__unlist", how=["none"])
            await wait_changed(client)
            assert names(await client.request(3, "tools/list")) == set()

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


def test_an_unknown_tool_is_refused_at_once_whoever_else_starts() -> None:
    async def main() -> None:
        servers = {"one": harness.echo_legacy("one"), "mute": harness.echo_legacy("x", "mute")}
        async with harness.running(servers, ready=False) as it:
            client = await it.raw()
            assert "result" in await client.call(1, "one__echo")  # it waited, and serves
            unknown = (await client.call(2, "one__nothing"))["error"]
            assert unknown == {"code": -32602, "message": "Unknown tool: one__nothing"}
            assert not it.gateway.fleet.integrations["mute"].is_settled
            client.send(**rpc("tools/call", "waits", name="mute__echo"))
            client.send(**rpc("resources/read", "read", uri="none://of/them"))
            assert (await client.request("ping", "ping"))["result"] == {}
            answers = [message for message in client.early if "id" in message]
            assert answers == [], "what the mute one may have is waited for"
            it.gateway.fleet.availability("mute", "quarantined", "by a test")
            it.gateway.fleet.detach("mute-2", "by a test")
            assert "quarantined" in (await client.answer("waits"))["error"]["message"]

    uvloop.run(main())


def test_a_tool_that_no_known_list_has_is_refused_while_its_server_starts() -> None:
    async def main() -> None:
        async with harness.running({"echo": harness.echo_legacy()}) as first:
            kept = first.reported.surfaces["echo"]
        async with harness.running({"echo": harness.echo_legacy("x", "mute")}, ready=False) as it:
            it.gateway.fleet.know("echo", kept)
            client = await it.raw()
            unknown = (await client.call(1, "echo__nothing"))["error"]
            assert unknown["message"] == "Unknown tool: echo__nothing"
            client.send(**rpc("tools/call", "waits", name="echo__echo"))
            await it.attach("echo", harness.echo_legacy())
            assert "result" in await client.answer("waits")

    uvloop.run(main())


def test_a_call_says_for_whom_it_waits_and_an_unknown_tool_waits_for_nobody(tmp_path: Path) -> None:
    config, script = tmp_path / "vsm.toml", tmp_path / "slow.py"
    script.write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
    tmp_path.chmod(0o755)
    script.chmod(0o644)
    commands = {"one": harness.SERVERS / "echo_legacy.py", "slow": script}
    entry = '[integrations.{}]\ncommand = {}\nprofile = "python-server"\nread = [{}]\n'
    config.write_text(
        "".join(
            entry.format(
                name, json.dumps(["/usr/bin/python3", str(path)]), json.dumps(str(path.parent))
            )
            for name, path in commands.items()
        ),
        encoding="utf-8",
    )
    with running(config) as vsm:
        wait_until(vsm, lambda seen: seen["one"]["state"] == "ready")
        unknown = vsm.vsm("call", "one", "nothing")
        assert "no tool 'nothing'" in unknown.stderr
        assert "waiting" not in unknown.stderr
        assert unknown.returncode == 5
        waits = vsm.vsm("call", "slow", "nothing")
        assert "vsm: waiting for slow, which is starting\n" in waits.stderr
        assert "slow is still starting" in waits.stderr
        assert vsm.stop() == 0
