"""Variety operations and events a second on one core, and what of the memory's speed they use.

One operation over K classes is the entropies of both sides, the ratio and the gap, in two forms:
`requisite` (demand against what of it was answered well: H(D), absorbed, ratio, gap) and `balance`
(two independent repertoires: two entropies, ratio, gap). Counts are uint32. The two functions of
the system that this project re-creates are measured as plain Python on the shape of their input,
and batched over many inputs. numba's variants need `vsm[fast]`. Run alone by
`python -m benchmarks.variety [ROUNDS]`.

Every rate is for a second of one core's time, as the thread's own CPU clock counts it: what other
processes take of a shared machine is not in it, what they take of its caches is.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vsm.core import variety, variety_batch, variety_fast, variety_window

Row = dict[str, Any]
Array = npt.NDArray[Any]
Case = tuple[str, str, str, int, float, Callable[[], object]]
# variant, metric, unit, operations in a call, bytes read for each (0: not worth a share), the call

CLASSES = 64
BATCH = 10_000
FEW_CLASSES = 16
MAPS = 100
TYPES = 16
PUBLISHED = {
    "one at a time, K=16": ("the published 177,000/s", 177_000),
    "its weighted list lengths": ("the original's 50,000/s as served", 50_000),
    "its map complexity, n=100": ("the original's 207,000/s", 207_000),
}
SLICE_S = 0.03  # each variant's turn in a round: long against the clock, short against drift
BANDWIDTH_BYTES = 128 << 20
SYSTEM_TERMS = {
    "capabilities": 1.0,
    "patterns": 0.8,
    "mechanisms": 0.9,
    "sensors": 0.6,
    "policies": 0.7,
}
WORLD_TERMS = {
    "factors": 1.0,
    "interactions": 0.8,
    "unknowns": 1.2,
    "changes": 0.9,
    "dependencies": 0.6,
}


def run(rounds: int) -> list[Row]:
    """Measure every variant once a round, in turn, and report medians."""
    cases = [*_requisite(), *_balance(), *_single(), *_events(), *_originals()]
    memory = np.ones(BANDWIDTH_BYTES // 8, np.int64)
    memory_case = ("numpy max", "read bandwidth", "B/s", BANDWIDTH_BYTES, 0.0, memory.max)
    cases = [memory_case, *cases]
    for case in cases:
        case[-1]()  # tables, caches and compilers are warm before the clock runs
    found: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for rates, case in zip(found, cases, strict=True):
            rates.append(_rate(case[-1], case[3]))
    return _rows(cases, [statistics.median(rates) for rates in found], rounds)


def _rate(call: Callable[[], object], operations: int) -> float:
    calls, started = 0, time.thread_time()
    while (elapsed := time.thread_time() - started) < SLICE_S:
        call()
        calls += 1
    return calls * operations / elapsed


def _rows(cases: list[Case], rates: list[float], rounds: int) -> list[Row]:
    first: dict[str, tuple[str, float]] = {}
    rows = []
    for (variant, metric, unit, _, size, _), rate in zip(cases, rates, strict=True):
        base = first.setdefault(metric, (variant, rate))
        rows.append(_row(variant, metric, rate, unit, rounds=rounds, to=base))
        if metric in PUBLISHED:
            claim = PUBLISHED[metric]
            rows.append(_row(variant, f"{metric}, published", rate, unit, rounds=rounds, to=claim))
        if size:
            share = rate * size / rates[0] * 100
            rows.append(_row(variant, f"{metric}, of read bandwidth", share, "%", rounds=rounds))
    return rows


def _row(
    variant: str,
    metric: str,
    value: float,
    unit: str,
    *,
    rounds: int,
    to: tuple[str, float] | None = None,
) -> Row:
    name, base = to or (variant, 0.0)
    related = name != variant
    return {
        "benchmark": "variety",
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": unit,
        "ratio": value / base if related else None,
        "ratio_to": name if related else None,
        "runs": rounds,
    }


def _counts(seed: int, classes: int = CLASSES, rows: int = BATCH) -> Array:
    return np.random.default_rng(seed).integers(0, 1000, (rows, classes), dtype=np.uint32)


def _answered(asked: Array) -> Array:
    shares = np.random.default_rng(9).random(asked.shape)
    return (asked * shares).astype(asked.dtype)


def _requisite() -> Iterator[Case]:
    asked = _counts(1)
    answered = _answered(asked)
    metric, size = f"requisite, K={CLASSES} B={BATCH}", 2 * CLASSES * asked.itemsize
    rows = [tuple(pair) for pair in zip(asked[:100].tolist(), answered[:100].tolist(), strict=True)]

    def batch(engine: variety_batch.Engine) -> object:
        return variety_batch.measure(asked, answered, engine=engine)

    def plain() -> None:
        for left, right in rows:
            variety.measure(left, right)

    yield "plain Python exact", metric, "op/s", len(rows), size, plain
    yield "numpy exact", metric, "op/s", BATCH, size, lambda: batch("numpy")
    rough = lambda: variety_batch.measure_float32(asked, answered)  # noqa: E731 - one more case
    yield "numpy float32", metric, "op/s", BATCH, size, rough
    if variety_fast.is_installed():
        yield "numba exact", metric, "op/s", BATCH, size, lambda: batch("numba")


def _balance() -> Iterator[Case]:
    sides = _counts(1), _counts(2)
    metric, size = f"balance, K={CLASSES} B={BATCH}", 2 * CLASSES * sides[0].itemsize
    rows = list(zip(sides[0][:100].tolist(), sides[1][:100].tolist(), strict=True))

    def batch(engine: variety_batch.Engine) -> object:
        return variety_batch.balance(*sides, engine=engine)

    def plain() -> None:
        for left, right in rows:
            variety.balance(left, right)

    yield "plain Python exact", metric, "op/s", len(rows), size, plain
    yield "numpy exact", metric, "op/s", BATCH, size, lambda: batch("numpy")
    rough = lambda: variety_batch.balance_float32(*sides)  # noqa: E731 - one more case
    yield "numpy float32", metric, "op/s", BATCH, size, rough
    if variety_fast.is_installed():
        yield "numba exact", metric, "op/s", BATCH, size, lambda: batch("numba")


def _single() -> Iterator[Case]:
    asked = _counts(3, FEW_CLASSES, 100)
    rows = list(zip(asked.tolist(), _answered(asked).tolist(), strict=True))

    def plain() -> None:
        for left, right in rows:
            variety.measure(left, right)

    yield "plain Python exact", "one at a time, K=16", "op/s", len(rows), 0.0, plain


def _events() -> Iterator[Case]:
    chance = np.random.default_rng(4)
    demands, well = chance.integers(0, CLASSES, BATCH), chance.random(BATCH) < 0.8
    pairs = list(zip(demands.tolist(), well.tolist(), strict=True))
    window = variety_window.Window(CLASSES, half_life_s=60.0, now_s=0.0)

    def each() -> None:
        for demand, good in pairs:
            window.add(demand, well=good)

    def measured() -> None:
        for demand, good in pairs:
            window.add(demand, well=good)
            window.measure()

    metric = "events counted"
    yield "one by one", metric, "event/s", BATCH, 0.0, each
    yield "one by one, measured each time", metric, "event/s", BATCH, 0.0, measured
    batch = lambda: window.add_batch(demands, well)  # noqa: E731 - one more case
    yield f"in batches of {BATCH}", metric, "event/s", BATCH, 0.0, batch


def _originals() -> Iterator[Case]:
    system, world = _counts(5, 5) % 12 + 1, _counts(6, 5) % 12 + 1
    lists = [
        (_as_lists(SYSTEM_TERMS, ours), _as_lists(WORLD_TERMS, theirs))
        for ours, theirs in zip(system[:100].tolist(), world[:100].tolist(), strict=True)
    ]
    metric, size = "its weighted list lengths", 10 * system.itemsize
    plain = lambda: [weighted_lengths(ours, theirs) for ours, theirs in lists]  # noqa: E731 - a case
    yield "plain Python", metric, "op/s", len(lists), 0.0, plain
    yield "numpy", metric, "op/s", BATCH, size, lambda: weighted_lengths_batch(system, world)

    kinds, complexity, links = _maps()
    maps = _as_maps(kinds, complexity, links)
    metric, size = "its map complexity, n=100", MAPS * (1 + 4 + 1)
    plain = lambda: [map_complexity(one) for one in maps]  # noqa: E731 - a case
    yield "plain Python", metric, "op/s", len(maps), 0.0, plain
    batch = lambda: map_complexity_batch(kinds, complexity, links)  # noqa: E731 - a case
    yield "numpy", metric, "op/s", BATCH, size, batch


def weighted_lengths(system: dict[str, list[int]], world: dict[str, list[int]]) -> float:
    """The original's real operation: weighted list lengths of a system over those of its world."""
    have = sum(weight * len(system[term]) for term, weight in SYSTEM_TERMS.items())
    need = sum(weight * len(world[term]) for term, weight in WORLD_TERMS.items())
    return have / need if need else 1.0


