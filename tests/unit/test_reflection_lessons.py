"""Which choices, retries, limits and routes helped: from the record, or not enough evidence."""

from typing import Any

import pytest

from vsm.core.demand import NOBODY, OUTCOMES
from vsm.core.lessons import ALIKE, BETTER, NOT_ENOUGH, WORSE, Fared, compare
from vsm.introspection.lessons import (
    LEAST_CALLS,
    LEAST_TRIALS,
    of_capabilities,
    of_decisions,
    of_instances,
    of_retries,
    turned_out_well,
)

Rows = list[dict[str, Any]]


# ---- retries -------------------------------------------------------------------------------


def retried(integration: str, answered: int, failed: int) -> dict[str, Any]:
    return {"integration": integration, "detail": {"answered": answered, "failed": failed}}


def test_share_of_retries_that_were_answered_is_told_by_integration() -> None:
    files, papers = of_retries(
        [retried("files", 30, 5), retried("papers", 1, 0), retried("files", 10, 5)]
    )
    assert (files["choice"], files["decisions"]) == ("send again to files", 50)
    assert files["turned_out_well"]["share"] == 0.8
    assert files["turned_out_well"]["low"] < 0.8 < files["turned_out_well"]["high"]
    assert papers["decisions"] < LEAST_TRIALS
    assert papers["turned_out_well"] is None, "one is not enough evidence"


def test_nothing_is_learned_of_what_never_happened() -> None:
    assert of_decisions([]) == of_retries([]) == of_instances([]) == of_capabilities({}) == []


# ---- limits --------------------------------------------------------------------------------


def moved(amount: int, outcome: Any, resource: str = "memory") -> dict[str, Any]:
    return {
        "rule": "budget.raise.need",
        "subject": "files",
        "choice": f"{resource} {amount} MiB",
        "inputs": {"resource": resource},
        "outcome": outcome,
    }


def limit(before: float, since: float) -> dict[str, Any]:
    relieved = since == 0
    return {
        "state": "in force",
        "pressure_before": before,
        "pressure_since": since,
        "relieved": relieved,
    }


def test_moved_limits_of_one_integration_are_one_choice_with_figures_before_and_after() -> None:
    rows = [moved(100 + number, limit(6, 0)) for number in range(9)]
    rows += [moved(300, limit(6, 10)), moved(400, None)]
    (row,) = of_decisions(rows)
    assert (row["choice"], row["decisions"], row["outcomes_known"]) == ("memory of files", 11, 10)
    assert row["turned_out_well"]["share"] == 0.9
    assert row["before_after"] == {
        "figure": "times that it was met in a sample",
        "before": 6.0,
        "after": 1.0,
        "moves": 10,
    }


def test_moved_size_of_a_pool_is_told_by_its_throughput() -> None:
    outcome = {"state": "in force", "answered_per_s": [6.0, 12.0], "relieved": True}
    (row,) = of_decisions([moved(6, outcome, "instances")])
    assert row["choice"] == "instances of files"
    assert row["turned_out_well"] is None
    assert row["before_after"]["figure"] == "answers per second"
    assert (row["before_after"]["before"], row["before_after"]["after"]) == (6.0, 12.0)


@pytest.mark.parametrize(
    ("outcome", "well"),
    [
        ({"state": "in force", "relieved": True}, True),
        ({"state": "in force", "relieved": False}, False),
        ({"state": "in force"}, None),  # nothing was measured
        ({"state": "refused", "detail": "no"}, False),
        ({"state": "ready"}, True),
        ({"state": "exited", "reason": "killed"}, False),
        ({"state": "stopped"}, None),  # by command
        ({"state": "rested"}, True),
        ({"state": "closed", "reason": "answered"}, True),
        ({"state": "opened again"}, False),
        ({"state": "not served"}, False),
        ({"state": "revoked"}, None),
        ({"state": "not carried out"}, None),  # nobody knows what it would have brought
        ({"state": ["ready"]}, None),
        ({"verdict": "approved"}, True),
        ({"after_s": 3}, None),
        (None, None),
        ("ready", None),
    ],
)
def test_an_outcome_says_whether_a_choice_was_good(outcome: Any, well: bool | None) -> None:
    assert turned_out_well(outcome) is well


# ---- routes --------------------------------------------------------------------------------


def test_better_is_only_whose_interval_lies_above_all_others() -> None:
    found = compare(
        {"a": Fared(99, 100), "b": Fared(50, 100), "c": Fared(52, 100), "d": Fared(0, 100)}, 30
    )
    assert found == {"a": BETTER, "b": ALIKE, "c": ALIKE, "d": WORSE}


def test_too_few_calls_or_nobody_else_is_not_enough_evidence() -> None:
    assert compare({"a": Fared(29, 29), "b": Fared(0, 100)}, 30) == {
        "a": NOT_ENOUGH,
        "b": NOT_ENOUGH,
    }
    assert compare({"a": Fared(100, 100)}, 30) == {"a": NOT_ENOUGH}
    assert compare({"a": Fared(0, 0), "b": Fared(0, 0)}, 0) == {"a": NOT_ENOUGH, "b": NOT_ENOUGH}


def routed(*instances: list[int]) -> dict[str, Any]:
    return {"integration": "pool", "detail": {"instances": list(instances)}}


def test_what_instances_answered_adds_up_over_the_record() -> None:
    one, two = of_instances([routed([1, 40, 0], [2, 10, 30]), routed([1, 20, 0])])
    assert (one["choice"], one["decisions"], one["compared"]) == ("pool#1", 60, BETTER)
    assert (two["choice"], two["decisions"], two["compared"]) == ("pool#2", 40, WORSE)
    assert two["turned_out_well"]["share"] == 0.25


def counts(well: int, badly: int) -> list[int]:
    row = [0] * len(OUTCOMES)
    row[0], row[1] = well, badly
    return row


def test_only_tools_that_several_integrations_were_asked_for_are_compared() -> None:
    found = of_capabilities(
        {
            "a": {"classes": {"search": counts(90, 10), "own": counts(5, 0)}},
            "b": {"classes": {"search": counts(10, LEAST_CALLS)}},
            NOBODY: {"classes": {"search": counts(0, 50), "own": counts(0, 9)}},
        }
    )
    verdicts = {row["choice"]: row["compared"] for row in found}
    assert verdicts == {"a for search": BETTER, "b for search": WORSE}
