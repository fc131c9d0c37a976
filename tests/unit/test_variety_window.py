"""Incremental counting against recomputation, to the last bit, with fading and overflow."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsm.core import variety as v
from vsm.core import variety_batch as vb
from vsm.core.variety_fixed import COUNT_LIMIT, TOTAL_LIMIT
from vsm.core.variety_window import NOTED_MOST, Window

Event = tuple[int, bool]
CLASSES = 6
events = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.booleans()), max_size=300)


def window(classes: int = CLASSES, half_life_s: float = 10.0) -> Window:
    return Window(classes, half_life_s=half_life_s, now_s=0.0)


def counted(some: Iterable[Event]) -> Window:
    kept = window()
    for demand, well in some:
        kept.add(demand, well=well)
    return kept


def add_batch(kept: Window, some: list[Event]) -> None:
    demands = np.array([demand for demand, _ in some], dtype=np.int64)
    kept.add_batch(demands, np.array([well for _, well in some], dtype=bool))


def assert_sums_are_those_of_the_counts(kept: Window) -> None:
    assert kept.sums == v.sum_counts(kept.asked, kept.answered)
    assert kept.measure() == v.measure(kept.asked, kept.answered)


@given(events)
def test_after_every_event_the_window_equals_a_recomputation(some: list[Event]) -> None:
    kept = window()
    for demand, well in some:
        kept.add(demand, well=well)
        assert_sums_are_those_of_the_counts(kept)


@given(events.filter(bool))
def test_incremental_equals_batched_bit_for_bit(some: list[Event]) -> None:
    kept = counted(some)
    single = kept.measure()
    batch = vb.measure(np.array([kept.asked]), np.array([kept.answered]))
    assert isinstance(single, v.Variety)
    assert single.environmental_bits.hex() == float(batch.environmental_bits[0]).hex()
    assert single.absorbed_bits.hex() == float(batch.absorbed_bits[0]).hex()
    assert single.gap_bits.hex() == float(batch.gap_bits[0]).hex()
    assert single.requisite_ratio.hex() == float(batch.requisite_ratio[0]).hex()


@given(events, events)
def test_events_counted_at_once_equal_events_counted_in_turn(
    first: list[Event], second: list[Event]
) -> None:
    kept = counted(first)
    add_batch(kept, second)
    assert_sums_are_those_of_the_counts(kept)
    assert kept.sums == counted([*first, *second]).sums


@pytest.mark.parametrize("seed", range(4))
def test_events_that_nobody_asked_about_yet_are_there_when_somebody_asks(seed: int) -> None:
    chance = np.random.default_rng(seed)
    seldom, always = window(), window()
    now_s = 0.0
    for length in chance.choice([0, 1, 3, 41, 700, 9000], 12).tolist():
        now_s += float(chance.choice([0.0, 4.0, 11.0]))
        seldom.fade(now_s)
        always.fade(now_s)
        some = zip(chance.integers(0, CLASSES, length).tolist(), chance.random(length), strict=True)
        for demand, draw in some:
            seldom.add(demand, well=draw < 0.7)
            always.add(demand, well=draw < 0.7)
            assert always.sums.events > 0
        look = str(chance.choice(["sums", "asked", "answered", "halvings", "measure", "nothing"]))
        if look == "measure":
            assert seldom.measure() == always.measure()
        elif look != "nothing":
            assert getattr(seldom, look) == getattr(always, look)
    assert (seldom.sums, seldom.halvings) == (always.sums, always.halvings)
    assert_sums_are_those_of_the_counts(seldom)


def test_events_that_nobody_asks_about_take_bounded_memory() -> None:
    kept = window()
    for number in range(3 * NOTED_MOST):
        kept.add(number % CLASSES, well=True)
        assert len(kept._noted) < NOTED_MOST
    assert kept.sums.events == 3 * NOTED_MOST


@given(events, events)
def test_merged_windows_equal_one_window_over_both(here: list[Event], there: list[Event]) -> None:
    kept, other = counted(here), counted(there)
    kept.merge(other.asked, other.answered)
    assert kept.sums == counted([*here, *there]).sums


@settings(max_examples=50)
@given(st.lists(st.tuples(events, st.floats(0, 25)), max_size=8))
def test_fading_keeps_the_sums_exact(rounds: list[tuple[list[Event], float]]) -> None:
    kept, now_s = window(), 0.0
    for some, pause_s in rounds:
        now_s += pause_s
        kept.fade(now_s)
        for demand, well in some:
            kept.add(demand, well=well)
        assert_sums_are_those_of_the_counts(kept)


def test_every_half_life_halves_every_count() -> None:
    kept = window(3)
    kept.merge([8, 5, 1], [4, 5, 1])
    kept.fade(9.99)
    assert kept.asked == [8, 5, 1]
    kept.fade(10.0)
    assert (kept.asked, kept.answered) == ([4, 2, 0], [2, 2, 0])
    kept.fade(30.5)
    assert (kept.asked, kept.answered) == ([1, 0, 0], [0, 0, 0])
    kept.fade(39.9)
    assert kept.asked == [1, 0, 0]
    kept.fade(40.0)
    assert kept.asked == [0, 0, 0]
    assert isinstance(kept.measure(), v.NotEnoughEvidence)
    assert kept.halvings == 4


def test_a_clock_that_runs_back_fades_nothing() -> None:
    kept = counted([(0, True)])
    kept.fade(-100.0)
    assert kept.asked[0] == 1


def test_a_very_long_pause_forgets_everything() -> None:
    kept = counted([(0, True), (1, False)])
    kept.fade(1e12)
    assert kept.asked == [0] * CLASSES
    assert_sums_are_those_of_the_counts(kept)


def test_a_count_about_to_leave_the_table_halves_the_window() -> None:
    kept = window(2)
    kept.merge([COUNT_LIMIT - 2, 1001], [COUNT_LIMIT - 2, 1])
    kept.add(0, well=True)
    assert (kept.asked[0], kept.halvings) == (COUNT_LIMIT - 1, 0)
    kept.add(0, well=True)
    assert (kept.asked, kept.halvings) == ([COUNT_LIMIT // 2, 500], 1)
    assert_sums_are_those_of_the_counts(kept)


def test_a_total_at_its_limit_halves_the_window() -> None:
    kept = window(128)
    full = [TOTAL_LIMIT // 128] * 128
    kept.merge(full, full)
    assert kept.halvings == 0
    kept.add(0, well=False)
    assert (kept.sums.events, kept.halvings) == (TOTAL_LIMIT // 2 + 1, 1)
    assert_sums_are_those_of_the_counts(kept)


@pytest.mark.parametrize("length", [1, 2, 3, 70_000, 200_001])
def test_a_batch_that_overflows_halves_where_single_events_would(length: int) -> None:
    chance = np.random.default_rng(length)
    demands, well = chance.integers(0, 2, length), chance.random(length) < 0.7
    at_once, in_turn = window(2), window(2)
    for kept in (at_once, in_turn):
        kept.merge([COUNT_LIMIT - 2, 7], [9, 7])
    at_once.add_batch(demands, well)
    for demand, good in zip(demands.tolist(), well.tolist(), strict=True):
        in_turn.add(demand, well=good)
    assert at_once.sums == in_turn.sums
    assert (at_once.asked, at_once.halvings) == (in_turn.asked, in_turn.halvings)
    assert_sums_are_those_of_the_counts(at_once)


def test_merging_counts_beyond_the_limits_halves_until_they_fit() -> None:
    kept = window(2)
    kept.merge([COUNT_LIMIT * 4, 8], [COUNT_LIMIT * 2, 8])
    assert (kept.asked, kept.answered) == ([COUNT_LIMIT // 2, 1], [COUNT_LIMIT // 4, 1])
    assert kept.halvings == 3


@pytest.mark.parametrize("demand", [-1, -CLASSES, CLASSES])
def test_a_class_that_does_not_exist_changes_nothing(demand: int) -> None:
    kept = counted([(0, True)])
    with pytest.raises(IndexError):
        kept.add(demand, well=True)
    with pytest.raises((IndexError, ValueError)):
        add_batch(kept, [(1, True), (demand, True)])
    assert kept.sums == counted([(0, True)]).sums


def test_other_classes_and_impossible_counts_do_not_merge() -> None:
    kept = counted([(0, True)])
    with pytest.raises(ValueError, match="classes"):
        kept.merge([1], [1])
    with pytest.raises(ValueError, match="expected"):
        kept.merge([1] * CLASSES, [2] * CLASSES)
    assert kept.sums == counted([(0, True)]).sums


@pytest.mark.parametrize(("classes", "half_life_s"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_a_window_without_classes_or_half_life_is_refused(classes: int, half_life_s: float) -> None:
    with pytest.raises(ValueError, match="at least one class"):
        window(classes, half_life_s)
