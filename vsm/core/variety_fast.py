"""The exact batch measurements compiled by numba, where it is installed (`vsm[fast]`).

The same integers and the same floating-point steps in the same order as numpy's path, without
`fastmath`: equal to the last bit, which the tests check wherever numba is importable. numba is
imported and a kernel compiled at first use, which takes seconds and some 100 MiB: for processes
that measure large batches all the time. Nothing is cached on disk: workers may not write there.

What limits the kernels is how many table entries a core loads in a second. So counts of four bytes
are loaded in pairs, and the steps from sums to bits are loops of their own over a block of rows,
one a division: short enough for the compiler to do eight rows at once.
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
_EVEN: Final = range(2, 2 * COUNT_LIMIT + 1, 2)  # K whose sum of counts fits half a word
_PAIRED: Final = range(4, 2 * COUNT_LIMIT + 1, 4)
_COUNT, _HALF, _LOW = np.uint64(_MASK), np.uint64(32), np.uint64((1 << 32) - 1)
_BEYOND: Final = ~np.uint64(_MASK << 32 | _MASK)
BLOCK_ROWS: Final = 256  # rows whose sums are worked on at once


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
    sides = [_plain(asked), _plain(answered)]
    pairs = all(one.dtype.itemsize == _WIDE_BYTES for one in sides) and asked.shape[1] in _EVEN
    if pairs:
        sides = [one.view(np.uint64) for one in sides]
    sound = _measure_kernel(pairs=pairs)(*sides, _logarithms(), events, bits)
    return (events, bits) if sound else None


def entropy_rows(counts: Counts) -> Bits | None:
    """H of every row in bits, or None where a count is invalid or beyond the fast limits."""
    bits = np.empty(len(counts))
    return bits if _entropy_kernel()(_plain(counts), _logarithms(), bits) else None


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
    return bits if _balance_kernel()(*words, _logarithms(), _products(), bits) else None


def _logarithms() -> npt.NDArray[np.uint64]:
    """log2(count) for every count below COUNT_LIMIT, in fixed point."""
    return np.frombuffer(log2_table(), dtype=np.uint64)


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
    """How to compile (a division by 0 is IEEE's, and no branch), and the compiled logarithm."""
    compiled = importlib.import_module("numba").njit(error_model="numpy")
    return compiled, compiled(_log2_fixed)


@functools.cache
def _measure_kernel(*, pairs: bool) -> Callable[..., bool]:
    compiled, log2_fixed = _compile()
    sum_block = compiled(_sum_pairs if pairs else _sum_counts)
    finish = compiled(_finish_measure)

    def measure(asked: Any, answered: Any, table: Any, events: Any, bits: Any) -> Any:  # noqa: ANN401 - compiled
        sums = np.empty((4, BLOCK_ROWS), np.int64)
        for first in range(0, asked.shape[0], BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, asked.shape[0])
            total, well = events[first:last], sums[1, : last - first]
            demand, absorbed = sums[2, : last - first], sums[3, : last - first]
            if not sum_block(asked[first:last], answered[first:last], table, sums):
                return False
            for row in range(last - first):
                total[row] = sums[0, row]
                log_total = log2_fixed(sums[0, row], table)
                demand[row] = sums[0, row] * log_total - demand[row]
                absorbed[row] = well[row] * log_total - absorbed[row]
            demand_bits, absorbed_bits = bits[0, first:last], bits[1, first:last]
            gap_bits, ratio = bits[2, first:last], bits[3, first:last]
            finish(total, well, demand, absorbed, demand_bits, absorbed_bits, gap_bits, ratio)
        return True

    kernel: Callable[..., bool] = compiled(measure)
    return kernel


def _sum_pairs(asked: Any, answered: Any, table: Any, sums: Any) -> Any:  # noqa: ANN401 - compiled
    """Total, answered and both sums of logarithms of every row; two counts in each word."""
    wrong, highest = np.uint64(0), np.int64(0)
    for row in range(asked.shape[0]):
        total = well = seen = low_asked = low_well = high_asked = high_well = np.uint64(0)
        for pair in range(asked.shape[1]):
            both, good = asked[row, pair], answered[row, pair]
            # a negative count, or answered > asked, leaves a high bit as a count >= 2^16 does
            seen |= both | good | (both - good)
            total += both
            well += good
            low, high = both & _COUNT, both >> _HALF
            log_low, log_high = table[low], table[high & _COUNT]
            low_asked += low * log_low
            high_asked += high * log_high
            low_well += (good & _COUNT) * log_low
            high_well += (good >> _HALF) * log_high
        wrong |= seen & _BEYOND
        sums[0, row] = np.int64((total & _LOW) + (total >> _HALF))
        sums[1, row] = np.int64((well & _LOW) + (well >> _HALF))
        sums[2, row] = np.int64(low_asked + high_asked)
        sums[3, row] = np.int64(low_well + high_well)
        highest = max(highest, sums[0, row])
    return not wrong and highest <= TOTAL_LIMIT


def _sum_counts(asked: Any, answered: Any, table: Any, sums: Any) -> Any:  # noqa: ANN401 - compiled
    """The same for counts of any width, one at a time."""
    wrong, highest = np.int64(0), np.int64(0)
    for row in range(asked.shape[0]):
        total = well = asked_log = answered_log = np.int64(0)
        for column in range(asked.shape[1]):
            count, good = np.int64(asked[row, column]), np.int64(answered[row, column])
            wrong |= count | good | (count - good)
            log = np.int64(table[asked[row, column] & _MASK])
            total += count
            well += good
            asked_log += count * log
            answered_log += good * log
        sums[0, row], sums[1, row] = total, well
        sums[2, row], sums[3, row] = asked_log, answered_log
        highest = max(highest, total)
    return not wrong >> 16 and highest <= TOTAL_LIMIT


def _finish_measure(  # noqa: PLR0917 - compiled: as many contiguous columns
    total: Int,
    well: Int,
    demand: Int,
    absorbed: Int,
    demand_bits: Bits,
    absorbed_bits: Bits,
    gap_bits: Bits,
    ratio: Bits,
) -> None:
    """From sums to bits; a row without events is 0 / 0, which is nan."""
    rows = total.shape[0]
    for row in range(rows):
        demand_bits[row] = np.float64(demand[row]) / (np.float64(total[row]) * ONE)
    for row in range(rows):
        absorbed_bits[row] = np.float64(absorbed[row]) / (np.float64(total[row]) * ONE)
    for row in range(rows):
        gap = demand[row] - absorbed[row]
        gap_bits[row] = np.float64(gap) / (np.float64(total[row]) * ONE)
    for row in range(rows):
        share = absorbed[row] if demand[row] else well[row]
        whole = demand[row] or total[row]
        ratio[row] = np.float64(share) / np.float64(whole)


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
                logs += count * np.int64(table[counts[row, column] & _MASK])
            if total > TOTAL_LIMIT or seen >> 16:
                return False
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
    sum_products, finish = compiled(_sum_products), compiled(_finish_balance)

    def entropies(words: Any, table: Any, products: Any, totals: Any, logs: Any) -> Any:  # noqa: ANN401 - compiled
        wrong, highest = np.uint64(0), np.int64(0)
        for row in range(words.shape[0]):
            beyond, totals[row], logs[row] = sum_products(words[row], products)
            wrong |= beyond
            highest = max(highest, totals[row])
        if wrong or highest > TOTAL_LIMIT:
            return False
        for row in range(words.shape[0]):
            logs[row] = totals[row] * log2_fixed(totals[row], table) - logs[row]
        return True

    entropies = compiled(entropies)

    def balance(environment: Any, operations: Any, table: Any, products: Any, bits: Any) -> Any:  # noqa: ANN401 - compiled
        sums = np.empty((4, BLOCK_ROWS), np.int64)
        for first in range(0, environment.shape[0], BLOCK_ROWS):
            last = min(first + BLOCK_ROWS, environment.shape[0])
            asked, demand = sums[0, : last - first], sums[1, : last - first]
            had, response = sums[2, : last - first], sums[3, : last - first]
            if not entropies(environment[first:last], table, products, asked, demand):
                return False
            if not entropies(operations[first:last], table, products, had, response):
                return False
            demand_bits, response_bits = bits[0, first:last], bits[1, first:last]
            gap_bits, ratio = bits[2, first:last], bits[3, first:last]
            finish(asked, demand, had, response, demand_bits, response_bits, gap_bits, ratio)
        return True

    kernel: Callable[..., bool] = compiled(balance)
    return kernel


def _sum_products(words: Any, products: Any) -> Any:  # noqa: ANN401 - compiled
    """What is beyond a count's bits, the total, and Σ count · log2 count of one row."""
    seen = lanes = first = second = third = fourth = np.uint64(0)
    pair = 0
    while pair + 1 < words.shape[0]:
        word, other = words[pair], words[pair + 1]
        pair += 2
        seen |= word | other
        lanes += word + other
        first += products[word & _COUNT]
        second += products[(word >> _HALF) & _COUNT]
        third += products[other & _COUNT]
        fourth += products[(other >> _HALF) & _COUNT]
    total = np.int64((lanes & _LOW) + (lanes >> _HALF))
    return seen & _BEYOND, total, np.int64(first + second + third + fourth)


def _finish_balance(  # noqa: PLR0917 - compiled: as many contiguous columns
    asked: Int,
    demand: Int,
    had: Int,
    response: Int,
    demand_bits: Bits,
    response_bits: Bits,
    gap_bits: Bits,
    ratio: Bits,
) -> None:
    """From sums to bits; a side without events is 0 / 0, which is nan."""
    rows = asked.shape[0]
    for row in range(rows):
        demand_bits[row] = np.float64(demand[row]) / (np.float64(asked[row]) * ONE)
    for row in range(rows):
        response_bits[row] = np.float64(response[row]) / (np.float64(had[row]) * ONE)
    for row in range(rows):
        gap_bits[row] = demand_bits[row] - response_bits[row]
        nothing = demand_bits[row] == 0 and response_bits[row] == 0
        ratio[row] = 1.0 if nothing else response_bits[row] / demand_bits[row]


def _log2_fixed(count: Any, table: Any) -> Any:  # noqa: ANN401 - compiled
    shift = np.int64(0)
    while count >> shift >= COUNT_LIMIT:
        shift += 1
    head = count >> shift
    base = head << shift
    if count == base:
        return (shift << FRACTION_BITS) + np.int64(table[head])
    ratio = np.float64(count - base) / np.float64(base)
    series = ratio * (1.0 - ratio * 0.5)
    tail = np.int64(np.rint(series * SERIES_SCALE))
    return (shift << FRACTION_BITS) + np.int64(table[head]) + tail
