"""`vsm sandbox audit` sees what is open: a layer taken away shows, whichever it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from vsm.audit import battery
from vsm.audit.battery import audit
from vsm.audit.result import Accepted, Result, compare
from vsm.commands.interrupt import end_in_order_on_sigterm
from vsm.configuration.profile import load_profile
from vsm.confinement import operations
from vsm.confinement.probe import HostFacts, layer_table

pytestmark = pytest.mark.isolation
ACCEPTED = Path(__file__).parent / "accepted.json"


@pytest.fixture(scope="module")
def host(arena: Any) -> HostFacts:
    if arena.user != "root":
        pytest.skip("in this process, so as root; scripts/isolation has both")
    arena.need("namespaced")
    arena.need("landlocked")
    return msgspec.convert(arena.host, HostFacts)


def _problems(result: Result, key: str = "") -> list[str]:
    accepted = msgspec.json.decode(ACCEPTED.read_bytes(), type=dict[str, Accepted])
    return list(compare(result, accepted[key or result.key]))


# operation → tier, the attempts that show that it did not run
REMOVED: dict[str, tuple[Any, str, str, tuple[str, ...]]] = {
    "seccomp": (operations.FilterSystemCalls, "namespaced", "system calls", ("call_bpf",)),
    "landlock": (operations.Restrict, "landlocked", "files", ("read_a_file_outside",)),
    "privileges": (operations.DropPrivileges, "namespaced", "privileges", ("become_root",)),
    "limits": (
        operations.SetLimits,
        "namespaced",
        "exhaustion",
        ("open_more_files_than_the_limit",),
    ),
    "memory and processes": (
        operations.JoinCgroups,
        "namespaced",
        "exhaustion",
        ("use_twice_the_memory_limit",),
    ),
}


# Workers are forked from the process that audits, and their limits count what it had: a test run
# of an hour is no measure, so these two start from a process of their own.
FRESH = """
import json, sys
import msgspec
from vsm.confinement import operations
from vsm.audit import battery
from vsm.audit.battery import audit
from vsm.confinement.probe import HostFacts
from vsm.configuration.profile import load_profile

order = json.load(sys.stdin)
exec(order["sabotage"])
if order["undone"]:
    undone = getattr(operations, order["undone"])
    undone.execute = lambda self, site: "claimed, and not done"
