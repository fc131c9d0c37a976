"""What the supervisor says about refused calls, and when."""

import asyncio
import os

from vsm.core.syscalls import numbers
from vsm.supervision.refused_calls import MOST_UNNAMED, OTHERS, RefusedCalls

TABLE = numbers(os.uname().machine)
BPF, PTRACE = TABLE["bpf"], TABLE["ptrace"]


def test_a_new_name_is_said_at_once_and_a_known_one_when_the_worker_ends() -> None:
    said: list[tuple[str, dict[str, int]]] = []

    async def scene() -> None:
        calls = RefusedCalls(lambda name, counts: said.append((name, dict(counts))))
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
        calls.close()

    asyncio.run(scene())
    assert said == [
        ("a", {"bpf": 1}),
        ("b", {"bpf": 5}),
        ("a", {"bpf": 2, "number 100000": 1, "ptrace": 1}),
        ("a", {"bpf": 7}),
    ]


def test_server_that_tries_every_number_there_is_fills_no_memory() -> None:
    said: list[dict[str, int]] = []

    async def scene() -> None:
        calls = RefusedCalls(lambda _name, counts: said.append(dict(counts)))
        for start in range(10_000, 20_000, 1000):
            calls.add("a", dict.fromkeys(range(start, start + 1000), 2))
        calls.ended("a")
        counts = calls.counts("a")
        assert len(counts) == MOST_UNNAMED + 1
        assert counts[OTHERS] == 2 * (10_000 - MOST_UNNAMED)
        assert len(calls._tallies["a"].known) == MOST_UNNAMED + 1
        calls.forget("a")
        calls.add("a", {30_000: 1})
        assert calls.counts("a") == {"number 30000": 1}
        calls.close()

    asyncio.run(scene())
    assert len(said) <= 3, "what is known already is no news"
