"""S3's moves of how many instances a pool may have: what it is told of them, and what it may ask.

Runs in the supervisor, which judges each wish as it does a limit: within `pool_min` and
`pool_max`, within the budget, never what an operator set. When S3 dies, or takes no samples any
more, every pool is as configured again.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from vsm.configuration.regulation import INSTANCES, Range
from vsm.core import restart
from vsm.core.pool_room import most_that_fit
from vsm.errors import VsmError
from vsm.messages import Body, Noted, ResourceRow

if TYPE_CHECKING:
    from vsm.supervision.running_worker import RunningWorker
    from vsm.supervision.supervisor import Supervisor

S3: Final = "system3"
Workers = Mapping[str, "list[RunningWorker]"]


class PoolSizes:
    """The pools, as far as a budget for instances is configured.

    Args:
        ranges: between what S3 may move the limits of one instance.
        note: writes into the record.
    """

    def __init__(
        self,
        supervisor: "Supervisor",
        ranges: "Callable[[str, list[RunningWorker]], Range]",
        note: Callable[[str, Noted], None],
    ) -> None:
        self._supervisor = supervisor
        self._ranges = ranges
        self._note = note
        self.budget = supervisor.config.control.budget.get(INSTANCES, 0.0)

    def _pools(self) -> list[str]:
        """Those that may have instances now, whether they have any or not."""
        group = self._supervisor.integrations
        return [name for name in group.sets if group.integrations[name].instances == "pool"]

    def _bound(self, name: str) -> int:
        terms = self._supervisor.integrations.bounds.terms_of(name)
        return 0 if terms is None else terms.most

    def add(self, rows: dict[str, ResourceRow], workers: Workers) -> None:
        """Put the pools into a sample; one whose bound was commanded counts and stays."""
        if not self.budget:
            return
        group = self._supervisor.integrations
        floors = self._floors(workers)
        for name in self._pools():
            one, bound = group.integrations[name], self._bound(name)
            least, most = one.pool_min, self._ceiling(name, floors)
            if name in group.bounds.commanded:
                least = most = bound
            row = rows.get(name) or ResourceRow(priority=one.priority)
            rows[name] = row.model_copy(
                update={
                    "floor": {**row.floor, INSTANCES: float(least)},
                    "ceiling": {**row.ceiling, INSTANCES: float(most)},
                    "limit": {**row.limit, INSTANCES: float(bound)},
                }
            )

    def _floors(self, workers: Workers) -> dict[str, dict[str, float]]:
        """What one worker of each integration is sure to be given."""
        return {
            name: {resource: least for resource, (least, _) in self._ranges(name, those).items()}
            for name, those in workers.items()
        }

    def _ceiling(self, name: str, floors: Mapping[str, Mapping[str, float]]) -> int:
        """pool_max, or as many as the other budgets have room for."""
        group = self._supervisor.integrations
        others: dict[str, float] = {}
        for other, each in floors.items():
            entry = group.integrations[other]
            count = entry.pool_min if entry.instances == "pool" else len(group.running_of(other))
            for resource, least in each.items() if other != name else ():
                others[resource] = others.get(resource, 0.0) + least * count
        budget = self._supervisor.config.control.budget
        fit = most_that_fit(floors.get(name, {}), others, budget)
        one = group.integrations[name]
        return int(max(one.pool_min, min(one.pool_max, fit)))

    def put(self, name: str, value: float) -> float:
        """Judge a bound and put it in force; by how much it moved.

        Raises:
            VsmError: it is not S3's to set; nothing was changed.
        """
        group, where = self._supervisor.integrations, f"{name}: {INSTANCES}"
        if not self.budget or name not in self._pools() or name in group.bounds.commanded:
            raise VsmError(where, "it is not system 3's to move: no budget, no pool, or a command")
        least, most = group.integrations[name].pool_min, group.integrations[name].pool_max
        if not least <= value <= most or value != int(value):
            raise VsmError(where, f"{value:g} is no number within {least} to {most}")
        before = self._bound(name)
        others = sum(self._bound(one) for one in self._pools()) - before
        if value > before and others + value > self.budget:
            raise VsmError(where, f"{value:g} would exceed the budget")
        group.bounds.grant(name, int(value))
        return value - before

    def changed(self, change: restart.Changed) -> None:
        """A system's phase changed: without S3 nobody moves a bound that was moved."""
        if change.name == S3 and change.phase != "ready" and not self._supervisor.stopping:
            self.release("system 3 is gone")

    def release(self, why: str) -> None:
        """Let every pool have what its entry says."""
        for name in self._supervisor.integrations.bounds.release():
            what = f"{why}: {name} may have as many instances as configured"
            detail: Body = {"what": what, "instances": self._bound(name)}
            noted = Noted(
                event="control.released", severity="notice", integration=name, detail=detail
            )
            self._note("supervisor", noted)
