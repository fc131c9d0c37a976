"""How far a variety can be trusted: bias, interval, and when there is no number at all.

Entropy computed from shares is biased low, because classes that did not occur yet are missing
(Miller 1955), and it scatters (Basharin 1959). This corrects both sides of the balance, gives an
interval for each, and refuses where a correction could not repair the figure. The formulas and
their derivations: docs/variety.md. Pure floating point; nothing here needs to be bit-exact.
"""

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from vsm.core.variety import (
    TOO_FEW_EVENTS,
    TOO_MANY_UNSEEN,
    NotEnoughEvidence,
    Variety,
    measure,
)

DEVIATIONS_95: Final = 1.959963984540054
"""Standard deviations on each side of a normal variable's middle 95 %."""
_LN2: Final = math.log(2)
_TAIL_95: Final = 0.025


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """What a figure needs before it is given.

    Args:
        events: at least so many events ...
        events_per_class: ... and so many for each class that occurred.
        coverage: at least this share of the demand in classes that were seen (Good 1953).
    """

    events: int = 30
    events_per_class: float = 4.0
    coverage: float = 0.9


class Estimate(msgspec.Struct, frozen=True):
    """A figure as counted, corrected for bias, and its 95 % interval around the correction."""

    measured: float
    corrected: float
    low: float
    high: float


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement with what is known of its error; the ratio is no figure in bits."""

    variety: Variety
    coverage: float
    environmental_bits: Estimate
    absorbed_bits: Estimate
    gap_bits: Estimate
    requisite_ratio: Estimate


class _Cell(msgspec.Struct, frozen=True):
    """One class's shares of all events, answered well and not, and its -ln p."""

    well: float
    unwell: float
    surprise: float

    @property
    def served(self) -> float:
        return self.well / (self.well + self.unwell)


_Gradient: TypeAlias = list[tuple[float, float]]  # by each class's share answered well, and not

_ENOUGH: Final = Thresholds()


def assess(
    asked: Sequence[int], answered: Sequence[int], *, thresholds: Thresholds = _ENOUGH
) -> Assessment | NotEnoughEvidence:
    """Measure with correction and intervals, or say what is missing for it.

    Args:
        asked: counts of all classes that can occur, the ones that did not included: no entropy
            exceeds the logarithm of their number.
        answered: as in `variety.measure`.
        thresholds: the evidence to insist on.

    Raises:
        ValueError: as `variety.measure`.
    """
    found = measure(asked, answered)
    if isinstance(found, NotEnoughEvidence):
        return found
    missing = _missing(asked, found, thresholds)
    return missing or _assess(asked, answered, found)


def coverage(asked: Sequence[int]) -> float:
    """Share of demand whose class was seen: 1 - singletons / events (Good 1953); 0 for none."""
    events = sum(asked)
    return 1.0 - list(asked).count(1) / events if events else 0.0


def miller_madow_bits(classes: int, events: int) -> float:
    """What entropy is low by on average: (classes - 1) / (2 events ln 2) bits (Miller 1955)."""
    return (classes - 1) / (2 * events * _LN2)


def _missing(
    asked: Sequence[int], found: Variety, thresholds: Thresholds
) -> NotEnoughEvidence | None:
    needed = max(thresholds.events, math.ceil(thresholds.events_per_class * found.classes))
    covered = coverage(asked)
    if found.events >= needed and covered >= thresholds.coverage:
        return None
    singletons = round((1 - covered) * found.events)
    unseen = math.ceil(round(singletons / max(1 - thresholds.coverage, 1 / found.events), 6))
    few = found.events < needed
    return NotEnoughEvidence(
        reason=TOO_FEW_EVENTS if few else TOO_MANY_UNSEEN,
        events=found.events,
        events_needed=needed if few else max(unseen, found.events + 1),
        coverage=covered,
    )


