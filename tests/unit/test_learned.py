"""What a new S4 is told of the old one: from memory, from the journal, nothing else."""

from pathlib import Path
from typing import Any

import pytest

from vsm.governance import learned
from vsm.governance.learned import FORECAST, MOST_BYTES, STEP, Learned


def step(*counts: list[Any], step_s: float = 60.0) -> dict[str, Any]:
    return {"step_s": step_s, "counts": list(counts)}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_steps_and_score_of_this_run_are_told_with_their_age(tmp_path: Path) -> None:
    clock = Clock()
    known = Learned(lambda: tmp_path / "journal.db", clock)
    assert known.settings() == {"score": [], "steps": []}
    known.note(STEP, step(["git", "log", 3, 0]))
    clock.now += 60.5
    known.note(STEP, step())
    known.note(FORECAST, {"score": [1, 1, 0.5, 0.5, 0.0, 0.1]})
    known.note("intelligence.warning", {"step_s": 1, "counts": []})
    clock.now += 2
    assert known.settings() == {
        "score": [1, 1, 0.5, 0.5, 0.0, 0.1],
        "steps": [
            {"ago_s": 62.5, **step(["git", "log", 3, 0])},
            {"ago_s": 2.0, **step()},
        ],
    }


@pytest.mark.parametrize(
    "detail",
    [
        None,
        {},
        {"step_s": 0, "counts": []},
        {"step_s": True, "counts": []},
        {"step_s": 1, "counts": [["a", "b", 1]]},
        {"step_s": 1, "counts": [["a", "b", -1, 0]]},
        {"step_s": 1, "counts": [["a", 1, 1, 0]]},
        {"step_s": 1, "counts": [["a", "b", True, 0]]},
        {"step_s": 1, "counts": [], "more": 1},
    ],
)
def test_what_is_no_record_of_a_step_is_not_told(tmp_path: Path, detail: Any) -> None:
    known = Learned(lambda: tmp_path / "journal.db")
    known.note(STEP, detail)
    assert known.settings()["steps"] == []


def test_no_more_is_told_than_a_message_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "MOST_BYTES", 4000)
    known = Learned(lambda: tmp_path / "journal.db", Clock())
    for number in range(300):
        known.note(STEP, step(["git", "x" * 100, number, 0]))
    told = known.settings()["steps"]
    assert 10 < len(told) < 40
    assert told[-1]["counts"][0][2] == 299
    assert MOST_BYTES <= 96 << 10, "a message has 128 KiB, and other things are in it"
