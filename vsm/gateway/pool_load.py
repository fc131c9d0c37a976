"""How busy each pool is, and how its instances fare: looked at four times a second.

Told are the load with each summary, and once a minute how many calls each instance answered.

Runs in S1. Costs a call nothing: what is counted is what is in flight when somebody looks, and
the calls that waited for room, which the way of a call counts anyway.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vsm.gateway.fleet import Fleet
    from vsm.gateway.integration import Integration
    from vsm.gateway.upstream import Upstream

LOOK_S: Final = 0.25
TELL_ROUTES_EVERY: Final = 12  # summaries; at once of an instance that has ended


class PoolLoad:
    """What was seen of every pool since the last summary.

    A pool is *crowded* when it has all the instances that it may have and more calls than those.
    """

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self._looks: dict[str, list[int]] = {}  # looks, calls in flight, busy, live, crowded
        self._before: dict[str, tuple[int, int]] = {}  # queued, turned away
        self._routes: dict[tuple[str, int], tuple[Upstream, tuple[int, int]]] = {}  # told
        self._summaries = 0

    def look(self) -> None:
        """See what is in flight now."""
        for name, integration in self._fleet.integrations.items():
            instances = integration.instances
            if instances is None or instances.terms.kind != "pool" or instances.terms.most == 1:
                self._looks.pop(name, None)
                continue
            for one in instances.ready:
                if one.upstream is not None:
                    self._routes.setdefault((name, one.number), (one.upstream, (0, 0)))
            live = [one.in_flight for one in instances.ready]
            busy, calls = sum(map(bool, live)), sum(live)
            full = len(instances.members) >= instances.bound and calls > len(live)
            row = self._looks.setdefault(name, [0, 0, 0, 0, 0])
            for index, more in enumerate((1, calls, busy, len(live), int(full))):
                row[index] += more

    def take(self) -> dict[str, dict[str, int | float]]:
        """What a summary says of each pool; from now on is a new one."""
        looks, self._looks = self._looks, {}
        known = self._fleet.integrations
        return {
            name: self._row(name, known[name], row) for name, row in looks.items() if name in known
        }

    def routed(self) -> dict[str, list[list[int]]]:
        """Of each pool: instance, calls that it answered, calls that it did not, since last told.

        Called with each summary.
        """
        self._summaries += 1
        every = self._summaries % TELL_ROUTES_EVERY == 0
        found: dict[str, list[list[int]]] = {}
        for key, (upstream, told) in list(self._routes.items()):
            if not every and not upstream.lost:
                continue
            now = upstream.tally
            if now != told:
                new = [a - b for a, b in zip(now, told, strict=True)]
                found.setdefault(key[0], []).append([key[1], *new])
            self._routes[key] = (upstream, now)
            if upstream.lost:
                del self._routes[key]
        return found

    def _row(self, name: str, integration: "Integration", row: list[int]) -> dict[str, int | float]:
        looks, calls, busy, live, crowded = row
        guard = integration.guard
        queued, away = self._before.get(name, (0, 0))
        self._before[name] = (guard.queued, guard.turned_away)
        return {
            "pool_bound": 0 if integration.instances is None else integration.instances.bound,
            "pool_in_flight": round(calls / looks, 3),
            "pool_busy_share": round(busy / live, 3) if live else 0.0,
            "pool_crowded_share": round(crowded / looks, 3),
            "pool_queued": max(0, guard.queued - queued),
            "pool_turned_away": max(0, guard.turned_away - away),
        }