def _assess(asked: Sequence[int], answered: Sequence[int], found: Variety) -> Assessment:
    events = found.events
    cells = [
        _Cell(well / events, (count - well) / events, math.log(events / count))
        for count, well in zip(asked, answered, strict=True)
        if count
    ]
    ceiling = math.log2(len(asked))
    demand_bias, absorbed_bias = _biases(cells, events)
    demand = min(found.environmental_bits + demand_bias, ceiling)
    absorbed = min(found.absorbed_bits + absorbed_bias, demand)
    deviations = _deviations(cells, found)
    ratio = absorbed / demand if demand else found.requisite_ratio
    # where every answer was alike the first-order scatter is 0, which no sample can prove
    share = _unseen_share(events) if _is_one_sided(cells) else 0.0
    blind = share * max(cell.surprise for cell in cells) / _LN2
    blind_share = min(1.0, blind / demand) if demand else share
    unasked = _unseen_class(len(asked), events) if found.classes == 1 else 0.0
    return Assessment(
        variety=found,
        coverage=coverage(asked),
        environmental_bits=_around(
            found.environmental_bits, demand, deviations[0], unasked, ceiling
        ),
        absorbed_bits=_around(
            found.absorbed_bits, absorbed, deviations[1], blind + unasked, ceiling
        ),
        gap_bits=_around(
            found.gap_bits, demand - absorbed, deviations[2], blind + unasked, ceiling
        ),
        requisite_ratio=_around(found.requisite_ratio, ratio, deviations[3], blind_share, 1.0),
    )


def _around(measured: float, middle: float, deviation: float, least: float, top: float) -> Estimate:
    """An interval of the normal approximation, at least so wide, within what is possible."""
    half = max(DEVIATIONS_95 * deviation, least)
    middle = min(max(middle, 0.0), top)
    return Estimate(measured, middle, max(0.0, middle - half), min(top, middle + half))


def _biases(cells: Sequence[_Cell], events: int) -> tuple[float, float]:
    """What H(D) and the absorbed variety are low by, in bits, to first order in 1/events.

    For the absorbed side the classes of Miller's term count by their served share.
    """
    served = sum(cell.served for cell in cells)
    well = sum(cell.well for cell in cells)
    return miller_madow_bits(len(cells), events), (served - well) / (2 * events * _LN2)


def _deviations(cells: Sequence[_Cell], found: Variety) -> tuple[float, float, float, float]:
    """Standard deviations of H(D), absorbed, gap and ratio by the delta method.

    H's gradient is -ln p - 1; its constant changes no variance and is left out. `second` is the
    next term of Var H (Harris 1975): equally frequent classes have no first one.
    """
    demand: _Gradient = [(cell.surprise, cell.surprise) for cell in cells]
    absorbed: _Gradient = [(cell.surprise - cell.served, -cell.served) for cell in cells]
    gap = _minus(demand, absorbed, 1.0)
    second = (len(cells) - 1) / (2 * found.events**2)
    bits = (
        math.sqrt(_variance(cells, demand, found.events) + second) / _LN2,
        math.sqrt(_variance(cells, absorbed, found.events)) / _LN2,
        math.sqrt(_variance(cells, gap, found.events)) / _LN2,
    )
    if not found.environmental_bits:
        share = found.requisite_ratio
        return *bits, math.sqrt(share * (1 - share) / found.events)
    ratio = _minus(absorbed, demand, found.requisite_ratio)
    nats = found.environmental_bits * _LN2
    return *bits, math.sqrt(_variance(cells, ratio, found.events)) / nats


def _minus(first: _Gradient, second: _Gradient, factor: float) -> _Gradient:
    pairs = zip(first, second, strict=True)
    return [(a[0] - factor * b[0], a[1] - factor * b[1]) for a, b in pairs]


def _variance(cells: Sequence[_Cell], gradient: _Gradient, events: int) -> float:
    """Var f = (E[g²] - E[g]²) / N for a smooth f of multinomial shares with gradient g."""
    rows = [
        (share, slope)
        for cell, slopes in zip(cells, gradient, strict=True)
        for share, slope in zip((cell.well, cell.unwell), slopes, strict=True)
    ]
    mean = math.fsum(share * slope for share, slope in rows)
    return math.fsum(share * (slope - mean) ** 2 for share, slope in rows) / events


def _unseen_share(events: int) -> float:
    """What never occurred in N events has less than this share, with 97.5 % confidence.

    The upper limit of Clopper and Pearson (1934) for zero of N.
    """
    return 1.0 - math.pow(_TAIL_95, 1 / events)


def _is_one_sided(cells: Sequence[_Cell]) -> bool:
    return not any(cell.well for cell in cells) or not any(cell.unwell for cell in cells)


def _unseen_class(known: int, events: int) -> float:
    """Entropy that classes may bring that never occurred, where only one did, in bits."""
    if known == 1:
        return 0.0
    share = _unseen_share(events)
    binary = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return binary + share * math.log2(known - 1)
