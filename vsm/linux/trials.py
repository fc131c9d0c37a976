"""Trials: small functions that use one kernel mechanism for real and say whether it held.

Every function here changes the calling process, so `vsm.confinement.probe` runs each in a child
that ends right after. They raise OSError where the mechanism is refused. Any privilege. Constants
are from the uapi headers that their names come from.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from vsm.linux import prctl

NAMESPACES = {  # linux/sched.h
    "user": 0x1000_0000,
    "mount": 0x0002_0000,
    "pid": 0x2000_0000,
    "ipc": 0x0800_0000,
    "uts": 0x0400_0000,
    "network": 0x4000_0000,
    "cgroup": 0x0200_0000,
}
CLONE_INTO_CGROUP = 0x2_0000_0000
# asm/unistd.h; calls from 424 on have one number on every architecture
NR_SECCOMP, NR_PIVOT_ROOT, NR_GETPPID = {"aarch64": (277, 41, 173)}.get(
    platform.machine(), (317, 155, 110)
)
NR_OPEN_TREE, NR_MOVE_MOUNT, NR_FSOPEN, NR_FSCONFIG, NR_FSMOUNT = 428, 429, 430, 431, 432
NR_CLONE3, NR_MOUNT_SETATTR = 435, 442
NR_LANDLOCK_CREATE, NR_LANDLOCK_RESTRICT = 444, 446
# linux/mount.h
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH, AT_EMPTY_PATH, AT_RECURSIVE, AT_FDCWD = 4, 0x1000, 0x8000, -100
MOUNT_ATTR_RDONLY, MOUNT_ATTR_IDMAP = 0x1, 0x0010_0000
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
MS_PRIVATE, MS_REC, MNT_DETACH = 1 << 18, 1 << 14, 2
# linux/prctl.h, linux/seccomp.h, linux/landlock.h
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
LANDLOCK_VERSION, LANDLOCK_WRITE_FILE, LANDLOCK_SCOPES = 1, 2, 3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _syscall(name: str, number: int, *args: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _call(name, _libc.syscall(ctypes.c_long(number), *wide))


def unshare(*kinds: str) -> None:
    """Enter new namespaces; a new user namespace maps the caller's ids to themselves."""
    uid, gid = os.geteuid(), os.getegid()
    flags = sum(NAMESPACES[kind] for kind in kinds)
    _call("unshare " + "+".join(kinds), _libc.unshare(flags))
    if "user" in kinds:
        prctl.allow_dumps()  # as a worker does: else /proc/self belongs to root, and is refused
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None
    )
    _call(f"mount {kind or 'flags'} on {target}", result)


def mount_tmpfs(*user: str) -> None:
    """Mount in a mount namespace of our own."""
    unshare(*user, "mount")
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", 0)  # noqa: S108  # our own mount namespace


def mount_proc(*user: str) -> None:
    """Mount a fresh proc as pid 1 of a pid namespace of our own."""
    unshare(*user, "mount", "pid")
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    in_child(lambda: _mount("proc", "/proc", "proc", 0))


def build_root(*user: str) -> None:
    """Build a root through fds and pivot into it: the new mount interface, end to end."""
    unshare(*user, "mount")
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    configured = _syscall("fsopen", NR_FSOPEN, b"tmpfs", 1)
    _syscall("fsconfig", NR_FSCONFIG, configured, FSCONFIG_SET_STRING, b"size", b"65536", 0)
    _syscall("fsconfig", NR_FSCONFIG, configured, FSCONFIG_CMD_CREATE, None, None, 0)
    root = _syscall("fsmount", NR_FSMOUNT, configured, 1, 0)
    _move_mount(root, "/tmp")  # noqa: S108  # our own mount namespace
    os.fchdir(root)
    os.mkdir("usr")
    tree = _syscall(
        "open_tree",
        NR_OPEN_TREE,
        AT_FDCWD,
        b"/usr",
        OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE,
    )
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    _mount_setattr(tree, attributes, AT_EMPTY_PATH | AT_RECURSIVE)
    _move_mount(tree, "usr")
    _syscall("pivot_root", NR_PIVOT_ROOT, b".", b".")
    _call("umount2", _libc.umount2(b".", MNT_DETACH))
    os.chdir("/")
    if os.listdir("/") != ["usr"]:
        raise OSError(errno.EIO, "pivot_root: the old root is still visible")


