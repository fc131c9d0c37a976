"""How S5 weighs S3 against S4: inside and now against outside and then, by one written rule.

Pure. Proposals come one by one; an approved one stands for a while, and what comes meanwhile is
weighed against it. In order:

1. sound: finite numbers, a change that changes something, and evidence. Else refused.
2. operator: what is an operator's alone to change, a ceiling, is refused, with the command.
3. gain: what absorbs less variety than now, or costs and brings nothing, is refused.
4. pain: where the subject hurts now, S4 does not prevail over S3: inside and now comes first.
5. conflict: against a standing proposal about the same thing in another direction, the bits of
   each count, S4's times `weight_of_future`. The new one must be better by `margin_bits`, also
   against its sender's own: else things would go to and fro. It then revokes the other.
6. unopposed: approved.

The same proposals in the same order, with the same pain, get the same verdicts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

NOW: Final = "system3"
THEN: Final = "system4"
LEAST_EVENTS: Final = 30
MOST_STANDING: Final = 256
CEILING: Final = " ceiling"  # what the name of a change ends with that raises one
RESOURCES: Final = frozenset({"memory", "cpu", "processes", "instances"})
"""Changes that S3 carries out, whoever proposed them: nobody else asks for limits."""

Rule: TypeAlias = Literal[
    "closure.sound",
    "closure.operator",
    "closure.gain",
    "closure.pain",
    "closure.conflict",
    "closure.unopposed",
]


class Offer(NamedTuple):
    """A proposal. `cost` is in the change's own unit, so that only its sign counts here."""

    sender: str
    id: int
    subject: str
    change: str
    from_value: float | None
    to_value: float | None
    evidence: Mapping[str, Any]
    gain_bits: float
    cost: float


class Weights(NamedTuple):
    """What the operator configured."""

    weight_of_future: float = 0.5
    margin_bits: float = 0.05
    standing_s: float = 60.0


class Standing(NamedTuple):
    """An approved proposal, as long as it stands."""

    offer: Offer
    bits: float
    until_s: float


@dataclass(frozen=True)
class State:
    """What stands, and the subjects that hurt."""

    standing: tuple[Standing, ...] = ()
    hurting: frozenset[str] = frozenset()


class Ruling(NamedTuple):
    """What became of a proposal.

    Args:
        bits: what it weighs. against: what it was weighed against.
        revoked: what no longer stands because of it.
    """

    approved: bool
    rule: Rule
    bits: float
    reasons: tuple[str, ...]
    against: Standing | None = None
    revoked: Standing | None = None


def feel(state: State, subject: str, *, hurts: bool) -> State:
    """A subject begins to hurt, or no longer does."""
    hurting = state.hurting | {subject} if hurts else state.hurting - {subject}
    return replace(state, hurting=hurting)


def weigh(state: State, offer: Offer, weights: Weights, now_s: float) -> tuple[State, Ruling]:
    """Decide on one proposal."""
    standing = tuple(one for one in state.standing if one.until_s > now_s)
    state = replace(state, standing=standing)
    bits = offer.gain_bits * (weights.weight_of_future if offer.sender == THEN else 1.0)
    unsound = _unsound(offer) or _operators(offer) or _worthless(offer)
    if unsound is not None:
        rule, reason = unsound
        return state, Ruling(approved=False, rule=rule, bits=0.0, reasons=(reason,))
    against = next((one for one in standing if _is_opposed(one.offer, offer)), None)
    ruling = _ruling(state, offer, bits, against, weights)
    if ruling.approved:
        kept = [one for one in standing if one is not against and not _is_same(one.offer, offer)]
        new = Standing(offer, bits, now_s + weights.standing_s)
        state = replace(state, standing=(*kept[-MOST_STANDING + 1 :], new))
    return state, ruling


def _unsound(offer: Offer) -> tuple[Rule, str] | None:
    numbers = (offer.gain_bits, offer.cost, offer.from_value or 0.0, offer.to_value or 0.0)
    if not all(map(math.isfinite, numbers)):
        return "closure.sound", "a number is not finite"
    if offer.to_value is not None and offer.to_value == offer.from_value:
        return "closure.sound", "it changes nothing"
    if not offer.evidence:
        return "closure.sound", "no evidence is given"
    events = offer.evidence.get("events")
    if isinstance(events, int | float) and events < LEAST_EVENTS:
        return "closure.sound", f"not enough evidence: {events:g} events of {LEAST_EVENTS}"
    return None


def _operators(offer: Offer) -> tuple[Rule, str] | None:
    if offer.change.endswith(CEILING):
        resource = offer.change.removesuffix(CEILING)
        how = f"`vsm limit {offer.subject} {resource}=…`, or its range in vsm.toml"
        return "closure.operator", f"a ceiling is the operator's to raise: {how}"
    return None


def _worthless(offer: Offer) -> tuple[Rule, str] | None:
    if offer.gain_bits < 0:
        return "closure.gain", f"it would lose {-offer.gain_bits:g} bits of absorbed variety"
    if offer.gain_bits == 0 and offer.cost > 0:
        return "closure.gain", "it costs and brings nothing"
    return None


def _ruling(
    state: State, offer: Offer, bits: float, against: Standing | None, weights: Weights
) -> Ruling:
    if against is None:
        reasons = ("nothing stands against it",)
        return Ruling(approved=True, rule="closure.unopposed", bits=bits, reasons=reasons)
    theirs = against.offer
    if offer.subject in state.hurting and {offer.sender, theirs.sender} == {NOW, THEN}:
        approved = offer.sender == NOW
        reasons = (f"{offer.subject} hurts now: inside and now comes first",)
        rule: Rule = "closure.pain"
    else:
        approved = bits > against.bits + weights.margin_bits
        word = "more" if approved else "not more"
        both = f"{bits:.3g} bits of {offer.sender} against {against.bits:.3g} of {theirs.sender}"
        reasons = (f"{both}: {word} by the margin of {weights.margin_bits:g}",)
        rule = "closure.conflict"
    return Ruling(approved, rule, bits, reasons, against, against if approved else None)


def _is_same(one: Offer, other: Offer) -> bool:
    return (one.subject, one.change) == (other.subject, other.change)


def _is_opposed(one: Offer, other: Offer) -> bool:
    """About the same thing, in another direction or, of the other sender, to another value."""
    if not _is_same(one, other):
        return False
    if one.sender == other.sender:
        return _direction(one) * _direction(other) < 0
    return _direction(one) != _direction(other) or one.to_value != other.to_value


def _direction(offer: Offer) -> int:
    if offer.to_value is None:
        return 0
    difference = offer.to_value - (offer.from_value or 0.0)
    return (difference > 0) - (difference < 0)
