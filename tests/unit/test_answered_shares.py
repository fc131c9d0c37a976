"""Who answers worse than before is told, with the chance; chance alone hardly is."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operations import lines_run
from scipy.stats import betabinom

from vsm.core.anomaly import RARE
from vsm.core.answered_shares import LEAST_ASKED, LEAST_HISTORY, AnsweredShares, so_few
from vsm.core.demand import NOBODY, OK, OUTCOMES, TOOL_ERROR
from vsm.core.demand_window import Key

Totals = dict[Key, list[int]]


def row(well: int, failed: int) -> list[int]:
    counts = [0] * len(OUTCOMES)
    counts[OK], counts[TOOL_ERROR] = well, failed
    return counts


@given(st.integers(1, 300), st.integers(0, 2000), st.data())
def test_chance_of_so_few_is_the_beta_binomials(
    asked: int, earlier: int, data: st.DataObject
) -> None:
    well, earlier_well = data.draw(st.integers(0, asked)), data.draw(st.integers(0, earlier))
    exact = betabinom.cdf(well, asked, earlier_well + 0.5, earlier - earlier_well + 0.5)
    assert so_few(well, asked, earlier_well, earlier) == pytest.approx(exact, abs=1e-9)


def test_step_with_millions_of_calls_costs_no_more_than_one_with_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A beat of system 4 is due every three seconds, and 100,000 calls a second are possible."""
    calls, truth = [0], math.lgamma

    def counted(value: float) -> float:
        calls[0] += 1
        return truth(value)

    monkeypatch.setattr(math, "lgamma", counted)
    shares, key = AnsweredShares(), ("busy", "x")
    assert shares.close({key: row(9_000_000, 1_000_000)}, 60.0) == []
    assert shares.close({key: row(14_399_000, 1_601_000)}, 60.0) == [], "a little less, by chance"
    (found,) = shares.close({key: row(19_700_000, 2_300_000)}, 60.0)
    assert found["chance"] < RARE
    assert calls[0] < 100
    exact = betabinom.cdf(89_700, 100_000, 90_000.5, 10_000.5)
    assert so_few(89_700, 100_000, 90_000, 100_000) == pytest.approx(exact, rel=1e-6)
    assert so_few(89_990, 100_000, 90_000, 100_000, enough=RARE) >= RARE


def test_who_answers_worse_than_before_is_told_until_that_is_what_it_does() -> None:
    shares = AnsweredShares()
    good: Key = ("good", "x")
    bad: Key = ("bad", "x")
    assert shares.close({good: row(500, 5), bad: row(500, 5)}, 60.0) == [], "that is the history"
    (found,) = shares.close({good: row(540, 5), bad: row(510, 35)}, 60.0)
    assert (found["integration"], found["came"], found["of"]) == ("bad", 10, 40)
    assert found["expected"] == round(40 * 500 / 505, 3)
    assert found["chance"] < RARE
    totals: Totals = {good: row(540, 5), bad: row(510, 35)}
    told = 0
    for _ in range(60):
        totals = {**totals, bad: row(totals[bad][OK] + 10, totals[bad][TOOL_ERROR] + 30)}
        told += len(shares.close(totals, 60.0))
    assert 0 < told < 60


def test_too_little_is_no_evidence_and_what_nobody_serves_is_another_matter() -> None:
    few, short, nobody = ("few", "x"), ("short", "x"), (NOBODY, "x")
    shares = AnsweredShares()
    before: Totals = {few: row(500, 0), short: row(LEAST_HISTORY - 1, 0), nobody: row(0, 500)}
    shares.close(before, 60.0)
    after: Totals = {
        few: row(500, LEAST_ASKED - 1),
        short: row(LEAST_HISTORY - 1, 50),
        nobody: row(0, 900),
    }
    assert shares.close(after, 60.0) == []
    assert shares.close({few: row(3, 0)}, 60.0) == [], "it was removed and came again"


def test_chance_alone_hardly_ever_tells() -> None:
    dice = np.random.default_rng(1)
    told = 0
    for _ in range(40):
        shares, well, failed = AnsweredShares(), 180, 20
        shares.close({("a", "x"): row(well, failed)}, 60.0)
        for _ in range(50):
            new = int(dice.binomial(30, 0.9))
            well, failed = well + new, failed + 30 - new
            told += len(shares.close({("a", "x"): row(well, failed)}, 60.0))
    assert told <= 40 * 50 * RARE * 4


@pytest.mark.parametrize(
    ("well", "asked", "earlier_well", "earlier"),
    [
        (4_650_000, 6_000_000, 90, 100),
        (10**13 * 89 // 100, 10**13, 90, 100),
        (10**12, 2 * 10**12, 10**12 + 10**6, 2 * 10**12),
        (3, 10**13, 1, 10**13),
        (10**13 - 1, 10**13, 10**13, 10**13),
        (5 * 10**12, 10**13, 0, 100),
    ],
)
def test_chance_is_found_in_a_bounded_time_whatever_was_asked(
    well: int, asked: int, earlier_well: int, earlier: int
) -> None:
    """A short history and a flood: the chance is spread over millions of counts."""
    found: list[float] = []
    chance = partial(so_few, well, asked, earlier_well, earlier)
    assert lines_run(lambda: found.append(chance())) < 20_000
    assert 0.0 <= found[0] <= 1.0


def test_chance_that_is_spread_widely_is_right_to_a_twentieth() -> None:
    exact = betabinom.cdf(4_650_000, 6_000_000, 90.5, 10.5)
    assert so_few(4_650_000, 6_000_000, 90, 100) == pytest.approx(exact, rel=0.05)
