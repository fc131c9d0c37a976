"""Limits for want of a control group: looks at whole process trees, and kills. A detection.

Runs in the supervisor, twice a second, only while a worker runs whose memory or processes no
control group holds. It is no limit: a tree can overshoot between two looks (a first touch of
memory runs at 0.7 GiB/s), and memory that no process maps is not seen. `vsm status` says so.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from vsm.core import restart
from vsm.plan import DETECTED

if TYPE_CHECKING:
    from vsm.integration_group import IntegrationGroup, RunningWorker

INTERVAL_S: Final = 0.5
MOST_PROCESSES: Final = 4096


class Tree(NamedTuple):
    """What a process and its descendants use: memory of their own, and tasks."""

    memory_bytes: int
    tasks: int


@dataclass
class Detection:
    """Looks after the workers of one group."""

    group: "IntegrationGroup"
    _timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from now on, until no worker needs it; called after every start."""
        if self._timer is None and any(map(_unheld, self.group.running.values())):
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        for running in list(self.group.running.values()):
            reason = _excess(running, _unheld(running)) if not running.doomed else ""
            if reason:
                name, incarnation = running.name, running.incarnation
                self.group.workers.send(restart.Failed(name, incarnation, reason))
                self.group.kill(name)
        self.start()


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
        return (
            f"out of memory: found at {used.memory_bytes >> 20} MiB of {most >> 20} MiB{DETECTED}"
        )
    if "processes" in unheld and limits.processes is not None and used.tasks > limits.processes + 1:
        return f"too many processes: found {used.tasks} of {limits.processes}{DETECTED}"
    return ""


def measure(pid: int) -> Tree:
    """Sum up a process and all below it; those that end meanwhile count as nothing."""
    memory_kib = tasks = 0
    for one in descendants(pid):
        fields = _status(one)
        memory_kib += fields.get("RssAnon", 0) + fields.get("RssShmem", 0)
        tasks += fields.get("Threads", 0)
    return Tree(memory_kib << 10, tasks)


def descendants(pid: int) -> Iterator[int]:
    """A process and all below it, at most MOST_PROCESSES."""
    waiting, seen = [pid], 0
    while waiting and seen < MOST_PROCESSES:
        seen += 1
        yield (one := waiting.pop())
        waiting += _children(one)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in _read(path).split()]
    return found


def _status(pid: int) -> dict[str, int]:
    lines = (line.split() for line in _read(Path(f"/proc/{pid}/status")).splitlines())
    wanted = {"RssAnon:", "RssShmem:", "Threads:"}
    return {words[0][:-1]: int(words[1]) for words in lines if words and words[0] in wanted}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
