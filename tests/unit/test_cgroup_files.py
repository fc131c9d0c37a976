"""What is written into control groups for rates of io, and read back. No kernel is needed."""

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration.profile import LimitsDocument, compile_limits
from vsm.confinement import cgroup_files
from vsm.confinement.cgroup import CgroupFacts, Group, limits_of
from vsm.confinement.cgroup_files import (
    CgroupLimits,
    block_devices,
    hand_out,
    is_delegated,
    mount_points,
    own_folder,
    v1_rate,
    v1_writes,
    v2_rate,
    v2_writes,
)
from vsm.errors import ConfigurationError

rates = st.integers(min_value=1, max_value=2**50) | st.none()
DEVICES = ("8:0", "259:3")


@given(rates, rates)
def test_rates_are_written_for_every_disk_and_read_back(
    read: int | None, write: int | None
) -> None:
    limits = CgroupLimits(io_read_bytes_s=read, io_write_bytes_s=write)
    lines = [value for _, file, value in v2_writes(limits, DEVICES) if file == "io.max"]
    assert [line.split()[0] for line in lines] == list(DEVICES)
    # The kernel shows what has a limit, in this form.
    shown = "\n".join(f"{line} riops=max wiops=max" for line in lines)
    assert (v2_rate(shown, "rbps"), v2_rate(shown, "wbps")) == (read, write)


@given(rates)
def test_rates_of_version_1(read: int | None) -> None:
    limits = CgroupLimits(io_read_bytes_s=read)
    name = "blkio.throttle.read_bps_device"
    lines = [value for _, file, value in v1_writes(limits, DEVICES) if file == name]
    kept = [line for line in lines if line.split()[1] != "0"]  # the kernel forgets those
    assert len(lines) == len(DEVICES)
    assert v1_rate("\n".join(kept)) == read


def test_nothing_is_written_for_io_where_nobody_asks() -> None:
    assert not [one for one in v2_writes(CgroupLimits()) if one[0] == "io"]
    assert not [one for one in v1_writes(CgroupLimits()) if one[0] == "blkio"]


def test_disks_are_found_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    for name, device in (
        ("sda", "8:0"),
        ("loop0", "7:0"),
        ("nvme0n1", "259:0"),
        ("zram0", "252:0"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dev").write_text(f"{device}\n", encoding="ascii")
    assert block_devices(tmp_path) == ("259:0", "8:0")
    assert block_devices(tmp_path / "absent") == ()


def test_a_group_without_the_controller_for_io_still_hands_out_the_others(tmp_path: Path) -> None:
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("", encoding="ascii")
    hand_out(tmp_path, ["memory", "pids", "cpu"])
    assert control.read_text(encoding="ascii") == "+memory +pids +cpu"


def test_rates_move_in_a_group_that_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsm.confinement.cgroup.block_devices", lambda: ("8:0",))
    (tmp_path / "io.max").write_text("", encoding="ascii")
    folders = {"io": tmp_path}
    group = Group(CgroupFacts(kind="v2", io=True), "worker", folders)
    document = msgspec.convert({"io_read": "10M"}, LimitsDocument)
    limits = limits_of(compile_limits(document, "test"))
    group.set_limits(limits)
    assert group.limits().io_read_bytes_s == 10 << 20
    assert group.layers == ("io",)
    group.set_limits(limits_of(compile_limits(LimitsDocument(), "test")))
    assert group.limits().io_read_bytes_s is None


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        compile_limits(msgspec.convert({"io_write": 0}, LimitsDocument), "test")


@pytest.mark.parametrize(("mark", "expected"), [(b"1", True), (b"0", False), (None, False)])
def test_a_delegated_group_is_known_by_the_mark_of_systemd(
    tmp_path: Path, mark: bytes | None, expected: bool
) -> None:
    if mark is not None:
        try:
            os.setxattr(tmp_path, "user.delegate", mark)
        except OSError as error:  # tmpfs before 6.6
            pytest.skip(f"{tmp_path}: no attributes of users: {error.strerror}")
    assert is_delegated(tmp_path) is expected


@pytest.mark.parametrize("name", [b"\xff", "\u2028a".encode(), b"\x0b", b"\x1c\x85", b"a\\012-"])
def test_whatever_another_user_calls_his_mount_point_groups_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    theirs = b"43 42 0:5 / /home/x/" + name + b" rw,nosuid - fuse.x x rw,user_id=1000\n"
    ours = f"47 46 0:8 / {tmp_path} rw - cgroup2 cgroup2 rw\n".encode()
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(theirs + ours + theirs)
    monkeypatch.setattr(cgroup_files, "MOUNTS", mounts)
    assert list(mount_points()) == [str(tmp_path)]
    assert own_folder("cgroup2", "") == tmp_path
    assert own_folder("cgroup", "memory") is None
