"""Approvals: each call is settled exactly once, nothing is approved late, grants end."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.core import approvals
from vsm.core.approvals import GrantKey, Pending, Settled, State, UnknownError, step

KEY = GrantKey("rule", "unix:0", "it", "tool", "x")
TIMEOUT_S = 60.0
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "approve", "deny", "withdraw", "lost", "pass"]),
        st.integers(0, 12),
        st.floats(0, 40),
    ),
    max_size=60,
)


def event_of(kind: str, number: int, asked: int, now_s: float) -> approvals.Event:
    match kind:
        case "ask":
            until_s = now_s + TIMEOUT_S
            return approvals.Asked(Pending(f"id{asked}", 1, asked, KEY, until_s))
        case "approve" | "deny":
            return approvals.Decided(f"id{number}", kind == "approve", "by root", float(number))
        case "withdraw":
            return approvals.Withdrawn(1, number)
        case "lost":
            return approvals.Lost("gone")
    return approvals.Passed()


@given(STEPS)
def test_every_call_is_settled_once_and_in_time(steps: Sequence[tuple[str, int, float]]) -> None:
    state, now_s, asked = State(), 0.0, 0
    settled: dict[str, Settled] = {}
    until: dict[str, float] = {}
    for kind, number, later_s in steps:
        now_s += later_s
        if kind == "ask":
            asked += 1
            until[f"id{asked}"] = now_s + TIMEOUT_S
        try:
            state, found = step(state, event_of(kind, number, asked, now_s), now_s)
        except UnknownError:
            assert f"id{number}" not in {one.id for one in state.pending if one.until_s > now_s}
            continue
        for one in found:
            assert one.pending.id not in settled
            settled[one.pending.id] = one
            if one.verdict == "approved":
                assert now_s < until[one.pending.id]
        assert all(until_s > now_s for until_s in state.grants.values())
        assert len(state.grants) <= approvals.MOST_GRANTS
        assert all(one.until_s > now_s for one in state.pending), "time-outs are due at once"
    _, rest = step(state, approvals.Passed(), now_s + TIMEOUT_S + 1)
    assert {one.verdict for one in rest} <= {"timed out"}
    assert set(until) == set(settled) | {one.pending.id for one in rest}


def test_no_more_than_so_many_wait() -> None:
    state, refused = State(), 0
    for number in range(approvals.MOST_PENDING + 5):
        pending = Pending(str(number), 1, number, KEY, 100.0)
        state, found = step(state, approvals.Asked(pending), 0.0)
        refused += sum(one.verdict == "denied" for one in found)
    assert (len(state.pending), refused) == (approvals.MOST_PENDING, 5)


def test_a_grant_is_of_a_bounded_length_and_read_back_only_while_it_holds() -> None:
    state, _ = step(State(), approvals.Asked(Pending("a", 1, 1, KEY, 60.0)), 0.0)
    state, (done,) = step(state, approvals.Decided("a", True, "by root", 1e9), 1.0)
    assert done.grant_until_s == 1.0 + approvals.LONGEST_GRANT_S
    assert approvals.with_grants(State(), state.grants, 10.0).grants == state.grants
    assert approvals.with_grants(State(), state.grants, 1e9).grants == {}
    forged = {KEY: 1e12}
    assert approvals.with_grants(State(), forged, 10.0).grants == {}, "nobody grants for ever"


def test_what_a_person_denies_is_not_granted() -> None:
    state, _ = step(State(), approvals.Asked(Pending("a", 1, 1, KEY, 60.0)), 0.0)
    state, (done,) = step(state, approvals.Decided("a", False, "by root", 3600.0), 1.0)
    assert (done.verdict, state.grants) == ("denied", {})
    with pytest.raises(UnknownError):
        step(state, approvals.Decided("a", True, "by root"), 2.0)


def test_no_more_than_so_many_are_granted_beforehand_the_call_itself_passes() -> None:
    state = State()
    for number in range(approvals.MOST_GRANTS + 5):
        key = KEY._replace(name=f"x{number}")
        state, _ = step(state, approvals.Asked(Pending("a", 1, number, key, 60.0)), 0.0)
        state, (done,) = step(state, approvals.Decided("a", True, "by root", 3600.0), 1.0)
        assert done.verdict == "approved"
        assert (done.grant_until_s is not None) == (number < approvals.MOST_GRANTS)
    assert len(state.grants) == approvals.MOST_GRANTS
