"""How refused calls are answered and told: an equal share for each, nothing lost."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vsm.core import refusals
from vsm.core.refusals import Allowance, Tally

steps_s = st.lists(st.floats(min_value=0, max_value=0.1), min_size=1, max_size=200)
calls = st.dictionaries(st.sampled_from(["ptrace", "bpf", "mount"]), st.integers(1, 9), min_size=1)


@given(steps_s, st.integers(min_value=1, max_value=50))
def test_nobody_gets_more_than_a_burst_and_the_rate(pauses: list[float], workers: int) -> None:
    per_second = refusals.rate(workers)
    allowance, now_s, taken = Allowance(per_second, 0.0), 0.0, 0
    for pause in pauses:
        now_s += pause
        for _ in range(40):
            allowance, may = refusals.take(allowance, now_s, per_second)
            taken += may
    assert taken <= per_second * (1 + now_s) + 1


@given(st.integers(min_value=1, max_value=10_000))
def test_all_workers_together_are_bounded(workers: int) -> None:
    together = refusals.rate(workers) * workers
    assert together <= 1.001 * max(refusals.MOST_A_SECOND_TOGETHER, refusals.MOST_A_SECOND)
    assert refusals.rate(workers) > 0


def test_who_was_held_back_goes_on_after_a_pause() -> None:
    allowance, may = refusals.take(Allowance(0.0, 5.0), 5.0, 1000.0)
    assert not may
    assert refusals.take(allowance, 5.0 + refusals.PAUSE_S, 1000.0)[1]


def test_a_clock_that_stands_still_or_falls_back_gives_nothing() -> None:
    assert refusals.take(Allowance(0.5, 5.0), 4.0, 1000.0) == (Allowance(0.5, 4.0), False)


@given(st.lists(st.tuples(calls, st.floats(min_value=0, max_value=30)), max_size=30))
def test_every_call_is_told_once_and_a_known_one_at_most_once_a_period(
    events: list[tuple[dict[str, int], float]],
) -> None:
    tally, now_s = Tally(), 0.0
    told: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    moments: list[tuple[float, set[str]]] = []
    for counts, pause in events:
        now_s += pause
        expected.update(counts)
        tally, said = refusals.tell(refusals.add(tally, counts), now_s)
        told.update(said)
        if said:
            moments.append((now_s, set(said)))
    _, rest = refusals.tell(tally, now_s, last=True)
    told.update(rest)
    assert told == expected
    known: set[str] = set()
    last_s = None
    for at_s, said_names in moments:
        assert said_names - known or last_s is None or at_s - last_s >= refusals.PERIOD_S
        known |= said_names
        last_s = at_s


def test_nothing_is_due_where_nothing_waits() -> None:
    assert refusals.due_s(Tally(), 3.0) is None
    assert refusals.tell(Tally(), 3.0, last=True) == (Tally(), {})
    assert refusals.text({"ptrace": 3, "bpf": 1}) == "ptrace 3, bpf 1"
