"""Batches against single measurements, to the last bit, with numpy alone and with numba."""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsm.core import variety as v
from vsm.core import variety_batch as vb
from vsm.core import variety_fast
from vsm.core.variety_fixed import COUNT_LIMIT, TOTAL_LIMIT

Rows = list[list[tuple[int, int]]]
Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]

needs_numba = pytest.mark.skipif(
    not variety_fast.is_installed(), reason="numba is not installed: pip install 'vsm[fast]'"
)
ENGINES = ["numpy", pytest.param("numba", marks=needs_numba)]
DTYPES = [np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


def random_pair(rows: int, classes: int, top: int, dtype: type = np.int64, seed: int = 1) -> Pair:
    chance = np.random.default_rng(seed)
    asked = chance.integers(0, top, (rows, classes))
    asked[chance.random((rows, classes)) < 0.2] = 0
    answered: npt.NDArray[Any] = (asked * chance.random((rows, classes))).astype(dtype)
    return asked.astype(dtype), answered


def bits_of(*numbers: float) -> bytes:
    return struct.pack(f"{len(numbers)}d", *numbers)


def assert_each_row_is_the_single_measurement(batch: vb.VarietyBatch, pair: Pair) -> None:
    for row, (asked, answered) in enumerate(zip(*(side.tolist() for side in pair), strict=True)):
        single = v.measure(asked, answered)
        found = [
            float(column[row])
            for column in (
                batch.environmental_bits,
                batch.absorbed_bits,
                batch.gap_bits,
                batch.requisite_ratio,
            )
        ]
        assert batch.events[row] == single.events
        if isinstance(single, v.NotEnoughEvidence):
            assert all(np.isnan(number) for number in found)
        else:
            assert bits_of(*found) == bits_of(
                single.environmental_bits,
                single.absorbed_bits,
                single.gap_bits,
                single.requisite_ratio,
            )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 3), (300, 64), (3, 700), (40, 1)])
def test_batch_equals_single_measurements_bit_for_bit(
    engine: vb.Engine, dtype: type, rows: int, classes: int
) -> None:
    pair = random_pair(rows, classes, 5000, dtype)
    assert_each_row_is_the_single_measurement(vb.measure(*pair, engine=engine), pair)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 12).flatmap(
        lambda classes: st.lists(
            st.lists(
                st.tuples(st.integers(0, COUNT_LIMIT + 2), st.floats(0, 1)),
                min_size=classes,
                max_size=classes,
            ),
            min_size=1,
            max_size=8,
        )
    )
)
def test_any_batch_equals_single_measurements_bit_for_bit(
    engine: vb.Engine, rows: list[list[tuple[int, float]]]
) -> None:
    asked = np.array([[count for count, _ in row] for row in rows])
    answered = np.array([[int(count * share) for count, share in row] for row in rows])
    pair = (asked, answered)
    assert_each_row_is_the_single_measurement(vb.measure(*pair, engine=engine), pair)


@pytest.mark.parametrize("engine", ENGINES)
def test_totals_beyond_the_table_take_the_same_logarithm(engine: vb.Engine) -> None:
    pair = random_pair(200, 60, COUNT_LIMIT)
    totals = pair[0].sum(axis=1)
    assert totals.min() > COUNT_LIMIT
    assert totals.max() <= TOTAL_LIMIT
    assert_each_row_is_the_single_measurement(vb.measure(*pair, engine=engine), pair)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("top", [COUNT_LIMIT + 1, 2**40, 2**55])
