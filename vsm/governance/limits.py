"""`vsm limit`: limits that an operator sets on one integration, over those of its profile.

Runs in the supervisor. `instances` bounds a pool, over its entry. What a control group holds moves
under the running worker, and so does what is detected on the disk; the rest, and what no group
holds here, counts from the next start. Kept until this vsm ends: what is to stay belongs into the
profile.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vsm.configuration import changes
from vsm.configuration.profile import Limits, LimitsDocument, compile_limits
from vsm.configuration.regulation import INSTANCES
from vsm.confinement.cgroup import CgroupLimits
from vsm.confinement.plan import rates_text
from vsm.errors import ConfigurationError, VsmError

if TYPE_CHECKING:
    from vsm.configuration.config import Integration
    from vsm.supervision.integration_group import IntegrationGroup
    from vsm.supervision.running_worker import RunningWorker
    from vsm.supervision.supervisor import Supervisor

WHERE: Final = "vsm limit"
# key as written → field of Limits
FIELDS: Final = {
    "memory": "memory_bytes",
    "swap": "swap_bytes",
    "processes": "processes",
    "cpu": "cpu_cores",
    "cpu_time_s": "cpu_time_s",
    "open_files": "open_files",
    "file_size": "file_size_bytes",
    "disk": "disk_bytes",
    "disk_files": "disk_files",
    "wall_time_s": "wall_time_s",
    "io_read": "io_read_bytes_s",
    "io_write": "io_write_bytes_s",
}
_DETECTED: Final = frozenset(key for key in FIELDS if FIELDS[key] in changes.DETECTED_LIMITS)
_LAYERS: Final = {
    "memory": "memory",
    "swap": "memory",
    "processes": "processes",
    "cpu": "cpu",
    "io_read": "io",
    "io_write": "io",
}


def set_limits(supervisor: "Supervisor", name: str, wanted: dict[str, Any]) -> list[dict[str, str]]:
    """Put limits in force as far as they can be now.

    Returns:
        One row for each key: key, value, state ("in force" or "from the next start") and detail.

    Raises:
        VsmError: an unknown key or value, or the kernel refused a limit; then nothing is kept.
    """
    group, wanted = supervisor.integrations, dict(wanted)
    pool = {INSTANCES: wanted.pop(INSTANCES)} if INSTANCES in wanted else {}
    bound = _bound(group.integrations[name], pool[INSTANCES]) if pool else None
    rows = _set_of_workers(group, name, wanted) if wanted or not pool else []
    if pool:
        group.bounds.command(name, bound)
        detail = "by vsm" if bound is not None else "as its entry says; system 3 may move it"
        row = {"key": INSTANCES, "value": str(pool[INSTANCES]), "state": "in force"}
        rows.append({**row, "detail": detail})
    return rows


def _bound(entry: "Integration", wanted: object) -> int | None:
    """How many instances a pool may have; None: as its entry says.

    Raises:
        ConfigurationError: it is no pool, or may not have so many.
    """
    where = f"{WHERE} {entry.name}: {INSTANCES}"
    if entry.instances != "pool":
        raise ConfigurationError(where, "it is no pool", 'Set instances = "pool" in vsm.toml.')
    if wanted == "unlimited":
        return None
    least, most = entry.pool_min, entry.pool_max
    if type(wanted) is not int or not least <= wanted <= most:
        what = f"expected a number from {least} to {most} or unlimited"
        raise ConfigurationError(where, what, "See pool_min and pool_max in vsm.toml.")
    return wanted


def _set_of_workers(
    group: "IntegrationGroup", name: str, wanted: dict[str, Any]
) -> list[dict[str, str]]:
    """What each worker of it may use."""
    fields = parse(wanted)
    workers = group.running_of(name)
    running = workers[0] if workers else None
    live = [key for key in wanted if _is_live(key, running)]
    after = {**group.limits.get(name, {}), **fields}
    for worker in workers if live else ():
        moved = {FIELDS[key]: fields[FIELDS[key]] for key in live if key not in _DETECTED}
        if moved:
            move(worker, moved, by="command")
        _watch(worker, {FIELDS[key]: fields[FIELDS[key]] for key in live if key in _DETECTED})
        group.detection.start()
    group.limits[name] = after
    return [_row(key, wanted[key], running, live=key in live) for key in wanted]


def parse(wanted: dict[str, Any]) -> dict[str, Any]:
    """Fields of Limits, from keys and values as a profile has them.

    Raises:
        ConfigurationError: a key or a value is wrong.
    """
    unknown = sorted(set(wanted) - set(FIELDS))
    if unknown or not wanted:
        what = f"no limit {unknown[0]!r}" if unknown else "no limit is named"
        raise ConfigurationError(WHERE, what, f"Known: {', '.join([*FIELDS, INSTANCES])}.")
    try:
        document = msgspec.convert(wanted, LimitsDocument)
    except msgspec.ValidationError as error:
        remedy = "Write memory=512M, cpu=0.5, processes=64 or KEY=unlimited."
        raise ConfigurationError(WHERE, str(error), remedy) from error
    limits = compile_limits(document, WHERE)
    return {FIELDS[key]: getattr(limits, FIELDS[key]) for key in wanted}


def _is_live(key: str, running: "RunningWorker | None") -> bool:
    if running is None or running.provided is None:
        return False
    if key in _DETECTED:
        return bool(running.provided.private)
    if running.provided.group is None:
        return False
    held = running.provided.group.layers
    return FIELDS[key] in changes.LIVE_LIMITS and _LAYERS[key] in held


def _watch(running: "RunningWorker", fields: dict[str, Any]) -> None:
    """What is only detected needs nobody's leave."""
    if running.provided is not None and fields:
        profile = running.provided.profile
        limits = msgspec.structs.replace(profile.limits, **fields)
        running.provided.profile = msgspec.structs.replace(profile, limits=limits)


