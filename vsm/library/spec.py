"""What a program says of a worker that is to stay, and what it hears of it. Pure."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from vsm.configuration.profile import Profile
from vsm.core.restart import RestartType
from vsm.core.restart import WorkerSpec as Terms
from vsm.library.order import VALUE_BYTES, Request, What
from vsm.library.result import Cause

EventKind = Literal["started", "died", "restarted", "gave_up", "stopped"]


@dataclass(frozen=True)
class WorkerSpec:
    """One worker of a `vsm.Supervisor`: what it does, how it is confined, when it is restarted.

    Args:
        name: unique in its supervisor.
        what: a callable, called once with `args`, or an argv. Either has pipes at stdin and
            stdout (see `Worker.connect`).
        args: the callable's.
        profile: its name, its file, or a `Profile`.
        limits: other limits than the profile's, as for `vsm.run`.
        read: host paths that it may read.
        write: host paths that it may write.
        env: its environment, beside the profile's.
        cwd: its working directory, a path that it sees.
        tier: insist on "namespaced" or "landlocked".
        restart: "permanent" (whenever it ends), "transient" (unless with exit status 0),
            "temporary" (never).
        intensity: more ends than this within `period_s`, and it is given up.
        period_s: see above.
        backoff_initial_s: the first restart is at once, the second after about that time, and
            each next one after twice the time.
        backoff_max_s: the longest of them.
        stable_s: after this time of service earlier ends are forgotten.
        start_timeout_s: killed if it has not begun by then.
        stop_timeout_s: from SIGTERM to SIGKILL.
    """

    name: str
    what: What
    args: tuple[object, ...] = ()
    _: KW_ONLY
    profile: str | Profile = "integration"
    limits: Mapping[str, float | None] | None = None
    read: Sequence[str | os.PathLike[str]] = ()
    write: Sequence[str | os.PathLike[str]] = ()
    env: Mapping[str, str] | None = field(default=None, repr=False)
    cwd: str | None = None
    tier: str | None = None
    restart: RestartType = "permanent"
    intensity: int = 3
    period_s: float = 60.0
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 60.0
    stable_s: float = 30.0
    start_timeout_s: float = 30.0
    stop_timeout_s: float = 5.0

    def request(self, *, serves: bool = False, value_bytes: int = VALUE_BYTES) -> Request:
        """As one run that lasts."""
        return Request(
            self.what,
            self.args,
            self.profile,
            self.limits,
            self.read,
            self.write,
            self.env,
            self.cwd,
            self.tier,
            value_bytes,
            lasting=True,
            serves=serves,
        )

    def terms(self) -> Terms:
        """As the restart decisions know it."""
        return Terms(
            name=self.name,
            restart=self.restart,
            intensity=self.intensity,
            period_s=self.period_s,
            backoff_initial_s=self.backoff_initial_s,
            backoff_max_s=self.backoff_max_s,
            stable_s=self.stable_s,
            start_timeout_s=self.start_timeout_s,
            stop_timeout_s=self.stop_timeout_s,
        )


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """Something that happened to a worker.

    Args:
        worker: its name.
        kind: "started" (it serves for the first time), "died" (it ended, unless it was told to),
            "restarted" (it serves again), "gave_up" (it is not started again), "stopped" (it
            ended because it was told to).
        incarnation: 1 for the first process, and one more with each.
        cause: how it ended, as in `vsm.Result`; "" where no process ended.
        reason: in words; those of its own exception are foreign.
        stderr: the last 4 KiB that a process wrote there which ended; foreign bytes.
    """

    worker: str
    kind: EventKind
    incarnation: int
    cause: Cause | Literal[""] = ""
    reason: str = ""
    stderr: bytes = field(default=b"", repr=False)
