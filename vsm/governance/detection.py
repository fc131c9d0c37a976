"""Limits that the kernel does not hold here: looks at whole workers, and kills. A detection.

Runs in the supervisor, twice a second, only while a worker runs that needs it: one whose memory
or processes no control group holds, or one with private directories on the disk. It is no limit:
a worker can overshoot between two looks (a first touch of memory runs at 0.7 GiB/s), and memory
that no process maps is not seen. `vsm status` says so.
"""

import asyncio
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vsm.configuration.profile import Limits
from vsm.confinement import disk_use
from vsm.confinement.plan import DETECTED
from vsm.core import restart
from vsm.supervision.last_words import OUT_OF_MEMORY

if TYPE_CHECKING:
    from vsm.supervision.integration_group import IntegrationGroup
    from vsm.supervision.provision import Provision
    from vsm.supervision.running_worker import RunningWorker

INTERVAL_S: Final = 0.5
MOST_PROCESSES: Final = 4096
NOTICED_LATE: Final = "; nothing limits it, so it was noticed late"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_SLICE_S: Final = 0.003  # of the supervisor's time at once, for a directory with many files
_NEXT_SLICE_S: Final = 0.03
_SURE_S: Final = 5.0  # so long a look counts while the file system says that little was written
_PAUSES: Final = 10  # a look that took long is followed by a pause so many times as long


class Tree(NamedTuple):
    """What a process and its descendants use.

    Args:
        memory_bytes: of their own: what they share with others is not counted.
        tasks: processes and threads.
        cpu_s: of those that were waited for, too.
    """

    memory_bytes: int
    tasks: int
    cpu_s: float


class DiskWatch:
    """One worker's private directories: looked through again and again, a slice at a time."""

    def __init__(self) -> None:
        self._walk: Generator[disk_use.Use] | None = None
        self._last: tuple[disk_use.Use, disk_use.Room] | None = None
        self._room = disk_use.Room()
        self._sure_until_s = 0.0
        self._spent_s = 0.0
        self._next_s = 0.0

    @property
    def in_the_middle(self) -> bool:
        """A look has begun that has not seen everything."""
        return self._walk is not None

    def look(self, running: "RunningWorker", now_s: float) -> str:
        """Go on looking; why the worker has to be killed, or ""."""
        if running.provided is None or running.spawned is None or now_s < self._next_s:
            return ""
        if self._walk is None:
            if self._can_have_grown_little(running.provided, now_s):
                return ""
            self._room = disk_use.room(running.provided.private)
            pids = descendants(running.spawned.pid)
            self._walk, self._spent_s = disk_use.measure(running.provided.private, pids), 0.0
        began_s = time.perf_counter()
        reason, use = "", disk_use.Use()
        for use in self._walk:
            reason = too_much(use, running.provided.profile.limits)
            if reason or time.perf_counter() - began_s > _SLICE_S:
                break
        else:
            self._walk = None
            self._spent_s += time.perf_counter() - began_s
            self._next_s = now_s + max(INTERVAL_S / 2, self._spent_s * _PAUSES)
            self._last, self._sure_until_s = (use, self._room), now_s + _SURE_S
            return ""
        self._spent_s += time.perf_counter() - began_s
        return reason

    def _can_have_grown_little(self, provided: "Provision", now_s: float) -> bool:
        """The file system has not lost what would be too much, and the last look is not old."""
        if self._last is None or now_s > self._sure_until_s:
            return False
        use = disk_use.at_most(*self._last, disk_use.room(provided.private))
        return not too_much(use, provided.profile.limits)

    def close(self) -> None:
        """Let go of what a look holds open."""
        if self._walk is not None:
            self._walk.close()


def too_much(use: disk_use.Use, limits: Limits) -> str:
    """Why so much on the disk is too much, or ""."""
    most_bytes, most_files = limits.disk_bytes, limits.disk_files
    if most_bytes is not None and use.size_bytes > most_bytes:
        found = f"{use.size_bytes >> 20} MiB of {most_bytes >> 20} MiB"
        return f"killed: too much on the disk, found {found}{NOTICED_LATE}"
    if most_files is not None and use.entries > most_files:
        found = f"{use.entries} files of {most_files}"
        return f"killed: too much on the disk, found {found}{NOTICED_LATE}"
    if use.unseen and (most_bytes is not None or most_files is not None):
        return f"killed: its private directories have {use.unseen}, so nothing limits them"
    return ""


