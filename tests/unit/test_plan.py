"""Compiling plans: which layers, which operations, which refusals. Nothing is executed."""

import itertools
import json
import os
from pathlib import Path

import msgspec
import pytest

from vsm.configuration.profile import Profile, load_profile
from vsm.confinement.execution import Plan, same_steps
from vsm.confinement.operations import EnterCgroupNamespace, ForbidUserNamespaces
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.confinement.probe import HostFacts
from vsm.confinement.root_operations import WriteFile
from vsm.errors import ConfinementError
from vsm.linux import namespaces

UID = 1_900_000_000
ROOT = HostFacts(root=True, tier="namespaced", landlock_abi=7, seccomp=True, idmapped_mounts=True)
USER = msgspec.structs.replace(ROOT, root=False)
CGROUP = ("memory", "processes", "cpu")


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("integration")


def request_for(host: HostFacts, **changes: object) -> WorkerRequest:
    fields: dict[str, object] = {
        "name": "w",
        "argv": ("/bin/true",),
        "uid": UID if host.root else None,
    }
    return WorkerRequest(**{**fields, **changes})  # type: ignore[arg-type]


def steps(plan: Plan) -> list[str]:
    return [type(step).__name__ for step in plan.operations]


def states(plan: Plan) -> dict[str, str]:
    return {layer["name"]: layer["state"] for layer in plan.layers}


@pytest.mark.parametrize(
    ("host", "tier", "absent"),
    [
        (ROOT, "namespaced", set()),
        (ROOT, "landlocked", {"root_filesystem", "namespaces"}),
        (USER, "namespaced", {"user"}),
        (USER, "landlocked", {"user", "root_filesystem", "namespaces"}),
    ],
)
def test_each_world_gives_the_layers_of_the_table(
    profile: Profile, host: HostFacts, tier: str, absent: set[str]
) -> None:
    plan = compile_plan(profile, request_for(host, tier=tier, cgroup_layers=CGROUP), host)
    assert {name for name, state in states(plan).items() if state == "absent"} == absent
    assert plan.tier == tier


def test_the_filter_comes_last_and_privileges_go_before_it(profile: Profile) -> None:
    for host in (ROOT, USER):
        for tier in ("namespaced", "landlocked"):
            order = steps(compile_plan(profile, request_for(host, tier=tier), host))
            shield = ["ShieldMiniInit"] if tier == "landlocked" else []
            last = ["DropPrivileges", "Restrict", *shield, "FilterSystemCalls"]
            assert order[-len(last) :] == last
            assert ("EnterRoot" in order) == (tier == "namespaced")


@pytest.mark.parametrize("tier", ["namespaced", "landlocked"])
def test_cgroups_are_joined_before_anything_of_the_workers_own(profile: Profile, tier: str) -> None:
    plan = compile_plan(profile, request_for(ROOT, tier=tier, cgroups=("/sys/fs/cgroup/x",)), ROOT)
    assert steps(plan)[plan.shared] == "JoinCgroups"


def test_what_is_done_ahead_is_the_same_for_every_worker_of_a_profile(
    profile: Profile, tmp_path: Path
) -> None:
    one = compile_plan(profile, request_for(ROOT, name="a", uid=UID, env={"A": "1"}), ROOT)
    other = compile_plan(
        profile,
        request_for(ROOT, name="b", uid=UID + 1, write=(str(tmp_path),), read=("/var/lib",)),
        ROOT,
    )
    assert one.shared > 10
    assert one.operations[: one.shared] == other.operations[: other.shared]
    assert "EnterRoot" not in steps(one)[: one.shared]


