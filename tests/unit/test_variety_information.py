"""What responses know of the demand, against dit; Ashby's bound on tables that keep his rule."""

import dit  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsm.core import variety as v
from vsm.core import variety_information as vi

Table = list[list[int]]
tables = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(0, 400), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    ).filter(lambda table: any(map(sum, table)))
)
BITS = 1e-9


def related(table: Table) -> vi.Transinformation:
    found = vi.transinformation(table)
    assert isinstance(found, vi.Transinformation)
    return found


def distribution(table: Table) -> dit.Distribution:
    events = sum(map(sum, table))
    cells = {f"{d}{r}": n / events for d, row in enumerate(table) for r, n in enumerate(row) if n}
    return dit.Distribution(list(cells), list(cells.values()))


@given(tables)
def test_all_entropies_agree_with_dit(table: Table) -> None:
    found, oracle = related(table), distribution(table)
    mutual = dit.shannon.mutual_information(oracle, [0], [1])
    equivocation = dit.shannon.conditional_entropy(oracle, [1], [0])
    assert found.mutual_bits == pytest.approx(mutual, abs=BITS)
    assert found.equivocation_bits == pytest.approx(equivocation, abs=BITS)
    assert found.joint_bits == pytest.approx(dit.shannon.entropy(oracle), abs=BITS)


@given(tables)
def test_chain_rule_holds_with_the_rows_own_entropies(table: Table) -> None:
    found = related(table)
    rows = sum(sum(row) / found.events * v.entropy_bits(row) for row in table)
    assert found.equivocation_bits == pytest.approx(rows, abs=BITS)
    assert found.joint_bits == pytest.approx(found.demand_bits + rows, abs=BITS)


@given(tables)
def test_transinformation_is_symmetric_and_bounded(table: Table) -> None:
    found = related(table)
    assert related([list(column) for column in zip(*table, strict=True)]).mutual_bits == (
        found.mutual_bits
    )
    assert found.corrected_bits >= 0
    assert 0 <= found.mutual_bits <= min(found.demand_bits, found.response_bits) + BITS


def test_one_response_for_each_demand_tells_all_of_it() -> None:
    found = related([[4, 0], [0, 4]])
    assert (found.mutual_bits, found.equivocation_bits) == (1.0, 0.0)


def test_responses_that_ignore_the_demand_tell_nothing() -> None:
    found = related([[6, 2], [3, 1]])
    assert found.mutual_bits == pytest.approx(0, abs=BITS)
    assert found.equivocation_bits == pytest.approx(v.entropy_bits([9, 3]), abs=BITS)


def test_information_that_is_only_chance_is_corrected_away() -> None:
    # one event more in one corner: less than the (4 - 2 - 2 + 1) / (2 N ln 2) bits of chance
    found = related([[6, 5], [5, 5]])
    assert found.mutual_bits > 0
    assert found.corrected_bits == 0


def test_an_empty_table_is_not_enough_evidence() -> None:
    assert isinstance(vi.transinformation([]), v.NotEnoughEvidence)
    assert isinstance(vi.transinformation([[0, 0]]), v.NotEnoughEvidence)
    assert isinstance(vi.ashby_bound([[0]], [0]), v.NotEnoughEvidence)


@pytest.mark.parametrize("table", [[[1, 2], [3]], [[1, -1], [2, 2]]])
def test_tables_that_cannot_be_are_refused(table: Table) -> None:
    with pytest.raises(ValueError, match=r"argument|expected"):
        vi.transinformation(table)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=80),
    st.permutations(range(6)),
)
def test_no_regulator_beats_the_bound_where_demands_have_outcomes_of_their_own(
    plays: list[tuple[int, int]], shift: list[int]
) -> None:
    # Ashby's rule: under one response, distinct demands never give the same outcome
    table = [[0] * 4 for _ in range(6)]
    outcomes = [0] * 6
    for demand, response in plays:
        table[demand][response] += 1
        outcomes[(shift[demand] + response) % 6] += 1
    found = vi.ashby_bound(table, outcomes)
    assert isinstance(found, vi.AshbyBound)
    assert found.slack_bits >= -BITS


def test_a_perfect_regulator_holds_one_outcome_exactly_at_the_bound() -> None:
    found = vi.ashby_bound([[5, 0], [0, 5]], [10, 0])
    assert found == vi.AshbyBound(0.0, 0.0, 0.0)


def test_a_regulator_with_one_response_leaves_all_of_the_demand() -> None:
    assert vi.ashby_bound([[5], [5]], [5, 5]) == vi.AshbyBound(1.0, 1.0, 0.0)


def test_an_environment_that_absorbs_by_itself_shows_as_negative_slack() -> None:
    assert vi.ashby_bound([[5], [5]], [10]) == vi.AshbyBound(1.0, 0.0, -1.0)


def test_outcomes_of_other_events_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 10 outcomes"):
        vi.ashby_bound([[5], [5]], [9])


def test_a_channel_below_its_capacity_is_sufficient() -> None:
    found = vi.channel_load([10, 10, 10, 10], seconds=2.0, capacity_messages_s=40.0)
    assert found == vi.ChannelLoad(40.0, 80.0, 0.5, 0.5, sufficient=True)


def test_a_channel_that_carries_just_what_is_sent_is_not() -> None:
    found = vi.channel_load([10, 10], seconds=1.0, capacity_messages_s=20.0)
    assert found == vi.ChannelLoad(20.0, 20.0, 1.0, 1.0, sufficient=False)


def test_a_flood_of_one_kind_carries_no_bits_and_still_fills_the_channel() -> None:
    found = vi.channel_load([100, 0], seconds=1.0, capacity_messages_s=50.0)
    assert found == vi.ChannelLoad(0.0, 50.0, 0.0, 2.0, sufficient=False)


def test_a_channel_that_carries_nothing_is_overrun_by_anything() -> None:
    found = vi.channel_load([1, 1], seconds=1.0, capacity_messages_s=0.0)
    assert isinstance(found, vi.ChannelLoad)
    assert found.load == float("inf")
    assert not found.sufficient
    assert isinstance(
        vi.channel_load([0], seconds=1.0, capacity_messages_s=0.0), v.NotEnoughEvidence
    )


@pytest.mark.parametrize(("seconds", "capacity"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0)])
def test_impossible_times_and_capacities_are_refused(seconds: float, capacity: float) -> None:
    with pytest.raises(ValueError, match="expected a time"):
        vi.channel_load([1], seconds=seconds, capacity_messages_s=capacity)
