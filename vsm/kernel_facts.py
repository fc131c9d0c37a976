"""What the kernel says of a running worker, against the plan that it was started by.

Runs in the supervisor, which reads /proc and control groups from outside: no word of the worker
counts. Every process below the worker is looked at, so that one which escaped a layer is found
whoever started it. What the kernel does not show (Landlock's rules, mounts' options) is for
`vsm sandbox audit`, which tries. Sources: proc_pid_status(5), namespaces(7), cgroups(7).
"""

import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vsm import changes
from vsm.detection import descendants
from vsm.execution import Plan
from vsm.linux import namespaces, rlimits
from vsm.operations import DropPrivileges, FilterSystemCalls, SetLimits

if TYPE_CHECKING:
    from vsm.running_worker import RunningWorker

_FILTERED: Final = "2"  # SECCOMP_MODE_FILTER
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Facts(NamedTuple):
    """What was found.

    Args:
        checked: how many facts were compared. processes: of how many processes.
        failed: fact → what was found instead, for the first process that fails it.
        unknown: facts that cannot be read by this user.
    """

    checked: int
    processes: int
    failed: dict[str, str]
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For the control socket."""
        return {**self._asdict(), "unknown": list(self.unknown)}


class _Fact(NamedTuple):
    """One comparison: `found` is None where it cannot be read."""

    name: str
    holds: bool | None
    found: str = ""


def compare_all(workers: "Sequence[RunningWorker]") -> Facts:
    """Look at every instance of an integration."""
    found = [compare(running) for running in workers]
    failed: dict[str, str] = {}
    for one in found:
        failed = {**one.failed, **failed}
    unknown = sorted({name for one in found for name in one.unknown})
    checked, processes = sum(one.checked for one in found), sum(one.processes for one in found)
    return Facts(checked, processes, failed, tuple(unknown))


def compare(running: "RunningWorker") -> Facts:
    """Look at one worker now; a process that ends meanwhile counts as none."""
    if running.spawned is None or running.provided is None:
        return Facts(0, 0, {}, ())
    plan = running.provided.plan
    pids = list(descendants(running.spawned.pid))
    facts = list(_group_facts(running, pids))
    for pid in pids:
        seen = list(_process_facts(plan, pid))
        facts += seen if _is_there(pid) else []
    failed: dict[str, str] = {}
    for fact in facts:
        if fact.holds is False:
            failed.setdefault(fact.name, fact.found)
    unknown = sorted({fact.name for fact in facts if fact.holds is None})
    checked = sum(fact.holds is not None for fact in facts)
    return Facts(checked, len(pids), failed, tuple(unknown))


def _process_facts(plan: Plan, pid: int) -> Iterator[_Fact]:
    status = _status(pid)
    if not status or status.get("State", "").startswith("Z"):
        return
    for step in plan.operations:
        match step:
            case DropPrivileges():
                yield from _privileges(step, pid, status)
            case FilterSystemCalls():
                mode = status.get("Seccomp", "")
                yield _Fact("system-call filter", mode == _FILTERED, f"{pid}: mode {mode}")
            case SetLimits():
                yield from _limits(step, pid)
    yield from _namespaces(plan, pid)


def _privileges(step: DropPrivileges, pid: int, status: dict[str, str]) -> Iterator[_Fact]:
    locked = status.get("NoNewPrivs", "")
    yield _Fact("no_new_privs", locked == "1", f"{pid}: {locked}")
    held = [name for name in _CAPABILITIES if int(status.get(name, "1"), 16)]
    yield _Fact("capabilities", not held, f"{pid}: {', '.join(held)}")
    if step.uid is not None:
        ids = set(status.get("Uid", "").split()) | set(status.get("Gid", "").split())
        yield _Fact("user", ids == {str(step.uid)}, f"{pid}: {' '.join(sorted(ids))}")


def _limits(step: SetLimits, pid: int) -> Iterator[_Fact]:
    for kind, planned in step.values:
        name = f"limit of {kind}"
        try:
            soft, hard = resource.prlimit(pid, rlimits.KINDS[kind])
        except PermissionError:
            yield _Fact(name, None)
            continue
        except OSError:
            return
        unlimited = resource.RLIM_INFINITY in {soft, hard}
        yield _Fact(name, not unlimited and max(soft, hard) <= planned, f"{pid}: {soft} {hard}")


def _namespaces(plan: Plan, pid: int) -> Iterator[_Fact]:
    for flag, kind in namespaces.NAMES.items():
        if not plan.clone_flags & flag:
            continue
        try:
            theirs = os.readlink(f"/proc/{pid}/ns/{kind}")
        except PermissionError:
            yield _Fact(f"{kind} namespace", None)
            continue
        except OSError:
            return
        own = os.readlink(f"/proc/self/ns/{kind}")
        yield _Fact(f"{kind} namespace", theirs != own, f"{pid}: {theirs}, the supervisor's")


def _group_facts(running: "RunningWorker", pids: list[int]) -> Iterator[_Fact]:
    provided = running.provided
    if provided is None or provided.group is None:
        return
    inside = provided.group.pids()
    outside = [pid for pid in pids if pid not in inside and _is_there(pid)]
    yield _Fact("control group", not outside, f"not in it: {outside[:8]}")
    now = provided.group.limits()
    wanted = changes.movable(provided.profile.limits)
    for layer, key in (
        ("memory", "memory_bytes"),
        ("processes", "processes"),
        ("cpu", "cpu_cores"),
    ):
        planned, found = wanted[key], getattr(now, key)
        if planned is None or layer not in provided.group.layers:
            continue
        slack = _PAGE if layer == "memory" else 0.01
        holds = found is not None and found <= planned + slack
        yield _Fact(f"limit of {layer}", holds, f"{found}, planned {planned}")


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _status(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}
