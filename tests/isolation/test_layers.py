"""A layer that the host cannot give stops the worker, unless its profile says that it may lack."""

from typing import Any

import pytest

pytestmark = pytest.mark.isolation


@pytest.fixture(autouse=True)
def both_tiers(arena: Any) -> None:
    arena.need("namespaced")
    arena.need("landlocked")


TRUE = ["/usr/bin/true"]

# layer → what the driver is told: facts of a host without it
WITHOUT: dict[str, dict[str, Any]] = {
    "landlock": {"host": {"landlock_abi": 0}, "tier": "namespaced"},
    "seccomp": {"host": {"seccomp": False}, "tier": "namespaced"},
    "memory": {"limits": False},
    "cpu": {"limits": False},
}


def _only(layer: str, arena: Any) -> str:
    """The profile for a host that lacks `layer`; what else it lacks anyhow is allowed."""
    other = {"memory", "cpu", "processes"} - {layer}
    no_groups = arena.user == "user" or layer in {"memory", "cpu"}
    removed = [layer] if layer in {"memory", "cpu"} else []
    removed += [] if no_groups else sorted(other)
    entries = ", ".join(f'"-{name}"' for name in removed)
    return f"may_lack = [{entries}]\n" if removed else ""


@pytest.mark.parametrize("layer", WITHOUT)
def test_worker_is_refused_without_a_required_layer(arena: Any, layer: str) -> None:
    profile = arena.profile(_only(layer, arena), f"needs-{layer}")
    answer = arena.run(TRUE, profile=profile, **WITHOUT[layer])
    assert answer.get("layer") == layer, answer
    assert answer["remedy"]


@pytest.mark.parametrize("layer", WITHOUT)
def test_worker_runs_without_a_layer_that_it_may_lack_and_says_so(arena: Any, layer: str) -> None:
    profile = arena.profile(f'may_lack = ["{layer}"]\n', f"lacks-{layer}")
    answer = arena.run(TRUE, profile=profile, **WITHOUT[layer])
    assert answer.get("exit") == 0, answer
    states = {item["name"]: item["state"] for item in answer["layers"]}
    assert states[layer] == "absent", answer


@pytest.mark.parametrize("layer", ["root_filesystem", "namespaces"])
def test_landlocked_tier_says_that_it_lacks(arena: Any, layer: str) -> None:
    answer = arena.run(TRUE, tier="landlocked")
    states = {item["name"]: item["state"] for item in answer["layers"]}
    assert states[layer] == "absent", answer


def test_profile_that_insists_on_namespaces_is_refused_without_them(arena: Any) -> None:
    profile = arena.profile('tier = "namespaced"\n', "insists")
    answer = arena.run(TRUE, profile=profile, host={"tier": "landlocked"})
    assert answer.get("layer") == "namespaces", answer


def test_asking_for_the_landlocked_tier_does_not_override_the_profile(arena: Any) -> None:
    profile = arena.profile('tier = "namespaced"\n', "insists")
    answer = arena.run(TRUE, profile=profile, tier="landlocked")
    assert answer.get("layer") == "namespaces", answer


def test_landlocked_tier_without_landlock_is_refused_whatever_the_profile_says(arena: Any) -> None:
    profile = arena.profile('may_lack = ["landlock", "seccomp", "network"]\n', "lacks-all")
    answer = arena.run(TRUE, profile=profile, tier="landlocked", host={"landlock_abi": 0})
    assert answer.get("layer") == "landlock", answer


@pytest.mark.parametrize("abi", [2, 5])
def test_landlock_that_is_too_old_to_stand_alone_is_refused(arena: Any, abi: int) -> None:
    abi = min(abi, arena.host["landlock_abi"])
    host = {"landlock_abi": abi}
    needs = 3 if arena.user == "root" else 6
    answer = arena.run(TRUE, tier="landlocked", host=host)
    assert answer.get("layer") == ("landlock" if abi < needs else None), answer
    assert arena.run(TRUE, tier="namespaced", host=host).get("exit") == 0


def test_landlocked_tier_without_seccomp_has_no_network_layer(arena: Any) -> None:
    profile = arena.profile('may_lack = ["seccomp"]\n', "lacks-seccomp-only")
    answer = arena.run(TRUE, profile=profile, tier="landlocked", host={"seccomp": False})
    assert answer.get("layer") == "network", answer


def test_claimed_facts_do_not_bring_a_layer_into_force(arena: Any) -> None:
    """A Landlock ABI that the kernel does not have: the trial in the child decides."""
    answer = arena.run(TRUE, tier="namespaced", host={"landlock_abi": 99})
    states = {item["name"]: item for item in answer.get("layers", [])}
    assert "refused" in answer or "ABI 99" not in states["landlock"]["detail"], answer


def test_own_user_is_required_unless_the_profile_says_otherwise(arena: Any) -> None:
    if arena.user == "root":
        pytest.skip("root's workers have a uid of their own")
    answer = arena.run(TRUE, profile=arena.profile('may_lack = ["-user"]\n', "needs-user"))
    assert answer.get("layer") == "user", answer


def test_proxy_network_without_namespaces_is_refused_and_not_downgraded(arena: Any) -> None:
    profile = arena.profile('[network]\nmode = "proxy"\nallow = ["example.org:443"]\n', "proxy")
    assert arena.run(TRUE, profile=profile, tier="landlocked").get("layer") == "network"
