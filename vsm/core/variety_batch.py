"""Variety of many rows of counts at once: B measurements over K demand classes, in numpy.

The exact path agrees with `variety.measure` on every row to the last bit; rows with counts
beyond the table's limits are measured by it, one at a time. `measure_float32` trades that for
speed and half the memory. Pure: arrays in, frozen results out, inputs are never written to.
"""

from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from vsm.core import variety, variety_fast
from vsm.core.variety_fixed import (
    COUNT_LIMIT,
    FRACTION_BITS,
    ONE,
    SERIES_SCALE,
    TOTAL_LIMIT,
    log2_table,
)

Counts: TypeAlias = npt.NDArray[np.integer]
Bits: TypeAlias = npt.NDArray[np.float64]
_Int: TypeAlias = npt.NDArray[np.int64]
_Any: TypeAlias = npt.NDArray[Any]  # int64 in the exact path, float32 in the other
_Reduce: TypeAlias = Callable[[_Any, _Any | None, _Any], None]
Engine: TypeAlias = Literal["auto", "numpy", "numba"]

BLOCK_COUNTS: Final = 1 << 16  # counts of one side that are worked on at once: they stay in cache
COMPILED_FROM: Final = 1 << 18  # counts from which "auto" is worth numba's start


class VarietyBatch(msgspec.Struct, frozen=True):
    """B measurements; a row without events is nan in everything but `events`."""

    events: _Int
    environmental_bits: Bits
    absorbed_bits: Bits
    gap_bits: Bits
    requisite_ratio: Bits


class BalanceBatch(msgspec.Struct, frozen=True):
    """B comparisons of two repertoires; nan where one of them is empty."""

    environment_bits: Bits
    operations_bits: Bits
    gap_bits: Bits
    requisite_ratio: Bits


def measure(asked: Counts, answered: Counts, *, engine: Engine = "auto") -> VarietyBatch:
    """Measure B rows of K counts, exactly.

    Args:
        asked: shape (B, K), any integer dtype.
        answered: the same shape.
        engine: "numba" needs `vsm[fast]`; "auto" takes it, where installed, for large batches.

    Raises:
        ValueError: the shapes differ, a count is negative, or more was answered than asked.
        ModuleNotFoundError: engine "numba" without numba.
    """
    _check_shape(asked, answered)
    if _compiles(engine, asked):
        measured = variety_fast.measure_rows(asked, answered)
        if measured:
            return VarietyBatch(measured[0], *measured[1])
    _check_counts(asked, answered)
    sums = _sum_rows(asked, answered)
    return _from_sums(*sums) if sums else _measure_each(asked, answered)


def entropy_bits(counts: Counts, *, engine: Engine = "auto") -> Bits:
    """H of B rows of K counts, exactly; nan for a row without events."""
    _check_shape(counts, counts)
    if _compiles(engine, counts):
        measured = variety_fast.entropy_rows(counts)
        if measured is not None:
            return measured
    _check_counts(counts, counts)
    sums = _sum_rows(counts, None)
    batch = _from_sums(*sums) if sums else _measure_each(counts, counts)
    return batch.environmental_bits


def balance(environment: Counts, operations: Counts, *, engine: Engine = "auto") -> BalanceBatch:
    """Compare the entropies of B pairs of rows, exactly; K may differ between the sides."""
    if len(environment) == len(operations) and _compiles(engine, environment):
        _check_shape(environment, environment)
        _check_shape(operations, operations)
        bits = variety_fast.balance_rows(environment, operations)
        if bits is not None:
            return BalanceBatch(*bits)
    demand = entropy_bits(environment, engine=engine)
    return _compare(demand, entropy_bits(operations, engine=engine))


