"""Servers with several instances are replaced: a pool one by one, a session's when it is over.

A new instance is held at its gate, a file, while a test looks at what serves.
"""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replaced_rig import Rig, command, told, wait_starting
from running import running
from sessions import Sessions, play
from supervised import Row, left_of, rows, state, wait_until

INTENSITY = 3  # crashes within a minute, by default
KINDS = {
    "pool": "instances = 'pool'\npool_min = 2\npool_max = 2",
    "own": "instances = 'session'\nmax_instances = 6\nspares = 1",
    "lazy": "start = 'lazy'",
}


class Several(Rig):
    """A vsm with an integration of each kind, whose entries are edited while it runs."""

    def write(self, kinds: dict[str, str] = KINDS, **env: str) -> None:
        tables = [self.entry(name, f"trust = 'off'\n{more}", env) for name, more in kinds.items()]
        self.config.write_text("\n".join(tables), encoding="utf-8")

    def instances(self, name: str) -> dict[str, Row]:
        seen = rows(self.vsm)
        return {k: r for k, r in seen.items() if k.startswith(f"{name}#")}

    def pids(self, name: str) -> set[int]:
        return {row["pid"] for row in self.instances(name).values() if row["state"] == "ready"}

    def replacement(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = rows(self.vsm)[name]["replacement"]
        return found


@pytest.fixture
def several(tmp_path: Path) -> Iterator[Several]:
    """Ready, and whoever starts from now on waits at the gate while it is closed."""
    found = Several(tmp_path)
    found.write(GATE=found.gate)
    found.open()
    with running(found.config) as found.vsm:
        wait_until(found.vsm, lambda seen: all(seen[name]["state"] == "ready" for name in KINDS))
        wait_until(found.vsm, lambda _: len(found.pids("pool")) == 2)
        found.close()
        yield found
        found.open()
        assert found.vsm.stop() == 0, found.vsm.log()
        assert left_of(found.vsm) == []


async def call_on(it: Sessions, tool: str, served: list[int]) -> None:
    """One call after the other; a failure ends it."""
    client = await it.open()
    while True:
        served.append(told(await it.call(client, tool))["served"])


async def wait_served(served: list[int], count: int = 20) -> set[int]:
    """By whom the next calls were served."""
    begin = len(served)
    async with asyncio.timeout(60):
        while len(served) < begin + count:  # noqa: ASYNC110 - a list that others fill
            await asyncio.sleep(0.01)
    return set(served[begin:])


@pytest.mark.parametrize("name", ["pool", "lazy"])
def test_one_after_the_other_is_replaced_under_calls_and_none_fails(
    several: Several, name: str
) -> None:
    async def scenario(it: Sessions) -> None:
        served: list[int] = []
        several.open()
        told(await it.call(await it.open(), f"{name}__who"))  # which starts the lazy one
        several.close()
        before = several.pids(name)
        calling = [asyncio.create_task(call_on(it, f"{name}__who", served)) for _ in range(2)]
        await wait_served(served)
        restart = command(several, "restart", name)
        await wait_starting(it, lambda: several.instances(name).values())
        await wait_served(served)
        assert several.pids(name) == before
        replacement = several.replacement(name)
        assert replacement is not None
        assert replacement["state"] == "starting"
        old = set(served)  # of the pool's two perhaps one alone was asked before
        several.open()
        done = await restart
        assert (done.returncode, done.stdout) == (0, f"{name}: ready\n"), done.stderr
        await it.wait(lambda: not before & several.pids(name))
        await it.wait(lambda: len(several.instances(name)) == len(before))
        assert not old & await wait_served(served)
        assert not any(task.done() for task in calling)
        for task in calling:
            task.cancel()
        await asyncio.gather(*calling, return_exceptions=True)

    play(several.vsm, scenario)


def test_changed_number_takes_effect_with_the_rest_of_the_entry_and_no_call_fails(
    several: Several,
) -> None:
    async def scenario(it: Sessions) -> None:
        served: list[int] = []
        before = several.pids("pool")
        calling = [asyncio.create_task(call_on(it, "pool__who", served)) for _ in range(2)]
        old = await wait_served(served)
        several.write({**KINDS, "pool": KINDS["pool"].replace("2", "3")}, WORDS="others")
        done = await command(several, "reload", "--json")
        changes = {one["name"]: one for one in json.loads(done.stdout)["changes"]}
        assert changes["pool"]["outcome"] == "replaced", changes
        await it.wait(lambda: not before & several.pids("pool"))
        await it.wait(lambda: len(several.pids("pool")) == 3)
        assert not old & await wait_served(served)
        assert not any(task.done() for task in calling)
        for task in calling:
            task.cancel()
        await asyncio.gather(*calling, return_exceptions=True)

    play(several.vsm, scenario)


def test_session_keeps_its_instance_and_a_new_one_gets_the_new(several: Several) -> None:
    async def scenario(it: Sessions) -> None:
        several.open()
        client = await it.open()
        first = told(await it.call(client, "own__who", text="mine"))
        several.close()
        several.write(GATE=several.gate, WORDS="others")
        reload = command(several, "reload", "--json")
        await wait_starting(it, lambda: several.instances("own").values())
        assert told(await it.call(client, "own__who", text="more"))["served"] == first["served"]
        several.open()
        changes = {one["name"]: one for one in json.loads((await reload).stdout)["changes"]}
        assert changes["own"]["outcome"] == "replaced", changes
        new = await it.open()
        other = told(await it.call(new, "own__who", text="theirs"))
        assert other["served"] != first["served"]
        assert other["notes"] == ["theirs"]
        tools = (await new.request("l", "tools/list"))["result"]["tools"]
        assert {t["description"] for t in tools if t["name"].startswith("own__")} == {"others"}
        still = told(await it.call(client, "own__who"))
        assert (still["served"], still["notes"]) == (first["served"], ["mine", "more"])
        assert (await command(several, "reload", "--json")).returncode == 0
        assert told(await it.call(client, "own__who"))["notes"] == ["mine", "more"]
        await client.close()
        last = told(await it.call(new, "own__who"))
        assert (last["served"], last["notes"]) == (other["served"], ["theirs"])

    play(several.vsm, scenario)


@pytest.mark.parametrize("name", ["pool", "own"])
def test_instances_stay_where_the_first_new_one_does_not_become_ready(
    several: Several, name: str
) -> None:
    async def scenario(it: Sessions) -> None:
        several.open()
        client = await it.open()
        old = told(await it.call(client, f"{name}__who", text="kept"))
        await it.wait(lambda: all(r["state"] == "ready" for r in several.instances(name).values()))
        before = several.pids(name)
        several.write(FATE="crash")
        for _ in range(INTENSITY + 2):  # no failure of it counts against those that serve
            done = await command(several, "reload", "--json")
            changes = {one["name"]: one for one in json.loads(done.stdout)["changes"]}
            assert changes[name]["outcome"] == "not applied", changes
            assert "serves on, by the entry before" in changes[name]["detail"]
        assert before <= several.pids(name)
        assert rows(several.vsm)[name]["state"] == "ready"
        if name == "own":
            assert told(await it.call(client, "own__who"))["notes"] == ["kept"]
            assert told(await it.call(client, "own__who"))["served"] == old["served"]
        several.write(GATE=several.gate)
        changes = json.loads((await command(several, "reload", "--json")).stdout)["changes"]
        assert name not in {one["name"] for one in changes}  # the entry in force was that

    play(several.vsm, scenario)


def test_gateway_or_instance_killed_in_the_middle_of_it_changes_nothing(several: Several) -> None:
    async def scenario(it: Sessions) -> None:
        restart = command(several, "restart", "pool")
        await wait_starting(it, lambda: several.instances("pool").values())
        killed = rows(several.vsm)["system1"]
        os.kill(killed["pid"], signal.SIGKILL)
        await it.wait(lambda: rows(several.vsm)["system1"]["restarts"] > killed["restarts"])
        await it.wait(lambda: rows(several.vsm)["system1"]["state"] == "ready")
        client = await it.open()
        before = several.pids("pool")
        assert told(await it.call(client, "pool__who"))["served"]
        await wait_starting(it, lambda: several.instances("pool").values())
        several.open()
        assert (await restart).returncode == 0
        await it.wait(lambda: not before & several.pids("pool"))
        await it.wait(lambda: len(several.instances("pool")) == 2)
        several.close()
        restart = command(several, "restart", "pool")
        await wait_starting(it, lambda: several.instances("pool").values())
        before = several.pids("pool")
        new = next(r for r in several.instances("pool").values() if r["state"] == "starting")
        os.kill(new["pid"], signal.SIGKILL)
        assert (await restart).returncode == 1
        assert several.pids("pool") == before
        assert told(await it.call(client, "pool__who"))["served"]

    play(several.vsm, scenario)


def test_call_in_flight_ends_in_the_instance_of_a_pool_that_has_it(several: Several) -> None:
    async def scenario(it: Sessions) -> None:
        until = str(several.folder / "until")
        clients = [await it.open() for _ in range(2)]
        calls = [asyncio.create_task(it.call(c, "pool__slow", until=until)) for c in clients]

        def busy() -> bool:
            seen = state(several.vsm, "system1")["integrations"]["pool"]
            return sum(one["in_flight"] for one in seen["instances"]) == 2

        await it.wait(busy)
        before = several.pids("pool")
        several.open()
        assert (await command(several, "restart", "pool")).returncode == 0
        await it.wait(lambda: len(several.pids("pool") - before) == 1)
        assert not any(call.done() for call in calls)
        several.open("until")
        for call in calls:
            assert told(await call)["served"]
        await it.wait(lambda: not before & several.pids("pool"))

    play(several.vsm, scenario)
