"""What each integration uses, looked at in intervals and kept in shared memory.

Runs in the supervisor, whether a budget is configured or not. Owns the resource board and the
last look at each worker. Reads files of control groups; sets nothing and decides nothing.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from vsm.board.resources import LIMITS, ResourceBoard, ResourceReader, Sample, as_json
from vsm.confinement.cgroup import Group
from vsm.governance import pressure

if TYPE_CHECKING:
    from vsm.supervision.running_worker import RunningWorker

Workers = Callable[[], "dict[str, list[RunningWorker]]"]


class Look(NamedTuple):
    """One look at a worker."""

    at_s: float
    seen: pressure.Sample


class ResourceSamples:
    """The samples of one supervisor.

    Args:
        names: of all integrations. workers: those that serve, by integration.
        interval_s: between two looks.
    """

    def __init__(
        self, names: Callable[[], Iterable[str]], workers: Workers, interval_s: float
    ) -> None:
        self._names, self._workers, self._interval_s = names, workers, interval_s
        self._board: ResourceBoard | None = None
        self._looks: dict[str, Look] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from now on."""
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._look_again)
        self.board()  # at once: what the supervisor holds does not grow afterwards

    def stop(self) -> None:
        """Look no more, and give the memory back."""
        if self._timer is not None:
            self._timer.cancel()
        if self._board is not None:
            self._board.close()
            self._board = None

    def board(self) -> ResourceBoard:
        """With a row for each integration that there is now."""
        names = frozenset(self._names())
        if self._board is None or self._board.names != names:
            before, self._board = self._board, ResourceBoard(names)
            if before is not None:
                before.close()
        return self._board

    def _look_again(self) -> None:
        self.start()
        self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        """Sample every integration."""
        board, serving = self.board(), self._workers()
        looks: dict[str, Look] = {}
        for name in board.names:
            pairs = []
            for worker_id, group in _groups_of(serving.get(name, ())):
                look = looks[worker_id] = Look(now_s, pressure.sample(group))
                pairs.append((self._looks.get(worker_id), look))
            board.put(name, together(pairs) if pairs else None)
        self._looks = looks
        board.stamp(int(now_s * 1e9))

    def dump(self) -> dict[str, Any]:
        """What is on the board, as any reader sees it."""
        board = self.board()
        reader = ResourceReader(board.fileno())
        try:
            stamp_s = reader.stamp_ns / 1e9
            return {
                "bytes": board.bytes,
                "sampled_s_ago": round(time.monotonic() - stamp_s, 3) if stamp_s else None,
                "integrations": {
                    name: as_json(sample) for name, sample in reader.read(board.names).items()
                },
            }
        finally:
            reader.close()


def _groups_of(workers: "Iterable[RunningWorker]") -> list[tuple[str, Group]]:
    """Each control group once: what is forked from a server counts in the server's."""
    found: dict[int, tuple[str, Group]] = {}
    for worker in workers:
        group = worker.provided.group if worker.provided is not None else None
        if group is not None:
            found.setdefault(id(group), (worker.worker_id, group))
    return list(found.values())


def together(pairs: "list[tuple[Look | None, Look]]") -> Sample:
    """What all instances of one integration use; each with the look before it, if there was."""
    now = [look.seen for _, look in pairs]
    memory = [seen.used["memory"] for seen in now if "memory" in seen.used]
    tasks = [seen.used["processes"] for seen in now if "processes" in seen.used]
    since = [(a, b) for a, b in pairs if a is not None and b.at_s > a.at_s]
    rates = [
        max(0.0, b.seen.used["cpu"] - a.seen.used["cpu"]) / (b.at_s - a.at_s)
        for a, b in since
        if "cpu" in a.seen.used and "cpu" in b.seen.used
    ]
    met = {
        name
        for a, b in since
        for name in LIMITS
        if b.seen.pressure.get(name, 0.0) > a.seen.pressure.get(name, 0.0)
    }
    return Sample(
        int(sum(memory)) if memory else None,
        sum(rates) if rates else None,
        int(sum(tasks)) if tasks else None,
        tuple(name for name in LIMITS if name in met),
    )
