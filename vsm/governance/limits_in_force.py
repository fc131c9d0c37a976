"""Each limit of a running worker: its value, what holds it, and whether it really does.

Runs in the supervisor. What is "in force" was read back from the kernel where the kernel shows
it: from the control group's files, or from /proc of the worker's first process.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vsm.configuration.profile import Limits
from vsm.configuration.regulation import INSTANCES
from vsm.configuration.units import format_bytes
from vsm.confinement.execution import Plan
from vsm.confinement.operations import SetLimits
from vsm.confinement.root_operations import Mount, inodes
from vsm.core.figures import figure

if TYPE_CHECKING:
    from vsm.confinement.cgroup import Group
    from vsm.supervision.integration_group import IntegrationGroup
    from vsm.supervision.provision import Provision
    from vsm.supervision.running_worker import RunningWorker

IN_FORCE: Final = "in force"
DETECTED: Final = "detected"
ABSENT: Final = "absent"
NOT_REQUIRED: Final = "not required"
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_NAMES: Final = {  # of /proc/PID/limits
    "cpu_time_s": "Max cpu time",
    "open_files": "Max open files",
    "file_size": "Max file size",
}
_CPU_SLACK: Final = 0.01
_LOOKS: Final = "vsm looks twice a second, and kills"


class Held(NamedTuple):
    """One limit.

    Args:
        key: as in a profile.
        value: as one would write it.
        mechanism: "cgroup v1", "cgroup v2", "rlimit", "tmpfs", "mini-init", "detection",
            "vsm", or "".
        state: IN_FORCE, DETECTED, ABSENT or NOT_REQUIRED.
    """

    key: str
    value: str
    mechanism: str
    state: str
    detail: str = ""


def table(running: "RunningWorker | None", by: Mapping[str, str]) -> list[dict[str, str]]:
    """Every limit of a worker that runs; nothing for one that does not.

    Args:
        running: the worker.
        by: who set which limit, where that is not its profile.
    """
    if running is None or running.provided is None or running.spawned is None:
        return []
    provided, pid = running.provided, running.spawned.pid
    held = [
        *_tree_limits(running, provided),
        *_process_limits(provided.profile.limits, provided.plan, pid),
        *_time_and_disk(provided),
        *_memory_disks(provided.plan),
    ]
    return [_signed(one, by)._asdict() for one in held]


def _signed(one: Held, by: Mapping[str, str]) -> Held:
    """Who set it, beside what is said of it."""
    if one.key not in by:
        return one
    told = f"set by {by[one.key]}"
    return one._replace(detail=f"{one.detail}; {told}" if one.detail else told)


def of_pool(group: "IntegrationGroup", name: str) -> list[dict[str, str]]:
    """How many instances a pool may have; nothing of what is none."""
    entry, terms = group.integrations[name], group.bounds.terms_of(name)
    if entry.instances != "pool" or terms is None:
        return []
    by = "of its entry"
    if name in group.bounds.commanded:
        by = "set by command"
    elif name in group.bounds.granted:
        by = "set by system 3"
    detail = f"from {entry.pool_min} to {entry.pool_max}; {by}"
    return [Held(INSTANCES, str(terms.most), "vsm", IN_FORCE, detail)._asdict()]


def _tree_limits(running: "RunningWorker", provided: "Provision") -> Iterator[Held]:
    """Those of the whole tree: by a control group, else noticed."""
    limits, group = provided.profile.limits, provided.group
    layers = {one["name"]: one for one in (running.spawned.layers if running.spawned else ())}
    wanted = {"memory": limits.memory_bytes, "processes": limits.processes, "cpu": limits.cpu_cores}
    for key, value in wanted.items():
        text = _size(value) if key == "memory" else _number(value)
        if value is None:
            yield Held(key, text, "", NOT_REQUIRED)
        elif group is not None and key in group.layers:
            yield _by_group(key, text, value, group)
        elif "RLIMIT_NPROC" in layers.get(key, {}).get("detail", ""):
            yield Held(key, text, "rlimit", IN_FORCE, "RLIMIT_NPROC")
        elif key == "cpu":
            yield Held(key, text, "", ABSENT, "no control group holds it")
        else:
            also = "; RLIMIT_DATA bounds each process" if key == "memory" else ""
            yield Held(key, text, "detection", DETECTED, f"{_LOOKS}{also}")
        if key == "memory":
            yield _swap(limits, group)
    yield from _rates(limits, group)


def _by_group(key: str, text: str, value: float, group: "Group") -> Held:
    now = group.limits()
    found = {"memory": now.memory_bytes, "processes": now.processes, "cpu": now.cpu_cores}[key]
    slack = {"memory": _PAGE_BYTES, "processes": 0, "cpu": _CPU_SLACK}[key]
    if found is not None and found <= value + slack:
        return Held(key, text, _kind(group), IN_FORCE)
    return Held(key, text, _kind(group), ABSENT, f"the kernel has {found}")


def _swap(limits: Limits, group: "Group | None") -> Held:
    text = _size(limits.swap_bytes)
    if limits.swap_bytes is None:
        return Held("swap", text, "", NOT_REQUIRED)
    if group is not None and group.facts.swap:
        found = group.limits().swap_bytes
        if found is not None and found <= limits.swap_bytes + _PAGE_BYTES:
            return Held("swap", text, _kind(group), IN_FORCE)
        return Held("swap", text, _kind(group), ABSENT, f"the kernel has {found}")
    there = "this host has swap" if _host_swaps() else "this host has no swap"
    return Held("swap", text, "", ABSENT, f"no control group counts it; {there}")


def _rates(limits: Limits, group: "Group | None") -> Iterator[Held]:
    now = group.limits() if group is not None and group.facts.io else None
    read, write = (now.io_read_bytes_s, now.io_write_bytes_s) if now else (None, None)
    for key, rate, found in (
        ("io_read", limits.io_read_bytes_s, read),
        ("io_write", limits.io_write_bytes_s, write),
    ):
        text = _size(rate)
        if rate is None:
            yield Held(key, text, "", NOT_REQUIRED)
        elif group is None or now is None:
            yield Held(key, text, "", ABSENT, "no control group holds it")
        elif found is not None and found <= rate:
            yield Held(key, text, _kind(group), IN_FORCE, "bytes a second, for each disk")
        else:
            yield Held(key, text, _kind(group), ABSENT, f"the kernel has {found}")


def _process_limits(limits: Limits, plan: Plan, pid: int) -> Iterator[Held]:
    values = {
        "cpu_time_s": ("cpu", limits.cpu_time_s, _number(limits.cpu_time_s)),
        "open_files": ("open_files", limits.open_files, _number(limits.open_files)),
        "file_size": ("file_size", limits.file_size_bytes, _size(limits.file_size_bytes)),
    }
    set_by_plan = {
        kind for step in plan.operations if isinstance(step, SetLimits) for kind, _ in step.values
    }
    for key, (kind, value, text) in values.items():
        if value is None:
            yield Held(key, text, "", NOT_REQUIRED)
        elif kind not in set_by_plan:  # set by command, from the next start
            yield Held(key, text, "rlimit", ABSENT, "from the next start")
        else:
            yield _by_rlimit(key, text, value, pid)


def _by_rlimit(key: str, text: str, value: int, pid: int) -> Held:
    hard = _hard_limit(pid, _NAMES[key])
    if not hard:
        return Held(key, text, "rlimit", ABSENT, "the worker is ending")
    if not hard.isdigit() or int(hard) > value:
        return Held(key, text, "rlimit", ABSENT, f"the kernel has {hard}")
    return Held(key, text, "rlimit", IN_FORCE, "of each process")


def _hard_limit(pid: int, name: str) -> str:
    """As the kernel writes it; "" if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    return next((line.split()[4] for line in lines if line.startswith(name)), "")


