"""A worker's private directory, where there is no descriptor left to make or remove it with."""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsm.confinement import scratch


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_that_cannot_be_made_is_not_left(tmp_path: Path) -> None:
    path = tmp_path / "private"
    with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
        scratch.make(str(path), os.geteuid())
    assert not path.exists()


def test_one_in_which_nothing_began_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "private"
    scratch.make(str(path), os.geteuid())
    with no_descriptor_left():
        assert scratch.remove(str(path))
    assert not path.exists()


def test_a_link_in_its_place_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "private").symlink_to(other)
    assert scratch.remove(str(tmp_path / "private"))
    assert other.exists()
