"""One process of an integration as the supervisor holds it: its descriptors, and how it ended.

Runs in the supervisor. Owns the supervisor's ends of the pipes until they are closed.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from vsm.configuration.config import Integration
from vsm.core import restart
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
        name: the integration's. key: the worker's in the restart group.
        zygote: the other end of its channel, where sessions' instances are forked from it.
        base: what it is a fork of; then it has no provision of its own.
    """

    name: str
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

    @property
    def worker_id(self) -> str:
        """The id that launcher and S1 know it by."""
        number = number_of(self.key)
        return f"{self.name}-i{number}" if number else f"{self.name}-{self.incarnation}"

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
    secrets: Iterable[str],
    env: Mapping[str, str],
    theirs: list[int],
) -> tuple[int, int, int]:
    """Make a server's three pipes; `theirs` gets its ends, each as soon as there is one."""
    stdin, running.stdin = os.pipe2(os.O_CLOEXEC)
    theirs.append(stdin)
    running.stdout, stdout = os.pipe2(os.O_CLOEXEC)
    theirs.append(stdout)
    stderr_read, stderr = os.pipe2(os.O_CLOEXEC)
    theirs.append(stderr)
    hidden = {name: env[name] for name in secrets if name in env}
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
        remote=one.remote is not None,
        credentials=one.remote.clients if one.remote else (),
    )


def availability_of(worker: restart.Worker) -> AvailabilityChanged:
    """How an integration stands, for S1."""
    restarts = worker.after == "restart" and worker.phase in {"draining", "stopping"}
    return AvailabilityChanged(
        integration=worker.spec.name,
        state="restarting" if restarts else _AVAILABILITY[worker.phase],
        reason=worker.reason[:4096],
    )


def end_of(
    integration: Integration, running: RunningWorker, report: ExitReport
) -> tuple[str, bool]:
    """How it ended, in words, and whether a person has to do something before it can serve.

    Only a remote server's worker, which is ours, can say so.
    """
    if integration.remote is not None and report.status == os.EX_CONFIG:
        name = integration.name
        return f"the server refuses its credentials: see `vsm logs {name}`", True
    return describe(running, report), False


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
