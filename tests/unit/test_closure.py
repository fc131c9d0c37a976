"""What a command needs is found, and nothing more than that."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.confinement.closure import closure
from vsm.core.elf import parse_linkage
from vsm.core.restart import Worker, WorkerSpec
from vsm.errors import VsmError
from vsm.processes.launcher_link import failure
from vsm.supervision.running_worker import availability_of


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
    (base / "lib" / "python3.11" / "os.py").touch()
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


def test_folders_of_path_are_named_in_which_a_program_was_found(tmp_path: Path) -> None:
    """Else `#!/usr/bin/env node` finds no node inside, where a tool of versions keeps it."""
    versions = tmp_path / "versions" / "bin"
    versions.mkdir(parents=True)
    shutil.copy("/bin/true", versions / "node")
    entry = script(tmp_path / "server", "#!/usr/bin/env node\n")
    found = closure([str(entry)], env={"PATH": f"/usr/bin:{versions}"})
    assert found.folders == (str(versions),) or shutil.which("node", path="/usr/bin")
    assert closure([str(entry)], env={"PATH": f"{versions}:/usr/bin"}).folders == (str(versions),)
    assert closure(["node"], env={"PATH": str(versions)}).folders == (str(versions),)
    assert closure([f"{versions}/node"], env={}).folders == ()


def test_shims_are_refused_with_what_to_write_instead(tmp_path: Path) -> None:
    shims = tmp_path / "shims"
    script(shims / "python3", "#!/usr/bin/env bash\n")
    shutil.copy("/bin/true", tmp_path / "volta-shim")
    (tmp_path / "node").symlink_to("volta-shim")
    entry = script(tmp_path / "server", "#!/usr/bin/env python3\n")
    path = {"PATH": f"{shims}:{tmp_path}"}
    for command in ("python3", "node", f"{shims}/python3", str(entry)):
        with pytest.raises(VsmError, match="is a shim") as refused:
            closure([command], env=path)
        text = str(refused.value)
        assert "pyenv which" in text or "Install python3" in text
    shutil.copy("/bin/true", tmp_path / "python3")  # what PATH has beside it
    assert closure(["python3"], env=path).executable == f"{tmp_path}/python3"


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
    node = tmp_path / "tools" / "node"
    node.parent.mkdir()
    shutil.copy("/bin/true", node)
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
    (home / "lib" / "python3.11" / "os.py").touch()
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
    struct.pack_into("<H", head, 16, 3)
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


def test_what_is_said_of_a_name_that_is_no_text_can_be_told_on(tmp_path: Path) -> None:
    """Else a package would end the supervisor, which tells the systems why it does not start."""
    entry = script(tmp_path / "server", "")
    entry.write_bytes(b"#!/nowhere/\xff\xfe\n")
    with pytest.raises(VsmError, match="interpreter is missing") as told:
        closure([str(entry)], env={})
    for error in (told.value, failure("a-1", {"what": "execve /x/\udcff"})):
        worker = Worker(spec=WorkerSpec(name="a"), phase="quarantined", reason=str(error))
        assert "\\udcff" in availability_of(worker).reason


def test_scripts_that_name_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    one, two = tmp_path / "one", tmp_path / "two"
    script(one, f"#!{two}\n")
    script(two, f"#!{one}\n")
    with pytest.raises(VsmError, match="nested"):
        closure([str(one)], env={})


# -- hostile files ---------------------------------------------------------------------------------


def elf(loader: str = "", needed: tuple[str, ...] = (), search: str = "", kind: int = 3) -> bytes:
    """A file with the dynamic section that one likes; a static program may have any."""
    names = [search, *needed]
    starts = [1 + sum(len(name) + 1 for name in names[:at]) for at in range(len(names))]
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    interpreter = loader.encode() + b"\0"
    first = 64 + 3 * 56
    table = first + len(interpreter)
    rows = [(15, starts[0])] if search else []
    rows += [(1, start) for start in starts[1:]]
    dynamic = b"".join(struct.pack("<qQ", *row) for row in (*rows, (5, table), (0, 0)))
    at, end = table + len(strings), table + len(strings) + len(dynamic)
    head = bytearray(b"\x7fELF\x02\x01\x01" + bytes(57))
    fields = (kind, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    struct.pack_into("<HHIQQQIHHHHHH", head, 16, *fields)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, end, end, 4096)
    segments += struct.pack("<IIQQQQQQ", 2, 5, at, at, at, len(dynamic), len(dynamic), 8)
    size = len(interpreter)
    segments += struct.pack("<IIQQQQQQ", 3 if loader else 0, 5, first, first, first, size, size, 1)
    return bytes(head) + segments + interpreter + strings + dynamic


def program(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    path.chmod(0o755)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Somebody's file that no program is entitled to."""
    path = tmp_path / "keys" / "id_rsa"
    path.parent.mkdir()
    path.write_text("a private key")
    return path


def test_an_elf_file_cannot_call_any_file_its_library(tmp_path: Path, key: Path) -> None:
    hostile = (
        elf(loader=str(key)),
        elf(needed=("id_rsa",), search=str(key.parent)),
        elf(needed=("../keys/id_rsa",), search="$ORIGIN"),
    )
    for number, raw in enumerate(hostile):
        file = program(tmp_path / "package" / str(number), raw)
        assert closure([str(file)], env={}).read == (str(file),)
    key.write_bytes(elf(kind=4))  # a core dump may hold anything
    assert closure([str(file)], env={}).read == (str(file),)
    key.write_bytes(elf())  # a library is one
    assert str(key) in closure([str(file)], env={}).read


