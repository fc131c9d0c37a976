"""What a profile does on this host: the plan of a worker, step by step, and why.

Starts no worker. Loads the compiler of plans only when it is asked; runs in the command line and
in programs.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vsm.configuration.profile import Profile, Tier
from vsm.configuration.units import format_bytes
from vsm.core.seccomp import (
    FILTERED,
    NOT_BY_GROUP,
    NOT_WITHOUT_NAMESPACES,
    Action,
    rules_for,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vsm.confinement.execution import Plan
    from vsm.confinement.operations import Operation

CGROUP_LAYERS = ("memory", "processes", "cpu", "io")
EXAMPLE_COMMAND = ["true"]
# The uid in an explained plan; a real worker's is its own.
EXAMPLE_UID = 0x7000_0000

_REASONS = {
    "JoinCgroups": "limits.memory, swap, processes, cpu, io: counted for the whole process tree",
    "EnterNamespaces": "tier, network.mode: own views of processes, network, host name and ids",
    "ForbidUserNamespaces": "no way back to capabilities",
    "SetLimits": "limits.open_files, file_size, cpu_time_s, processes: held by the kernel itself",
    "DropPrivileges": "root must not reach the server, and no set-uid program gives it back",
    "Restrict": "files: a second fence behind the file system, and the first without one",
    "FilterSystemCalls": "syscalls: what is not allowed answers EPERM, a foreign entry kills",
    "MakeRoot": "files: a root of its own, so that what is not named does not exist",
    "EnterRoot": "files: the host's root is out of reach",
    "Link": "names that programs expect",
    "WriteFile": "programs look these up",
}


class Explanation(NamedTuple):
    """How a profile would confine a command here.

    Args:
        tier: the one taken.
        steps: (description, layer or "", reason) in order.
        layers: one `{"name", "state", "detail"}` each.
        syscalls: how many are `allowed`, which of them `filtered` (name → how) and which are
            `withheld` although their group is allowed (name → why).
    """

    tier: str
    steps: tuple[tuple[str, str, str], ...]
    layers: tuple[dict[str, str], ...]
    syscalls: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For printing."""
        names = ("step", "layer", "reason")
        steps = [dict(zip(names, step, strict=True)) for step in self.steps]
        return {**self._asdict(), "steps": steps, "layers": list(self.layers)}

    def __str__(self) -> str:
        steps = (f"{step}\n    {reason}" for step, _, reason in self.steps)
        return "\n".join([f"tier {self.tier}", *steps])


def explain(
    profile: Profile, argv: "Sequence[str]" = (), tier: "Tier | None" = None
) -> Explanation:
    """Compile the plan of a worker and say why each step is there.

    Args:
        profile: the profile.
        argv: of the worker; an example where there is none.
        tier: insist on this one.

    Raises:
        ConfinementError: a layer that the profile requires cannot be applied here.
    """
    plan = _plan(profile, list(argv) or EXAMPLE_COMMAND, tier)
    return Explanation(
        plan.tier,
        tuple(_steps(plan, profile)),
        tuple(plan.layers),
        _calls(profile, plan.tier),
    )


def _plan(profile: Profile, argv: list[str], tier: "Tier | None") -> "Plan":
    from vsm.confinement.closure import DEFAULT_PATH, closure
    from vsm.confinement.plan import WorkerRequest, compile_plan
    from vsm.confinement.probe import probe_host

    host = probe_host()
    itself = profile.confine == "self"
    path = profile.environment.get("PATH") or os.environ.get("PATH") or DEFAULT_PATH
    needed = None if itself else closure(argv, env={**profile.environment, "PATH": path})
    request = WorkerRequest(
        name=profile.name,
        argv=(needed.executable, *argv[1:]) if needed else (),
        path=needed.folders if needed else (),
        read=needed.read if needed else (),
        uid=EXAMPLE_UID if host.root else None,
        tier=None if itself else tier,
        # A supervisor makes these; the probe found out which of them work here.
        cgroup_layers=tuple(layer for layer in CGROUP_LAYERS if getattr(host.cgroup, layer)),
    )
    return compile_plan(profile, request, host)


def _steps(plan: "Plan", profile: Profile) -> Iterator[tuple[str, str, str]]:
    """(description, layer, reason), in order; what the plan adds around its operations too."""
    operations = {operation.describe(): operation for operation in plan.operations}
    for line in plan.describe():
        operation = operations.get(line)
        if operation is None:
            yield line, "", _frame_reason(line)
        else:
            yield line, operation.layer, _reason(operation, profile)
    yield from _detections(profile)


def _detections(profile: Profile) -> Iterator[tuple[str, str, str]]:
    """What `vsm up` does while the worker runs."""
    limits = profile.limits
    most = [
        *([] if limits.disk_bytes is None else [format_bytes(limits.disk_bytes)]),
        *([] if limits.disk_files is None else [f"{limits.disk_files} files"]),
    ]
    if most and profile.confine == "exec":
        step = (
            f"under `vsm up`: kill it above {' or '.join(most)} in its own directories on the disk"
        )
        yield (
            step,
            "",
            "limits.disk, disk_files: looked for twice a second, a detection and no limit",
        )


def _frame_reason(line: str) -> str:
    if line.startswith("kill it after"):
        return "limits.wall_time_s: by its mini-init, with all that it started"
    if line.startswith("exec"):
        return "the command itself; all of the above holds for whatever it starts"
    if line.startswith("fork into"):
        return _REASONS["EnterNamespaces"]
    return "a process of its own" if line == "fork" else "a private directory of the worker's"


def _reason(operation: "Operation", profile: Profile) -> str:
    kind = type(operation).__name__
    if kind in _REASONS:
        return _REASONS[kind]
    paths = [str(value) for value in operation._asdict().values() if isinstance(value, str)]
    for key in ("system", "read", "write", "devices"):
        if any(_is_within(path, getattr(profile.files, key)) for path in paths):
            return f"files.{key}"
    if kind == "Bind":
        return "the command needs it, or the integration's entry names it"
    return "files.tmp, shm, proc: private, and bounded in size"


def _is_within(path: str, folders: tuple[str, ...]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def _calls(profile: Profile, tier: str) -> dict[str, Any]:
    syscalls = profile.syscalls
    rules = rules_for(
        syscalls.allow,
        syscalls.deny,
        unix_sockets=syscalls.unix_sockets,
        inet=profile.network.mode != "none",
        tier=tier,
    )
    withheld = dict(NOT_BY_GROUP)
    if tier != "namespaced":
        withheld |= NOT_WITHOUT_NAMESPACES
    named = {name for name, decision in rules.decisions.items() if _may_succeed(decision)}
    return {
        "allowed": len(named),
        "filtered": {name: reason for name, reason in FILTERED.items() if name in named},
        "withheld": {name: reason for name, reason in withheld.items() if name not in named},
    }


def _may_succeed(decision: object) -> bool:
    return decision is Action.ALLOW or not isinstance(decision, Action)
