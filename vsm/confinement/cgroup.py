"""Control groups: which hierarchies a trial shows to work, and one worker's group in them.

Owns the folders that vsm makes under its own control group, their limits, kill, freeze and
usage. Runs in the supervisor (root, or a user with a delegated subtree); a worker joins by
writing "0" into `Group.procs` before it drops anything. Order of preference: an own v2 subtree,
v1 controllers, a v2 mount without controllers (kill and freeze only), nothing. It is one file
because a trial uses the very group that a worker gets.
Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from vsm.configuration.profile import Limits
from vsm.confinement.cgroup_files import (
    CONTROLLERS,
    IO,
    SUPERVISOR_LEAF,
    V1_CONTROLLERS,
    CgroupLimits,
    block_devices,
    folder_name,
    give_back,
    group_names,
    hand_out,
    is_delegated,
    keyed_number,
    made_folder,
    mount_points,
    move_family,
    own_folder,
    owner,
    read_words,
    remove_tree,
    role,
    v1_rate,
    v1_writes,
    v2_rate,
    v2_writes,
    wait_dead,
    write_value,
)
from vsm.errors import VsmError
from vsm.linux import pidfd
from vsm.run_name import RUN_NAME, owner_is_dead, run_name

__all__ = ["CgroupFacts", "CgroupLimits", "Cgroups", "Group", "Usage", "detect", "limits_of"]

KILL_ROUNDS = 20
Kind = Literal["v2", "v1", "kill-only", "none"]


class CgroupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial showed.

    Args:
        kind: which world the limits come from.
        folders: controller → the folder that new groups are made in; "unified" is the v2 one.
        memory, swap, processes, cpu, kill, freeze: a trial child was really held by it.
        io: a rate was accepted for a disk and read back.
        reason: why nothing better is there ("" where everything is).
    """

    kind: Kind = "none"
    folders: dict[str, str] = {}
    memory: bool = False
    swap: bool = False
    processes: bool = False
    cpu: bool = False
    kill: bool = False
    freeze: bool = False
    io: bool = False
    reason: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a group used; None where no controller counts it."""

    memory_bytes: int | None
    memory_peak_bytes: int | None
    oom_kills: int | None
    cpu_s: float | None
    processes: int | None


def limits_of(limits: Limits) -> CgroupLimits:
    """The part of a profile's limits that a group can hold."""
    fields = CgroupLimits.__struct_fields__
    return CgroupLimits(**{name: getattr(limits, name) for name in fields})


# -- detection -------------------------------------------------------------------------------------


def detect(*, claim: bool = False) -> CgroupFacts:
    """Find what works here, by making a group, limiting a trial child in it and removing it.

    Args:
        claim: move the calling process into a leaf of its own first, since a v2 group that holds
            processes cannot hand out controllers; done unasked where systemd delegated the group.
    """
    reasons: list[str] = []
    for kind, find in (("v2", _v2_folders), ("v1", _v1_folders), ("kill-only", _bare_folders)):
        folders = find(claim, reasons)
        facts = _trial(kind, folders, reasons) if folders else None  # type: ignore[arg-type]
        if facts is not None:
            return facts
    return CgroupFacts(reason="; ".join(reasons) or "no cgroup file system is mounted")


def _v2_folders(claim: bool, reasons: list[str]) -> dict[str, str]:  # noqa: FBT001
    base = own_folder("cgroup2", "")
    if base is None:
        return {}
    if base.name == SUPERVISOR_LEAF:
        base = base.parent
    offered = set(read_words(base / "cgroup.controllers"))
    wanted = [name for name in (*CONTROLLERS, IO) if name in offered]
    if not set(wanted) & set(CONTROLLERS):
        reasons.append(f"{base}: no memory, pids or cpu controller is delegated")
        return {}
    if not set(wanted) <= set(read_words(base / "cgroup.subtree_control")):
        claimed = claim or is_delegated(base)
        try:
            if claimed:
                move_family(base, made_folder(base / SUPERVISOR_LEAF))
                atexit.register(_give_back, base, os.getpid())
            hand_out(base, wanted)
        except OSError as error:
            if claimed:
                give_back(base, base / SUPERVISOR_LEAF)
            reasons.append(
                f"{base}: cannot hand out controllers ({error.strerror}); run vsm as a service "
                "or by `systemd-run --user --scope -p Delegate=yes`"
            )
            return {}
    return {name: str(base) for name in ("unified", *wanted)}


def _give_back(base: Path, pid: int) -> None:
    """At the end of the process that claimed the group, not of its forks."""
    if os.getpid() == pid:
        give_back(base, base / SUPERVISOR_LEAF)