def weighted_lengths_batch(system: Array, world: Array) -> Array:
    """The same for B rows of five lengths each."""
    have = system.astype(np.float64) @ np.array(list(SYSTEM_TERMS.values()))
    need = world.astype(np.float64) @ np.array(list(WORLD_TERMS.values()))
    ratio: Array = np.divide(have, need, out=np.ones(len(have)), where=need > 0)
    return ratio


def map_complexity(maps: list[dict[str, Any]]) -> float:
    """The original's toy: distinct types times mean complexity, and a tenth of dependencies."""
    kinds = len({one["type"] for one in maps})
    mean = sum(one["complexity"] for one in maps) / len(maps)
    links = sum(len(one["dependencies"]) for one in maps)
    return float(kinds * mean + 0.1 * links)


def map_complexity_batch(kinds: Array, complexity: Array, links: Array) -> Array:
    """The same for B rows of n maps: type codes below 32, complexities, dependency counts."""
    rows = 512  # a block and its masks stay in cache
    out = np.empty(len(kinds))
    for first in range(0, len(kinds), rows):
        block = slice(first, first + rows)
        masks = np.left_shift(np.uint32(1), kinds[block], dtype=np.uint32)
        distinct = np.bitwise_count(np.bitwise_or.reduce(masks, axis=1))
        mean = np.einsum("ij->i", complexity[block]) / kinds.shape[1]
        dependencies = np.einsum("ij->i", links[block].astype(np.uint32))
        out[block] = distinct * mean + 0.1 * dependencies
    return out


