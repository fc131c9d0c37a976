"""What the requisite ratio would be if a demand class were answered well.

Pure. Nothing else changes: as much is asked, of the same classes. So the gain is exactly what the
class adds to the gap now.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vsm.core.demand import OK, short_label
from vsm.core.demand_window import Key
from vsm.core.variety import NotEnoughEvidence, Variety, measure


def what_if(table: Mapping[Key, Sequence[int]], wanted: str) -> dict[str, Any]:
    """Measure a table as it is, and with one class answered well.

    Args:
        table: outcomes of each class.
        wanted: a class's label, "INTEGRATION LABEL" or "INTEGRATION__LABEL"; every class that is
            called so.
    """
    keys = sorted(table)
    label = short_label(wanted).decode()
    chosen = {key for key in keys if wanted in _names(key) or label == key[1]}
    asked = [sum(table[key]) for key in keys]
    well = [table[key][OK] for key in keys]
    then = [a if k in chosen else w for k, a, w in zip(keys, asked, well, strict=True)]
    body: dict[str, Any] = {
        "demand": wanted,
        "classes": [{"integration": key[0], "demand": key[1]} for key in keys if key in chosen],
        "asked": sum(sum(table[key]) for key in chosen),
        "answered_well": sum(table[key][OK] for key in chosen),
    }
    now, later = measure(asked, well), measure(asked, then)
    if not chosen or isinstance(now, NotEnoughEvidence) or isinstance(later, NotEnoughEvidence):
        reason = "nobody asked for anything" if not keys else "nobody asked for that"
        return {**body, "not_enough_evidence": reason}
    return {**body, **_gain(now, later)}


def at_stake(table: Mapping[Key, Sequence[int]], key: Key) -> float:
    """The bits of absorbed variety that are gone if this class is not answered well any more."""
    keys = sorted(table)
    asked = [sum(table[one]) for one in keys]
    well = [table[one][OK] for one in keys]
    lost = [0 if one == key else count for one, count in zip(keys, well, strict=True)]
    now, then = measure(asked, well), measure(asked, lost)
    if isinstance(now, NotEnoughEvidence) or isinstance(then, NotEnoughEvidence):
        return 0.0
    return now.absorbed_bits - then.absorbed_bits


def _gain(now: Variety, later: Variety) -> dict[str, Any]:
    return {
        "events": now.events,
        "requisite_ratio": now.requisite_ratio,
        "requisite_ratio_if_served": later.requisite_ratio,
        "gain_bits": now.gap_bits - later.gap_bits,
        "gap_bits": now.gap_bits,
    }


def _names(key: Key) -> tuple[str, str]:
    return f"{key[0]} {key[1]}", f"{key[0]}__{key[1]}"
