"""What a killed supervisor leaves: files of its runtime directory, and control groups.

Runs in the launcher, which outlives the supervisor by a moment, with the supervisor's privilege;
standard library only. Only exact names that the supervisor told while it lived are removed, and
no link is followed. The launcher holds a duplicate of the runtime directory's lock meanwhile, so
no other vsm has begun there; the groups' names carry the supervisor's pid and start time.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from vsm.linux import pidfd

FILES: Final = "files"
GROUPS: Final = "groups"
_LOCK: Final = "lock"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GROUPS_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.005


class Remains:
    """What is to be removed once the supervisor is dead; owns its descriptors."""

    def __init__(self) -> None:
        self._directory = self._lock = -1
        self._names: tuple[str, ...] = ()
        self._folders: tuple[str, ...] = ()

    def note(self, order: dict[str, Any], fds: Sequence[int]) -> None:
        """Take note of what the supervisor told.

        Args:
            order: "files" with `names`, "groups" with `folders`.
            fds: for files the directory and the lock; stay the caller's.
        """
        if order["kind"] == GROUPS:
            self._folders = tuple(order["folders"])
        elif len(fds) == 2:  # noqa: PLR2004 - directory and lock
            self._directory, self._lock = (os.dup(fd) for fd in fds)
            self._names = tuple(order["names"])

    def remove(self) -> None:
        """Remove it all; the lock is given up by the end of this process."""
        if self._is_locked():
            for name in self._names:
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._directory)
        end_s = time.monotonic() + _GROUPS_TIMEOUT_S
        left = self._folders
        while left := tuple(folder for folder in left if not _remove_group(folder)):
            if time.monotonic() > end_s:
                return
            time.sleep(_RETRY_S)  # nothing tells when the kernel lets go of a group

    def _is_locked(self) -> bool:
        """The lock that we hold is the one in the directory; a later vsm makes its own."""
        try:
            there = os.stat(_LOCK, dir_fd=self._directory, follow_symlinks=False)
            return os.path.samestat(there, os.fstat(self._lock))
        except OSError:
            return False


def _remove_group(folder: str) -> bool:
    """Remove a group and all below it; False while the kernel holds one."""
    parent, _, name = folder.rpartition("/")
    try:
        fd = os.open(parent, _FOLDER)
    except OSError:
        return True  # a hierarchy that is not ours to use
    try:
        return _remove_entry(fd, name)
    finally:
        os.close(fd)


def _remove_entry(parent: int, name: str) -> bool:
    try:
        fd = os.open(name, _FOLDER, dir_fd=parent)
    except OSError:
        return True
    try:
        _kill_members(fd)
        for entry in os.listdir(fd):
            if _is_folder(fd, entry):
                _remove_entry(fd, entry)
    finally:
        os.close(fd)
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError:
        return False
    return True


def _is_folder(parent: int, name: str) -> bool:
    with suppress(OSError):
        os.close(os.open(name, _FOLDER, dir_fd=parent))
        return True
    return False


def _kill_members(group: int) -> None:
    """The systems die with the template, which dies with the supervisor: this is to be sure.

    A supervisor that died while it killed a group may have left it frozen, and in version 1 not
    even SIGKILL ends what is frozen.
    """
    _thaw(group)
    with suppress(OSError):
        pidfd.kill_members(_members(group), lambda: _members(group))


def _members(group: int) -> set[int]:
    fd = os.open("cgroup.procs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=group)
    with os.fdopen(fd, encoding="ascii") as file:
        return {int(word) for word in file.read().split()} - {0}  # 0: of another pid namespace


def _thaw(group: int) -> None:
    with suppress(OSError):
        fd = os.open("freezer.state", os.O_WRONLY | os.O_CLOEXEC, dir_fd=group)
        try:
            os.write(fd, b"THAWED")
        finally:
            os.close(fd)
