"""Inside and now against outside and then: the written rule, and nothing else, decides."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.core.policy_weighing import (
    MOST_STANDING,
    NOW,
    THEN,
    Offer,
    Ruling,
    State,
    Weights,
    feel,
    weigh,
)

WEIGHTS = Weights(weight_of_future=0.5, margin_bits=0.1, standing_s=60.0)


def offer(sender: str = NOW, number: int = 1, **more: Any) -> Offer:
    known: dict[str, Any] = {
        "subject": "it",
        "change": "memory",
        "from_value": 100.0,
        "to_value": 200.0,
        "evidence": {"events": 100},
        "gain_bits": 1.0,
        "cost": 100.0,
    }
    return Offer(sender=sender, id=number, **(known | more))


def rule_on(*offers: Offer, hurts: bool = False, step_s: float = 1.0) -> list[Ruling]:
    state, rulings = feel(State(), "it", hurts=hurts), []
    for number, one in enumerate(offers):
        state, ruling = weigh(state, one, WEIGHTS, number * step_s)
        rulings.append(ruling)
    return rulings


UP: dict[str, Any] = {"to_value": 200.0}
DOWN: dict[str, Any] = {"to_value": 50.0}


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ({"gain_bits": math.nan}, "closure.sound"),
        ({"cost": math.inf}, "closure.sound"),
        ({"to_value": 100.0}, "closure.sound"),
        ({"evidence": {}}, "closure.sound"),
        ({"evidence": {"events": 29}}, "closure.sound"),
        ({"change": "memory ceiling"}, "closure.operator"),
        ({"gain_bits": -0.1}, "closure.gain"),
        ({"gain_bits": 0.0}, "closure.gain"),
    ],
)
def test_what_is_unsound_or_worthless_is_refused(more: dict[str, Any], rule: str) -> None:
    (ruling,) = rule_on(offer(**more))
    assert (ruling.approved, ruling.rule) == (False, rule)
    assert ruling.reasons


def test_what_nothing_stands_against_is_approved() -> None:
    both = rule_on(offer(), offer(THEN, subject="other", **DOWN), offer(change="cpu", **DOWN))
    assert [one.rule for one in both] == ["closure.unopposed"] * 3
    (giving_back,) = rule_on(offer(gain_bits=0.0, cost=-50.0, **DOWN))
    assert giving_back.approved, "what is given back has no gain to show"


def test_the_future_counts_less_and_must_be_better_by_the_margin() -> None:
    now, then = offer(**UP), offer(THEN, gain_bits=2.1, **DOWN)
    assert [one.approved for one in rule_on(now, then)] == [True, False], "1.05 against 1 + 0.1"
    better = offer(THEN, gain_bits=2.3, **DOWN)
    first, second = rule_on(now, better)
    assert (second.approved, second.rule) == (True, "closure.conflict")
    assert second.revoked is not None
    assert second.revoked.offer == now == second.against.offer if second.against else False
    assert first.revoked is None


def test_where_it_hurts_inside_and_now_comes_first() -> None:
    now, then = offer(**UP), offer(THEN, gain_bits=100.0, **DOWN)
    ruling = rule_on(now, then, hurts=True)[1]
    assert (ruling.approved, ruling.rule) == (False, "closure.pain")
    ruling = rule_on(then, now, hurts=True)[1]
    assert (ruling.approved, ruling.rule) == (True, "closure.pain")
    assert ruling.revoked is not None


def test_no_system_takes_back_at_once_what_it_proposed() -> None:
    to_and_fro = [offer(number=n, **(DOWN if n % 2 else UP)) for n in range(6)]
    assert [one.approved for one in rule_on(*to_and_fro)] == [True, False] * 3
    assert all(one.approved for one in rule_on(*to_and_fro, step_s=61.0)), "it stands for a minute"


OFFERS = st.lists(
    st.builds(
        offer,
        st.sampled_from([NOW, THEN]),
        st.integers(0, 99),
        subject=st.sampled_from(["it", "other"]),
        to_value=st.sampled_from([None, 50.0, 100.0, 200.0]),
        gain_bits=st.floats(-1, 3),
        evidence=st.sampled_from([{}, {"events": 10}, {"events": 40}, {"why": "x"}]),
    ),
    max_size=30,
)


@given(OFFERS, st.booleans())
def test_the_same_proposals_get_the_same_verdicts_and_a_reason(
    offers: list[Offer], hurts: bool
) -> None:
    first = rule_on(*offers, hurts=hurts)
    assert rule_on(*offers, hurts=hurts) == first
    for ruling in first:
        assert ruling.reasons
        assert (ruling.revoked is not None) <= ruling.approved


@given(OFFERS)
def test_nothing_that_stands_contradicts_anything_that_stands(offers: list[Offer]) -> None:
    state = State()
    for number, one in enumerate(offers):
        state, _ = weigh(state, one, WEIGHTS, number * 1.0)
        about = [(s.offer.subject, s.offer.change) for s in state.standing]
        assert len(about) == len(set(about))
        assert len(state.standing) <= MOST_STANDING


def test_no_more_than_so_many_stand_and_the_newest_do() -> None:
    state = State()
    for number in range(MOST_STANDING + 20):
        one = offer(number=number, subject=f"i{number}")
        state, _ = weigh(state, one, WEIGHTS, 0.0)
    assert len(state.standing) == MOST_STANDING
    assert state.standing[-1].offer.id == MOST_STANDING + 19
