"""`vsm rules` says what the gateway would decide, from the file alone."""

import json
from pathlib import Path

import pytest

from vsm.cli import main

TEXT = """
[policy]
default = "ask"
[[policy.rules]]
name = "no-etc"
action = "deny"
tool = "write_*"
argument = { path = "/etc/*" }
reason = "host configuration"
[[policy.rules]]
action = "allow"
client = "http"
hours = "00:00-24:00"
budget = { calls = 3, period_s = 60 }
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "vsm.toml"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["files", "write_note", '{"path": "/etc/x"}'], "deny, by rule 'no-etc': host"),
        (["files", "write_note", '{"path": "/tmp/../etc/x"}'], "deny, by rule 'no-etc': host"),
        (["files", "write_note", '{"path": "/tmp/x"}'], "ask, by the default"),
        (["files", "write_note", "{}", "--client", "http"], "allow, by rule 'rule 2'"),
        (["files", "file:///etc/x", "--kind", "resource"], "ask, by the default"),
    ],
)
def test_it_says_which_rule_decides(
    config: str, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["rules", *words, "--config", config]) == 0
    assert capsys.readouterr().out.startswith(says)


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"path": "\udcff"}', "[]"])
def test_arguments_that_are_none_are_refused(
    config: str, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    assert main(["rules", "files", "write_note", arguments, "--config", config]) == 2
    assert "the arguments are no JSON" in capsys.readouterr().err


def test_it_lists_rules_in_order(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tool=write_* argument path=/etc/*" in lines[1]
    assert "client=http hours=00:00-24:00 budget=3 in 60 s" in lines[2]
    assert lines[-1] == "otherwise: ask"
    assert main(["rules", "--config", config, "--json"]) == 0
    assert [row["action"] for row in json.loads(capsys.readouterr().out)["rules"]] == [
        "deny",
        "allow",
    ]


@pytest.mark.parametrize("words", [["files"], ["files", "x", "[1]"], ["files", "x", "{"]])
def test_what_is_no_call_is_an_error(
    config: str, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["rules", *words, "--config", config]) == 2
    assert capsys.readouterr().err.startswith("vsm: ")
