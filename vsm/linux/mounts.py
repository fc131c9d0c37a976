"""Mounts through file descriptors only: no call here resolves a path twice.

`open_tree`, `mount_setattr`, `fsopen`, `fsmount`, `move_mount`, `openat2`, `pivot_root`.
Needs CAP_SYS_ADMIN in the user namespace that owns the caller's mount namespace.
"""

import os
import struct
from collections.abc import Mapping

from vsm.linux.syscall import call

# include/uapi/linux/mount.h
READ_ONLY = 0x1
NO_SUID = 0x2
NO_DEV = 0x4
NO_EXEC = 0x8
_ID_MAP = 0x00100000
_OPEN_TREE_CLONE = 0x1
_FSMOUNT_CLOEXEC = 0x1
_FSOPEN_CLOEXEC = 0x1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_FROM_FD = 0x4
_MOVE_TO_FD = 0x40
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
# include/uapi/linux/fcntl.h, openat2.h
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
AT_FDCWD = -100
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08


_OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve
_MOUNT_ATTRIBUTES = struct.Struct("=QQQQ")  # set, clear, propagation, user namespace


def open_path(path: str, *, at: int = AT_FDCWD, resolve: int = RESOLVE_NO_SYMLINKS) -> int:
    """An O_PATH fd of a path that holds no symbolic link (a swapped one is ELOOP)."""
    how = _OPEN_HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, resolve | RESOLVE_NO_MAGICLINKS)
    return call("openat2", at, os.fsencode(path), how, _OPEN_HOW.size, path=path)


def clone_tree(fd: int, *, recursive: bool = True, path: str = "") -> int:
    """A detached copy of the mount tree at `fd`, as bind does."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return call("open_tree", fd, b"", flags, path=path)


def set_attributes(
    fd: int,
    attributes: int,
    *,
    recursive: bool = True,
    id_map_fd: int | None = None,
    path: str = "",
) -> None:
    """Add attributes, and an id map, to a mount (tree)."""
    id_map = 0 if id_map_fd is None else _ID_MAP
    change = _MOUNT_ATTRIBUTES.pack(attributes | id_map, 0, 0, id_map_fd or 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    call("mount_setattr", fd, b"", flags, change, _MOUNT_ATTRIBUTES.size, path=path)


def make_private() -> None:
    """No mount of this namespace reaches another one, or is reached."""
    change = _MOUNT_ATTRIBUTES.pack(0, 0, _MS_PRIVATE, 0)
    call("mount_setattr", AT_FDCWD, b"/", _AT_RECURSIVE, change, len(change), path="/")


def new_filesystem(kind: str, attributes: int, options: Mapping[str, str] | None = None) -> int:
    """A detached mount of a new file system.

    Args:
        kind: "tmpfs" or "proc".
        attributes: READ_ONLY, NO_SUID, …
        options: mount options; an empty value is a flag.
    """
    context = call("fsopen", kind.encode(), _FSOPEN_CLOEXEC, path=kind)
    try:
        for key, value in (options or {}).items():
            command = _FSCONFIG_SET_STRING if value else _FSCONFIG_SET_FLAG
            text = value.encode() if value else None
            call("fsconfig", context, command, key.encode(), text, 0, path=f"{kind} {key}={value}")
        call("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0, path=kind)
        return call("fsmount", context, _FSMOUNT_CLOEXEC, attributes, path=kind)
    finally:
        os.close(context)


def attach(tree_fd: int, target_fd: int, *, path: str = "") -> None:
    """Mount a detached tree on what `target_fd` names."""
    flags = _MOVE_FROM_FD | _MOVE_TO_FD
    call("move_mount", tree_fd, b"", target_fd, b"", flags, path=path)


def attach_over_root(tree_fd: int) -> None:
    """Mount a detached tree over "/"; path look-ups still see the old root below it."""
    call("move_mount", tree_fd, b"", AT_FDCWD, b"/", _MOVE_FROM_FD, path="/")


def enter_root(root_fd: int) -> None:
    """Make the mount at `root_fd` the root, and let go of everything of the old one."""
    os.fchdir(root_fd)
    call("pivot_root", b".", b".", path="new root")
    # Both roots are stacked at "/" now and "." is the old one.
    call("umount2", b".", _MNT_DETACH, path="old root")
    os.chdir("/")
