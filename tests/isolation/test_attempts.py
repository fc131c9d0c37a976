"""Every attempt x tier x user fails inside, and succeeds outside: one test for each group.

One confined process runs the whole table; the tests look at its answers.
"""

import json
import os
from pathlib import Path
from typing import Any

import leaks
import pytest

from vsm.attempts import ATTEMPTS

pytestmark = pytest.mark.isolation
# What succeeds where Landlock stands alone and is older than this ABI, and the profile may lack it.
SINCE_ABI = {
    "truncate_a_file_outside": 3,
    "signal_a_process_outside": 6,
    "signal_the_process_that_started_us": 6,
    "signal_a_process_outside_by_a_descriptor": 6,
    "queue_a_signal_for_a_process_outside": 6,
}
KERNEL_FILES = {"open_sysrq_for_writing"}
TIERS = ("namespaced", "landlocked")
GROUPS = {
    group: [name for name, attempt in ATTEMPTS.items() if attempt.group == group]
    for group in sorted({attempt.group for attempt in ATTEMPTS.values()})
}


class Answers:
    """What one run of the whole table answered."""

    def __init__(self, arena: Any, scratch: Path, **spec: Any) -> None:
        before = leaks.snapshot(scratch)
        slow = [name for name, attempt in ATTEMPTS.items() if "cpu" in attempt.guards]
        self.results = arena.attempts([n for n in ATTEMPTS if n not in slow], **spec)
        profile = arena.profile("[limits]\ncpu = 0.1\n", "slow")
        self.results |= arena.attempts(slow, profile=profile, **spec)
        self.layers = dict(arena.layers)
        if os.environ.get("VSM_SHOW_ANSWERS"):
            print(arena.user, spec, json.dumps(self.results))  # noqa: T201  # asked for
        assert not leaks.leaks_since(before, scratch)


_cache: dict[tuple[str, str], Answers] = {}


@pytest.fixture(autouse=True)
def test_leaves_nothing() -> None:
    """Answers checks each run; hundreds of look-ups in them need no check of their own."""


def _answers(arena: Any, scratch: Path, where: str) -> Answers:
    key = (arena.user, where)
    if where != "outside":
        arena.need(where)
    if key not in _cache:
        spec = {"confined": False} if where == "outside" else {"tier": where}
        _cache[key] = Answers(arena, scratch, **spec)
    return _cache[key]


def _why_possible(arena: Any, tier: str, name: str, layers: dict[str, str]) -> str:
    """Why the attempt is expected to succeed here; "" where it must not."""
    attempt = ATTEMPTS[name]
    weaker = attempt.weaker.get(tier) or attempt.weaker.get(f"{tier}/{arena.user}")
    if weaker:
        return str(weaker)
    since = SINCE_ABI.get(name, 0)
    if layers["landlock"] == "absent" and arena.host["landlock_abi"] < since:
        return f"Landlock has it since ABI {since}"
    counted = {"memory", "processes", "cpu"} & set(attempt.guards)
    if any(layers[layer] == "absent" for layer in counted):
        return f"{attempt.guards[0]} is reported as absent"
    return ""


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("group", GROUPS)
def test_attempts_are_refused_inside(arena: Any, scratch: Path, tier: str, group: str) -> None:
    answers = _answers(arena, scratch, tier)
    wrong = {}
    for name in GROUPS[group]:
        result = answers.results[name]
        expected = "possible" if _why_possible(arena, tier, name, answers.layers) else "refused"
        if name == "use_twice_the_memory_limit":
            expected = "refused"  # RLIMIT_DATA, where no cgroup does it
        if result["outcome"] not in {expected, "unavailable"}:
            wrong[name] = f"{result}, expected {expected}"
    assert not wrong


@pytest.mark.parametrize("group", GROUPS)
def test_attempts_succeed_outside(arena: Any, scratch: Path, group: str) -> None:
    answers = _answers(arena, scratch, "outside")
    failed = {
        name: answers.results[name]
        for name in GROUPS[group]
        if answers.results[name]["outcome"] not in {"possible", "unavailable"}
        and not _host_refuses(arena, name, answers.results[name]["detail"])
    }
    assert not failed
    assert any(answers.results[name]["outcome"] == "possible" for name in GROUPS[group]) or (
        group == "kernel files" and arena.user != "root"
    )


def _host_refuses(arena: Any, name: str, detail: str) -> bool:
    """Only root can (root's control proves the attempt), the kernel lacks it, or a container."""
    if ATTEMPTS[name].control == "root" and arena.user != "root":
        return True
    if detail == "ENOSYS" or (detail == "ENOENT" and name in KERNEL_FILES):
        return True
    return ATTEMPTS[name].group == "kernel files" and detail in {"EACCES", "EPERM", "EROFS"}


def test_every_known_gap_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "security-model.md").read_text(encoding="utf-8")
    gaps = {name for name, attempt in ATTEMPTS.items() if attempt.weaker}
    assert {name for name in gaps if f"`{name}`" not in text} == set()
