"""Control groups really hold processes; what a dead run left is swept, a living one's is not."""

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vsm.confinement.cgroup import CgroupFacts, CgroupLimits, Cgroups, Group, detect
from vsm.confinement.cgroup_files import read_words
from vsm.linux.pidfd import kill_members
from vsm.processes.remains import GROUPS, Remains

Require = Callable[[str, bool, str], None]
LIMITS = CgroupLimits(memory_bytes=48 << 20, swap_bytes=0, processes=8, cpu_cores=0.5)


@pytest.fixture(scope="module")
def facts() -> CgroupFacts:
    return detect()


@pytest.fixture
def group(facts: CgroupFacts, require: Require) -> Iterator[Group]:
    require("control groups", facts.kind in {"v1", "v2"}, facts.reason)
    cgroups = Cgroups(facts)
    yield cgroups.create("worker", LIMITS)
    cgroups.close()


def inside(group: Group, code: str) -> subprocess.Popen[str]:
    """Python that joins the group before it runs `code`."""
    join = "".join(f"open({path!r}, 'w').write('0');" for path in group.procs)
    return subprocess.Popen(
        [sys.executable, "-SI", "-c", f"{join}\n{code}"], stdout=subprocess.PIPE, text=True
    )


def test_limits_are_what_the_kernel_reports(group: Group) -> None:
    assert group.limits() == LIMITS


def test_limits_change_on_a_running_group(group: Group) -> None:
    smaller = CgroupLimits(memory_bytes=24 << 20, swap_bytes=0, processes=4, cpu_cores=0.25)
    group.set_limits(smaller)
    assert group.limits() == smaller
    group.set_limits(LIMITS)
    assert group.limits() == LIMITS
    group.set_limits(CgroupLimits())
    lifted = group.limits()
    assert (lifted.memory_bytes, lifted.processes, lifted.cpu_cores) == (None, None, None)


def test_memory_above_the_limit_is_killed_and_counted(
    facts: CgroupFacts, group: Group, require: Callable[[str, bool, str], None]
) -> None:
    require("a memory limit", facts.memory, facts.reason)
    with inside(group, "block = bytearray(200 << 20)") as process:
        assert process.wait(30) == -signal.SIGKILL
    usage = group.usage()
    assert usage.oom_kills is not None
    assert usage.oom_kills >= 1
    assert usage.memory_peak_bytes is not None
    assert 24 << 20 < usage.memory_peak_bytes <= 48 << 20
    assert usage.cpu_s is None or usage.cpu_s > 0


def test_kill_ends_a_tree_that_left_its_session_and_keeps_forking(group: Group) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.setsid()\n"
        "print('READY', flush=True)\n"
        "while True:\n"
        "    try:\n"
        "        os.fork()\n"
        "    except OSError:\n"
        "        signal.sigtimedwait([], 0.01)\n"
    )
    with inside(group, code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        group.kill()
        assert group.pids() == set()
        assert process.wait(30) == -signal.SIGKILL
    assert group.try_remove()
    assert not any(Path(path).exists() for path in group.paths)


def test_frozen_processes_do_not_run(
    facts: CgroupFacts, group: Group, require: Callable[[str, bool, str], None]
) -> None:
    require("a freezer", facts.freeze, facts.reason)
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b'HEARD\\n'))\n"
        "os.write(1, b'READY\\n')\n"
        "while True: signal.pause()\n"
    )
    process = inside(group, code)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        assert group.freeze()
        process.send_signal(signal.SIGUSR1)
        assert not select.select([process.stdout], [], [], 0.2)[0]
        assert group.thaw()
        assert process.stdout.readline() == "HEARD\n"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_remove_refuses_nothing_and_leaves_nothing(group: Group) -> None:
    with inside(group, "import signal; print('READY', flush=True); signal.pause()") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not group.try_remove()
        assert group.remove()
        assert process.wait(30) == -signal.SIGKILL


def test_group_that_a_killed_supervisor_left_frozen_is_thawed_and_removed(
    facts: CgroupFacts, group: Group, require: Require
) -> None:
    require("a freezer", facts.freeze, facts.reason)
    with inside(group, "print('up', flush=True); import signal; signal.pause()") as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        old = group.folders.get("freezer")
        assert old is None or (old / "freezer.state").write_text("FROZEN")
        assert old is not None or group.freeze()
        remains = Remains()
        folders = [str(folder) for folder in dict.fromkeys(group.folders.values())]
        remains.note({"kind": GROUPS, "folders": folders}, ())
        try:
            remains.remove()
            assert process.wait(30) == -signal.SIGKILL
        finally:
            if old is not None and old.exists():
                (old / "freezer.state").write_text("THAWED")
            group.thaw()
    assert not any(folder.exists() for folder in group.folders.values())


