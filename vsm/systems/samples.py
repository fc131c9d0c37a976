"""What two samples of the supervisor say of one integration's use, and whether it met its limit.

Pure; runs in system 3.
"""

from typing import Final

from vsm.messages import ResourceRow

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
