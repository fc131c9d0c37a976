"""What of the supervisor's life goes into the journal, and under which name.

Runs in the supervisor. Turns each step of a restart group into events and decisions; owns the
journal's client. Recording never stops or delays what it records.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from vsm import __version__, paths
from vsm.configuration.config import Config, Journal
from vsm.core import refusals, restart
from vsm.errors import ConfinementError, VsmError
from vsm.journal.calls import CALLS_FILE, CallJournal
from vsm.journal.client import JournalClient, JournalStatistics
from vsm.journal.records import DAY_NS, JOURNAL_FILE, Retention
from vsm.link import LinkStatistics
from vsm.supervision import provision
from vsm.supervision.group import GroupRunner
from vsm.supervision.instance_set import integration_of
from vsm.supervision.last_words import is_out_of_memory

OPERATIONS: Final = "system1"
_LOOK_S: Final = 10.0  # how often links are asked what they dropped
_RETRY_S: Final = 30.0  # for a state directory that is not there or not private
_PHASE_SEVERITY: Final = {"backing_off": "warning", "quarantined": "error"}
_LOST: Final = ("dropped", "invalid")

Links = Callable[[], Iterator[tuple[str, int, LinkStatistics]]]


class Recorder:
    """The supervisor's record of itself.

    Args:
        log: the supervisor's logger.
        limits: how much is kept.
        links: name, epoch and statistics of every link to be watched for losses.
        calls: whether every call is recorded too, in a journal of their own.
    """

    def __init__(
        self,
        log: Any,  # noqa: ANN401 - structlog's loggers are made at run time
        limits: Journal,
        links: Links = lambda: iter(()),
        *,
        calls: bool = False,
    ) -> None:
        self._log = log
        self._links = links
        self._seen: dict[tuple[str, int, str], int] = {}
        self._pending: dict[str, str] = {}  # worker → the decision whose outcome is not known
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._reason = ""
        self.path = paths.state_dir() / JOURNAL_FILE
        self.journal = JournalClient(
            self.path,
            retention=Retention(limits.keep_days * DAY_NS, limits.size_bytes),
            on_trouble=self._on_trouble,
        )
        self.calls = CallJournal(
            paths.state_dir() / CALLS_FILE,
            Retention(limits.keep_days * DAY_NS, limits.calls_size_bytes),
            lambda reason: self._log.error("call journal: cannot write", reason=reason),
            enabled=calls,
        )

    def keep_contents(self, config: Config, given: Iterable[tuple[str, str]]) -> None:
        """Said before S1 hears of the configuration: what calls carry may be recorded.

        Args:
            config: says whether.
            given: secrets that somebody has now, beside those that the configuration names.
        """
        if any(one.audit_contents_bytes for one in config.integrations.values()):
            self.calls.keep_contents([*provision.secret_values(config), *given])

    def pids(self) -> frozenset[int]:
        """The journal processes': no orphans that may be swept."""
        pids = (self.journal.statistics().pid, self.calls.pid)
        return frozenset(pid for pid in pids if pid is not None)

    def statistics(self) -> JournalStatistics:
        """How the journal does."""
        return self.journal.statistics()

    def began(self) -> None:
        """The first record: vsm starts."""
        self.journal.event("vsm.started", severity="notice", detail={"version": __version__})

    def start(self, plan: Callable[[], str]) -> None:
        """Start the journal process; what was recorded before waits for it.

        Args:
            plan: the confinement of the journal as JSON; raises VsmError when it cannot be had now.
        """
        self._start_journal(plan)
        self._look()

    def _start_journal(self, plan: Callable[[], str]) -> None:
        try:
            confinement = plan()
            self.journal.start(confinement)
            self.calls.start(confinement)
        except VsmError as error:
            self._on_trouble(str(error))
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(_RETRY_S, self._start_journal, plan)

    async def close(self, *, uptime_s: float) -> None:
        """Write the last event and end the journal process, bounded."""
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        self._look_at_links()
        detail = {"uptime_s": round(uptime_s, 3)}
        self.journal.event("vsm.stopped", severity="notice", detail=detail)
        await self.calls.close()
        lost = await self.journal.close()
        if lost:
            self._log.error("journal: records lost", count=lost, reason=self._reason)

    def _on_trouble(self, reason: str) -> None:
        if reason:
            self._log.error("journal: cannot write", reason=reason)
        elif self._reason:
            self._log.info("journal: writes again")
        self._reason = reason

    # ---- commands and refusals --------------------------------------------------------------

    def panic(self) -> None:
        """An operator pressed it."""
        self.journal.event("vsm.panic", severity="critical")

    def resume(self) -> None:
        """The panic is over."""
        self.journal.event("vsm.resumed", severity="notice")

    def reloaded(self, changes: list[dict[str, Any]]) -> None:
        """An edited configuration counts from now on."""
        self.journal.event("vsm.reloaded", severity="notice", detail={"changes": changes[:50]})

    def replayed(self, letter: int, name: str, outcome: str) -> None:
        """An operator had a dead letter's call made again."""
        detail = {"letter": letter, "outcome": outcome}
        self.journal.event("call.replayed", integration=name, severity="notice", detail=detail)

    def shutting_down(self, why: str) -> None:
        """The end begins."""
        self.journal.event("vsm.stopping", severity="notice", detail={"reason": why})

    def refused(self, name: str, error: VsmError) -> None:
        """A worker was not started: a layer, its files or its configuration forbid it."""
        detail: dict[str, object] = {"what": error.what, "remedy": error.remedy}
        if isinstance(error, ConfinementError):
            detail["layer"] = error.layer
        self.journal.event(
            "worker.refused", worker=name, integration=name, severity="error", detail=detail
        )

    def replacing(self, stage: str, name: str, detail: dict[str, Any]) -> None:
        """A server is to take the place of one that serves, has done so, or has not."""
        severity = "error" if stage == "failed" else "notice"
        self.journal.event(
            f"replacement.{stage}", worker=name, integration=name, severity=severity, detail=detail
        )

    def egress_refused(self, name: str, host: str, reason: str) -> None:
        """A worker asked the egress process for what it may not have."""
        detail = {"host": host, "reason": reason}
        self.journal.event(
            "egress.refused", worker=name, integration=name, severity="warning", detail=detail
        )

    def calls_refused(self, name: str, calls: Mapping[str, int]) -> None:
        """A worker made system calls that its filter refuses."""
        told = refusals.text(calls)
        self._log.warning("refused by the system-call filter", worker=name, calls=told)
        detail = {"calls": dict(calls), "total": sum(calls.values())}
        self.journal.event(
            "worker.calls_refused", worker=name, integration=name, severity="notice", detail=detail
        )

    def trust(self, kind: str, name: str, severity: str, detail: dict[str, Any]) -> None:
        """What a server offers was pinned, changed, flagged or approved."""
        self.journal.event(kind, integration=name, severity=severity, detail=detail)

    # ---- restart groups ---------------------------------------------------------------------

    def watch(self, runner: GroupRunner, *, integrations: bool) -> None:
        """Record every step of a group from now on."""

        def observe(before: restart.Group, event: restart.Event, after: restart.Group) -> None:
            self._on_event(before, event, after, integrations=integrations)
            for name, worker in after.workers.items():
                if worker.phase != before.workers[name].phase:
                    self._on_phase(worker, integrations=integrations)

        runner.observe = observe

    def _on_event(
        self, before: restart.Group, event: restart.Event, after: restart.Group, *,
        integrations: bool,
    ) -> None:  # fmt: skip
        if not isinstance(event, restart.Exited | restart.Hung | restart.Failed):
            return
        old = before.workers.get(event.name)
        if old is None or not old.alive or old.incarnation != event.incarnation:
            return
        if isinstance(event, restart.Exited) and event.hopeless:  # it never ran
            self._on_crash(event, after.workers[event.name])
            return
        kind, severity = _named(event, old)
        detail: dict[str, object] = {"reason": event.reason, "incarnation": event.incarnation}
        if isinstance(event, restart.Hung):
            detail["stack"] = f"asked for; see `vsm logs {event.name}`"
        self._tell(kind, event.name, severity, detail, integrations=integrations)
        if isinstance(event, restart.Exited):
            self._settle(event.name, {"state": "exited", "reason": event.reason})
            self._on_crash(event, after.workers[event.name])

    def _on_phase(self, worker: restart.Worker, *, integrations: bool) -> None:
        name, phase = worker.spec.name, worker.phase
        detail: dict[str, object] = {"incarnation": worker.incarnation}
        if worker.reason:
            detail["reason"] = worker.reason
        if phase == "backing_off":
            detail["pause_s"] = _pause_s(worker)
        severity = _PHASE_SEVERITY.get(phase, "info")
        self._tell(f"worker.{phase}", name, severity, detail, integrations=integrations)
        if phase in {"ready", "stopped"}:
            self._settle(name, {"state": phase})
        if phase == "ready" and name == OPERATIONS and worker.incarnation > 1:
            self._tell("gateway.replaced", name, "warning", detail, integrations=False)

    def _on_crash(self, event: restart.Exited, worker: restart.Worker) -> None:
        """A restart or a quarantine is a decision: the rule and what it was made of."""
        if event.collateral or worker.phase not in {"backing_off", "quarantined", "starting"}:
            return
        spec, quarantined = worker.spec, worker.phase == "quarantined"
        rule = "restart.hopeless" if event.hopeless else "restart.intensity"
        self._pending[worker.spec.name] = self.journal.decide(
            spec.name,
            rule=rule,
            inputs={
                "reason": event.reason,
                "pause_s": _pause_s(worker),
                "crashes": len(worker.crashes),
                "streak": worker.streak,
                "intensity": spec.intensity,
                "period_s": spec.period_s,
                "backoff_max_s": spec.backoff_max_s,
            },
            alternatives=["restart"] if quarantined else ["quarantine"],
            choice="quarantine" if quarantined else "restart",
        )

    def _settle(self, name: str, outcome: dict[str, object]) -> None:
        key = self._pending.pop(name, None)
        if key is not None:
            self.journal.outcome(key, outcome)

    def _tell(
        self, kind: str, name: str, severity: str, detail: dict[str, object], *, integrations: bool
    ) -> None:
        self.journal.event(
            kind,
            worker=name,
            integration=integration_of(name) if integrations else None,
            severity=severity,
            detail=detail,
        )

    # ---- links ------------------------------------------------------------------------------

    def _look(self) -> None:
        self._look_at_links()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look_at_links(self) -> None:
        """Record what links lost since the last look; what is no more is forgotten."""
        before, self._seen = self._seen, {}
        for name, epoch, statistics in self._links():
            for what in _LOST:
                total = getattr(statistics, what)
                key = (name, epoch, what)
                lost, self._seen[key] = total - before.get(key, 0), total
                if lost > 0:
                    detail = {"count": lost, "epoch": epoch}
                    self.journal.event(
                        f"link.{what}", worker=name, severity="warning", detail=detail
                    )


def _pause_s(worker: restart.Worker) -> float | None:
    """How long it waits for its next start; None where none is ahead."""
    if worker.phase == "quarantined":
        return None
    if worker.phase != "backing_off" or worker.deadline is None:
        return 0.0
    return max(0.0, round(worker.deadline - asyncio.get_running_loop().time(), 3))


def _named(
    event: restart.Exited | restart.Hung | restart.Failed, old: restart.Worker
) -> tuple[str, str]:
    """Kind and severity."""
    if isinstance(event, restart.Hung):
        return "worker.hung", "error"
    if isinstance(event, restart.Failed):
        return "worker.unfit", "error"
    if is_out_of_memory(event.reason):
        return "worker.out_of_memory", "error"
    commanded = old.after in {"stop", "restart"} or not old.wanted
    return "worker.exited", "info" if commanded or event.clean else "warning"
