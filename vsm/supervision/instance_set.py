"""The instances of one integration: how many run is S1's word, within the bounds of its entry.

Runs in the supervisor. The integration's own worker in the restart group has no process here: it
stands for the whole, so that commands, quarantine and the restart policy act on all of it. Each
instance is a worker of its own, `NAME#NUMBER`, that is started once and never again.

A failure counts against the integration where it says something of the server: an instance that
never became ready, or any of a pool. What a session does to its own instance is its own affair.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vsm.configuration.config import Integration
from vsm.core import instance_starts, restart
from vsm.core.instance_demand import Terms
from vsm.messages import InstanceTerms

if TYPE_CHECKING:
    from vsm.supervision.group import GroupRunner

SEPARATOR: Final = "#"
MEMORY_WAIT_S: Final = 1.0
_LEAST_FREE: Final = 1 / 16  # of the machine's memory
_LIVE: Final = frozenset({"starting", "ready"})


def terms_of(integration: Integration) -> Terms | None:
    """What an entry says of its instances; None where one is started and stays."""
    one, lazy = integration, integration.start == "lazy"
    if not one.has_instances:
        return None
    if one.instances == "session":
        return Terms(
            kind="session",
            most=one.max_instances,
            spares=one.spares,
            idle_stop_s=one.idle_stop_s,
            lazy=lazy,
        )
    pool = one.instances == "pool"
    least, most = (one.pool_min, one.pool_max) if pool else (1, 1)
    resident = pool and not lazy
    return Terms(
        kind="pool",
        least=least,
        most=most,
        idle_stop_s=one.idle_stop_s,
        lazy=lazy,
        resident=resident,
    )


def terms_row(integration: Integration) -> InstanceTerms | None:
    """The same for S1."""
    terms = terms_of(integration)
    return None if terms is None else InstanceTerms(**asdict(terms))


def integration_of(worker: str) -> str:
    """The integration that a worker of the group belongs to."""
    return worker.partition(SEPARATOR)[0]


def number_of(worker: str) -> int:
    """The number of an instance; 0 where the worker is none."""
    return int(worker.partition(SEPARATOR)[2] or 0)


def is_short_of_memory(meminfo: Path = Path("/proc/meminfo")) -> bool:
    """Whether less than a sixteenth of the machine's memory is available."""
    try:
        lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
        total, available = (int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return False
    return available < total * _LEAST_FREE


class InstanceSet:
    """What one integration has running, from one start of the whole to its end.

    Args:
        workers: the restart group that its instances are workers of.
        spec: of the integration; an instance's is the same but for its name and its restarts.
        incarnation: of the integration's own worker.
        number: of the last instance that there ever was.
        short_of_memory: whether the machine has too little for one more.
        end_zygote: ends the integration's own worker, where they are forked from that; nothing
            is started before `open`.
    """

    def __init__(
        self,
        workers: "GroupRunner",
        spec: restart.WorkerSpec,
        terms: Terms,
        *,
        incarnation: int,
        number: int,
        short_of_memory: Callable[[], bool] = is_short_of_memory,
        end_zygote: Callable[[], None] | None = None,
    ) -> None:
        self.terms = terms
        self._workers = workers
        self._spec = spec
        self._incarnation = incarnation
        self._starts = instance_starts.Starts(wanted=terms.first, number=number)
        self._short_of_memory = short_of_memory
        self._end_zygote = end_zygote
        self._opened = False
        self._closing = False
        self._aside = ""
        self._outdated: frozenset[str] = frozenset()
        self._verdict = restart.Exited(self.name, incarnation, "its instances ended")
        self._timer: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """The integration's."""
        return self._spec.name

    @property
    def number(self) -> int:
        """The last instance's."""
        return self._starts.number

    def members(self) -> Iterator[restart.Worker]:
        """Every instance that there is, those that end too."""
        start = self.name + SEPARATOR
        for name, worker in list(self._workers.group.workers.items()):
            if name.startswith(start):
                yield worker

    def _counted(self) -> Iterator[restart.Worker]:
        """The members, but for one that is to show first whether its like can serve."""
        return (worker for worker in self.members() if worker.spec.name != self._aside)

    def open(self) -> None:
        """Begin: what is lazy serves at once, the rest when its first instance does."""
        self._opened = True
        if self.terms.lazy:
            self._workers.send(restart.Ready(self.name, self._incarnation))
        self._review()

    def bind(self, terms: Terms) -> None:
        """Go by other bounds from now on; S1, which knows who is idle, says which are to go."""
        self.terms = terms
        self._want(self._starts.wanted)
        self._review()

    # ---- S1 --------------------------------------------------------------------------------

    def want(self, count: int, release: dict[str, str]) -> None:
        """S1's word.

        Args:
            count: how many there should be.
            release: names of instances that are of no use, with the reason.
        """
        if not self._opened:  # S1 cannot know that there is none yet
            count = max(count, self.terms.first)
        self._want(count)
        for name, reason in release.items():
            if integration_of(name) == self.name and name in self._workers.group.workers:
                self._stop(name, reason)
        self._review()

    def _want(self, count: int) -> None:
        self._starts = replace(self._starts, wanted=min(count, self.terms.most + self._replacing))

    def gateway_lost(self) -> None:
        """S1 died, and with it the sessions: whose an instance was is not known any more."""
        self._starts = replace(self._starts, wanted=self.terms.first)
        if self.terms.kind == "session":
            for worker in self._counted():
                self._stop(worker.spec.name, "the gateway restarted, and the sessions ended")

    # ---- replacement -----------------------------------------------------------------------

    @property
    def serves(self) -> bool:
        """Whether one of them is ready."""
        return any(worker.phase == "ready" for worker in self._counted())

    @property
    def in_exchange(self) -> bool:
        """Whether one is to be, or some are still to be, replaced by their like."""
        return bool(self._aside) or self._replacing

    @property
    def _replacing(self) -> bool:
        """Whether the like of some is started before those go."""
        if self.terms.kind == "session":
            return False  # whose each is belongs to it until its session ends
        return any(worker.spec.name in self._outdated for worker in self.members())

    def begin_aside(self) -> str:
        """The name of one more, by other terms, that does not count until `renew`."""
        self._starts = instance_starts.started(self._starts, 1)
        self._aside = f"{self.name}{SEPARATOR}{self._starts.number}"
        return self._aside

    def give_up_aside(self, name: str) -> None:
        """It has ended."""
        if name == self._aside:
            self._aside = ""

    def renew(self, spec: restart.WorkerSpec) -> None:
        """The one aside serves, and is one of them: the others are to be replaced by its like."""
        self._outdated = frozenset(worker.spec.name for worker in self._counted())
        self._aside, self._spec = "", spec
        self._review()

    # ---- what becomes of instances ---------------------------------------------------------

    def ready(self) -> None:
        """One serves."""
        self._starts = instance_starts.served(self._starts)
        if self._workers.phase(self.name) == "starting":
            self._workers.send(restart.Ready(self.name, self._incarnation))
        self._review()

    def failed(self, name: str, reason: str, *, served: bool, hopeless: bool) -> None:
        """One ended that was not told to.

        Args:
            name: the instance's.
            reason: how it ended.
            served: it had been ready.
            hopeless: no other one would fare better.
        """
        if self._closing or (served and self.terms.kind == "session"):
            return
        now = asyncio.get_running_loop().time()
        jitter = random.random()  # noqa: S311 - spreads restarts, guards nothing
        starts = instance_starts.failed(self._starts, self._spec, now, jitter)
        if self._workers.phase(self.name) == "starting" or hopeless:
            self.give_up(f"{name}: {reason}", hopeless=hopeless)
        elif starts is None:
            self.give_up(f"{name}, as others before it: {reason}", hopeless=True)
        else:
            self._starts = starts

    def give_up(self, reason: str, *, hopeless: bool) -> None:
        """The whole fails; before it first served, as one server that never did."""
        reason_of_end = "its instances were stopped"
        self._verdict = replace(self._verdict, reason=reason_of_end, hopeless=hopeless)
        self._workers.send(restart.Failed(self.name, self._incarnation, reason))

    def gone(self) -> None:
        """One of its processes has ended and is forgotten."""
        if self._closing:
            self._report_closed()
        else:
            self._review()

    def _stop(self, name: str, reason: str) -> None:
        self._workers.send(restart.Stop(name, drain=False, reason=reason))

    def _review(self) -> None:
        """Start what is missing, now or when the back-off is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._opened or self._closing or self._workers.group.panic:
            return
        loop = asyncio.get_running_loop()
        phases = [worker.phase for worker in self._counted()]
        live = sum(1 for phase in phases if phase in _LIVE)
        count = instance_starts.due(
            self._starts,
            self.terms,
            live=live,
            starting=phases.count("starting"),
            alive=len(phases),
            now=loop.time(),
            short_of_memory=(short := self._short_of_memory()),
            replacing=self._replacing,
        )
        for _ in range(count):
            self._start_one()
        if live < self._starts.wanted:
            self._look_again(loop.time() + MEMORY_WAIT_S if short else self._starts.not_before)

    def _look_again(self, at: float) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < at:
            self._timer = loop.call_at(at, self._review)

    def _start_one(self) -> None:
        self._starts = instance_starts.started(self._starts, 1)
        name = f"{self.name}{SEPARATOR}{self._starts.number}"
        self._workers.put(replace(self._spec, name=name, restart="temporary"))
        self._workers.send(restart.Start(name))

    # ---- the end ---------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Stop every instance, each by its own deadline; the last that goes ends the whole."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for worker in self.members():
            self._stop(worker.spec.name, reason)
        self._report_closed()

    def zygote_gone(self, verdict: restart.Exited) -> None:
        """What they are forked from has ended, and with it they do."""
        self._end_zygote = None
        if not self._verdict.hopeless:
            self._verdict = verdict
        self.close(verdict.reason)

    def _report_closed(self) -> None:
        if any(self.members()):
            return
        if self._end_zygote is not None:
            self._end_zygote()
        else:
            self._workers.send(self._verdict)
