"""Divides one resource among integrations, and says which limits are to move and why.

Pure. The division is weighted max-min fairness in three rounds: everybody's floor, then what
each needs, then what is left up to the ceilings. Limits move only when somebody is short or the
budget is exceeded: limits that are wide enough stay, so that nothing goes to and fro for its own
sake. Nobody is put below his floor, and a budget that the floors exceed is a reason, no excuse.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

LEAST_CHANGE: Final = 0.05
"""A smaller change of a limit is not worth its disturbance."""
HEADROOM: Final = 1.25
RAISE: Final = 1.5
"""Who hits his limit needs so much of it at least: what he would use cannot be measured."""


class Claim(NamedTuple):
    """What one integration asks for.

    Args:
        held: its limit now. need: what it should have by measurement.
        weight: above 0. fixed: its limit is not to be moved now, with the reason.
        pressed: it met its limit just now.
    """

    name: str
    floor: float
    ceiling: float
    held: float
    need: float
    weight: float = 1.0
    fixed: str = ""
    pressed: bool = False


class Change(NamedTuple):
    """A limit to move, and by which rule."""

    name: str
    before: float
    after: float
    rule: str


class Plan(NamedTuple):
    """What is to be done about one resource.

    Args:
        changes: lowered limits first, so that the budget is never exceeded on the way.
        reason: why nothing is to be done, or what cannot be done.
        short: who needs more than he gets, and by how much.
        bounded: who needs more than his ceiling.
    """

    changes: tuple[Change, ...]
    reason: str
    short: Mapping[str, float]
    bounded: tuple[str, ...]


def need_of(used: Sequence[float], held: float, *, pressed: bool) -> float:
    """What an integration needs, from its use lately and whether it hit its limit."""
    peak = max(used, default=0.0) * HEADROOM
    return max(peak, held * RAISE) if pressed else peak


def divide(budget: float, claims: Sequence[Claim]) -> dict[str, float]:
    """What each gets; the sum is at most the budget."""
    floors = sum(claim.floor for claim in claims)
    if floors >= budget:
        share = budget / floors if floors else 0.0
        return {claim.name: claim.floor * share for claim in claims}
    given = {claim.name: claim.floor for claim in claims}
    for most in (_wanted, _ceiling):
        left = max(0.0, budget - sum(given.values()))
        _pour(left, given, [(claim, most(claim)) for claim in claims])
    return given


def plan(
    budget: float, claims: Sequence[Claim], *, least: float = 0.0, quantum: float = 0.0
) -> Plan:
    """Decide which limits move.

    Args:
        budget: what there is.
        claims: everybody who takes part.
        least: no change below this, in the resource's unit.
        quantum: limits are whole multiples of it, but for floors and ceilings.
    """
    free = [claim for claim in claims if not claim.fixed]
    taken = sum(claim.held for claim in claims if claim.fixed)
    left = max(0.0, budget - taken)
    share = divide(left, free)
    target = {c.name: _target(c, share[c.name]) for c in free}
    if sum(target.values()) > left:  # those who can spare something give it
        target |= {c.name: share[c.name] for c in free if share[c.name] < target[c.name]}
    target = {c.name: max(_whole(c, target[c.name], quantum), min(c.held, c.floor)) for c in free}
    changes = [
        Change(c.name, c.held, target[c.name], _rule(c, target[c.name]))
        for c in free
        if abs(target[c.name] - c.held) >= max(least, c.held * LEAST_CHANGE)
    ]
    changes.sort(key=lambda change: (change.after > change.before, change.name))
    changes = list(_affordable(changes, budget - sum(claim.held for claim in claims)))
    got = {c.name: c.held for c in claims} | {one.name: one.after for one in changes}
    short = {c.name: lack for c in claims if (lack := _wanted(c) - got[c.name]) > _slack(c, least)}
    bounded = tuple(
        c.name for c in claims if c.need > c.ceiling and got[c.name] >= c.ceiling * 0.99
    )
    return Plan(tuple(changes), _reason(budget, claims, changes, short), short, bounded)


def _wanted(claim: Claim) -> float:
    return min(max(claim.need, claim.floor), claim.ceiling)


def _ceiling(claim: Claim) -> float:
    return claim.ceiling


def _affordable(changes: Sequence[Change], spare: float) -> Iterator[Change]:
    """Without those that the budget has no room for, because others cannot give."""
    for change in changes:
        more = change.after - change.before
        if more <= max(0.0, spare) or more < 0:
            spare -= more
            yield change


def _whole(claim: Claim, value: float, quantum: float) -> float:
    """Rounded down, so that the sum stays within the budget."""
    if not quantum or value in {claim.floor, claim.ceiling, claim.held}:
        return value
    return max(claim.floor, round(math.floor(value / quantum + 1e-9) * quantum, 6))


def _slack(claim: Claim, least: float) -> float:
    return max(least, claim.held * LEAST_CHANGE)


def _target(claim: Claim, share: float) -> float:
    """As it is while that is enough; else what the division gives, up to the need."""
    held = min(max(claim.held, claim.floor), claim.ceiling)
    wanted = _wanted(claim)
    return held if wanted <= held else max(held, min(wanted, share))


def _pour(left: float, given: dict[str, float], wishes: Sequence[tuple[Claim, float]]) -> None:
    """Hand `left` out by weight until everybody has what he wishes or nothing is left.

    Like water that rises in all at once: who wishes least for his weight is full first.
    """
    filling = [
        ((most - given[claim.name]) / claim.weight, claim, most)
        for claim, most in wishes
        if most > given[claim.name]
    ]
    filling.sort(key=lambda one: one[0])
    weights = list(itertools.accumulate(claim.weight for _, claim, _ in reversed(filling)))
    level = 0.0
    for index, (full, claim, most) in enumerate(filling):
        weight = weights[-1 - index]  # of those that are not full
        if (full - level) * weight > left:
            level += left / weight
            for _, other, limit in filling[index:]:
                given[other.name] = min(limit, given[other.name] + level * other.weight)
            return
        left -= (full - level) * weight
        level, given[claim.name] = full, most


def _rule(claim: Claim, after: float) -> str:
    if after > claim.held:
        return "raise.need" if claim.need > max(claim.held, claim.floor) else "raise.floor"
    return "lower.ceiling" if claim.held > claim.ceiling else "lower.budget"


def _reason(
    budget: float, claims: Sequence[Claim], changes: Sequence[Change], short: Mapping[str, float]
) -> str:
    if changes:
        return ""
    fixed = [claim.name for claim in claims if claim.fixed and claim.name in short]
    bounded = [claim.name for claim in claims if claim.need > claim.ceiling]
    over = sum(claim.held for claim in claims) > budget * (1 + LEAST_CHANGE)
    reasons = (
        (not claims, "nobody runs whose limit could be moved"),
        (fixed, f"{''.join(fixed[:1])} is short, and its limit is not to be moved"),
        (short, f"{min(short, default='')} is short, and nobody can spare anything"),
        (over, "the limits exceed the budget, and floors or use keep all of them where they are"),
        (bounded, f"{''.join(bounded[:1])} needs more than its ceiling"),
    )
    enough = "every limit is wide enough for what is used"
    return next((text for holds, text in reasons if holds), enough)
