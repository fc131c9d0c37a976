"""Goals: when one is missed, met, or neither, and when it hurts."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration.config import load_config
from vsm.configuration.policy import Policy, compile_policy
from vsm.core.demand import OK, OUTCOMES
from vsm.core.demand_window import Key
from vsm.core.goals import Goal, Standing, changes, goals_of, measure, words
from vsm.errors import ConfigurationError
from vsm.systems.goals import SAY_AGAIN_S, Goals

PAPERS = Goal("answered_well", "papers", 0.9)
RATIO = Goal("requisite_ratio", "", 0.7)
COMMAND = '[integrations.papers]\ncommand = ["/bin/true"]\n'


def counts(well: int, badly: int) -> list[int]:
    row = [badly] + [0] * (len(OUTCOMES) - 1)
    row = row[1:] + row[:1] if OK == 0 else row
    row[OK] = well
    return row


def standing(goal: Goal, well: int, badly: int) -> Standing:
    table: dict[Key, list[int]] = {
        ("papers", "find"): counts(well, badly),
        ("other", "find"): counts(0, 1000),
    }
    return measure([goal], table, None)[0]


@pytest.mark.parametrize(
    ("well", "badly", "state"),
    [
        (29, 0, "not enough evidence"),
        (30, 5, "undecided"),  # 0.857, but chance may have done it
        (100, 40, "missed"),
        (990, 10, "met"),
    ],
)
def test_goal_is_missed_only_when_its_whole_interval_is(well: int, badly: int, state: str) -> None:
    assert standing(PAPERS, well, badly).state == state


def test_goal_of_all_demand_counts_every_integration() -> None:
    assert standing(Goal("answered_well", "", 0.5), 400, 0).state == "missed"


def test_ratio_is_taken_as_it_was_measured() -> None:
    assert [one.state for one in measure([RATIO], {}, (0.71, 0.8))] == ["met"]
    assert [one.state for one in measure([RATIO], {}, None)] == ["not enough evidence"]


def test_goal_says_of_what_how_much_and_how_it_stands() -> None:
    told = words(standing(PAPERS, 100, 40))
    assert told.startswith("at least 0.9 of what papers is asked answered well: missed (0.6")
    everything = words(Standing(Goal("answered_well", "", 0.5), None))
    assert everything == "at least 0.5 of all that is asked answered well: not enough evidence"
    assert words(Standing(RATIO, (0.8, 0.9))).endswith("of at least 0.7: met (0.800 to 0.900)")


def test_missed_goal_hurts_once_and_until_it_is_met_by_a_margin() -> None:
    told = []
    missed: frozenset[Goal] = frozenset()
    for low, high in ((0.6, 0.8), (0.5, 0.65), (0.5, 0.69), (0.72, 0.8), (0.76, 0.8), (0.76, 0.8)):
        missed, found = changes(missed, measure([RATIO], {}, (low, high)))
        told += [(low, one.severity) for one in found]
    assert told == [(0.5, "pain"), (0.76, "relief")]
    assert not missed


def test_goal_that_is_no_more_hurts_no_more() -> None:
    missed, found = changes(frozenset([PAPERS]), [])
    assert not missed
    assert [one.severity for one in found] == ["relief"]
    assert "papers" in words(found[0].standing)


@given(st.integers(0, 5000), st.integers(0, 5000), st.floats(0.01, 0.999))
def test_what_is_clear_is_met_and_what_is_missed_is_not(
    well: int, badly: int, at_least: float
) -> None:
    one = standing(Goal("answered_well", "papers", at_least), well, badly)
    assert one.state == "met" or not one.is_clear
    assert words(one)


def test_ratio_has_a_goal_where_none_is_written() -> None:
    assert goals_of(compile_policy(Policy(), "policy")["goals"]) == (RATIO,)


def compiled(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "vsm.toml"
    file.write_text(text + COMMAND, encoding="utf-8")
    return compile_policy(load_config(file).policy, "policy")["goals"]


def test_written_goals_are_taken(tmp_path: Path) -> None:
    text = (
        '[[policy.goals]]\nmeasure = "requisite_ratio"\nat_least = 0.8\n'
        '[[policy.goals]]\nintegration = "papers"\nat_least = 0.9\n'
    )
    assert goals_of(compiled(tmp_path, text)) == (Goal("requisite_ratio", "", 0.8), PAPERS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[policy.goals]]\nintegration = "nobody"\nat_least = 0.9\n', "no integration 'nobody'"),
        ("[[policy.goals]]\nat_least = 0.9\n" * 2, "a second goal"),
        (
            '[[policy.goals]]\nat_least = 0.9\nmeasure = "requisite_ratio"\nintegration = "it"\n',
            "the ratio is of the whole",
        ),
        ("[[policy.goals]]\nat_least = 1.5\n", "at_least"),
    ],
)
def test_goal_that_cannot_be_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        compiled(tmp_path, text)


def test_successor_hurts_as_its_predecessor_did_and_says_what_lasts_again_and_again() -> None:
    ratio: Any = {"requisite_ratio": {"low": 0.65, "high": 0.72}}  # neither missed nor clear
    clear: Any = {"requisite_ratio": {"low": 0.8, "high": 0.9}}
    fresh, heir = Goals(), Goals()
    for one in (fresh, heir):
        one.configure({"goals": [RATIO._asdict()]})
    heir.relearn([list(RATIO), ["wealth", "", 1.0]])
    assert [row["hurts"] for row in heir.rows({}, ratio)] == [True]
    assert fresh.feel({}, ratio, 5.0) == []
    assert [one.severity for one in heir.feel({}, ratio, 5.0)] == ["pain"]
    assert heir.record().detail == {"missed": [list(RATIO)]}
    assert heir.feel({}, ratio, 4.0 + SAY_AGAIN_S) == []
    (again,) = heir.feel({}, ratio, 5.0 + SAY_AGAIN_S)
    assert again.severity == "pain"
    assert again.detail.endswith(": undecided (0.650 to 0.720) now, missed before")
    assert [one.severity for one in heir.feel({}, clear, 6.0 + SAY_AGAIN_S)] == ["relief"]
    assert heir.record().detail == {"missed": []}
    assert heir.feel({}, clear, 9.0 + 3 * SAY_AGAIN_S) == []


def test_goal_that_an_edited_configuration_has_no_more_is_relieved_by_the_successor() -> None:
    heir = Goals()
    heir.configure({"goals": []})
    heir.relearn([list(PAPERS)])
    (relief,) = heir.feel({}, {}, 5.0)
    assert (relief.severity, relief.subject) == ("relief", "papers")