result = audit(
    load_profile("integration"),
    msgspec.convert(order["host"], HostFacts),
    tier=order["tier"],
    groups=frozenset(order["groups"]),
)
sys.stdout.buffer.write(msgspec.json.encode(result))
"""


def _audit_afresh(
    host: HostFacts, *, undone: str = "", tier: str | None, groups: list[str], sabotage: str = ""
) -> Result:
    order = {"host": msgspec.to_builtins(host), "undone": undone, "tier": tier, "groups": groups}
    order["sabotage"] = sabotage
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Result)


@pytest.mark.parametrize("layer", REMOVED)
def test_step_that_silently_does_nothing_is_found(host: HostFacts, layer: str) -> None:
    operation, tier, group, attempts = REMOVED[layer]
    groups = [group, "inheritance"]
    result = _audit_afresh(host, undone=operation.__name__, tier=tier, groups=groups)
    assert set(result.openings) >= set(attempts)
    problems = _problems(result)
    for name in attempts:
        assert any(name in problem for problem in problems), problems


class Sabotage(NamedTuple):
    """One protection is claimed and not given, by code that runs before the audit.

    Args:
        layer: the row of `vsm sandbox probe`.
        code: what takes it away.
        tier: where.
        group: of attempts.
        attempts: those that then have to be open.
    """

    layer: str
    code: str
    tier: str
    group: str
    attempts: tuple[str, ...]


WITHOUT_NAMESPACE = """
from vsm.confinement import plan
from vsm.linux import namespaces
flags = plan._clone_flags
plan._clone_flags = lambda case: flags(case) & ~namespaces.{}
"""
SABOTAGE = {
    "own uid": Sabotage(
        "user",
        "drop = operations.DropPrivileges.execute\n"
        "operations.DropPrivileges.execute = lambda self, site: drop("
        "self._replace(uid=None, gid=None), site)\n",
        "namespaced",
        "privileges",
        ("become_root",),
    ),
    "own root": Sabotage(
        "root_filesystem",
        "from vsm.confinement import root_operations\n"
        "root_operations.EnterRoot.execute = lambda self, site: 'claimed, and not done'\n",
        "namespaced",
        "files",
        ("read_a_file_outside", "stat_a_file_outside", "read_the_users_of_the_host"),
    ),
    "pid namespace": Sabotage(
        "namespaces",
        WITHOUT_NAMESPACE.format("NEWPID"),
        "namespaced",
        "processes",
        ("see_processes_outside", "open_a_handle_on_a_process_outside"),
    ),
    "ipc namespace": Sabotage(
        "namespaces",
        WITHOUT_NAMESPACE.format("NEWIPC"),
        "namespaced",
        "ipc",
        (
            "attach_shared_memory_of_a_process_outside",
            "open_a_message_queue_outside",
            "open_semaphores_outside",
        ),
    ),
    "uts namespace": Sabotage(
        "namespaces",
        WITHOUT_NAMESPACE.format("NEWUTS"),
        "namespaced",
        "inheritance",
        ("see_the_host_name",),
    ),
    "cgroup namespace": Sabotage(
        "namespaces",
        "operations.EnterCgroupNamespace.execute = lambda self, site: 'claimed, and not done'\n",
        "namespaced",
        "inheritance",
        ("see_the_host_name",),
    ),
    "network namespace": Sabotage(
        "network",
        WITHOUT_NAMESPACE.format("NEWNET"),
        "namespaced",
        "network",
        ("connect_by_tcp", "send_by_udp", "listen_where_the_host_can_connect"),
    ),
    "environment": Sabotage(
        "privileges",
        "import os\n"
        "start = os.posix_spawn\n"
        "os.posix_spawn = lambda path, argv, env, **more: start("
        "path, argv, {**os.environ, **env}, **more)\n",
        "namespaced",
        "inheritance",
        ("read_an_inherited_secret",),
    ),
    "descriptors": Sabotage(
        "privileges",
        "import os\nos.closerange = lambda first, last: None\n",
        "namespaced",
        "inheritance",
        ("use_an_inherited_descriptor", "have_more_than_the_standard_descriptors"),
    ),
    "TCP without a network namespace": Sabotage(
        "landlock",
        "from vsm.linux import landlock\n"
        "landlock._BIND_TCP = landlock._CONNECT_TCP = 0\n"
        "operations.FilterSystemCalls.execute = lambda self, site: 'claimed, and not done'\n",
        "landlocked",
        "network",
        ("connect_by_tcp",),
    ),
    "foreign architectures": Sabotage(
        "seccomp",
        "from vsm.confinement import plan\n"
        "from vsm.core.seccomp import Action, replace_answer\n"
        "compiled = plan.compile_filter\n"
        "plan.compile_filter = lambda *about: replace_answer("
        "compiled(*about), Action.KILL_PROCESS, Action.ALLOW)\n",
        "namespaced",
        "system calls",
        ("call_through_the_32_bit_entry",),
    ),
    "groups": Sabotage(
        "cpu",
        "operations.JoinCgroups.execute = lambda self, site: 'claimed, and not done'\n",
        "namespaced",
        "exhaustion",
        ("use_twice_the_memory_limit", "use_twice_the_processor_limit"),
    ),
}
# No attempt measures a rate of the disk: tests/integration/test_cgroup.py reads it back.
NOT_ATTEMPTED = {"io"}


@pytest.mark.parametrize("name", SABOTAGE)
def test_protection_that_is_claimed_and_not_given_is_found(host: HostFacts, name: str) -> None:
    one = SABOTAGE[name]
    result = _audit_afresh(host, sabotage=one.code, tier=one.tier, groups=[one.group])
    assert set(result.openings) >= set(one.attempts)
    problems = "\n".join(_problems(result))
    assert all(f"{attempt} is open" in problems for attempt in one.attempts), problems


def test_every_layer_of_the_hosts_table_is_taken_away_somewhere(host: HostFacts) -> None:
    taken = {one.layer for one in SABOTAGE.values()}
    taken |= set(LOST) | {"memory", "processes"}  # with the groups, see REMOVED
    assert {row.layer for row in layer_table(host)} - taken <= NOT_ATTEMPTED


# layer → how the host or the profile loses it
LOST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "landlock": ({"landlock_abi": 0}, {"may_lack": frozenset({"landlock"})}),
    "seccomp": ({"seccomp": False}, {"may_lack": frozenset({"seccomp", "network"})}),
}


@pytest.mark.parametrize("layer", LOST)
def test_layer_that_is_no_longer_in_force_is_found(host: HostFacts, layer: str) -> None:
    facts, changes = LOST[layer]
    profile = msgspec.structs.replace(load_profile("integration"), **changes)
    poor = msgspec.structs.replace(host, **facts)
    result = audit(profile, poor, tier="namespaced", groups=frozenset({"privileges"}))
    assert f"{result.key}: the layer {layer} is no longer in force" in _problems(result)


def test_limits_that_no_group_holds_are_found(host: HostFacts) -> None:
    none = msgspec.structs.replace(host.cgroup, kind="none", folders={}, memory=False)
    poor = msgspec.structs.replace(host, cgroup=none)
    result = _audit_afresh(poor, undone="", tier=None, groups=["privileges"])
    lost = {problem.split()[3] for problem in _problems(result) if "no longer" in problem}
    assert {"memory", "cpu"} <= lost


def test_network_of_the_host_is_found(host: HostFacts) -> None:
    profile = load_profile("integration")
    network = msgspec.structs.replace(profile.network, mode="host")
    profile = msgspec.structs.replace(profile, network=network)
    result = audit(profile, host, tier="namespaced", groups=frozenset({"network"}))
    problems = "\n".join(_problems(result))
    assert "the layer network is no longer in force" in problems
    assert "connect_by_tcp is open" in problems


@pytest.mark.parametrize("lost", ["root_filesystem", "namespaces"])
def test_tier_that_is_lost_is_found(host: HostFacts, lost: str) -> None:
    result = audit(
        load_profile("integration"), host, tier="landlocked", groups=frozenset({"files"})
    )
    problems = _problems(result, "integration/namespaced/root")
    assert f"{result.key}: the layer {lost} is no longer in force" in problems
    assert any("stat_a_file_outside is open" in problem for problem in problems)


def test_opening_without_a_reason_is_not_accepted() -> None:
    for key, accepted in json.loads(ACCEPTED.read_bytes()).items():
        assert "" not in accepted["open"].values(), key
        assert "?" not in accepted["open"].values(), key


@pytest.mark.parametrize(("tier", "most"), [("namespaced", 8), ("landlocked", 15)])
def test_accepted_openings_are_few(tier: str, most: int) -> None:
    for key, accepted in json.loads(ACCEPTED.read_bytes()).items():
        if f"/{tier}/" in key:
            assert len(accepted["open"]) <= most, key


def test_command_compares_with_what_was_accepted(
    host: HostFacts, tmp_path: Path, run_audit: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    del host
    stricter = json.loads(ACCEPTED.read_bytes())
    opened = stricter["integration/namespaced/root"]["open"]
    del opened["run_a_program_of_its_own"]
    file = tmp_path / "accepted.json"
    file.write_text(json.dumps(stricter))
    done = run_audit("--tier", "namespaced", "--accepted", str(file))
    assert done.returncode == 1, done.stderr
    assert "run_a_program_of_its_own is open" in done.stdout
    assert "blocked  read_a_file_outside: root_filesystem, landlock" in done.stdout


def test_audit_that_is_told_to_end_leaves_nothing() -> None:
    command = [sys.executable, "-m", "vsm", "sandbox", "audit", "--profile", "integration"]
    with tempfile.TemporaryDirectory() as name:  # a short one: it is used
        folder, environment = Path(name), {**os.environ, "TMPDIR": name}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not list(folder.rglob("datagram.sock")):
                assert process.poll() is None, "it ended before it made anything"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.terminate()
            assert process.wait(60) == 130
        assert list(folder.rglob("*")) == []


def test_folder_for_temporary_files_may_be_too_long_for_sockets(
    host: HostFacts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    far = tmp_path / ("far" * 30)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    with battery._world(load_profile("integration"), host) as (_, world):
        assert Path(world["unix_datagram"]).is_socket()


def test_longest_folder_that_is_used_is_not_too_long(
    host: HostFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        just = Path(name + "/" + "x" * (battery.NEAR_FOLDER - len(name) - 1))
        just.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(just))
        with battery._world(load_profile("integration"), host) as (folder, world):
            assert folder.is_relative_to(just)
            assert Path(world["unix_datagram"]).is_socket()


def test_signal_that_falls_into_the_making_of_the_victim_leaves_no_process(
    host: HostFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: it runs, and nobody has noted it."""
    real = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **options))
        signal.raise_signal(signal.SIGTERM)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    before = signal.getsignal(signal.SIGTERM)
    end_in_order_on_sigterm()
    try:
        with pytest.raises(KeyboardInterrupt), battery._world(load_profile("integration"), host):
            pytest.fail("the signal is forgotten")
    finally:
        signal.signal(signal.SIGTERM, before)
    ended = started[0].poll()
    started[0].kill()
    started[0].wait()
    assert ended == -signal.SIGKILL


def test_signal_that_falls_into_the_removal_of_the_world_leaves_no_file(
    host: HostFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.rmtree

    def remove(path: Path) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(path)

    monkeypatch.setattr(shutil, "rmtree", remove)
    before = signal.getsignal(signal.SIGTERM)
    end_in_order_on_sigterm()
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            battery._world(load_profile("integration"), host) as (folder, _),
        ):
            made = folder.parent
    finally:
        signal.signal(signal.SIGTERM, before)
    left = made.exists()
    real(made, ignore_errors=True)
    assert not left


def test_nobody_else_reaches_what_an_audit_of_roots_writes_to(host: HostFacts) -> None:
    """Who did could have root write, or make set-uid, whatever he put a link to."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it takes two users")
    with battery._world(load_profile("integration"), host) as (folder, world):
        for path in (folder, world["open_folder"], world["read_folder"], world["writable"]):
            who: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
            told = subprocess.run(["stat", path], capture_output=True, check=False, **who)
            assert b"Permission denied" in told.stderr, told


@pytest.fixture
def run_audit() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vsm", "sandbox", "audit", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run