def move(running: "RunningWorker", fields: dict[str, Any], *, by: str) -> None:
    """Set fields of Limits that a control group holds, now.

    Raises:
        VsmError: the kernel refused one; what held before holds again.
    """
    provided = running.provided
    if provided is None or provided.group is None:
        return
    before = provided.profile
    limits: Limits = msgspec.structs.replace(before.limits, **fields)
    try:
        provided.group.set_limits(CgroupLimits(**changes.movable(limits)))
    except VsmError:
        provided.group.set_limits(CgroupLimits(**changes.movable(before.limits)))
        raise
    provided.profile = msgspec.structs.replace(before, limits=limits)
    provided.memory_bytes = limits.memory_bytes
    _describe(running, limits, fields, by)


def set_by(group: "IntegrationGroup", running: "RunningWorker | None") -> dict[str, str]:
    """Who set which limit that a worker runs with, where that is not its profile."""
    if running is None or running.provided is None:
        return {}
    limits, found = running.provided.profile.limits, {}
    for by, given in (("system 3", group.granted), ("command", group.limits)):
        values = given.get(running.name, {})
        for key, field in FIELDS.items():
            if field in values and values[field] == getattr(limits, field):
                found[key] = by
    return found


def _describe(running: "RunningWorker", limits: Limits, moved: Collection[str], by: str) -> None:
    """What `vsm status` says of the layers whose limits were moved."""
    amounts = {
        "memory": limits.memory_bytes and f"{limits.memory_bytes >> 20} MiB",
        "processes": limits.processes and str(limits.processes),
        "cpu": limits.cpu_cores and f"{limits.cpu_cores:g} cores",
        "io": rates_text(limits),
    }
    group = running.provided.group if running.provided else None
    held = {layer for key, layer in _LAYERS.items() if FIELDS[key] in moved}
    held &= set(group.layers if group else ())
    for layer in running.spawned.layers if running.spawned else ():
        if layer["name"] in held and layer["name"] in amounts:
            amount = amounts[layer["name"]]
            layer["state"] = "in force" if amount else "not required"
            layer["detail"] = f"{amount}, by cgroup, set by {by}" if amount else "lifted"


def _row(key: str, value: object, running: "RunningWorker | None", *, live: bool) -> dict[str, str]:
    if live:
        state, detail = "in force", "by detection" if key in _DETECTED else "by cgroup"
    elif running is None:
        state, detail = "from the next start", "it does not run"
    elif key in _DETECTED:
        state, detail = "from the next start", "it has no directory of its own on the disk"
    elif FIELDS[key] in changes.LIVE_LIMITS:
        state, detail = "from the next start", "no control group holds it here: see vsm status"
    else:
        state, detail = "from the next start", "the kernel sets it at the start: vsm restart"
    return {"key": key, "value": str(value), "state": state, "detail": detail}
