"""A sibling inside a running worker attacks it: all hold, and none does once its layer is gone.

In a running vsm it is in tests/e2e/test_regulation.py.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from confined_worlds import WORLDS, as_user, host, plan_for

from vsm.confinement.execution import Plan
from vsm.confinement.operations import DropPrivileges, EnterNamespaces, FilterSystemCalls, Restrict
from vsm.governance.attacks import attacks, judge
from vsm.linux import namespaces
from vsm.processes.launch import LauncherLink

pytestmark = pytest.mark.isolation
every_world = pytest.mark.parametrize(("who", "tier"), WORLDS, ids=lambda value: value)
WAITS = ["/bin/sleep", "60"]


def attacked(who: str, tier: str, weaken: Callable[[Plan], Plan] = lambda plan: plan) -> Any:
    """What fails of a worker started by the weakened plan and judged by the real one."""
    host(who)

    def work() -> Any:
        plan = plan_for(who, tier, WAITS)
        names = attacks(plan, root=host(who).root)
        weak = weaken(plan)
        return [names, judge(names, asyncio.run(_attack(weak, names)))]

    return as_user(who, work)


async def _attack(plan: Plan, names: tuple[str, ...]) -> dict[str, Any]:
    link = LauncherLink(lambda _worker, _report: None)
    await link.start()
    try:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            spawned = await link.spawn("it", plan, null, null, null)
        finally:
            os.close(null)
        os.close(spawned.pidfd)
        return await link.attack("it", names)
    finally:
        await link.close()


@every_world
def test_a_worker_as_planned_withstands_all_attacks_from_within(who: str, tier: str) -> None:
    names, failed = attacked(who, tier)
    assert failed == {}
    assert len(names) > 60
    assert {"call_bpf", "signal_a_process_outside", "become_root"} <= set(names)


def without(kind: type, layer: str) -> Callable[[Plan], Plan]:
    """The plan without a step, and not claiming its layer: else the worker would not start."""

    def weaken(plan: Plan) -> Plan:
        steps = tuple(step for step in plan.operations if not isinstance(step, kind))
        layers = tuple(one for one in plan.expected if one.name != layer)
        assert len(steps) < len(plan.operations)
        return plan._replace(operations=steps, expected=layers, shared=0)

    return weaken


def on_the_hosts_network(plan: Plan) -> Plan:
    flags = plan.clone_flags & ~namespaces.NEWNET
    steps = tuple(
        step._replace(flags=flags, loopback=False) if isinstance(step, EnterNamespaces) else step
        for step in plan.operations
    )
    layers = tuple(one for one in plan.expected if one.name != "network")
    return plan._replace(clone_flags=flags, operations=steps, expected=layers, shared=0)


@every_world
def test_without_its_filter_the_audit_fails(who: str, tier: str) -> None:
    _, failed = attacked(who, tier, without(FilterSystemCalls, "seccomp"))
    assert {"attack call_bpf", "attack call_io_uring_setup", "attack call_keyctl"} <= set(failed)
    assert "should stop it" in failed["attack call_bpf"]


@every_world
def test_without_landlock_the_audit_fails(who: str, tier: str) -> None:
    if host(who).landlock_abi < 6:
        pytest.skip("this kernel's Landlock has no scopes")
    _, failed = attacked(who, tier, without(Restrict, "landlock"))
    assert "attack signal_a_process_outside" in failed
    assert ("attack open_run_folder" in failed) == (tier == "landlocked")


@every_world
def test_without_dropped_privileges_the_audit_fails(who: str, tier: str) -> None:
    if (who, tier) == ("user", "landlocked"):
        pytest.skip("this user has none to drop")
    _, failed = attacked(who, tier, without(DropPrivileges, "privileges"))
    assert "attack have_a_capability" in failed


@pytest.mark.parametrize("who", sorted({who for who, _ in WORLDS}))
def test_on_the_hosts_network_the_audit_fails(who: str) -> None:
    if host(who).tier != "namespaced":
        pytest.skip("no namespaces here")
    _, failed = attacked(who, "namespaced", on_the_hosts_network)
    assert "attack connect_by_tcp" in failed
