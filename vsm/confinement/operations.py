"""The steps that confine a process: privileges, limits, Landlock, seccomp, cgroups.

Each has `execute()`, run once in the process that it confines, and `describe()`. They travel
to the launcher as JSON, so this module is standard library only. Those that build a root file
system are in `vsm.confinement.root_operations`; their order is decided in `vsm.confinement.plan`.
"""

import binascii
import os
import socket
import struct
import sys
from typing import Any, NamedTuple, Protocol

from vsm.linux import capabilities, landlock, namespaces, prctl, rlimits, seccomp

LISTENER = b"refusals"  # the message that hands out a filter's listener
_RIGHTS = {
    "read": landlock.READ_EXECUTE,
    "write": landlock.CHANGE,
    "device": landlock.USE_DEVICE,
}


IdMap = tuple[int, int, int, int]  # stored uid, seen uid, stored gid, seen gid


class Site:
    """What the operations of one execution share.

    Attributes:
        root_fd: the root being built, or -1.
        id_maps: fds that the parent opened.
        control_fd: the mini-init's control socket, or -1: what is opened inside goes out by it.
        threaded: this runs in a second thread, and the first one is to be confined too.
        bounded: whether the bounding set could be emptied, None before somebody tried.
        executed: the steps done so far.
        reports: (layer, detail) of those that had something to say.
    """

    def __init__(self) -> None:
        self.root_fd = -1
        self.control_fd = -1
        self.id_maps: dict[IdMap, int] = {}
        self.threaded = False
        self.bounded: bool | None = None
        self.executed: list[Operation] = []
        self.reports: list[tuple[str, str]] = []


class Operation(Protocol):
    """One step; NamedTuples below, so that they are immutable and JSON-able."""

    @property
    def layer(self) -> str:
        """Which layer it is part of, "" for none."""

    def execute(self, site: Site) -> str:
        """Do it; returns what is worth reporting beside "in force", else ""."""

    def describe(self) -> str:
        """One line for a person."""

    def _asdict(self) -> dict[str, Any]: ...


class JoinCgroups(NamedTuple):
    """Enter cgroups before anything that the worker decides, so that all of it is accounted."""

    paths: tuple[str, ...]
    layer: str = ""

    def execute(self, site: Site) -> str:
        """Write "0" (this process) to each cgroup.procs."""
        del site
        for path in self.paths:
            fd = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)
        return ""

    def describe(self) -> str:
        """The folders."""
        return f"join the cgroups {', '.join(self.paths)}"


class EnterNamespaces(NamedTuple):
    """Finish what the fork into new namespaces began.

    Args:
        flags: the namespaces that the fork made.
        loopback: bring `lo` up.
        own_ids: (uid, gid) to map in the new user namespace, or ().
    """

    flags: int
    loopback: bool
    own_ids: tuple[int, ...] = ()
    layer: str = "namespaces"

    def execute(self, site: Site) -> str:
        """Map ids, name the host, raise the loopback."""
        del site
        if self.own_ids:
            prctl.allow_dumps()  # else /proc/self belongs to a uid that is not mapped here
            namespaces.map_own_ids(*self.own_ids)
        if self.flags & namespaces.NEWUTS:
            _set_host_name("sandbox")
        if self.loopback:
            namespaces.raise_loopback()
        return namespaces.describe(self.flags)

    def describe(self) -> str:
        """The kinds."""
        kinds = namespaces.describe(self.flags)
        mapped = f", own uid {self.own_ids[0]} mapped" if self.own_ids else ""
        loopback = ", loopback up" if self.loopback else ""
        return f"new namespaces: {kinds}{mapped}{loopback}"


class EnterCgroupNamespace(NamedTuple):
    """Hide where the worker's cgroups are: its root is the cgroup of this moment, so join first."""

    layer: str = "namespaces"

    def execute(self, site: Site) -> str:
        """Unshare it."""
        del site
        namespaces.unshare(namespaces.NEWCGROUP)
        return namespaces.describe(namespaces.NEWCGROUP)

    def describe(self) -> str:
        """What."""
        return "new cgroup namespace"


class ForbidUserNamespaces(NamedTuple):
    """Nobody inside makes a user namespace in which he has all capabilities."""

    layer: str = "namespaces"

    def execute(self, site: Site) -> str:
        """Set max_user_namespaces of the own user namespace to 0."""
        del site
        try:
            namespaces.forbid_user_namespaces()
        except OSError:
            return "further user namespaces refused by seccomp alone"
        return ""

    def describe(self) -> str:
        """What."""
        return "no further user namespaces"


class SetLimits(NamedTuple):
    """Resource limits of the process, inherited by all that it starts."""

    values: tuple[tuple[str, int], ...]
    layer: str = ""

    def execute(self, site: Site) -> str:
        """Lower each limit; a hard limit that is lower already stays."""
        del site
        for kind, value in self.values:
            rlimits.lower(kind, value)
        return ""

    def describe(self) -> str:
        """Kinds and values."""
        return "limits: " + ", ".join(f"{kind} {value}" for kind, value in self.values)


