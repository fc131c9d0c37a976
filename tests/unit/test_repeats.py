"""The like of a signal is counted, not repeated; nothing is lost from the counts."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vsm.core.repeats import Repeats, Surges

STEPS = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 8)), max_size=80)


@given(STEPS, st.integers(1, 8))
def test_the_first_is_told_at_once_and_every_other_is_counted(
    steps: Sequence[tuple[int, float]], most: int
) -> None:
    repeats, now_s, told, counted = Repeats(10.0, most), 80_000.1, 0, 0
    last: dict[int, float] = {}
    times: list[float] = []
    for kind, later_s in steps:
        now_s += later_s
        held = repeats.passes(kind, now_s)
        if kind not in last and most > 5:
            assert held == 0, "the first of a kind"
        if held is not None:
            told += 1
            counted += held
            last[kind] = now_s
            times.append(now_s)
    rest = repeats.due(now_s + 11)
    assert told + counted + sum(held for _, held in rest) == len(steps)
    assert not repeats.holds
    for begin in times:
        assert sum(begin <= at < begin + 10.0 for at in times) <= 2 * (most + 1)


def test_relief_makes_the_next_pain_news() -> None:
    repeats = Repeats(10.0)
    assert [repeats.passes("a", t) for t in (0.0, 1.0, 2.0)] == [0, None, None]
    assert repeats.ends("a") == 2
    assert repeats.passes("a", 3.0) == 0


@given(st.lists(st.floats(0, 30), max_size=80), st.integers(1, 5))
def test_more_than_so_many_in_a_minute_hurt_once_until_relief(
    steps: list[float], threshold: int
) -> None:
    surges, now_s, hurting = Surges(threshold), 0.0, False
    times: list[float] = []
    for later_s in steps:
        now_s += later_s
        if surges.relieved(now_s):
            assert hurting
            assert 2 * sum(now_s - t < 60 for t in times) <= threshold
            hurting = False
        times.append(now_s)
        begins = surges.add("x", now_s)
        recent = sum(now_s - t < 60 for t in times)
        assert begins == (not hurting and recent > threshold)
        hurting = hurting or begins


def test_many_at_once_hurt_and_a_threshold_can_be_moved() -> None:
    surges = Surges(10)
    assert not surges.add("x", 0.0, 10)
    assert surges.add("x", 1.0, 1)
    surges.threshold = 100
    assert surges.relieved(2.0) == ["x"]
    assert not surges.add("x", 3.0, 50)
    assert surges.add("x", 4.0, 10**9)
    assert surges.relieved(65.0) == ["x"]


def test_a_crowd_of_names_cannot_fill_the_memory() -> None:
    surges = Surges(1, most=4)
    hurt = sum(surges.add(f"client {n}", 0.0) for n in range(1000))
    assert len(surges._times) <= 5
    assert hurt >= 1, "they count as one"