def _time_and_disk(provided: "Provision") -> Iterator[Held]:
    limits, wall_time_s = provided.profile.limits, provided.profile.limits.wall_time_s
    if wall_time_s is None:
        yield Held("wall_time_s", _number(None), "", NOT_REQUIRED)
    else:
        there = provided.plan.wall_time_s == wall_time_s
        state, detail = (IN_FORCE, "") if there else (ABSENT, "from the next start")
        yield Held("wall_time_s", str(wall_time_s), "mini-init", state, detail)
    for key, text, value in (
        ("disk", _size(limits.disk_bytes), limits.disk_bytes),
        ("disk_files", _number(limits.disk_files), limits.disk_files),
    ):
        if value is None or not provided.private:
            detail = "" if provided.private else "it has no directory of its own on the disk"
            yield Held(key, text, "", NOT_REQUIRED, detail)
        else:
            yield Held(key, text, "detection", DETECTED, _LOOKS)


def _memory_disks(plan: Plan) -> Iterator[Held]:
    names = {"/tmp": "files.tmp", "/dev/shm": "files.shm"}  # noqa: S108 - inside
    for step in plan.operations:
        if isinstance(step, Mount) and step.path in names:
            detail = f"{inodes(step.size_bytes)} files; its memory counts as the worker's"
            yield Held(names[step.path], format_bytes(step.size_bytes), "tmpfs", IN_FORCE, detail)


def _kind(group: "Group") -> str:
    return f"cgroup {group.facts.kind}"


def _size(value: float | None) -> str:
    return "unlimited" if value is None else format_bytes(int(value))


def _number(value: float | None) -> str:
    return "unlimited" if value is None else figure(value, 6)


def _host_swaps() -> bool:
    try:
        return len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) > 1
    except OSError:
        return True
