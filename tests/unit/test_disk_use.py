"""What a folder holds, whatever whoever owns it does to it."""

import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration.profile import Limits, LimitsDocument, compile_limits
from vsm.confinement.disk_use import MOST_DEPTH, Room, Use, at_most, measure, room
from vsm.governance.detection import too_much

MIB = 2**20


def whole(*folders: Path, pids: tuple[int, ...] = ()) -> Use:
    *_, last = measure(map(str, folders), pids)
    return last


def limits(**changes: int | None) -> Limits:
    return msgspec.structs.replace(compile_limits(LimitsDocument(), "test"), **changes)


def test_files_and_folders_are_counted_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * MIB)
    inside = tmp_path / "inside"
    (inside / "a/b").mkdir(parents=True)
    (inside / "a/b/file").write_bytes(b"x" * MIB)
    (inside / "link").symlink_to(outside)
    use = whole(inside)
    assert use.entries == 4
    assert MIB <= use.size_bytes < MIB + 65536
    assert not use.unseen


def test_a_file_with_two_names_is_on_the_disk_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * MIB)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    use = whole(tmp_path)
    assert use.entries == 2
    assert use.size_bytes < 2 * MIB


def test_holes_do_not_count(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert whole(tmp_path).size_bytes < MIB


def test_what_was_removed_counts_while_it_is_open(tmp_path: Path) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(b"x" * MIB)
        file.flush()
        again = os.dup(file.fileno())
        assert whole(tmp_path).size_bytes < MIB
        use = whole(tmp_path, pids=(os.getpid(),))
        assert MIB <= use.size_bytes < 2 * MIB
        os.close(again)
    assert whole(tmp_path, pids=(os.getpid(),)).size_bytes < MIB


def test_depth_is_bounded_and_said(tmp_path: Path) -> None:
    tmp_path.joinpath(*("d" for _ in range(MOST_DEPTH + 3))).mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    use = whole(tmp_path)
    assert "deeper" in use.unseen
    assert "deeper" in too_much(use, limits())
    walk = measure([str(tmp_path)])
    next(walk)
    walk.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_folder_hides_nothing(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is closed to root")
    (tmp_path / "closed").mkdir(mode=0)
    assert "closed" in too_much(whole(tmp_path), limits())


def test_a_folder_that_can_be_read_but_not_searched_hides_nothing() -> None:
    own = os.geteuid() or 65534  # nothing is closed to root
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name) / "closed"
        folder.mkdir()
        (folder / "file").touch()
        if os.geteuid() == 0:
            os.chown(name, own, -1)
            os.chown(folder, own, -1)
        folder.chmod(0o400)
        before = os.geteuid()
        os.seteuid(own)
        try:
            assert "closed" in too_much(whole(Path(name)), limits())
        finally:
            os.seteuid(before)
            folder.chmod(0o700)


def test_a_folder_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    assert whole(tmp_path / "gone") == Use()


def test_many_files_come_in_slices(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / str(number)).touch()
    seen = list(measure([str(tmp_path)]))
    assert len(seen) >= 5
    assert seen[-1].entries == 1000


@pytest.mark.parametrize(
    ("use", "changes", "says"),
    [
        (Use(2 * MIB, 1), {"disk_bytes": MIB}, "2 MiB of 1 MiB"),
        (Use(0, 11), {"disk_files": 10}, "11 files of 10"),
        (Use(MIB, 10), {"disk_bytes": MIB, "disk_files": 10}, ""),
        (Use(1 << 50, 1 << 40, "holes"), {"disk_bytes": None, "disk_files": None}, ""),
    ],
)
def test_what_is_too_much(use: Use, changes: dict[str, int | None], says: str) -> None:
    reason = too_much(use, limits(**changes))
    assert (says in reason) if says else not reason


@given(st.integers(0, 2**45), st.integers(0, 2**30), st.integers(1, 2**40), st.integers(1, 2**20))
def test_nothing_within_its_limits_is_killed(
    size: int, entries: int, most_bytes: int, most_files: int
) -> None:
    reason = too_much(Use(size, entries), limits(disk_bytes=most_bytes, disk_files=most_files))
    assert bool(reason) == (size > most_bytes or entries > most_files)


def test_room_is_what_the_file_systems_of_all_folders_have(tmp_path: Path) -> None:
    one = room([str(tmp_path)])
    assert one.size_bytes > 0
    assert room([str(tmp_path), str(tmp_path), "/nowhere"]).size_bytes > 1.5 * one.size_bytes
    assert room(["/nowhere"]) == Room()


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40))
def test_what_may_have_grown_is_no_less_than_it_was(used: int, before: int, now: int) -> None:
    use = at_most(Use(used, used), Room(before, before), Room(now, now))
    assert use == Use(used + max(0, before - now), used + max(0, before - now))
