"""The variety of what is asked against the variety of what is answered well, in bits.

Definitions, one set of counts at a time; docs/variety.md gives every formula and its source.
`asked[d]` counts the events of demand class d, `answered[d]` those of them that were answered
well. Batches of rows: variety_batch. Counts that change with every event: variety_window.
How far a figure can be trusted: variety_evidence. Pure: scalars in, frozen results out.
"""

from collections.abc import Sequence
from operator import gt, mul
from typing import Final

import msgspec

from vsm.core.variety_fixed import (
    ONE,
    TOTAL_LIMIT,
    log2_fixed,
    log2_table,
    to_bits,
)

NO_EVENTS: Final = "no events"
TOO_FEW_EVENTS: Final = "too few events"
TOO_MANY_UNSEEN: Final = "too much of the demand is in classes that were not seen yet"


class NotEnoughEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """The answer where a number would be noise.

    Args:
        reason: NO_EVENTS, TOO_FEW_EVENTS or TOO_MANY_UNSEEN.
        events: how many there are.
        events_needed: how many the reason asks for at least.
        coverage: the share of demand whose class was seen (Good 1953).
    """

    reason: str
    events: int
    events_needed: int
    coverage: float = 0.0


class Variety(msgspec.Struct, frozen=True):
    """One measurement: nothing corrected, exact in fixed point.

    Args:
        events: the number of demands N.
        classes: how many demand classes occurred.
        hartley_bits: log2(classes), the variety if all classes were equally frequent.
        environmental_bits: H(D) = -Σ p_d log2 p_d.
        absorbed_bits: -Σ p_d log2 p_d · s_d, with s_d = answered[d] / asked[d].
        gap_bits: their difference, the residual variety.
        requisite_ratio: absorbed / environmental; the answered share where H(D) is 0.
    """

    events: int
    classes: int
    hartley_bits: float
    environmental_bits: float
    absorbed_bits: float
    gap_bits: float
    requisite_ratio: float


class Sums(msgspec.Struct, frozen=True):
    """The five integers that a Variety is made of; they add up incrementally.

    Args:
        asked_log: Σ asked[d] · log2 asked[d], fixed point.
        answered_log: Σ answered[d] · log2 asked[d], fixed point.
    """

    events: int
    answered: int
    classes: int
    asked_log: int
    answered_log: int


class GapShare(msgspec.Struct, frozen=True):
    """What one demand class adds to the gap: -p_d log2 p_d (1 - s_d)."""

    demand: int
    bits: float


class Balance(msgspec.Struct, frozen=True):
    """Two repertoires side by side: the law of requisite variety in its plainest form.

    Args:
        gap_bits: environment - operations; negative where operations have variety to spare.
        requisite_ratio: operations / environment; infinite or 1 where the environment has none.
    """

    environment_bits: float
    operations_bits: float
    gap_bits: float
    requisite_ratio: float


def measure(asked: Sequence[int], answered: Sequence[int]) -> Variety | NotEnoughEvidence:
    """Measure one set of counts.

    Raises:
        ValueError: lengths differ, a count is negative, or more was answered than asked.
    """
    sums = sum_counts(asked, answered)
    if not sums.events:
        return NotEnoughEvidence(reason=NO_EVENTS, events=0, events_needed=1)
    return from_sums(sums)


def sum_counts(asked: Sequence[int], answered: Sequence[int]) -> Sums:
    """Reduce counts to the sums that a Variety needs."""
    _check(asked, answered)
    events = sum(asked)
    logs = _logs(asked, events)
    return Sums(
        events,
        sum(answered),
        len(asked) - asked.count(0),
        sum(map(mul, asked, logs)),
        sum(map(mul, answered, logs)),
    )


def from_sums(sums: Sums) -> Variety:
    """Turn sums of at least one event into bits."""
    log_events = log2_fixed(sums.events)
    demand = sums.events * log_events - sums.asked_log
    absorbed = sums.answered * log_events - sums.answered_log
    scale = sums.events * ONE
    return Variety(
        sums.events,
        sums.classes,
        log2_fixed(sums.classes) / ONE,
        demand / scale,
        absorbed / scale,
        (demand - absorbed) / scale,
        absorbed / float(demand) if demand else sums.answered / float(sums.events),
    )


def gap_by_class(asked: Sequence[int], answered: Sequence[int]) -> tuple[GapShare, ...]:
    """Say where the gap comes from, largest part first; classes without a part are left out.

    The parts are exact in fixed point: their integers add up to the gap's.
    """
    _check(asked, answered)
    events = sum(asked)
    log_events = log2_fixed(events)
    rows = zip(asked, answered, _logs(asked, events), strict=True)
    parts = ((well - count) * (log - log_events) for count, well, log in rows)
    shares = [GapShare(d, to_bits(part, events)) for d, part in enumerate(parts) if part]
    return tuple(sorted(shares, key=lambda share: (-share.bits, share.demand)))


def entropy_bits(counts: Sequence[int]) -> float:
    """H of one set of counts in bits; 0 for none."""
    _check(counts, counts)
    events = sum(counts)
    return to_bits(entropy_fixed(counts, events), events) if events else 0.0


def entropy_fixed(counts: Sequence[int], events: int) -> int:
    """H of counts that add up to `events`, times events, in fixed point."""
    logs: int = sum(map(mul, counts, _logs(counts, events)))
    return events * log2_fixed(events) - logs


def hartley_bits(counts: Sequence[int]) -> float:
    """log2 of how many classes occurred; 0 for none."""
    return log2_fixed(len(counts) - list(counts).count(0)) / ONE


def balance(environment: Sequence[int], operations: Sequence[int]) -> Balance | NotEnoughEvidence:
    """Compare the entropy of what came in with the entropy of what was done.

    An environment of one class needs no variety: the ratio is then 1, or infinite where
    operations have some.
    """
    _check(environment, environment)
    _check(operations, operations)
    if not (sum(environment) and sum(operations)):
        return NotEnoughEvidence(reason=NO_EVENTS, events=0, events_needed=1)
    demand, response = entropy_bits(environment), entropy_bits(operations)
    idle = float("inf") if response else 1.0
    return Balance(demand, response, demand - response, response / demand if demand else idle)


def merge(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Counts of two nodes as one: added class by class."""
    if len(first) != len(second):
        raise ValueError(
            f"expected as many classes on both nodes, found {len(first)}, {len(second)}"
        )
    return [left + right for left, right in zip(first, second, strict=True)]


def _check(asked: Sequence[int], answered: Sequence[int]) -> None:
    if len(asked) != len(answered):
        raise ValueError(f"expected one answer count a class, found {len(answered)}, {len(asked)}")
    if asked and (min(answered) < 0 or any(map(gt, answered, asked))):
        raise ValueError("expected 0 <= answered <= asked in every class")


def _logs(counts: Sequence[int], events: int) -> list[int]:
    """Logarithms of the counts; beyond the table's limits slower, in integers of any size.

    Where counts are so large that their logarithms differ by less than the fixed point's unit,
    rounding could place a class above the total: min() keeps every -log2 p at 0 or more.
    """
    if events <= TOTAL_LIMIT:
        table = log2_table()
        try:
            return [table[count] for count in counts]
        except IndexError:
            pass  # a count of 65,536 or more
    ceiling = log2_fixed(events)
    return [min(log2_fixed(count), ceiling) for count in counts]
