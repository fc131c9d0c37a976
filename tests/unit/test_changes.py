from typing import Any

import msgspec
import pytest

from vsm.configuration.changes import Change, compare, differing, with_profile
from vsm.configuration.config import Config, Gateway, Integration, RestartPolicy, Systems
from vsm.configuration.profile import load_profile
from vsm.supervision.instance_set import terms_of


def integration(name: str = "a", **more: Any) -> Integration:
    return Integration(name=name, command=("/bin/true",), **more)


def config(*integrations: Integration, **more: Any) -> Config:
    return Config(path="/x", integrations={one.name: one for one in integrations}, **more)


def test_nothing_changed_is_no_change() -> None:
    assert compare(config(integration()), config(integration())) == []


@pytest.mark.parametrize(
    ("after", "action"),
    [
        ({"call_timeout_s": 5.0}, "update"),
        ({"restart": RestartPolicy(intensity=9)}, "update"),
        ({"env": {"A": "1"}}, "restart"),
        ({"prefix": "other"}, "restart"),
        ({"concurrency": 2, "call_timeout_s": 5.0}, "restart"),
        ({"pool_max": 8}, "restart"),  # of no account where one server stays
        ({"enabled": False}, "stop"),
        ({"enabled": False, "env": {"A": "1"}}, "stop"),
    ],
)
def test_each_key_has_its_own_cost(after: dict[str, Any], action: str) -> None:
    (change,) = compare(config(integration()), config(integration(**after)))
    assert (change.action, set(change.keys)) == (action, set(after))


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        ({"instances": "pool"}, {"pool_min": 2, "pool_max": 8}, "update"),
        ({"instances": "session"}, {"max_instances": 2, "spares": 1}, "update"),
        ({"instances": "session", "zygote": True}, {"max_instances": 2}, "update"),
        ({"start": "lazy"}, {"idle_stop_s": 9.0}, "update"),
        ({"idle_stop_s": 1.0}, {"idle_stop_s": 9.0}, "update"),
        ({"idle_stop_s": 1.0}, {"idle_stop_s": 0.0}, "restart"),
        ({}, {"idle_stop_s": 9.0}, "restart"),
        ({"instances": "pool"}, {"instances": "session"}, "restart"),
        ({"instances": "pool"}, {"pool_max": 8, "env": {"A": "1"}}, "restart"),
    ],
)
def test_how_many_there_may_be_moves_where_there_are_instances(
    before: dict[str, Any], after: dict[str, Any], action: str
) -> None:
    old, new = integration(**before), integration(**(before | after))
    (change,) = compare(config(old), config(new))
    assert (change.action, set(change.keys)) == (action, set(after))
    if action == "update":
        kinds = {terms.kind for one in (old, new) if (terms := terms_of(one)) is not None}
        assert len(kinds) == 1, "both have instances, of one kind"


def test_every_key_of_an_integration_is_compared() -> None:
    for field in Integration.__struct_fields__:
        if field == "name":
            continue
        other = msgspec.structs.replace(integration(), **{field: object()})
        assert len(compare(config(integration()), config(other))) == 1, field


def test_removed_come_before_added() -> None:
    found = compare(config(integration("old")), config(integration("new")))
    assert found == [Change(name="old", action="remove"), Change(name="new", action="start")]


def test_added_but_disabled_is_not_started() -> None:
    found = compare(config(), config(integration(enabled=False)))
    assert found == [Change(name="a", action="update")]


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"gateway": Gateway(http="127.0.0.1:1")}, "gateway.http"),
        ({"gateway": Gateway(auth="none")}, "gateway.auth"),
        ({"systems": Systems(system1="mine")}, "systems.system1"),
    ],
)
def test_what_is_no_integration_needs_a_restart_of_vsm(more: dict[str, Any], key: str) -> None:
    assert compare(config(), config(**more)) == [Change(name=key, action="impossible", keys=(key,))]


def test_limits_of_control_groups_move_and_all_else_restarts() -> None:
    old = load_profile("integration")
    limits = msgspec.structs.replace(old.limits, memory_bytes=1, processes=2)
    change = with_profile(None, "a", old, msgspec.structs.replace(old, limits=limits))
    assert change is not None
    assert (change.action, change.limits) == ("update", ("memory_bytes", "processes"))
    files = msgspec.structs.replace(limits, open_files=3)
    change = with_profile(None, "a", old, msgspec.structs.replace(old, limits=files))
    assert change is not None
    assert (change.action, "profile.limits.open_files" in change.keys) == ("restart", True)
    env = msgspec.structs.replace(old, environment={"A": "1"})
    change = with_profile(None, "a", old, env)
    assert change is not None
    assert change.action == "restart"


def test_a_profile_s_description_changes_nothing() -> None:
    old = load_profile("integration")
    assert with_profile(None, "a", old, msgspec.structs.replace(old, description="x")) is None
    assert differing(old, old) == []


def test_a_removal_is_not_undone_by_an_edited_profile() -> None:
    old = load_profile("integration")
    new = msgspec.structs.replace(old, environment={"A": "1"})
    removal = Change(name="a", action="remove")
    assert with_profile(removal, "a", old, new) == removal


def test_what_vsm_looks_for_itself_moves_without_a_restart() -> None:
    old = load_profile("integration")
    limits = msgspec.structs.replace(old.limits, disk_bytes=5, disk_files=None)
    new = msgspec.structs.replace(old, limits=limits)
    change = with_profile(None, "a", old, new)
    assert change is not None
    assert (change.action, set(change.limits)) == ("update", {"disk_bytes", "disk_files"})
