"""A tree that a confined step wrote is read, written, sealed and removed, whatever is in it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsm.errors import VsmError
from vsm.install.tree import MOST_DEPTH, freeze, read_file, remove, write_file


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    tree = tmp_path / "tree"
    tree.mkdir()
    yield tree
    remove(tree)  # pytest could not remove what is sealed


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def deep(tree: Path, depth: int, name: str = "d") -> None:
    """Folders in folders."""
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tree)
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
    finally:
        os.fchdir(before)
        os.close(before)


def test_what_is_written_replaces_a_link_and_follows_none(tree: Path, victim: Path) -> None:
    (tree / "file").symlink_to(victim)
    write_file(tree, "file", "new", 0o600)
    assert (victim.read_text(), (tree / "file").read_text()) == ("mine", "new")
    assert stat.S_IMODE((tree / "file").stat().st_mode) == 0o600
    (tree / "folder").symlink_to(victim.parent)
    with pytest.raises(VsmError, match="expected a folder"):
        write_file(tree, "folder/victim", "new")
    (tree / "taken").mkdir()
    with pytest.raises(VsmError, match="taken"):
        write_file(tree, "taken", "new")


def test_only_plain_files_are_read_and_no_more_than_asked_for(tree: Path, victim: Path) -> None:
    os.mkfifo(tree / "pipe")  # opening it would wait for ever
    (tree / "link").symlink_to(victim)
    (tree / "folder").symlink_to(victim.parent)
    (tree / "file").write_text("12345")
    assert read_file(tree, "file", 5) == b"12345"
    for path in ("pipe", "link", "folder/victim"):
        with pytest.raises(VsmError, match=r"is no file|expected a"):
            read_file(tree, path, 100)
    with pytest.raises(VsmError, match="more than 4 bytes"):
        read_file(tree, "file", 4)
    with pytest.raises(FileNotFoundError):
        read_file(tree, "nothing", 4)


def test_a_sealed_tree_has_no_link_out_but_the_known_ones(tree: Path, victim: Path) -> None:
    (tree / "bin").mkdir()
    (tree / "bin" / "python").symlink_to(victim)
    (tree / "inside").symlink_to("bin/../bin")
    (tree / "dangling").symlink_to("nothing")
    freeze(tree, frozenset({"bin/python"}))
    assert victim.stat().st_mode & 0o200  # the link's target is left alone
    assert [stat.S_IMODE(p.stat().st_mode) for p in (tree, tree / "bin")] == [0o555, 0o555]
    with pytest.raises(VsmError, match="leads out"):
        freeze(tree)


@pytest.mark.parametrize("depth", [MOST_DEPTH + 1, 1200])  # beyond what os.walk can recurse
def test_a_tree_too_deep_to_be_sealed_is_refused_and_removed(tree: Path, depth: int) -> None:
    deep(tree, depth)
    with pytest.raises(VsmError, match="deeper"):
        freeze(tree)
    remove(tree)
    tree.mkdir()
    deep(tree, 1500, "d" * 20)  # 30 kB of name: no path, and no recursion, reaches the end
    with pytest.raises(VsmError):
        freeze(tree)
    remove(tree)
    assert not tree.exists()


def test_what_took_the_place_of_a_folder_is_removed_too(tree: Path) -> None:
    os.mkfifo(tree / "tmp")
    remove(tree / "tmp")
    assert not os.path.lexists(tree / "tmp")


def test_whatever_is_in_a_tree_is_removed_and_nothing_beside_it(tree: Path, victim: Path) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("x")
    (tree / "a" / "link").symlink_to(victim.parent)
    os.mkfifo(tree / "a" / "pipe")
    for folder in (tree / "a" / "b", tree / "a", tree):
        folder.chmod(0)
    remove(tree)
    remove(tree)
    assert (tree.exists(), victim.read_text()) == (False, "mine")
