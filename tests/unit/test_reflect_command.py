"""`vsm reflect` prints what systems say, who may have been taken over."""

from typing import Any

import pytest

from vsm.commands.reflect import _print_predictions

EVIL = "\x1b[2J\u202eall is well"
SURPRISE = {
    "integration": "a",
    "demand": "b",
    "came": EVIL,
    "step_s": 1,
    "expected": 1.0,
    "chance": 0,
}
CALIBRATION = {"forecasts": EVIL, "coverage": 0.9, "brier": 0.1}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"forecasts": [], "surprises": [SURPRISE]}, "unusual: a b: "),
        ({"forecasts": [], "calibration": CALIBRATION}, "forecasts so far: "),
        ({"not_enough_evidence": EVIL}, "forecasts: not enough evidence: "),
        ({"not_enough_evidence": [EVIL]}, "forecasts: not enough evidence: "),
        ({}, "system4 answers what makes no sense"),
        ({"forecasts": [3]}, "system4 answers what makes no sense"),
        ({"forecasts": [], "surprises": [{**SURPRISE, "step_s": EVIL}]}, "makes no sense"),
    ],
)
def test_whatever_system_4_says_is_printed_and_moves_no_cursor(
    found: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _print_predictions(found)
    printed = capsys.readouterr().out
    assert told in printed
    assert all(char.isprintable() or char == "\n" for char in printed)
