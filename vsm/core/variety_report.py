"""Variety of live demand as one report: figures with their evidence, or why there are none.

Pure: counts by demand class and outcome in, JSON-able out. Demand D is the class, response R is
who answered (an integration, or the gateway by a denial or with nobody), outcome E is how it
ended. Formulas: docs/variety.md.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from vsm.core.demand import DENIED, OK, OUTCOMES, SERVED, UNSERVED, bucket_limit_s
from vsm.core.demand_window import Key
from vsm.core.variety import NotEnoughEvidence, gap_by_class
from vsm.core.variety_evidence import assess
from vsm.core.variety_information import Transinformation, bound_of, joint_information

Table: TypeAlias = Mapping[Key, Sequence[int]]
Report: TypeAlias = dict[str, Any]
MOST_CLASSES: Final = 20
_DENIED_BY: Final = "(denied)"
_SERVED_BY_NOBODY: Final = "(not served)"


def report(table: Table) -> Report:
    """Measure a table; where the evidence does not carry a figure, `figures` is None."""
    keys = sorted(table)
    asked = [sum(table[key]) for key in keys]
    well = [table[key][OK] for key in keys]
    body: Report = {
        "events": sum(asked),
        "answered_well": sum(well),
        "classes": len(asked) - asked.count(0),
        "outcomes": dict(zip(OUTCOMES, _outcomes(table), strict=True)),
        "unmet": _unmet(table),
        "figures": None,
        "not_enough_evidence": None,
    }
    found = assess(asked, well)
    if isinstance(found, NotEnoughEvidence):
        body["not_enough_evidence"] = msgspec.to_builtins(found)
        return body
    body["figures"] = {
        name: msgspec.to_builtins(getattr(found, name))
        for name in ("environmental_bits", "absorbed_bits", "gap_bits", "requisite_ratio")
    } | {
        "hartley_bits": found.variety.hartley_bits,
        "coverage": found.coverage,
        "gap_by_class": _gap(keys, asked, well),
        **_information(table),
    }
    return body


def summary(body: Report) -> Report:
    """What a channel carries of a report."""
    figures = body["figures"]
    if figures is None:
        return {"events": body["events"], "not_enough_evidence": body["not_enough_evidence"]}
    return {
        "events": body["events"],
        "requisite_ratio": figures["requisite_ratio"],
        "environmental_bits": figures["environmental_bits"]["corrected"],
        "gap_bits": figures["gap_bits"]["corrected"],
        "gap_by_class": figures["gap_by_class"][:3],
    }


def latency_quantile_s(latency: Sequence[int], share: float) -> float | None:
    """The upper end of the bucket in which a quantile lies; None without calls or for the last."""
    wanted = share * sum(latency)
    seen = 0
    for bucket, count in enumerate(latency):
        seen += count
        if count and seen >= wanted:
            return bucket_limit_s(bucket)
    return None


def _outcomes(table: Table) -> list[int]:
    return [sum(row[outcome] for row in table.values()) for outcome in range(len(OUTCOMES))]


def _unmet(table: Table) -> list[Report]:
    """What nobody served, most asked first."""
    found = [(row[UNSERVED], sum(row), key) for key, row in table.items() if row[UNSERVED]]
    return [
        {"integration": key[0], "demand": key[1], "asked": asked, "unserved": count}
        for count, asked, key in sorted(found, key=lambda one: (-one[0], one[2]))[:MOST_CLASSES]
    ]


def _gap(keys: Sequence[Key], asked: Sequence[int], well: Sequence[int]) -> list[Report]:
    return [
        {
            "integration": keys[share.demand][0],
            "demand": keys[share.demand][1],
            "asked": asked[share.demand],
            "answered_well": well[share.demand],
            "bits": share.bits,
        }
        for share in gap_by_class(asked, well)[:MOST_CLASSES]
    ]


def _information(table: Table) -> Report:
    """I(D;R), and Ashby's bound beside the measured entropy of the outcomes."""
    joint: list[int] = []
    response: Counter[str] = Counter()
    for key, row in table.items():
        by_response = {
            key[0]: sum(row[outcome] for outcome in SERVED),
            _DENIED_BY: row[DENIED],
            _SERVED_BY_NOBODY: row[UNSERVED],
        }
        joint += by_response.values()
        response.update(by_response)
    demand = [sum(row) for row in table.values()]
    found = joint_information(joint, demand, list(response.values()))
    if not isinstance(found, Transinformation):
        return {}
    return {
        "information": msgspec.to_builtins(found),
        "ashby": msgspec.to_builtins(bound_of(found, _outcomes(table))),
    }
