"""How many calls may be sent a second time: a budget, so that retries never multiply the load.

Within each window a tenth of the calls, or ten where there are few. Pure; `now` in seconds.
"""

from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 10.0
RATIO: Final = 0.1
LEAST: Final = 10
RETRIED: Final = "calls.retried"  # the event that tells how they ended
ROUTED: Final = "calls.routed"  # and the one of which instances of a pool calls were sent to


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What was spent in the window that began at `since`.

    Args:
        calls_before: the total of calls when it began. spent: retries since.
    """

    since: float = 0.0
    calls_before: int = 0
    spent: int = 0


def spend(budget: Budget, calls: int, now: float) -> tuple[Budget, bool]:
    """Whether one more call may be sent again; `calls` is the total of calls so far."""
    if now - budget.since >= WINDOW_S or calls < budget.calls_before:
        budget = Budget(since=now, calls_before=calls)
    allowed = max(LEAST, int((calls - budget.calls_before) * RATIO))
    if budget.spent >= allowed:
        return budget, False
    spent = budget.spent + 1
    return Budget(since=budget.since, calls_before=budget.calls_before, spent=spent), True
