"""What of systemd's own hardening the service unit uses, and what it must not use.

Pure data for the unit, docs/operations.md and scripts/service-proof, which tries every row on a
real systemd. The unit holds the supervisor, and each worker lives under it too: whatever takes
away what building a sandbox needs makes the workers weaker, not stronger.
"""

from dataclasses import dataclass
from typing import Final

CAPABILITIES: Final = (
    "CAP_SYS_ADMIN",  # namespaces, mounts, control groups
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_CHOWN",
    "CAP_FOWNER",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_KILL",
    "CAP_SYS_PTRACE",  # what a worker of another uid uses, from /proc
    "CAP_SYS_RESOURCE",
    "CAP_NET_ADMIN",  # the loopback device of a worker's own network namespace
)

READ_ONLY: Final = ("/usr", "/boot", "/efi", "/etc")  # what ProtectSystem=full covers
# What is left open by ProtectClock, which closes all devices but these and the real-time clock.
DEVICES: Final = tuple(
    f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx")
)


@dataclass(frozen=True)
class Directive:
    """One directive.

    Args:
        name: as systemd.exec(5) calls it.
        value: what the unit says, or for one that is not used what would break.
        why: one clause for the table.
        user: works in a unit of the user's own manager as well.
    """

    name: str
    value: str
    why: str
    user: bool = False

    @property
    def line(self) -> str:
        """As a unit says it."""
        return f"{self.name}={self.value}"


USED: Final = (
    Directive("NoNewPrivileges", "yes", "nothing below vsm gains privileges by exec", user=True),
    Directive("CapabilityBoundingSet", " ".join(CAPABILITIES), "what building sandboxes needs"),
    Directive("ProtectSystem", "full", "/usr, /boot and /etc are read-only for vsm too"),
    Directive("ProtectKernelModules", "yes", "no module is loaded or read"),
    Directive("ProtectKernelLogs", "yes", "no kernel log: it may hold addresses"),
    Directive("ProtectClock", "yes", "nobody sets the clock; no device but the pseudo ones"),
    Directive("LockPersonality", "yes", "no other execution domain", user=True),
    Directive("RestrictRealtime", "yes", "no real-time scheduling to starve others", user=True),
    Directive("SystemCallArchitectures", "native", "no foreign system call entry", user=True),
    Directive(
        "RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "no packet, vsock, bluetooth or other rare sockets", user=True,
    ),
    Directive(
        "SystemCallFilter", "~@clock @cpu-emulation @debug @module @obsolete @raw-io @reboot @swap",
        "calls that neither vsm nor a server needs",
    ),
    Directive("SystemCallErrorNumber", "EPERM", "a filtered call fails, it does not kill"),
    Directive("KeyringMode", "private", "a session keyring of its own"),
    Directive("UMask", "0077", "files of vsm are vsm's"),
    # One byte: the kernel hands a core to the host's helper, whatever the limit is, but at this.
    Directive("LimitCORE", "1", "no secret ends up in a core, not even one by a pipe", user=True),
)  # fmt: skip

NOT_USED: Final = (
    Directive("RestrictNamespaces", "yes", "workers are made of namespaces"),
    Directive("RestrictSUIDSGID", "yes", "takes openat2 away, which opens paths without a race"),
    Directive("PrivateUsers", "yes", "uids of workers would not be mapped"),
    Directive("ProtectControlGroups", "yes", "limits of workers are control groups"),
    Directive("ProtectKernelTunables", "yes", "mounting /proc for an ordinary user's worker"),
    Directive("ProtectProc", "invisible", "the same"),
    Directive("ProcSubset", "pid", "the same, and /proc/sys is read by trials"),
    Directive("MemoryDenyWriteExecute", "yes", "node and other just-in-time compilers"),
    Directive("ProtectHostname", "yes", "a worker's own UTS namespace gets a name"),
    Directive("SystemCallFilter", "@system-service", "lacks @mount: no root file system is built"),
    Directive("ProtectHome", "yes", "servers live in home directories"),
    Directive("ProtectSystem", "strict", "`write` paths of integrations, which reload can add"),
    Directive("PrivateTmp", "yes", "`read` and `write` paths below /tmp"),
    Directive("PrivateDevices", "yes", "profiles may bind a device, such as a GPU"),
    Directive("PrivateNetwork", "yes", "the HTTP endpoint and servers with a network"),
    Directive("DynamicUser", "yes", "a uid for each integration needs root"),
)
