"""What this host gives: each fact by a trial in a child, never by a version.

Owns `HostFacts`, on which `vsm.confinement.plan` decides, and the layer table that `vsm sandbox
probe` prints. Runs in the supervisor and the command line, single-threaded (it forks), any
privilege.
"""

from __future__ import annotations

import json
import os
import platform
import resource
from collections.abc import Callable
from errno import EACCES
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from vsm.confinement import cgroup
from vsm.linux import trials

CAPABILITIES = {  # linux/capability.h: those that confining as root needs
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
}
OPTIONAL_CAPABILITIES = frozenset({"CAP_SYS_RESOURCE"})
LIMITS = {
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "file_size": resource.RLIMIT_FSIZE,
}
SETTINGS = {
    "yama": "/proc/sys/kernel/yama/ptrace_scope",
    "unprivileged_userns_clone": "/proc/sys/kernel/unprivileged_userns_clone",
    "apparmor_restrict_unprivileged_userns": (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
    ),
    "apparmor_profile": "/proc/self/attr/apparmor/current",
    "max_user_namespaces": "/proc/sys/user/max_user_namespaces",
    "suid_dumpable": "/proc/sys/fs/suid_dumpable",
}
Tier = Literal["namespaced", "landlocked"]
State = Literal["works", "weaker", "absent"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One layer on this host: what a worker gets of it, and what would make it better."""

    layer: str
    state: State
    detail: str
    remedy: str = ""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the trials showed, for the user who ran them.

    Args:
        root: uid 0 with the capabilities that confining as root needs.
        tier: the best tier that works.
        namespaces: kind → it can be had (by this user, in a user namespace if not root).
        user_namespaces: one can be had at all, root or not.
        root_filesystem: a root was built through fds and pivoted into.
        proc_mount: a fresh proc was mounted in a pid namespace.
        cgroup: see `vsm.confinement.cgroup.CgroupFacts`.
        settings: kernel settings that explain a refusal.
        reasons: fact → why it does not hold.
    """

    kernel: str = ""
    architecture: str = ""
    uid: int = -1
    root: bool = False
    tier: Tier = "landlocked"
    namespaces: dict[str, bool] = {}
    user_namespaces: bool = False
    root_filesystem: bool = False
    proc_mount: bool = False
    idmapped_mounts: bool = False
    landlock_abi: int = 0
    landlock_scopes: bool = False
    seccomp: bool = False
    seccomp_notification: bool = False
    pidfd: bool = False
    clone3: bool = False
    clone_into_cgroup: bool = False
    subordinate_ids: bool = False
    capabilities: tuple[str, ...] = ()
    raisable_limits: tuple[str, ...] = ()
    cgroup: cgroup.CgroupFacts = cgroup.CgroupFacts()
    settings: dict[str, str] = {}
    reasons: dict[str, str] = {}


def probe_host(*, groups: cgroup.CgroupFacts | None = None) -> HostFacts:
    """Try everything once.

    Args:
        groups: what `vsm.confinement.cgroup.detect` already answered in this process, else it is
            asked.
    """
    capabilities = _capabilities()
    root = os.geteuid() == 0 and not set(CAPABILITIES) - OPTIONAL_CAPABILITIES - set(capabilities)
    user = () if root else ("user",)
    groups = cgroup.detect() if groups is None else groups
    reasons: dict[str, str] = {}

    def holds(name: str, action: Callable[[], int | None]) -> bool:
        return _try(name, action, reasons) is not None

    namespaces = {
        kind: holds(f"namespaces.{kind}", partial(trials.unshare, *user, kind))
        for kind in trials.NAMESPACES
        if kind != "user"
    }
    user_namespaces = holds("user_namespaces", lambda: trials.unshare("user"))
    root_filesystem = holds("root_filesystem", lambda: trials.build_root(*user))
    proc_mount = holds("proc_mount", lambda: trials.mount_proc(*user))
    enough = all(namespaces.values()) and root_filesystem and proc_mount
    unified = groups.folders.get("unified")
    return HostFacts(
        kernel=platform.release(),
        architecture=platform.machine(),
        uid=os.geteuid(),
        root=root,
        tier="namespaced" if enough else "landlocked",
        namespaces=namespaces,
        user_namespaces=user_namespaces,
        root_filesystem=root_filesystem,
        proc_mount=proc_mount,
        idmapped_mounts=holds("idmapped_mounts", trials.idmap_mount),
        landlock_abi=_try("landlock", trials.landlock_abi, reasons) or 0,
        landlock_scopes=holds("landlock_scopes", trials.landlock_scopes),
        seccomp=holds("seccomp", trials.seccomp_filter),
        seccomp_notification=holds("seccomp_notification", trials.seccomp_notification),
        pidfd=holds("pidfd", trials.pidfd),
        clone3=holds("clone3", trials.clone3),
        clone_into_cgroup=unified is not None
        and holds("clone_into_cgroup", lambda: trials.clone3(unified)),
        subordinate_ids=_subordinate_ids(reasons),
        capabilities=capabilities,
        raisable_limits=tuple(
            name
            for name, kind in LIMITS.items()
            if holds(f"raise.{name}", partial(trials.raise_hard_limit, kind))
        ),
        cgroup=groups,
        settings=_settings(),
        reasons=reasons,
    )


def layer_table(facts: HostFacts) -> list[Row]:
    """The layers of a worker on this host, with reasons and remedies."""
    return [
        _user_row(facts),
        *_namespace_rows(facts),
        _privileges_row(),
        _landlock_row(facts),
        _seccomp_row(facts),
        *_limit_rows(facts),
    ]


def _try(name: str, action: Callable[[], int | None], reasons: dict[str, str]) -> int | None:
    """Run a trial in a child: its value (1 for None), or None with the reason noted."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _be_trial(action, tell)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(pid, 0)
    answer = json.loads(raw) if raw else {"error": "the trial child died"}
    if "error" in answer:
        reasons[name] = str(answer["error"])
        return None
    value = answer["value"]
    return value if isinstance(value, int) else 1


def _be_trial(action: Callable[[], int | None], tell: int) -> None:
    """Runs in the child; never returns."""
    try:
        answer: dict[str, int | str | None] = {"value": action()}
    except Exception as error:  # noqa: BLE001  # the boundary: a trial's failure is its result
        answer = {"error": getattr(error, "strerror", None) or str(error)}
    try:
        os.write(tell, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _capabilities() -> tuple[str, ...]:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    return tuple(name for name, bit in CAPABILITIES.items() if effective >> bit & 1)


def _settings() -> dict[str, str]:
    found = {}
    for name, path in SETTINGS.items():
        try:
            found[name] = Path(path).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
    return found


def _subordinate_ids(reasons: dict[str, str]) -> bool:
    uid, gid = (_first_subordinate(f"/etc/sub{kind}id") for kind in "ug")
    if uid is None or gid is None:
        reasons["subordinate_ids"] = "/etc/subuid and /etc/subgid give this user no range"
        return False
    action = partial(trials.map_subordinate_ids, uid, gid)
    return _try("subordinate_ids", action, reasons) is not None


def _first_subordinate(file: str) -> int | None:
    import pwd

    try:
        names = {str(os.geteuid()), pwd.getpwuid(os.geteuid()).pw_name}
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, KeyError):
        return None
    ranges = (line.split(":") for line in lines if line.count(":") == 2)  # noqa: PLR2004
    return next((int(f[1]) for f in ranges if f[0] in names and int(f[2]) > 0), None)


# -- the table -------------------------------------------------------------------------------------


def _user_row(facts: HostFacts) -> Row:
    if facts.root:
        return Row(layer="user", state="works", detail="a uid of its own per integration")
    return Row(
        layer="user",
        state="weaker",
        detail="workers share this user's uid",
        remedy="Run vsm as root or as a system service.",
    )


def _namespace_rows(facts: HostFacts) -> list[Row]:
    missing = [kind for kind, works in facts.namespaces.items() if not works]
    why = "; ".join(
        facts.reasons[name]
        for name in (*(f"namespaces.{kind}" for kind in missing), "root_filesystem", "proc_mount")
        if name in facts.reasons
    )
    if facts.tier == "namespaced":
        return [
            Row(layer="root_filesystem", state="works", detail="built through fds, private /tmp"),
            Row(layer="namespaces", state="works", detail=", ".join(facts.namespaces)),
            Row(layer="network", state="works", detail="a network namespace without interfaces"),
        ]
    remedy = _namespace_remedy(facts)
    landlock = "works" if facts.landlock_abi else "absent"
    return [
        Row(
            layer="root_filesystem",
            state="weaker" if facts.landlock_abi else "absent",
            detail=f"Landlock rules instead of an own root ({why})",
            remedy=remedy,
        ),
        Row(layer="namespaces", state="absent", detail=why, remedy=remedy),
        Row(
            layer="network",
            state="weaker" if facts.seccomp else "absent",
            detail=f"sockets denied by seccomp instead of a namespace (Landlock {landlock})",
            remedy=remedy,
        ),
    ]


def _namespace_remedy(facts: HostFacts) -> str:
    switched_on = facts.settings.get("apparmor_restrict_unprivileged_userns") == "1"
    if switched_on or _profile_forbids(facts):
        return "Run vsm as root, or once as root `vsm service apparmor`."
    if facts.settings.get("unprivileged_userns_clone") == "0":
        return "Run vsm as root, or set kernel.unprivileged_userns_clone=1."
    if facts.settings.get("max_user_namespaces") == "0":
        return "Run vsm as root, or set user.max_user_namespaces above 0."
    return "Run vsm as root outside a container, or allow user namespaces in the container."


def _profile_forbids(facts: HostFacts) -> bool:
    """An AppArmor profile without `userns` answers EACCES; all others EPERM or ENOSPC."""
    confined = facts.settings.get("apparmor_profile", "").endswith(" (enforce)")
    return confined and facts.reasons.get("user_namespaces", "").endswith(os.strerror(EACCES))


def _privileges_row() -> Row:
    return Row(
        layer="privileges",
        state="works",
        detail="capabilities dropped, no_new_privs, environment scrubbed, descriptors closed",
    )


def _landlock_row(facts: HostFacts) -> Row:
    if not facts.landlock_abi:
        return Row(
            layer="landlock",
            state="absent",
            detail=facts.reasons.get("landlock", ""),
            remedy="Boot a kernel with Landlock (5.13 or later) and lsm=landlock,… .",
        )
    lacking = [
        text
        for least, text in ((2, "renames"), (3, "truncation"), (4, "TCP"), (5, "ioctl on devices"))
        if facts.landlock_abi < least
    ]
    lacking += [] if facts.landlock_scopes else ["signals and abstract sockets"]
    return Row(
        layer="landlock",
        state="weaker" if lacking else "works",
        detail=f"ABI {facts.landlock_abi}" + (f", without {', '.join(lacking)}" if lacking else ""),
        remedy="A later kernel covers more." if lacking else "",
    )


def _seccomp_row(facts: HostFacts) -> Row:
    if not facts.seccomp:
        why = facts.reasons.get("seccomp", "")
        remedy = "Boot a kernel with CONFIG_SECCOMP_FILTER."
        return Row(layer="seccomp", state="absent", detail=why, remedy=remedy)
    told = "" if facts.seccomp_notification else ", denials cannot be reported"
    return Row(layer="seccomp", state="works", detail=f"default deny{told}")


def _limit_rows(facts: HostFacts) -> list[Row]:
    groups = facts.cgroup
    remedy = "Run vsm as a systemd service with Delegate=yes, or as root."
    where = f"cgroup {groups.kind}"
    rows = []
    for layer, works, otherwise in (
        ("memory", groups.memory, "rlimits and watching only"),
        ("processes", groups.processes, "RLIMIT_NPROC only"),
        ("cpu", groups.cpu, "RLIMIT_CPU only"),
    ):
        if works:
            rows.append(Row(layer=layer, state="works", detail=where))
        else:
            detail = f"{otherwise} ({groups.reason})"
            rows.append(Row(layer=layer, state="weaker", detail=detail, remedy=remedy))
    rows.append(_io_row(groups))
    return rows


def _io_row(groups: cgroup.CgroupFacts) -> Row:
    if groups.io:
        return Row(layer="io", state="works", detail=f"cgroup {groups.kind}")
    detail = "no rate of reading and writing can be limited: no control group took one"
    remedy = (
        "Have the io controller of cgroup v2 delegated; only limits.io_read and io_write need it."
    )
    return Row(layer="io", state="absent", detail=detail, remedy=remedy)
