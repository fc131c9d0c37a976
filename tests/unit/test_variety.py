"""The definitions of variety against examples, two independent libraries, and properties."""

import math
import random
from fractions import Fraction

import dit  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from vsm.core import variety as v
from vsm.core import variety_fixed as fixed

TOLERANCE_BITS = 2**-35  # twice the fixed point's bound: the oracles round as well

Pairs = list[tuple[int, int]]  # (asked, answered) of every class
pairs = st.lists(
    st.tuples(st.integers(0, 3000), st.floats(0, 1)).map(
        lambda row: (row[0], int(row[0] * row[1]))
    ),
    min_size=1,
    max_size=40,
).filter(lambda rows: any(asked for asked, _ in rows))
counts = st.lists(st.integers(0, 3000), min_size=1, max_size=40).filter(any)


def measured(rows: Pairs) -> v.Variety:
    found = v.measure([asked for asked, _ in rows], [answered for _, answered in rows])
    assert isinstance(found, v.Variety)
    return found


def test_four_equal_classes_hold_two_bits_and_half_answered_absorbs_one() -> None:
    assert v.measure([5, 5, 5, 5], [5, 5, 0, 0]) == v.Variety(20, 4, 2.0, 2.0, 1.0, 1.0, 0.5)


def test_an_unserved_class_lowers_the_ratio_by_its_own_share() -> None:
    # p = 1/2, 1/4, 1/4: 0.5 + 0.5 + 0.5 bits, of which the last class's are lost
    found = v.measure([8, 4, 4], [8, 4, 0])
    assert isinstance(found, v.Variety)
    assert (found.environmental_bits, found.absorbed_bits) == (1.5, 1.0)
    assert found.gap_bits == 0.5
    assert found.requisite_ratio == pytest.approx(2 / 3)


@pytest.mark.parametrize("empty", [[], [0], [0, 0, 0]])
def test_no_events_are_not_enough_evidence_and_no_number(empty: list[int]) -> None:
    found = v.measure(empty, empty)
    assert found == v.NotEnoughEvidence(reason=v.NO_EVENTS, events=0, events_needed=1)
    assert isinstance(v.balance(empty, [1, 1]), v.NotEnoughEvidence)
    assert isinstance(v.balance([1, 1], empty), v.NotEnoughEvidence)
    assert (v.entropy_bits(empty), v.hartley_bits(empty), v.gap_by_class(empty, empty)) == (
        0,
        0,
        (),
    )


