"""Buckets never give more than their rate; what goes to and fro is found once and let go again."""

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from vsm.core import oscillation
from vsm.core.oscillation import Damped, Released, Swing, Terms, Watch, is_damped
from vsm.core.rates import Bucket, Rate

TERMS = Terms(window_s=100.0, reversals=4, cool_down_s=30.0)
RATES = st.builds(Rate, st.floats(0.1, 1000), st.integers(1, 50), st.floats(0, 5))
GAPS = st.lists(st.floats(0, 2), min_size=1, max_size=200)


@given(RATES, GAPS)
@example(Rate(1.0, 1), [0.0, 0.0])
@example(Rate(1.0, 2, 3.0), [0.0] * 8)
def test_bucket_lets_no_more_through_than_burst_and_rate_allow(
    rate: Rate, gaps: list[float]
) -> None:
    bucket, now_s = Bucket(rate), 1000.0
    went: list[float] = []
    for gap_s in gaps:
        now_s += gap_s
        before = bucket.full_at_s
        late_s = bucket.take(now_s)
        if late_s >= 0:
            assert late_s <= rate.wait_s + 1e-5
            went.append(now_s + late_s)
        else:
            assert bucket.full_at_s == before  # a refused call takes nothing
            assert Bucket.take(bucket, now_s - late_s + 1e-5) >= 0  # and was told when to come
            bucket.full_at_s = before
    assert all(b - a > -1e-5 for a, b in itertools.pairwise(went))  # who waits is not overtaken
    for begin in range(len(went)):
        for end in range(begin, len(went)):
            allowed = rate.burst + (went[end] - went[begin]) * rate.per_second
            assert end - begin + 1 <= allowed + 2e-3  # a microsecond of 1000 a second, and floats


def test_bucket_that_rested_is_full_again_and_not_fuller() -> None:
    bucket = Bucket(Rate(10, 5))
    assert [bucket.take(1000.0) == 0 for _ in range(20)].count(True) == 5
    bucket.take(2000.0)
    bucket.give_back()
    assert [bucket.take(2000.0) == 0 for _ in range(20)].count(True) == 5


def swings(*moves: tuple[float, float]) -> tuple[Watch, list[oscillation.Action]]:
    watch: Watch = {}
    actions: list[oscillation.Action] = []
    for at_s, change in moves:
        watch, found = oscillation.step(watch, Swing("git", "memory", change, at_s), TERMS)
        actions += found
    return watch, actions


def test_to_and_fro_is_found_once_and_released_when_it_rests() -> None:
    watch, actions = swings(*((at_s, 1 if at_s % 2 else -1) for at_s in range(8)))
    assert actions == [Damped("git", "memory", 4, 2.0, 30.0, 1)]
    assert is_damped(watch, "git", "memory")
    watch, actions = oscillation.tick(watch, 30.0, TERMS)
    assert actions == []  # it went on while it was damped: quiet counts from the last turn
    watch, actions = oscillation.tick(watch, 37.0, TERMS)
    assert actions == [Released("git", "memory")]
    watch, actions = oscillation.step(watch, Swing("git", "memory", 1, 38.0), TERMS)
    assert actions == []  # what is over is not counted again


def test_second_time_is_damped_for_longer() -> None:
    watch, _ = swings(*((at_s, 1 if at_s % 2 else -1) for at_s in range(5)))
    watch, _ = oscillation.tick(watch, 1000.0, TERMS)
    actions: list[oscillation.Action] = []
    for at_s in range(1001, 1008):
        swing = Swing("git", "memory", 1 if at_s % 2 else -1, float(at_s))
        watch, found = oscillation.step(watch, swing, TERMS)
        actions += found
    assert [one.cool_down_s for one in actions if isinstance(one, Damped)] == [60.0]


def test_growth_and_slow_turns_are_no_oscillation() -> None:
    assert swings(*((float(at_s), 1.0) for at_s in range(50)))[1] == []
    assert swings(*((at_s * 60.0, 1 if at_s % 2 else -1) for at_s in range(50)))[1] == []


MOVES = st.lists(st.tuples(st.floats(0, 20), st.sampled_from([-1.0, 0.0, 1.0])), max_size=60)


@given(MOVES)
def test_damping_and_release_alternate_and_memory_is_bounded(
    moves: list[tuple[float, float]],
) -> None:
    watch: Watch = {}
    now_s, damped = 0.0, False
    for gap_s, change in moves:
        now_s += gap_s
        watch, first = oscillation.tick(watch, now_s, TERMS)
        watch, second = oscillation.step(watch, Swing("a", "cpu", change, now_s), TERMS)
        for action in [*first, *second]:
            assert isinstance(action, Damped) is not damped
            damped = not damped
        assert is_damped(watch, "a", "cpu") is damped
    watch, _ = oscillation.tick(watch, now_s + 4000.0, TERMS)
    watch, _ = oscillation.tick(watch, now_s + 20_000.0, TERMS)
    assert not watch


def test_series_and_turns_that_are_remembered_are_bounded() -> None:
    watch: Watch = {}
    patient = Terms(window_s=1e9, reversals=10**6, cool_down_s=1.0)
    for number in range(oscillation.MOST_SERIES + 50):
        watch, _ = oscillation.step(watch, Swing(f"i{number}", "cpu", 1.0, 1.0), patient)
    assert len(watch) == oscillation.MOST_SERIES
    for number in range(300):
        swing = Swing("i0", "cpu", 1.0 if number % 2 else -1.0, float(number))
        watch, _ = oscillation.step(watch, swing, patient)
    assert len(watch["i0", "cpu"].turns) == 64
