"""What S2 to S5 ask of the supervisor: limits moved, restarts slowed, audits, words for the record.

Runs in the supervisor. A system proposes; here it is judged: a limit outside its range, one that
an operator set by command, one beyond the budget, is refused whatever the system says. Samples
are taken only where a budget is configured.
"""

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from vsm.configuration.regulation import INSTANCES, RESOURCES, Range, settings
from vsm.core import restart
from vsm.core.figures import amount
from vsm.core.repeats import Repeats
from vsm.errors import VsmError
from vsm.governance import limits, pressure
from vsm.governance.learned import Learned
from vsm.governance.pool_sizes import PoolSizes
from vsm.governance.resource_samples import ResourceSamples
from vsm.governance.worker_audit import Audits
from vsm.messages import (
    Audit,
    Body,
    Contracted,
    Damp,
    Decided,
    Happened,
    Message,
    Move,
    Moved,
    Noted,
    Regulation,
    ResourceRow,
    Resources,
    Settled,
)
from vsm.supervision.instance_set import integration_of
from vsm.supervision.last_words import is_out_of_memory

if TYPE_CHECKING:
    from vsm.configuration.profile import Limits
    from vsm.supervision.running_worker import RunningWorker
    from vsm.supervision.supervisor import Supervisor

FIELDS: Final = {"memory": "memory_bytes", "cpu": "cpu_cores", "processes": "processes"}
LEAST: Final = {"memory": 16.0 * 2**20, "cpu": 0.05, "processes": 4.0}
"""The least floor of an integration whose entry names none."""
FLOOR_SHARE: Final = 0.25
_MOST_OPEN_DECISIONS: Final = 512
_LOG_AGAIN_S: Final = 10.0
_LOUD: Final = frozenset({"warning", "error", "critical"})
_SLACK: Final = 1.0001


