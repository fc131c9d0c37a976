"""Attacks that a second reader thought of: each succeeded once, or had to be tried to be sure.

A hostile server that wants to outlive vsm or to widen its grants, another user of the machine,
and deaths at the worst moment. Everything is done to what the tests made.
"""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from confined_worlds import (
    BOUND_S,
    IS_ROOT,
    NOBODY,
    WORLDS,
    as_user,
    host,
    plan_for,
    profile,
    read_all,
    run_confined,
)

from vsm.configuration.config import Config, Integration
from vsm.confinement import scratch, uids
from vsm.confinement.cgroup import CgroupFacts, Cgroups
from vsm.confinement.operations import ShieldMiniInit
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.confinement.root_operations import open_parent
from vsm.errors import ConfigurationError, ConfinementError
from vsm.library.values import UnfitError, receive_value
from vsm.linux import pidfd, prctl
from vsm.processes import launcher_link
from vsm.processes.launch import LauncherLink, LaunchError, spawn_confined, wait_confined
from vsm.supervision import provision

pytestmark = pytest.mark.isolation
PYTHON = ["/usr/bin/python3", "-SI", "-c"]
LANDLOCKED = [who for who, tier in WORLDS if tier == "landlocked"]
SCOPE_ABI = 6
VSM_RUN = [sys.executable, "-m", "vsm", "sandbox", "run", "--tier", "landlocked", "--"]

# -- a server and its mini-init --------------------------------------------------------------------

SIGNAL_PARENT = """
import os, signal
for signo in (signal.SIGSTOP, signal.SIGKILL):
    try:
        os.kill(os.getppid(), signo)
        print("sent")
    except PermissionError:
        print("refused")
"""


@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_server_cannot_stop_or_kill_its_mini_init(who: str, tier: str, require: Any) -> None:
    require("signal scopes", host(who).landlock_abi >= SCOPE_ABI, "Landlock ABI below 6")
    answer = run_confined(who, tier, [*PYTHON, SIGNAL_PARENT])
    # Pid 1 of a namespace ignores what is sent from inside; elsewhere it is out of reach.
    expected = "sent" if tier == "namespaced" else "refused"
    assert answer["output"].split() == [expected] * 2
    assert (answer["status"], answer["cause"]) == (0, "server")


@pytest.mark.parametrize("who", LANDLOCKED)
def test_server_without_the_shield_kills_its_mini_init(who: str, require: Any) -> None:
    require("signal scopes", host(who).landlock_abi >= SCOPE_ABI, "Landlock ABI below 6")
    answer = run_confined(who, "landlocked", [*PYTHON, SIGNAL_PARENT], without=ShieldMiniInit)
    assert "refused" not in answer["output"]
    assert answer["cause"] == "mini-init"


SIGNAL_OWN = """
import os, signal, subprocess, time
child = subprocess.Popen(["/bin/sleep", "100"])
os.kill(child.pid, signal.SIGTERM)
print(child.wait())
"""


@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_server_still_signals_its_own_processes(who: str, tier: str) -> None:
    assert run_confined(who, tier, [*PYTHON, SIGNAL_OWN])["output"] == "-15\n"


@pytest.mark.parametrize("tty", [False, True])
def test_server_cannot_signal_the_process_group_that_a_terminal_shares(
    tty: bool, require: Any
) -> None:
    require("user namespaces", host("user").tier == "namespaced", "none for this user")
    older = msgspec.structs.replace(host("user"), landlock_abi=0)  # before it knew signals
    chosen = msgspec.structs.replace(profile(), may_lack=profile().may_lack | {"landlock"})
    argv = ["/bin/sh", "-c", "kill -9 0 2>/dev/null; echo alive"]

    def attack() -> str:
        os.setpgid(0, 0)  # a shell's job, which a pipeline shares with vsm
        request = WorkerRequest(name="test", argv=tuple(argv), tier="namespaced", tty=tty)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        plan = compile_plan(chosen, request, older)
        spawned = spawn_confined(plan, null, writer, null, tty=tty)
        os.close(writer)
        wait_confined(spawned, BOUND_S)
        return read_all(reader).decode()

    # In a group of its own it may, and is gone then.
    assert as_user("user", attack) == ("alive\n" if tty else "")


