"""Every command that knows --json answers with JSON, when it fails too."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vsm import cli

DRIVER = """
import contextlib, io, json, sys
from vsm import cli
told = {}
for command, words in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([*command.split(), *words, "--json"])
        except SystemExit as stopped:
            code = -1
    told[command] = (code, out.getvalue(), err.getvalue())
json.dump([told, "mcp" in sys.modules], sys.stdout)
"""
NO_VSM = 4
# What makes each of them fail where no vsm runs, nothing is installed and no journal was written.
FAILING: dict[str, tuple[list[str], int]] = {
    "status": ([], NO_VSM),
    "tools": ([], NO_VSM),
    "call": (["time", "now"], NO_VSM),
    "start": (["time"], NO_VSM),
    "stop": (["--all"], NO_VSM),
    "restart": (["time"], NO_VSM),
    "drain": (["time"], NO_VSM),
    "logs": (["time"], NO_VSM),
    "panic": ([], NO_VSM),
    "resume": ([], NO_VSM),
    "variety": ([], NO_VSM),
    "board dump": ([], NO_VSM),
    "events": (["--since", "when"], 2),
    "decisions": (["--limit", "0"], 2),
    "rules": (["--config", "/no/such"], 2),
    "approvals": (["--limit", "-1"], 2),
    "approve": (["1"], NO_VSM),
    "deny": (["1"], NO_VSM),
    "dead-letters": (["show"], 2),
    "calls": (["--since", "when"], 2),
    "reflect": ([], NO_VSM),
    "doctor": (["--nothing"], 2),
    "docs": (["nothing"], 2),
    "profile list": (["--nothing"], 2),
    "profile show": (["nothing"], 2),
    "profile check": (["--nothing"], 2),
    "profile explain": (["nothing"], 2),
    "profile diff": (["nothing", "integration"], 2),
    "reload": ([], NO_VSM),
    "log-level": (["info"], NO_VSM),
    "limit": (["time"], NO_VSM),
    "audit": (["time"], NO_VSM),
    "trust": ([], NO_VSM),
    "trust list": ([], NO_VSM),
    "trust diff": (["time"], NO_VSM),
    "trust approve": (["time"], NO_VSM),
    "service install": (["--dry-run", "--config", "/no/such"], 2),
    "service uninstall": (["--user", "--root", "/no/such"], 2),
    "service apparmor": (["--nothing"], 2),
    "import": (["/no/such"], 2),
    "install": (["npm:"], 2),
    "uninstall": (["nothing"], 5),
    "outdated": (["--nothing"], 2),
    "sandbox probe": (["--nothing"], 2),
    "sandbox audit": (["--profile", "nothing"], 2),
}


def commands(parser: argparse.ArgumentParser, words: str) -> Iterator[str]:
    """The commands below a parser that know --json."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from commands(below, f"{words} {name}".strip())
        elif "--json" in action.option_strings:
            yield words  # `vsm trust` alone lists, too


def all_commands() -> set[str]:
    modules = {module for module, _ in cli.COMMANDS.values()}
    parsers = [cli._parser_of(importlib.import_module(module)) for module in modules]
    return {command for parser in parsers for command in commands(parser, "")}


@pytest.fixture(scope="module")
def driven(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, tuple[int, str, str]], bool]:
    """Exit code, stdout and stderr of each failing command, and whether any imported the SDK."""
    folder = tmp_path_factory.mktemp("nothing")
    folder.chmod(0o700)
    (folder / "run").mkdir(mode=0o700)
    (folder / "state").mkdir(mode=0o700)
    settings = {
        "VSM_RUNTIME_DIR": str(folder / "run"),
        "VSM_STATE_DIR": str(folder / "state"),
        "HOME": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps({name: words for name, (words, _) in FAILING.items()}),
        env={name: value for name, value in os.environ.items() if name != "VSM_CONFIG"} | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answers, sdk = json.loads(done.stdout)
    return answers, sdk


@pytest.fixture(scope="module")
def told(
    driven: tuple[dict[str, tuple[int, str, str]], bool],
) -> dict[str, tuple[int, str, str]]:
    return driven[0]


def test_no_command_imports_the_sdk_to_answer(
    driven: tuple[dict[str, tuple[int, str, str]], bool],
) -> None:
    """It costs most of a second."""
    assert not driven[1]


def test_every_command_with_json_is_tried() -> None:
    assert all_commands() == set(FAILING)


@pytest.mark.parametrize("command", FAILING)
def test_an_error_is_a_document_with_its_exit_code(
    told: dict[str, tuple[int, str, str]], command: str
) -> None:
    code, out, err = told[command]
    document = json.loads(out)
    assert set(document) == {"error"}
    error = document["error"]
    assert set(error) == {"where", "what", "remedy", "exit_code"}
    assert error["exit_code"] == code == FAILING[command][1], err
    last = err.splitlines()[-1]
    assert last.startswith(f"vsm: {error['where']}: {error['what']}")
    assert error["where"], "where it is wrong"
    assert error["remedy"] or "expected" in error["what"], "what to do"


def test_json_of_a_confined_command_is_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vsm", "sandbox", "run", "--", "/no/such", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode != 0) == ("", True)