class Regulator:
    """Serves the five systems' wishes for one supervisor."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        budget = supervisor.config.control.budget
        self._budget: dict[str, float] = {one: budget[one] for one in RESOURCES if one in budget}
        self._interval_s = supervisor.config.control.interval_s
        self._timer: asyncio.TimerHandle | None = None
        self._open: dict[str, OrderedDict[str, str]] = {}  # by system: none pushes another's out
        self._logged = Repeats(_LOG_AGAIN_S)
        self.out_of_memory: dict[str, int] = {}
        self._phases: dict[str, str] = {}
        self._learned = Learned(lambda: supervisor.recorder.path)
        self._silent = False
        self._slowed: set[str] = set()
        self.audits = Audits(supervisor, self._workers, self._tell)
        self.pools = PoolSizes(supervisor, self._ranges, self._note)
        self.samples = ResourceSamples(
            lambda: supervisor.integrations.integrations, self._workers, self._interval_s
        )

    def settings(self, system: str) -> dict[str, Any]:
        """What a system's `start` tells it: its tables of vsm.toml, and what was before it."""
        config = self._supervisor.config
        own = settings(config.coordination, config.control, config.intelligence).get(system, {})
        if system == "system2":
            self._forgive()
        if system == "system3":
            return own | {"hurting": self._supervisor.policing.told_by(system)}
        return own | self._learned.settings() if system == "system4" else own

    def start(self) -> None:
        """Take samples from now on; S3 is told of them where there is a budget."""
        self.samples.start()
        if self._budget or self.pools.budget:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._interval_s, self._sample)

    def stop(self) -> None:
        """Take no more."""
        if self._timer is not None:
            self._timer.cancel()
        self.audits.stop()
        self.samples.stop()

    # ---- what happens ----------------------------------------------------------------------

    def changed(self, change: restart.Changed) -> None:
        """A worker's phase changed: S2 hears of crashes and of what came up again, pools of S3.

        What becomes of one instance among several is no news of its integration, but want of
        memory is.
        """
        self.pools.changed(change)
        name = integration_of(change.name)
        if name not in self._supervisor.integrations.integrations:
            return
        before = self._phases.pop(change.name, "stopped")
        if change.phase != "stopped":
            self._phases[change.name] = change.phase
        self._scaled(name, change, before)
        crashed = bool(
            change.reason
            and change.phase in {"backing_off", "starting", "quarantined", "stopped"}
            and before not in {"backing_off", "quarantined"}  # else it is the same crash
        )
        if crashed and is_out_of_memory(change.reason):
            self.out_of_memory[name] = self.out_of_memory.get(name, 0) + 1
        told = change.phase == "ready" or (crashed and change.phase != "stopped")
        if told and change.name == name:
            self._happened(name, "restart", -1.0 if crashed else 1.0)

    def _scaled(self, name: str, change: restart.Changed, before: str) -> None:
        """A pool that serves has one instance more, or lets one go that it does not need.

        One that takes the place of another is neither.
        """
        group = self._supervisor.integrations
        pool = group.sets.get(name)
        if change.name == name or pool is None or pool.terms.kind != "pool":
            return
        if group.workers.phase(name) != "ready" or pool.in_exchange:
            return
        if change.phase == "ready":
            self._happened(name, "scaling", 1.0)
        elif (change.phase, before) == ("stopping", "ready"):
            failed = group.workers.worker(change.name).after != "stop"
            if not failed:
                self._happened(name, "scaling", -1.0)

    def acquired(self, name: str, *, gone: bool = False) -> None:
        """An integration came to the configuration, or went from it."""
        self._happened(name, "acquisition", -1.0 if gone else 1.0)

    def _happened(self, name: str, series: str, amount: float) -> None:
        now = asyncio.get_running_loop().time()
        self._tell("system2", Happened(integration=name, series=series, change=amount, at_s=now))

    def _tell(self, system: str, message: Message) -> bool:
        running = self._supervisor.systems.running.get(system)
        if running is None or running.link is None:
            return True  # it will be there for the next one
        return running.link.send(message)

    # ---- samples ---------------------------------------------------------------------------

    def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._sample)
        workers = self._workers()
        rows = {name: self._row(name, those) for name, those in workers.items()}
        self.pools.add(rows, workers)
        if not self._tell("system3", Resources(at_s=loop.time(), rows=rows)) and rows:
            self._sample_dropped(len(rows))

    def _sample_dropped(self, count: int) -> None:
        """A message has a bound; that S3 hears nothing is said once, and leaves pools alone."""
        self.pools.release("system 3 takes no samples")
        if not self._silent:
            self._silent = True
            what = f"{count} integrations: a sample was dropped, so the budget is not divided"
            self._note("supervisor", Noted(event="control.silent", severity="warning",
                                           detail={"what": what}))  # fmt: skip

    def _workers(self) -> dict[str, "list[RunningWorker]"]:
        """What serves, by integration; several instances of one are given alike."""
        group = self._supervisor.integrations
        found: dict[str, list[RunningWorker]] = {}
        for key, running in group.running.items():
            known = running.name in group.integrations and key in group.workers.group.workers
            if known and group.workers.phase(key) == "ready" and running.provided is not None:
                found.setdefault(running.name, []).append(running)
        return found

    def _row(self, name: str, workers: "list[RunningWorker]") -> ResourceRow:
        ranges = self._ranges(name, workers)
        groups = [one.provided.group for one in workers if one.provided is not None]
        seen = [pressure.sample(group) for group in groups if group is not None]
        known = {r for r in ranges if seen and all(r in one.used for one in seen)}
        count = len(workers)
        return ResourceRow(
            priority=self._supervisor.integrations.integrations[name].priority,
            floor={resource: ranges[resource][0] * count for resource in known},
            ceiling={resource: ranges[resource][1] * count for resource in known},
            limit={resource: self._held(workers, resource) for resource in known},
            usage={r: _together(r, [one.used[r] for one in seen]) for r in known},
            pressure={r: sum(one.pressure.get(r, 0.0) for one in seen) for r in known},
            out_of_memory=self.out_of_memory.get(name, 0),
        )

    def _ranges(self, name: str, workers: "list[RunningWorker]") -> Range:
        """Between what S3 may move the limits of each, where a control group holds them.

        A limit that an operator set by command is not among them.
        """
        group, provided = self._supervisor.integrations, workers[0].provided
        if provided is None or provided.group is None:
            return {}
        commanded = group.limits.get(name, {})
        written = _amounts(provided.written)
        found: Range = {}
        for resource, budget in self._budget.items():
            if FIELDS[resource] in commanded or resource not in provided.group.layers:
                continue
            ceiling = written.get(resource, budget)
            floor = min(ceiling, max(LEAST[resource], ceiling * FLOOR_SHARE))
            found[resource] = group.integrations[name].range.get(resource, (floor, ceiling))
        return found

    def _held(self, workers: "list[RunningWorker]", resource: str) -> float:
        """What all of them together are given now."""
        profiles = [one.provided.profile for one in workers if one.provided is not None]
        budget = self._budget[resource]
        return sum(_amounts(profile.limits).get(resource, budget) for profile in profiles)

    # ---- wishes ----------------------------------------------------------------------------

    def on_message(self, system: str, message: Regulation) -> None:
        """Do what a system wishes, if it may wish it."""
        match message:
            case Move() if system == "system3":
                self._move(message)
            case Audit() if system == "system3":
                self.audits.asked(message)
            case Contracted() if system == "system1":
                self.audits.contracted(message)
            case Damp() if system == "system2":
                self._damp(message)
            case Noted():
                self._note(system, message)
            case Decided():
                self._decide(system, message)
            case Settled():
                mine = self._open.get(system, OrderedDict[str, str]())
                key = mine.pop(message.key, None)
                if key is not None:
                    self._supervisor.recorder.journal.outcome(key, message.outcome)

    def _note(self, system: str, message: Noted) -> None:
        if system == "system4":
            self._learned.note(message.event, message.detail)
        self._supervisor.recorder.journal.event(
            message.event,
            source=system,
            integration=message.integration,
            severity=message.severity,
            detail=message.detail,
        )
        if message.severity in _LOUD:
            self._log(message.event, message.integration or system, message.detail)

    def _log(self, event: str, name: str, detail: Body) -> None:
        """For whoever reads the log; the like of it once in a while, the record has them all."""
        before = self._logged.passes((event, name), asyncio.get_running_loop().time())
        if before is not None:
            more = {"like_it_before": before} if before else {}
            reason = str(detail.get("what", ""))
            self._supervisor.log.warning(event, worker=name, reason=reason, **more)

    def _decide(self, system: str, message: Decided) -> None:
        mine = self._open.setdefault(system, OrderedDict())
        mine[message.key] = self._supervisor.recorder.journal.decide(
            message.subject,
            source=system,
            rule=message.rule,
            inputs=message.inputs,
            alternatives=list(message.alternatives),
            choice=message.choice,
        )
        while len(mine) > _MOST_OPEN_DECISIONS:
            mine.popitem(last=False)

    def _move(self, message: Move) -> None:
        state, detail = "in force", ""
        try:
            self._put(message.integration, message.limits)
        except VsmError as error:
            state, detail = "refused", str(error)[:4096]
        self._tell("system3", Moved(id=message.id, state=state, detail=detail))  # type: ignore[arg-type]

    def _put(self, name: str, wanted: dict[str, float]) -> None:
        """Judge limits and put them in force.

        Raises:
            VsmError: one is not S3's to set, or the kernel refuses it; nothing was changed.
        """
        if INSTANCES in wanted:
            if len(wanted) > 1:
                raise VsmError(name, "the size of a pool moves by itself")
            self._happened(name, INSTANCES, self.pools.put(name, wanted[INSTANCES]))
            return
        workers = self._workers().get(name)
        if not workers:
            raise VsmError(name, "it does not serve now")
        ranges = self._ranges(name, workers)
        for resource, value in wanted.items():
            self._judge(name, resource, value, ranges)
        before = {resource: self._held(workers, resource) for resource in wanted}
        each = {resource: value / len(workers) for resource, value in wanted.items()}
        fields = {FIELDS[r]: value if r == "cpu" else int(value) for r, value in each.items()}
        for running in workers:
            limits.move(running, fields, by="system 3")
        self._supervisor.integrations.granted.setdefault(name, {}).update(fields)
        for resource, value in wanted.items():
            self._happened(name, resource, value - before[resource])

    def _judge(self, name: str, resource: str, value: float, ranges: Range) -> None:
        where = f"{name}: {resource}"
        if resource not in ranges:
            raise VsmError(where, "it is not system 3's to move: no budget, no group, or a command")
        serving = self._workers()
        least, most = (bound * len(serving[name]) for bound in ranges[resource])
        if not least / _SLACK <= value <= most * _SLACK:
            given, low, high = (amount(resource, one) for one in (value, least, most))
            raise VsmError(where, f"{given} is not within {low} to {high}")
        before = self._held(serving[name], resource)
        others = sum(self._held(workers, resource) for workers in serving.values()) - before
        if value > before and others + value > self._budget[resource] * _SLACK:
            raise VsmError(where, f"{amount(resource, value)} would exceed the budget")

    def _damp(self, message: Damp) -> None:
        group = self._supervisor.integrations
        if message.integration in group.integrations:
            group.slow_down(message.integration, message.factor)
            self._slowed.add(message.integration)

    def _forgive(self) -> None:
        """A new S2 knows nothing of what the one before it damped."""
        group = self._supervisor.integrations
        for name in self._slowed & set(group.integrations):
            group.slow_down(name, 1.0)
        self._slowed.clear()


def _together(resource: str, used: list[float]) -> float:
    """What instances use: all CPU; of what each has a limit of its own, the largest for each."""
    return sum(used) if resource == "cpu" else max(used) * len(used)


def _amounts(found: "Limits") -> dict[str, float]:
    values: dict[str, Any] = {name: getattr(found, FIELDS[name]) for name in RESOURCES}
    return {name: float(value) for name, value in values.items() if value is not None}
