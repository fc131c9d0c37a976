"""An audit by kernel facts finds what is not as planned; the control is a worker that is.

In a running vsm it is `test_running_worker_is_audited_against_its_plan` (e2e).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from confined_worlds import IS_ROOT, host, plan_for

from vsm.confinement.execution import Plan
from vsm.confinement.operations import DropPrivileges, FilterSystemCalls, SetLimits
from vsm.confinement.root_operations import EnterRoot, Mount
from vsm.governance.kernel_facts import compare, compare_all
from vsm.linux import namespaces
from vsm.processes.launch import spawn_confined, wait_confined

PLAN = Plan(
    name="it",
    tier="namespaced",
    clone_flags=namespaces.NEWNS | namespaces.NEWPID | namespaces.NEWNET,
    operations=(
        SetLimits((("open_files", 64),)),
        DropPrivileges(54321, 54321),
        FilterSystemCalls("", 0),
        EnterRoot(),
        Mount("tmpfs", "/dev/shm", 1 << 20, "1777"),
    ),
    argv=("/bin/true",),
    env={},
    cwd="/",
    uid=54321,
    expected=(),
)
WAIT = [sys.executable, "-SIc", "import sys; sys.stdout.write('x'); sys.stdout.flush(); input()"]


@pytest.fixture
def child() -> Iterator[int]:
    """An unconfined process that waits."""
    process = subprocess.Popen(WAIT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"x"
    yield process.pid
    process.communicate(b"\n")


def worker(pid: int, plan: Plan = PLAN) -> Any:
    """What the supervisor knows of a worker without a control group."""
    provided = SimpleNamespace(plan=plan, group=None, profile=None)
    return SimpleNamespace(spawned=SimpleNamespace(pid=pid), provided=provided)


def test_process_that_nothing_confines_fails_every_fact(child: int) -> None:
    found = compare(worker(child))
    expected = {"no_new_privs", "user", "system-call filter", "limit of open_files"}
    expected |= {"root file system", "writable mounts", "set-id programs", "mnt namespace"}
    expected |= {"pid namespace", "net namespace"}
    if os.geteuid() == 0:
        expected.add("capabilities")
    assert set(found.failed) == expected - set(found.unknown)
    assert found.processes == 1
    assert found.checked >= len(found.failed)
    both = compare_all([worker(child), worker(child)])
    assert (both.checked, both.processes) == (2 * found.checked, 2)


def test_only_what_is_planned_is_compared(child: int) -> None:
    found = compare(worker(child, PLAN._replace(operations=(), clone_flags=0)))
    assert (found.checked, found.failed) == (0, {})


def test_process_that_is_gone_fails_nothing() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    assert compare(worker(process.pid)).failed == {}


@pytest.mark.parametrize("tier", ["namespaced", "landlocked"])
def test_confined_process_is_as_planned_in_both_tiers(tier: Any, require: Any) -> None:
    who = "root" if IS_ROOT else "user"
    require(f"the {tier} tier", tier in {host(who).tier, "landlocked"}, "this user has the other")
    plan = plan_for(who, tier, ["/bin/sleep", "60"])
    with open(os.devnull, "r+b") as null:
        spawned = spawn_confined(plan, null.fileno(), null.fileno(), null.fileno())
    try:
        end = time.monotonic() + 30  # its server is exec'ed a moment later
        while (found := compare(worker(spawned.pid, plan))).processes < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert found.failed == {}
        assert found.checked >= 14
    finally:
        os.kill(spawned.pid, signal.SIGKILL)
        wait_confined(spawned)
