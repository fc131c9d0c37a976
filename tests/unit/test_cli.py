import argparse
import ast
import errno
import os
import re
import sys
import types
from pathlib import Path

import pytest

from vsm import __version__, cli
from vsm.commands import docs
from vsm.errors import ConfinementError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command of the test's own, registered as `odd`."""
    module = types.ModuleType("odd_command")
    module.add_parser = lambda subparsers: subparsers.add_parser("odd").add_argument(
        "--n", type=int
    )  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "odd_command", module)
    monkeypatch.setitem(cli.COMMANDS, "odd", ("odd_command", "for a test"))
    return module


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vsm {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: vsm" in capsys.readouterr().err


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["statsu"]) == 2
    assert capsys.readouterr().err == "vsm: no command 'statsu'. Did you mean `vsm status`?\n"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["--n", "x"], "argument --n: invalid int value: 'x'"),
    ],
)
def test_wrong_usage_is_an_error_like_any_other(
    command: types.ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    command.run = lambda _: 0  # type: ignore[attr-defined]
    assert cli.main(["odd", *words]) == 2
    said = capsys.readouterr()
    assert said.err == f"vsm: vsm odd: {what}. `vsm odd --help` says more.\n"
    assert said.out == ""


def test_error_is_one_clean_line_with_its_exit_code(
    command: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: argparse.Namespace) -> int:
        raise ConfinementError(
            "a\x1b[31m\nb", "no seccomp", "Boot another kernel.", layer="seccomp"
        )

    command.run = run  # type: ignore[attr-defined]
    assert cli.main(["odd"]) == 3
    assert capsys.readouterr().err == "vsm: a [31m b: no seccomp. Boot another kernel.\n"


@pytest.mark.parametrize(
    ("number", "path", "said"),
    [
        (errno.ENOSPC, None, "vsm: odd: No space left on device. Make room"),
        (errno.EROFS, "/a/b", "vsm: /a/b: Read-only file system. Use a file system"),
        (errno.EACCES, "/a\x1bb", "vsm: /a b: Permission denied. Run it as the owner"),
    ],
)
def test_what_the_disk_refuses_is_one_line_with_the_path(
    command: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
    number: int,
    path: str | None,
    said: str,
) -> None:
    def run(_: argparse.Namespace) -> int:
        raise OSError(number, os.strerror(number), path)

    command.run = run  # type: ignore[attr-defined]
    assert cli.main(["odd"]) == 1
    assert capsys.readouterr().err.startswith(said)


def test_a_mistake_of_vsm_keeps_its_traceback(command: types.ModuleType) -> None:
    def run(_: argparse.Namespace) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    command.run = run  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main(["odd"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 141)])
def test_interruptions_have_the_shells_exit_codes(
    command: types.ModuleType,
    error: type[BaseException],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(_: argparse.Namespace) -> int:
        raise error

    command.run = run  # type: ignore[attr-defined]
    monkeypatch.setattr("os.dup2", lambda *_: 1)
    monkeypatch.setattr("os.open", lambda *_: 1)
    assert cli.main(["odd"]) == code


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: vsm {name}" in capsys.readouterr().out


def test_documentation_covers_every_command_and_exit_code() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert [name for name in cli.COMMANDS if f"`vsm {name}" not in text] == []
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert {0, 1, 2, 3, 4, 5, 130, 141} <= documented


def test_pages_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docs"]) == 0
    listed = capsys.readouterr().out
    assert "configuration" in listed
    assert "decisions/" not in listed
    assert cli.main(["docs", "docs/profiles.md"]) == 0
    printed = capsys.readouterr().out
    assert printed == (ROOT / "docs/profiles.md").read_text(encoding="utf-8")
    assert cli.main(["docs", "decisions"]) == 0
    assert "decisions/packages" in capsys.readouterr().out
    assert cli.main(["docs", "profles"]) == 2
    assert "Did you mean `vsm docs profiles`?" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["../README", "/etc/hosts", "..", ""])
def test_a_page_is_no_path(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docs", page]) == 2
    assert "no page" in capsys.readouterr().err


def test_messages_name_the_command_that_shows_a_page_and_pages_that_exist() -> None:
    """A wheel has no docs/ beside it."""
    shown = set()
    for path in (ROOT / "vsm").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                shown.update(re.findall(r"`vsm docs ([\w/-]+)`", node.value))
                assert id(node) in bare or not re.search(r"docs/\w", node.value), (
                    f"{path}: {node.value}"
                )
    assert len(shown) > 4
    assert shown <= docs.pages().keys() | {"decisions"}
