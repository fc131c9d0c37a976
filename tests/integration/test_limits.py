"""Limits beside those of control groups: each holds or is noticed, and a control goes on."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from confined_worlds import IS_ROOT, ChildFailedError, host, run_confined
from running import VSM, Running, running
from supervised import Row, all_ready, ask, call, rows, wait_until, write_config

from vsm.configuration.profile import load_profile

WORLDS = [("root" if IS_ROOT else "user", tier) for tier in ("namespaced", "landlocked")]
PROFILE = 'extends = "integration"\n[limits]\n{}\n'
DISK = 'disk = "32M"\ndisk_files = 1000'
MEMORY = 'memory = "64M"'
# Forks, so that the whole tree has to go; ignores what it can.
STAYS = "trap '' TERM INT HUP; sleep 1000 & echo begun; wait; wait"


@pytest.mark.isolation
@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_wall_time_ends_the_whole_tree_and_nothing_shorter(
    who: str, tier: str, tmp_path: Path, require: Callable[[str, bool, str], None]
) -> None:
    require("the tier", host(who).tier in {"namespaced", tier}, "no namespaces")
    path = tmp_path / "short.toml"
    path.write_text(PROFILE.format("wall_time_s = 1"), encoding="utf-8")
    short = load_profile(str(path))
    ended = run_confined(who, tier, ["/bin/sh", "-c", STAYS], profile=short)
    assert (ended["output"], ended["status"], ended["signal"]) == ("begun\n", None, 9)
    quick = run_confined(who, tier, ["/bin/sh", "-c", "echo done"], profile=short)
    assert (quick["output"], quick["status"]) == ("done\n", 0)


@pytest.mark.parametrize(
    ("limits", "code", "status", "says"),
    [
        ("wall_time_s = 1", "import time; time.sleep(60)", 137, "wall time of 1 s was over"),
        (MEMORY, "b = bytearray(200 << 20)", 137, "out of memory, peak 64 MiB of 64 MiB"),
        (MEMORY, "b = bytearray(20 << 20)", 0, "exited with status 0"),
        ('memory = "64K"', "", 1, "did not start in time: out of memory, peak 0 MiB of 0 MiB"),
    ],
)
def test_a_command_in_a_sandbox_says_which_limit_ended_it(
    tmp_path: Path,
    require: Callable[[str, bool, str], None],
    *,
    limits: str,
    code: str,
    status: int,
    says: str,
) -> None:
    require("a memory control group", host(WORLDS[0][0]).cgroup.memory, "none here")
    path = tmp_path / "small.toml"
    path.write_text(PROFILE.format(limits), encoding="utf-8")
    words = [VSM, "sandbox", "run", "-v", "--profile", str(path), "--"]
    command = [*words, "/usr/bin/python3", "-SIc", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert says in done.stderr


@pytest.mark.isolation
@pytest.mark.parametrize(("limit", "ended"), [("1", 9), ('"unlimited"', None)])
def test_cpu_time_is_over_for_a_process_that_has_one(
    tmp_path: Path, limit: str, ended: int | None
) -> None:
    path = tmp_path / "busy.toml"
    path.write_text(PROFILE.format(f"cpu_time_s = {limit}"), encoding="utf-8")
    who, spin = WORLDS[0][0], "import time\nwhile time.process_time() < 2.5: pass"
    busy = ["/usr/bin/python3", "-SIc", spin]
    result = run_confined(who, "landlocked", busy, profile=load_profile(str(path)))
    assert result["signal"] == ended, result


@pytest.mark.isolation
@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_files_of_the_private_tmp_are_bounded_where_it_is_in_memory(
    who: str, tier: str, tmp_path: Path, require: Callable[[str, bool, str], None]
) -> None:
    require("the tier", host(who).tier in {"namespaced", tier}, "no namespaces")
    path = tmp_path / "small.toml"
    path.write_text(PROFILE.format("") + '[files]\ntmp = "1M"\n', encoding="utf-8")
    make = "import os\nfor n in range(1100): open(f'{os.environ[\"TMPDIR\"]}/{n}', 'w').close()"
    many = ["/usr/bin/python3", "-SIc", make]
    result = run_confined(who, tier, many, profile=load_profile(str(path)))
    assert ("No space left" in result["output"]) == (tier == "namespaced"), result


@pytest.mark.isolation
def test_a_rate_that_nothing_holds_stops_the_worker_unless_its_profile_may_lack_it(
    tmp_path: Path,
) -> None:
    """Here in no control group at all."""
    who = "root" if IS_ROOT else "user"
    path = tmp_path / "slow.toml"
    path.write_text(PROFILE.format('io_read = "1M"'), encoding="utf-8")
    with pytest.raises(ChildFailedError, match=r"the layer io cannot be applied: 1M/s read"):
        run_confined(who, "landlocked", ["/bin/true"], profile=load_profile(str(path)))
    path.write_text('may_lack = ["io"]\n' + PROFILE.format('io_read = "1M"'), encoding="utf-8")
    ended = run_confined(who, "landlocked", ["/bin/true"], profile=load_profile(str(path)))
    assert (ended["status"], ended["layers"]["io"]) == (0, "absent")


@pytest.fixture(scope="module")
def vsm(
    session_leaves_nothing: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    del session_leaves_nothing
    folder = tmp_path_factory.mktemp("limits")
    for name, limits in (("disk", DISK), ("memory", MEMORY), ("wall", "wall_time_s = 3")):
        (folder / f"{name}.toml").write_text(PROFILE.format(limits), encoding="utf-8")
    config = write_config(
        folder,
        full='well;state = true\nprofile = "./disk.toml"',
        free="well;state = true",
        hungry='well;profile = "./memory.toml"',
        slow="well;state = true",
        brief='well;profile = "./wall.toml"',
    )
    with running(config) as one:
        wait_until(one, all_but_the_brief_ready)
        yield one
        assert one.stop() == 0


def all_but_the_brief_ready(seen: dict[str, Row]) -> bool:
    """Its time may be over before the others have started."""
    return all_ready({name: row for name, row in seen.items() if name != "brief"})


def held(vsm: Running, name: str) -> dict[str, dict[str, str]]:
    return {row["key"]: row for row in ask(vsm, "limit", name=name, limits={})["held"]}


def test_every_limit_says_what_holds_it(vsm: Running) -> None:
    seen = held(vsm, "full")
    assert {key: seen[key]["state"] for key in ("open_files", "file_size", "disk")} == {
        "open_files": "in force",
        "file_size": "in force",
        "disk": "detected",
    }
    assert seen["disk"]["value"] == "32M"
    assert seen["wall_time_s"]["state"] == seen["cpu_time_s"]["state"] == "not required"
    layers = {layer["name"]: layer for layer in rows(vsm)["full"]["layers"]}
    for key in ("memory", "processes", "cpu"):
        by_cgroup = "by cgroup" in layers[key]["detail"]
        assert seen[key]["mechanism"].startswith("cgroup") == by_cgroup, seen[key]
        assert (seen[key]["state"] == "in force") == (layers[key]["state"] == "in force")
    if rows(vsm)["full"]["tier"] == "namespaced":
        assert seen["files.tmp"] | {"detail": ""} == {
            "key": "files.tmp", "value": "64M", "mechanism": "tmpfs", "state": "in force",
            "detail": "",
        }  # fmt: skip
    printed = vsm.vsm("limit", "full").stdout
    assert "disk_files" in printed
    assert "detection" in printed
    assert "LIMIT" in vsm.vsm("status", "full").stdout


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("fill-48", "MiB of 32 MiB"),
        ("removed", "MiB of 32 MiB"),
        ("many-files", "of 1000"),
    ],
)
def test_too_much_on_the_disk_is_noticed_and_the_worker_killed(
    vsm: Running, mode: str, says: str
) -> None:
    before = wait_until(vsm, lambda seen: seen["full"]["state"] == "ready")["full"]
    call(vsm, "full", "act", mode=mode)
    seen = wait_until(vsm, lambda seen: seen["full"]["restarts"] > before["restarts"])
    assert "killed: too much on the disk, found" in vsm.log()
    assert says in vsm.log().rpartition("killed: too much on the disk")[2]
    assert seen["free"]["restarts"] == 0
    # What it wrote stays, so it is killed again until somebody makes room or lifts the limit.
    ask(vsm, "limit", name="full", limits={"disk": "unlimited", "disk_files": "unlimited"})
    ask(vsm, "restart", name="full")
    wait_until(vsm, lambda seen: seen["full"]["state"] == "ready")
    assert "emptied" in call(vsm, "full", "act", mode="empty-again")
    answer = ask(vsm, "limit", name="full", limits={"disk": "32M", "disk_files": 1000})
    assert {row["state"] for row in answer["limits"]} == {"in force"}


@pytest.mark.parametrize(("name", "mode"), [("full", "fill-24"), ("free", "fill-48")])
def test_what_is_within_the_limit_stays(vsm: Running, name: str, mode: str) -> None:
    before = wait_until(vsm, lambda seen: seen[name]["state"] == "ready")[name]
    assert "MiB" in call(vsm, name, "act", mode=mode)
    assert "emptied" in call(vsm, name, "act", mode="empty-again")
    assert rows(vsm)[name]["pid"] == before["pid"]


def test_rates_of_reading_move_under_a_running_worker(
    vsm: Running, require: Callable[[str, bool, str], None]
) -> None:
    before = wait_until(vsm, lambda seen: seen["slow"]["state"] == "ready")["slow"]
    require("an io control group", host(WORLDS[0][0]).cgroup.io, "none here")
    if not os.major(os.stat(vsm.folder).st_dev):  # tmpfs reads past its cache, too, since 6.6
        pytest.skip("the state directory is on no block device, whose rates could be seen")
    free_s = seconds_of_reading(vsm)
    answer = ask(vsm, "limit", name="slow", limits={"io_read": "1M"})
    assert answer["limits"][0]["state"] == "in force"
    assert held(vsm, "slow")["io_read"]["state"] == "in force"
    assert seconds_of_reading(vsm) > max(1.0, free_s)  # 3 MiB; a throttle cannot be too fast
    ask(vsm, "limit", name="slow", limits={"io_read": "unlimited"})
    assert held(vsm, "slow")["io_read"]["state"] == "not required"
    assert rows(vsm)["slow"]["pid"] == before["pid"]


def seconds_of_reading(vsm: Running) -> float:
    said = re.search(r"3145728 bytes in ([0-9.]+) s", call(vsm, "slow", "act", mode="read-disk"))
    if said is None:
        pytest.skip("the state directory is on no disk that can be read past its cache")
    return float(said[1])


def test_out_of_memory_is_said_with_the_peak(
    vsm: Running, require: Callable[[str, bool, str], None]
) -> None:
    seen = held(vsm, "hungry")
    require("a memory control group", seen["memory"]["state"] == "in force", "none here")
    call(vsm, "hungry", "act", mode="memory")
    wait_until(vsm, lambda seen: seen["hungry"]["restarts"] == 1)
    assert "killed: out of memory, peak 64 MiB of 64 MiB" in vsm.log()
    done = vsm.vsm("events", "--kind", "worker.out_of_memory", "--worker", "hungry", "--json")
    assert "peak 64 MiB" in done.stdout


def test_wall_time_of_a_server_is_said_and_it_starts_again(vsm: Running) -> None:
    wait_until(vsm, lambda seen: seen["brief"]["restarts"] >= 1)
    assert "killed: its wall time of 3 s was over" in vsm.log()
    assert held(vsm, "free")["wall_time_s"]["state"] == "not required"
    assert rows(vsm)["free"]["restarts"] == 0