def test_groups_of_a_killed_run_are_swept_and_those_of_a_living_one_are_not(
    facts: CgroupFacts, group: Group
) -> None:
    code = (
        "import signal\n"
        "from vsm.confinement.cgroup import *\n"
        "group = Cgroups(detect()).create('left', CgroupLimits())\n"
        "import subprocess\n"
        "join = ''.join(f\"open({p!r}, 'w').write('0');\" for p in group.procs)\n"
        "join_group = lambda: exec(join)\n"
        "subprocess.Popen(['sleep', '600'], preexec_fn=join_group, start_new_session=True)\n"
        "print(group.paths[0], flush=True)\n"
        "signal.pause()\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    left = Path(owner.stdout.readline().strip())
    run = left.parent.name
    cgroups = Cgroups(facts)
    assert run not in cgroups.sweep()
    assert left.exists()
    (sleeper,) = map(int, (left / "cgroup.procs").read_text().split())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    swept_by(cgroups, left.parent)
    os.waitpid(sleeper, 0)  # ours to reap: the tests are a subreaper
    assert all(Path(path).exists() for path in group.paths)


def swept_by(cgroups: Cgroups, run: Path) -> None:
    """Another vsm of this host, which starts meanwhile, may be first: then it does the rest."""
    mine, end = run.name in cgroups.sweep(), time.monotonic() + 30
    while run.exists():
        assert not mine
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_group_of_another_user_with_the_name_of_a_dead_run_is_left_alone(
    facts: CgroupFacts, require: Require
) -> None:
    """Whoever has a delegated subtree may make one; it is none of root's business."""
    require("root", os.geteuid() == 0, "only root can give a group to another user")
    require("control groups", facts.kind in {"v1", "v2"}, facts.reason)
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    namespace = os.stat("/proc/self/ns/pid").st_ino
    run = f"vsm-{ended.pid}-1-{namespace}"
    group = Group(facts, f"{run}/theirs")
    group.make()
    folders = [path for own in map(Path, group.paths) for path in (own, own.parent)]
    for folder in folders:  # at once: any other vsm of root's would sweep it
        os.chown(folder, 65534, 65534)
    with inside(group, "print('up', flush=True); import signal; signal.pause()") as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "up\n"
            assert run not in Cgroups(facts).sweep()
            assert process.poll() is None
            for folder in folders:
                os.chown(folder, 0, 0)
            swept_by(Cgroups(facts), folders[-1])
            assert process.wait(30) == -signal.SIGKILL
        finally:
            process.kill()
            process.wait(30)
            group.remove()
            for folder in folders:
                if folder.exists():
                    folder.rmdir()


def test_a_number_that_is_no_members_any_more_is_not_killed() -> None:
    for is_member, signo in ((False, signal.SIGTERM), (True, signal.SIGKILL)):
        with subprocess.Popen(["/bin/sleep", "600"]) as process:
            members = {process.pid} if is_member else set()
            kill_members({process.pid, 1 << 30}, members.copy)
            process.terminate()  # after a SIGKILL it would be too late for this one
            assert process.wait(30) == -signo


def test_more_members_than_free_descriptors_are_all_killed(tmp_path: Path) -> None:
    list_of_them = tmp_path / "cgroup.procs"
    with contextlib.ExitStack() as started:
        sleeping = [
            started.enter_context(subprocess.Popen(["/bin/sleep", "600"])) for _ in range(40)
        ]
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            list_of_them.write_text(" ".join(str(process.pid) for process in sleeping))
            with list_of_them.open("rb") as file:  # the lowest number that is free
                resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 24, before[1]))
            kill_members(members_in(list_of_them), lambda: members_in(list_of_them))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for process in sleeping:
                process.terminate()  # after a SIGKILL it would be too late for these
        assert {process.wait(30) for process in sleeping} == {-signal.SIGKILL}


def members_in(file: Path) -> set[int]:
    return {int(word) for word in read_words(file)}


FAMILY = """
import os, pathlib, signal, sys
base = pathlib.Path(sys.argv[1])
(base / "cgroup.procs").write_text("0")
child = os.fork()
if child == 0:
    signal.pause()
sys.path.append(sys.argv[2])
from vsm.confinement.cgroup_files import give_back, move_family
move_family(base, base / "leaf")
names = ("cgroup.procs", "leaf/cgroup.procs")
members = {name: (base / name).read_text().split() for name in names}
give_back(base, base / "leaf")
back = (base / "cgroup.procs").read_text().split()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
assert sorted(back) == sorted([sys.argv[3], str(os.getpid()), str(child)]), back
assert not (base / "leaf").exists()
assert members["cgroup.procs"] == [sys.argv[3]], members
assert sorted(members["leaf/cgroup.procs"]) == sorted([str(os.getpid()), str(child)]), members
"""


def test_a_family_moves_into_a_leaf_and_back_and_leaves_strangers_alone(
    facts: CgroupFacts, require: Require
) -> None:
    require("a v2 mount", "unified" in facts.folders, facts.reason)
    name = f"vsm-family-{os.getpid()}"
    group = Group(facts, name, {"unified": Path(facts.folders["unified"], name)})
    group.folders["unified"].mkdir()
    leaf = group.folders["unified"] / "leaf"
    leaf.mkdir()
    with subprocess.Popen(["/bin/sleep", "1000"]) as stranger:
        try:
            (group.folders["unified"] / "cgroup.procs").write_text(str(stranger.pid))
            words = [str(group.folders["unified"]), str(Path(__file__).parents[2])]
            command = [sys.executable, "-c", FAMILY, *words, str(stranger.pid)]
            subprocess.run(command, check=True)
        finally:
            stranger.kill()
            stranger.wait()
            assert group.remove()
