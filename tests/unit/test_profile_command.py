import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vsm.commands import profile as command


@pytest.fixture(autouse=True)
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSM_PROFILE_PATH", str(tmp_path))
    (tmp_path / "mine.toml").write_text(
        'extends = "integration"\ndescription = "m\\u001b[31m"\n[limits]\nmemory = "1G"\n'
        '[files]\nread = ["/srv"]\nsystem = ["-/etc/pki"]\n[environment]\nTZ = "UTC"'
    )
    return tmp_path


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return command.run(parser.parse_args(["profile", *words]))


def output(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    run(*words, "--json")
    return json.loads(capsys.readouterr().out)


def test_list_names_own_and_shipped_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {row["name"]: row for row in output(capsys, "list")}
    assert {"mine", "integration", "system1"} <= listed.keys()
    assert listed["mine"]["tier"] == "landlocked"


def test_a_wrong_profile_does_not_hide_the_others(
    own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_profiles / "bad.toml").write_text("x = 1")
    listed = {row["name"]: row for row in output(capsys, "list")}
    assert "unknown key 'x'" in listed["bad"]["description"]
    assert "mine" in listed


def test_show_prints_keys_as_one_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "show", "mine")["keys"]
    assert shown["limits.memory"] == "1G"
    assert shown["limits.cpu_time_s"] == "unlimited"
    assert shown["files.read"] == ["/srv"]
    assert "/etc/pki" not in shown["files.system"]
    assert shown["environment.TZ"] == "UTC"


def test_nothing_of_a_profile_reaches_the_terminal_raw(capsys: pytest.CaptureFixture[str]) -> None:
    run("show", "mine")
    run("list")
    assert "\x1b" not in capsys.readouterr().out


def test_check_fails_if_one_is_wrong(
    own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check") == 0
    (own_profiles / "bad.toml").write_text("x = 1")
    assert run("check", "mine", str(own_profiles / "bad.toml")) == 2
    assert "mine: ok" in capsys.readouterr().out


def test_diff_tells_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diff", "integration", "integration") == 0
    capsys.readouterr()
    assert run("diff", "integration", "mine") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "limits.memory: 512M → 1G" in lines
    assert "files.read: +/srv" in lines
    assert "files.system: -/etc/pki" in lines
    assert "environment.TZ: (absent) → UTC" in lines


def test_explain_gives_a_reason_for_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    explained = output(capsys, "explain", "system1")
    assert explained["tier"] == "landlocked"
    assert all(step["step"] and step["reason"] for step in explained["steps"])
    assert "execve" not in explained["syscalls"]["filtered"]
    assert "pidfd_open" in explained["syscalls"]["withheld"]


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vsm.cli import main; main(['profile', 'list']);"
        "print(sorted({'pydantic', 'numpy', 'mcp', 'asyncio'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
