"""What a worker's control group uses and how often it hit its limits.

Runs in the supervisor. Reads files of the group; sets nothing. Memory is the working set: what
the kernel could drop at once (inactive file pages) is no need. Sources: cgroup-v1/memory.rst,
cgroup-v2.rst, cgroup-v1/pids.rst, scheduler/sched-bwc.rst.
"""

from pathlib import Path
from typing import NamedTuple

from vsm.confinement.cgroup import Group
from vsm.confinement.cgroup_files import keyed_number


class Sample(NamedTuple):
    """By resource, only what a controller counts: use now, and pressure since the start.

    Args:
        used: memory in bytes, cpu in seconds, processes as tasks.
        pressure: memory: allocations that met the limit; cpu: seconds throttled; processes:
            refused forks.
    """

    used: dict[str, float]
    pressure: dict[str, float]


def sample(group: Group) -> Sample:
    """Look at one group."""
    read = _v2 if group.facts.kind == "v2" else _v1
    used, pressure = read({name: Path(folder) for name, folder in group.folders.items()})
    return Sample(_known(used), _known(pressure))


_Numbers = dict[str, float | None]


def _v2(folders: dict[str, Path]) -> tuple[_Numbers, _Numbers]:
    memory, cpu, pids = (folders.get(name) for name in ("memory", "cpu", "pids"))
    cpu_stat = _text(cpu, "cpu.stat")
    used = {
        "memory": _working_set(
            _number(memory, "memory.current"), _text(memory, "memory.stat"), "inactive_file"
        ),
        "cpu": _scaled(keyed_number(cpu_stat, "usage_usec"), 1e6),
        "processes": _number(pids, "pids.current"),
    }
    pressure = {
        "memory": keyed_number(_text(memory, "memory.events"), "max"),
        "cpu": _scaled(keyed_number(cpu_stat, "throttled_usec"), 1e6),
        "processes": keyed_number(_text(pids, "pids.events"), "max"),
    }
    return used, pressure


def _v1(folders: dict[str, Path]) -> tuple[_Numbers, _Numbers]:
    memory, pids = folders.get("memory"), folders.get("pids")
    cpu, account = folders.get("cpu"), folders.get("cpuacct")
    used = {
        "memory": _working_set(
            _number(memory, "memory.usage_in_bytes"),
            _text(memory, "memory.stat"),
            "total_inactive_file",
        ),
        "cpu": _scaled(_number(account, "cpuacct.usage"), 1e9),
        "processes": _number(pids, "pids.current"),
    }
    pressure = {
        "memory": _number(memory, "memory.failcnt"),
        "cpu": _scaled(keyed_number(_text(cpu, "cpu.stat"), "throttled_time"), 1e9),
        "processes": keyed_number(_text(pids, "pids.events"), "max"),
    }
    return used, pressure


def _working_set(used: float | None, stat: str, key: str) -> float | None:
    if used is None:
        return None
    return max(0.0, used - (keyed_number(stat, key) or 0))


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value / factor


def _known(found: _Numbers) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if value is not None}


def _number(folder: Path | None, file: str) -> float | None:
    text = _text(folder, file).strip()
    return float(text) if text.isdigit() else None


def _text(folder: Path | None, file: str) -> str:
    if folder is None:
        return ""
    try:
        return (folder / file).read_text(encoding="ascii")
    except OSError:
        return ""