def test_a_plan_survives_json(profile: Profile, tmp_path: Path) -> None:
    for tier in ("namespaced", "landlocked"):
        request = request_for(USER, tier=tier, write=(str(tmp_path),), env={"A": "ü"})
        plan = compile_plan(profile, request, USER)
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_is_made_again_from_its_changes_and_those_of_a_sibling_are_few(
    profile: Profile,
) -> None:
    plans = [
        compile_plan(profile, request_for(host, tier=tier, name=name, **own), host)
        for host in (ROOT, USER)
        for tier in ("namespaced", "landlocked")
        for name, own in (
            ("w", {}),
            ("v", {"cwd": "/usr", "env": {"A": "b"}, "cgroups": ("/sys/fs/cgroup/none",)}),
        )
    ]
    for base, plan in itertools.product(plans, plans):
        text = json.dumps(plan.changes_from(base))
        again = base.changed(json.loads(text))
        assert again == plan
        assert same_steps(again.operations, plan.operations)
        if (base.tier, base.clone_flags) == (plan.tier, plan.clone_flags):
            assert len(text) < len(json.dumps(plan.to_json())) / 2


def test_steps_of_two_kinds_are_not_the_same_though_they_hold_the_same() -> None:
    assert ForbidUserNamespaces() == EnterCgroupNamespace()
    assert not same_steps((ForbidUserNamespaces(),), (EnterCgroupNamespace(),))


def test_every_step_describes_itself_in_one_line(profile: Profile) -> None:
    for tier in ("namespaced", "landlocked"):
        lines = compile_plan(profile, request_for(ROOT, tier=tier), ROOT).describe()
        assert all(line and "\n" not in line for line in lines)
        assert lines[-1] == "exec /bin/true"


def test_only_a_user_needs_a_user_namespace(profile: Profile) -> None:
    as_root = compile_plan(profile, request_for(ROOT), ROOT).clone_flags
    as_user = compile_plan(profile, request_for(USER), USER).clone_flags
    assert as_user == as_root | namespaces.NEWUSER


def test_the_hosts_network_is_shared_only_if_the_profile_says_so(profile: Profile) -> None:
    network = msgspec.structs.replace(profile.network, mode="host")
    shared = compile_plan(
        msgspec.structs.replace(profile, network=network), request_for(ROOT), ROOT
    )
    assert not shared.clone_flags & namespaces.NEWNET
    assert states(shared)["network"] == "not required"
    assert compile_plan(profile, request_for(ROOT), ROOT).clone_flags & namespaces.NEWNET


@pytest.mark.parametrize(
    ("changes", "tier", "layer"),
    [
        ({"landlock_abi": 0}, "namespaced", "landlock"),
        ({"landlock_abi": 0}, "landlocked", "landlock"),
        ({"seccomp": False}, "namespaced", "seccomp"),
        ({"tier": "landlocked"}, "namespaced", "namespaces"),
    ],
)
def test_a_missing_required_layer_is_refused_by_name(
    profile: Profile, changes: dict[str, object], tier: str, layer: str
) -> None:
    host = msgspec.structs.replace(ROOT, **changes)
    with pytest.raises(ConfinementError) as refusal:
        compile_plan(profile, request_for(host, tier=tier), host)
    assert refusal.value.layer == layer
    assert refusal.value.remedy


TRUNCATES, SIGNALS = "any file can be truncated", "other processes can be signalled"


@pytest.mark.parametrize(
    ("host", "abi", "open_"),
    [
        (ROOT, 2, (TRUNCATES,)),
        (USER, 2, (TRUNCATES, SIGNALS)),
        (ROOT, 3, ()),
        (USER, 5, (SIGNALS,)),
        (USER, 6, ()),
    ],
)
def test_a_landlock_too_old_to_stand_alone_is_refused_unless_the_profile_may_lack_it(
    profile: Profile, host: HostFacts, abi: int, open_: tuple[str, ...]
) -> None:
    old = msgspec.structs.replace(host, landlock_abi=abi)
    alone, beneath = (request_for(old, tier=tier) for tier in ("landlocked", "namespaced"))
    assert states(compile_plan(profile, beneath, old))["landlock"] == "in force"
    if open_:
        with pytest.raises(ConfinementError) as refusal:
            compile_plan(profile, alone, old)
        assert refusal.value.layer == "landlock"
        assert all(text in str(refusal.value) for text in (*open_, "6.12", "may_lack"))
    lax = msgspec.structs.replace(profile, may_lack=profile.may_lack | {"landlock"})
    plan = compile_plan(lax, alone, old)
    assert states(plan)["landlock"] == ("absent" if open_ else "in force")
    assert "Restrict" in steps(plan)  # what there is of it


