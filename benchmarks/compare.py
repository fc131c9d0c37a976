"""Whether rows of a run are worse than those of an earlier one, beyond what runs differ by anyway.

Only ratios are compared: they carry over to other machines and moments, absolute values do not.
A ratio is worse when it is higher, for rows of a rate (a unit "…/s") when it is lower. The noise
band of a row is WIDTH times the interquartile range of its ratio from round to round, relative to
its median, of whichever of the two runs varied more, and at least LEAST; where a run has no such
spread (fewer than four rounds, or a benchmark that does not pair its rounds) the band is UNKNOWN.
"""

import statistics
from collections.abc import Sequence
from typing import Any

LEAST = 0.05
WIDTH = 1.5
UNKNOWN = 0.25
LEAST_ROUNDS = 4

Row = dict[str, Any]
Key = tuple[str, str, str, str]


def spread(values: Sequence[float], base: Sequence[float]) -> float | None:
    """The relative interquartile range of values / base, round by round; None for too few."""
    if len(values) != len(base) or len(values) < LEAST_ROUNDS or not all(base):
        return None
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return (high - low) / middle if middle > 0 else None


def band(row: Row, earlier: Row) -> float:
    """By how much, relatively, two runs of this row may differ."""
    spreads = [one["spread"] for one in (row, earlier) if one.get("spread") is not None]
    return max(LEAST, WIDTH * max(spreads)) if len(spreads) == 2 else UNKNOWN


def regressions(rows: Sequence[Row], earlier: Sequence[Row]) -> list[str]:
    """One line for each row whose ratio is worse than in the earlier run, beyond its band."""
    before = {_key(row): row for row in earlier if row.get("ratio")}
    found = []
    for row in rows:
        old = before.get(_key(row))
        if old is None or not row.get("ratio"):
            continue
        change = row["ratio"] / old["ratio"]
        worse = 1 / change if _is_rate(row) else change
        allowed = band(row, old)
        if worse > 1 + allowed:
            name = f"{row['benchmark']}: {row['variant']}, {row['metric']}"
            now, then = f"{row['ratio']:.3g}", f"{old['ratio']:.3g}"
            found.append(
                f"{name}: {now} x {row['ratio_to']}, was {then} x: "
                f"{(worse - 1) * 100:.0f} % worse, beyond its band of {allowed * 100:.0f} %"
            )
    return found


def missing(rows: Sequence[Row], earlier: Sequence[Row]) -> list[str]:
    """Rows with a ratio that the earlier run had and this one, of the same benchmarks, has not."""
    ran, now = {row["benchmark"] for row in rows}, {_key(row) for row in rows if row.get("ratio")}
    gone = [_key(row) for row in earlier if row.get("ratio") and row["benchmark"] in ran]
    return [
        f"{key[0]}: {key[1]}, {key[2]}: not measured any more" for key in gone if key not in now
    ]


def _key(row: Row) -> Key:
    return row["benchmark"], row["variant"], row["metric"], str(row.get("ratio_to"))


def _is_rate(row: Row) -> bool:
    return str(row["unit"]).endswith("/s")
