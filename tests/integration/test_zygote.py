"""Sessions whose servers are forks of a zygote, under a real `vsm up`: whose they are, and ends."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import Raw
from running import DEMO, Running, running
from sessions import Sessions, play
from supervised import (
    NOBODY,
    Started,
    Vsm,
    descendants,
    folder_of,
    left_of,
    ordinary_user,
    pause,
    rows,
    wait_until,
    without_namespaces,
)

SERVER = Path(__file__).resolve().parents[1] / "servers/forked_sessions.py"
FIT = ("plain", "loop")
UNFIT = {
    "thread": "it has started a thread",
    "open": "it has opened /proc/",
    "done": "it ended before it reached for its stdin",
    "liar": "it broke the protocol of zygotes",
}
TERMS = 'instances = "session"\nzygote = true\nmax_instances = 6\nstop_timeout_s = 1'


@pytest.fixture(scope="module")
def vsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("zygotes")
    server = shutil.copy(SERVER, folder)
    tables = [
        f"[integrations.{mode}]\ncommand = {json.dumps(['/usr/bin/python3', server, mode])}\n"
        f"start_timeout_s = 60\n{TERMS}\n"
        for mode in (*FIT, *UNFIT)
    ]
    config = folder / "vsm.toml"
    config.write_text("\n".join(tables), encoding="utf-8")
    with running(config) as one:
        wait_until(one, lambda seen: all(seen[mode]["state"] == "ready" for mode in FIT))
        yield one
        assert one.stop() == 0, one.log()
        assert left_of(one) == []


async def told(it: Sessions, client: Raw, name: str, tool: str = "note", **more: Any) -> Any:
    answer = await it.call(client, f"{name}__{tool}", **more)
    assert "result" in answer, answer
    return json.loads(answer["result"]["content"][0]["text"])


def below(vsm: Vsm, name: str) -> set[int]:
    """Every process of an integration."""
    pid = rows(vsm)[name]["pid"]
    return descendants(pid) if pid else set()


@pytest.mark.parametrize("name", FIT)
def test_sessions_are_forks_of_one_server_and_share_nothing_that_came_after(
    vsm: Running, name: str
) -> None:
    async def scenario(it: Sessions) -> None:
        clients = [await it.open() for _ in range(3)]
        seen = [await told(it, c, name, text=str(n)) for n, c in enumerate(clients)]
        again = [await told(it, c, name, text="more") for c in clients]
        assert [one["notes"] for one in again] == [[str(n), "more"] for n in range(3)]
        assert len({one["served"] for one in seen}) == 1, "they were one process before"
        assert len({one["pid"] for one in seen}) == 3
        assert len({one["parent"] for one in seen}) == 1
        assert len({one["random"] for one in seen}) == 3
        own = {"plain": 4, "loop": 7}[name]  # the listing's; the loop's set and its two ends
        assert all(len(one["fds"]) == own for one in seen), seen

    play(vsm, scenario)


def test_fork_ends_with_its_session_and_so_does_what_it_left(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        keeper, client = await it.open(), await it.open()
        await told(it, keeper, "plain", text="kept")
        before = below(vsm, "plain")
        await told(it, client, "plain", "child")
        assert len(below(vsm, "plain") - before) >= 1
        new = below(vsm, "plain") - before
        await client.close()
        await it.wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in new))
        assert (await told(it, keeper, "plain", text="on"))["notes"] == ["kept", "on"]

    play(vsm, scenario)


def test_killed_fork_leaves_nothing_and_the_others_alone(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        keeper, client = await it.open(), await it.open()
        await told(it, keeper, "loop", text="kept")
        before = below(vsm, "loop")
        await told(it, client, "loop", "child")
        new = below(vsm, "loop") - before
        pids = {row["pid"] for row in it.instances("loop").values()}
        (victim,) = pids & new
        os.kill(victim, signal.SIGKILL)
        await it.wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in new))
        assert (await told(it, keeper, "loop", text="on"))["notes"] == ["kept", "on"]
        assert rows(vsm)["loop"]["restarts"] == 0

    play(vsm, scenario)


def test_killed_zygote_takes_its_forks_along_and_comes_back(vsm: Running) -> None:
    async def scenario(it: Sessions) -> None:
        client = await it.open()
        await told(it, client, "plain", "child")
        before = below(vsm, "plain")
        zygote = min(pid for pid in before if _parent(pid) == rows(vsm)["plain"]["pid"])
        os.kill(zygote, signal.SIGKILL)
        await it.wait(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in before))
        await it.wait(lambda: rows(vsm)["plain"]["state"] == "ready")
        other = await it.open()
        assert (await told(it, other, "plain", text="new"))["notes"] == ["new"]

    play(vsm, scenario)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


@pytest.mark.parametrize(("name", "why"), UNFIT.items())
def test_server_that_cannot_be_forked_is_quarantined_with_the_reason(
    vsm: Running, name: str, why: str
) -> None:
    seen = wait_until(vsm, lambda found: found[name]["state"] == "quarantined")
    assert why in seen[name]["detail"]
    assert seen[name]["pid"] is None
    assert not [
        row for row in seen.values() if row["integration"] == name and row is not seen[name]
    ]


def test_status_says_what_forks_share(vsm: Running) -> None:
    assert "forks of one process" in vsm.vsm("status").stdout
    assert rows(vsm)["plain"]["zygote"] is True


def test_stop_and_start_leave_nothing(vsm: Running) -> None:
    before = below(vsm, "loop")
    assert before
    assert vsm.vsm("stop", "loop").returncode == 0
    wait_until(vsm, lambda seen: seen["loop"]["state"] == "stopped")
    assert not any(os.path.exists(f"/proc/{pid}") for pid in before)
    assert vsm.vsm("start", "loop").returncode == 0
    wait_until(vsm, lambda seen: seen["loop"]["state"] == "ready")


@pytest.mark.parametrize("tier", ["namespaced", "landlocked"])
def test_an_ordinary_user_has_zygotes_in_either_tier(
    scratch: Path, tier: str, require: Callable[[str, bool, str], None]
) -> None:
    uid = NOBODY if os.geteuid() == 0 else os.geteuid()

    async def scenario(it: Sessions) -> None:
        keeper, client = await it.open(), await it.open()
        for name in FIT:
            kept = await told(it, keeper, name, text="kept")
            seen = await told(it, client, name, "child")
            assert kept["served"] == seen["served"], "they were one process before"
            assert kept["pid"] != seen["pid"]
            assert kept["random"] != seen["random"]
        forks = {row["pid"] for name in FIT for row in it.instances(name).values()}
        owners = {os.stat(f"/proc/{pid}").st_uid for pid in forks}
        assert owners == {uid}
        left = {pid for name in FIT for pid in below(it.vsm, name)}
        await client.close()
        await it.wait(lambda: sum(os.path.exists(f"/proc/{pid}") for pid in left) <= len(left) - 4)
        for name in FIT:
            assert (await told(it, keeper, name, text="on"))["notes"] == ["kept", "on"]

    with folder_of(uid, scratch) as folder:
        who = ordinary_user(folder, require)
        if tier == "landlocked":
            who = without_namespaces(who)
        server = shutil.copy(SERVER, folder)
        config = folder / "vsm.toml"
        config.write_text(
            "\n".join(
                f"[integrations.{mode}]\n"
                f"command = {json.dumps(['/usr/bin/python3', str(server), mode])}\n{TERMS}\n"
                for mode in (*FIT, "thread")
            ),
            encoding="utf-8",
        )
        one = Started(folder, config, who=who)
        one.wait_log("vsm: ready")
        seen = wait_until(one, lambda rows: all(rows[mode]["state"] == "ready" for mode in FIT))
        require("the namespaced tier", seen["plain"]["tier"] == tier, "this user has the other")
        play(one, scenario)
        seen = wait_until(one, lambda found: found["thread"]["state"] == "quarantined")
        assert UNFIT["thread"] in seen["thread"]["detail"]
        zygote = rows(one)["plain"]["pid"]
        before = below(one, "plain")
        os.kill(zygote, signal.SIGKILL)
        wait_until(
            one,
            lambda found: found["plain"]["state"] == "ready" and found["plain"]["pid"] != zygote,
        )
        assert not any(os.path.exists(f"/proc/{pid}") for pid in before)
        assert one.end() == 0, one.log()
        assert left_of(one) == []


SDK_SERVERS = {
    "time": (["time/bin/python", "-m", "mcp_server_time"], "get_current_time", {"timezone": "UTC"}),
    "git": (["git/bin/mcp-server-git"], "git_status", {"repo_path": "/nowhere"}),
}


@pytest.mark.skipif(not (DEMO / "servers/git").is_dir(), reason="scripts/prepare --demo brings it")
def test_servers_of_the_sdk_are_forked_unmodified(tmp_path: Path) -> None:
    tables = [
        f"[integrations.{name}]\ncommand = {json.dumps([str(DEMO / 'servers' / program), *words])}"
        f'\nprofile = "python-server"\nstart_timeout_s = 120\n{TERMS}\n'
        for name, ((program, *words), _, _) in SDK_SERVERS.items()
    ]
    config = tmp_path / "vsm.toml"
    config.write_text("\n".join(tables), encoding="utf-8")

    async def scenario(it: Sessions) -> None:
        for name, (_, tool, arguments) in SDK_SERVERS.items():
            clients = [await it.open(), await it.open()]
            answers = [await it.call(c, f"{name}__{tool}", **arguments) for c in clients]
            assert all("content" in answer["result"] for answer in answers), answers
            assert len({row["pid"] for row in it.instances(name).values()}) >= 2

    with running(config) as vsm:
        end = time.monotonic() + 120.0
        while any(rows(vsm)[name]["state"] != "ready" for name in SDK_SERVERS):
            assert time.monotonic() < end, vsm.log()
            pause(0.2)
        play(vsm, scenario)
        assert vsm.stop() == 0, vsm.log()
        assert left_of(vsm) == []
