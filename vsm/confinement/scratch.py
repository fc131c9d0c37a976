"""The private directory of a worker without a root of its own: named, made, removed, swept.

It lies in /tmp, for the runtime directory is closed to the worker's uid. Whoever starts the
worker makes it and removes it: the launcher, or the command line, with their privilege; what a
killed one left is swept at the next start. Its content is the worker's, so nothing here follows
a link, goes as deep as the tree does, or trusts that the tree holds still. Standard library only.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, islice

from vsm.run_name import owner_is_dead, run_name

FOLDER = "/tmp"  # noqa: S108 - sticky, and every name in it is made anew
_NAME = re.compile(r"^(vsm-\d+-\d+-\d+)-[A-Za-z0-9_-]+-[0-9a-f]{16}$")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 3  # without a success: what is left is not ours to remove
_BATCH = 512  # entries read at a time: a folder may hold millions


def path_for(worker: str) -> str:
    """A new directory's path: it tells its owner, and nobody can guess it."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", worker)[:64]
    return f"{FOLDER}/{run_name()}-{plain}-{_fresh()}"


def make(path: str, uid: int) -> None:
    """Make it for `uid` alone, or raise; an existing name, whatever it is, is an error."""
    os.mkdir(path, 0o700)
    try:
        fd = os.open(path, _DIRECTORY)
        try:
            if uid != os.geteuid():
                os.fchown(fd, uid, uid)
            os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
    except OSError:
        os.rmdir(path)
        raise


def remove(path: str, *, budget_s: float = 30.0) -> bool:
    """Remove it with all that is in it; "" is none.

    Args:
        path: absolute; only its owner can rename it.
        budget_s: stop after this time.

    Returns:
        False if there is more to do than the budget allowed: call again.
    """
    if not path:
        return True
    with suppress(OSError):  # an empty one takes no descriptor, of which there may be none
        os.rmdir(path)
        return True
    parent, _, name = path.rpartition("/")
    with suppress(OSError):
        folder = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _remove_in(folder, name, time.monotonic() + budget_s, lambda _uid: True)
        except _LaterError:
            return False
        finally:
            os.close(folder)
    return True


def sweep(is_ours: Callable[[int], bool], *, budget_s: float = 5.0) -> None:
    """Remove what dead runs of vsm left, as far as the budget goes.

    Args:
        is_ours: whether a directory of that uid can be ours: others choose names like ours too.
        budget_s: the next start does the rest.
    """
    deadline = time.monotonic() + budget_s
    folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(folder):
            match = _NAME.match(name)
            if match and owner_is_dead(match.group(1)):
                with suppress(OSError, _LaterError):
                    _remove_in(folder, name, deadline, is_ours)
    finally:
        os.close(folder)


class _LaterError(Exception):
    """The time is up."""


def _remove_in(folder: int, name: str, deadline: float, is_ours: Callable[[int], bool]) -> None:
    top = os.open(name, _DIRECTORY, dir_fd=folder)
    try:
        if not is_ours(os.fstat(top).st_uid):
            return
        _empty(top, deadline)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=folder)


def _empty(top: int, deadline: float) -> None:
    """Remove every entry; whatever the depth, without recursion and with three descriptors.

    The folders of a folder are moved up to the top, so each is met there.
    """
    tag, numbers = _fresh(), count()
    fresh = (f"{tag}-{number}" for number in numbers)
    attempts = _ATTEMPTS
    while attempts and (batch := _entries(top)):
        attempts -= 1
        for name in batch:
            with suppress(OSError):
                _remove_entry(top, name, fresh, deadline)
                attempts = _ATTEMPTS


def _remove_entry(top: int, name: str, fresh: Iterator[str], deadline: float) -> None:
    if time.monotonic() > deadline:
        raise _LaterError
    try:
        os.unlink(name, dir_fd=top)
    except IsADirectoryError:
        _permit(top, name)
        folder = os.open(name, _DIRECTORY, dir_fd=top)
        try:
            while batch := _entries(folder):
                for entry in batch:
                    _lift(folder, entry, top, fresh)
                if time.monotonic() > deadline:
                    raise _LaterError from None
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=top)


def _lift(folder: int, name: str, top: int, fresh: Iterator[str]) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        _permit(folder, name)
        os.rename(name, next(fresh), src_dir_fd=folder, dst_dir_fd=top)


def _permit(folder: int, name: str) -> None:
    """Open a folder to its owner. Root needs no permission, and must not touch modes here."""
    if os.geteuid() == 0:
        return
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)  # fchmod takes no O_PATH fd
    finally:
        os.close(fd)


def _fresh() -> str:
    return os.urandom(8).hex()  # `secrets` would bring OpenSSL into the launcher and all its forks


def _entries(folder: int) -> list[str]:
    with os.scandir(folder) as found:
        return [entry.name for entry in islice(found, _BATCH)]