def _as_lists(terms: dict[str, float], lengths: list[int]) -> dict[str, list[int]]:
    return {term: list(range(length)) for term, length in zip(terms, lengths, strict=True)}


def _maps() -> tuple[Array, Array, Array]:
    chance = np.random.default_rng(7)
    shape = (BATCH, MAPS)
    kinds = chance.integers(0, TYPES, shape, dtype=np.uint8)
    complexity = chance.random(shape, dtype=np.float32)
    return kinds, complexity, chance.integers(0, 5, shape, dtype=np.uint8)


def _as_maps(kinds: Array, complexity: Array, links: Array) -> list[list[dict[str, Any]]]:
    return [
        [
            {"type": f"type{kind}", "complexity": size, "dependencies": list(range(count))}
            for kind, size, count in zip(*columns, strict=True)
        ]
        for columns in zip(
            *(part[:20].tolist() for part in (kinds, complexity, links)), strict=True
        )
    ]


def main() -> int:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    if not variety_fast.is_installed():
        print("numba is not installed: its rows are missing (pip install 'vsm[fast]')")
    for row in run(rounds):
        ratio = f"{row['ratio']:.1f} x {row['ratio_to']}" if row["ratio"] else ""
        value = f"{row['value']:>12.4g} {row['unit']:<8}"
        print(f"{row['metric']:<46} {row['variant']:<31} {value}{ratio}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
