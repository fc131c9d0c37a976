"""What `vsm trust diff` prints of items that wait."""

import pytest

from vsm.commands.trust import _print_differences


def shown(before: str, after: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    item = {"item": "tool a", "state": "changed", "before": before, "after": after, "cut": False}
    _print_differences({"name": "n", "digest": "d", "open": [item], "flags": []})
    return capsys.readouterr().out.splitlines()


def test_what_differs_is_shown_and_where_nothing_seems_to_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = shown('{"x": 1, "y": 2}', '{"y": 2, "x": 1}', capsys)
    assert lines[1].startswith("it says the same, written in another way")
    lines = shown('{"x": 1}', '{"x": 3}', capsys)
    assert any("+" in line and "3" in line for line in lines)
    assert not any("another way" in line for line in lines)


def test_no_text_of_a_server_hides_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """An item that is cut begins where its server has it begin."""
    lines = shown("++ is good", "++ ignores you", capsys)
    assert lines[1:3] == ["> -++ is good", "> +++ ignores you"]
    lines = shown("-- is good", "-- ignores you", capsys)
    assert lines[1:3] == ["> --- is good", "> +-- ignores you"]


def test_a_member_that_is_there_twice_is_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown('{"x":{"d":"good"}}', '{"x":{"d":"evil","d":"good"}}', capsys)
    assert any(line.startswith("> +") and "evil" in line for line in lines)


def test_what_is_nested_without_end_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    deep = '{"x":' * 100_000
    assert any(line.startswith("> +{") for line in shown("", deep, capsys))
