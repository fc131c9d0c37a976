import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.commands import terminal

HOSTILE = "\x1b]0;owned\x07 \x1b[2J\x9b31m\u202eevil\u200b\r\n\x00"


@given(st.text())
def test_cleaned_text_is_printable_and_keeps_its_length(text: str) -> None:
    cleaned = terminal.clean(text)
    assert cleaned.isprintable()
    assert len(cleaned) == len(text)


def test_escape_sequences_and_direction_overrides_are_stripped() -> None:
    cleaned = terminal.clean(HOSTILE)
    assert not set(cleaned) & set("\x1b\x07\x9b\u202e\u200b\r\n\x00")
    assert "evil" in cleaned


@given(st.text())
def test_every_line_of_foreign_text_is_marked(text: str) -> None:
    for line in terminal.foreign(text):
        assert line.startswith("> ")
        assert line.isprintable()


def test_table_aligns_columns_and_cleans_cells(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_table(("NAME", "STATE"), [("a\x1b[31m", "ready"), ("longer", "absent")])
    lines = capsys.readouterr().out.splitlines()
    assert [
        line.index(word) for line, word in zip(lines, ("STATE", "ready", "absent"), strict=True)
    ]
    assert (
        len(
            {
                line.index(word)
                for line, word in zip(lines, ("STATE", "ready", "absent"), strict=True)
            }
        )
        == 1
    )
    assert "\x1b" not in "".join(lines)


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"text": HOSTILE})
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out) == {"text": HOSTILE}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (5 * 2**20, "5.0M"),
        (2**40, "1024.0G"),
    ],
)
def test_sizes_read_well(size: int | None, text: str) -> None:
    assert terminal.bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.25, "0.2s"), (61, "1m01s"), (3600, "1h00m"), (90_061, "1d01h")],
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert terminal.seconds_text(seconds) == text
