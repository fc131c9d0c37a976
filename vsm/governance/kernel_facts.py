"""What the kernel says of a running worker, against the plan that it was started by.

Runs in the supervisor, which reads /proc and control groups from outside: no word of the worker
counts. Every process below the worker is looked at, so that one which escaped a layer is found
whoever started it. What the kernel does not show (Landlock's rules, the filter's) is for
`vsm sandbox audit`, which tries. Sources: proc_pid_status(5), proc_pid_mountinfo(5),
namespaces(7), cgroups(7).
"""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vsm.configuration import changes
from vsm.confinement.execution import Plan
from vsm.confinement.operations import DropPrivileges, FilterSystemCalls, SetLimits
from vsm.confinement.root_operations import Bind, EnterRoot, Mount
from vsm.governance.detection import descendants
from vsm.linux import namespaces

if TYPE_CHECKING:
    from vsm.supervision.running_worker import RunningWorker

MOST_PROCESSES: Final = 256
"""Of one worker: the supervisor has other things to do."""
_FILTERED: Final = "2"  # SECCOMP_MODE_FILTER
_CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_LIMIT_ROW: Final = r"(?m)^(Max [a-z ]+?) {2,}(.*)$"
_LIMIT_NAMES: Final = {
    "core": "Max core file size",
    "cpu": "Max cpu time",
    "data": "Max data size",
    "file_size": "Max file size",
    "open_files": "Max open files",
    "processes": "Max processes",
}
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
    found = [_settled(running) for running in workers]
    failed: dict[str, str] = {}
    for one in found:
        failed = {**one.failed, **failed}
    unknown = sorted({name for one in found for name in one.unknown})
    checked, processes = sum(one.checked for one in found), sum(one.processes for one in found)
    return Facts(checked, processes, failed, tuple(unknown))


def _settled(running: "RunningWorker") -> Facts:
    """What fails twice: a process that is just ending has left its group a moment before."""
    first = compare(running)
    if not first.failed:
        return first
    again = compare(running)
    failed = {name: text for name, text in again.failed.items() if name in first.failed}
    return again._replace(failed=failed)


def compare(running: "RunningWorker") -> Facts:
    """Look at one worker now; a process that ends meanwhile counts as none."""
    if running.spawned is None or running.provided is None:
        return Facts(0, 0, {}, ())
    plan = running.provided.plan
    below = descendants(running.spawned.pid)
    pids = list(itertools.islice(below, MOST_PROCESSES))
    facts = list(_group_facts(running, pids))
    for pid in pids:
        seen = list(_process_facts(plan, pid))
        facts += seen if _is_there(pid) else []
    failed: dict[str, str] = {}
    for fact in facts:
        if fact.holds is False:
            failed.setdefault(fact.name, fact.found)
    unknown = sorted({fact.name for fact in facts if fact.holds is None})
    if next(below, None) is not None:
        unknown.append(f"processes beyond {MOST_PROCESSES}")
    checked = sum(fact.holds is not None for fact in facts)
    return Facts(checked, len(pids), failed, tuple(unknown))


def _process_facts(plan: Plan, pid: int) -> Iterator[_Fact]:
    status = _status(pid)
    if not _lives(pid):
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
    yield from _mounts(plan, pid)


def _privileges(step: DropPrivileges, pid: int, status: dict[str, str]) -> Iterator[_Fact]:
    locked = status.get("NoNewPrivs", "")
    yield _Fact("no_new_privs", locked == "1", f"{pid}: {locked}")
    held = [name for name in _CAPABILITIES if int(status.get(name, "1"), 16)]
    yield _Fact("capabilities", not held, f"{pid}: {', '.join(held)}")
    if step.uid is not None:
        ids = set(status.get("Uid", "").split()) | set(status.get("Gid", "").split())
        yield _Fact("user", ids == {str(step.uid)}, f"{pid}: {' '.join(sorted(ids))}")


def _limits(step: SetLimits, pid: int) -> Iterator[_Fact]:
    rows = dict(re.findall(_LIMIT_ROW, _read(f"/proc/{pid}/limits")))
    for kind, planned in step.values:
        words = rows.get(_LIMIT_NAMES[kind], "").split()[:2]
        holds = all(word.isdigit() and int(word) <= planned for word in words) if words else None
        yield _Fact(f"limit of {kind}", holds, f"{pid}: {' '.join(words)}, planned {planned}")


def _mounts(plan: Plan, pid: int) -> Iterator[_Fact]:
    """The root is a file system of its own, and nothing is writable that was not planned."""
    if not any(isinstance(step, EnterRoot) for step in plan.operations):
        return
    found = [line.split(" ") for line in _read(f"/proc/{pid}/mountinfo").split("\n") if line]
    if not found:
        yield _Fact("root file system", None)
        return
    seen = {_unescaped(words[4]): (words[5].split(","), words[-3]) for words in found}
    options, kind = seen.get("/", ([], ""))
    yield _Fact("root file system", kind == "tmpfs" and "ro" in options, f"{pid}: {kind} {options}")
    planned = tuple(_writable(plan))
    odd = [path for path, (options, _) in seen.items() if "rw" in options]
    odd = [path for path in odd if not any(_is_below(path, top) for top in planned)]
    yield _Fact("writable mounts", not odd, f"{pid}: {odd[:8]}")
    loose = [path for path, (options, _) in seen.items() if "nosuid" not in options]
    yield _Fact("set-id programs", not loose, f"{pid}: allowed on {loose[:8]}")


def _writable(plan: Plan) -> Iterator[str]:
    for step in plan.operations:
        if (isinstance(step, Bind) and (step.write or step.device)) or (
            isinstance(step, Mount) and step.kind == "tmpfs"
        ):
            yield step.path


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


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
    outside = [pid for pid in pids if pid not in inside and _lives(pid)]
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


def _lives(pid: int) -> bool:
    """It is there and no zombie, which is in no group and has nothing left to hold."""
    return _status(pid).get("State", "Z")[0] not in {"Z", "X"}


def _status(pid: int) -> dict[str, str]:
    # A process names itself, and the kernel escapes no other line break in that than \n.
    lines = (line.partition(":") for line in _read(f"/proc/{pid}/status").split("\n"))
    return {name: value.strip() for name, _, value in lines}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
