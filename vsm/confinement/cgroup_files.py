"""The files of control groups: folders made and removed, values.

Owns what is read from and written to a cgroup file system. Used by `vsm.confinement.cgroup` only,
in its process and with its privilege.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vsm.run_name import run_name

CONTROLLERS = ("memory", "pids", "cpu")
V1_CONTROLLERS = (*CONTROLLERS, "cpuacct", "freezer", "blkio")
IO = "io"  # of version 2; wanted beside the others, and done without where it is not offered
_MOST_DEVICES = 64
_NO_DISKS = ("loop", "ram", "zram", "nbd", "sr", "fd")
SUPERVISOR_LEAF = "supervisor"
MOUNTS = Path("/proc/self/mountinfo")
CPU_PERIOD_US = 100_000


class CgroupLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one group; None is no limit."""

    memory_bytes: int | None = None
    swap_bytes: int | None = None
    processes: int | None = None
    cpu_cores: float | None = None
    io_read_bytes_s: int | None = None
    io_write_bytes_s: int | None = None


def folder_name(name: str) -> str:
    """A worker's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "_"


def role(path: str) -> str:
    """The key under which `Group` looks for a folder that kills or freezes."""
    for name, file in (("unified", "cgroup.kill"), ("freezer", "freezer.state")):
        if Path(path, file).exists():
            return name
    return path


def owner(path: str) -> int | None:
    """The uid that a folder belongs to; None if it is gone."""
    try:
        return os.lstat(path).st_uid
    except OSError:
        return None


def mount_points() -> Iterator[str]:
    """Where cgroup file systems are mounted."""
    for fields, (fstype, *_) in _mounts():
        if fstype.startswith("cgroup"):
            yield fields[4].replace("\\040", " ")


def _mounts() -> Iterator[tuple[list[str], list[str]]]:
    """Each mount's fields, and its type, source and options.

    Other users name mount points of theirs (by FUSE), in whatever bytes; the kernel escapes what
    ends a line or a field for it, and no more.
    """
    for line in MOUNTS.read_bytes().decode("utf-8", "surrogateescape").split("\n"):
        left, found, right = line.partition(" - ")
        if found:
            yield left.split(" "), right.split(" ", 2)


def group_names(folders: dict[str, str], run: str) -> set[str]:
    """The names of a run's groups."""
    runs = [Path(base, run) for base in set(folders.values())]
    return {e.name for folder in runs if folder.is_dir() for e in folder.iterdir() if e.is_dir()}


