"""Servers that are replaced under a stream of calls: a real `vsm up`, `vsm restart`, `vsm reload`.

A new server is held at its gate, a file, while a test looks at what serves; nothing here goes by
time.
"""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import Raw
from replaced_rig import SERVER, Rig, command, told, wait_starting
from running import running
from sessions import Sessions, play
from supervised import (
    BOUND_S,
    Row,
    ask,
    descendants,
    left_of,
    rows,
    state,
    wait_all_gone,
    wait_nothing_left,
    wait_until,
    watch,
)


class Whole(Rig):
    """A vsm with one integration, `x`, whose entry is edited while it runs."""

    def write(self, more: str = "", **env: str) -> None:
        """The entry: `more` are lines of it, `env` is its environment."""
        self.config.write_text(self.entry("x", more, env), encoding="utf-8")

    def row(self) -> Row:
        return rows(self.vsm)["x"]

    def beside(self) -> dict[str, Row]:
        """What there is of it beside the one that has its name."""
        return {n: row for n, row in rows(self.vsm).items() if row["kind"] == "instance"}

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """What the journal has of replacements, oldest first; the last may be missing yet."""
        done = self.vsm.vsm("events", "--json", "--kind", "replacement.*", "-n", "1000")
        assert done.returncode == 0, done.stderr
        return [(event["kind"], event["detail"]) for event in json.loads(done.stdout)]

    def events_before(self) -> int:
        """How many there are, once the end of what a test before this one began is written."""
        wait_until(self.vsm, lambda _: "replacement.begun" not in dict(self.events()[-1:]))
        return len(self.events())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """One vsm for all; at the end it is stopped in order, and nothing is left."""
    found = Whole(tmp_path_factory.mktemp("replaced"))
    found.write()
    with running(found.config) as found.vsm:
        yield found
        assert found.vsm.stop() == 0, found.vsm.log()
        assert left_of(found.vsm) == []


@pytest.fixture
def whole(shared: Whole) -> Whole:
    """Ready, by the first entry, its server as it was."""
    for name in ("gate", "until"):
        (shared.folder / name).unlink(missing_ok=True)
    shutil.copy(SERVER, shared.folder)
    shared.write()
    assert shared.vsm.vsm("reload").returncode == 0
    wait_until(shared.vsm, lambda seen: "x" in seen and seen["x"]["state"] == "ready")
    wait_until(shared.vsm, lambda seen: all(one["kind"] != "instance" for one in seen.values()))
    return shared


class Stream:
    """A client that calls one after the other, and what it was told."""

    def __init__(self, it: Sessions, client: Raw) -> None:
        self._it = it
        self._client = client
        self.served: list[int] = []
        self.errors: list[dict[str, Any]] = []
        self._more = asyncio.Event()

    async def run(self) -> None:
        while True:
            answer = await self._it.call(self._client, "x__who")
            if "error" in answer:
                self.errors.append(answer["error"])
            else:
                self.served.append(told(answer)["served"])
            self._more.set()

    async def go_on(self, count: int = 20) -> list[int]:
        """What the next calls were served by."""
        begin = len(self.served) + len(self.errors)
        async with asyncio.timeout(BOUND_S):
            while len(self.served) + len(self.errors) < begin + count:
                self._more.clear()
                await self._more.wait()
        assert not self.errors
        return self.served[begin:]

    async def wait_other(self, served: int) -> int:
        """Until another process than this answers; which."""
        async with asyncio.timeout(BOUND_S):
            while not self.served or self.served[-1] == served:
                self._more.clear()
                await self._more.wait()
        return self.served[-1]


@asynccontextmanager
async def stream(it: Sessions) -> AsyncIterator[Stream]:
    """Calls go on until the block ends; none of them may have failed."""
    found = Stream(it, await it.open())
    task = asyncio.create_task(found.run())
    try:
        yield found
        await found.go_on()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert not found.errors