def test_counts_beyond_the_limits_fall_back_to_integers_of_any_size(
    engine: vb.Engine, top: int
) -> None:
    pair = random_pair(20, 70, top)
    assert_each_row_is_the_single_measurement(vb.measure(*pair, engine=engine), pair)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_total_beyond_the_limit_falls_back_though_every_count_fits(engine: vb.Engine) -> None:
    asked = np.full((3, 700), COUNT_LIMIT - 1)
    pair = (asked, asked // 2)
    assert asked[0].sum() > TOTAL_LIMIT
    assert_each_row_is_the_single_measurement(vb.measure(*pair, engine=engine), pair)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_without_events_is_nan_and_disturbs_no_other(engine: vb.Engine) -> None:
    asked = np.array([[0, 0], [1, 1], [0, 0]])
    found = vb.measure(asked, asked, engine=engine)
    assert found.environmental_bits.tolist()[1] == 1
    assert np.isnan(found.environmental_bits).tolist() == [True, False, True]
    assert np.isnan(vb.entropy_bits(asked, engine=engine)).tolist() == [True, False, True]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_no_rows_or_no_classes_are_an_empty_answer(
    engine: vb.Engine, shape: tuple[int, int]
) -> None:
    nothing = np.zeros(shape, np.int64)
    found = vb.measure(nothing, nothing, engine=engine)
    assert found.events.tolist() == [0] * shape[0]
    assert np.isnan(found.gap_bits).tolist() == [True] * shape[0]
    assert vb.measure_float32(nothing, nothing).events.tolist() == [0] * shape[0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize(
    ("asked", "answered"), [([[1, 2]], [[2, 2]]), ([[99, 2]], [[-1, 2]]), ([[-2, 2]], [[-2, 2]])]
)
def test_counts_that_cannot_be_are_refused(
    engine: vb.Engine, dtype: type, asked: list[list[int]], answered: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match="0 <= answered <= asked"):
        vb.measure(np.array(asked, dtype), np.array(answered, dtype), engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_negative_counts_of_any_width_are_refused(engine: vb.Engine, dtype: type) -> None:
    with pytest.raises(ValueError, match="0 <= answered <= asked"):
        vb.measure(np.array([[60_000, 2]]), np.array([[-1, 2]], dtype), engine=engine)
    with pytest.raises(ValueError, match="0 <= answered <= asked"):
        vb.entropy_bits(np.array([[-2, 5]], dtype), engine=engine)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [(np.ones(3, int), np.ones(3, int)), (np.ones((2, 3), int), np.ones((3, 2), int))],
)
def test_other_shapes_are_refused(asked: npt.NDArray[Any], answered: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="expected two arrays"):
        vb.measure(asked, answered)


def test_shares_instead_of_counts_are_refused() -> None:
    shares = np.full((1, 2), 0.5)
    with pytest.raises(ValueError, match="expected integers"):
        vb.measure(shares, shares)


@pytest.mark.parametrize("engine", ENGINES)
def test_batched_entropy_and_balance_equal_the_single_ones(engine: vb.Engine) -> None:
    environment, operations = random_pair(50, 64, 4000)[0], random_pair(50, 9, 4000, seed=2)[0]
    environment[7, 1:] = 0
    environment[7, 0] = 5
    found = vb.balance(environment, operations, engine=engine)
    for row, (demand, response) in enumerate(
        zip(environment.tolist(), operations.tolist(), strict=True)
    ):
        single = v.balance(demand, response)
        assert isinstance(single, v.Balance)
        assert bits_of(found.environment_bits[row], found.operations_bits[row]) == bits_of(
            single.environment_bits, single.operations_bits
        )
        assert bits_of(found.gap_bits[row], found.requisite_ratio[row]) == bits_of(
            single.gap_bits, single.requisite_ratio
        )


def test_batched_hartley_variety_equals_the_single_one() -> None:
    asked = random_pair(50, 64, 4)[0]
    singles = [v.hartley_bits(row) for row in asked.tolist()]
    assert vb.hartley_bits(asked).tolist() == singles


@pytest.mark.parametrize("top", [2, 50, 5000, COUNT_LIMIT])
def test_single_precision_stays_within_its_bound(top: int) -> None:
    pair = random_pair(500, 64, top)
    exact, rough = vb.measure(*pair), vb.measure_float32(*pair)
    for name in ("environmental_bits", "absorbed_bits", "gap_bits"):
        np.testing.assert_allclose(getattr(rough, name), getattr(exact, name), atol=2e-5)
    np.testing.assert_allclose(rough.requisite_ratio, exact.requisite_ratio, atol=2e-5)
    np.testing.assert_array_equal(rough.events, exact.events)
    two = vb.balance_float32(*pair)
    np.testing.assert_allclose(two.environment_bits, exact.environmental_bits, atol=2e-5)


def test_inputs_are_not_written_to() -> None:
    pair = random_pair(30, 8, 100)
    for side in pair:
        side.flags.writeable = False
    vb.measure(*pair)
    vb.measure_float32(*pair)


def test_without_numba_auto_is_numpy_and_asking_for_numba_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(variety_fast, "is_installed", lambda: False)
    pair = random_pair(vb.COMPILED_FROM // 64 + 1, 64, 100)
    by_numpy = vb.measure(*pair, engine="numpy")
    automatic = vb.measure(*pair)
    assert by_numpy.gap_bits.tobytes() == automatic.gap_bits.tobytes()


@pytest.mark.skipif(variety_fast.is_installed(), reason="numba is installed here")
def test_the_numba_engine_without_numba_is_an_error() -> None:
    pair = random_pair(2, 2, 5)
    with pytest.raises(ModuleNotFoundError):
        vb.measure(*pair, engine="numba")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("classes", [4, 6, 64])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "int64"])
def test_balance_of_any_width_equals_that_of_numpy(
    engine: vb.Engine, classes: int, dtype: str
) -> None:
    environment = random_pair(40, classes, 200)[0].astype(dtype)
    operations = random_pair(40, classes, 200, seed=2)[0].astype(dtype)
    environment[3], operations[4] = 0, 0  # nobody asked; nothing can be done
    environment[5], operations[5] = 0, 0
    environment[6, 1:], operations[6, 1:] = 0, 0  # one kind each
    environment[7, 1:] = 0
    found = vb.balance(environment, operations, engine=engine)
    plain = vb.balance(environment, operations, engine="numpy")
    for name in found.__struct_fields__:
        assert np.array_equal(getattr(found, name), getattr(plain, name), equal_nan=True), name


@pytest.mark.parametrize("engine", ENGINES)
def test_counts_beyond_the_fast_limits_are_compared_exactly(engine: vb.Engine) -> None:
    small = np.ones((2, 4), np.uint32)
    for big in (1 << 16, (1 << 32) - 1):
        large = np.array([[1, 2, 3, 4], [big, 1, 1, 1]], np.uint32)
        for pair in ((small, large), (large, small)):
            found, single = vb.balance(*pair, engine=engine), v.balance(*map(list, _second(pair)))
            assert isinstance(single, v.Balance)
            assert found.requisite_ratio[1] == single.requisite_ratio
    with pytest.raises(ValueError, match="expected 0 <= answered"):
        vb.balance(np.full((1, 4), -1, np.int32), small[:1], engine=engine)


def _second(pair: tuple[npt.NDArray[Any], npt.NDArray[Any]]) -> list[list[int]]:
    return [side[1].tolist() for side in pair]


@needs_numba
def test_a_large_batch_takes_numba_and_differs_in_no_bit() -> None:
    pair = random_pair(vb.COMPILED_FROM // 64 + 1, 64, 1000)
    automatic, by_numpy = vb.measure(*pair), vb.measure(*pair, engine="numpy")
    assert automatic.environmental_bits.tobytes() == by_numpy.environmental_bits.tobytes()
    assert automatic.requisite_ratio.tobytes() == by_numpy.requisite_ratio.tobytes()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", [0, 255, 256, 299])
@pytest.mark.parametrize("column", [0, 1, 62, 63])
def test_a_wrong_count_is_found_in_whichever_place(
    engine: vb.Engine, row: int, column: int
) -> None:
    asked = np.full((300, 64), 3, np.uint32)
    for wrong in (4, 1 << 31):  # more than was asked; a negative number
        answered = asked.copy()
        answered[row, column] = wrong
        with pytest.raises(ValueError, match="0 <= answered <= asked"):
            vb.measure(asked, answered, engine=engine)
    asked[row, column] = COUNT_LIMIT  # beyond the table, but possible
    found = vb.measure(asked, asked, engine=engine)
    assert found.events[row] == 63 * 3 + COUNT_LIMIT
    assert found.gap_bits[row] == 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("classes", [2, 6, 64])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_four_byte_counts_equal_the_single_measurements_up_to_the_limit(
    engine: vb.Engine, classes: int, dtype: type
) -> None:
    pair = random_pair(600, classes, COUNT_LIMIT, dtype)
    pair[0][7], pair[1][7] = 0, 0
    pair[0][300, 1:], pair[1][300] = 0, 0
    assert_each_row_is_the_single_measurement(vb.measure(*pair, engine=engine), pair)