@pytest.mark.parametrize("layer", ["memory", "cpu"])
def test_a_limit_without_a_cgroup_is_refused_unless_the_profile_may_lack_it(
    profile: Profile, layer: str
) -> None:
    strict = msgspec.structs.replace(profile, may_lack=profile.may_lack - {layer})
    with pytest.raises(ConfinementError) as refusal:
        compile_plan(strict, request_for(ROOT), ROOT)
    assert refusal.value.layer == layer
    assert states(compile_plan(profile, request_for(ROOT), ROOT))[layer] == "absent"


def test_no_filesystem_guard_at_all_is_refused_whatever_may_lack_says(profile: Profile) -> None:
    lax = msgspec.structs.replace(profile, may_lack=profile.may_lack | {"landlock"})
    bare = msgspec.structs.replace(ROOT, landlock_abi=0)
    compile_plan(lax, request_for(bare), bare)
    with pytest.raises(ConfinementError):
        compile_plan(lax, request_for(bare, tier="landlocked"), bare)


def test_a_namespaced_profile_never_falls_to_the_lower_tier(profile: Profile) -> None:
    strict = msgspec.structs.replace(profile, tier="namespaced")
    poor = msgspec.structs.replace(ROOT, tier="landlocked")
    with pytest.raises(ConfinementError) as refusal:
        compile_plan(strict, request_for(poor), poor)
    assert refusal.value.layer == "namespaces"


def proxied(profile: Profile, *allow: str) -> Profile:
    network = msgspec.structs.replace(profile.network, mode="proxy", allow=allow)
    return msgspec.structs.replace(profile, network=network)


def test_the_proxy_stands_on_a_network_namespace(profile: Profile) -> None:
    request = request_for(ROOT, tier="landlocked")
    with pytest.raises(ConfinementError, match="network namespace") as refusal:
        compile_plan(proxied(profile, "api.example.com:443"), request, ROOT)
    assert refusal.value.layer == "network"
    assert "namespaced" in refusal.value.remedy


def test_a_proxied_worker_has_names_and_listeners_and_no_name_server(profile: Profile) -> None:
    plan = compile_plan(proxied(profile, "api.example.com:443"), request_for(ROOT), ROOT)
    written = {s.path: s.content for s in plan.operations if isinstance(s, WriteFile)}
    assert "127.77.0.1 api.example.com" in written["/etc/hosts"]
    assert "dns" not in written["/etc/nsswitch.conf"]
    assert written["/etc/resolv.conf"] == ""
    assert plan.listeners == (("0.0.0.0", 443),)
    assert plan.clone_flags & namespaces.NEWNET
    order = steps(plan)
    assert order.index("OpenListeners") < order.index("DropPrivileges")
    assert plan.shared <= order.index("OpenListeners")  # a spare serves any list of hosts
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_only_wildcards_bring_proxy_variables(profile: Profile) -> None:
    exact = compile_plan(proxied(profile, "api.example.com:443"), request_for(ROOT), ROOT)
    wild = compile_plan(proxied(profile, "*.example.com:443"), request_for(ROOT), ROOT)
    assert "HTTPS_PROXY" not in exact.env
    assert wild.env["HTTPS_PROXY"] == wild.env["https_proxy"] == "http://127.0.0.1:3128"


def test_a_wrong_allow_list_is_refused_by_the_plan_too(profile: Profile) -> None:
    with pytest.raises(ConfinementError, match="no port"):
        compile_plan(proxied(profile, "api.example.com"), request_for(ROOT), ROOT)


@pytest.mark.parametrize("uid", [None, 0])
def test_root_never_runs_a_foreign_program_as_itself(profile: Profile, uid: int | None) -> None:
    with pytest.raises(ConfinementError) as refusal:
        compile_plan(profile, request_for(ROOT, uid=uid), ROOT)
    assert refusal.value.layer == "user"


def test_a_missing_read_path_names_itself(profile: Profile) -> None:
    with pytest.raises(ConfinementError, match="/no/such/path"):
        compile_plan(profile, request_for(ROOT, read=("/no/such/path",)), ROOT)