def measure_float32(asked: Counts, answered: Counts) -> VarietyBatch:
    """Measure B rows in single precision: for scans, never for a figure that is compared.

    Off by at most 2e-5 bit for totals below 2^24; counts are not checked. Rows without events
    are nan as in `measure`.
    """
    _check_shape(asked, answered)
    events, well, asked_log, answered_log = _join(asked, answered, _block_float32, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_events = np.log2(events)
        demand = np.maximum(log_events - asked_log / events, 0)
        absorbed = np.maximum((well * log_events - answered_log) / events, 0)
        ratio = np.where(demand > 0, absorbed / demand, well / events)
    return VarietyBatch(events.astype(np.int64), demand, absorbed, demand - absorbed, ratio)


def balance_float32(environment: Counts, operations: Counts) -> BalanceBatch:
    """Compare the entropies of B pairs of rows in single precision, as `measure_float32`."""
    return _compare(_entropy_float32(environment), _entropy_float32(operations))


def hartley_bits(counts: Counts) -> Bits:
    """log2 of how many classes occurred in each row; 0 for none."""
    return _log2_fixed(np.count_nonzero(counts, axis=1)) / ONE


def _check_shape(asked: Counts, answered: Counts) -> None:
    if asked.ndim != 2 or asked.shape != answered.shape:  # noqa: PLR2004 - B and K
        raise ValueError(f"expected two arrays (B, K), found {asked.shape}, {answered.shape}")
    if not all(np.issubdtype(array.dtype, np.integer) for array in (asked, answered)):
        raise ValueError(f"expected integers, found {asked.dtype}, {answered.dtype}")


def _check_counts(asked: Counts, answered: Counts) -> None:
    if not asked.size:
        return
    if answered.min() < 0 or (answered is not asked and (answered > asked).any()):
        raise ValueError("expected 0 <= answered <= asked in every class")


def _compiles(engine: Engine, counts: Counts) -> bool:
    if engine == "auto":
        return counts.size >= COMPILED_FROM and variety_fast.is_installed()
    return engine == "numba"


def _fits_table(counts: Counts) -> bool:
    return counts.dtype.itemsize == 1 or not counts.size or int(counts.max()) < COUNT_LIMIT


def _sum_rows(asked: Counts, answered: Counts | None) -> list[_Int] | None:
    """Events, answered, asked_log and answered_log of every row, as `variety.Sums` has them.

    None where a row passes the limits of the table or of int64.
    """
    if not _fits_table(asked):
        return None
    sums = _join(asked, answered, _block_exact, np.int64)
    return sums if not len(asked) or int(sums[0].max()) <= TOTAL_LIMIT else None


def _measure_each(asked: Counts, answered: Counts) -> VarietyBatch:
    """Row by row in integers of any size: slow, and no row differs from `variety.measure`."""
    pairs = zip(asked.tolist(), answered.tolist(), strict=True)
    rows = [variety.measure(*pair) for pair in pairs]
    nothing = (np.nan,) * 4
    bits = [nothing if isinstance(r, variety.NotEnoughEvidence) else _bits(r) for r in rows]
    columns = np.array(bits, dtype=np.float64).T
    return VarietyBatch(np.array([r.events for r in rows], dtype=np.int64), *columns)


def _bits(row: variety.Variety) -> tuple[float, float, float, float]:
    return row.environmental_bits, row.absorbed_bits, row.gap_bits, row.requisite_ratio


def _join(
    asked: Counts, answered: Counts | None, reduce: _Reduce, dtype: type[np.number]
) -> list[_Any]:
    """Reduce row blocks that fit the cache and put the four columns together again."""
    rows = max(1, BLOCK_COUNTS // max(1, asked.shape[1]))
    out = np.empty((4, len(asked)), dtype)
    for first in range(0, len(asked), rows):
        block = slice(first, first + rows)
        counts = asked[block].astype(dtype, copy=False)
        well = None if answered is None else answered[block].astype(dtype, copy=False)
        reduce(counts, well, out[:, block])
    return list(out)


def _block_exact(asked: _Int, answered: _Int | None, out: _Int) -> None:
    # mode="clip" skips a second bounds check: what is outside the table never comes here
    logs = np.frombuffer(log2_table(), dtype=np.int64).take(asked, mode="clip")
    _reduce_rows(asked, answered, logs, out)


def _block_float32(asked: _Any, answered: _Any | None, out: _Any) -> None:
    _reduce_rows(asked, answered, np.log2(np.maximum(asked, 1)), out)


def _reduce_rows(asked: _Any, answered: _Any | None, logs: _Any, out: _Any) -> None:
    np.einsum("ij->i", asked, out=out[0])
    np.einsum("ij,ij->i", asked, logs, out=out[2])
    if answered is None:
        out[1], out[3] = out[0], out[2]
    else:
        np.einsum("ij->i", answered, out=out[1])
        np.einsum("ij,ij->i", answered, logs, out=out[3])


def _entropy_float32(counts: Counts) -> _Any:
    _check_shape(counts, counts)
    events, _, logs, _ = _join(counts, None, _block_float32, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits: _Any = np.maximum(np.log2(events) - logs / events, 0)
    return bits


def _compare(demand: _Any, response: _Any) -> BalanceBatch:
    if len(demand) != len(response):
        raise ValueError(f"expected as many rows, found {len(demand)}, {len(response)}")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = response / demand
    ratio[(demand == 0) & (response == 0)] = 1.0
    return BalanceBatch(demand, response, demand - response, ratio)


def _from_sums(events: _Int, answered: _Int, asked_log: _Int, answered_log: _Int) -> VarietyBatch:
    """The same steps in the same order as `variety.from_sums`."""
    log_events = _log2_fixed(events)
    demand = events * log_events - asked_log
    absorbed = answered * log_events - answered_log
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = events * ONE
        shares = np.where(demand != 0, absorbed / demand, answered / events)
        return VarietyBatch(
            events, demand / scale, absorbed / scale, (demand - absorbed) / scale, shares
        )


def _log2_fixed(counts: _Int) -> _Int:
    """`variety_fixed.log2_fixed` of an array of counts up to 2^53."""
    shift = np.maximum(np.frexp(counts.astype(np.float64))[1] - 16, 0).astype(np.int64)
    head = counts >> shift
    base = head << shift
    ratio = (counts - base).astype(np.float64) / np.maximum(base, 1)
    series = ratio * (1.0 - ratio * 0.5)
    table = np.frombuffer(log2_table(), dtype=np.int64)
    tail = np.rint(series * SERIES_SCALE).astype(np.int64)
    fixed: _Int = (shift << FRACTION_BITS) + table[head] + tail
    return fixed
