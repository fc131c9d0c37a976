"""Every attempt x tier x user fails inside, and succeeds outside: one test each.

One confined process runs the whole table; the tests look at its answers.
"""

import json
import os
from pathlib import Path
from typing import Any

import leaks
import pytest
from attempts import ATTEMPTS

pytestmark = pytest.mark.isolation
KERNEL_FILES = {"open_sysrq_for_writing"}
TIERS = ("namespaced", "landlocked")


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
    counted = {"memory", "processes", "cpu"} & set(attempt.guards)
    if any(layers[layer] == "absent" for layer in counted):
        return f"{attempt.guards[0]} is reported as absent"
    return ""


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_is_refused_inside(arena: Any, scratch: Path, tier: str, name: str) -> None:
    answers = _answers(arena, scratch, tier)
    result = answers.results[name]
    if result["outcome"] == "unavailable":
        pytest.skip(result["detail"])
    reason = _why_possible(arena, tier, name, answers.layers)
    expected = "possible" if reason else "refused"
    assert result["outcome"] == expected, f"{name}: {json.dumps(result)} ({reason or 'guarded'})"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_succeeds_outside(arena: Any, scratch: Path, name: str) -> None:
    if ATTEMPTS[name].control == "root" and arena.user != "root":
        pytest.skip("only root can do it unconfined: root's control proves the attempt")
    result = _answers(arena, scratch, "outside").results[name]
    if result["outcome"] == "unavailable":
        pytest.skip(result["detail"])
    if result["detail"] == "ENOSYS" or (result["detail"] == "ENOENT" and name in KERNEL_FILES):
        pytest.skip("this kernel was built without it")
    assert result["outcome"] == "possible", f"{name}: {json.dumps(result)}"


def test_every_known_gap_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "security-model.md").read_text(encoding="utf-8")
    gaps = {name for name, attempt in ATTEMPTS.items() if attempt.weaker}
    assert {name for name in gaps if f"`{name}`" not in text} == set()