@pytest.mark.parametrize("asked", [[7], [0, 7, 0]])
def test_a_single_class_has_no_variety_and_its_answered_share_is_the_ratio(
    asked: list[int],
) -> None:
    answered = [count // 2 for count in asked]
    assert v.measure(asked, answered) == v.Variety(7, 1, 0.0, 0.0, 0.0, 0.0, 3 / 7)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [([1, 2], [1]), ([1, 2], [2, 2]), ([1, 2], [1, -1]), ([-1, 2], [-1, 2]), ([-5, 2], [0, 2])],
)
def test_counts_that_cannot_be_are_refused(asked: list[int], answered: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        v.measure(asked, answered)
    with pytest.raises(ValueError, match="expected"):
        v.gap_by_class(asked, answered)


@given(counts)
def test_entropy_agrees_with_scipy(asked: list[int]) -> None:
    expected = stats.entropy(asked, base=2)
    assert v.entropy_bits(asked) == pytest.approx(expected, abs=TOLERANCE_BITS)
    assert measured([(c, c) for c in asked]).environmental_bits == v.entropy_bits(asked)


@given(counts)
def test_entropy_agrees_with_dit(asked: list[int]) -> None:
    names = [chr(ord("0") + index) for index in range(len(asked))]
    oracle = dit.Distribution(names, [count / sum(asked) for count in asked])
    assert v.entropy_bits(asked) == pytest.approx(dit.shannon.entropy(oracle), abs=1e-9)


@given(pairs)
def test_absorbed_variety_agrees_with_its_definition_in_floating_point(rows: Pairs) -> None:
    events = sum(asked for asked, _ in rows)
    terms = [
        -asked / events * math.log2(asked / events) * answered / asked
        for asked, answered in rows
        if asked
    ]
    assert measured(rows).absorbed_bits == pytest.approx(math.fsum(terms), abs=TOLERANCE_BITS)


@given(pairs)
def test_gap_is_environmental_less_absorbed_and_everything_is_bounded(rows: Pairs) -> None:
    found = measured(rows)
    assert 0 <= found.absorbed_bits <= found.environmental_bits
    assert found.environmental_bits <= found.hartley_bits + TOLERANCE_BITS
    assert found.gap_bits == pytest.approx(
        found.environmental_bits - found.absorbed_bits, abs=1e-14
    )
    assert 0 <= found.requisite_ratio <= 1


@given(pairs)
def test_everything_answered_absorbs_everything_exactly_and_nothing_nothing(rows: Pairs) -> None:
    full = measured([(asked, asked) for asked, _ in rows])
    assert (full.absorbed_bits, full.gap_bits) == (full.environmental_bits, 0.0)
    assert full.requisite_ratio == 1
    none = measured([(asked, 0) for asked, _ in rows])
    assert (none.absorbed_bits, none.gap_bits) == (0.0, none.environmental_bits)
    assert none.requisite_ratio == 0


@given(pairs, st.data())
def test_one_more_answer_never_absorbs_less(rows: Pairs, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    asked, answered = rows[at]
    better = [*rows]
    better[at] = (asked, min(asked, answered + 1))
    assert measured(better).absorbed_bits >= measured(rows).absorbed_bits
    assert measured(better).requisite_ratio >= measured(rows).requisite_ratio


@given(pairs, st.randoms())
def test_order_of_classes_changes_no_bit(rows: Pairs, chance: random.Random) -> None:
    assert measured(chance.sample(rows, len(rows))) == measured(rows)


@given(pairs)
def test_classes_that_never_occur_change_no_bit(rows: Pairs) -> None:
    assert measured([(0, 0), *rows, (0, 0)]) == measured(rows)


@given(counts, counts)
def test_entropy_is_additive_over_independent_variables(left: list[int], right: list[int]) -> None:
    # chain rule with H(Y|X) = H(Y): the product table's counts are products
    table = [a * b for a in left[:8] for b in right[:8]]
    if any(table):
        expected = v.entropy_bits(left[:8]) + v.entropy_bits(right[:8])
        assert v.entropy_bits(table) == pytest.approx(expected, abs=4 * TOLERANCE_BITS)


@given(st.lists(counts, min_size=1, max_size=8))
def test_entropy_of_a_grouping_is_that_of_the_groups_plus_within(groups: list[list[int]]) -> None:
    events = sum(map(sum, groups))
    within = sum(sum(group) / events * v.entropy_bits(group) for group in groups)
    whole = v.entropy_bits([count for group in groups for count in group])
    between = v.entropy_bits([sum(group) for group in groups])
    assert whole == pytest.approx(between + within, abs=8 * TOLERANCE_BITS)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=1, max_size=20))
def test_merging_two_nodes_adds_counts_and_never_loses_variety(rows: list[tuple[int, int]]) -> None:
    left, right = [row[0] for row in rows], [row[1] for row in rows]
    both = v.merge(left, right)
    assert both == v.merge(right, left)
    assert v.merge(both, left) == v.merge(left, both)
    assert sum(both) == sum(left) + sum(right)
    if sum(both):  # entropy is concave: a mixture holds at least the mean of its parts
        mean = sum(sum(part) * v.entropy_bits(part) for part in (left, right)) / sum(both)
        assert v.entropy_bits(both) >= mean - 4 * TOLERANCE_BITS


def test_nodes_with_other_classes_do_not_merge() -> None:
    with pytest.raises(ValueError, match="as many classes"):
        v.merge([1, 2], [1])


