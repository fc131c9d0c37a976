"""Whoever asks cannot keep the supervisor busy: the same question is read once in a while."""

from types import SimpleNamespace
from typing import Any

import pytest

from vsm.errors import VsmError
from vsm.introspection import reflection
from vsm.introspection.reflection import KEPT_S, Reflection


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(reflection, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_same_question_is_not_read_twice_in_a_few_seconds(clock: list[float]) -> None:
    read: list[str] = []
    supervisor: Any = SimpleNamespace()
    past = Reflection(supervisor)

    def ask(about: str) -> Any:
        return past._once("events", about, lambda words: read.append(words) or len(read))

    assert [ask("a"), ask("a"), ask("b")] == [1, 1, 2]
    clock[0] += KEPT_S + 0.1
    assert ask("a") == 3


def test_answers_that_are_kept_are_few_whatever_is_asked(clock: list[float]) -> None:
    supervisor: Any = SimpleNamespace()
    past = Reflection(supervisor)
    for number in range(1000):
        clock[0] += 1.0
        past._once("events", str(number), lambda words: words)
        assert len(past._kept) <= 64


def test_questions_that_are_always_others_are_read_at_a_bounded_rate(clock: list[float]) -> None:
    read: list[str] = []
    supervisor: Any = SimpleNamespace()
    past = Reflection(supervisor)
    refused = 0
    for number in range(1000):  # in ten seconds
        clock[0] += 0.01
        try:
            past._once("events", str(number), read.append)
        except VsmError:
            refused += 1
    assert len(read) + refused == 1000
    assert 32 <= len(read) < 80


def test_counts_are_read_once_however_often_a_model_asks(clock: list[float]) -> None:
    looks: list[int] = []

    def dump() -> dict[str, Any]:
        looks.append(1)
        return {"integrations": {"git": {"classes": {"log": [40, 0, 0, 0, 0, 0]}}}}

    supervisor: Any = SimpleNamespace(systems=SimpleNamespace(demand=SimpleNamespace(dump=dump)))
    past = Reflection(supervisor)
    for _ in range(5):
        assert past.capabilities()[0]["calls"] == 40
    assert len(looks) == 1
    clock[0] += KEPT_S + 0.1
    past.capabilities()
    assert len(looks) == 2
