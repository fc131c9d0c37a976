"""Profile and request → plan: validated, resolved and compiled before anything is started.

Owns the decision which operations confine a worker on this host, and the refusal when a layer
that the profile requires cannot be had. How the worker's files are laid out is decided in
`vsm.confinement.layout`. Runs in the supervisor and the command line; executes nothing itself:
`vsm.confinement.execution` does, in the launcher's child.
"""

import base64
import os
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import msgspec

from vsm.configuration.profile import Limits, Profile
from vsm.configuration.units import format_bytes
from vsm.confinement import layout, scratch
from vsm.confinement.execution import ABSENT, IN_FORCE, NOT_REQUIRED, LayerState, Plan
from vsm.confinement.network_operations import OpenListeners
from vsm.confinement.operations import (
    DropPrivileges,
    EnterCgroupNamespace,
    EnterNamespaces,
    FilterSystemCalls,
    ForbidUserNamespaces,
    JoinCgroups,
    Operation,
    Restrict,
    SetLimits,
    ShieldMiniInit,
)
from vsm.core.egress import Rules, compile_rules
from vsm.core.seccomp import (
    Action,
    compile_filter,
    may_report,
    refuse_own_group,
    reported,
    rules_for,
)
from vsm.core.set_id import refuse_set_id
from vsm.errors import ConfinementError
from vsm.linux import namespaces

Tier = Literal["namespaced", "landlocked"]

_BASE_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
_TCP_ABI = 4
DETECTED = "; no control group holds it, so it was noticed late"
_TRUNCATE_ABI, _SCOPE_ABI = 3, 6
_REMEDIES = {
    "user": "Start vsm as root, or list user in the profile's may_lack.",
    "landlock": "Boot with landlock in the kernel's lsm= list (CONFIG_SECURITY_LANDLOCK).",
    "seccomp": "Run a kernel with CONFIG_SECCOMP_FILTER.",
    "network": "Run a kernel with CONFIG_SECCOMP_FILTER, or vsm where it may make namespaces.",
}
_OLD_LANDLOCK = (
    "Run vsm where it may make namespaces (see `vsm sandbox probe`), or on a kernel from 6.12 on, "
    "or list landlock in the profile's may_lack."
)
_CGROUP_REMEDY = (
    "Run vsm where it may make control groups (a systemd unit with Delegate=yes), "
    "or list {layer} in the profile's may_lack."
)


class Host(Protocol):
    """What of `vsm.confinement.probe.HostFacts` the compiler asks: all of it found by trials."""

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
    def seccomp(self) -> bool:
        """Whether a filter can be installed."""

    @property
    def seccomp_notification(self) -> bool:
        """Whether a filter can have a listener."""

    @property
    def idmapped_mounts(self) -> bool:
        """Whether bind mounts can carry an id mapping."""


class WorkerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One worker to start.

    Args:
        name: the worker's name; names its private directories and errors.
        argv: what to exec; `argv[0]` absolute (see `vsm.confinement.closure`).
        cwd: absolute path inside; None is the state directory, else a private one.
        env: what the worker gets beside the profile's environment; wins over it.
        path: folders to look in before those of PATH (the closure's).
        read: host paths, read-only (the closure's among them).
        kept: those of `read` that somebody named, which no grant of `write` may open.
        write: host paths.
        written: host paths that some worker may write: no symbolic link in them is followed.
        state_dir: an existing host directory of the worker's own, or None.
        uid: root only: the worker's stable uid; None keeps the caller's (self) or is refused.
        tier: None for the best one; naming one takes that one or raises.
        cgroups: cgroup directories to join, made and limited by the caller.
        cgroup_layers: which of "memory", "processes", "cpu" those cgroups really enforce.
        report: whether somebody will hold the system call filter's listener.
        tty: whether it stays in the process group of whoever starts it, for a terminal's sake.
        scratch_dir: landlocked tier: the private directory to create (0700, the worker's) and
            to remove at exit; None chooses one.
    """

    name: str
    argv: tuple[str, ...]
    cwd: str | None = None
    env: dict[str, str] = {}
    path: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    state_dir: str | None = None
    uid: int | None = None
    tier: Tier | None = None
    cgroups: tuple[str, ...] = ()
    cgroup_layers: tuple[str, ...] = ()
    report: bool = False
    tty: bool = False
    scratch_dir: str | None = None


class _Case(NamedTuple):
    """One compilation: the inputs and the tier decided on."""

    profile: Profile
    request: WorkerRequest
    host: Host
    namespaced: bool
    egress: Rules | None

    @property
    def itself(self) -> bool:
        return self.profile.confine == "self"

    @property
    def uid(self) -> int:
        return os.geteuid() if self.request.uid is None else self.request.uid

    @property
    def own_user_namespace(self) -> bool:
        return self.namespaced and not self.host.root

    def refuse(self, layer: str, what: str, remedy: str = "") -> ConfinementError:
        return ConfinementError(self.request.name, what, remedy, layer=layer)


def compile_plan(profile: Profile, request: WorkerRequest, host: Host) -> Plan:
    """Decide every operation that confines this worker here.

    Raises:
        ConfinementError: a required layer cannot be applied; names layer and remedy.
    """
    namespaced = _choose_tier(profile, request, host) == "namespaced"
    case = _Case(profile, request, host, namespaced, egress_rules(profile))
    _check_request(case)
    expected = tuple(_layers(case))
    _check_layers(case, expected)
    uid = case.uid if host.root else None
    names = case.egress.hosts_lines() if case.egress else ""
    files = layout.Grants.collect(profile, request, uid, host, names)
    if not case.namespaced and not case.itself:
        files.check_kept()
        files.check_reachable()
    private = not case.namespaced and not case.itself
    folder = (request.scratch_dir or scratch.path_for(request.name)) if private else ""
    shared = tuple(_shared_operations(case, files))
    return Plan(
        name=request.name,
        tier="namespaced" if case.namespaced else "landlocked",
        clone_flags=_clone_flags(case),
        operations=(*shared, *_own_operations(case, files, folder)),
        argv=request.argv,
        env=_environment(case, folder),
        cwd=request.cwd or request.state_dir or folder or "/tmp",  # noqa: S108 - inside
        uid=case.uid,
        expected=expected,
        scratch_dir=folder,
        shared=len(shared),
        wall_time_s=0 if case.itself else profile.limits.wall_time_s or 0,
    )


def egress_rules(profile: Profile) -> Rules | None:
    """What the profile's workers may reach by the egress process; None without `proxy`.

    Raises:
        ConfinementError: `network.allow` is wrong.
    """
    if profile.network.mode != "proxy":
        return None
    try:
        return compile_rules(profile.network.allow)
    except ValueError as error:
        where = f"{profile.path}: network.allow"
        raise ConfinementError(where, str(error), "Correct it.", layer="network") from error


# -- decisions -------------------------------------------------------------------------------------


def _choose_tier(profile: Profile, request: WorkerRequest, host: Host) -> Tier:
    if profile.confine == "self":
        return "landlocked"
    tier = request.tier or host.tier
    if tier == "namespaced" and host.tier != "namespaced":
        raise ConfinementError(
            request.name,
            "namespaces do not work for this user on this host",
            "See `vsm sandbox probe` for the reason.",
            layer="namespaces",
        )
    if tier == "landlocked" and profile.tier == "namespaced":
        raise ConfinementError(
            request.name,
            f"the profile {profile.name} accepts no less than the namespaced tier",
            'See `vsm sandbox probe`, or write tier = "landlocked" in the profile.',
            layer="namespaces",
        )
    return tier


def _check_request(case: _Case) -> None:
    request = case.request
    if case.egress and not case.namespaced:
        raise case.refuse(
            "network",
            'network mode "proxy" stands on a network namespace, which this worker has not',
            'Write tier = "namespaced", or mode = "none"; see `vsm sandbox probe`.',
        )
    if case.itself:
        return
    if not request.argv or not request.argv[0].startswith("/"):
        raise case.refuse("", f"expected an absolute program, found {request.argv[:1]}")
    if case.host.root and not request.uid:
        raise case.refuse("user", "a worker started by root needs a uid of its own")
    if not case.host.root and request.uid not in (None, os.geteuid()):
        raise case.refuse("user", "only root can give a worker another uid", _REMEDIES["user"])


def _layers(case: _Case) -> Iterator[LayerState]:
    own_uid = case.request.uid is not None and case.host.root
    if own_uid:
        yield LayerState("user", IN_FORCE, f"uid {case.uid}")
    else:
        yield LayerState("user", ABSENT, f"runs as uid {case.uid}, as vsm does")
    if case.itself:
        reason = "a system confines itself after its fork"
        yield LayerState("root_filesystem", NOT_REQUIRED, reason)
        yield LayerState("namespaces", NOT_REQUIRED, reason)
    elif case.namespaced:
        yield LayerState("root_filesystem", IN_FORCE)
        yield LayerState("namespaces", IN_FORCE)
    else:
        yield LayerState("root_filesystem", ABSENT, "Landlock rules on the host's instead")
        yield LayerState("namespaces", ABSENT)
    yield _network_layer(case)
    yield LayerState("privileges", IN_FORCE)
    yield _landlock_layer(case)
    yield LayerState("seccomp", IN_FORCE if case.host.seccomp else ABSENT)
    yield from _resource_layers(case)


def _landlock_layer(case: _Case) -> LayerState:
    """Where it stands alone, an old one leaves open what the tier promises, and counts as absent.

    The systems and their kind run vsm's own code, and take what there is.
    """
    abi = case.host.landlock_abi
    if abi and (case.namespaced or case.itself):
        return LayerState("landlock", IN_FORCE)
    own_uid = case.request.uid is not None and case.host.root
    gaps = []
    if 0 < abi < _TRUNCATE_ABI:
        gaps.append("any file can be truncated")
    if 0 < abi < _SCOPE_ABI and not own_uid:
        gaps.append("this user's other processes can be signalled")
    if abi and not gaps:
        return LayerState("landlock", IN_FORCE)
    return LayerState("landlock", ABSENT, f"with ABI {abi} {' and '.join(gaps)}" if gaps else "")


def _network_layer(case: _Case) -> LayerState:
    if case.profile.network.mode == "host":
        return LayerState("network", NOT_REQUIRED, "THE HOST'S OWN NETWORK, nothing is filtered")
    if case.egress:
        allowed = ", ".join(map(str, case.egress.targets)) or "nothing"
        return LayerState("network", IN_FORCE, f"own network namespace, egress to {allowed}")
    if case.namespaced:
        return LayerState("network", IN_FORCE, "own network namespace, loopback only")
    landlock = " and TCP by Landlock" if case.host.landlock_abi >= _TCP_ABI else ""
    if not case.host.seccomp:
        return LayerState("network", ABSENT, f"nothing refuses sockets{landlock and ' but TCP'}")
    return LayerState("network", IN_FORCE, f"inet sockets denied by seccomp{landlock}")


def _resource_layers(case: _Case) -> Iterator[LayerState]:
    limits, enforced = case.profile.limits, case.request.cgroup_layers
    wanted = {
        "memory": limits.memory_bytes and f"{limits.memory_bytes >> 20} MiB",
        "processes": limits.processes and str(limits.processes),
        "cpu": limits.cpu_cores and f"{limits.cpu_cores:g} cores",
    }
    if rates := rates_text(limits):
        wanted["io"] = rates
    for layer, amount in wanted.items():
        if not amount:
            yield LayerState(layer, NOT_REQUIRED, "no limit in the profile")
        elif layer in enforced:
            yield LayerState(layer, IN_FORCE, f"{amount}, by cgroup")
        elif layer == "processes" and _counts_processes(case):
            yield LayerState(layer, IN_FORCE, f"{amount}, by RLIMIT_NPROC")
        else:
            detail = f"{amount} asked for, no cgroup enforces it"
            yield LayerState(layer, ABSENT, f"{detail}{_instead(case, layer)}")


def rates_text(limits: Limits) -> str:
    """The limits of io in words, "" for none."""
    rates = {"read": limits.io_read_bytes_s, "written": limits.io_write_bytes_s}
    words = [f"{format_bytes(rate)}/s {name}" for name, rate in rates.items() if rate is not None]
    return ", ".join(words)


def _counts_processes(case: _Case) -> bool:
    """RLIMIT_NPROC counts per uid and user namespace: it serves where either is the worker's."""
    return (case.host.root and case.request.uid is not None) or case.own_user_namespace


def _instead(case: _Case, layer: str) -> str:
    if case.itself or layer in {"cpu", "io"}:
        return ""
    data = "; RLIMIT_DATA bounds the private memory of each process" if layer == "memory" else ""
    return f"{data}; vsm looks at the tree twice a second and kills it: a detection, no limit"


def _bounds_data(case: _Case) -> bool:
    """RLIMIT_DATA is no limit of a tree and misses shared memory: for want of a cgroup only."""
    return not case.itself and "memory" not in case.request.cgroup_layers


def _check_layers(case: _Case, expected: tuple[LayerState, ...]) -> None:
    accepted = set(case.profile.may_lack)
    if case.profile.tier == "landlocked":
        accepted |= {"root_filesystem", "namespaces"}
    for layer in expected:
        if layer.state == ABSENT and layer.name not in accepted:
            remedy = _REMEDIES.get(layer.name) or _CGROUP_REMEDY.format(layer=layer.name)
            if layer.name == "landlock" and case.host.landlock_abi:
                remedy = _OLD_LANDLOCK
            what = f"the layer {layer.name} cannot be applied" + (
                f": {layer.detail}" if layer.detail else ""
            )
            raise case.refuse(layer.name, what, remedy)
    files_guarded = case.namespaced or case.host.landlock_abi
    if not files_guarded:
        # Whatever may_lack says: this would be a worker with the user's whole file system.
        raise case.refuse(
            "landlock",
            "without namespaces, Landlock is all that guards files",
            _REMEDIES["landlock"],
        )


# -- operations ------------------------------------------------------------------------------------


def _clone_flags(case: _Case) -> int:
    if not case.namespaced:
        return 0
    flags = namespaces.NEWNS | namespaces.NEWPID | namespaces.NEWIPC | namespaces.NEWUTS
    if case.profile.network.mode != "host":
        flags |= namespaces.NEWNET
    return flags | (namespaces.NEWUSER if case.own_user_namespace else 0)


def _shared_operations(case: _Case, files: layout.Grants) -> Iterator[Operation]:
    """What every worker of this profile starts with; the launcher may do it ahead."""
    flags = _clone_flags(case)
    if case.namespaced:
        ids = (os.geteuid(), os.getegid()) if case.own_user_namespace else ()
        yield EnterNamespaces(flags, loopback=bool(flags & namespaces.NEWNET), own_ids=ids)
        if case.own_user_namespace:
            yield ForbidUserNamespaces()
        yield from files.shared_root_operations()


def _own_operations(case: _Case, files: layout.Grants, private: str) -> Iterator[Operation]:
    if case.request.cgroups:
        enforced = case.request.cgroup_layers or ("memory",)
        yield JoinCgroups(case.request.cgroups, layer=enforced[0])
    if case.egress and case.egress.listeners:
        yield OpenListeners(case.egress.listeners, case.egress.literals)
    if case.namespaced:
        yield EnterCgroupNamespace()
        yield from files.own_root_operations()
    yield SetLimits(tuple(_limits(case)))
    uid = case.request.uid if case.host.root else None
    yield DropPrivileges(uid, uid)
    if case.host.landlock_abi:
        rules = files.namespaced_rules() if case.namespaced else files.host_rules(private)
        tcp = case.profile.network.mode == "host" or case.namespaced
        yield Restrict(tuple(rules), tcp=tcp, least_abi=case.host.landlock_abi)
        if case.host.landlock_abi >= _SCOPE_ABI and not case.namespaced and not case.itself:
            yield ShieldMiniInit()
    if case.host.seccomp:
        yield _filter(case)


def _limits(case: _Case) -> Iterator[tuple[str, int]]:
    limits = case.profile.limits
    # Not 0: for a host whose core_pattern is a pipe that is no limit, and its helper would parse
    # the worker's memory as root. 1 is "none" for files and pipes both; see core(5).
    yield "core", 1
    if limits.open_files is not None:
        yield "open_files", limits.open_files
    if limits.file_size_bytes is not None:
        yield "file_size", limits.file_size_bytes
    if limits.cpu_time_s is not None:
        yield "cpu", limits.cpu_time_s
    if limits.processes is not None and _counts_processes(case):
        yield "processes", limits.processes + (0 if case.itself else 1)  # the mini-init
    if _bounds_data(case) and limits.memory_bytes is not None:
        yield "data", limits.memory_bytes


def _filter(case: _Case) -> FilterSystemCalls:
    calls = case.profile.syscalls
    try:
        rules = rules_for(
            calls.allow,
            calls.deny,
            unix_sockets=calls.unix_sockets,
            # A network namespace of its own makes 127.0.0.1 harmless, and servers use it.
            inet=case.namespaced or case.profile.network.mode == "host",
            tier="namespaced" if case.namespaced else "landlocked",
            udp=case.namespaced or case.itself,
        )
    except KeyError as error:
        where = f"{case.profile.path}: syscalls"
        raise ConfinementError(
            where, f"unknown entry {error}", "See `vsm profile check`.", layer="seccomp"
        ) from error
    rules = refuse_set_id(rules)
    if case.request.tty and case.own_user_namespace and case.host.landlock_abi < _SCOPE_ABI:
        rules = refuse_own_group(rules)  # no other layer keeps its starter's group from it
    refused = (Action.EPERM, Action.ENOSYS, Action.KILL_PROCESS)
    allowed = sum(decision not in refused for decision in rules.decisions.values())
    report = _reports(case) and may_report(rules)
    program = compile_filter(reported(rules) if report else rules, os.uname().machine)
    return FilterSystemCalls(base64.b64encode(program).decode(), allowed, report)


def _reports(case: _Case) -> bool:
    wanted = case.request.report and case.profile.syscalls.report and not case.itself
    return wanted and case.host.seccomp_notification


def _environment(case: _Case, folder: str) -> dict[str, str]:
    request = case.request
    private = folder or "/tmp"  # noqa: S108 - inside
    own = {"HOME": request.state_dir or private, "TMPDIR": private}
    if request.state_dir:
        own["STATE_DIRECTORY"] = request.state_dir
    if request.argv and not case.profile.files.proc:  # ld.so cannot ask /proc/self/exe for $ORIGIN
        own["LD_ORIGIN_PATH"] = os.path.dirname(os.path.realpath(request.argv[0]))
    proxy = case.egress.environment() if case.egress else {}
    env = {**_BASE_ENVIRONMENT, **own, **proxy, **case.profile.environment, **request.env}
    known = env["PATH"].split(":")
    return {**env, "PATH": ":".join((*(one for one in request.path if one not in known), *known))}
