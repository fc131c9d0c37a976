"""Why system 3 moves a limit, in words for whoever reads the record.

Pure; runs in system 3.
"""

from collections.abc import Sequence

from vsm.core.budget import LEAST_CHANGE, Change, Claim
from vsm.core.figures import amount

_SHOWN = 3  # of those for whom somebody else gives


def why(resource: str, change: Change, claims: Sequence[Claim], budget: float) -> str:
    """One sentence: what was measured, or which bound it is that moves the limit.

    Args:
        resource: what the limit is of, which says in which unit.
        change: the move.
        claims: everybody who takes part, as they were measured.
        budget: what there is for all of them.
    """
    mine = next(one for one in claims if one.name == change.name)
    match change.rule:
        case "raise.foreseen":
            return f"system 4 expects that it will need {amount(resource, mine.need)}"
        case "raise.floor":
            return f"nobody is left below his floor, here {amount(resource, mine.floor)}"
        case "lower.ceiling":
            return f"it has more than its ceiling of {amount(resource, mine.ceiling)}"
        case "lower.budget":
            return _given(resource, mine, claims, budget)
        case _:
            return _needed(resource, change, mine)


def _needed(resource: str, change: Change, mine: Claim) -> str:
    need, held = amount(resource, mine.need), amount(resource, mine.held)
    found = (
        f"it met its limit of {held}, so what it needs is not known: {need} is tried"
        if mine.pressed
        else f"its greatest use lately and a quarter more are {need}, its limit is {held}"
    )
    if change.after >= mine.need * (1 - LEAST_CHANGE):  # but for what is rounded down
        return found
    bound = "its ceiling is" if change.after >= mine.ceiling else "the budget has room for"
    return f"{found}; {bound} {amount(resource, change.after)}"


def _given(resource: str, mine: Claim, claims: Sequence[Claim], budget: float) -> str:
    need, total = amount(resource, mine.need), sum(one.held for one in claims)
    if total > budget:
        over = f"all limits together are {amount(resource, total)}"
        return f"{over}, the budget is {amount(resource, budget)}; it needs {need}"
    short = [one.name for one in claims if one.name != mine.name and one.need > one.held]
    named = ", ".join(short[:_SHOWN]) or "somebody below his floor"
    more = f" and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
    return f"{named}{more} needs more than the budget has left; it needs {need}"
