"""Namespaces: a fork straight into new ones, joining, id maps, the loopback interface."""

import ctypes
import fcntl
import os
import socket
import struct

from vsm.linux.syscall import call

# include/uapi/linux/sched.h
NEWNS = 0x00020000
NEWCGROUP = 0x02000000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000

NAMES = {
    NEWUSER: "user",
    NEWNS: "mnt",
    NEWPID: "pid",
    NEWIPC: "ipc",
    NEWUTS: "uts",
    NEWNET: "net",
    NEWCGROUP: "cgroup",
}

_SIGCHLD = 17
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_IFF_UP = 1


def describe(flags: int) -> str:
    """The kinds that flags of clone(2) name, such as "mnt, pid, net"."""
    return ", ".join(name for flag, name in NAMES.items() if flags & flag)


def fork_into(flags: int) -> tuple[int, int]:
    """Fork with namespaces of the child's own, one clone(2) instead of unshare and fork.

    Single-threaded callers only.

    Args:
        flags: NEW… flags, or 0 for a plain fork.

    Returns:
        (pid, pidfd) in the parent, pidfd being close-on-exec; (0, -1) in the child.
    """
    pidfd = ctypes.create_string_buffer(struct.pack("i", -1), 4)
    ctypes.pythonapi.PyOS_BeforeFork()
    try:
        pid = call("clone", flags | CLONE_PIDFD | _SIGCHLD, 0, pidfd, 0, 0)
    except OSError:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid, int(struct.unpack("i", pidfd.raw)[0])


def unshare(flags: int) -> None:
    """Leave the given namespaces for new ones."""
    call("unshare", flags, path=describe(flags))


def join(fd: int, kind: int = 0) -> None:
    """Enter the namespace that `fd` names."""
    call("setns", fd, kind)


def map_own_ids(uid: int, gid: int) -> None:
    """In a fresh user namespace: map the outer uid and gid to themselves, nothing else."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")


def forbid_user_namespaces() -> None:
    """In a user namespace of one's own: nobody in it makes another one."""
    _write("/proc/sys/user/max_user_namespaces", "0")


def id_map_namespace(uid_inside: int, uid_outside: int, gid_inside: int, gid_outside: int) -> int:
    """A user namespace that serves as the id map of a mount.

    Args:
        uid_inside: the owner as the file system stores it.
        uid_outside: the uid that sees and makes such files as its own.
        gid_inside: the group as the file system stores it.
        gid_outside: the gid that sees it as its own.

    Returns:
        Its fd, the caller's.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = fork_into(NEWUSER)
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    try:
        _write(f"/proc/{pid}/uid_map", f"{uid_inside} {uid_outside} 1")
        _write(f"/proc/{pid}/gid_map", f"{gid_inside} {gid_outside} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(write_end)
        os.close(read_end)
        os.close(pidfd)
        os.waitpid(pid, 0)


def raise_loopback() -> None:
    """Bring `lo` up in the caller's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("h", answer, 16)[0] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags))


def add_loopback_address(address: str, label: int) -> None:
    """Have `lo` of the caller's network namespace answer for one more address.

    Args:
        address: IPv4 or IPv6.
        label: a number of its own for each IPv4 address.
    """
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            # struct in6_ifreq: address, prefix length, index of the interface (lo's is 1).
            fcntl.ioctl(control, _SIOCSIFADDR, struct.pack("=16sIi", packed, 128, 1))
        return
    name = f"lo:{label}".encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.255")):
            packed = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, struct.pack("16s16s8x", name, packed))


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
