import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration import profile as profiles
from vsm.configuration.profile import (
    LAYERS,
    Layer,
    Profile,
    extend_profile,
    load_profile,
    profile_names,
)
from vsm.errors import ConfigurationError
from vsm.paths import shipped_profiles

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str, name: str = "mine") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(content)
        return path

    return write


def load(path: Path) -> Profile:
    return load_profile(path.stem, search=(path.parent,))


def refusal(path: Path) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    return caught.value


def shipped() -> list[str]:
    return profile_names((shipped_profiles(),))


def test_an_empty_profile_is_the_strictest(write: Write) -> None:
    profile = load(write(""))
    assert profile.tier == "namespaced"
    assert not profile.may_lack
    assert profile.network.mode == "none"
    assert profile.files.system == profile.syscalls.allow == ()
    assert profile.limits.memory_bytes == 512 * 2**20
    assert profile.limits.swap_bytes == 0


def test_sizes_and_the_word_unlimited_are_understood(write: Write) -> None:
    limits = '[limits]\nmemory = "1G"\nprocesses = "unlimited"\nfile_size = "unlimited"\ncpu = 2'
    profile = load(write(limits))
    assert profile.limits.memory_bytes == 2**30
    assert profile.limits.processes is None
    assert profile.limits.file_size_bytes is None
    assert profile.limits.cpu_cores == 2.0


def test_tables_merge_lists_add_up_and_the_rest_replaces(write: Write) -> None:
    write('tier = "landlocked"\n[files]\nread = ["/a", "/b"]\ntmp = "1M"', "parent")
    child = write('extends = "parent"\n[files]\nread = ["-/a", "/c"]\nproc = true')
    profile = load(child)
    assert profile.files.read == ("/b", "/c")
    assert profile.files.tmp_bytes == 2**20
    assert profile.files.proc
    assert profile.tier == "landlocked"


def test_taking_away_what_is_not_inherited_is_refused(write: Write) -> None:
    write('may_lack = ["memory"]', "parent")
    error = refusal(write('extends = "parent"\nmay_lack = ["-cpu"]'))
    assert "may_lack" in error.where
    assert "'-cpu'" in error.what


def test_a_chain_that_comes_back_is_named(write: Write) -> None:
    write('extends = "b"', "a")
    write('extends = "c"', "b")
    error = refusal(write('extends = "a"', "c"))
    assert [Path(step).stem for step in error.what.split(": ")[1].split(" → ")] == list("cabc")


def test_a_profile_that_extends_itself_is_refused(write: Write) -> None:
    assert "extends itself" in refusal(write('extends = "mine"')).what


def test_a_missing_parent_names_file_and_nearest_profile(write: Write) -> None:
    write("", "parent")
    error = refusal(write('extends = "parnt"'))
    assert error.where.endswith("mine.toml: extends")
    assert error.what.startswith("'parnt': not found in ")
    assert "'parent'" in error.remedy


@pytest.mark.parametrize("mode", ["none", "host"])
def test_hosts_that_no_proxy_would_read_are_refused(write: Write, mode: str) -> None:
    write(f'[network]\nmode = "{mode}"', "parent")
    named = '[network]\nallow = ["a.example:443"]\n'
    path = write(f'extends = "parent"\n{named}')
    error = refusal(path)
    assert error.where == f"{path}: network.allow"
    assert error.what == f"'a.example:443' is allowed, but network.mode is \"{mode}\""
    with pytest.raises(ConfigurationError, match=r"network\.allow"):
        extend_profile(load_profile("parent", search=(path.parent,)),
                       {"network": {"allow": ["a.example:443"]}}, "x")  # fmt: skip
    assert load(write(f'extends = "parent"\n{named}mode = "proxy"')).network.mode == "proxy"


def test_a_profile_may_close_the_network_that_it_inherits_hosts_for(write: Write) -> None:
    write('[network]\nmode = "proxy"\nallow = ["a.example:443"]', "parent")
    assert load(write('extends = "parent"\n[network]\nmode = "none"')).network.mode == "none"


