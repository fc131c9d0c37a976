"""One process of an integration as the supervisor holds it: its descriptors, and how it ended.

Runs in the supervisor. Owns the supervisor's ends of the pipes until they are closed.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from vsm.configuration.config import Integration
from vsm.core import restart
from vsm.core.login_words import login_command, scope_said
from vsm.link import close_fds
from vsm.messages import Availability, AvailabilityChanged, Body, IntegrationRow, ResilienceRow
from vsm.output import OutputReader, OutputRing
from vsm.processes.launch import ExitReport, Spawned
from vsm.processes.zygote import Zygote
from vsm.supervision import provision
from vsm.supervision.instance_set import number_of, terms_row
from vsm.supervision.last_words import describe

DRAIN_TIMEOUT_S: Final = 30.0
_REMOVE_ATTEMPTS: Final = 40
_REMOVE_RETRY_S: Final = 0.05
_AVAILABILITY: Final[dict[restart.Phase, Availability]] = {
    "starting": "starting",
    "ready": "ready",
    "backing_off": "backing_off",
    "quarantined": "quarantined",
    "draining": "stopped",
    "stopping": "stopped",
    "stopped": "stopped",
}


@dataclass
class RunningWorker:
    """One incarnation of an integration, or one instance of several; owns its descriptors.

    Args:
        entry: of the integration, as it was when this was started.
        key: the worker's in the restart group; another one once it was replaced.
        outdated: another one has its place; it finishes what it has begun.
        zygote: the other end of its channel, where sessions' instances are forked from it.
        base: what it is a fork of; then it has no provision of its own.
    """

    entry: Integration
    key: str
    incarnation: int
    started_at: float
    stdin: int = -1
    stdout: int = -1
    output: OutputReader | None = None
    spawned: Spawned | None = None
    provided: provision.Provision | None = None
    record: Body | None = None
    doomed: bool = False
    attached: bool = False
    report: ExitReport | None = None
    tier: str = ""
    zygote: Zygote | None = None
    base: "RunningWorker | None" = None
    outdated: bool = False
    worker_id: str = field(init=False)  # what launcher and S1 know it by, as long as it lives

    def __post_init__(self) -> None:
        number = number_of(self.key)
        again = f"r{self.incarnation}" if self.incarnation > 1 else ""
        own = f"i{number}{again}" if number else f"{self.incarnation}"
        self.worker_id = f"{self.name}-{own}"

    @property
    def name(self) -> str:
        """The integration's."""
        return self.entry.name

    @property
    def label(self) -> str:
        """What its lines begin with among those of its siblings."""
        number = number_of(self.key)
        return f"#{number}: " if number else ""

    def close_pipes(self) -> None:
        """Close our ends."""
        close_fds([fd for fd in (self.stdin, self.stdout) if fd >= 0])
        self.stdin = self.stdout = -1


def open_pipes(
    running: RunningWorker,
    ring: OutputRing,
    hidden: Mapping[str, str],
    theirs: list[int],
) -> tuple[int, int, int]:
    """Make a server's three pipes.

    Args:
        running: gets our ends.
        ring: gets what it prints.
        hidden: secrets, by name, whose values do not get there.
        theirs: gets its ends, each as soon as there is one.
    """
    stdin, running.stdin = os.pipe2(os.O_CLOEXEC)
    theirs.append(stdin)
    running.stdout, stdout = os.pipe2(os.O_CLOEXEC)
    theirs.append(stdout)
    stderr_read, stderr = os.pipe2(os.O_CLOEXEC)
    theirs.append(stderr)
    running.output = OutputReader(stderr_read, ring, running.label, hidden)
    return stdin, stdout, stderr


def spec_of(integration: Integration) -> restart.WorkerSpec:
    """How a process of an integration is started, stopped and restarted."""
    policy = integration.restart
    return restart.WorkerSpec(
        name=integration.name,
        intensity=policy.intensity,
        period_s=policy.period_s,
        backoff_initial_s=policy.backoff_initial_s,
        backoff_max_s=policy.backoff_max_s,
        stable_s=policy.stable_s,
        start_timeout_s=integration.start_timeout_s,
        drain_timeout_s=min(DRAIN_TIMEOUT_S, integration.call_timeout_s),
        stop_timeout_s=integration.stop_timeout_s,
        stack_grace_s=0.5,
        escalates=integration.remote is not None,  # what is out of reach comes back by itself
    )


def row_of(one: Integration) -> IntegrationRow:
    """What S1 must know of an integration."""
    return IntegrationRow(
        name=one.name,
        prefix=one.prefix,
        era=one.era,
        start_timeout_s=one.start_timeout_s,
        call_timeout_s=one.call_timeout_s,
        concurrency=one.concurrency,
        max_frame_bytes=one.max_frame_bytes,
        instances=terms_row(one),
        resilience=ResilienceRow(**msgspec.structs.asdict(one.resilience)),
        trust=one.trust,
        most_argument_bytes=one.most_argument_bytes,
        most_argument_depth=one.most_argument_depth,
        strict_arguments=one.strict_arguments,
        audit_contents_bytes=one.audit_contents_bytes,
        remote=one.remote is not None,
        credentials=one.remote.clients if one.remote else (),
    )


def availability_of(worker: restart.Worker) -> AvailabilityChanged:
    """How an integration stands, for S1. What failed and ends yet will be started again."""
    again = worker.after == "restart" or (worker.after == "crash" and worker.wanted)
    restarts = again and worker.phase in {"draining", "stopping"}
    return AvailabilityChanged(
        integration=worker.spec.name,
        state="restarting" if restarts else _AVAILABILITY[worker.phase],
        reason=worker.reason[:4096],
    )


def end_of(
    running: RunningWorker, report: ExitReport, said: Iterable[str] = ()
) -> tuple[str, bool]:
    """How it ended, in words, and whether a person has to do something before it can serve.

    Only a remote server's worker, which is ours, can say so; `said` is what it printed.
    """
    if running.entry.remote is None or report.status != os.EX_CONFIG:
        return describe(running, report), False
    name = running.entry.name
    what, remedy = "the server refuses its credentials", "correct them"
    if "" in running.entry.remote.oauth:
        scope = scope_said(name, said)
        remedy = f"run `{login_command(name, scope=scope)}`"
        what = f"its login lacks the scope {scope!r}" if scope else what
    return f"{what}: {remedy}; see `vsm logs {name}`", True


def is_clean(report: ExitReport) -> bool:
    """Whether it ended by itself, as one that has nothing to complain of."""
    return report.status is not None and report.status == 0


def remove_group(running: RunningWorker, attempt: int = 0) -> None:
    """The kernel lets go of a group a moment after the last process: ask again."""
    group = running.provided.group if running.provided else None
    if group is None or group.try_remove():
        return
    if attempt < _REMOVE_ATTEMPTS:
        loop = asyncio.get_running_loop()
        loop.call_later(_REMOVE_RETRY_S, remove_group, running, attempt + 1)
