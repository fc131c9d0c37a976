"""The five systems confine themselves after the fork: what they try afterwards is refused."""

from typing import Any

import pytest

from vsm.attempts import ATTEMPTS

pytestmark = pytest.mark.isolation
SYSTEMS = ("system1", "system2", "system3", "system4", "system5")
GROUPS = {"files", "processes", "namespaces", "system calls", "privileges", "network", "ipc"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_system_is_refused_every_attempt_but_the_known_gaps(arena: Any, system: str) -> None:
    arena.need("landlocked")
    if arena.user == "user" and system not in {"system1", "system4"}:
        pytest.skip("differs from root's only in the uid, which systems 1 and 4 show")
    attempts = {name: a for name, a in ATTEMPTS.items() if a.group in GROUPS}
    gaps = {n for n, a in attempts.items() if a.weaker.keys() & {"landlocked", "landlocked/user"}}
    results = arena.attempts(list(attempts), system=system)
    outcomes = {name: result["outcome"] for name, result in results.items()}
    assert "broken" not in outcomes.values(), results
    assert {name for name, outcome in outcomes.items() if outcome == "possible"} <= gaps
    assert len([outcome for outcome in outcomes.values() if outcome == "refused"]) > 100
