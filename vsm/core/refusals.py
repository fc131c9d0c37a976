"""Refused system calls: how fast a worker's are answered, and when they are told. Pure.

Two decisions. `Allowance`: each worker gets so many answers a second and no more, so that one
that asks a million times slows down itself alone. `Tally`: what is new is told soon, the same
again at most once a period, and nothing is lost: counts wait until they are told.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

MOST_A_SECOND: Final = 1000.0  # answers to one worker
MOST_A_SECOND_TOGETHER: Final = 4000.0
PAUSE_S: Final = 0.05  # for a worker that has used its allowance up
PERIOD_S: Final = 10.0  # between two lines about the same calls


class Allowance(NamedTuple):
    """How many answers a worker may have now, and when that was so."""

    answers: float
    at_s: float


def rate(workers: int) -> float:
    """Answers a second for each of so many workers: an equal share, whatever the others do."""
    return min(MOST_A_SECOND, MOST_A_SECOND_TOGETHER / max(1, workers))


def take(allowance: Allowance, now_s: float, per_second: float) -> tuple[Allowance, bool]:
    """Take one answer; whether there was one. Unused ones add up for a second."""
    gained = max(0.0, now_s - allowance.at_s) * per_second
    answers = min(per_second, allowance.answers + gained)
    if answers < 1.0:
        return Allowance(answers, now_s), False
    return Allowance(answers - 1.0, now_s), True


class Tally(NamedTuple):
    """What is counted of a worker and not yet told.

    Args:
        waiting: name → count, not yet told.
        known: names that were told before.
        told_at_s: when something was told last; None for never.
    """

    waiting: Mapping[str, int] = {}
    known: frozenset[str] = frozenset()
    told_at_s: float | None = None


def due_s(tally: Tally, now_s: float) -> float | None:
    """When `tell` has something to say; None while there is nothing."""
    if not tally.waiting:
        return None
    if tally.told_at_s is None or tally.waiting.keys() - tally.known:
        return now_s
    return max(now_s, tally.told_at_s + PERIOD_S)


def add(tally: Tally, calls: Mapping[str, int]) -> Tally:
    """Count refused calls."""
    waiting = dict(tally.waiting)
    for name, count in calls.items():
        waiting[name] = waiting.get(name, 0) + count
    return tally._replace(waiting=waiting)


def tell(tally: Tally, now_s: float, *, last: bool = False) -> tuple[Tally, dict[str, int]]:
    """What is to be told now, the most frequent first; nothing before it is due.

    Args:
        tally: the state so far.
        now_s: a monotonic clock.
        last: the worker has ended: tell what waits.
    """
    at_s = due_s(tally, now_s)
    if at_s is None or (at_s > now_s and not last):
        return tally, {}
    told = dict(sorted(tally.waiting.items(), key=lambda item: (-item[1], item[0])))
    return Tally({}, tally.known | told.keys(), now_s), told


def text(calls: Mapping[str, int]) -> str:
    """`ptrace 3, bpf 1`."""
    return ", ".join(f"{name} {count}" for name, count in calls.items())