# Chains of processes of which each forks the next and ends: no pid lives long. Ends by itself.
RUNNING_AWAY = """
import os, time
end = time.monotonic() + 60
for _ in range(6):
    if os.fork() == 0:
        os.write(1, b".")
        while time.monotonic() < end:
            if os.fork():
                os._exit(0)
        os._exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize("who", LANDLOCKED)
def test_tree_that_forks_as_fast_as_it_can_is_killed(who: str) -> None:
    host(who)

    def attack() -> float:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        plan = plan_for(who, "landlocked", [*PYTHON, RUNNING_AWAY])
        spawned = spawn_confined(plan, null, writer, null)
        os.close(writer)
        for _ in range(6):
            assert os.read(reader, 1)
        began = time.monotonic()
        os.kill(spawned.pid, signal.SIGKILL)
        wait_confined(spawned, BOUND_S)
        read_all(reader)  # ends when the last process with the other end is gone
        return time.monotonic() - began

    assert as_user(who, attack) < BOUND_S / 2


# -- private directories ---------------------------------------------------------------------------

DEEP = """
import os
for n in range(1200):
    os.mkdir("deeper"); open("file", "w").close(); os.chdir("deeper")
os.mkdir("closed"); os.chmod("closed", 0)
"""


@pytest.mark.parametrize("who", LANDLOCKED)
def test_private_directory_goes_however_deep_it_is(who: str) -> None:
    answer = run_confined(who, "landlocked", [*PYTHON, DEEP])
    assert (answer["status"], answer["left"]) == (0, False)


def test_removal_stops_when_its_time_is_up_and_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    for number in range(50):
        (folder / str(number)).touch()
    assert not scratch.remove(str(folder), budget_s=0.0)
    assert folder.exists()
    assert scratch.remove(str(folder))
    assert not folder.exists()


def test_removal_follows_no_link_put_in_a_directorys_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o750)
    (victim / "kept").touch()
    folder = tmp_path / "private"
    (folder / "swapped").mkdir(parents=True)
    unlink = os.unlink

    def swap_then_unlink(name: str, *, dir_fd: int) -> None:
        try:
            unlink(name, dir_fd=dir_fd)
        except IsADirectoryError:
            os.rename("swapped", "aside", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            os.symlink(victim, "swapped", dir_fd=dir_fd)
            monkeypatch.setattr(os, "unlink", unlink)
            raise

    monkeypatch.setattr(os, "unlink", swap_then_unlink)
    scratch.remove(str(folder))
    assert (victim / "kept").exists()
    assert victim.stat().st_mode & 0o777 == 0o750
    assert not folder.exists()


@contextmanager
def _maker() -> Iterator[str]:
    """A private directory whose maker lives: until it is dead, no other vsm sweeps it."""
    code = (
        "from vsm.confinement import scratch; "
        "p = scratch.path_for('x'); scratch.make(p, 0); print(p, flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as maker:  # type: ignore[call-overload]
        path = maker.stdout.readline().strip()
        (Path(path) / "below").mkdir()
        yield path
        maker.communicate("\n")


def test_what_a_killed_run_left_is_swept_and_nothing_else() -> None:
    living = scratch.path_for("living")
    scratch.make(living, os.geteuid())
    with _maker() as dead, _maker() as foreign:
        link = f"{dead[:-16]}{'0' * 16}"
        os.symlink(living, link)
        if IS_ROOT:
            os.chown(foreign, NOBODY, NOBODY)  # another user may choose such a name
    try:
        scratch.sweep(lambda uid: uid == os.geteuid())
        assert not Path(dead).exists()
        assert Path(living).exists()
        assert Path(link).is_symlink()
        assert Path(foreign).exists() == IS_ROOT
    finally:
        os.unlink(link)
        for path in (living, foreign):
            scratch.remove(path)


def test_uids_of_workers_are_known_and_people_are_not_among_them() -> None:
    if not IS_ROOT:
        assert uids.may_be_workers(os.geteuid())
        return
    assert uids.may_be_workers(uids.integration_uids(["echo"])["echo"])
    assert not any(uids.may_be_workers(uid) for uid in (0, 1000, NOBODY, 0x8000_0000))


def test_two_vsm_share_no_uid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of one uid count against one RLIMIT_NPROC, and ownership keeps none apart."""
    command = ("/bin/true",)
    config = Config(
        integrations={name: Integration(name=name, command=command) for name in ("x", "y")}
    )
    found = []
    for place in ("one", "two"):
        monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / place))
        found.append(provision.integration_uids(config))
        found.append(provision.system_uids(found[-1]))
    every = [uid for numbers in found for uid in numbers.values()]
    assert len(set(every)) == len(every) == 2 * (2 + 6)
    if not IS_ROOT:
        return
    own = tmp_path / "two" / "integrations" / "x"  # it has files of an earlier uid
    own.mkdir(parents=True)
    os.chown(own, found[0]["x"], found[0]["x"])
    assert provision.integration_uids(config) == {"x": found[0]["x"], "y": found[2]["y"]}


