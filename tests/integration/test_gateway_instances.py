"""Instances at the gateway alone: what it wants of a supervisor, and what it remembers."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway_harness import SERVERS, Harness, echo_legacy, running

from vsm.configuration.config import Integration
from vsm.core.instance_demand import Terms
from vsm.gateway import known
from vsm.gateway.contract import Kept
from vsm.gateway.integration import Settings
from vsm.link import close_fds
from vsm.pins import from_memory, to_memory
from vsm.supervision.surfaces import SurfaceStore

LAZY = Terms(kind="pool", least=1, lazy=True)
SESSION = Terms(kind="session", most=2)


def add(harness: Harness, terms: Terms) -> None:
    harness.gateway.add(Settings(name="echo", prefix="echo", terms=terms))


async def wait_wanted(harness: Harness, count: int) -> None:
    async with asyncio.timeout(30):
        while harness.reported.counts.get("echo") != count:
            harness.reported.changed.clear()
            await harness.reported.changed.wait()


async def wait_released(harness: Harness, worker: str) -> None:
    async with asyncio.timeout(30):
        while worker not in harness.reported.releases.get("echo", {}):
            harness.reported.changed.clear()
            await harness.reported.changed.wait()


def names(answer: dict[str, Any]) -> set[str]:
    return {tool["name"] for tool in answer["result"]["tools"]}


def test_lists_of_a_server_that_does_not_run_are_those_of_its_last_run() -> None:
    async def scenario() -> None:
        async with running(ready=False) as harness:
            add(harness, LAZY)
            harness.gateway.fleet.availability("echo", "ready", "")
            harness.gateway.fleet.list_wait_s = 10.0
            client = await harness.raw()
            listed = asyncio.create_task(client.request("l", "tools/list"))
            await wait_wanted(harness, 1)  # nothing is known: the list needs a first start
            await harness.attach("echo", echo_legacy(), instance=1)
            offered = names(await listed)
            kept = harness.reported.surfaces["echo"]
        async with running(ready=False) as harness:
            add(harness, LAZY)
            harness.gateway.fleet.availability("echo", "ready", "")
            harness.gateway.fleet.know("echo", kept)
            client = await harness.raw()
            assert names(await client.request("l", "tools/list")) == offered
            assert harness.reported.counts.get("echo", 0) == 0
            called = asyncio.create_task(client.call("c", "echo__echo", text="x"))
            await wait_wanted(harness, 1)
            await harness.attach("echo", echo_legacy(), instance=1)
            assert "result" in await called

    asyncio.run(scenario())


def test_what_was_kept_is_compared_with_what_was_approved() -> None:
    async def scenario() -> None:
        async with running({"echo": echo_legacy()}) as harness:
            one = harness.gateway.fleet.integrations["echo"]
            assert one.session is not None
            kept = known.pack(one.session, one.surface.lists)
        assert kept is not None
        async with running(ready=False) as harness:
            fleet = harness.gateway.fleet
            harness.gateway.add(Settings(name="echo", prefix="echo", terms=LAZY, trust="first-use"))
            fleet.availability("echo", "ready", "")
            fleet.pinned("echo", b'{"tool echo":"the hash of what was approved"}')
            fleet.know("echo", kept)
            client = await harness.raw()
            offered = names(await client.request("l", "tools/list"))
            assert "echo__slow" in offered
            assert "echo__echo" not in offered
            refused = await client.call("c", "echo__echo", text="x")
            assert "vsm trust diff echo" in refused["error"]["message"]
            assert harness.reported.counts.get("echo", 0) == 0, "no server was started for it"

    asyncio.run(scenario())


def test_what_is_not_as_it_was_kept_counts_as_nothing_known() -> None:
    async def scenario() -> None:
        async with running({"echo": echo_legacy()}) as harness:
            one = harness.gateway.fleet.integrations["echo"]
            assert one.session is not None
            content = known.pack(one.session, one.surface.lists)
        assert content is not None
        assert known.unpack(content) is not None
        for broken in (b"", content[:-1], b"[]", content + b"}", b"\xff" + content):
            assert known.unpack(broken) is None

    asyncio.run(scenario())


def test_surface_is_kept_for_the_entry_that_it_was_learnt_with(tmp_path: Any) -> None:
    store = SurfaceStore(tmp_path / "surfaces")
    entry = Integration(name="echo", command=("/bin/echo",))
    fd = to_memory(b'{"x":1}')
    store.keep(entry, fd)
    found = store.recall(entry)
    assert found is not None
    assert from_memory(found) == b'{"x":1}'
    close_fds([fd, found])
    assert store.recall(Integration(name="echo", command=("/bin/other",))) is None
    store.forget("echo")
    assert store.recall(entry) is None


def test_session_that_ends_releases_its_server_until_that_is_gone() -> None:
    async def scenario() -> None:
        async with running(ready=False) as harness:
            add(harness, SESSION)
            client = await harness.raw()
            called = asyncio.create_task(client.call("c", "echo__echo"))
            worker = await harness.attach("echo", echo_legacy(), instance=1)
            assert "result" in await called
            await wait_wanted(harness, 1)
            await client.close()
            await wait_released(harness, worker)
            assert harness.reported.counts["echo"] == 0
            assert harness.reported.releases["echo"] == {worker: "its session ended"}
            harness.gateway.fleet.detach(worker, "stopped")
            await harness.raw()  # whatever happens next, it is not said again
            instances = harness.gateway.fleet.integrations["echo"].instances
            assert instances is not None
            assert instances.releasing == {}

    asyncio.run(scenario())


def test_pool_passes_over_a_server_that_ended() -> None:
    async def scenario() -> None:
        async with running(ready=False) as harness:
            add(harness, replace(LAZY, lazy=False, least=2, most=2, resident=True))
            for number in (1, 2):
                await harness.attach("echo", echo_legacy(str(number)), instance=number)
            instances = harness.gateway.fleet.integrations["echo"].instances
            assert instances is not None
            async with asyncio.timeout(30):
                while len(harness.reported.sessions) < 2:
                    harness.reported.changed.clear()
                    await harness.reported.changed.wait()
            client = await harness.raw()
            harness.kill("echo-1")
            async with asyncio.timeout(30):
                while not instances.members["echo-1"].is_lost:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0)
            for number in range(4):
                assert "result" in await client.call(number, "echo__echo")

    asyncio.run(scenario())


def test_server_that_the_integration_cannot_have_is_reported_unfit() -> None:
    async def scenario() -> None:
        async with running(ready=False) as harness:
            add(harness, SESSION)
            worker = await harness.attach("echo", echo_legacy())
            assert "no integration echo has such a server" in await harness.reported.wait_unfit(
                worker
            )

    asyncio.run(scenario())


def test_what_is_offered_is_what_the_successor_offers_whatever_the_replaced_ones_say(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        def offering(*tools: str) -> list[str]:
            path = tmp_path / f"{tools[0]}.json"
            told = {"tools": [{"name": name, "description": ""} for name in tools]}
            path.write_text(json.dumps(told), encoding="utf-8")
            return [sys.executable, "-SI", str(SERVERS / "offering.py"), str(path)]

        async with running(ready=False) as harness:
            fleet, terms = harness.gateway.fleet, replace(SESSION, most=6)
            add(harness, terms)
            fleet.availability("echo", "ready", "")

            async def serves(worker: str) -> None:
                async with asyncio.timeout(30):
                    while worker not in harness.reported.sessions:
                        harness.reported.changed.clear()
                        await harness.reported.changed.wait()

            old, before = offering("old"), []
            for number in (1, 2):
                await serves(await harness.attach("echo", old, instance=number))
                before.append(await harness.raw())
                assert "result" in await before[-1].call(1, "echo__old")
            beside = Settings(name="echo", prefix="echo", terms=terms)
            new = await harness.attach("echo", offering("new"), instance=3, beside=beside)
            await serves(new)
            fleet.switch("echo", new)
            await wait_released(
                harness, await harness.attach("echo", old, instance=4, outdated=True)
            )
            after = await harness.raw()
            assert names(await after.request("l", "tools/list")) == {"echo__new"}
            assert "result" in await after.call(1, "echo__new")

            future: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
            fleet.check_contract("echo", future.set_result)
            kept = await asyncio.wait_for(future, 30)
            assert (kept.failed, kept.unknown) == ({}, ())
            instances = fleet.integrations["echo"].instances
            assert instances is not None
            first = instances.members["echo-1"].upstream
            assert first is not None
            asked = first.asked
            fleet.refetches.soon(first, ["tools/list"])
            async with asyncio.timeout(30):
                while first.asked == asked or first.in_flight:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0)
            assert names(await after.request("m", "tools/list")) == {"echo__new"}

    asyncio.run(scenario())
