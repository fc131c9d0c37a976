"""Landlock: what a process may do to files, TCP ports, abstract sockets and other processes.

Every right that the running ABI knows is handled, so what no rule allows is denied. What the
ABI lacks is reported by `missing`. Needs no privilege beside no_new_privs.
"""

import os
import stat
import struct
from collections.abc import Iterable

from vsm.linux.mounts import open_path
from vsm.linux.syscall import call

# include/uapi/linux/landlock.h
EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

READ = READ_FILE | READ_DIR
READ_EXECUTE = READ | EXECUTE
USE_DEVICE = READ_FILE | WRITE_FILE
CHANGE = (
    READ_EXECUTE
    | WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | REFER
    | TRUNCATE
)
_FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_BIND_TCP = 1 << 0
_CONNECT_TCP = 1 << 1
_SCOPE_ABSTRACT_SOCKET = 1 << 0
_SCOPE_SIGNAL = 1 << 1

_RULE_PATH_BENEATH = 1
_CREATE_RULESET_VERSION = 1 << 0
KNOWN_ABI = 7

# The file rights each ABI added.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
NETWORK_ABI = 4
SCOPE_ABI = 6
_LACKS = {2: "rename across folders", 3: "truncate", 4: "TCP", 5: "ioctl", 6: "scopes"}
_NEVER = ("chmod", "chown", "utime", "stat", "UDP", "unix sockets by path")


_RULESET = struct.Struct("=QQQ")  # handled file rights, network rights, scopes
_PATH_BENEATH = struct.Struct("=Qi")  # allowed rights, descriptor; packed


def abi() -> int:
    """The running kernel's Landlock ABI; 0 where Landlock is absent or disabled."""
    try:
        return call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def file_rights(version: int) -> int:
    """Every file right that an ABI knows."""
    return sum(rights for since, rights in _FILE_RIGHTS.items() if since <= version)


def missing(version: int) -> tuple[str, ...]:
    """What an ABI does not cover: the younger rights, and what no ABI covers yet."""
    return (*(what for since, what in _LACKS.items() if version < since), *_NEVER)


def restrict(rules: Iterable[tuple[str, int]], *, tcp: bool) -> int:
    """Confine the calling thread and its descendants, for good.

    Args:
        rules: (path, rights) pairs; the path, which holds no symbolic link, and all beneath it.
            One that is absent or out of reach is skipped, for a rule only ever allows.
        tcp: False denies bind and connect on every TCP port.

    Returns:
        The ABI in force.

    Raises:
        OSError: a path holds a link, or no_new_privs is not set.
    """
    version = abi()
    ruleset = make_ruleset(rules, version, tcp=tcp)
    try:
        call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def make_ruleset(rules: Iterable[tuple[str, int]], version: int, *, tcp: bool) -> int:
    """What `restrict` puts in force, for that ABI; its fd, the caller's."""
    handled = file_rights(version)
    network = _BIND_TCP | _CONNECT_TCP if version >= NETWORK_ABI and not tcp else 0
    scopes = _SCOPE_ABSTRACT_SOCKET | _SCOPE_SIGNAL if version >= SCOPE_ABI else 0
    attributes = _RULESET.pack(handled, network, scopes)
    size = 8 if version < NETWORK_ABI else 16 if version < SCOPE_ABI else 24
    ruleset = call("landlock_create_ruleset", attributes, size, 0)
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & handled)
    except OSError:
        os.close(ruleset)
        raise
    return ruleset


def restrict_signals() -> None:
    """Have the calling thread and its descendants signal nobody but each other."""
    ruleset = call("landlock_create_ruleset", _RULESET.pack(0, 0, _SCOPE_SIGNAL), _RULESET.size, 0)
    try:
        call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = open_path(path)  # no link is followed: the caller resolved them, and one may be new
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FILE_ONLY
        rule = _PATH_BENEATH.pack(rights, fd)
        call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, rule, 0, path=path)
    finally:
        os.close(fd)
