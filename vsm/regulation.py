"""What S2 to S5 ask of the supervisor: limits moved, restarts slowed, audits, words for the record.

Runs in the supervisor. A system proposes; here it is judged: a limit outside its range, one that
an operator set by command, one beyond the budget, is refused whatever the system says. Samples
are taken only where a budget is configured.
"""

import asyncio
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from vsm import kernel_facts, limits, pressure
from vsm.config_regulation import RESOURCES, Range
from vsm.core import restart
from vsm.errors import VsmError
from vsm.messages import (
    Audit,
    Audited,
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

if TYPE_CHECKING:
    from vsm.profile import Limits
    from vsm.running_worker import RunningWorker
    from vsm.supervisor import Supervisor

FIELDS: Final = {"memory": "memory_bytes", "cpu": "cpu_cores", "processes": "processes"}
LEAST: Final = {"memory": 16.0 * 2**20, "cpu": 0.05, "processes": 4.0}
"""The least floor of an integration whose entry names none."""
FLOOR_SHARE: Final = 0.25
_MOST_OPEN_DECISIONS: Final = 512
_LOUD: Final = frozenset({"warning", "error", "critical"})
_SLACK: Final = 1.0001


class Regulator:
    """Serves the five systems' wishes for one supervisor."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._budget = supervisor.config.control.budget
        self._interval_s = supervisor.config.control.interval_s
        self._timer: asyncio.TimerHandle | None = None
        self._open: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._out_of_memory: dict[str, int] = {}
        self._phases: dict[str, str] = {}

    def start(self) -> None:
        """Take samples from now on, where there is a budget."""
        if self._budget:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._interval_s, self._sample)

    def stop(self) -> None:
        """Take no more."""
        if self._timer is not None:
            self._timer.cancel()

    # ---- what happens ----------------------------------------------------------------------

    def changed(self, change: restart.Changed) -> None:
        """An integration's phase changed: S2 hears of crashes and of what came up again."""
        if change.name not in self._supervisor.integrations.integrations:
            return
        before = self._phases.get(change.name, "stopped")
        self._phases[change.name] = change.phase
        crashed = bool(
            change.reason
            and change.phase in {"backing_off", "starting", "quarantined"}
            and before not in {"backing_off", "quarantined"}  # else it is the same crash
        )
        if crashed and change.reason.startswith("out of memory"):
            self._out_of_memory[change.name] = self._out_of_memory.get(change.name, 0) + 1
        if crashed or change.phase == "ready":
            self._happened(change.name, "restart", -1.0 if crashed else 1.0)

    def _happened(self, name: str, series: str, amount: float) -> None:
        now = asyncio.get_running_loop().time()
        self._tell("system2", Happened(integration=name, series=series, change=amount, at_s=now))

    def _tell(self, system: str, message: Message) -> None:
        running = self._supervisor.systems.running.get(system)
        if running is not None and running.link is not None:
            running.link.send(message)

    # ---- samples ---------------------------------------------------------------------------

    def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._sample)
        rows = {
            name: row
            for name, running in self._workers().items()
            if (row := self._row(name, running)) is not None
        }
        self._tell("system3", Resources(at_s=loop.time(), rows=rows))

    def _workers(self) -> "dict[str, RunningWorker]":
        group = self._supervisor.integrations
        return {
            name: running
            for name, running in group.running.items()
            if name in group.integrations and group.workers.phase(name) == "ready"
        }

    def _row(self, name: str, running: "RunningWorker") -> ResourceRow | None:
        provided = running.provided
        if provided is None or provided.group is None:
            return None
        seen = pressure.sample(provided.group)
        ranges, held = self._ranges(name, running), _held(provided.profile.limits)
        known = {resource for resource in ranges if resource in seen.used}
        return ResourceRow(
            priority=self._supervisor.integrations.integrations[name].priority,
            floor={resource: ranges[resource][0] for resource in known},
            ceiling={resource: ranges[resource][1] for resource in known},
            limit={r: held.get(r, ranges[r][1]) for r in known},
            usage=seen.used,
            pressure=seen.pressure,
            out_of_memory=self._out_of_memory.get(name, 0),
        )

    def _ranges(self, name: str, running: "RunningWorker") -> Range:
        """Between what S3 may move the limits that a control group holds and nobody else set."""
        group, provided = self._supervisor.integrations, running.provided
        if provided is None or provided.group is None:
            return {}
        commanded = group.limits.get(name, {})
        written = _held(provided.written)
        found: Range = {}
        for resource, budget in self._budget.items():
            if FIELDS[resource] in commanded or resource not in provided.group.layers:
                continue
            ceiling = written.get(resource, budget)
            floor = min(ceiling, max(LEAST[resource], ceiling * FLOOR_SHARE))
            found[resource] = group.integrations[name].range.get(resource, (floor, ceiling))
        return found

    # ---- wishes ----------------------------------------------------------------------------

    def on_message(self, system: str, message: Regulation) -> None:
        """Do what a system wishes, if it may wish it."""
        match message:
            case Move() if system == "system3":
                self._move(message)
            case Audit() if system == "system3":
                self._audit(message)
            case Damp() if system == "system2":
                self._damp(message)
            case Noted():
                self._note(system, message)
            case Decided():
                self._decide(system, message)
            case Settled():
                key = self._open.pop((system, message.key), None)
                if key is not None:
                    self._supervisor.recorder.journal.outcome(key, message.outcome)

    def _note(self, system: str, message: Noted) -> None:
        self._supervisor.recorder.journal.event(
            message.event,
            source=system,
            integration=message.integration,
            severity=message.severity,
            detail=message.detail,
        )
        if message.severity in _LOUD:
            name = message.integration or system
            log = self._supervisor.log
            log.warning(message.event, worker=name, reason=str(message.detail.get("what", "")))

    def _decide(self, system: str, message: Decided) -> None:
        self._open[system, message.key] = self._supervisor.recorder.journal.decide(
            message.subject,
            source=system,
            rule=message.rule,
            inputs=message.inputs,
            alternatives=list(message.alternatives),
            choice=message.choice,
        )
        while len(self._open) > _MOST_OPEN_DECISIONS:
            self._open.popitem(last=False)

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
        running = self._workers().get(name)
        if running is None or running.provided is None:
            raise VsmError(name, "it does not serve now")
        ranges, held = self._ranges(name, running), _held(running.provided.profile.limits)
        for resource, value in wanted.items():
            self._judge(name, resource, value, ranges)
        fields = {FIELDS[r]: value if r == "cpu" else int(value) for r, value in wanted.items()}
        limits.move(running, fields, by="system 3")
        self._supervisor.integrations.granted.setdefault(name, {}).update(fields)
        for resource, value in wanted.items():
            self._happened(name, resource, value - held.get(resource, math.inf))

    def _judge(self, name: str, resource: str, value: float, ranges: Range) -> None:
        where = f"{name}: {resource}"
        if resource not in ranges:
            raise VsmError(where, "it is not system 3's to move: no budget, no group, or a command")
        least, most = ranges[resource]
        if not least / _SLACK <= value <= most * _SLACK:
            raise VsmError(where, f"{value:g} is not within {least:g} to {most:g}")
        others = sum(self._held_of(other, resource) for other in self._workers() if other != name)
        before = self._held_of(name, resource)
        if value > before and others + value > self._budget[resource] * _SLACK:
            raise VsmError(where, f"{value:g} would exceed the budget")

    def _held_of(self, name: str, resource: str) -> float:
        provided = self._workers()[name].provided
        if provided is None or provided.group is None:
            return 0.0
        return _held(provided.profile.limits).get(resource, self._budget[resource])

    def _damp(self, message: Damp) -> None:
        group = self._supervisor.integrations
        if message.integration in group.integrations:
            group.slow_down(message.integration, message.factor)

    # ---- audits ----------------------------------------------------------------------------

    def _audit(self, message: Audit) -> None:
        """Compare a running worker with its plan; bounded reading of /proc, no waiting."""
        running = self._workers().get(message.integration)
        found = kernel_facts.compare(running) if running is not None else None
        failed = list(found.failed.items())[:64] if found is not None else []
        answer = Audited(
            id=message.id,
            integration=message.integration,
            checked=found.checked if found is not None else 0,
            failed={name: text[:1000] for name, text in failed},
            detail="" if found is not None else "it does not serve now",
        )
        self._tell("system3", answer)

    async def audit(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`vsm audit NAME`: the same at once, for a person; the journal hears of it.

        Raises:
            VsmError: it does not serve now.
        """
        name = str(arguments.get("name", ""))
        running = self._workers().get(name)
        if running is None:
            raise VsmError(name[:64], "it does not serve now", "See `vsm status`.")
        found = kernel_facts.compare(running)
        self._supervisor.recorder.journal.event(
            "audit.failed" if found.failed else "audit.passed",
            integration=name,
            severity="error" if found.failed else "info",
            detail={"checked": found.checked, "failed": found.failed, "by": "command"},
        )
        return {"name": name, **found.to_json()}


def _held(found: "Limits") -> dict[str, float]:
    values: dict[str, Any] = {name: getattr(found, FIELDS[name]) for name in RESOURCES}
    return {name: float(value) for name, value in values.items() if value is not None}
