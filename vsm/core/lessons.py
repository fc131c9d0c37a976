"""What the record says of choices: how often each turned out well, and against what it may be held.

Pure. A share has its interval; below the least number of trials it is None, and what is held
against others then has not enough evidence.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from vsm.core.proportion import wilson

BETTER: Final = "better than the others"
WORSE: Final = "worse than the others"
ALIKE: Final = "no difference shown"
NOT_ENOUGH: Final = "not enough evidence"

Body = dict[str, Any]


class Fared(NamedTuple):
    """How one of several alternatives did."""

    well: int
    trials: int


def share(well: int, trials: int, least: int) -> Body | None:
    """A share with its 95 % interval; None below `least` trials."""
    if trials < least:
        return None
    low, high = wilson(well, trials)
    return {"share": well / trials, "low": low, "high": high}


def compare(alternatives: Mapping[str, Fared], least: int) -> dict[str, str]:
    """Each held against all others: better or worse only where the 95 % intervals are apart."""
    known = {
        name: wilson(one.well, one.trials)
        for name, one in alternatives.items()
        if one.trials >= max(1, least)
    }
    found = {}
    for name in alternatives:
        others = [span for other, span in known.items() if other != name]
        if name not in known or not others:
            found[name] = NOT_ENOUGH
        elif known[name][0] > max(high for _, high in others):
            found[name] = BETTER
        elif known[name][1] < min(low for low, _ in others):
            found[name] = WORSE
        else:
            found[name] = ALIKE
    return found