def test_extends_may_be_a_path_beside_the_file(write: Write) -> None:
    write('description = "p"', "parent")
    assert load(write('extends = "./parent.toml"')).description == "p"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('[files]\nread = ["relative"]', "files.read"),
        ('[files]\nwrite = ["/a/../b"]', "files.write"),
        ('[files]\nread = ["/"]', "files.read"),
        ('[files]\nread = ["//"]', "files.read"),
        ('[files]\nread = ["//proc"]', "files.read"),
        ('[files]\nread = ["/./"]', "files.read"),
        ('[files]\nread = ["/proc/1"]', "files.read"),
        ('[files]\nwrite = ["/sys"]', "files.write"),
        ('[files]\nsystem = ["/dev/sda"]', "files.system"),
        ('[files]\ndevices = ["/etc/shadow"]', "files.devices"),
        ('[files]\ndevices = ["/dev"]', "files.devices"),
        ('[files]\ntmp = "many"', "files.tmp"),
        ("[limits]\nmemory = -1", "limits.memory"),
        ("[limits]\nmemory = true", "limits.memory"),
        ("[limits]\nprocesses = 0", "limits.processes"),
        ("[limits]\ncpu = 0", "limits.cpu"),
        ("[limits]\ncpu = nan", "limits.cpu"),
        ("[limits]\ncpu = inf", "limits.cpu"),
        ('[limits]\nopen_files = "many"', "limits.open_files"),
        ('[syscalls]\nallow = ["raed"]', "syscalls.allow"),
        ('[syscalls]\ndeny = ["@nonsense"]', "syscalls.deny"),
        ('may_lack = ["everything"]', "may_lack"),
        ('tier = "none"', "tier"),
        ("[environment]\nA = 1", "environment.A"),
        ('[environment]\n"A B" = "1"', "environment"),
    ],
)
def test_a_wrong_value_names_its_key(write: Write, content: str, key: str) -> None:
    path = write(content)
    assert refusal(path).where == f"{path}: {key}"


def test_an_error_in_a_parent_names_the_parents_file(write: Write) -> None:
    parent = write("[limits]\nmemori = 1", "parent")
    error = refusal(write('extends = "parent"'))
    assert error.where == f"{parent}: limits"
    assert "'memory'" in error.remedy


def test_an_unknown_name_is_answered_with_the_nearest(write: Write) -> None:
    path = write("")
    with pytest.raises(ConfigurationError, match="Did you mean 'mine'"):
        load_profile("mines", search=(path.parent,))


@pytest.mark.parametrize("name", ["../mine.toml", "", "a b", "x" * 100, "/nonexistent", "a\0b"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        load_profile(name, search=(tmp_path,))


def test_the_first_folder_wins(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.toml").write_text(f'description = "{name}"')
    search = (tmp_path / "first", tmp_path / "second")
    assert load_profile("p", search=search).description == "first"


def test_a_profile_that_everybody_may_write_is_refused(write: Write) -> None:
    path = write("")
    path.chmod(0o666)
    assert "everybody may write it" in refusal(path).what


def test_a_profile_in_a_folder_that_everybody_may_write_is_refused(write: Write) -> None:
    path = write("")
    path.parent.chmod(0o777)
    assert refusal(path).where == str(path.parent)
    path.parent.chmod(0o777 | stat.S_ISVTX)
    load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_profile_of_another_user_is_refused(write: Write) -> None:
    path = write("")
    os.chown(path, 65534, 65534)
    assert "uid 65534" in refusal(path).what


def test_a_writable_parent_profile_is_refused_too(write: Write) -> None:
    write("", "parent").chmod(0o666)
    assert "everybody" in refusal(write('extends = "parent"')).what


def test_the_layers_of_the_file_format_are_the_layers() -> None:
    assert get_args(Layer) == LAYERS


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_profile_loads_and_says_what_it_is(name: str) -> None:
    profile = load_profile(name, search=(shipped_profiles(),))
    assert profile.description


def test_the_shipped_profiles_are_the_documented_ones() -> None:
    systems = {f"system{number}" for number in range(1, 6)}
    servers = {"integration", "python-server", "node-server", "networked", "remote"}
    assert (
        set(shipped()) == {"base", "system", "journal", "egress", "installer"} | systems | servers
    )


def test_the_strict_default_has_no_network_and_bounds_everything() -> None:
    profile = load_profile("integration", search=(shipped_profiles(),))
    limits = profile.limits
    assert profile.network.mode == "none"
    assert not profile.syscalls.unix_sockets
    assert limits.memory_bytes == 512 * 2**20
    assert limits.cpu_cores == 0.5
    assert limits.processes == 64
    assert not {"landlock", "seccomp", "privileges", "network"} & profile.may_lack


@pytest.mark.parametrize("number", range(1, 6))
def test_a_system_confines_itself_and_may_not_lack_its_fences(number: int) -> None:
    profile = load_profile(f"system{number}", search=(shipped_profiles(),))
    assert profile.confine == "self"
    assert profile.tier == "landlocked"
    assert not profile.files.write
    assert not {"landlock", "seccomp", "privileges", "network"} & profile.may_lack


values = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(
            ["unlimited", "1M", "base", "@aio", "/x", "//", "/proc/.", "landlocked", "-"]
        ),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
keys = st.sampled_from(
    [
        *profiles.ProfileDocument.__struct_fields__,
        *profiles.FilesDocument.__struct_fields__,
        *profiles.LimitsDocument.__struct_fields__,
        *profiles.SyscallsDocument.__struct_fields__,
    ]
)


@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=4), max_size=5))
def test_any_table_is_a_profile_or_a_configuration_error(table: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_text("")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(profiles, "read_toml", lambda _: table)
            with contextlib.suppress(ConfigurationError):
                assert isinstance(load(path), Profile)
