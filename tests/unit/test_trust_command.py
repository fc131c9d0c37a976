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
