"""What S5 approved to be served, and how often it is answered meanwhile.

Pure; runs in system 4. Nothing installs itself: the operator is told, and S4 looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vsm.core.demand import OK
from vsm.core.demand_window import Key


class Sought(NamedTuple):
    """What S5 approved to be served: its proposal, until when, how often it was answered then."""

    proposal: int
    until_s: float
    answered: int


def answered_well(totals: Mapping[Key, Sequence[int]], keys: Iterable[Key]) -> dict[Key, int]:
    """How often what was asked for by each of `keys` was answered well, by whom ever.

    One look at the totals answers for all of them: it is taken every second.
    """
    found = dict.fromkeys(keys, 0)
    called: dict[str, set[Key]] = {}
    for key in found:
        for name in (key[1], f"{key[0]}__{key[1]}"):
            called.setdefault(name, set()).add(key)
    nobody: set[Key] = set()
    for one, row in totals.items() if found else ():
        full = f"{one[0]}__{one[1]}"
        for key in called.get(one[1], nobody) | called.get(full, nobody):
            found[key] += row[OK]
    return found