@dataclass
class Detection:
    """Looks after the workers of one group."""

    group: "IntegrationGroup"
    _timer: asyncio.TimerHandle | None = None
    _disks: dict[str, DiskWatch] = field(default_factory=dict)

    def start(self) -> None:
        """Look from now on, until no worker needs it; called after every start."""
        running = self.group.running.values()
        if self._timer is None and any(_unheld(one) or _uses_disk(one) for one in running):
            between = any(disk.in_the_middle for disk in self._disks.values())
            delay_s = _NEXT_SLICE_S if between else INTERVAL_S
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._forget_disks(set())

    def _look(self) -> None:
        self._timer = None
        try:
            for running in list(self.group.running.values()):
                reason = "" if running.doomed else self._reason(running)
                if reason:
                    name, incarnation = running.key, running.incarnation
                    self.group.workers.send(restart.Failed(name, incarnation, reason))
                    self.group.kill(name)
            self._forget_disks({one.worker_id for one in self.group.running.values()})
        finally:
            self.start()  # whatever one of them met, the others are looked after still

    def _reason(self, running: "RunningWorker") -> str:
        reason = _excess(running, _unheld(running))
        if not reason and _uses_disk(running):
            disk = self._disks.setdefault(running.worker_id, DiskWatch())
            try:
                reason = disk.look(running, asyncio.get_running_loop().time())
            except OSError as error:
                what = error.strerror or type(error).__name__
                reason = f"killed: its private directories cannot be looked at ({what})"
        return reason

    def _forget_disks(self, kept: set[str]) -> None:
        for worker_id in self._disks.keys() - kept:
            self._disks.pop(worker_id).close()


def _uses_disk(running: "RunningWorker") -> bool:
    """Whether it has private directories whose limits nothing else holds."""
    if running.provided is None or running.spawned is None or not running.provided.private:
        return False
    limits = running.provided.profile.limits
    return limits.disk_bytes is not None or limits.disk_files is not None


def _unheld(running: "RunningWorker") -> set[str]:
    """The layers that are limits in the profile and that nothing holds."""
    layers = running.spawned.layers if running.spawned else ()
    counted = {"memory", "processes"}
    return {one["name"] for one in layers if one["name"] in counted and one["state"] == "absent"}


def _excess(running: "RunningWorker", unheld: set[str]) -> str:
    """Why it has to be killed, or ""."""
    if not unheld or running.spawned is None or running.provided is None:
        return ""
    limits, used = running.provided.profile.limits, measure(running.spawned.pid)
    most = limits.memory_bytes
    if "memory" in unheld and most is not None and used.memory_bytes > most:
        found = f"found at {used.memory_bytes >> 20} MiB of {most >> 20} MiB"
        return f"killed: {OUT_OF_MEMORY}, {found}{DETECTED}"
    if "processes" in unheld and limits.processes is not None and used.tasks > limits.processes + 1:
        return f"killed: too many processes, found {used.tasks} of {limits.processes}{DETECTED}"
    return ""


def measure(pid: int) -> Tree:
    """Sum up a process and all below it; those that end meanwhile count as nothing."""
    memory_kib = tasks = ticks = 0
    for one in descendants(pid):
        fields = _status(one)
        memory_kib += fields.get("RssAnon", 0) + fields.get("RssShmem", 0)
        tasks += fields.get("Threads", 0)
        ticks += _ticks(one)
    return Tree(memory_kib << 10, tasks, ticks / _TICKS_PER_S)


def _ticks(pid: int) -> int:
    """Of the processor, user and system, its own and its reaped children's: proc_pid_stat(5)."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def descendants(pid: int) -> Iterator[int]:
    """A process and all below it, at most MOST_PROCESSES."""
    waiting, seen = [pid], 0
    while waiting and seen < MOST_PROCESSES:
        seen += 1
        yield (one := waiting.pop())
        waiting += _children(one)


def _children(pid: int) -> list[int]:
    folder, found = Path(f"/proc/{pid}/task"), []
    try:
        threads = os.listdir(folder)  # Path.glob raises where it ends meanwhile
    except OSError:
        return []
    for thread in threads:
        found += [int(word) for word in _read(folder / thread / "children").split()]
    return found


def _status(pid: int) -> dict[str, int]:
    # A process names itself, and the kernel escapes no other line break in that than \n.
    lines = (line.split() for line in _read(Path(f"/proc/{pid}/status")).split("\n"))
    wanted = {"RssAnon:", "RssShmem:", "Threads:"}
    return {words[0][:-1]: int(words[1]) for words in lines if words and words[0] in wanted}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
