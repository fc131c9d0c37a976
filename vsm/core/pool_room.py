"""How many instances of a pool the other budgets have room for: pure.

What an instance is sure to be given of each resource, its floor, has to be there for every one of
them, beside the floors of everybody else. A pool of others counts with the fewest that it has.
"""

import math
from collections.abc import Mapping


def most_that_fit(
    each: Mapping[str, float], others: Mapping[str, float], budget: Mapping[str, float]
) -> float:
    """How many instances there is room for; infinity where nothing bounds them.

    Args:
        each: the floor of one instance, by resource.
        others: the floors of everybody else together.
        budget: what there is of each; a resource without one bounds nothing.
    """
    room = [
        math.floor((budget[resource] - others.get(resource, 0.0)) / floor + 1e-9)
        for resource, floor in each.items()
        if resource in budget and floor > 0
    ]
    return max(0, min(room)) if room else math.inf
