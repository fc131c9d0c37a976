"""The exact batch measurements compiled by numba, where it is installed (`vsm[fast]`).

The same integers and the same floating-point steps in the same order as numpy's path, without
`fastmath`: equal to the last bit, which the tests check wherever numba is importable. numba is
imported and a kernel compiled at first use, which takes seconds and some 100 MiB: for processes
that measure large batches all the time. Nothing is cached on disk: workers may not write there.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from vsm.core.variety_fixed import (
    COUNT_LIMIT,
    FRACTION_BITS,
    ONE,
    SERIES_SCALE,
    TOTAL_LIMIT,
    log2_table,
)

Counts: TypeAlias = npt.NDArray[np.integer]
Int: TypeAlias = npt.NDArray[np.int64]
Bits: TypeAlias = npt.NDArray[np.float64]

_MASK: Final = COUNT_LIMIT - 1
_WIDE_BYTES: Final = 4
_PAIRED: Final = range(4, 2 * COUNT_LIMIT + 1, 4)


@functools.cache
def is_installed() -> bool:
    """Whether numba can be imported; asks the import system and imports nothing."""
    return importlib.util.find_spec("numba") is not None


def measure_rows(asked: Counts, answered: Counts) -> tuple[Int, Bits] | None:
    """Measure every row, or say None where a count is invalid or beyond the fast limits.

    Returns:
        events (B,) and, as (4, B), environmental, absorbed and gap bits and the ratio; a row
        without events is nan.

    Raises:
        ModuleNotFoundError: numba is not installed.
    """
    events, bits = np.empty(len(asked), np.int64), np.empty((4, len(asked)))
    table = np.frombuffer(log2_table(), dtype=np.int64)
    sound = _measure_kernel()(_plain(asked), _plain(answered), table, events, bits)
    return (events, bits) if sound else None


def entropy_rows(counts: Counts) -> Bits | None:
    """H of every row in bits, or None where a count is invalid or beyond the fast limits."""
    bits = np.empty(len(counts))
    table = np.frombuffer(log2_table(), dtype=np.int64)
    return bits if _entropy_kernel()(_plain(counts), table, bits) else None


def balance_rows(environment: Counts, operations: Counts) -> Bits | None:
    """H of both sides of every row, gap and ratio, as (4, B); both sides in one pass.

    None where a count is invalid or beyond the fast limits, or where the counts cannot be read
    in pairs, two pairs at a time: four bytes wide, and K a multiple of four, at most 2^17.
    """
    sides = [_plain(environment), _plain(operations)]
    if any(one.dtype.itemsize != _WIDE_BYTES or one.shape[1] not in _PAIRED for one in sides):
        return None
    bits = np.empty((4, len(environment)))
    words = [one.view(np.uint64) for one in sides]
    table = np.frombuffer(log2_table(), dtype=np.int64)
    return bits if _balance_kernel()(*words, table, _products(), bits) else None


@functools.cache
def _products() -> npt.NDArray[np.uint64]:
    """What count · log2(count) is for every count below COUNT_LIMIT, in fixed point."""
    table = np.frombuffer(log2_table(), dtype=np.int64)
    return (table * np.arange(COUNT_LIMIT)).view(np.uint64)


def _plain(counts: Counts) -> Counts:
    """Contiguous, and unsigned: numba would test every signed index for a wrap-around.

    A negative count must read as 2^16 or more, so signed ones are at least 32 bits wide.
    """
    narrow = np.issubdtype(counts.dtype, np.signedinteger) and counts.dtype.itemsize < _WIDE_BYTES
    contiguous = np.ascontiguousarray(counts, np.int32 if narrow else None)
    return contiguous.view(np.dtype(f"u{contiguous.dtype.itemsize}"))


@functools.cache
def _compile() -> tuple[Callable[..., Any], Callable[..., Any]]:
    compiled = importlib.import_module("numba").njit
    return compiled, compiled(_log2_fixed)


@functools.cache
def _measure_kernel() -> Callable[..., bool]:
    compiled, log2_fixed = _compile()

    def measure(asked: Any, answered: Any, table: Any, events: Any, bits: Any) -> Any:  # noqa: ANN401 - compiled
        seen = np.int64(0)
        for row in range(asked.shape[0]):
            total = well = asked_log = answered_log = np.int64(0)
            for column in range(asked.shape[1]):
                count, good = np.int64(asked[row, column]), np.int64(answered[row, column])
                # a negative count, or answered > asked, leaves a high bit as a count >= 2^16 does
                seen |= count | good | (count - good)
                log = table[asked[row, column] & _MASK]
                total += count
                well += good
                asked_log += count * log
                answered_log += good * log
            if total > TOTAL_LIMIT or seen >> 16:
                return False
            events[row] = total
            log_total = log2_fixed(total, table)
            demand = total * log_total - asked_log
            absorbed = well * log_total - answered_log
            scale = total * ONE
            if total == 0:
                bits[:, row] = np.nan
                continue
            bits[0, row] = demand / scale
            bits[1, row] = absorbed / scale
            bits[2, row] = (demand - absorbed) / scale
            bits[3, row] = absorbed / demand if demand else well / total
        return True

    kernel: Callable[..., bool] = compiled(measure)
    return kernel


@functools.cache
def _entropy_kernel() -> Callable[..., bool]:
    compiled, log2_fixed = _compile()

    def entropy(counts: Any, table: Any, bits: Any) -> Any:  # noqa: ANN401 - compiled
        seen = np.int64(0)
        for row in range(counts.shape[0]):
            total = logs = np.int64(0)
            for column in range(counts.shape[1]):
                count = np.int64(counts[row, column])
                seen |= count
                total += count
                logs += count * table[counts[row, column] & _MASK]
            if total > TOTAL_LIMIT or seen >> 16:
                return False
            if total == 0:
                bits[row] = np.nan
            else:
                bits[row] = (total * log2_fixed(total, table) - logs) / (total * ONE)
        return True

    kernel: Callable[..., bool] = compiled(entropy)
    return kernel


@functools.cache
def _balance_kernel() -> Callable[..., bool]:
    """Loads are the limit: one for two counts, one for each product; four sums at once.

    K is a multiple of four: a branch for what is left over costs a third of the speed.
    """
    compiled, log2_fixed = _compile()
    mask, half, low = np.uint64(_MASK), np.uint64(32), np.uint64((1 << 32) - 1)
    beyond = ~np.uint64(_MASK << 32 | _MASK)

    def sums(words: Any, products: Any) -> Any:  # noqa: ANN401 - compiled
        seen = lanes = first = second = third = fourth = np.uint64(0)
        pair = 0
        while pair + 1 < words.shape[0]:
            word, other = words[pair], words[pair + 1]
            pair += 2
            seen |= word | other
            lanes += word + other
            first += products[word & mask]
            second += products[(word >> half) & mask]
            third += products[other & mask]
            fourth += products[(other >> half) & mask]
        total = np.int64((lanes & low) + (lanes >> half))
        return seen & beyond, total, np.int64(first + second + third + fourth)

    def entropy(total: Any, logs: Any, table: Any) -> Any:  # noqa: ANN401 - compiled
        if total == 0:
            return np.nan
        return (total * log2_fixed(total, table) - logs) / (total * ONE)

    sums, entropy = compiled(sums), compiled(entropy)

    def balance(environment: Any, operations: Any, table: Any, products: Any, bits: Any) -> Any:  # noqa: ANN401 - compiled
        for row in range(environment.shape[0]):
            wrong, asked, asked_logs = sums(environment[row], products)
            wrong_too, had, had_logs = sums(operations[row], products)
            if wrong | wrong_too or asked > TOTAL_LIMIT or had > TOTAL_LIMIT:
                return False
            demand, response = entropy(asked, asked_logs, table), entropy(had, had_logs, table)
            bits[0, row] = demand
            bits[1, row] = response
            bits[2, row] = demand - response
            if demand == 0:
                bits[3, row] = np.nan if had == 0 else (1.0 if response == 0 else np.inf)
            else:
                bits[3, row] = response / demand
        return True

    kernel: Callable[..., bool] = compiled(balance)
    return kernel


def _log2_fixed(count: Any, table: Any) -> Any:  # noqa: ANN401 - compiled
    shift = np.int64(0)
    while count >> shift >= COUNT_LIMIT:
        shift += 1
    head = count >> shift
    base = head << shift
    if count == base:
        return (shift << FRACTION_BITS) + table[head]
    ratio = np.float64(count - base) / np.float64(base)
    series = ratio * (1.0 - ratio * 0.5)
    return (shift << FRACTION_BITS) + table[head] + np.int64(np.rint(series * SERIES_SCALE))
