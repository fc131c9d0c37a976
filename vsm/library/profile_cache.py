"""Profiles that were read once and have not changed since, for programs that run a lot.

Reading a profile and what it extends costs more than a tenth of a run. What was read is taken
again while every file and folder that was looked at is as it was then, rights and owner included.
"""

import os
import time
from pathlib import Path
from typing import Final, NamedTuple

from vsm.configuration.profile import Profile, load_profile, profile_files
from vsm.paths import profile_search_path

_MOST: Final = 64
_SETTLED_NS: Final = 100_000_000  # a second change right after the first can have the same time

_Mark = tuple[int, ...] | None


class _Known(NamedTuple):
    """A profile and how the files that it was made from looked."""

    profile: Profile
    paths: tuple[Path, ...]
    marks: tuple[_Mark, ...]


_known: dict[tuple[str, tuple[Path, ...]], _Known] = {}


def load(name_or_path: str) -> Profile:
    """As `vsm.configuration.profile.load_profile`."""
    folders = profile_search_path()
    is_path = "/" in name_or_path or name_or_path.endswith(".toml")
    key = (os.path.abspath(name_or_path) if is_path else name_or_path), folders
    known = _known.get(key)
    if known is not None and known.marks == _marks(known.paths):
        return known.profile
    files = profile_files(name_or_path, folders)
    paths = tuple(dict.fromkeys([*files, *(file.parent for file in files), *folders]))
    marks = _marks(paths)
    profile = load_profile(name_or_path, search=folders)
    newest_ns = max((max(mark[-2:]) for mark in marks if mark), default=0)
    if time.time_ns() - newest_ns > _SETTLED_NS:
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = _Known(profile, paths, marks)
    return profile


def _marks(paths: tuple[Path, ...]) -> tuple[_Mark, ...]:
    return tuple(_mark(path) for path in paths)


def _mark(path: Path) -> _Mark:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mode,
        found.st_uid,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