@pytest.mark.parametrize("path", ["/", "/proc", "/sys", "/dev"])
def test_the_whole_host_cannot_be_granted(profile: Profile, path: str) -> None:
    with pytest.raises(ConfinementError, match="as a whole"):
        compile_plan(profile, request_for(USER, read=(path,)), USER)


def test_links_on_the_way_are_kept_and_their_targets_bound(
    profile: Profile, tmp_path: Path
) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "alias").symlink_to("real")
    wanted = str(tmp_path / "alias" / "deep")
    plan = compile_plan(profile, request_for(USER, read=(wanted,)), USER)
    lines = plan.describe()
    assert f"link {tmp_path}/alias → real" in lines
    assert f"bind {tmp_path}/real/deep (read-only)" in lines


def test_a_circle_of_links_is_refused(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfinementError, match="too many links"):
        compile_plan(profile, request_for(USER, read=(str(tmp_path / "a"),)), USER)


def test_a_closed_folder_on_the_way_is_named_in_the_landlocked_tier(
    profile: Profile, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    tmp_path.chmod(0o755)
    request = request_for(ROOT, tier="landlocked", read=(str(closed / "inner"),))
    with pytest.raises(ConfinementError) as refusal:
        compile_plan(profile, request, ROOT)
    assert f"cannot enter {closed}, on the way to {closed}/inner" in str(refusal.value)
    request = request_for(ROOT, read=(str(closed / "inner"),))
    assert f"bind {closed}/inner (read-only)" in compile_plan(profile, request, ROOT).describe()


def test_a_write_path_of_somebody_else_is_mapped_to_the_worker(
    profile: Profile, tmp_path: Path
) -> None:
    plan = compile_plan(profile, request_for(ROOT, write=(str(tmp_path),)), ROOT)
    expected = f"bind {tmp_path} (read and write, uid {os.getuid()} seen as {UID})"
    assert expected in plan.describe()
    without = msgspec.structs.replace(ROOT, idmapped_mounts=False)
    with pytest.raises(ConfinementError, match="chown"):
        compile_plan(profile, request_for(ROOT, write=(str(tmp_path),)), without)


def test_the_profile_and_the_request_make_the_environment(profile: Profile) -> None:
    changed = msgspec.structs.replace(profile, environment={"A": "profile", "B": "profile"})
    plan = compile_plan(changed, request_for(ROOT, env={"B": "request"}), ROOT)
    assert plan.env["A"] == "profile"
    assert plan.env["B"] == "request"
    assert not set(plan.env) & (set(os.environ) - {"PATH", "HOME", "LANG", "TMPDIR", "A", "B"})


def test_without_proc_a_program_is_told_where_it_lies(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "program").symlink_to("/bin/true")
    request = request_for(ROOT, argv=(str(tmp_path / "program"),))
    bare = msgspec.structs.replace(
        profile, files=msgspec.structs.replace(profile.files, proc=False)
    )
    assert "LD_ORIGIN_PATH" not in compile_plan(profile, request, ROOT).env
    assert compile_plan(bare, request, ROOT).env["LD_ORIGIN_PATH"] == os.path.realpath("/bin")


def test_folders_of_the_closure_come_before_the_workers_own_path(profile: Profile) -> None:
    own = profile.environment["PATH"]
    plan = compile_plan(profile, request_for(ROOT, path=("/opt/node/bin", "/usr/bin")), ROOT)
    assert plan.env["PATH"] == f"/opt/node/bin:{own}"
    plan = compile_plan(profile, request_for(ROOT, env={"PATH": "/a"}, path=("/a",)), ROOT)
    assert plan.env["PATH"] == "/a"


def test_a_system_confines_itself_without_namespaces() -> None:
    plan = compile_plan(load_profile("system2"), WorkerRequest(name="system2", argv=()), ROOT)
    assert plan.tier == "landlocked"
    assert plan.clone_flags == 0
    assert steps(plan) == ["SetLimits", "DropPrivileges", "Restrict", "FilterSystemCalls"]
    assert not plan.scratch_dir
