"""What counts as worse than accepted, and how two outcomes become a row."""

import argparse
import json

import pytest

from vsm.attempts import Attempt
from vsm.audit.result import Accepted, Result, Row, accept, compare, judge
from vsm.commands import audit

IN_FORCE = {"landlock": "in force", "seccomp": "in force", "memory": "absent"}


def attempt(*guards: str, control: str = "any", **weaker: str) -> Attempt:
    return Attempt("try_it", "files", lambda _w: None, guards, control=control, weaker=weaker)


def row(one: Attempt, inside: str, outside: str = "possible", detail: str = "EPERM") -> Row:
    return judge(
        one,
        {"outcome": inside, "detail": detail},
        {"outcome": outside, "detail": detail},
        tier="landlocked",
        user="user",
        layers=IN_FORCE,
    )


def result(*rows: Row, layers: dict[str, str] = IN_FORCE) -> Result:
    return Result(profile="p", tier="landlocked", user="user", layers=layers, rows=rows)


def test_blocked_attempt_names_the_guards_in_force() -> None:
    blocked = row(attempt("landlock", "memory"), "refused")
    assert (blocked.verdict, blocked.by, blocked.control) == ("blocked", ("landlock",), "possible")


def test_control_says_why_it_proves_nothing() -> None:
    assert row(attempt("seccomp", control="root"), "refused", "refused").control == "needs root"
    assert row(attempt("seccomp"), "refused", "refused").control == "refused (EPERM)"
    assert row(attempt("seccomp"), "refused", "refused", "ENOSYS").control == "unavailable"


def test_opening_has_its_documented_reason_or_none() -> None:
    assert row(attempt("landlock", landlocked="known"), "possible").reason == "known"
    assert row(attempt("landlock", namespaced="known"), "possible").reason == ""
    assert "memory is absent" in row(attempt("memory"), "possible").reason


def test_same_result_is_no_worse() -> None:
    found = result(row(attempt("landlock", landlocked="known"), "possible"))
    assert list(compare(found, accept(found, {}))) == []


def test_new_opening_lost_layer_and_broken_attempt_are_worse() -> None:
    before = Accepted(layers=("landlock", "user"), open={})
    opened = row(attempt("landlock"), "possible")
    broken = row(attempt("landlock"), "broken", detail="died")
    problems = "\n".join(compare(result(opened, broken), before))
    assert "the layer user is no longer in force" in problems
    assert "try_it is open" in problems
    assert "try_it did not run: died" in problems


def test_what_was_never_accepted_is_worse() -> None:
    assert list(compare(result(), None)) == ["p/landlocked/user: was never accepted"]


def test_accepting_keeps_written_reasons_and_asks_for_others() -> None:
    found = result(row(attempt("landlock"), "possible"))
    assert accept(found, {}).open == {"try_it": "?"}
    assert list(compare(found, accept(found, {})))
    kept = accept(found, {"try_it": "written by hand"})
    assert kept.open == {"try_it": "written by hand"}
    assert list(compare(found, kept)) == []


def test_the_command_prints_what_it_found_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result(row(attempt("landlock"), "refused"))
    monkeypatch.setattr(audit, "_results", lambda _args: iter([found, ("p/namespaced/user", "no")]))
    args = argparse.Namespace(accept=False, accepted=None, json=True, profile="p")
    assert audit.run(args) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["results"][0]["rows"][0]["verdict"] == "blocked"
    assert printed["refused"] == {"p/namespaced/user": "no"}