@pytest.mark.parametrize(
    "line",
    [
        "#!/usr/bin/python3 {}",
        "#!/usr/bin/python3 -Wi {}",  # the kernel makes one argument of it, which Python ignores
        "#!/usr/bin/env -S python3 {}",
        "#!/usr/bin/python3\n'''exec' \"{}\" \"$0\"\n'''",
    ],
)
def test_a_script_cannot_call_any_file_its_interpreters_argument(
    tmp_path: Path, key: Path, line: str
) -> None:
    file = script(tmp_path / "package" / "server", line.format(key) + "\n")
    assert closure([str(file)], env={}).read == (str(file),)


def test_a_command_that_is_no_program_is_refused_with_what_to_do(tmp_path: Path) -> None:
    server = script(tmp_path / "server", "print('no line names my interpreter')\n")
    with pytest.raises(VsmError, match="is neither a program nor a script that names one") as told:
        closure([str(server)], env={})
    assert "`#!` line" in told.value.remedy
    script(server, f"#!/bin/sh\n{server.read_text()}")
    assert str(server) in closure([str(server)], env={}).read


def test_a_script_cannot_call_any_executable_file_its_interpreter(
    tmp_path: Path, key: Path
) -> None:
    key.chmod(0o755)
    deploy = script(tmp_path / "project" / "deploy", "#!/bin/sh\n")
    (tmp_path / "project" / "pyproject.toml").touch()
    for named, what in ((key, "is no program"), (deploy, "is a script itself")):
        for text in (f"#!{named}\n", f"#!/bin/sh\n'''exec' \"{named}\" \"$0\"\n"):
            file = script(tmp_path / "package" / "server", text)
            with pytest.raises(VsmError, match=what):
                closure([str(file)], env={})


def test_a_virtual_environment_cannot_call_any_folder_its_installation(
    venv: Path, tmp_path: Path
) -> None:
    local = tmp_path / "ann" / ".local"  # packages that pip put there, and everything else
    (local / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (local / "share" / "keyrings").mkdir(parents=True)
    (local / "bin").mkdir()
    (venv / "pyvenv.cfg").write_text(f"home = {local}/bin\n")
    assert not any(str(local) in path for path in closure([f"{venv}/bin/python"], env={}).read)


def test_of_an_environment_that_a_script_names_only_its_own_parts_are_given(
    venv: Path, tmp_path: Path
) -> None:
    (venv / "lib").mkdir()
    (venv / ".env").write_text("TOKEN=x\n")  # it was made in a project's own folder
    file = script(tmp_path / "package" / "server", f"#!{venv}/bin/python3\n")
    given = [path for path in closure([str(file)], env={}).read if path.startswith(f"{venv}/")]
    assert set(given) == {f"{venv}/{part}" for part in ("bin", "lib", "pyvenv.cfg")}


def test_a_fifo_that_a_program_calls_its_loader_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for ever
    file = program(tmp_path / "server", elf(loader=str(tmp_path / "fifo")))
    assert closure([str(file)], env={}).read == (str(file),)


def test_a_nul_in_an_interpreters_name_is_an_error(tmp_path: Path) -> None:
    for text in ("#!/usr/bin/py\0thon\n", "#!/bin/sh\n'''exec' \"/a\0b\" \"$0\"\n"):
        file = script(tmp_path / "server", text)
        with pytest.raises(VsmError, match="names no interpreter"):
            closure([str(file)], env={})


def test_libraries_without_end_are_an_error(tmp_path: Path) -> None:
    libraries = tuple(f"lib{number}.so" for number in range(500))
    search = ":".join(["$ORIGIN", *(f"/nowhere/{number}" for number in range(60))])
    for name in ("server", *libraries[:5]):
        program(tmp_path / name, elf(needed=libraries, search=search))
    with pytest.raises(VsmError, match="more places than any program"):
        closure([f"{tmp_path}/server"], env={})


@given(
    st.lists(st.tuples(st.integers(16, 400), st.integers(0, 255)), max_size=12),
    st.sampled_from((0, 1, 8)),
)
def test_no_elf_file_however_broken_raises(changes: list[tuple[int, int]], run: int) -> None:
    raw = bytearray(elf("/lib/loader", ("liba.so", "libb.so"), "/lib:$ORIGIN"))
    for at, value in changes:
        for offset in range(at, min(at + run, len(raw))):
            raw[offset] = value

    def read_at(offset: int, size: int) -> bytes:
        assert offset < 1 << 63  # pread(2) raises
        assert size < 1 << 20
        return bytes(raw[offset : offset + size])

    parse_linkage(read_at)


def test_a_pipe_that_took_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    """By a worker that may write where its command lies, between the look and the opening."""
    os.mkfifo(tmp_path / "server")
    code = "import sys; from vsm.confinement.closure import _first_bytes as first"
    argv = [sys.executable, "-c", f"{code}; print(first(sys.argv[1]))", f"{tmp_path}/server"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "b''\n", done.stderr


def test_a_pyvenv_cfg_made_to_be_searched_for_long_is_read_at_once(venv: Path) -> None:
    """By a supervisor that does nothing else meanwhile."""
    (venv / "pyvenv.cfg").write_text("home = x" + " " * 65_000 + "y")
    code = "import sys; from vsm.confinement.closure import closure; closure([sys.argv[1]], env={})"
    argv = [sys.executable, "-c", code, f"{venv}/bin/python"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert "is no folder" in done.stderr