async def hold(whole: Whole, it: Sessions, more: str = "", **env: str) -> None:
    """From now on a new server waits at its gate: the entry in force says so."""
    whole.open()
    whole.write(more, GATE=whole.gate, **env)
    done = await command(whole, "reload")
    assert done.returncode == 0, done.stderr
    await it.wait(lambda: not whole.beside())
    whole.close()


def test_restart_under_a_stream_of_calls_fails_none_and_keeps_none_waiting(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        async with stream(it) as calls:
            await hold(whole, it)
            (old,) = set(await calls.go_on())
            before = whole.row()["pid"]
            restart = command(whole, "restart", "x")
            await wait_starting(it, lambda: whole.beside().values())
            assert set(await calls.go_on(100)) == {old}  # the new one is at its gate
            assert whole.row()["replacement"]["state"] == "starting"
            assert whole.row()["state"] == "ready"
            (new_one,) = whole.beside().values()
            assert groups_of(new_one["pid"]) != groups_of(before) or not groups_of(before)
            assert not restart.done()
            whole.open()
            new = await calls.wait_other(old)
            done = await restart
            assert (done.returncode, done.stdout) == (0, "x: ready\n"), done.stderr
            assert set(await calls.go_on()) == {new}
            await it.wait(lambda: not whole.beside())
            after = whole.row()
            assert after["pid"] not in {before, None}
            assert after["replacement"] is None
            assert not is_there(before)
        switches = sum(a != b for a, b in zip(calls.served, calls.served[1:], strict=False))
        assert switches == 2  # the reload and the restart

    before = whole.events_before()
    play(whole.vsm, scenario)
    wait_until(whole.vsm, lambda _: len(whole.events()) == before + 4)
    assert [event for event, _ in whole.events()[-2:]] == ["replacement.begun", "replacement.done"]


def test_changed_entry_serves_once_its_server_is_ready(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        async with stream(it) as calls:
            (old,) = set(await calls.go_on())
            whole.write("concurrency = 7\nprefix = 'y'", GATE=whole.gate)
            reload = command(whole, "reload", "--json")
            await wait_starting(it, lambda: whole.beside().values())
            (first,) = whole.beside()
            assert set(await calls.go_on()) == {old}
            assert whole.row()["prefix"] is None  # the entry in force is the one before
            whole.write("concurrency = 7", GATE=whole.gate)  # the stream's name stays
            second = command(whole, "reload", "--json")
            await it.wait(lambda: first not in whole.beside() and bool(whole.beside()))
            whole.open()
            new = await calls.wait_other(old)
            for done in (await reload, await second):
                (change,) = json.loads(done.stdout)["changes"]
                assert change["outcome"] == "replaced", done.stdout
            assert set(await calls.go_on()) == {new}
        assert json.loads((await command(whole, "reload", "--json")).stdout)["changes"] == []
        del client

    play(whole.vsm, scenario)


@pytest.mark.parametrize("fate", ["crash", "mute"])
def test_server_that_never_becomes_ready_leaves_the_one_before_in_service(
    whole: Whole, fate: str
) -> None:
    async def scenario(it: Sessions) -> None:
        async with stream(it) as calls:
            (old,) = set(await calls.go_on())
            before = whole.row()
            whole.write("start_timeout_s = 1", FATE=fate)
            done = await command(whole, "reload", "--json")
            (change,) = json.loads(done.stdout)["changes"]
            assert change["outcome"] == "not applied", done.stdout
            assert "serves on, by the entry before" in change["detail"]
            assert "vsm reload" in change["detail"]
            row = whole.row()
            assert (row["pid"], row["state"]) == (before["pid"], "ready")
            assert row["replacement"]["state"] == "failed"
            assert row["replacement"]["reason"] in change["detail"]
            shown = (await command(whole, "status", "x")).stdout
            assert "replacement failed" in " ".join(shown.split())
            assert set(await calls.go_on()) == {old}
            # The entry in force is the one that works: its server comes back by that.
            os.kill(before["pid"], signal.SIGKILL)
            await it.wait(lambda: whole.row()["pid"] not in {before["pid"], None})
            await it.wait(lambda: whole.row()["state"] == "ready")
            calls.errors.clear()  # of the call that was in flight to what was killed
            # What the file says is tried again, until it works or is taken back.
            again = json.loads((await command(whole, "reload", "--json")).stdout)["changes"]
            assert [one["outcome"] for one in again] == ["not applied"]
            whole.write()
            assert json.loads((await command(whole, "reload", "--json")).stdout)["changes"] == []

    before = whole.events_before()
    play(whole.vsm, scenario)
    wait_until(whole.vsm, lambda _: len(whole.events()) >= before + 4)
    failed = [detail for event, detail in whole.events()[before:] if event == "replacement.failed"]
    assert len(failed) == 2
    assert all(detail["reason"] and "vsm logs x" in detail["remedy"] for detail in failed)
    assert "replacement failed" in whole.vsm.log()


def test_restart_that_fails_says_so_and_what_to_do(whole: Whole) -> None:
    Path(whole.server).write_text("raise SystemExit('broken by an upgrade')\n", encoding="utf-8")
    done = whole.vsm.vsm("restart", "x")
    assert done.returncode == 1
    assert "not replaced, the one before serves on" in done.stderr
    assert "vsm logs x" in done.stderr
    assert whole.row()["state"] == "ready"
    assert whole.vsm.vsm("call", "x", "who", "{}").returncode == 0


def test_call_in_flight_ends_in_the_server_that_has_it(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        client, other = await it.open(), await it.open()
        until = str(whole.folder / "until")
        slow = asyncio.create_task(it.call(client, "x__slow", until=until))
        await it.wait(lambda: in_flight(whole) == 1)
        old = told(await it.call(other, "x__who"))["served"]
        done = await command(whole, "restart", "x")
        assert done.returncode == 0, done.stderr
        new = told(await it.call(other, "x__who"))["served"]
        assert new != old
        assert [row["state"] for row in whole.beside().values()] == ["draining"]
        assert not slow.done()
        whole.open("until")
        assert told(await slow)["served"] == old
        await it.wait(lambda: not whole.beside())

    play(whole.vsm, scenario)


def test_wishes_go_to_the_new_server_and_lists_are_announced_only_where_they_changed(
    whole: Whole,
) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        await client.request("s", "resources/subscribe", uri="replaced://one")
        await client.request("l", "logging/setLevel", level="error")
        await it.call(client, "x__who")
        assert (await command(whole, "restart", "x")).returncode == 0
        wishes = told(await it.call(client, "x__who"))["wishes"]
        assert sorted(wishes) == ["logging/setLevel", "resources/subscribe"]
        assert not [one["method"] for one in client.early if "method" in one]
        whole.write("trust = 'off'", MORE="third")
        assert (await command(whole, "reload")).returncode == 0
        assert told(await it.call(client, "x__third"))["served"]
        heard = [one["method"] for one in client.early if "method" in one]
        assert heard == ["notifications/tools/list_changed"]

    play(whole.vsm, scenario)


def test_changed_tool_of_a_new_server_is_never_called_through_the_switch(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        old = told(await it.call(client, "x__who"))["served"]
        whole.write(WORDS="says more than it was approved to")
        done = await command(whole, "reload", "--json")
        (change,) = json.loads(done.stdout)["changes"]
        assert change["outcome"] == "replaced"
        error = (await it.call(client, "x__who"))["error"]
        assert "vsm trust approve x" in error["message"]
        calling.cancel()
        assert served == {old}
        assert all("vsm trust approve x" in text for text in refused)

    served: set[int] = set()
    refused: list[str] = []

    async def call_on(it: Sessions) -> None:
        client = await it.open()
        while True:
            answer = await it.call(client, "x__who")
            if "error" in answer:
                refused.append(answer["error"]["message"])
            else:
                served.add(told(answer)["served"])

    calling: asyncio.Task[None]

    async def both(it: Sessions) -> None:
        nonlocal calling
        calling = asyncio.create_task(call_on(it))
        await scenario(it)

    play(whole.vsm, both)


def test_comparison_that_a_reload_turns_on_has_what_was_approved_at_hand(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        served = told(await it.call(client, "x__who"))["served"]
        for trust in ("off", "first-use"):
            whole.write(f"trust = '{trust}'")
            changes = json.loads((await command(whole, "reload", "--json")).stdout)["changes"]
            assert [one["outcome"] for one in changes] == ["changed"]
        assert told(await it.call(client, "x__who"))["served"] == served

    play(whole.vsm, scenario)


@pytest.mark.parametrize("entry", ["replace = 'stop-first'", "state = true"])
def test_server_that_must_not_run_twice_is_stopped_before_the_new_one_starts(
    whole: Whole, entry: str
) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        await hold(whole, it, entry)
        before = whole.row()["pid"]
        restart = command(whole, "restart", "x")
        await it.wait(lambda: whole.row()["state"] == "starting" and whole.row()["pid"])
        assert not is_there(before)
        assert not whole.beside()
        call = asyncio.create_task(it.call(client, "x__who"))  # waits for the new one
        whole.open()
        assert told(await call)["served"]
        assert (await restart).returncode == 0

    play(whole.vsm, scenario)


def test_entry_that_is_taken_back_before_it_serves_never_does(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        async with stream(it) as calls:
            (old,) = set(await calls.go_on())
            whole.write(GATE=whole.gate)
            first = command(whole, "reload", "--json")
            await wait_starting(it, lambda: whole.beside().values())
            whole.write()
            assert json.loads((await command(whole, "reload", "--json")).stdout)["changes"] == []
            (change,) = json.loads((await first).stdout)["changes"]
            assert change["outcome"] == "not applied"
            assert "changed again" in change["detail"]
            await it.wait(lambda: not whole.beside())
            whole.open()
            assert set(await calls.go_on()) == {old}

    play(whole.vsm, scenario)


def test_profile_of_what_only_finishes_is_no_difference_any_more(whole: Whole) -> None:
    profile = whole.folder / "own.toml"

    def put(more: str) -> None:
        head = 'extends = "python-server"\ndescription = "for tests"\n'
        profile.write_text(f"{head}[environment]\nMORE = '{more}'\n", encoding="utf-8")

    async def scenario(it: Sessions) -> None:
        client = await it.open()
        put("one")
        whole.write("profile = './own.toml'\ntrust = 'off'")
        assert (await command(whole, "reload")).returncode == 0
        await it.wait(lambda: not whole.beside())
        until = str(whole.folder / "until")
        slow = asyncio.create_task(it.call(client, "x__slow", until=until))
        await it.wait(lambda: in_flight(whole) == 1)
        put("two")
        (change,) = json.loads((await command(whole, "reload", "--json")).stdout)["changes"]
        assert (change["outcome"], change["keys"]) == ("replaced", ["profile.environment"])
        assert [row["state"] for row in whole.beside().values()] == ["draining"]
        assert json.loads((await command(whole, "reload", "--json")).stdout)["changes"] == []
        whole.open("until")
        assert told(await slow)["served"]

    play(whole.vsm, scenario)


def test_what_the_old_server_may_write_is_nobodys_program_while_it_serves(whole: Whole) -> None:
    own = whole.folder / "own"
    own.mkdir(exist_ok=True)
    program = shutil.copy(SERVER, own)

    async def scenario(it: Sessions) -> None:
        writes = f"write = [{json.dumps(str(own))}]\nreplace = 'start-first'"
        whole.write(writes)
        assert (await command(whole, "reload")).returncode == 0
        whole.write("replace = 'start-first'", GATE=whole.gate)
        text = whole.config.read_text(encoding="utf-8")
        entry = f"[integrations.y]\ncommand = ['/usr/bin/python3', {json.dumps(program)}]\n"
        whole.config.write_text(f"{text}\n{entry}", encoding="utf-8")
        reload = command(whole, "reload", "--json")
        await it.wait(lambda: rows(whole.vsm).get("y", {}).get("state") == "quarantined")
        assert "which a server may write" in rows(whole.vsm)["y"]["detail"]
        whole.open()
        assert (await reload).returncode == 0

    play(whole.vsm, scenario)


def test_operator_may_overrule_what_keeps_two_from_running_at_once(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        await hold(whole, it, "state = true\nreplace = 'start-first'")
        restart = command(whole, "restart", "x")
        await wait_starting(it, lambda: whole.beside().values())
        assert whole.row()["state"] == "ready"
        whole.open()
        assert (await restart).returncode == 0

    play(whole.vsm, scenario)


# ---- what may come between -----------------------------------------------------------------


async def begin(whole: Whole, it: Sessions) -> "asyncio.Task[Any]":
    """A restart whose new server waits at its gate."""
    await hold(whole, it)
    restart = command(whole, "restart", "x")
    await wait_starting(it, lambda: whole.beside().values())
    return restart


def test_new_server_killed_at_its_start_is_as_if_nothing_had_been(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        restart = await begin(whole, it)
        async with stream(it) as calls:
            (old,) = set(await calls.go_on())
            (new,) = whole.beside().values()
            os.kill(new["pid"], signal.SIGKILL)
            done = await restart
            assert done.returncode == 1
            assert "SIGKILL" in done.stderr
            assert set(await calls.go_on()) == {old}
        assert not whole.beside()

    play(whole.vsm, scenario)


def test_old_server_killed_while_the_new_one_starts_comes_back_or_is_replaced(
    whole: Whole,
) -> None:
    async def scenario(it: Sessions) -> None:
        restart = await begin(whole, it)
        client = await it.open()
        old = told(await it.call(client, "x__who"))["served"]
        os.kill(whole.row()["pid"], signal.SIGKILL)
        await it.wait(lambda: whole.row()["state"] == "starting")
        call = asyncio.create_task(it.call(client, "x__who"))  # waits for the first of the two
        whole.open()
        assert told(await call)["served"] != old
        assert (await restart).returncode == 0
        await it.wait(lambda: not whole.beside())
        assert told(await it.call(client, "x__who"))["served"] != old
        assert whole.row()["state"] == "ready"

    play(whole.vsm, scenario)


@pytest.mark.parametrize("which", ["old", "new"])
def test_either_killed_after_the_switch_takes_only_its_own_calls_with_it(
    whole: Whole, which: str
) -> None:
    async def scenario(it: Sessions) -> None:
        client, other = await it.open(), await it.open()
        until = str(whole.folder / "until")
        slow = asyncio.create_task(it.call(client, "x__slow", until=until))
        await it.wait(lambda: in_flight(whole) == 1)
        old = told(await it.call(other, "x__who"))["served"]
        assert (await command(whole, "restart", "x")).returncode == 0
        new = told(await it.call(other, "x__who"))["served"]
        (left,) = whole.beside().values()
        if which == "old":
            os.kill(left["pid"], signal.SIGKILL)
            error = (await slow)["error"]
            assert error["data"] == {"integration": "x", "sent": True}
            assert told(await it.call(other, "x__who"))["served"] == new
        else:
            killed = whole.row()
            os.kill(killed["pid"], signal.SIGKILL)
            await it.wait(lambda: whole.row()["restarts"] > killed["restarts"])
            await it.wait(lambda: whole.row()["state"] == "ready")
            assert told(await it.call(other, "x__who"))["served"] not in {old, new}
            whole.open("until")
            assert told(await slow)["served"] == old
        await it.wait(lambda: not whole.beside())

    play(whole.vsm, scenario)


async def kill_gateway(whole: Whole, it: Sessions) -> None:
    """Until its successor serves."""
    killed = rows(whole.vsm)["system1"]
    os.kill(killed["pid"], signal.SIGKILL)
    await it.wait(lambda: rows(whole.vsm)["system1"]["restarts"] > killed["restarts"])
    await it.wait(lambda: rows(whole.vsm)["system1"]["state"] == "ready")


def test_gateway_killed_in_the_middle_serves_on_and_the_replacement_happens(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        restart = await begin(whole, it)
        serves = whole.row()["pid"]
        await kill_gateway(whole, it)
        client = await it.open()
        old = told(await it.call(client, "x__who"))["served"]
        assert whole.row()["pid"] == serves
        await wait_starting(it, lambda: whole.beside().values())
        whole.open()
        assert (await restart).returncode == 0
        assert told(await it.call(client, "x__who"))["served"] != old
        await it.wait(lambda: not whole.beside())

    play(whole.vsm, scenario)


def test_gateway_killed_while_the_old_server_drains_leaves_the_new_one_serving(
    whole: Whole,
) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        until = str(whole.folder / "until")
        client.send(id="slow", method="tools/call", params={
            "name": "x__slow", "arguments": {"until": until}})  # fmt: skip
        await it.wait(lambda: in_flight(whole) == 1)
        assert (await command(whole, "restart", "x")).returncode == 0
        serves = whole.row()["pid"]
        await kill_gateway(whole, it)
        await it.wait(lambda: not whole.beside())
        other = await it.open()
        assert told(await it.call(other, "x__who"))["served"]
        assert whole.row()["pid"] == serves

    play(whole.vsm, scenario)


def test_second_restart_takes_the_place_of_the_first(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        first = await begin(whole, it)
        async with stream(it) as calls:
            (old,) = set(await calls.go_on())
            (one,) = whole.beside()
            second = command(whole, "restart", "x")
            await it.wait(lambda: one not in whole.beside() and bool(whole.beside()))
            assert set(await calls.go_on()) == {old}
            whole.open()
            assert [(await done).returncode for done in (first, second)] == [0, 0]
            await calls.wait_other(old)

    play(whole.vsm, scenario)


def test_stop_and_panic_end_both_and_nothing_comes_of_the_replacement(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        restart = await begin(whole, it)
        assert (await command(whole, "stop", "x")).returncode == 0
        assert (await restart).returncode == 1
        await it.wait(lambda: not whole.beside())
        assert whole.row()["state"] == "stopped"
        whole.open()
        assert (await command(whole, "start", "x")).returncode == 0
        whole.close()
        restart = command(whole, "restart", "x")
        await wait_starting(it, lambda: whole.beside().values())
        await asyncio.to_thread(ask, whole.vsm, "panic")
        assert (await restart).returncode == 1
        assert not whole.beside()
        whole.open()
        await asyncio.to_thread(ask, whole.vsm, "resume")
        await it.wait(lambda: whole.row()["state"] == "ready")

    play(whole.vsm, scenario)


def test_removal_takes_what_still_drains_with_it(whole: Whole) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        until = str(whole.folder / "until")
        slow = asyncio.create_task(it.call(client, "x__slow", until=until))
        await it.wait(lambda: in_flight(whole) == 1)
        assert (await command(whole, "restart", "x")).returncode == 0
        whole.config.write_text("", encoding="utf-8")
        assert (await command(whole, "reload", "--no-wait")).returncode == 0
        whole.open("until")
        assert told(await slow)["served"]
        await it.wait(lambda: "x" not in rows(whole.vsm))

    play(whole.vsm, scenario)


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL])
def test_end_of_vsm_in_the_middle_leaves_nothing(tmp_path: Path, signo: signal.Signals) -> None:
    whole = Whole(tmp_path)
    whole.write()
    with running(whole.config) as whole.vsm:

        async def scenario(it: Sessions) -> None:
            await it.wait(lambda: whole.row()["state"] == "ready")
            restart = await begin(whole, it)
            tree = watch(descendants(whole.vsm.process.pid))
            whole.vsm.process.send_signal(signo)
            await restart
            await asyncio.to_thread(wait_all_gone, tree)

        play(whole.vsm, scenario)
        assert whole.vsm.process.wait(BOUND_S) == (0 if signo == signal.SIGTERM else -signo)
        wait_nothing_left(whole.vsm)


def groups_of(pid: int) -> set[str]:
    """The control groups that vsm made for a process; none where the host gives it none."""
    text = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii")
    return {line for line in text.splitlines() if "vsm-" in line}


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def in_flight(whole: Whole) -> int:
    found: int = state(whole.vsm, "system1")["integrations"]["x"]["in_flight"]
    return found