@given(pairs)
def test_parts_of_the_gap_add_up_and_come_largest_first(rows: Pairs) -> None:
    parts = v.gap_by_class([asked for asked, _ in rows], [answered for _, answered in rows])
    sizes = [part.bits for part in parts]
    assert math.fsum(sizes) == pytest.approx(measured(rows).gap_bits, abs=1e-12)
    assert sizes == sorted(sizes, reverse=True)
    assert all(size > 0 for size in sizes)


def test_the_gap_names_the_class_that_it_comes_from() -> None:
    parts = v.gap_by_class([8, 4, 4], [8, 1, 4])
    assert parts == (v.GapShare(1, 0.375),)


def test_balance_compares_two_repertoires() -> None:
    assert v.balance([1, 1, 1, 1], [3, 3]) == v.Balance(2.0, 1.0, 1.0, 0.5)
    assert v.balance([5], [5]) == v.Balance(0.0, 0.0, 0.0, 1.0)
    assert v.balance([5], [1, 1]) == v.Balance(0.0, 1.0, -1.0, math.inf)


@given(st.integers(1, 2**62))
def test_fixed_logarithm_is_right_to_half_a_unit_in_the_table_and_one_beyond(count: int) -> None:
    exact = math.log2(count)  # a double's own error is at most a 2^11th of the unit
    bound = Fraction(51, 100 if count < fixed.COUNT_LIMIT else 50)
    assert abs(fixed.log2_fixed(count) - Fraction(exact) * 2**36) <= bound


@given(st.integers(1, fixed.TOTAL_LIMIT))
def test_fixed_logarithm_never_falls(count: int) -> None:
    assert fixed.log2_fixed(count) < fixed.log2_fixed(count + 1)


@given(st.integers(0, 40))
def test_fixed_logarithm_of_a_power_of_two_is_exact(power: int) -> None:
    assert fixed.log2_fixed(1 << power) == power << fixed.FRACTION_BITS


@pytest.mark.parametrize("scale", [1, 2**16, 2**30, 2**50])
def test_huge_counts_are_measured_like_small_ones(scale: int) -> None:
    found = v.measure([8 * scale, 4 * scale, 4 * scale], [8 * scale, 4 * scale, 0])
    assert isinstance(found, v.Variety)
    assert (found.environmental_bits, found.absorbed_bits, found.gap_bits) == (1.5, 1.0, 0.5)


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=10).filter(any))
def test_huge_counts_agree_with_scipy_and_stay_in_bounds(asked: list[int]) -> None:
    found = measured([(count, count // 3) for count in asked])
    expected = stats.entropy([float(count) for count in asked], base=2)
    assert found.environmental_bits == pytest.approx(expected, abs=TOLERANCE_BITS)
    assert 0 <= found.absorbed_bits <= found.environmental_bits
    assert found.gap_bits >= 0


def test_rounding_of_huge_counts_places_no_class_above_the_total() -> None:
    asked = [576795003838267391, 1]  # its rounded logarithm is one unit above its successor's
    assert fixed.log2_fixed(asked[0]) > fixed.log2_fixed(sum(asked))
    found = v.measure(asked, [asked[0], 0])
    assert isinstance(found, v.Variety)
    assert (found.absorbed_bits, found.gap_bits) == (0.0, found.environmental_bits)
    assert 0 < found.environmental_bits < 1e-15


def test_sums_within_the_limits_fit_64_bits() -> None:
    row = [fixed.COUNT_LIMIT - 1] * (fixed.TOTAL_LIMIT // (fixed.COUNT_LIMIT - 1))
    sums = v.sum_counts(row, row)
    assert sums.events <= fixed.TOTAL_LIMIT
    assert fixed.TOTAL_LIMIT * fixed.log2_fixed(fixed.TOTAL_LIMIT) < 2**63
    assert sums.asked_log < 2**63