def _v1_folders(_claim: bool, reasons: list[str]) -> dict[str, str]:  # noqa: FBT001
    folders: dict[str, str] = {}
    refused: list[str] = []
    for name in V1_CONTROLLERS:
        base = own_folder("cgroup", name)
        if base is not None and _can_make_in(base, refused):
            folders[name] = str(base)
    reasons += refused[:1]  # one of up to five alike
    if not set(folders) & set(CONTROLLERS):
        return {}
    return folders | _bare_folders(_claim, reasons)


def _bare_folders(_claim: bool, reasons: list[str]) -> dict[str, str]:  # noqa: FBT001
    base = own_folder("cgroup2", "")
    if base is None or not _can_make_in(base, reasons):
        return {}
    return {"unified": str(base)}


def _can_make_in(base: Path, reasons: list[str]) -> bool:
    trial = base / f"{run_name()}-trial"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        reasons.append(f"{base}: cannot make a group ({error.strerror})")
        return False
    return True


def _trial(kind: Kind, folders: dict[str, str], reasons: list[str]) -> CgroupFacts | None:
    """Hold a trial child in a group and report which controllers really held it."""
    all_claimed = CgroupFacts(
        kind=kind, folders=folders, memory=True, processes=True, cpu=True, kill=True, freeze=True
    )
    group = Group(all_claimed, f"{run_name()}-trial")
    try:
        group.make()
        facts = _trial_facts(group, kind, folders, reasons)
    except OSError as error:
        reasons.append(f"{kind}: the trial child could not be held ({error.strerror})")
        return None
    finally:
        group.remove()
    return facts


def _trial_facts(
    group: Group, kind: Kind, folders: dict[str, str], reasons: list[str]
) -> CgroupFacts:
    limit = 64 << 20
    io = _trial_io(group)  # first, for it lifts what is not io's
    memory = _holds(lambda: group.set_limits(CgroupLimits(memory_bytes=limit)), folders, "memory")
    memory = memory and group.limits().memory_bytes == limit
    swap = memory and _holds(
        lambda: group.set_limits(CgroupLimits(memory_bytes=limit, swap_bytes=0)), folders, "memory"
    )
    cpu = _holds(lambda: group.set_limits(CgroupLimits(cpu_cores=0.5)), folders, "cpu")
    cpu = cpu and group.limits().cpu_cores == 0.5  # noqa: PLR2004  # what was just written
    processes = _holds(lambda: group.set_limits(CgroupLimits(processes=1)), folders, "pids")
    fork_refused, killed, froze = _trial_child(group)
    held = {"memory": memory, "processes": processes and fork_refused, "cpu": cpu, "swap": swap}
    reasons += [f"{kind}: no {name} limit" for name, works in held.items() if not works]
    return CgroupFacts(
        kind=kind,
        folders=folders,
        kill=killed,
        freeze=froze,
        io=io,
        reason="; ".join(reasons),
        **held,
    )


def _trial_io(group: Group) -> bool:
    """A rate for every disk; a host that shows none has none to limit."""
    rate = 1 << 30
    if not {IO, "blkio"} & group.folders.keys() or not block_devices():
        return False
    try:
        group.set_limits(CgroupLimits(io_read_bytes_s=rate, io_write_bytes_s=rate))
    except VsmError:
        return False
    found = group.limits()
    return (found.io_read_bytes_s, found.io_write_bytes_s) == (rate, rate)


def _holds(change: Callable[[], None], folders: dict[str, str], controller: str) -> bool:
    if controller not in folders:
        return False
    try:
        change()
    except VsmError:
        return False
    return True


