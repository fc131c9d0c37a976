"""The report of live demand: the definitions' figures, or the reason why there are none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.core.demand import NOBODY, OK, OUTCOMES, UNSERVED, latency_bucket
from vsm.core.demand_window import DemandWindow, Key
from vsm.core.variety import measure
from vsm.core.variety_information import ashby_bound, transinformation
from vsm.core.variety_report import MOST_CLASSES, latency_quantile_s, report, summary


def row(ok: int = 0, unserved: int = 0) -> list[int]:
    found = [0] * len(OUTCOMES)
    found[OK], found[UNSERVED] = ok, unserved
    return found


SERVED = {("git", "log"): row(40), ("git", "diff"): row(40)}


def test_no_demand_has_no_figure_and_says_why() -> None:
    found = report({})
    assert found["figures"] is None
    assert found["not_enough_evidence"]["reason"] == "no events"
    assert summary(found)["not_enough_evidence"]["events"] == 0


def test_few_events_have_no_figure_but_are_listed() -> None:
    found = report({("git", "log"): row(5), (NOBODY, "translate"): row(unserved=2)})
    assert found["figures"] is None
    assert found["not_enough_evidence"]["events_needed"] == 30
    assert (found["events"], found["classes"], found["answered_well"]) == (7, 2, 5)
    assert found["unmet"] == [
        {"integration": NOBODY, "demand": "translate", "asked": 2, "unserved": 2}
    ]


def test_unserved_demand_lowers_the_ratio_by_what_the_definition_gives() -> None:
    before = report(SERVED)["figures"]["requisite_ratio"]["measured"]
    assert before == 1.0
    found = report({**SERVED, (NOBODY, "translate"): row(unserved=20)})
    ratio = found["figures"]["requisite_ratio"]["measured"]
    # H(D) of 40, 40, 20 of 100; absorbed is the part of the two served classes.
    served = 2 * -0.4 * math.log2(0.4)
    assert ratio == pytest.approx(served / (served - 0.2 * math.log2(0.2)), abs=1e-9)
    gap = found["figures"]["gap_by_class"]
    assert [(share["demand"], share["bits"]) for share in gap] == [
        ("translate", pytest.approx(-0.2 * math.log2(0.2), abs=1e-9))
    ]


tables = st.dictionaries(
    st.tuples(st.sampled_from(["git", "time", NOBODY]), st.sampled_from("abcdef")),
    st.lists(st.integers(0, 60), min_size=len(OUTCOMES), max_size=len(OUTCOMES)),
    max_size=12,
)


@given(tables)
def test_figures_are_those_of_the_core_over_the_whole_table(table: dict[Key, list[int]]) -> None:
    found = report(table)
    assert found["events"] == sum(map(sum, table.values()))
    assert sum(found["outcomes"].values()) == found["events"]
    figures = found["figures"]
    assert (figures is None) is (found["not_enough_evidence"] is not None)
    if figures is None:
        return
    keys = sorted(table)
    measured = measure([sum(table[k]) for k in keys], [table[k][OK] for k in keys])
    for name in ("environmental_bits", "absorbed_bits", "gap_bits", "requisite_ratio"):
        assert figures[name]["measured"] == getattr(measured, name)
        assert figures[name]["low"] <= figures[name]["high"]
    responses = ["git", "time", NOBODY]
    dense = [
        [*(sum(table[k][:4]) * (k[0] == name) for name in responses), table[k][4], table[k][5]]
        for k in keys
    ]
    whole = transinformation(dense)
    assert figures["information"]["mutual_bits"] == pytest.approx(whole.mutual_bits)  # type: ignore[union-attr]
    bound = ashby_bound(dense, list(found["outcomes"].values()))
    assert figures["ashby"]["slack_bits"] == pytest.approx(bound.slack_bits)  # type: ignore[union-attr]


def test_a_report_stays_small_however_many_classes_there_are() -> None:
    table = {("git", f"tool{n}"): row(20, 20) for n in range(500)}
    found = report(table)
    assert len(found["unmet"]) == len(found["figures"]["gap_by_class"]) == MOST_CLASSES


def test_window_halves_and_forgets() -> None:
    window = DemandWindow(half_life_s=10, now_s=0)
    window.add(("git", "log"), row(5))
    window.add(("git", "rare"), row(1))
    window.add(("git", "log"), [-3, 1, 0, 0, 0, 0])
    window.fade(9.9)
    assert window.table[("git", "log")] == [5, 1, 0, 0, 0, 0]
    window.fade(10)
    assert dict(window.table) == {("git", "log"): [2, 0, 0, 0, 0, 0]}
    window.fade(5)
    assert dict(window.table) == {("git", "log"): [2, 0, 0, 0, 0, 0]}
    window.fade(10_000_000)
    assert dict(window.table) == {}
    with pytest.raises(ValueError, match="half-life"):
        DemandWindow(half_life_s=0, now_s=0)


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=200))
def test_quantile_is_the_upper_end_of_the_bucket_that_holds_it(latencies_ns: list[int]) -> None:
    buckets = [0] * 20
    for latency_ns in latencies_ns:
        buckets[latency_bucket(latency_ns)] += 1
    for share in (0.5, 0.95):
        exact_ns = sorted(latencies_ns)[math.ceil(share * len(latencies_ns)) - 1]
        limit_s = latency_quantile_s(buckets, share)
        assert limit_s is not None
        assert exact_ns < limit_s * 1e9
        assert limit_s * 1e9 <= max(2 * exact_ns, 2**16)


def test_quantile_without_calls_or_beyond_the_last_bucket_is_unknown() -> None:
    assert latency_quantile_s([0] * 20, 0.5) is None
    assert latency_quantile_s([0] * 19 + [1], 0.5) is None
