"""Base-2 logarithms in fixed point: the one definition that scalars, numpy and numba share.

A logarithm is an integer, log2(n) · 2^FRACTION_BITS rounded, so every sum of n·log2(n) is exact,
the same in any order, and the same to the last bit whether it was kept event by event or computed
over a batch. Only the last step, from sums to bits, is floating point: one conversion and one
division, which IEEE 754 fixes.

A logarithm is off by at most 2^-37 in the table and 2^-36 beyond it, so an entropy is off by at
most the sum of both, 2.2e-11 bit.
Inside the limits below no sum leaves int64. Owns no state beyond the table; pure.
"""

import functools
import math
from array import array
from typing import Final

FRACTION_BITS: Final = 36
ONE: Final = float(1 << FRACTION_BITS)
COUNT_LIMIT: Final = 1 << 16
"""A class's count stays below this in the fast paths: it is an index into the table."""
TOTAL_LIMIT: Final = 1 << 22
"""A window's or a row's total stays at or below this: total · log2(total) · 2^36 < 2^63."""

_HEAD_BITS: Final = 16
SERIES_SCALE: Final = ONE / math.log(2)


@functools.cache
def log2_table() -> "array[int]":
    """Fixed-point log2 of every count below COUNT_LIMIT (512 KiB, built once in 16 ms).

    The entry for 0 is 0, which makes 0·log2(0) the 0 that entropy defines it to be.
    """
    return array("q", [0, *(round(math.log2(count) * ONE) for count in range(1, COUNT_LIMIT))])


def log2_fixed(count: int) -> int:
    """Fixed-point log2 of any count: the table, and beyond it head + log2(1 + rest/head).

    The head has 16 bits, so rest/head < 2^-15, and two terms of the series leave less than a
    1000th of the unit. Only +, -, ·, / and round-half-even are used: numpy and numba repeat it
    bit for bit.
    """
    if count < COUNT_LIMIT:
        return log2_table()[count]
    shift = count.bit_length() - _HEAD_BITS
    head = count >> shift
    base = head << shift
    ratio = float(count - base) / float(base)
    series = ratio * (1.0 - ratio * 0.5)
    return (shift << FRACTION_BITS) + log2_table()[head] + round(series * SERIES_SCALE)


def to_bits(fixed: int, total: int) -> float:
    """Return a sum of count·log2 over `total` events as bits per event."""
    return float(fixed) / (float(total) * ONE)