# -- grants that somebody else decides -------------------------------------------------------------


@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_link_in_a_writable_folder_does_not_widen_a_grant(
    who: str, tier: str, tmp_path: Path
) -> None:
    secret, data = tmp_path / "secret", tmp_path / "data"
    secret.mkdir()
    data.mkdir()
    (data / "docs").symlink_to(secret)  # the worker has replaced the folder; now it starts again
    _open_up(tmp_path)
    for grants in (
        {"read": (str(data / "docs"),), "write": (str(data),)},
        {"read": (str(data / "docs"),), "written": (str(data),)},
        {"write": (str(data / "docs"), str(data))},
    ):
        with pytest.raises(ConfinementError, match="symbolic link"):
            plan_for(who, tier, ["/bin/true"], **grants)


@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_link_that_appears_after_the_plan_was_made_is_refused(
    who: str, tier: str, tmp_path: Path
) -> None:
    docs, secret = tmp_path / "docs", tmp_path / "secret"
    docs.mkdir()
    secret.mkdir()
    _open_up(tmp_path)
    host(who)

    def attack() -> str:
        plan = plan_for(who, tier, ["/bin/true"], read=(str(docs),))
        docs.rmdir()
        docs.symlink_to(secret)
        try:
            spawn_confined(plan, 0, 1, 2)
        except ConfinementError as error:
            return f"{error.layer}: {error.what}"
        return "started"

    layer = "root_filesystem" if tier == "namespaced" else "landlock"
    answer = as_user(who, attack)
    assert answer.startswith(layer)
    assert "symbolic links" in answer


CHANGE = """
cd "$1"; exec 2>&1
echo evil > .git/config || echo refused
mv .git elsewhere || echo refused
mv deep elsewhere || echo refused
mv deep/er elsewhere || echo refused
echo evil > inner/kept || echo refused
echo new > deep/er/own && cat deep/er/own
"""


@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_what_is_to_be_read_stays_as_it_is_within_what_may_be_written(
    who: str, tier: str, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in (".git", "deep/er/est", "inner")]
    files = [folder / name for folder, name in zip(folders, ("config", "er", "kept"), strict=True)]
    for folder, file in zip(folders, files, strict=True):
        folder.mkdir(parents=True)
        file.write_text("ours")
    _open_up(tmp_path)
    for path in (*tmp_path.rglob("*"), tmp_path):
        path.chmod(0o777)
    read = (*map(str, folders[:2]), str(files[2]), str(tmp_path.parent))
    command = ["/bin/sh", "-c", CHANGE, "sh", str(tmp_path)]
    grants = {"read": read, "kept": read, "write": (str(tmp_path),)}
    if tier == "landlocked":
        with pytest.raises(ConfinementError, match="is to be read-only, but lies in"):
            plan_for(who, tier, command, **grants)
        return
    output = run_confined(who, tier, command, **grants)["output"]
    assert output.count("refused\n") == 5
    assert output.endswith("\nnew\n")
    assert [file.read_text() for file in files] == ["ours"] * 3


def _open_up(folder: Path) -> None:
    """An ordinary user gets here, and may replace what is in it."""
    for above in (folder, *folder.parents):
        if above.stat().st_uid == os.geteuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o011)
    folder.chmod(0o777)


def test_command_that_a_server_may_rewrite_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "project" / "server.py"
    script.parent.mkdir()
    script.write_text("#!/usr/bin/python3\n")
    script.chmod(0o755)
    world = provision.Host(facts=host(LANDLOCKED[0]), cgroups=Cgroups(CgroupFacts()))
    uid = uids.integration_uids(["x"])["x"] if IS_ROOT else None
    for own, others in (((str(tmp_path),), ()), ((), (str(tmp_path / "project"),))):
        config = Config(
            integrations={
                "x": Integration(name="x", command=(str(script),), write=own),
                "y": Integration(name="y", command=("/bin/true",), write=others),
            }
        )
        world.written = provision.written_paths(config)
        with pytest.raises(ConfigurationError, match="which a server may write"):
            provision.check(world, config.integrations["x"], uid)


