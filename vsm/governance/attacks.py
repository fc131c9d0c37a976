"""Which attacks S3*'s sibling tries on a worker, and what their outcomes say of its plan.

Pure; runs in the supervisor. An attack is tried only where a layer that the plan has in force is
meant to stop it and nothing says that it is weaker there, so one that succeeds is a failure. The
sibling shares uid and namespaces with a worker that may be hostile: its answers are taken by the
names that were asked for, and one that is missing is a failure.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vsm.attempts import ATTEMPTS, Attempt
from vsm.attempts.kernel_files import FILES, LIST
from vsm.confinement.execution import IN_FORCE, Plan
from vsm.confinement.operations import Restrict
from vsm.confinement.root_operations import Bind

SAMPLE: Final = 24
"""So many of them in an audit that comes by itself."""
_SCOPE_ABI: Final = 6
_MOST_TEXT: Final = 200
# Of these the wrong arguments are noticed before privileges are: they prove the filter.
_BY_CALL: Final = tuple(name for name in ATTEMPTS if name.startswith(("call_", "option_")))
_KILLED: Final = frozenset({"call_through_the_32_bit_entry", "call_through_the_x32_entry"})
_OTHERS: Final = (
    "make_a_user_namespace",
    "make_a_user_namespace_by_clone",
    "make_a_mount_namespace",
    "make_a_pid_namespace",
    "join_the_namespace_of_kind_net",
    "become_root",
    "join_the_group_of_root",
    "change_the_groups",
    "have_a_capability",
    "have_a_bounding_set",
    "gain_privileges_by_exec",
    "become_another_user",
    "take_the_file_identity_of_root",
    "open_a_raw_socket",
    "open_a_packet_socket",
    "open_a_kernel_crypto_socket",
    "open_a_netlink_audit_socket",
    "open_a_netfilter_socket",
    "connect_by_tcp",
    "connect_by_fast_open",
    "listen_where_the_host_can_connect",
    "see_the_host_name",
    "read_the_users_of_the_host",
    "list_the_home_of_root",
    "create_in_a_system_folder",
    "open_a_kernel_setting_for_writing",
    "open_a_control_group_for_writing",
    "open_password_hashes",
    "open_homes",
    "open_logs",
    "open_boot_folder",
    "open_run_folder",
    "open_package_database",
    "open_block_devices",
    "open_kernel_core",
)
_SIGNALS: Final = ("signal_a_process_outside",)
"""The null signal to the worker's first process: what Landlock's scope alone stops."""
_FOLDERS: Final = {
    "list_the_home_of_root": "/root",
    **{f"open_{name}": path for name, (path, flags) in FILES.items() if flags == LIST},
}
HARMLESS: Final = (*(n for n in _BY_CALL if n not in _KILLED), *_OTHERS, *_SIGNALS)


def attacks(plan: Plan, *, root: bool) -> tuple[str, ...]:
    """The harmless attacks that this plan has to stop.

    Args:
        plan: the worker's.
        root: whether vsm runs as root.
    """
    layers = {layer.name for layer in plan.expected if layer.state == IN_FORCE}
    user = f"{plan.tier}/{'root' if root else 'user'}"
    return tuple(name for name in HARMLESS if _is_stopped(ATTEMPTS[name], plan, layers, user))


def _is_stopped(attempt: Attempt, plan: Plan, layers: set[str], user: str) -> bool:
    if attempt.weaker.get(plan.tier) or attempt.weaker.get(user):
        return False
    if _leads_to_a_grant(attempt.name, plan):
        return False
    if attempt.name in _SIGNALS:
        return "landlock" in layers and _landlock_abi(plan) >= _SCOPE_ABI
    return attempt.guards[0] in layers or bool(set(attempt.guards) & layers - {"network"})


def _leads_to_a_grant(name: str, plan: Plan) -> bool:
    """Whether it opens a folder that the worker's own root has, since a granted path lies below."""
    above = _FOLDERS.get(name, "")
    paths = (step.path for step in plan.operations if isinstance(step, Bind))
    return bool(above) and any(path == above or path.startswith(f"{above}/") for path in paths)


def _landlock_abi(plan: Plan) -> int:
    return max((s.least_abi for s in plan.operations if isinstance(s, Restrict)), default=0)


def sample(names: Sequence[str], dice: random.Random, most: int = SAMPLE) -> tuple[str, ...]:
    """A few at random, so that nobody can know which come; of every kind some."""
    calls = [name for name in names if name in _BY_CALL]
    others = [name for name in names if name not in _BY_CALL]
    few = min(most // 2, len(others))
    return (*dice.sample(others, few), *dice.sample(calls, min(most - few, len(calls))))


def judge(asked: Sequence[str], found: Mapping[str, Any]) -> dict[str, str]:
    """What failed: attack → what was found; "sibling" where there was none."""
    outcomes = found.get("outcomes")
    if not isinstance(outcomes, dict):
        return {"sibling": str(found.get("error", "no answer"))[:_MOST_TEXT]}
    return dict(_failures(asked, outcomes))


def _failures(asked: Sequence[str], outcomes: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in asked:
        row = outcomes.get(name)
        outcome = row.get("outcome") if isinstance(row, dict) else None
        if outcome == "possible":
            guards = " and ".join(ATTEMPTS[name].guards)
            yield f"attack {name}", f"it succeeds from within; {guards} should stop it"
        elif outcome not in {"refused", "unavailable"}:
            detail = row.get("detail", "") if isinstance(row, dict) else "no answer"
            yield f"attack {name}", f"it did not run: {detail}"[:_MOST_TEXT]
