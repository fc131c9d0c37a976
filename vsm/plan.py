"""Profile and request → plan: validated, resolved and compiled before anything is started.

Owns the decision which operations confine a worker on this host, and the refusal when a layer
that the profile requires cannot be had. Runs in the supervisor and the command line; executes
nothing itself: `vsm.execution` does, in the launcher's child.
"""

from typing import Literal, Protocol

import msgspec

from vsm.execution import Plan
from vsm.profile import Profile

Tier = Literal["namespaced", "landlocked"]


class Host(Protocol):
    """What of `vsm.probe.HostFacts` the compiler asks: all of it found by trials."""

    @property
    def root(self) -> bool:
        """Uid 0 with the capabilities that confining as root needs."""

    @property
    def tier(self) -> Tier:
        """The best tier that works for this user."""

    @property
    def landlock_abi(self) -> int:
        """0 where there is none."""

    @property
    def idmapped_mounts(self) -> bool:
        """Whether bind mounts can carry an id mapping."""


class WorkerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One worker to start.

    Args:
        name: the worker's name; names its private directories and errors.
        argv: what to exec; `argv[0]` absolute (see `vsm.closure`).
        cwd: absolute path inside; None is the state directory, else a private one.
        env: what the worker gets beside the profile's environment; wins over it.
        read: host paths, read-only (the closure's among them).
        write: host paths.
        state_dir: an existing host directory of the worker's own, or None.
        uid: root only: the worker's stable uid; None keeps the caller's (self) or is refused.
        tier: None for the best one; naming one takes that one or raises.
        cgroups: cgroup directories to join, made and limited by the caller.
        cgroup_layers: which of "memory", "processes", "cpu" those cgroups really enforce.
        scratch_dir: landlocked tier: the private directory to create (0700, the worker's) and
            to remove at exit; None chooses one.
    """

    name: str
    argv: tuple[str, ...]
    cwd: str | None = None
    env: dict[str, str] = {}
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    state_dir: str | None = None
    uid: int | None = None
    tier: Tier | None = None
    cgroups: tuple[str, ...] = ()
    cgroup_layers: tuple[str, ...] = ()
    scratch_dir: str | None = None


def compile_plan(profile: Profile, request: WorkerRequest, host: Host) -> Plan:
    """Decide every operation that confines this worker here.

    Raises:
        ConfinementError: a required layer cannot be applied; names layer and remedy.
    """
    raise NotImplementedError