@pytest.mark.parametrize("by", ["profile", "state"])
def test_link_where_another_servers_profile_or_state_lets_it_write_is_refused(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    shared = tmp_path / ("shared" if by == "profile" else "state/integrations/y")
    shared.mkdir(parents=True)
    (shared / "out").symlink_to("/var")
    profile = tmp_path / "writer.toml"
    profile.write_text(f'extends = "integration"\n[files]\nwrite = ["{tmp_path}/shared"]\n')
    config = Config(
        integrations={
            "x": Integration(name="x", command=("/bin/true",), read=(str(shared / "out"),)),
            "y": Integration(
                name="y",
                command=("/bin/true",),
                profile=str(profile) if by == "profile" else "integration",
                state=by == "state",
            ),
        }
    )
    world = provision.Host(facts=host(LANDLOCKED[0]), cgroups=Cgroups(CgroupFacts()))
    world.written = provision.written_paths(config)
    uid = uids.integration_uids(["x"])["x"] if IS_ROOT else None
    with pytest.raises(ConfinementError, match="is a symbolic link in"):
        provision.check(world, config.integrations["x"], uid)


def test_link_in_a_root_being_built_leads_nowhere(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / "data").symlink_to(outside)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="openat2"):
            open_parent(fd, "/data/deeper/file")
    finally:
        os.close(fd)
    assert not list(outside.iterdir())


# -- pools of the whole host -----------------------------------------------------------------------

