"""`scripts/prepare` on a host that lacks something: it names it, and the command that brings it.

The script is a copy, and what it installs with are programs of the test's own: nothing is fetched.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "sed", "sha256sum", "cat", "dirname", "id", "mkdir", "cp", "rm", "chmod")
# An interpreter that is fine, and makes environments of itself.
PYTHON = """#!/bin/sh
case "$*" in
*base_prefix*) echo {version} ;;
*ensurepip*) exit {ensurepip} ;;
"--version") echo Python {version} ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && : >"$3/pyvenv.cfg" ;;
*"-m pip install"*) echo "$@" >>"{log}"; {pip} ;;
esac
"""
GIT = 'case "$*" in "init "*) mkdir -p "$4/.git" ;; esac'


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A checkout's scripts, a PATH of few programs, and an interpreter."""
    for name in ("scripts", "bin", "demo/locks"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/prepare", tmp_path / "scripts/prepare")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("time", "git"):
        shutil.copy(ROOT / f"demo/locks/{name}.txt", tmp_path / "demo/locks")
    shutil.copytree(ROOT / "demo/npm", tmp_path / "demo/npm")
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "bin" / name).symlink_to(found)
    interpreter(tmp_path)
    return tmp_path


def interpreter(
    host: Path,
    *,
    ensurepip: int = 0,
    pip: str = "true",
    name: str = "python3",
    version: str = "3.13.0",
) -> None:
    file = host / "bin" / name
    log = host / "installed"
    file.write_text(PYTHON.format(ensurepip=ensurepip, pip=pip, log=log, version=version))
    file.chmod(0o755)


def program(host: Path, name: str, text: str) -> None:
    (host / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (host / "bin" / name).chmod(0o755)


def prepare(host: Path, *options: str, python: str = "") -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": str(host / "bin"), "HOME": str(host)}
    environment["VSM_PYTHON"] = python or str(host / "bin/python3")
    return subprocess.run(
        ["bash", str(host / "scripts/prepare"), *options],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_without_an_interpreter_the_packages_are_named(host: Path) -> None:
    done = prepare(host, python="/no/such/python")
    assert done.returncode == 1
    told = "/no/such/python: no Python 3.11 to 3.13. Run: apt-get install -y python3 python3-venv"
    assert told in done.stderr


def test_an_interpreter_that_is_named_replaces_an_environment_of_another(host: Path) -> None:
    assert prepare(host).returncode == 0
    interpreter(host, name="python3.12", version="3.12.1")
    for told in (["prepare: virtual environment in .venv (Python 3.12.1)"], []):  # once
        done = prepare(host, python=str(host / "bin/python3.12"))
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if ".venv" in line] == told
    assert "3.12.1" in (host / ".venv/bin/python").read_text()


def test_without_ensurepip_its_package_is_named(host: Path) -> None:
    interpreter(host, ensurepip=1)
    done = prepare(host)
    assert done.returncode == 1
    assert done.stderr.endswith("has no ensurepip. Run: apt-get install -y python3-venv\n")
    assert not (host / ".venv").exists()


def test_without_node_its_servers_are_skipped_and_the_rest_is_there(host: Path) -> None:
    program(host, "git", GIT)
    done = prepare(host, "--demo")
    assert done.returncode == 0, done.stderr
    skipped = "no node or npm: the npm servers are skipped. Run: apt-get install -y nodejs npm"
    assert skipped in done.stderr
    assert "installed demo server time" in done.stderr
    assert sorted(os.listdir(host / "demo/servers")) == ["git", "time"]
    installed = (host / "installed").read_text()
    assert installed.count("--require-hashes --only-binary :all:") == 2
    again = prepare(host, "--demo")  # nothing changed
    assert (again.returncode, "installing" in again.stderr) == (0, False), again.stderr


def test_npm_keeps_the_hosts_own_settings(host: Path) -> None:
    # npm looks for its global npmrc below --prefix, where no host keeps it.
    program(host, "git", GIT)
    program(host, "node", "true")
    program(host, "npm", f'echo "$PWD: $*" >>{host}/npm')
    done = prepare(host, "--demo")
    assert done.returncode == 0, done.stderr
    asked = (host / "npm").read_text().splitlines()
    folders = [str(host / "demo/servers" / name) for name in ("everything", "filesystem", "memory")]
    assert sorted(line.partition(":")[0] for line in asked) == folders
    assert all(" ci --ignore-scripts" in line and "--prefix" not in line for line in asked)


def test_without_git_its_package_is_named(host: Path) -> None:
    done = prepare(host, "--demo")
    assert done.returncode == 1
    assert "Run: apt-get install -y git" in done.stderr


def test_what_could_not_be_installed_is_named_after_its_own_words(host: Path) -> None:
    program(host, "git", GIT)
    interpreter(host, pip="case $* in *time.txt*) echo no route to the index >&2; exit 1 ;; esac")
    done = prepare(host, "--demo")
    assert done.returncode == 1
    told = done.stderr.partition("no route to the index\n")[2]
    assert "prepare: could not install demo server time" in told
    assert not (host / "demo/servers/time/stamp").exists()


def test_an_option_that_there_is_not_is_an_error(host: Path) -> None:
    done = prepare(host, "--demos")
    assert (done.returncode, "there are --tools and --demo" in done.stderr) == (1, True)
