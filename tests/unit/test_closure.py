"""What a command needs is found, and nothing more than that."""

import os
import shutil
import struct
import sys
from pathlib import Path

import pytest

from vsm.confinement.closure import closure
from vsm.core.elf import parse_linkage
from vsm.errors import VsmError


def script(path: Path, text: str, *, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment over an installation beside it, through a symlinked interpreter."""
    base = tmp_path / "opt" / "python-3.11.9"
    (base / "lib" / "python3.11").mkdir(parents=True)
    (base / "bin").mkdir()
    shutil.copy("/bin/true", base / "bin" / "python3.11")
    (tmp_path / "opt" / "python-3.11").symlink_to(base)
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python3").symlink_to(tmp_path / "opt" / "python-3.11" / "bin" / "python3.11")
    (venv / "bin" / "python").symlink_to("python3")
    (venv / "pyvenv.cfg").write_text(f"home = {tmp_path}/opt/python-3.11/bin\n")
    return venv


def test_virtual_environment_brings_its_installation_by_every_name(venv: Path) -> None:
    found = closure([f"{venv}/bin/python", "-m", "server"], env={})
    opt = venv.parent / "opt"
    assert found.executable == f"{venv}/bin/python"
    assert set(found.read) == {str(venv), str(opt / "python-3.11"), str(opt / "python-3.11.9")}
    assert all(item.reason for item in found.paths)


def test_script_of_a_virtual_environment_brings_the_environment(venv: Path) -> None:
    entry = script(venv / "bin" / "server", f"#!{venv}/bin/python3\nprint()\n")
    assert str(venv) in closure([str(entry)], env={}).read


def test_long_interpreter_lines_of_pip_are_followed(venv: Path) -> None:
    text = f"#!/bin/sh\n'''exec' \"{venv}/bin/python3\" \"$0\" \"$@\"\n' '''\nprint()\n"
    entry = script(venv / "elsewhere", text)
    assert str(venv.parent / "opt" / "python-3.11.9") in closure([str(entry)], env={}).read


def test_environment_of_a_missing_installation_is_an_error(venv: Path) -> None:
    (venv / "pyvenv.cfg").write_text("home = /nowhere/bin\n")
    with pytest.raises(VsmError, match=r"pyvenv\.cfg: home = /nowhere/bin is no folder"):
        closure([f"{venv}/bin/python"], env={})


def test_plain_script_brings_only_itself(tmp_path: Path) -> None:
    file = script(tmp_path / "deep" / "server.py", "pass\n", mode=0o644)
    assert closure(["/usr/bin/python3", "-u", str(file)], env={}).read == (str(file),)


def test_script_in_a_package_brings_the_package(tmp_path: Path) -> None:
    file = script(tmp_path / "app" / "src" / "server.py", "pass\n", mode=0o644)
    (tmp_path / "app" / "pyproject.toml").touch()
    assert closure(["/usr/bin/python3", str(file)], env={}).read == (str(tmp_path / "app"),)


def test_relative_script_is_looked_up_in_the_working_directory(tmp_path: Path) -> None:
    file = script(tmp_path / "server.py", "pass\n", mode=0o644)
    found = closure(["/usr/bin/python3", "-W", "error", "server.py"], env={}, cwd=str(tmp_path))
    assert found.read == (str(file),)


@pytest.mark.parametrize("words", [("-c", "pass"), ("-m", "server.py"), ("-",), ()])
def test_options_that_take_no_script_bring_none(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert closure(["/usr/bin/python3", *words], env={}, cwd=str(tmp_path)).read == ()


def test_node_package_brings_the_outermost_node_modules(tmp_path: Path) -> None:
    modules = tmp_path / "x" / "node_modules"
    entry = script(modules / "@a" / "b" / "dist" / "index.js", "#!/usr/bin/env node\n")
    (modules / ".bin").mkdir()
    (modules / ".bin" / "server").symlink_to("../@a/b/dist/index.js")
    node = script(tmp_path / "tools" / "node", "#!/bin/sh\n")
    found = closure([f"{modules}/.bin/server"], env={"PATH": str(node.parent)})
    assert set(found.read) == {str(modules), str(node)}
    assert closure(["/bin/sh", str(entry)], env={}).read == ()


def test_home_folder_is_never_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "people" / "ann"
    file = script(home / "server.py", "pass\n", mode=0o644)
    (home / "pyproject.toml").touch()
    monkeypatch.setenv("HOME", str(home))
    assert closure(["/usr/bin/python3", str(file)], env={}).read == (str(file),)
    with pytest.raises(VsmError, match="far more than the command"):
        closure(["/usr/bin/python3"], env={"PYTHONPATH": str(home.parent)})


def test_interpreter_whose_prefix_is_a_home_brings_its_library_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "ann"
    (home / "lib" / "python3.11").mkdir(parents=True)
    (home / "bin").mkdir()
    shutil.copy("/bin/true", home / "bin" / "python3")
    monkeypatch.setenv("HOME", str(home))
    read = closure([f"{home}/bin/python3"], env={}).read
    assert set(read) == {f"{home}/bin/python3", f"{home}/lib/python3.11"}


def test_libraries_beside_a_binary_are_found(tmp_path: Path) -> None:
    real = Path(sys.executable).resolve()
    found = parse_linkage(lambda offset, size: real.read_bytes()[offset : offset + size])
    assert found is not None
    assert any(name.startswith("libc.so") for name in found.needed)
    assert found.loader.startswith("/lib")
    library = tmp_path / "libs" / "libc.so.6"
    library.parent.mkdir()
    library.write_bytes(b"")
    environment = {"LD_LIBRARY_PATH": str(library.parent)}
    shutil.copy("/bin/true", tmp_path / "tool")
    assert str(library.parent) in closure([f"{tmp_path}/tool"], env=environment).read


@pytest.mark.parametrize(
    "raw", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 200, os.urandom(300), b"MZ" * 60]
)
def test_no_elf_file_and_a_broken_one_have_no_linkage(raw: bytes) -> None:
    assert parse_linkage(lambda offset, size: raw[offset : offset + size]) is None


def test_endless_elf_table_is_bounded() -> None:
    head = bytearray(b"\x7fELF\x02\x01" + bytes(58))
    struct.pack_into("<Q", head, 32, 0)
    struct.pack_into("<HH", head, 54, 1, 0xFFFF)
    assert parse_linkage(lambda offset, size: bytes(head)[offset : offset + size]) is None


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        ([], "is empty"),
        (["no-such-program"], "no executable 'no-such-program' in PATH"),
        (["/no/such/file"], "No such file"),
        (["/etc/passwd"], "is not executable"),
        (["/usr"], "is not a file"),
        (["/usr/bin/python3", "/no/such.py"], "the script /no/such.py"),
    ],
)
def test_what_is_missing_is_named(argv: list[str], what: str) -> None:
    with pytest.raises(VsmError, match=what) as caught:
        closure(argv, env={})
    assert caught.value.remedy


def test_missing_interpreter_of_a_script_is_named(tmp_path: Path) -> None:
    entry = script(tmp_path / "server", "#!/no/such/python\n")
    with pytest.raises(VsmError, match="its interpreter is missing"):
        closure([str(entry)], env={})


def test_scripts_that_name_each_other_end(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    script(one, f"#!{two}\n")
    script(two, f"#!{one}\n")
    with pytest.raises(VsmError, match="nested"):
        closure([str(one)], env={})