IO_SETUP = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(206 if os.uname().machine == "x86_64" else 0, 1, 1)
print(os.strerror(ctypes.get_errno()))
"""


@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_server_cannot_use_up_the_hosts_asynchronous_contexts(who: str, tier: str) -> None:
    control = subprocess.run([*PYTHON, IO_SETUP], check=True, capture_output=True, text=True)
    assert control.stdout == "Bad address\n"
    assert run_confined(who, tier, [*PYTHON, IO_SETUP])["output"] == "Operation not permitted\n"


CORE = """
import resource
print(resource.getrlimit(resource.RLIMIT_CORE))
for change in (resource.setrlimit, lambda kind, both: resource.prlimit(0, kind, both)):
    change(resource.RLIMIT_NOFILE, (20, 100))
    try:
        change(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        print("refused")
"""


@pytest.mark.parametrize(("who", "tier"), WORLDS)
def test_crash_never_reaches_the_hosts_core_helper(who: str, tier: str) -> None:
    """A core_pattern that is a pipe ignores every limit but 1: see core(5)."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard == 0 and who == "user":
        pytest.skip("only root raises a hard limit")
    assert run_confined(who, tier, [*PYTHON, CORE])["output"].splitlines() == [
        "(1, 1)",
        "refused",
        "refused",
    ]


# -- what is said ----------------------------------------------------------------------------------


@pytest.mark.skipif(not IS_ROOT, reason="only root can choose its groups")
@pytest.mark.parametrize("tier", ["namespaced", "landlocked"])
def test_groups_that_a_user_cannot_drop_are_reported(tier: str) -> None:
    host("user")

    def report() -> str:
        os.setgroups([4])
        os.setresgid(12345, 12345, 12345)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        prctl.allow_dumps()
        spawned = spawn_confined(plan_for("user", tier, ["/bin/true"]), 0, 1, 2)
        wait_confined(spawned, BOUND_S)
        return next(one["detail"] for one in spawned.layers if one["name"] == "privileges")

    assert "supplementary groups as the user's" in as_user("root", report)


def test_log_on_a_terminal_holds_nothing_that_a_terminal_obeys() -> None:
    code = (
        "from vsm import logs; logs.configure('console');"
        r"logs.logger().warning('restarting', reason='unfit:\x1b]0;title\x07\u202e\x9b2J')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    line = done.stderr.removesuffix("\n")
    assert "title" in line
    assert line.isprintable()


@pytest.mark.parametrize("head", ['{"kind": []}', '{"kind": "error", "denied": {}}', "[]", "1"])
def test_answer_of_any_shape_is_unfit_and_nothing_worse(head: str) -> None:
    worker, program = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with worker, program:
        worker.send(head.encode())
        with pytest.raises(UnfitError):
            receive_value(program, 1 << 20)


# -- the launcher ----------------------------------------------------------------------------------


def test_stopped_launcher_is_killed_when_it_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    who = "root" if IS_ROOT else "user"
    monkeypatch.setattr(launcher_link, "_SPAWN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(launcher_link, "_ANSWER_TIMEOUT_S", 0.1)
    host(who)

    async def scene() -> None:
        lost = asyncio.Event()
        link = LauncherLink(lambda _name, _report: None, lost.set)
        await link.start()
        os.kill(link.pid, signal.SIGSTOP)
        plan = plan_for(who, "landlocked", ["/bin/true"])
        with pytest.raises(LaunchError, match="launcher died"):
            await asyncio.wait_for(link.spawn("one", plan, 0, 1, 2), BOUND_S)
        await asyncio.wait_for(lost.wait(), BOUND_S)

    asyncio.run(scene())


def test_supervisor_without_a_free_descriptor_fails_one_start_and_leaks_nothing() -> None:
    who = "root" if IS_ROOT else "user"
    host(who)

    async def scene() -> None:
        ended = asyncio.get_running_loop().create_future()
        link = LauncherLink(lambda _name, report: ended.set_result(report))
        await link.start()
        plan = plan_for(who, "landlocked", ["/bin/true"])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = len(os.listdir("/proc/self/fd"))
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        try:
            free = _fill_descriptors(2)
            with pytest.raises(OSError, match="Too many open files"):
                await link.spawn("one", plan, 0, 1, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in free:
                os.close(fd)
        assert len(os.listdir("/proc/self/fd")) == before
        spawned = await link.spawn("one", plan, 0, 1, 2)
        assert (await asyncio.wait_for(ended, BOUND_S)).status == 0
        os.close(spawned.pidfd)
        await link.close()

    asyncio.run(scene())


def _fill_descriptors(left: int) -> list[int]:
    """Take every free descriptor but some."""
    taken: list[int] = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError:
            break
    for _ in range(min(left, len(taken))):
        os.close(taken.pop())
    return taken


@pytest.mark.skipif(not IS_ROOT, reason="an ordinary user's interpreter may be out of its reach")
def test_killed_command_line_leaves_no_process_and_its_folder_until_the_next() -> None:
    attack = "kill -STOP $PPID; kill -KILL $PPID; setsid sleep 300 & echo up; exec sleep 300"
    victim = subprocess.Popen(
        [*VSM_RUN, "/bin/sh", "-c", attack], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert victim.stdout
    assert victim.stdout.readline() == b"up\n"
    (folder,) = Path(scratch.FOLDER).glob(f"vsm-{victim.pid}-*")
    victim.kill()
    victim.wait(BOUND_S)
    assert victim.stdout.read() == b""  # the last process that had the other end is gone
    victim.stdout.close()
    subprocess.run([*VSM_RUN, "/bin/true"], check=True)
    assert not folder.exists()


KILLED_UNHEARD = """
import select, sys
from vsm import cli
from vsm.processes import mini_init
say = mini_init._report
def say_when_nobody_listens(event, content):
    poll = select.poll()
    poll.register(mini_init.STATUS_FD, 0)
    poll.poll()  # POLLERR: the reading end is closed, the command line is dead
    say(event, content)
mini_init._report = say_when_nobody_listens
cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(not IS_ROOT, reason="an ordinary user's interpreter may be out of its reach")
def test_command_line_killed_before_it_hears_of_the_start_leaves_no_process() -> None:
    """The mini-init then finds nobody to tell; it once ended at that, and left its server."""
    server = "setsid sleep 300 & echo $$ $!; exec sleep 300"
    run = ["sandbox", "run", "--tier", "landlocked", "--", "/bin/sh", "-c", server]
    victim = subprocess.Popen(
        [sys.executable, "-c", KILLED_UNHEARD, *run],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert victim.stdout
    pids = [int(word) for word in victim.stdout.readline().split()]
    assert len(pids) == 2
    sentinels = [pidfd.open_pidfd(pid) for pid in pids]
    victim.kill()
    victim.wait(BOUND_S)
    victim.stdout.close()
    deadline = time.monotonic() + BOUND_S
    outlived = [fd for fd in sentinels if not pidfd.wait(fd, max(0, deadline - time.monotonic()))]
    for fd in outlived:
        pidfd.send_signal(fd, signal.SIGKILL)
    for fd in sentinels:
        os.close(fd)
    subprocess.run([*VSM_RUN, "/bin/true"], check=True)  # sweeps the private directory
    assert not outlived