def _move_mount(fd: int, target: str) -> None:
    args = (fd, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    _syscall("move_mount", NR_MOVE_MOUNT, *args)


def _mount_setattr(fd: int, attributes: bytes, flags: int) -> None:
    _syscall("mount_setattr", NR_MOUNT_SETATTR, fd, b"", flags, attributes, len(attributes))


def idmap_mount(path: str = "/") -> None:
    """Give a detached copy of a mount an id mapping; needs root over its file system."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_namespace_holder(tell)
    os.close(tell)
    try:
        if os.read(ready, 1) != b"R":
            raise OSError(errno.EPERM, "unshare user: refused")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 100000 65536", encoding="ascii")
        namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
        flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        tree = _syscall("open_tree", NR_OPEN_TREE, AT_FDCWD, path.encode(), flags)
        attributes = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, namespace)
        _mount_setattr(tree, attributes, AT_EMPTY_PATH)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _be_namespace_holder(tell: int) -> None:
    """Runs in the child; never returns."""
    try:
        _call("unshare user", _libc.unshare(NAMESPACES["user"]))
        os.write(tell, b"R")
        signal.pause()
    finally:
        os._exit(1)


def landlock_abi() -> int:
    """The ABI that the running kernel offers, proven by a rule that holds."""
    abi = _syscall("landlock_create_ruleset", NR_LANDLOCK_CREATE, None, 0, LANDLOCK_VERSION)
    _restrict(struct.pack("=Q", LANDLOCK_WRITE_FILE))
    try:
        os.close(os.open("/dev/null", os.O_WRONLY))
    except PermissionError:
        return abi
    raise OSError(errno.EIO, "landlock: a denied open succeeded")


def landlock_scopes() -> None:
    """Scopes: a signal to a process outside the domain is refused."""
    _restrict(struct.pack("=QQQ", 0, 0, LANDLOCK_SCOPES))
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return
    raise OSError(errno.EIO, "landlock: a signal left its scope")


def _restrict(attributes: bytes) -> None:
    _call("prctl", _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    args = (attributes, len(attributes), 0)
    ruleset = _syscall("landlock_create_ruleset", NR_LANDLOCK_CREATE, *args)
    _syscall("landlock_restrict_self", NR_LANDLOCK_RESTRICT, ruleset, 0)


def _set_filter(flags: int) -> int:
    """Install: getppid answers EPERM, all else is allowed."""
    # linux/filter.h: load nr; equal? skip to errno : allow
    instructions = (
        struct.pack("=HBBI", 0x20, 0, 0, 0)
        + struct.pack("=HBBI", 0x15, 0, 1, NR_GETPPID)
        + struct.pack("=HBBI", 0x06, 0, 0, 0x0005_0000 | errno.EPERM)
        + struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF_0000)
    )
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
    _call("prctl", _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    return _syscall("seccomp", NR_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, program)


def seccomp_filter() -> None:
    """A filter denies a call that works without it."""
    os.getppid()
    _set_filter(0)
    if _libc.syscall(ctypes.c_long(NR_GETPPID)) != -1:
        raise OSError(errno.EIO, "seccomp: a denied call succeeded")


def seccomp_notification() -> None:
    """A filter with a listener."""
    os.close(_set_filter(SECCOMP_FILTER_FLAG_NEW_LISTENER))


def pidfd() -> None:
    """A pidfd of ourselves."""
    os.close(os.pidfd_open(os.getpid()))


def clone3(cgroup: str | None = None) -> None:
    """Fork by clone3, into a v2 control group if one is given."""
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY) if cgroup else 0
    flags = CLONE_INTO_CGROUP if cgroup else 0
    args = struct.pack("=11Q", flags, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, folder)
    pid = _syscall("clone3", NR_CLONE3, args, len(args))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def map_subordinate_ids(uid_first: int, gid_first: int) -> None:
    """Map a subordinate range through the set-uid programs newuidmap and newgidmap."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_namespace_holder(tell)
    os.close(tell)
    try:
        if os.read(ready, 1) != b"R":
            raise OSError(errno.EPERM, "unshare user: refused")
        for program, own, first in (
            ("newuidmap", os.geteuid(), uid_first),
            ("newgidmap", os.getegid(), gid_first),
        ):
            ids = (str(n) for n in (pid, 0, own, 1, 1, first, 1))
            done = subprocess.run((program, *ids), capture_output=True, check=False, timeout=5)
            if done.returncode != 0:
                raise OSError(errno.EPERM, f"{program}: {done.stderr.decode(errors='replace')}")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def raise_hard_limit(kind: int) -> None:
    """Raise a hard resource limit by one; an unlimited one needs no raising."""
    soft, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(kind, (soft, hard + 1))


def listen_in_network(*user: str) -> None:
    """Listen on loopback's any-address in a network namespace of our own."""
    unshare(*user, "network")
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen(1)


def in_child(action: Callable[[], None]) -> None:
    """Fork once more, as the first process of a new pid namespace; raise what the child raised."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os.write(tell, b"\0")
        except OSError as error:
            os.write(tell, bytes([error.errno or errno.EIO]) + str(error.strerror).encode())
        finally:
            os._exit(0)
    os.close(tell)
    answer = os.read(told, 512)
    os.close(told)
    os.waitpid(pid, 0)
    if answer[:1] != b"\0":
        raise OSError(answer[0] if answer else errno.EIO, answer[1:].decode(errors="replace"))
