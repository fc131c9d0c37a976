"""How much a worker's private directories hold: bytes and entries, measured in slices.

Runs in the supervisor. The directories are the worker's, and it may change them under the look:
nothing here follows a link, everything is opened relative to the folder that was just read, and
neither depth nor number is trusted. It sees what has a name, and what an open descriptor keeps
of files without one; what only a mapping keeps it does not see.
"""

import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

MOST_DEPTH: Final = 64
_BATCH: Final = 200
_MOST_LINKED: Final = 100_000
_BLOCK_BYTES: Final = 512  # of st_blocks, whatever the file system's own
_CLOSED: Final = "a folder that is closed to its owner"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Use(NamedTuple):
    """What was found so far.

    Args:
        size_bytes: on the disk, so that holes of sparse files do not count.
        entries: files and folders.
        unseen: why something could not be looked at, "" for nothing.
    """

    size_bytes: int = 0
    entries: int = 0
    unseen: str = ""


class Room(NamedTuple):
    """What is free on the file systems of some folders."""

    size_bytes: int = 0
    entries: int = 0


def room(folders: Iterable[str]) -> Room:
    """Ask each file system; a cheap sign that something has grown there."""
    size_bytes = entries = 0
    for folder in folders:
        with suppress(OSError):
            found = os.statvfs(folder)
            size_bytes += found.f_bfree * found.f_frsize
            entries += found.f_ffree
    return Room(size_bytes, entries)


def at_most(last: Use, before: Room, now: Room) -> Use:
    """What it can have grown to since `last`, if nobody freed anything meanwhile."""
    grown_bytes = max(0, before.size_bytes - now.size_bytes)
    grown_entries = max(0, before.entries - now.entries)
    return Use(last.size_bytes + grown_bytes, last.entries + grown_entries, last.unseen)


class _Sum:
    """Adds up; a file with several names counts once."""

    def __init__(self) -> None:
        self.size_bytes = self.entries = 0
        self.unseen = ""
        self._linked: set[tuple[int, int]] = set()

    def add(self, status: os.stat_result) -> None:
        if status.st_nlink != 1 and not stat.S_ISDIR(status.st_mode):
            name = (status.st_dev, status.st_ino)
            if name in self._linked:
                self.entries += bool(status.st_nlink)
                return
            if len(self._linked) < _MOST_LINKED:
                self._linked.add(name)
        self.entries += 1
        self.size_bytes += status.st_blocks * _BLOCK_BYTES

    def use(self) -> Use:
        return Use(self.size_bytes, self.entries, self.unseen)


def measure(folders: Iterable[str], pids: Iterable[int] = ()) -> Generator[Use]:
    """Look through `folders`, and through the descriptors of `pids` for files without a name.

    Yields:
        What was found so far, after every few hundred entries; the last one is the whole.
    """
    found, devices = _Sum(), set[int]()
    for folder in folders:
        with suppress(FileNotFoundError):
            devices.add(os.lstat(folder).st_dev)
        yield from _measure_tree(folder, found)
    for pid in pids:
        _measure_removed(pid, devices, found)
        yield found.use()
    yield found.use()


def _measure_tree(top: str, found: _Sum) -> Iterator[Use]:
    """Depth first with at most MOST_DEPTH open folders."""
    stack: list[tuple[int, Iterator[os.DirEntry[str]]]] = []
    try:
        _enter(top, None, stack, found)
        while stack:
            folder, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(folder)
                stack.pop()
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it was removed meanwhile
                continue
            except PermissionError:  # the folder can be read, but not searched
                found.unseen = _CLOSED
                continue
            found.add(status)
            if stat.S_ISDIR(status.st_mode):
                _enter(entry.name, folder, stack, found)
            if found.entries % _BATCH == 0:
                yield found.use()
    finally:
        for folder, _ in stack:
            os.close(folder)


def _enter(
    name: str,
    parent: int | None,
    stack: list[tuple[int, Iterator[os.DirEntry[str]]]],
    found: _Sum,
) -> None:
    if len(stack) >= MOST_DEPTH:
        found.unseen = f"folders deeper than {MOST_DEPTH}"
        return
    try:
        folder = os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        found.unseen = _CLOSED
        return
    except OSError:  # it is gone, or something else by now
        return
    stack.append((folder, os.scandir(folder)))


def _measure_removed(pid: int, devices: set[int], found: _Sum) -> None:
    """Files that have no name any more, or never had one, and are open."""
    with suppress(OSError):  # it ended
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                status = path.stat()
                if _is_removed(status) and status.st_dev in devices:
                    found.add(status)


def _is_removed(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and not status.st_nlink
