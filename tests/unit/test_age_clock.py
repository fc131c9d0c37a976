"""Age is not judged by a wall clock that may be wrong."""

from hypothesis import given
from hypothesis import strategies as st

from vsm.core.age_clock import HOUR_NS, SETTLED_NS, TOLERANCE_NS, AgeClock

DAY_NS = 24 * HOUR_NS
NOW_NS = 20_000 * DAY_NS
LEAPS = st.integers(min_value=-50_000 * DAY_NS, max_value=50_000 * DAY_NS)
STEPS = st.lists(st.tuples(st.integers(1, HOUR_NS), LEAPS), max_size=50)


def test_a_clock_that_goes_steadily_is_the_wall_clock() -> None:
    clock = AgeClock([(NOW_NS, 0)])
    for steady_ns in range(0, 400 * DAY_NS, DAY_NS):
        assert clock.now_ns(NOW_NS + steady_ns, steady_ns) == NOW_NS + steady_ns


def test_a_leap_counts_only_after_it_stood_for_an_hour() -> None:
    clock, leap_ns = AgeClock([(NOW_NS, 0)]), 1000 * DAY_NS
    assert clock.now_ns(NOW_NS + leap_ns, 0) == NOW_NS
    assert clock.now_ns(NOW_NS + leap_ns + SETTLED_NS - 1, SETTLED_NS - 1) == (
        NOW_NS + SETTLED_NS - 1
    )
    stood_ns = NOW_NS + leap_ns + SETTLED_NS
    assert clock.now_ns(stood_ns, SETTLED_NS) == stood_ns
    assert clock.now_ns(stood_ns + 5, SETTLED_NS + 5) == stood_ns + 5


def test_a_leap_that_goes_on_leaping_never_stands() -> None:
    clock = AgeClock([(NOW_NS, 0)])
    for minute in range(10_000):
        steady_ns = minute * HOUR_NS // 60
        assert clock.now_ns(NOW_NS + minute * 300 * DAY_NS, steady_ns) <= (
            NOW_NS + steady_ns + TOLERANCE_NS
        )


def test_a_clock_that_was_put_right_begins_anew() -> None:
    clock, leap_ns = AgeClock([(NOW_NS, 0)]), 1000 * DAY_NS
    half_ns = SETTLED_NS // 2
    for turn in range(5):
        steady_ns = turn * SETTLED_NS
        assert clock.now_ns(NOW_NS + leap_ns + steady_ns, steady_ns) == NOW_NS + steady_ns
        right_ns = NOW_NS + steady_ns + half_ns
        assert clock.now_ns(right_ns, steady_ns + half_ns) == right_ns


def test_after_time_switched_off_age_goes_on_from_the_last_record_for_an_hour() -> None:
    clock, off_ns = AgeClock([(NOW_NS, 0), (NOW_NS + 9 * DAY_NS, 3)]), 9 * DAY_NS
    assert clock.now_ns(NOW_NS + off_ns, 10) == NOW_NS + 10
    assert clock.now_ns(NOW_NS + off_ns + SETTLED_NS, 10 + SETTLED_NS) == NOW_NS + off_ns + (
        SETTLED_NS
    )


def test_without_a_record_the_first_reading_counts() -> None:
    clock = AgeClock()
    assert clock.now_ns(NOW_NS, 7) == NOW_NS
    assert clock.now_ns(NOW_NS + 100 * DAY_NS, 8) == NOW_NS + 1


@given(STEPS)
def test_it_is_never_ahead_of_the_wall_clock(steps: list[tuple[int, int]]) -> None:
    clock, steady_ns = AgeClock([(NOW_NS, 0)]), 0
    for step_ns, leap_ns in steps:
        steady_ns += step_ns
        wall_ns = NOW_NS + steady_ns + leap_ns
        assert clock.now_ns(wall_ns, steady_ns) <= wall_ns


@given(STEPS)
def test_no_leap_that_is_undone_within_the_hour_ages_anything(steps: list[tuple[int, int]]) -> None:
    clock, steady_ns = AgeClock([(NOW_NS, 0)]), 0
    for _, leap_ns in steps:
        steady_ns += SETTLED_NS // 2
        most_ns = NOW_NS + steady_ns + TOLERANCE_NS
        assert clock.now_ns(NOW_NS + steady_ns + leap_ns, steady_ns) <= most_ns
        steady_ns += SETTLED_NS // 2 - 1
        assert clock.now_ns(NOW_NS + steady_ns, steady_ns) == NOW_NS + steady_ns
