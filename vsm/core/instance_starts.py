"""When instances of one server are started, and when to give up: pure.

One instance is one process that is never restarted; its number is never used again. Failures
are those that say something of the server rather than of one session: see
`vsm.supervision.instance_set`.
"""

from dataclasses import dataclass, replace
from typing import Final

from vsm.core.instance_demand import Terms
from vsm.core.restart import WorkerSpec, backoff_s

STARTING_AT_ONCE: Final = 2


@dataclass(frozen=True)
class Starts:
    """What is remembered.

    Args:
        wanted: how many there should be. number: of the last one that was started.
        failures: when, within the period. streak: how many in a row.
        not_before: no start earlier than this.
    """

    wanted: int = 0
    number: int = 0
    failures: tuple[float, ...] = ()
    streak: int = 0
    not_before: float = 0.0


def due(
    starts: Starts,
    terms: Terms,
    *,
    live: int,
    starting: int,
    alive: int,
    now: float,
    short_of_memory: bool = False,
    replacing: bool = False,
) -> int:
    """How many to start now.

    Args:
        starts: what is remembered.
        terms: of the integration.
        live: starting or ready.
        starting: of those.
        alive: every process, those that end too.
        now: the time.
        short_of_memory: of the machine; then there is one, and no more.
        replacing: some are outdated; their like comes before they go, so there may be one more.
    """
    if now < starts.not_before or (short_of_memory and alive):
        return 0
    most = terms.most + replacing
    missing = min(starts.wanted, most) - live
    return max(0, min(missing, most - alive, STARTING_AT_ONCE - starting))


def started(starts: Starts, count: int) -> Starts:
    """So many were started."""
    return replace(starts, number=starts.number + count)


def served(starts: Starts) -> Starts:
    """One became ready."""
    return replace(starts, streak=0)


def failed(starts: Starts, spec: WorkerSpec, now: float, jitter: float) -> Starts | None:
    """One failed; None: too often, give up."""
    recent = (*(at for at in starts.failures if at > now - spec.period_s), now)
    if len(recent) > spec.intensity:
        return None
    streak = starts.streak + 1
    pause_s = backoff_s(spec, streak, jitter)
    return replace(starts, failures=recent, streak=streak, not_before=now + pause_s)
