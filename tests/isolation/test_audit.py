"""`vsm sandbox audit` sees what is open: a layer taken away shows, whichever it is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vsm.audit.battery import audit
from vsm.audit.result import Accepted, Result, compare
from vsm.configuration.profile import load_profile
from vsm.confinement import operations
from vsm.confinement.probe import HostFacts

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
from vsm.audit.battery import audit
from vsm.confinement.probe import HostFacts
from vsm.configuration.profile import load_profile

order = json.load(sys.stdin)
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


def _audit_afresh(host: HostFacts, *, undone: str, tier: str | None, groups: list[str]) -> Result:
    order = {"host": msgspec.to_builtins(host), "undone": undone, "tier": tier, "groups": groups}
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


@pytest.fixture
def run_audit() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vsm", "sandbox", "audit", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run