def _trial_child(group: Group) -> tuple[bool, bool, bool]:
    """Put a child into the group: was its fork refused, did freeze hold, did kill end it."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _be_trial_child(group.procs, tell)
    os.close(tell)
    try:
        answer = os.read(told, 1)
        if answer not in (b"R", b"F"):
            raise OSError(errno.EPERM, "the child could not join")
        frozen = group.freeze() and group.thaw()
        group.kill()
    finally:
        os.close(told)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return answer == b"R", True, frozen


def _be_trial_child(procs: tuple[str, ...], tell: int) -> None:
    """Runs in the child; never returns. Joins, tries to fork, waits for its end."""
    try:
        for path in procs:
            write_value(Path(path), "0")
        try:
            grandchild = os.fork()
        except OSError:
            os.write(tell, b"R")
        else:
            if grandchild == 0:
                os._exit(0)
            os.waitpid(grandchild, 0)
            os.write(tell, b"F")
        signal.pause()
    finally:
        os._exit(1)


# -- groups ----------------------------------------------------------------------------------------


class Cgroups:
    """All groups of one vsm run; lives in the supervisor.

    Args:
        facts: what `detect` answered in this same process.
    """

    def __init__(self, facts: CgroupFacts) -> None:
        self.facts = facts
        self.run = run_name()

    def create(self, name: str, limits: CgroupLimits) -> Group:
        """Make a worker's group with its limits; empty where no cgroup works.

        Raises:
            VsmError: a controller that the facts promise refused a limit.
        """
        group = Group(self.facts, f"{self.run}/{folder_name(name)}")
        try:
            group.make()
        except OSError as error:
            raise _failed("make a control group", str(error.filename), error) from error
        group.set_limits(limits)
        return group

    def sweep(self) -> list[str]:
        """Kill and remove what dead vsm runs of this pid namespace left; return their names.

        Their groups may lie elsewhere: a run is below the group that it was started in.
        """
        swept = set()
        for name, groups in _stale_groups(self.facts).items():
            for group in groups:
                group.kill()
                group.remove()
            swept.add(name)
        return sorted(swept)

    def close(self) -> None:
        """Kill what is left in any group of this run, and remove them all."""
        self._remove_all(self.run)

    def _remove_all(self, run: str) -> None:
        workers = [f"{run}/{worker}" for worker in group_names(self.facts.folders, run)]
        for relative in (*workers, run):
            group = Group(self.facts, relative)
            group.kill()
            group.remove()


class Group:
    """One worker's group: the same relative path in every hierarchy in use."""

    def __init__(
        self, facts: CgroupFacts, relative: str, folders: dict[str, Path] | None = None
    ) -> None:
        self.facts = facts
        self._has_rates = False
        self.folders = folders or {n: Path(base, relative) for n, base in facts.folders.items()}

    @property
    def procs(self) -> tuple[str, ...]:
        """The files into which a process writes "0" to join."""
        return tuple(dict.fromkeys(str(f / "cgroup.procs") for f in self.folders.values()))

    @property
    def paths(self) -> tuple[str, ...]:
        """The folders to join, as `vsm.confinement.plan.WorkerRequest.cgroups` takes them."""
        return tuple(dict.fromkeys(map(str, self.folders.values())))

    @property
    def layers(self) -> tuple[str, ...]:
        """Which of "memory", "processes", "cpu" and "io" the group really enforces."""
        facts = self.facts
        works = {
            "memory": facts.memory,
            "processes": facts.processes,
            "cpu": facts.cpu,
            "io": facts.io,
        }
        return tuple(layer for layer, holds in works.items() if holds)

    @property
    def unified(self) -> str | None:
        """The v2 folder, for CLONE_INTO_CGROUP."""
        folder = self.folders.get("unified")
        return str(folder) if folder else None

    def make(self) -> None:
        """Make the folders; in v2 the run's folder hands its controllers on."""
        for folder in dict.fromkeys(self.folders.values()):
            made_folder(folder.parent)
            if self.facts.kind == "v2":
                wanted = [name for name in (*CONTROLLERS, IO) if name in self.folders]
                hand_out(folder.parent, wanted)
            made_folder(folder)

    def set_limits(self, limits: CgroupLimits) -> None:
        """Put limits in force now; works on a running worker too.

        Raises:
            VsmError: a limit was refused, with the file and the reason.
        """
        writes = v2_writes if self.facts.kind == "v2" else v1_writes
        rates = limits.io_read_bytes_s is not None or limits.io_write_bytes_s is not None
        devices = block_devices() if rates or self._has_rates else ()
        self._has_rates = rates
        for controller, file, value in writes(limits, devices):
            folder = self.folders.get(controller)
            if folder is None or (file.startswith("memory.mems") and not (folder / file).exists()):
                continue
            try:
                write_value(folder / file, value)
            except OSError as error:
                raise _failed(f"write {value} to", str(folder / file), error) from error

    def limits(self) -> CgroupLimits:
        """Read the limits back from the kernel."""
        if self.facts.kind == "v2":
            quota, _, period = self._text("cpu", "cpu.max").partition(" ")
            memory = self._number("memory", "memory.max")
            swap = self._number("memory", "memory.swap.max")
            rates = self._text(IO, "io.max")
            read, write = v2_rate(rates, "rbps"), v2_rate(rates, "wbps")
        else:
            quota = self._text("cpu", "cpu.cfs_quota_us")
            period = self._text("cpu", "cpu.cfs_period_us")
            memory = self._number("memory", "memory.limit_in_bytes")
            both = self._number("memory", "memory.memsw.limit_in_bytes")
            swap = both - memory if both is not None and memory is not None else None
            files = (f"blkio.throttle.{name}_bps_device" for name in ("read", "write"))
            read, write = (v1_rate(self._text("blkio", file)) for file in files)
        cores = int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
        return CgroupLimits(
            memory_bytes=memory,
            swap_bytes=swap,
            processes=self._number("pids", "pids.max"),
            cpu_cores=cores,
            io_read_bytes_s=read,
            io_write_bytes_s=write,
        )

    def usage(self) -> Usage:
        """Read what the group uses now."""
        if self.facts.kind == "v2":
            cpu_us = keyed_number(self._text("cpu", "cpu.stat"), "usage_usec")
            return Usage(
                memory_bytes=self._number("memory", "memory.current"),
                memory_peak_bytes=self._number("memory", "memory.peak"),
                oom_kills=keyed_number(self._text("memory", "memory.events"), "oom_kill"),
                cpu_s=None if cpu_us is None else cpu_us / 1e6,
                processes=self._number("pids", "pids.current"),
            )
        cpu_ns = self._number("cpuacct", "cpuacct.usage")
        return Usage(
            memory_bytes=self._number("memory", "memory.usage_in_bytes"),
            memory_peak_bytes=self._number("memory", "memory.max_usage_in_bytes"),
            oom_kills=keyed_number(self._text("memory", "memory.oom_control"), "oom_kill"),
            cpu_s=None if cpu_ns is None else cpu_ns / 1e9,
            processes=self._number("pids", "pids.current"),
        )

    def pids(self) -> set[int]:
        """The processes in the group, as this pid namespace numbers them."""
        found = {int(pid) for path in self.procs for pid in read_words(Path(path))}
        return found - {0}

    def kill(self) -> None:
        """Kill every process of the group, new ones included; wait until each is dead."""
        unified = self.folders.get("unified")
        if unified is not None:
            with contextlib.suppress(OSError):
                pids = self.pids()
                write_value(unified / "cgroup.kill", "1")
                wait_dead(pids)
        for _ in range(KILL_ROUNDS):  # without cgroup.kill a fork can escape one round, not frozen
            pids = self.pids()
            if not pids:
                return
            self.freeze()
            pidfd.kill_members(pids | self.pids(), self.pids)
            self.thaw()
            wait_dead(pids)

    def freeze(self) -> bool:
        """Stop every process where it is; False where no freezer works."""
        return self._set_frozen(frozen=True)

    def thaw(self) -> bool:
        """Undo `freeze`."""
        return self._set_frozen(frozen=False)

    def try_remove(self) -> bool:
        """Remove the folders now; False while a process is still in one."""
        gone = True
        for folder in dict.fromkeys(self.folders.values()):
            gone = remove_tree(folder) and gone
        return gone

    def remove(self) -> bool:
        """Kill what is left and remove the folders; False if the kernel still holds one."""
        for _ in range(KILL_ROUNDS):
            if self.try_remove():
                return True
            self.kill()
            time.sleep(0.001)  # a dead task leaves its group a moment after its pidfd fires
        return False

    def _set_frozen(self, *, frozen: bool) -> bool:
        for name, file, values in (
            ("unified", "cgroup.freeze", ("0", "1")),
            ("freezer", "freezer.state", ("THAWED", "FROZEN")),
        ):
            folder = self.folders.get(name)
            if folder is not None and (folder / file).exists():
                with contextlib.suppress(OSError):
                    write_value(folder / file, values[frozen])
                    return True
        return False

    def _text(self, controller: str, file: str) -> str:
        folder = self.folders.get(controller)
        try:
            return (folder / file).read_text(encoding="ascii").strip() if folder else ""
        except OSError:
            return ""

    def _number(self, controller: str, file: str) -> int | None:
        text = self._text(controller, file)
        # v1 writes "no limit" as the largest multiple of a page.
        return int(text) if text.isdigit() and int(text) < 1 << 62 else None


# -- names and files -------------------------------------------------------------------------------


def _stale_groups(facts: CgroupFacts) -> dict[str, list[Group]]:
    """Dead runs' names → their groups, wherever they are, innermost first.

    Only what this user made: in a subtree that is delegated to him, another one may give a group
    of his such a name.
    """
    found: dict[str, dict[str, dict[str, Path]]] = {}
    for mounted in mount_points():
        for path, _, _ in os.walk(mounted, topdown=False):
            names = [part for part in Path(path).parts if RUN_NAME.match(part)]
            if names and owner_is_dead(names[0]) and owner(path) == os.geteuid():
                inner = path.partition(names[0])[2]
                found.setdefault(names[0], {}).setdefault(inner, {})[role(path)] = Path(path)
    return {
        name: [Group(facts, name, folders) for folders in inner.values()]
        for name, inner in found.items()
    }


def _failed(action: str, path: str, error: OSError) -> VsmError:
    return VsmError(
        "cgroup", f"cannot {action} {path}: {error.strerror}", "Run `vsm sandbox probe`."
    )
