import platform
import re
from pathlib import Path

import pytest

from vsm.core.syscalls import ARCHITECTURES, group, groups, known, names, numbers, unknown

HEADERS = [
    Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    Path("/usr/include/asm/unistd_64.h"),
]


def test_the_table_agrees_with_the_headers_of_this_machine() -> None:
    header = next((path for path in HEADERS if path.exists()), None)
    if platform.machine() != "x86_64" or header is None:
        pytest.skip("no x86_64 kernel headers here")
    theirs = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE))
    ours = numbers("x86_64")
    assert theirs
    assert {name: ours.get(name) for name in theirs} == {n: int(v) for n, v in theirs.items()}


@pytest.mark.parametrize(
    ("arch", "name", "number"),
    [
        ("x86_64", "read", 0),
        ("x86_64", "clone3", 435),
        ("x86_64", "file_setattr", 469),
        ("aarch64", "read", 63),
        ("aarch64", "clone", 220),
        ("aarch64", "clone3", 435),
        ("aarch64", "newfstatat", 79),
    ],
)
def test_numbers_are_the_kernels(arch: str, name: str, number: int) -> None:
    assert numbers(arch)[name] == number
    assert names(arch)[number] == name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_number_has_two_names(arch: str) -> None:
    assert len(names(arch)) == len(numbers(arch))


def test_calls_since_5_1_have_one_number_everywhere() -> None:
    recent = [{n: v for n, v in numbers(arch).items() if v >= 424} for arch in ARCHITECTURES]
    assert recent[0] == recent[1]


@pytest.mark.parametrize("name", groups())
def test_a_group_holds_known_calls_only(name: str) -> None:
    assert group(name)
    assert group(name) <= known()


def test_groups_nest() -> None:
    assert group("@basic-io") | group("@network-io") < group("@system-service")
    assert not group("@system-service") & (group("@mount") | group("@module") | group("@reboot"))


def test_unknown_entries_are_found() -> None:
    assert unknown(["read", "@aio", "raed", "@oia"]) == ["raed", "@oia"]
