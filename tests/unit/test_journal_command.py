"""`vsm events` and `vsm decisions` on a file, without a vsm that runs."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vsm.cli import main
from vsm.commands import dead_letters, events
from vsm.control_socket import NotRunningError
from vsm.errors import ConfigurationError, VsmError
from vsm.journal.reader import JournalError
from vsm.journal.records import Decision, Event, Outcome, Retention, json_text
from vsm.journal.store import JournalStore

EVIL = "\x1b[2J\x9b31m\u202eevil\r\nvsm: all is well"


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path))
    store = JournalStore(tmp_path / "journal.db", "boot", Retention())
    detail = json_text({"reason": EVIL, EVIL: [EVIL, 1, None]})
    decided = json_text({"reason": EVIL})
    store.append(
        "me",
        4,
        [
            Event(10**18, 1, "supervisor", EVIL, EVIL, EVIL, 4, detail),
            Event(2**62, 1, "supervisor", "worker.ready", "time", "time", 1, "{}"),
            Decision(10**18, 1, "s", "key", EVIL, "restart.intensity", decided, '["a b"]', "stop"),
            Outcome(10**18, "key", decided),
        ],
    )
    store.close()
    return tmp_path


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    events.add_parser(parser.add_subparsers(dest="command"))
    return events.run(parser.parse_args(words))


@pytest.mark.parametrize("words", [("events",), ("decisions",), ("events", "--json")])
def test_foreign_text_moves_no_cursor(
    journal: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    del journal
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "evil" in printed
    assert all(char.isprintable() or char == "\n" for char in printed)
    assert "\nvsm: all is well" not in printed


def test_an_event_is_one_line_with_its_pairs(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del journal
    run("decisions")
    (line,) = capsys.readouterr().out.splitlines()
    assert "by restart.intensity" in line
    assert 'instead of "a b"' in line
    assert "outcome: reason=" in line


def test_numbers_and_tables_of_a_decision_are_written_for_people(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = JournalStore(journal / "journal.db", "boot", Retention())
    inputs = {
        "period_s": 0.5682328380000096, "held": 568328192.0, "at_s": 2034.8181, "so": True,
        "others": {"a b": 1073741824.0, "c": ["x\u202e", 0.25]},
    }  # fmt: skip
    store.append(
        "me", 5, [Decision(1, 1, "s", "k", "w", "budget.raise", json_text(inputs), "[]", "x")]
    )
    store.close()
    run("decisions", "--rule", "budget.*")
    (line,) = capsys.readouterr().out.splitlines()
    assert "period_s=0.568 held=568328192 at_s=2034.818 so=true" in line
    assert 'others={"a b": 1073741824, "c": ["x\\u202e", 0.25]}' in line


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (5, "  from why=5  "),
        (["a", {"b": 1}], "  because a; {'b': 1}  "),
        ({"c": "d"}, '  from why={"c": "d"}  '),
    ],
)
def test_reason_that_is_no_text_is_shown_like_any_input(
    journal: Path, capsys: pytest.CaptureFixture[str], why: object, told: str
) -> None:
    store = JournalStore(journal / "journal.db", "boot", Retention())
    inputs = json_text({"why": why})
    store.append("me", 5, [Decision(1, 1, "s", "k", "w", "budget.raise", inputs, "[]", "x")])
    store.close()
    run("decisions", "--rule", "budget.*")
    (line,) = capsys.readouterr().out.splitlines()
    assert told in line


def test_json_is_a_list_and_keeps_what_was_said(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del journal
    run("events", "--json")
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert rows[0]["detail"]["reason"] == EVIL
    assert [row["severity"] for row in rows] == ["error", "info"]


def test_filters_of_the_command_line_reach_the_file(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del journal
    run("events", "--worker", "time", "--kind", "worker.*", "--severity", "info", "--json")
    assert len(json.loads(capsys.readouterr().out)) == 1
    run("events", "--severity", "critical", "--json")
    assert json.loads(capsys.readouterr().out) == []
    run("decisions", "--rule", "restart.*", "--json")
    assert len(json.loads(capsys.readouterr().out)) == 1
    run("events", "--limit", "1", "--json")
    assert [row["kind"] for row in json.loads(capsys.readouterr().out)] == ["worker.ready"]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("events", "--since", "yesterday"), "--since"),
        (("events", "--since", "1h "), ""),
        (("events", "--since", "999999999w"), ""),
        (("events", "--since", "9999-01-01"), ""),
        (("events", "--severity", "loud"), "--severity"),
        (("events", "--limit", "0"), "--limit"),
        (("decisions", "--limit", "-1"), "--limit"),
        (("decisions", "--since", "2026-13-01"), "--since"),
    ],
)
def test_a_wrong_option_is_named(journal: Path, words: tuple[str, ...], where: str) -> None:
    del journal
    if not where:
        assert run(*words) == 0
        return
    with pytest.raises(ConfigurationError) as caught:
        run(*words)
    assert caught.value.where == where


def test_without_a_journal_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "absent"))
    with pytest.raises(JournalError, match="Start vsm once"):
        run("events")


def test_a_damaged_journal_is_an_error_that_names_the_file(
    journal: Path,
) -> None:
    (journal / "journal.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(JournalError, match=r"journal\.db: cannot be read"):
        run("events")


def test_a_journal_that_is_damaged_within_is_an_error_that_names_the_file(journal: Path) -> None:
    store = JournalStore(journal / "journal.db", "boot", Retention())
    more = [Event(10**18, 1, "s", "k", None, None, 1, json_text({"x": "y" * 999}))] * 200
    store.append("me", 204, more)
    store.close()
    content = bytearray((journal / "journal.db").read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    (journal / "journal.db").write_bytes(content)
    assert run("events", "--limit", "1") == 0
    with pytest.raises(JournalError, match=r"journal\.db: cannot be read"):
        run("events", "--limit", "1000")


def test_a_journal_whose_records_are_damaged_is_an_error_that_names_the_file(
    journal: Path,
) -> None:
    content = (journal / "journal.db").read_bytes()
    assert content.count(b'{"reason":') > 0
    (journal / "journal.db").write_bytes(content.replace(b'{"reason":', b'["reason":'))
    with pytest.raises(JournalError, match=r"journal\.db: cannot be read"):
        run("events")


def test_letter_that_no_number_is_large_enough_for_is_not_there(
    journal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del journal
    assert main(["dead-letters", "show", "9" * 30]) == 5
    assert "there is none" in capsys.readouterr().err


def test_end_of_input_is_no_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: ""))
    letter = {"id": 5, "detail": {}, "replayed": None}
    with pytest.raises(VsmError, match="dead letter 5: not called"):
        dead_letters._confirm(letter, "it", "x", agreed=False)


def test_answer_is_shown_although_that_it_was_asked_for_cannot_be_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where vsm ends meanwhile: whoever sees no answer calls a third time."""

    def gone(_command: str, **_: object) -> None:
        raise NotRunningError("control.sock", "no vsm is running here")

    detail = {"method": "tools/call", "what": "x", "arguments": "{}"}
    letter = {"id": 5, "integration": "it", "detail": detail, "replayed": None}
    answer = {"content": [{"type": "text", "text": "done"}]}
    monkeypatch.setattr(dead_letters, "_find", lambda _: letter)
    monkeypatch.setattr(dead_letters, "call_tool", lambda *_: answer)
    monkeypatch.setattr(dead_letters, "request", gone)
    assert main(["dead-letters", "replay", "5", "--yes"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "> done\n"
    assert "vsm: not recorded: control.sock: no vsm is running" in shown.err