def remove_tree(folder: Path) -> bool:
    """Remove a group and those below it; False while a process is in one."""
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                remove_tree(Path(entry.path))
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def wait_dead(pids: set[int], timeout_s: float = 2.0) -> None:
    """Wait on pidfds; a process that is not ours to wait for still makes its pidfd readable."""
    poll, fds = select.poll(), []
    for pid in pids:
        with contextlib.suppress(OSError):
            fds.append(os.pidfd_open(pid))
            poll.register(fds[-1], select.POLLIN)
    end = time.monotonic() + timeout_s
    waiting = set(fds)
    while waiting and (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            waiting.discard(fd)
    for fd in fds:
        os.close(fd)


def made_folder(folder: Path) -> Path:
    """The folder, made if need be."""
    folder.mkdir(exist_ok=True)
    return folder


def move_family(base: Path, leaf: Path) -> None:
    """Move this process, and its children if they are in `base`, into `leaf`.

    A v2 group that hands out controllers must hold no process, and the launcher and the template
    have been started before.
    """
    family = {str(os.getpid())} | set(read_words(Path(f"/proc/self/task/{os.getpid()}/children")))
    for pid in read_words(base / "cgroup.procs"):
        if pid in family:
            with contextlib.suppress(ProcessLookupError):
                write_value(leaf / "cgroup.procs", pid)


def is_delegated(base: Path) -> bool:
    """Whether systemd gave this group away (Delegate=yes); it marks it so since version 251."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(base, name) == b"1":
                return True
    return False


def give_back(base: Path, leaf: Path) -> None:
    """Undo `move_family` and `hand_out`, as far as others allow.

    A service manager cannot start another command of the unit in a group that hands out
    controllers (EBUSY), such as its ExecStart= after a `vsm` in ExecStartPre=.
    """
    control = base / "cgroup.subtree_control"
    with contextlib.suppress(OSError):
        write_value(control, " ".join(f"-{name}" for name in read_words(control)))
        for pid in read_words(leaf / "cgroup.procs"):
            with contextlib.suppress(ProcessLookupError):
                write_value(base / "cgroup.procs", pid)
        leaf.rmdir()


def places() -> list[str]:
    """Every folder in which this process may make groups: what is left of it when it is killed."""
    own = [own_folder("cgroup", name) for name in V1_CONTROLLERS]
    unified = own_folder("cgroup2", "")
    if unified is not None:
        own += [unified, unified.parent] if unified.name == SUPERVISOR_LEAF else [unified]
    bases = dict.fromkeys(str(base) for base in own if base is not None)
    return [f"{base}/{name}" for base in bases for name in (run_name(), f"{run_name()}-trial")]


def write_value(path: Path, value: str) -> None:
    """Write a value; an OSError names the file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # O_CREAT or O_TRUNC mean nothing here
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(fd)


def read_words(path: Path) -> list[str]:
    """The words of a file; none if it cannot be read."""
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def keyed_number(text: str, key: str) -> int | None:
    """The number after a key of a flat keyed file."""
    pairs = (line.split() for line in text.splitlines())
    return next((int(pair[1]) for pair in pairs if pair[:1] == [key]), None)


def own_folder(kind: str, controller: str) -> Path | None:
    """The folder of the calling process's own group in one hierarchy."""
    for fields, (fstype, _source, options) in _mounts():
        if fstype != kind or (controller and controller not in options.split(",")):
            continue
        root, mounted = fields[3], fields[4].replace("\\040", " ")
        own = own_group(controller).removeprefix(root if root != "/" else "").lstrip("/")
        folder = Path(mounted, own)
        # A container may show a group path that its own mount does not have.
        return folder if folder.is_dir() else Path(mounted)
    return None


def own_group(controller: str) -> str:
    """The calling process's group in one hierarchy, as /proc names it."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, names, path = line.split(":", 2)
        if (controller in names.split(",")) if controller else (number == "0"):
            return path
    return "/"


def hand_out(folder: Path, controllers: list[str]) -> None:
    """Give the groups below a v2 folder these controllers; OSError if it does not.

    The one for io is not worth a failure: without it there is no io limit, and vsm says so.
    """
    control = folder / "cgroup.subtree_control"
    there = set(read_words(control))
    needed = [name for name in controllers if name != IO]
    if not set(needed) <= there:
        write_value(control, " ".join(f"+{name}" for name in needed))
    if IO in controllers and IO not in there:
        with contextlib.suppress(OSError):
            write_value(control, f"+{IO}")


def block_devices(folder: Path = Path("/sys/block")) -> tuple[str, ...]:
    """MAJOR:MINOR of each disk; partitions are limited by their disk."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return ()
    disks = [name for name in names if not name.startswith(_NO_DISKS)]
    found = (" ".join(read_words(folder / name / "dev")) for name in disks[:_MOST_DEVICES])
    return tuple(device for device in found if device)


def v2_writes(
    limits: CgroupLimits, devices: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    """Controller, file and value for each limit, in an order that is valid at every step.

    Args:
        limits: to put in force.
        devices: to which those of io apply; none leaves them as they are.
    """
    if limits.swap_bytes is not None:
        yield "memory", "memory.swap.max", str(limits.swap_bytes)
    yield "memory", "memory.max", _or(limits.memory_bytes, "max")
    yield "memory", "memory.oom.group", "0"
    yield "pids", "pids.max", _or(limits.processes, "max")
    cores = limits.cpu_cores
    quota = "max" if cores is None else str(max(1000, int(cores * CPU_PERIOD_US)))
    yield "cpu", "cpu.max", f"{quota} {CPU_PERIOD_US}"
    read, write = _or(limits.io_read_bytes_s, "max"), _or(limits.io_write_bytes_s, "max")
    for device in devices:
        yield IO, "io.max", f"{device} rbps={read} wbps={write}"


def v1_writes(
    limits: CgroupLimits, devices: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, str]]:
    """The same for version 1."""
    # memory <= memory + swap holds at every moment: lift the sum, set the part, set the sum.
    yield "memory", "memory.memsw.limit_in_bytes", "-1"
    yield "memory", "memory.limit_in_bytes", _or(limits.memory_bytes, "-1")
    if limits.memory_bytes is not None and limits.swap_bytes is not None:
        both = limits.memory_bytes + limits.swap_bytes
        yield "memory", "memory.memsw.limit_in_bytes", str(both)
    yield "pids", "pids.max", _or(limits.processes, "max")
    cores = limits.cpu_cores
    yield "cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US)
    yield "cpu", "cpu.cfs_quota_us", _or(cores and max(1000, int(cores * CPU_PERIOD_US)), "-1")
    for device in devices:  # 0 is no limit
        for direction, rate in (
            ("read", limits.io_read_bytes_s),
            ("write", limits.io_write_bytes_s),
        ):
            yield "blkio", f"blkio.throttle.{direction}_bps_device", f"{device} {_or(rate, '0')}"


def v2_rate(text: str, key: str) -> int | None:
    """The least of a device's `rbps` or `wbps` in io.max."""
    pairs = (word.partition("=") for word in text.split())
    found = [int(value) for name, _, value in pairs if name == key and value.isdigit()]
    return min(found, default=None)


def v1_rate(text: str) -> int | None:
    """The least rate in a blkio.throttle file."""
    found = [int(words[1]) for line in text.splitlines() if len(words := line.split()) > 1]
    return min(found, default=None)


def _or(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else str(int(value))
