"""The circuit breaker as a pure machine: when it refuses, when it tries, when it lets through."""

from hypothesis import given
from hypothesis import strategies as st

from vsm.core import breaker
from vsm.core.breaker import Abandoned, Answered, Asked, Breaker, Failed, Replaced, Terms

TERMS = Terms(failures=5, successes=3, open_s=60.0)


def apply(state: Breaker, now: float, *events: breaker.Event) -> Breaker:
    for event in events:
        state, _ = breaker.step(state, event, now)
    return state


def opened(now: float = 0.0) -> Breaker:
    return apply(Breaker(terms=TERMS), now, *[Failed()] * TERMS.failures)


def test_the_fifth_failure_in_a_row_opens_and_an_answer_between_them_does_not() -> None:
    four = apply(Breaker(terms=TERMS), 0.0, *[Failed()] * 4)
    assert four.phase == "closed"
    assert apply(four, 0.0, Answered(), *[Failed()] * 4).phase == "closed"
    assert apply(four, 0.0, Failed()).phase == "open"


def test_while_open_calls_are_refused_until_its_time_is_over() -> None:
    state = opened()
    assert breaker.step(state, Asked(), 59.9) == (state, "refuse")
    assert breaker.retry_in_s(state, 20.0) == 40.0
    tried, verdict = breaker.step(state, Asked(), 60.0)
    assert (tried.phase, verdict) == ("half_open", "probe")


def test_one_probe_at_a_time_and_three_answered_in_a_row_close() -> None:
    state = opened()
    for number in range(3):
        state, verdict = breaker.step(state, Asked(), 60.0)
        assert verdict == "probe"
        assert breaker.step(state, Asked(), 60.0)[1] == "refuse"
        assert state.phase == "half_open", number
        state = apply(state, 60.0, Answered(probe=True))
    assert state == Breaker(terms=TERMS)


def test_a_failed_probe_opens_again_for_the_whole_time() -> None:
    state = apply(opened(), 60.0, Asked(), Answered(probe=True), Asked(), Failed(probe=True))
    assert state.phase == "open"
    assert breaker.step(state, Asked(), 119.9)[1] == "refuse"
    state = apply(state, 120.0, Asked())
    assert (state.phase, state.successes) == ("half_open", 0)


def test_what_was_sent_before_it_opened_changes_nothing_any_more() -> None:
    state = opened()
    assert apply(state, 1.0, Answered(), Failed()) == state
    trying = apply(state, 60.0, Asked())
    assert apply(trying, 61.0, Answered(), Failed()) == trying


def test_a_probe_that_says_nothing_or_is_never_heard_of_makes_room_for_another() -> None:
    trying = apply(opened(), 60.0, Asked())
    assert breaker.step(apply(trying, 61.0, Abandoned()), Asked(), 61.0)[1] == "probe"
    assert breaker.step(trying, Asked(), 119.9)[1] == "refuse"
    assert breaker.step(trying, Asked(), 120.0)[1] == "probe"


def test_a_new_server_by_command_is_tried_at_once() -> None:
    assert breaker.step(apply(opened(), 1.0, Replaced()), Asked(), 1.0)[1] == "probe"


def test_without_a_number_of_failures_it_never_opens() -> None:
    never = Breaker(terms=Terms(failures=0))
    assert apply(never, 0.0, *[Failed()] * 1000) == never


events = st.sampled_from(
    [Asked(), Answered(), Answered(probe=True), Failed(), Failed(probe=True), Abandoned()]
)


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.tuples(events, st.floats(0, 30)), max_size=60),
)
def test_whatever_happens_it_refuses_only_when_it_has_a_reason(
    failures: int, successes: int, history: list[tuple[breaker.Event, float]]
) -> None:
    terms = Terms(failures=failures, successes=successes, open_s=60.0)
    state, now, in_a_row, opened_at = Breaker(terms=terms), 0.0, 0, 0.0
    for event, passed in history:
        now += passed
        before = state
        state, verdict = breaker.step(state, event, now)
        if before.phase == "closed":
            in_a_row = in_a_row + 1 if isinstance(event, Failed) else in_a_row
            in_a_row = 0 if isinstance(event, Answered) else in_a_row
            assert (state.phase == "open") == (in_a_row >= failures)
            assert verdict == "send"
        if before.phase != "open" and state.phase == "open":
            opened_at, in_a_row = now, 0
        if verdict == "refuse":
            assert breaker.retry_in_s(state, now) > 0
            assert before.phase == "half_open" or now < opened_at + terms.open_s
        if state.phase == "closed" and before.phase == "half_open":
            assert before.successes == successes - 1
        # It never refuses for ever: after its time a call is a probe.
        later = now + terms.open_s
        assert state.phase == "closed" or breaker.step(state, Asked(), later)[1] == "probe"
