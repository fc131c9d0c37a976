"""How many instances of one server there should be, and which may go: pure.

S1 asks it at every event that can change the answer; the supervisor asks it what to begin with.
What the answer costs in processes is bounded by `most`, whoever calls and however often. S3 may
put a lower bound in its place (`within`): S1 is quick inside of it, S3 moves it.

kind      an instance serves            wanted
pool      whoever calls, least busy     at least the floor; one more when all are busy, and one
                                        more while there are some that are to be replaced
session   one session and never another one for each session, and `spares` that nobody has yet
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["pool", "session"]

SURPLUS_S: Final = 60.0  # a pool's instance above the floor, or a session's that nobody wants
SESSION_IDLE_S: Final = 3600.0
LOSSES: Final = 3  # of one session …
LOSSES_PERIOD_S: Final = 60.0  # … within this time


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an entry of the configuration says of its instances.

    Args:
        least, most: how many there are in use; `least` counts for a pool only.
        spares: initialised ones that wait for a session.
        idle_stop_s: unused for so long, one is stopped; 0 is never, but for what is surplus.
        lazy: nothing is started before somebody needs it.
        resident: `least` of a pool stay although nobody calls.
    """

    kind: Kind
    least: int = 0
    most: int = 1
    spares: int = 0
    idle_stop_s: float = 0.0
    lazy: bool = False
    resident: bool = False

    def within(self, bound: int) -> "Terms":
        """The same with so many at most, never below `least` nor above what the entry says."""
        return replace(self, most=max(1, self.least, min(bound, self.most)))

    @property
    def floor(self) -> int:
        """How many there are although nobody calls and nobody has called."""
        return self.least if self.resident else 0

    @property
    def first(self) -> int:
        """How many to begin with: one at least, for what the server offers has to be known."""
        if self.lazy:
            return 0
        return min(self.most, max(1, self.least if self.kind == "pool" else self.spares))

    def idle_spares(self, sessions: int) -> int:
        """How many shall wait for a session, with so many sessions."""
        return self.spares if sessions or not self.lazy else 0


class Load(NamedTuple):
    """What there is and who wants it.

    Args:
        live: started or starting, and not to be stopped. busy: of those, with calls in flight.
        starting: of those, not initialised yet. outdated: of those, to be replaced one by one.
        claimed: belong to a session. waiting: sessions that have none yet.
        needed: what the server offers is not known, and is to be.
        called: a call came just now.
    """

    live: int = 0
    busy: int = 0
    starting: int = 0
    claimed: int = 0
    waiting: int = 0
    needed: bool = False
    called: bool = False
    outdated: int = 0

    @property
    def lasting(self) -> int:
        """How many there are, but for those that start in the place of outdated ones."""
        return self.live - min(self.outdated, self.starting)


def wanted(terms: Terms, load: Load) -> int:
    """How many instances there should be now."""
    least = 1 if load.needed else 0
    if terms.kind == "session":
        sessions = load.claimed + load.waiting
        return min(terms.most, max(least, sessions + terms.idle_spares(sessions)))
    if load.called:
        all_busy = load.busy >= load.live and not load.starting
        least = max(least, load.live + 1 if all_busy else 1)
    count = min(terms.most, max(terms.floor, least, load.lasting))
    return count + bool(load.outdated)


class Unused(NamedTuple):
    """An instance without a call in flight."""

    worker: str
    since_s: float
    claimed: bool


def to_stop(
    terms: Terms, live: int, sessions: int, unused: Iterable[Unused], now: float
) -> list[str]:
    """Which instances have been unused for too long, or are too many; the longest unused first.

    Args:
        terms: of the integration.
        live: how many there are, but for those that start in the place of outdated ones.
        sessions: how many have an instance, or wait for one.
        unused: those without a call in flight.
        now: the time of their `since_s`.
    """
    gone: list[str] = []
    for one in sorted(unused, key=lambda unused: unused.since_s):
        if terms.kind == "pool" and live > terms.most:  # the bound was lowered
            gone.append(one.worker)
            live -= 1
            continue
        if terms.kind == "pool":
            limit_s = _pool_limit_s(terms, live)
        elif one.claimed:
            limit_s = terms.idle_stop_s or SESSION_IDLE_S
        else:
            limit_s = SURPLUS_S if live > sessions + terms.idle_spares(sessions) else 0.0
        if limit_s and now - one.since_s >= limit_s:
            gone.append(one.worker)
            live -= 1
            sessions -= one.claimed
    return gone


def _pool_limit_s(terms: Terms, live: int) -> float:
    if live > terms.least:
        return terms.idle_stop_s or SURPLUS_S
    return terms.idle_stop_s if live > terms.floor else 0.0