class DropPrivileges(NamedTuple):
    """Own uid and gid, no supplementary group, no capability in any set, no_new_privs.

    Args:
        uid: to change to, None keeps it.
        gid: the same.
    """

    uid: int | None
    gid: int | None
    layer: str = "privileges"

    def execute(self, site: Site) -> str:
        """Bounding set first (it needs a capability), then ids, then the rest."""
        self.bound(site)
        own = os.getgid() if self.gid is None else self.gid
        death_signal = prctl.death_signal()
        if self.uid is not None and self.gid is not None:
            os.setgroups([])
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
            if death_signal:  # a change of uid clears it
                prctl.set_death_signal(death_signal)
        capabilities.clear()
        prctl.set_no_new_privileges()
        prctl.forbid_dumps()
        if capabilities.effective():
            raise OSError(1, "capset: capabilities are left")
        bounding = "" if site.bounded else ", bounding set as the user's"
        groups = ", supplementary groups as the user's" if set(os.getgroups()) - {own} else ""
        return f"no capabilities, no_new_privs{bounding}{groups}"

    def bound(self, site: Site) -> None:
        """The first part, which takes forty calls: a process that is forked ahead does it ahead.

        It concerns programs to come: what this process may do stays until the rest.
        """
        if site.bounded is None:
            site.bounded = capabilities.clear_bounding_set()

    def describe(self) -> str:
        """Ids and what is dropped."""
        ids = "" if self.uid is None else f"uid {self.uid}, gid {self.gid}, no other group, "
        return f"{ids}no capabilities in any set, no_new_privs, not dumpable"


class Restrict(NamedTuple):
    """Landlock.

    Args:
        rules: (kind, path) pairs, kind "read" (and execute), "write" or "device"; a path that
            is absent is skipped, for a rule only ever allows.
        tcp: whether TCP stays allowed.
        least_abi: what was there when the plan was compiled; less now is an error.
    """

    rules: tuple[tuple[str, str], ...]
    tcp: bool
    least_abi: int
    layer: str = "landlock"

    def execute(self, site: Site) -> str:
        """Restrict this process and all that it starts."""
        del site
        version = landlock.restrict(self._rights(), tcp=self.tcp)
        if version < self.least_abi:
            raise OSError(38, f"landlock: ABI {version}, expected {self.least_abi}")
        return f"ABI {version}; not covered: {', '.join(landlock.missing(version))}"

    def rehearse(self) -> None:
        """All of it but the restriction."""
        os.close(landlock.make_ruleset(self._rights(), self.least_abi, tcp=self.tcp))

    def _rights(self) -> list[tuple[str, int]]:
        return [(path, _RIGHTS[kind]) for kind, path in self.rules]

    def describe(self) -> str:
        """The rules by kind."""
        kinds = {kind: [path for k, path in self.rules if k == kind] for kind in _RIGHTS}
        listed = "; ".join(f"{kind} {' '.join(paths)}" for kind, paths in kinds.items() if paths)
        tcp = "TCP allowed" if self.tcp else "no TCP"
        missing = ", ".join(landlock.missing(self.least_abi))
        return f"Landlock, ABI {self.least_abi}: {listed}; {tcp}; not covered: {missing}"


class ShieldMiniInit(NamedTuple):
    """Put the server's processes a Landlock domain below the mini-init: no signal reaches it.

    From here on the plan runs in a second thread of the mini-init, see `vsm.confinement.spawner`.
    """

    layer: str = "landlock"

    def execute(self, site: Site) -> str:
        """Enter it; in the first thread it would hold for the mini-init too."""
        if not site.threaded:
            raise OSError(22, "landlock: the mini-init cannot be left out of its own domain")
        landlock.restrict_signals()
        return "the mini-init is out of the server's reach"

    def describe(self) -> str:
        """What."""
        return "Landlock for the server: it cannot signal its mini-init"


class FilterSystemCalls(NamedTuple):
    """seccomp; always the last one.

    Args:
        program: the BPF program in base64.
        allowed: how many calls it allows, for describe().
        reported: what it refuses is asked of the parent, which counts it and answers EPERM.
    """

    program: str
    allowed: int
    reported: bool = False
    layer: str = "seccomp"

    def execute(self, site: Site) -> str:
        """Install the filter, in every thread; hand its listener out."""
        program = binascii.a2b_base64(self.program)
        if self.reported:
            _install_reported(program, site)
            return f"{self.allowed} system calls allowed, refused ones are counted"
        flags = seccomp.TSYNC if site.threaded else 0
        if seccomp.install(program, flags):
            raise OSError(1, "seccomp: a thread has another filter")
        return f"{self.allowed} system calls allowed"

    def describe(self) -> str:
        """How many are allowed."""
        counted = " and counted" if self.reported else ""
        return f"seccomp: {self.allowed} system calls allowed, all others denied{counted}"


def _install_reported(program: bytes, site: Site) -> None:
    """From the filter on nothing is called that could wait for the listener's holder."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=site.control_fd)
    listener = seccomp.install_reported(program, every_thread=site.threaded)
    try:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", listener))]
        control.sendmsg([LISTENER], rights)
    finally:
        os.close(listener)
        control.detach()  # it stays the mini-init's


def _set_host_name(name: str) -> None:
    if sys.platform == "linux":
        socket.sethostname(name)
