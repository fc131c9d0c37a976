"""What samples of the supervisor and the outlook of S4 say of one integration.

Pure; runs in system 3.
"""

from typing import Any, Final

from vsm.messages import Body, ResourceRow

THROTTLED: Final = 0.05  # of the time: that is pressure
NEARLY_FULL: Final = 0.9


def used_of(
    resource: str, row: ResourceRow, last: ResourceRow | None, span_s: float
) -> float | None:
    """How much is used now; cores for cpu, where two samples of one worker are needed."""
    used = row.usage.get(resource)
    if resource != "cpu" or used is None:
        return used
    before = last.usage.get(resource) if last is not None else None
    if before is None or span_s <= 0 or used < before:
        return None
    return (used - before) / span_s


def is_pressed(
    resource: str, row: ResourceRow, last: ResourceRow | None, span_s: float, used: float
) -> bool:
    """Whether it met its limit since the last sample, so that its use does not show its need."""
    if last is None:
        return False
    met = row.pressure.get(resource, 0.0) - last.pressure.get(resource, 0.0)
    if resource == "memory":  # pages of files meet the limit too, and are dropped without harm
        return met > 0 and used > NEARLY_FULL * row.limit[resource]
    if resource == "cpu":
        return met > THROTTLED * span_s
    return met > 0


def gap_bits(outlook: Body | None, name: str) -> float:
    """The variety that is lost at an integration, by S4's outlook; what makes no sense is none."""
    parts = _variety(outlook).get("gap_by_class")
    bits = [
        part.get("bits")
        for part in (parts if isinstance(parts, list) else ())
        if isinstance(part, dict) and part.get("integration") == name
    ]
    return float(sum(one for one in bits if isinstance(one, int | float) and one > 0))


def gap_share(outlook: Body | None, name: str) -> float:
    """Which part of the environment's variety is lost there."""
    whole = _variety(outlook).get("environmental_bits")
    if not isinstance(whole, int | float) or whole <= 0:
        return 0.0
    return min(1.0, gap_bits(outlook, name) / whole)


def rising_of(outlook: Body | None) -> list[Any]:
    """Who is about to need more, by S4's outlook."""
    rising = (outlook or {}).get("rising")
    return rising if isinstance(rising, list) else []


def _variety(outlook: Body | None) -> dict[str, Any]:
    variety = (outlook or {}).get("variety")
    return variety if isinstance(variety, dict) else {}
