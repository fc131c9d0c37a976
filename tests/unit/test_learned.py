"""What a new S4 is told of the old one: from memory, from the journal, nothing else."""

from pathlib import Path
from typing import Any

import pytest

from vsm.governance import learned
from vsm.governance.learned import FORECAST, FORGOTTEN_S, GOALS, MOST_BYTES, STEP, Learned
from vsm.journal.reader import Now
from vsm.journal.records import Event, Retention
from vsm.journal.store import JournalStore


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
    assert known.settings() == {"score": [], "missed": [], "steps": []}
    known.note(STEP, step(["git", "log", 3, 0]))
    clock.now += 60.5
    known.note(STEP, step())
    known.note(FORECAST, {"score": [1, 1, 0.5, 0.5, 0.0, 0.1]})
    known.note("intelligence.warning", {"step_s": 1, "counts": []})
    known.note(GOALS, {"missed": [["answered_well", "git", 0.5]]})
    clock.now += 2
    assert known.settings() == {
        "score": [1, 1, 0.5, 0.5, 0.0, 0.1],
        "missed": [["answered_well", "git", 0.5]],
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
        {"step_s": float("nan"), "counts": []},
        {"step_s": 1, "counts": [["a", "b", 10**400, 0]]},
    ],
)
def test_what_is_no_record_of_a_step_is_not_told(tmp_path: Path, detail: Any) -> None:
    known = Learned(lambda: tmp_path / "journal.db")
    known.note(STEP, detail)
    assert known.settings()["steps"] == []


@pytest.mark.parametrize(
    "detail",
    [
        None,
        {},
        {"missed": "all"},
        {"missed": [["answered_well", "git"]]},
        {"missed": [["wealth", "git", 0.5]]},
        {"missed": [["answered_well", 1, 0.5]]},
        {"missed": [["answered_well", "git", True]]},
        {"missed": [["answered_well", "git", "0.5"]]},
        {"missed": [[["answered_well"], "git", 0.5]]},
        {"missed": [["answered_well", "g" * 65, 0.5]]},
        {"missed": [["answered_well", "git", float("nan")]]},
        {"missed": [["answered_well", "git", 10**400]]},
    ],
)
def test_what_is_no_record_of_goals_is_not_told(tmp_path: Path, detail: Any) -> None:
    known = Learned(lambda: tmp_path / "journal.db")
    known.note(GOALS, detail)
    assert known.settings()["missed"] == []


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), 10**400, "1", None, True])
def test_score_that_nobody_can_add_up_is_not_told(tmp_path: Path, wrong: Any) -> None:
    known = Learned(lambda: tmp_path / "journal.db")
    known.note(FORECAST, {"score": [1, 1, 0.5, wrong, 0.0, 0.1]})
    assert known.settings()["score"] == []
    known.note(FORECAST, {"score": [1, 1, 0.5, 0.5, 0.0, 0.1]})
    assert known.settings()["score"] == [1, 1, 0.5, 0.5, 0.0, 0.1]


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


@pytest.mark.parametrize(("age_s", "told"), [(60.0, True), (FORGOTTEN_S + 60, False)])
def test_goals_that_hurt_under_an_earlier_vsm_are_told_while_they_are_not_too_old(
    tmp_path: Path, age_s: float, told: bool
) -> None:
    path, now = tmp_path / "journal.db", Now.read()
    ago = int(age_s * 1e9)
    detail = '{"missed":[["answered_well","git",0.5]]}'
    row = Event(now.wall_ns - ago, now.steady_ns - ago, "system4", GOALS, None, None, 1, detail)
    store = JournalStore(path, now.boot_id, Retention())
    try:
        store.append("me", 1, [row])
    finally:
        store.close()
    missed = Learned(lambda: path).settings()["missed"]
    assert missed == ([["answered_well", "git", 0.5]] if told else [])
