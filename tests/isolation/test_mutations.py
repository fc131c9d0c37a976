"""With a protection taken away, what it guards against succeeds: the battery can fail."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from vsm.attempts import ATTEMPTS

pytestmark = pytest.mark.isolation


@pytest.fixture(autouse=True)
def both_tiers(arena: Any) -> None:
    arena.need("namespaced")
    arena.need("landlocked")


class Mutation(NamedTuple):
    """A weakened profile or host, and the attempts that then have to succeed.

    Args:
        profile: what a test-only profile changes.
        attempts: those that this protection alone stops.
        users: the users for whom it is the only one.
        spec: told to the driver.
    """

    profile: str
    attempts: tuple[str, ...]
    users: tuple[str, ...] = ("root", "user")
    spec: Mapping[str, Any] = MappingProxyType({})


NO_SECCOMP = 'may_lack = ["seccomp", "network"]\n'
FILES = tuple(
    name
    for name, attempt in ATTEMPTS.items()
    if attempt.group == "files"
    and attempt.control == "any"
    and name.endswith("_outside")
    # These two also need the file's own user, which root's workers never are.
    and "_the_mode_" not in name
    and "_the_times_" not in name
)
CONNECTIONS = (
    "connect_by_tcp",
    "connect_by_tcp_over_ipv6",
    "connect_by_tcp_to_an_embedded_address",
    "connect_by_fast_open",
    "send_by_udp",
    "send_by_udp_without_connecting",
    "listen_where_the_host_can_connect",
)
UNPRIVILEGED_CALLS = (
    "call_bpf",
    "call_perf_event_open",
    "call_userfaultfd",
    "call_io_uring_setup",
    "call_io_uring_enter",
    "call_add_key",
    "call_request_key",
    "call_keyctl",
    "call_setns",
    "call_clone3",
    "call_open_tree",
    "call_mount_setattr",
    "call_quotactl",
    "call_settimeofday",
    "call_modify_ldt",
    "call_open_by_handle_at",
    "call_name_to_handle_at",
    "call_kcmp",
    "call_pidfd_getfd",
    "call_process_madvise",
    "call_memfd_secret",
    "call_vmsplice",
    "call_personality",
    "call_ptrace_traceme",
    "call_through_the_32_bit_entry",
    "push_input_through_an_inherited_descriptor",
    "use_the_console_ioctl",
    "open_a_netlink_audit_socket",
    "open_a_netfilter_socket",
    "open_a_vsock",
)
LANDLOCKED_ONLY = (
    "attach_shared_memory_of_a_process_outside",
    "open_a_message_queue_outside",
    "open_semaphores_outside",
    "connect_to_a_unix_socket_outside",
)
SAME_USER = (
    "open_a_handle_on_a_process_outside",
    "change_the_priority_of_a_process_outside",
    "move_a_process_outside_between_cpus",
    "change_the_scheduling_of_a_process_outside",
)
MUTATIONS = {
    "namespaced without seccomp": Mutation(
        NO_SECCOMP,
        UNPRIVILEGED_CALLS,
        spec={"tier": "namespaced", "host": {"seccomp": False}},
    ),
    "landlocked without seccomp": Mutation(
        NO_SECCOMP,
        (*UNPRIVILEGED_CALLS, *LANDLOCKED_ONLY, "send_by_udp"),
        spec={"tier": "landlocked", "host": {"seccomp": False}},
    ),
    "landlocked without seccomp, own user": Mutation(
        NO_SECCOMP,
        SAME_USER,
        users=("user",),
        spec={"tier": "landlocked", "host": {"seccomp": False}},
    ),
    "namespaced with the host's network": Mutation(
        '[network]\nmode = "host"\n', CONNECTIONS, spec={"tier": "namespaced"}
    ),
    "landlocked with the host's network": Mutation(
        '[network]\nmode = "host"\n',
        tuple(name for name in CONNECTIONS if "udp" not in name),  # refused in this tier anyhow
        spec={"tier": "landlocked"},
    ),
    "namespaced with the folder outside given": Mutation(
        "", FILES, spec={"tier": "namespaced", "given": True}
    ),
    "landlocked with the folder outside given": Mutation(
        "", FILES, spec={"tier": "landlocked", "given": True}
    ),
    "without limits": Mutation(
        '[limits]\nmemory = "unlimited"\nprocesses = "unlimited"\ncpu = "unlimited"\n'
        'open_files = 4096\nfile_size = "unlimited"\n[files]\ntmp = "64M"\nshm = "64M"\n',
        tuple(
            name
            for name, attempt in ATTEMPTS.items()
            # Of locked memory nobody gets more, whatever the profile says.
            if attempt.group == "exhaustion" and name != "lock_twice_the_memory_limit"
        ),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_attempts_succeed_when_their_guard_is_taken_away(arena: Any, name: str) -> None:
    mutation = MUTATIONS[name]
    if arena.user not in mutation.users:
        pytest.skip("another layer stops it for this user as well")
    spec = dict(mutation.spec)
    if spec.pop("given", False):
        world = arena.world
        spec["write"] = [world["folder"]]
    profile = arena.profile(mutation.profile, name.replace(" ", "-").replace("'", ""))
    results = arena.attempts(list(mutation.attempts), profile=profile, **spec)
    missing = {
        attempt: result
        for attempt, result in results.items()
        if result["outcome"] not in {"possible", "unavailable"}
    }
    assert not missing, f"still refused without the guard: {missing}"
