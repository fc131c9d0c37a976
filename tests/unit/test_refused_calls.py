"""What the supervisor says about refused calls, and when it raises the alarm."""

import asyncio
import os
from collections.abc import Callable, Mapping

import pytest

from vsm.core import refusals
from vsm.core.syscalls import numbers
from vsm.refused_calls import RefusedCalls

TABLE = numbers(os.uname().machine)
BPF, PTRACE = TABLE["bpf"], TABLE["ptrace"]


class Heard:
    """Everything that is said, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, int]]] = []
        self.alarms: list[tuple[str, str]] = []
        self.calm = asyncio.Event()

    def say(self, integration: str, calls: Mapping[str, int]) -> None:
        self.said.append((integration, dict(calls)))

    def hurt(self, integration: str, _cause: str, why: str) -> None:
        self.alarms.append((integration, why))

    def relieve(self, integration: str, _cause: str, _why: str) -> None:
        self.alarms.append((integration, ""))
        self.calm.set()


def play(scene: Callable[[RefusedCalls, Heard], None], *, until_calm: bool = False) -> Heard:
    async def run() -> Heard:
        heard = Heard()
        calls = RefusedCalls(heard.say, heard.hurt, heard.relieve)
        scene(calls, heard)
        if until_calm:
            await asyncio.wait_for(heard.calm.wait(), 30)
        calls.close()
        return heard

    return asyncio.run(run())


def test_a_new_name_is_said_at_once_and_a_known_one_when_the_worker_ends() -> None:
    def scene(calls: RefusedCalls, _heard: Heard) -> None:
        calls.add("a", {BPF: 1})
        calls.add("a", {BPF: 2})
        calls.add("b", {BPF: 5})
        calls.add("a", {PTRACE: 1, 100_000: 1})
        calls.add("a", {BPF: 7})
        calls.ended("a")
        calls.ended("a")
        assert calls.counts("a") == {"bpf": 10, "ptrace": 1, "number 100000": 1}
        assert calls.counts("c") == {}
        calls.forget("a")
        assert calls.counts("a") == {}

    assert play(scene).said == [
        ("a", {"bpf": 1}),
        ("b", {"bpf": 5}),
        ("a", {"bpf": 2, "number 100000": 1, "ptrace": 1}),
        ("a", {"bpf": 7}),
    ]


def test_many_raise_the_alarm_until_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "QUIET_S", 0.01)
    few, many = refusals.MANY - 1, refusals.MANY

    def scene(calls: RefusedCalls, _heard: Heard) -> None:
        calls.add("a", {BPF: few})
        calls.add("b", {BPF: many})

    heard = play(scene, until_calm=True)
    assert heard.alarms == [("b", f"it insists on bpf {many}"), ("b", "")]


def test_an_integration_that_is_gone_hurts_no_more() -> None:
    def scene(calls: RefusedCalls, heard: Heard) -> None:
        calls.add("a", {BPF: refusals.MANY})
        calls.forget("a")
        assert heard.alarms[-1] == ("a", "")

    assert len(play(scene).alarms) == 2
