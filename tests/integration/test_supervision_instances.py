"""Instances of a stateful server under a real `vsm up`: whose each is, and what becomes of it.

One vsm with an integration of each kind; a test uses sessions of its own.
"""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import Raw
from running import Running, running
from sessions import Sessions, play
from supervised import BOUND_S, ask, left_of, rows, wait_until

from vsm.core.rejoin import OURS

SERVER = Path(__file__).resolve().parents[1] / "servers/notebook.py"
KINDS = {
    "own": 'instances = "session"\nmax_instances = 6\nspares = 1',
    "few": 'instances = "session"\nmax_instances = 2',
    "pool": 'instances = "pool"\npool_max = 3',
    "lazy": 'start = "lazy"\nidle_stop_s = 0.4',
    "plain": "",
    "broken": 'instances = "session"\nstart = "lazy"\nrestart = { intensity = 1 }',
}
SESSION = "mcp-session-id"
SERVES = {"claimed", "spare", "starting"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("instances")
    shutil.copy(SERVER, found)
    return found


@pytest.fixture(scope="module")
def vsm(folder: Path) -> Iterator[Running]:
    with running(write_config(folder)) as one:
        wait_until(one, lambda seen: all(seen[n]["state"] == "ready" for n in KINDS))
        yield one
        assert one.stop() == 0, one.log()
        assert left_of(one) == []


def write_config(folder: Path, **changes: str) -> Path:
    """An integration of each kind."""
    tables = []
    for name, terms in {**KINDS, **changes}.items():
        program = "/usr/bin/false" if name == "broken" else "/usr/bin/python3"
        command = json.dumps([program, str(folder / SERVER.name), name])
        stop = "stop_timeout_s = 0.5"
        tables.append(f"[integrations.{name}]\ncommand = {command}\n{stop}\n{terms}\n")
    config = folder / "vsm.toml"
    config.write_text("\n".join(tables), encoding="utf-8")
    return config


async def begin_slow(client: Raw, integration: str) -> None:
    """A call that takes a moment: the gateway has it when this returns."""
    arguments = {"text": "y", "seconds": 0.3}
    params = {"name": f"{integration}__slow", "arguments": arguments}
    client.send(id="slow", method="tools/call", params=params)
    await client.request("behind it", "ping")


def test_sessions_never_see_each_others_state(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        one, other = await it.open(), await it.open()
        mine, theirs = await it.note(one, "own", "mine"), await it.note(other, "own", "theirs")
        assert (mine["notes"], theirs["notes"]) == (["mine"], ["theirs"])
        assert mine["uid"] != theirs["uid"] or os.geteuid() != 0
        assert (await it.note(one, "own", "more"))["notes"] == ["mine", "more"]
        await one.close()
        third = await it.open()
        assert (await it.note(third, "own", "new"))["notes"] == ["new"]

    play(vsm, scenario)


def test_instances_end_with_their_sessions_and_a_spare_stays(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        clients = [await it.open() for _ in range(3)]
        for client in clients:
            await it.note(client, "own", "x")
        pids = {row["pid"] for row in it.instances("own").values()}
        assert len(pids) >= len(clients)
        for client in clients:
            await client.close()
        await it.wait(lambda: not any(c["state"] == "claimed" for c in it.catalogue("own")))
        await it.wait(lambda: all(r["state"] == "ready" for r in it.instances("own").values()))
        left = {row["pid"] for row in it.instances("own").values()}
        assert left
        await it.wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids - left))

    play(vsm, scenario)


def test_killed_instance_touches_its_own_session_only(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        one, other = await it.open(), await it.open()
        await it.note(other, "own", "kept")
        await it.wait_spare("own")
        spare = next(c["name"] for c in it.catalogue("own") if c["state"] == "spare")
        ready = {name for name, row in it.instances("own").items() if row["state"] == "ready"}
        before = ready - {spare}  # what ended sessions had may be on its way out
        await it.note(one, "own", "lost")
        slow = asyncio.create_task(it.call(one, "own__slow", text="x", seconds=60))
        await it.wait(lambda: any(c["in_flight"] for c in it.catalogue("own")))
        os.kill(it.instances("own")[spare]["pid"], signal.SIGKILL)
        error = (await slow)["error"]
        assert spare in error["message"]
        assert "state of this session is lost" in error["message"]
        assert error["data"] == {"integration": "own", "sent": True}
        assert rows(it.vsm)["own"]["pid"] is None
        assert {row["serves"] for row in it.instances("own").values() if "serves" in row} <= SERVES
        assert (await it.note(one, "own", "fresh"))["notes"] == ["fresh"]
        assert (await it.note(other, "own", "on"))["notes"] == ["kept", "on"]
        assert before <= set(it.instances("own"))
        assert rows(it.vsm)["own"]["state"] == "ready"

    play(vsm, scenario)


def test_loss_between_calls_is_said_once(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        await it.wait_spare("own")
        spare = next(c["name"] for c in it.catalogue("own") if c["state"] == "spare")
        await it.note(client, "own", "lost")
        os.kill(it.instances("own")[spare]["pid"], signal.SIGKILL)
        await it.wait(lambda: spare not in it.instances("own"))
        error = (await it.call(client, "own__note", text="y"))["error"]
        assert spare in error["message"]
        assert "its state with it" in error["message"]
        assert (await it.note(client, "own", "fresh"))["notes"] == ["fresh"]

    play(vsm, scenario)


def test_one_session_too_many_is_told_so_and_served_when_another_ends(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        clients = [await it.open() for _ in range(3)]
        for client in clients[:2]:
            await it.note(client, "few", "x")
        error = (await it.call(clients[2], "few__note", text="x"))["error"]
        assert "all 2 instances belong to other sessions" in error["message"]
        await clients[0].close()
        async with asyncio.timeout(BOUND_S):
            while "error" in (told := await it.call(clients[2], "few__note", text="x")):
                assert "belong to other sessions" in told["error"]["message"]
        assert json.loads(told["result"]["content"][0]["text"])["notes"] == ["x"]

    play(vsm, scenario)


def test_many_quick_sessions_stay_within_the_bound(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        seen: list[int] = []
        done = asyncio.Event()

        async def look() -> None:
            while not done.is_set():
                seen.append(len(await asyncio.to_thread(it.instances, "few")))

        asked = asyncio.Event()

        async def come_and_go(number: int) -> str:
            if number:  # the first of them has its call sent before any other comes
                await asked.wait()
            client = await it.open()
            client.send(id=number, method="tools/call", params={"name": "few__note"})
            asked.set()
            if number % 2:
                await client.close()
                return "left"
            answer = await client.answer(number)
            await client.close()
            return "served" if "result" in answer else answer["error"]["message"]

        looking = asyncio.create_task(look())
        ends = await asyncio.gather(*(come_and_go(number) for number in range(50)))
        done.set()
        await looking
        assert max(seen) <= 2
        assert ends.count("served") >= 1
        told = {end for end in ends if end not in {"left", "served"}}
        assert all("belong to other sessions" in text or "starting" in text for text in told), told
        await it.wait(lambda: not any(c["state"] == "claimed" for c in it.catalogue("few")))

    play(vsm, scenario)


def test_request_without_a_session_is_refused_where_each_has_its_own(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        answer = await post_modern(it.vsm, "own__note", {"text": "x"})
        assert "belongs to none" in answer["error"]["message"]
        assert "result" in await post_modern(it.vsm, "pool__note", {"text": "x"})

    play(vsm, scenario)


async def post_modern(vsm: Running, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One stateless request."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool}
    return (await http(vsm, "tools/call", params, **headers))[1]


async def http(
    vsm: Running, method: str, params: dict[str, Any], **headers: str
) -> tuple[str, dict[str, Any]]:
    """The session's id, if one is told, and the answer to one request."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    address = vsm.url.split("/")[2]
    reader, writer = await asyncio.open_connection(*address.split(":"))
    told = {
        "Host": address,
        "Authorization": f"Bearer {vsm.token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    verb = headers.pop(":method", "POST")
    lines = [f"{verb} /mcp HTTP/1.1", *(f"{k}: {v}" for k, v in {**told, **headers}.items())]
    writer.write("\r\n".join([*lines, "", body]).encode())
    async with asyncio.timeout(BOUND_S):
        answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, content = answer.partition("\r\n\r\n")
    names = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
    frames = [line.removeprefix("data: ") for line in content.splitlines() if "jsonrpc" in line]
    return _original(head, names.get(SESSION, "")), json.loads(frames[-1]) if frames else {}


def _original(head: str, lowered: str) -> str:
    at = head.lower().find(lowered)
    return head[at : at + len(lowered)]


def test_what_a_sessions_server_says_reaches_that_session_alone(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        one, other = await it.open(), await it.open()
        for client in (one, other):
            answer = await client.request("s", "resources/subscribe", uri="note://own")
            assert "result" in answer
        await it.call(one, "own__publish")
        heard = {"notifications/message", "notifications/resources/updated"}
        assert {message.get("method") for message in one.early} >= heard
        await it.note(other, "own", "y")
        assert not {message.get("method") for message in other.early} & heard
        await it.call(other, "own__publish")
        assert {message.get("method") for message in other.early} >= heard

    play(vsm, scenario)


def test_list_that_a_session_changed_is_not_what_others_are_offered(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        one, other = await it.open(), await it.open()
        await it.call(one, "own__grow")
        await it.note(other, "own", "x")
        for client in (one, other):
            answer = await client.request("l", "tools/list")
            assert not [t for t in answer["result"]["tools"] if "grown" in t["name"]]

    play(vsm, scenario)


def test_pool_grows_under_load_and_spreads_it(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        clients = [await it.open() for _ in range(3)]
        async with asyncio.timeout(BOUND_S):
            hosts: set[int] = set()
            while len(it.instances("pool")) < 3 or len(hosts) < 3:
                calls = [it.call(c, "pool__slow", seconds=0.2) for c in clients]
                answers = await asyncio.gather(*calls)
                assert all("result" in answer for answer in answers), answers
                texts = [a["result"]["content"][0]["text"] for a in answers]
                hosts = {json.loads(text)["served"] for text in texts}
        assert len(it.instances("pool")) == 3

    play(vsm, scenario)


def test_lazy_server_starts_with_a_request_and_stops_when_unused(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        first = await it.note(client, "lazy", "one")
        assert first["notes"] == ["one"]
        await it.wait_only("lazy", 0)
        assert rows(it.vsm)["lazy"]["state"] == "ready"
        names = {t["name"] for t in (await client.request("l", "tools/list"))["result"]["tools"]}
        assert "lazy__note" in names
        assert (await it.note(client, "lazy", "two"))["notes"] == ["two"]

    play(vsm, scenario)


def test_server_that_never_starts_is_quarantined_and_a_caller_told(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        await client.request("l", "tools/list")
        await it.wait(lambda: rows(it.vsm)["broken"]["state"] == "quarantined")
        assert "broken#" in rows(it.vsm)["broken"]["detail"]
        assert it.instances("broken") == {}

    play(vsm, scenario)


def test_new_gateway_takes_a_pool_over_but_no_sessions_server(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        await it.note(client, "own", "x")
        await it.note(client, "pool", "kept")
        owned, pooled = set(it.instances("own")), set(it.instances("pool"))
        os.kill(rows(it.vsm)["system1"]["pid"], signal.SIGKILL)
        await it.wait(lambda: not owned & set(it.instances("own")))
        await it.wait(lambda: rows(it.vsm)["system1"]["state"] == "ready")
        client = await it.open()
        assert (await it.note(client, "own", "new"))["notes"] == ["new"]
        assert "kept" in (await it.note(client, "pool", "more"))["notes"] or len(pooled) > 1
        assert pooled <= set(it.instances("pool"))

    play(vsm, scenario)


def test_session_that_goes_on_with_a_new_gateway_is_told_what_it_lost(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        client = await Raw.connect(str(it.vsm.folder / "run/mcp.sock"))
        named = {"clientInfo": {"name": "t", "version": "1"}, "capabilities": {}}
        again = f"{OURS}1"  # as `vsm connect` has it
        await client.request(again, "initialize", protocolVersion="2025-11-25", **named)
        answer = await client.request("s", "resources/subscribe", uri="note://own")
        assert "result" in answer  # which is no call, so nobody would have read it there
        error = (await it.call(client, "own__note"))["error"]
        assert "whatever state this session had there is gone" in error["message"]
        assert (await it.note(client, "own", "fresh"))["notes"] == ["fresh"]
        await client.close()

    play(vsm, scenario)


def test_session_over_http_has_its_own_until_it_is_deleted(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        version = {"protocolVersion": "2025-11-25", "capabilities": {}}
        named = {**version, "clientInfo": {"name": "t", "version": "1"}}
        sessions = [(await http(it.vsm, "initialize", named))[0] for _ in range(2)]
        for number, session in enumerate(sessions):
            said = {"name": "own__note", "arguments": {"text": str(number)}}
            _, answer = await http(it.vsm, "tools/call", said, **{SESSION: session})
            assert json.loads(answer["result"]["content"][0]["text"])["notes"] == [str(number)]
        claimed = [c["name"] for c in it.catalogue("own") if c["state"] == "claimed"]
        assert len(claimed) == 2
        for session in sessions:
            await http(it.vsm, "", {}, **{SESSION: session, ":method": "DELETE"})
        await it.wait(lambda: not set(claimed) & set(it.instances("own")))

    play(vsm, scenario)


def test_commands_act_on_all_instances(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        clients = [await it.open() for _ in range(2)]
        for client in clients:
            await it.note(client, "own", "x")
        await it.wait_spare("own")
        before = {one["name"] for one in it.catalogue("own") if one["state"] == "spare"}
        await asyncio.to_thread(ask, it.vsm, "restart", name="own")
        await it.wait(lambda: not before & set(it.instances("own")))
        for client in clients:  # what is a session's own stays
            assert (await it.note(client, "own", "y"))["notes"] == ["x", "y"]
        await asyncio.to_thread(ask, it.vsm, "stop", name="own")
        assert it.instances("own") == {}
        error = (await it.call(clients[0], "own__note"))["error"]
        assert "stopped" in error["message"]
        await asyncio.to_thread(ask, it.vsm, "start", name="own")
        error = (await it.call(clients[0], "own__note"))["error"]
        assert "its state with it" in error["message"]
        assert (await it.note(clients[0], "own", "again"))["notes"] == ["again"]

    play(vsm, scenario)


def test_reload_changes_whose_servers_there_are(vsm: Running, folder: Path) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        assert (await it.note(client, "plain", "x"))["notes"] == ["x"]
        for terms, count in ((KINDS["own"], 1), (KINDS["pool"], 1), ("", 0)):
            before = {row["pid"] for row in rows(it.vsm).values()}
            await begin_slow(client, "plain")
            write_config(folder, plain=terms)
            await asyncio.to_thread(ask, it.vsm, "reload", wait=True)
            assert "result" in await client.answer("slow")
            assert (await it.note(client, "plain", "x"))["notes"] == ["x"]
            assert len(it.instances("plain")) >= count
            row = rows(it.vsm)["plain"]
            assert (row["pid"] is None) is bool(count)
            now = {row["pid"] for row in it.instances("plain").values()} | {row["pid"]}
            assert not now & before - {None}

    play(vsm, scenario)


def test_reload_changes_how_many_there_may_be_and_ends_none_that_is_used(
    vsm: Running, folder: Path
) -> None:
    async def scenario(it: Sessions) -> None:
        one, other = await it.open(), await it.open()
        await it.note(one, "few", "one")
        await it.note(other, "few", "other")
        refused = await it.call(await it.open(), "few__note", text="third")
        assert "all 2 instances belong to other sessions" in refused["error"]["message"]
        pool = {row["pid"] for row in it.instances("pool").values()}
        await begin_slow(one, "few")
        write_config(
            folder,
            few=KINDS["few"].replace("2", "4\nspares = 1"),
            pool='instances = "pool"\npool_min = 2\npool_max = 5',
        )
        changes = (await asyncio.to_thread(ask, it.vsm, "reload", wait=True))["changes"]
        assert {c["name"]: c["outcome"] for c in changes} == {"few": "changed", "pool": "changed"}
        assert "result" in await one.answer("slow")
        assert (await it.note(one, "few", "on"))["notes"] == ["one", "y", "on"]
        assert (await it.note(other, "few", "on"))["notes"] == ["other", "on"]
        assert (await it.note(await it.open(), "few", "third"))["notes"] == ["third"]
        await it.wait(lambda: len(it.instances("few")) == 4)
        await it.wait(lambda: len(it.instances("pool")) >= 2)
        assert pool <= {row["pid"] for row in it.instances("pool").values()}
        write_config(folder)
        await asyncio.to_thread(ask, it.vsm, "reload", wait=True)
        assert (await it.note(one, "few", "still"))["notes"][-1] == "still"

    play(vsm, scenario)
