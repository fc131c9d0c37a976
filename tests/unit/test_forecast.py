"""Forecasts: the right model is believed, intervals hold what they promise, noise warns nobody."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operations import lines_run

from vsm.core.anomaly import RARE
from vsm.core.demand import OK, OUTCOMES, UNSERVED
from vsm.core.demand_series import DemandSeries, recorded
from vsm.core.demand_window import Key
from vsm.core.forecast import LEAST_ERRORS, Score, Series
from vsm.core.variety import Variety, gap_by_class, measure
from vsm.core.what_if import what_if

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=120)


def fed(counts: list[int], season: int = 12) -> Series:
    series = Series(season)
    for count in counts:
        series.add(count)
    return series


def test_seasonal_demand_is_forecast_by_its_season_and_steady_demand_by_smoothing() -> None:
    wave = [round(50 + 40 * math.sin(step * math.tau / 12)) for step in range(120)]
    seasonal = fed(wave).forecast()
    assert seasonal is not None
    assert (seasonal.model, seasonal.expected) == ("seasonal", wave[0])
    dice = random.Random(1)
    noisy = fed([dice.randrange(40, 61) for _ in range(200)], season=50).forecast()
    assert noisy is not None
    assert noisy.model == "smoothed 0.2"
    assert 45 < noisy.expected < 55


def test_too_little_evidence_is_no_forecast() -> None:
    assert fed([5] * LEAST_ERRORS).forecast() is None
    assert fed([5] * (LEAST_ERRORS + 1)).forecast() is not None
    assert Score().report() is None


def test_interval_holds_its_share_and_the_score_says_so() -> None:
    dice = random.Random(2)
    series = fed([sum(dice.random() < 0.3 for _ in range(40)) for _ in range(600)])
    report = series.score.report()
    assert report is not None
    assert report["forecasts"] > 500
    assert 0.85 < report["coverage"] < 0.97
    assert report["relative_to_naive"] < 0.85  # better than expecting the last value
    assert report["brier"] < 0.01
    assert abs(report["bias"]) < 1


@given(COUNTS, st.integers(2, 30))
def test_forecast_stays_within_what_came_and_scores_add_up(counts: list[int], season: int) -> None:
    series = fed(counts, season)
    found = series.forecast()
    if found is not None:
        assert min(counts) <= found.expected <= max(counts)
        assert 0 <= found.low <= found.expected <= found.high
        assert 0 <= found.probability <= 1
        assert series.score.inside <= series.score.forecasts
    twice = series.score.plus(series.score)
    assert twice.forecasts == 2 * series.score.forecasts


@given(st.lists(st.integers(0, 6), min_size=20, max_size=80))
def test_scores_are_what_their_definitions_give(counts: list[int]) -> None:
    series, told = Series(7), []
    for index, count in enumerate(counts):
        if (found := series.forecast()) is not None:
            told.append((found, count, counts[index - 1]))
        series.add(count)
    report = series.score.report()
    assert report is not None
    errors = [one.expected - count for one, count, _ in told]
    naive = sum(abs(count - last) for _, count, last in told)
    assert report["forecasts"] == len(told)
    brier = np.mean([(one.probability - (count > 0)) ** 2 for one, count, _ in told])
    assert report["brier"] == pytest.approx(brier)
    assert report["coverage"] == np.mean([one.low <= c <= one.high for one, c, _ in told])
    assert report["bias"] == pytest.approx(np.mean(errors), abs=1e-9)
    assert report["mean_absolute_error"] == pytest.approx(np.mean(np.abs(errors)))
    relative = sum(map(abs, errors)) / naive if naive else None
    assert report["relative_to_naive"] == pytest.approx(relative)


def row(ok: int = 0, unserved: int = 0) -> list[int]:
    counts = [0] * len(OUTCOMES)
    counts[OK], counts[UNSERVED] = ok, unserved
    return counts


def steps(series: DemandSeries, pace: dict[Key, tuple[int, int]], first: int, last: int) -> None:
    for number in range(first, last):
        totals = {key: row(ok * number, no * number) for key, (ok, no) in pace.items()}
        series.look(totals, number * 10.0)


def test_demand_that_nobody_serves_is_warned_of_and_quiet_demand_is_not() -> None:
    series = DemandSeries(step_s=10.0, season=12, now_s=0.0)
    steps(series, {("git", "log"): (7, 0), ("(nobody)", "translate"): (0, 3)}, 0, 30)
    (warning,) = series.warnings()
    assert (warning.kind, warning.key) == ("unserved", ("(nobody)", "translate"))
    assert (warning.forecast.low, warning.forecast.high) == (3, 3)
    assert set(series.forecasts()) == {("git", "log"), ("(nobody)", "translate")}
    report = series.calibration()
    assert report is not None
    assert report["mean_absolute_error"] == 0


def test_surge_is_warned_of_when_even_the_low_end_is_unusual() -> None:
    series = DemandSeries(step_s=1.0, season=100, now_s=0.0)
    total = 0
    for number in range(60):
        total += 2 if number < 40 else 40
        series.look({("git", "log"): row(total)}, float(number))
    kinds = [(one.kind, one.key) for one in series.warnings()]
    assert kinds == [("surge", ("git", "log"))]


def test_wide_interval_that_only_might_hold_a_surge_warns_nobody() -> None:
    series, chance = DemandSeries(step_s=1.0, season=100, now_s=0.0), random.Random(4)
    total = 0
    for number in range(80):
        total += chance.choice((0, 5, 30))
        series.look({("git", "log"): row(total)}, float(number))
    forecast = series.forecasts()["git", "log"]
    usual = total / 80
    assert forecast.high > 2 * usual > forecast.low
    assert series.warnings() == []


def test_class_that_rests_for_a_season_is_forgotten_but_not_its_score() -> None:
    series = DemandSeries(step_s=1.0, season=5, now_s=0.0)
    for number in range(40):
        series.look({("git", "log"): row(min(number, 20))}, float(number))
    assert series.forecasts() == {}
    report = series.calibration()
    assert report is not None
    assert report["forecasts"] > 0


def test_step_that_nobody_looked_at_counts_as_nothing_asked() -> None:
    series = DemandSeries(step_s=1.0, season=5, now_s=0.0)
    series.look({}, 0.0)
    series.look({("git", "log"): row(9)}, 1.0)
    series.look({("git", "log"): row(9)}, 5.5)
    assert series.closed == 5


TABLES = st.dictionaries(
    st.tuples(st.sampled_from(["git", "(nobody)"]), st.sampled_from(["a", "b", "c", "d"])),
    st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda pair: row(*pair)),
    min_size=1,
    max_size=8,
)


@given(TABLES, st.data())
def test_what_if_gains_exactly_what_the_class_adds_to_the_gap(
    table: dict[Key, list[int]], data: st.DataObject
) -> None:
    keys = sorted(table)
    chosen = data.draw(st.sampled_from(keys))
    found = what_if(table, " ".join(chosen))
    asked = [sum(table[key]) for key in keys]
    well = [table[key][OK] for key in keys]
    now = measure(asked, well)
    if not isinstance(now, Variety):
        assert found["not_enough_evidence"]
        return
    shares = {keys[one.demand]: one.bits for one in gap_by_class(asked, well)}
    assert found["gain_bits"] == pytest.approx(shares.get(chosen, 0.0), abs=1e-9)
    assert found["requisite_ratio_if_served"] >= found["requisite_ratio"] - 1e-12


def test_what_if_by_label_alone_and_of_what_nobody_asked_for() -> None:
    table = {("(nobody)", "translate"): row(0, 10), ("git", "log"): row(10)}
    found = what_if(table, "translate")
    assert (found["requisite_ratio"], found["requisite_ratio_if_served"]) == (0.5, 1.0)
    assert what_if(table, "dance")["not_enough_evidence"] == "nobody asked for that"


def seen_step_by_step(
    counts: list[dict[Key, tuple[int, int]]], step_s: float = 10.0
) -> DemandSeries:
    """A series that watched all of it; its last step is over at len(counts) · step_s."""
    series = DemandSeries(step_s=step_s, season=12, now_s=0.0)
    totals: dict[Key, list[int]] = {}
    series.look({}, 0.0)
    for index, step in enumerate(counts):
        for key, (asked, unserved) in step.items():
            row = totals.setdefault(key, [0] * len(OUTCOMES))
            row[OK] += asked - unserved
            row[UNSERVED] += unserved
        series.look(totals, (index + 1) * step_s)
    return series


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=60))
def test_successor_that_relearns_expects_what_its_predecessor_did(
    counts: list[tuple[int, int]],
) -> None:
    steps: list[dict[Key, tuple[int, int]]] = [
        {("git", "log"): (asked, 0), ("", "x"): (unserved, unserved)} for asked, unserved in counts
    ]
    before = seen_step_by_step(steps)
    after = DemandSeries(step_s=10.0, season=12, now_s=1000.0, score=before.whole_score())
    began = [(10.0 * (len(steps) - 1 - index), one) for index, one in enumerate(steps)]
    assert after.relearn(began, 1000.0) == len(steps)
    assert after.forecasts() == before.forecasts()
    assert after.warnings() == before.warnings()
    assert after.whole_score() == before.whole_score(), "no forecast is scored twice"
    assert after.closed == before.closed


def test_step_goes_on_where_the_predecessor_left_it_and_short_gaps_are_rest() -> None:
    step: dict[Key, tuple[int, int]] = {("git", "log"): (5, 0)}
    series = DemandSeries(step_s=10.0, season=12, now_s=0.0)
    # Two steps were not seen in between; the last one ended 14 s ago, so one more is over.
    assert series.relearn([(64.0, step), (34.0, step), (14.0, step)], 100.0) == 3
    assert series.closed == 3
    series.look({}, 100.0)
    assert series.look({}, 105.9) == []
    assert series.closed == 3
    series.look({}, 106.1)
    assert series.closed == 4


def test_what_was_before_a_long_absence_is_not_learned_from() -> None:
    step: dict[Key, tuple[int, int]] = {("git", "log"): (5, 0)}
    old = [(10_000.0 - 10 * n, step) for n in range(20)]
    series = DemandSeries(step_s=10.0, season=12, now_s=0.0)
    assert series.relearn(old, 0.0) == 0
    assert series.forecasts() == {}
    fresh = [(100.0 - 10 * n, step) for n in range(11)]
    assert series.relearn([*old, *fresh], 0.0) == len(fresh)
    assert series.relearn([], 0.0) == 0
    kept = recorded([{"ago_s": 1.0, "step_s": 60.0, "counts": [["git", "log", 3, 1]]}], 60.0)
    assert kept == [(1.0, {("git", "log"): (3, 1)})]
    assert recorded([{"ago_s": 1.0, "step_s": 60.0, "counts": []}], 30.0) == []


def surprises(counts: list[int]) -> list[int]:
    """After which of them."""
    series, found = Series(60), []
    for index, count in enumerate(counts):
        series.add(count)
        if series.surprise is not None:
            assert 0 <= series.surprise < 0.001
            found.append(index)
    return found


def test_sudden_flood_and_sudden_silence_surprise_and_ordinary_bursts_do_not() -> None:
    chance = random.Random(3)
    steady = [chance.choice((18, 19, 20, 21, 22)) for _ in range(60)]
    assert surprises([*steady, 90, *steady[:5]]) == [60]
    assert surprises([*steady, 0]) == [60]
    assert surprises([*steady[:20], 90]) == [], "too little is known"
    bursts = [40 if index % 5 == 0 else chance.choice((0, 1, 2)) for index in range(200)]
    assert surprises(bursts) == [], "it comes in bursts, and is known to"
    assert surprises([*[1, 0] * 40, 4]) == [], "so many come by chance"


@pytest.mark.parametrize(("steps", "surprises"), [(1, True), (2, False)])
def test_what_came_in_several_steps_is_no_surprise_of_one(steps: int, *, surprises: bool) -> None:
    row = [0] * len(OUTCOMES)
    totals = {("a", "b"): row}
    series = DemandSeries(step_s=10.0, season=12, now_s=0.0)
    series.look(totals, 0.0)
    for step in range(1, 61):
        row[OK] += 18 + step % 5
        series.look(totals, 10.0 * step)
    row[OK] += 60
    told = series.look(totals, 600.0 + 10.0 * steps)  # a look that came late sees them together
    assert bool([one for one in told if one.surprise is not None]) is surprises


@pytest.mark.parametrize("mean", [0.5, 3.0, 40.0])
def test_chance_alone_hardly_ever_surprises(mean: float) -> None:
    counts = np.random.default_rng(1).poisson(mean, (20, 300)).tolist()
    assert sum(len(surprises(row)) for row in counts) <= 20 * 300 * RARE


def test_long_absence_costs_no_more_than_a_few_steps() -> None:
    """A machine that slept for a year: 500,000 steps in which nothing came."""
    series = DemandSeries(step_s=60.0, season=60, now_s=0.0)
    key: Key = ("git", "log")
    counts = [0] * len(OUTCOMES)
    for step in range(1, 20):
        counts = [counts[OK] + 3, *counts[1:]]
        series.look({key: counts}, step * 60.0)
    assert lines_run(lambda: series.look({key: counts}, 500_000 * 60.0)) < 20_000
    assert series.closed == 500_000
