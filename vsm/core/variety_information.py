"""What responses know of the demand, what that bounds, and what a channel carries.

Tables of counts in, frozen results in bits out; exact in fixed point like vsm.core.variety, whose
logarithms these use. Pure.
"""

from collections.abc import Sequence

import msgspec

from vsm.core.variety import NO_EVENTS, NotEnoughEvidence, entropy_bits, entropy_fixed, hartley_bits
from vsm.core.variety_evidence import miller_madow_bits
from vsm.core.variety_fixed import to_bits


class Transinformation(msgspec.Struct, frozen=True, kw_only=True):
    """How demand D and response R go together.

    Args:
        mutual_bits: I(D;R) = H(D) + H(R) - H(D,R): what the response tells of the demand.
        corrected_bits: the same less its bias, at least 0 (Miller 1955): unrelated variables
            show (cells - rows - columns + 1) / (2 N ln 2) bits by chance.
        equivocation_bits: H(R|D): how freely the response varies for one demand.
    """

    events: int
    demand_bits: float
    response_bits: float
    joint_bits: float
    mutual_bits: float
    corrected_bits: float
    equivocation_bits: float


class AshbyBound(msgspec.Struct, frozen=True):
    """H(E) >= H(D) + H(R|D) - H(R), beside the outcomes' measured entropy.

    Args:
        slack_bits: outcome - bound. Below 0 distinct demands under one response share an
            outcome: the environment itself absorbs, which Ashby's law leaves out.
    """

    bound_bits: float
    outcome_bits: float
    slack_bits: float


class ChannelLoad(msgspec.Struct, frozen=True):
    """What is sent through a channel against what it can carry.

    Args:
        rate_bits_s: events a second times their entropy.
        capacity_bits_s: messages a second times log2 of the kinds (Shannon 1948, theorem 1).
        load: rate / capacity; infinite where something is sent and nothing carried.
        message_load: the same counted in messages: a flood of one kind carries no bits, and fills
            a channel that does not recode.
        sufficient: capacity exceeds the rate in both, as Beer asks of every channel.
    """

    rate_bits_s: float
    capacity_bits_s: float
    load: float
    message_load: float
    sufficient: bool


def transinformation(table: Sequence[Sequence[int]]) -> Transinformation | NotEnoughEvidence:
    """Measure how responses follow demand.

    Args:
        table: a row for each demand class, a column for each response, counts of both at once.

    Raises:
        ValueError: rows of different lengths, or a negative count.
    """
    joint = [count for row in table for count in row]
    demand = [sum(row) for row in table]
    response = [sum(column) for column in zip(*table, strict=True)]
    return joint_information(joint, demand, response)


def joint_information(
    joint: Sequence[int], demand: Sequence[int], response: Sequence[int]
) -> Transinformation | NotEnoughEvidence:
    """The same from the table's cells, which may leave out empty ones, and its two margins.

    Raises:
        ValueError: a count is negative, or the three do not count the same number of events.
    """
    if not sum(joint) == sum(demand) == sum(response):
        raise ValueError("expected cells and margins of the same events")
    if any(count < 0 for count in joint):
        raise ValueError("expected counts of 0 or more")
    events = sum(joint)
    if not events:
        return NotEnoughEvidence(reason=NO_EVENTS, events=0, events_needed=1)
    h_demand, h_response, h_joint = (
        entropy_fixed(counts, events) for counts in (demand, response, joint)
    )
    mutual = to_bits(max(0, h_demand + h_response - h_joint), events)
    return Transinformation(
        events=events,
        demand_bits=to_bits(h_demand, events),
        response_bits=to_bits(h_response, events),
        joint_bits=to_bits(h_joint, events),
        mutual_bits=mutual,
        corrected_bits=max(0.0, mutual - _chance_bits(joint, demand, response)),
        equivocation_bits=to_bits(max(0, h_joint - h_demand), events),
    )


def ashby_bound(
    table: Sequence[Sequence[int]], outcomes: Sequence[int]
) -> AshbyBound | NotEnoughEvidence:
    """State the least entropy that outcomes can have, and the one that they do have.

    Args:
        table: demand by response, as in `transinformation`.
        outcomes: counts of the outcomes of the same events.

    Raises:
        ValueError: the two do not count the same number of events.
    """
    found = transinformation(table)
    return found if isinstance(found, NotEnoughEvidence) else bound_of(found, outcomes)


def bound_of(found: Transinformation, outcomes: Sequence[int]) -> AshbyBound:
    """The same from what `transinformation` found.

    Raises:
        ValueError: the two do not count the same number of events.
    """
    if sum(outcomes) != found.events:
        raise ValueError(f"expected {found.events} outcomes, found {sum(outcomes)}")
    bound = max(0.0, found.demand_bits + found.equivocation_bits - found.response_bits)
    measured = entropy_bits(outcomes)
    return AshbyBound(bound, measured, measured - bound)


def channel_load(
    sent: Sequence[int], *, seconds: float, capacity_messages_s: float
) -> ChannelLoad | NotEnoughEvidence:
    """Compare a channel's information rate with its capacity.

    Args:
        sent: how many messages of each kind that the channel knows were sent.
        seconds: in which time.
        capacity_messages_s: how many messages a second it can pass.
    """
    if not seconds > 0 or capacity_messages_s < 0:
        raise ValueError("expected a time above 0 and a capacity of 0 or more")
    events = sum(sent)
    if not events:
        return NotEnoughEvidence(reason=NO_EVENTS, events=0, events_needed=1)
    rate = entropy_bits(sent) * events / seconds
    capacity = hartley_bits([1] * len(sent)) * capacity_messages_s
    load, messages = _share(rate, capacity), _share(events / seconds, capacity_messages_s)
    return ChannelLoad(rate, capacity, load, messages, max(load, messages) < 1)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else (float("inf") if part else 0.0)


def _chance_bits(joint: Sequence[int], demand: Sequence[int], response: Sequence[int]) -> float:
    events = sum(joint)
    cells, rows, columns = (
        miller_madow_bits(len(counts) - counts.count(0), events)
        for counts in (joint, demand, response)
    )
    return cells - rows - columns
