"""`vsm profile list|show|check|explain|diff`: what the profiles say and what they do on this host.

Needs no running supervisor, starts no worker, and loads nothing but msgspec beside the standard
library. `learn`, which starts one, is in `vsm.commands.learn`.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vsm.commands import learn
from vsm.commands.terminal import clean, print_json, print_table
from vsm.core.seccomp import (
    FILTERED,
    NOT_BY_GROUP,
    NOT_WITHOUT_NAMESPACES,
    Action,
    rules_for,
)
from vsm.errors import ConfigurationError
from vsm.paths import profile_search_path
from vsm.profile import Profile, load_profile, profile_names
from vsm.units import format_bytes

if TYPE_CHECKING:
    from vsm.execution import Plan
    from vsm.operations import Operation
    from vsm.plan import Tier

EXIT_DIFFERENT = 1
CGROUP_LAYERS = ("memory", "processes", "cpu")
EXAMPLE_COMMAND = ["true"]
# The uid in an explained plan; a real worker's is its own.
EXAMPLE_UID = 0x7000_0000

_REASONS = {
    "JoinCgroups": "limits.memory, swap, processes, cpu: counted for the whole process tree",
    "EnterNamespaces": "tier, network.mode: own views of processes, network, host name and ids",
    "ForbidUserNamespaces": "no way back to capabilities",
    "SetLimits": "limits.open_files, file_size, cpu_time_s, processes: held by the kernel itself",
    "DropPrivileges": "root must not reach the server, and no set-uid program gives it back",
    "Restrict": "files: a second fence behind the file system, and the first without one",
    "FilterSystemCalls": "syscalls: what is not allowed answers EPERM, a foreign entry kills",
    "MakeRoot": "files: a root of its own, so that what is not named does not exist",
    "EnterRoot": "files: the host's root is out of reach",
    "Link": "names that programs expect",
    "WriteFile": "programs look these up",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `profile` and its actions."""
    parser = subparsers.add_parser("profile", help="list, show, check or explain sandbox profiles")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "list", "every profile that can be named")
    show = _action(actions, "show", "one profile with all that it inherits")
    show.add_argument("profile", metavar="NAME", help="name or file")
    check = _action(actions, "check", "validate profiles; exit code 2 if one is wrong")
    check.add_argument("profiles", nargs="*", metavar="NAME", help="names or files (all)")
    explain = _action(actions, "explain", "what would confine a command here, step by step")
    explain.add_argument("profile", metavar="NAME", help="name or file")
    explain.add_argument("--tier", choices=("namespaced", "landlocked"), help="insist on this tier")
    explain.add_argument(
        *("--command", "-c"),
        dest="argv",
        nargs=argparse.REMAINDER,
        metavar="CMD",
        help="explain it for this command; everything after it belongs to the command",
    )
    learn.add_parser(actions)
    diff = _action(actions, "diff", "what differs between two; exit code 1 if anything does")
    diff.add_argument("profile", metavar="NAME", help="name or file")
    diff.add_argument("other", metavar="OTHER", help="name or file")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "check": _check,
        "explain": _explain,
        "diff": _diff,
        "learn": learn.run,
    }
    return actions[args.action](args)


def _action(actions: Any, name: str, summary: str) -> argparse.ArgumentParser:  # noqa: ANN401
    parser: argparse.ArgumentParser = actions.add_parser(name, help=summary, description=summary)
    parser.add_argument("--json", action="store_true", help="machine-readable")
    return parser


def table_of(profile: Profile) -> dict[str, Any]:
    """Key of the file → value as one would write it."""
    table: dict[str, Any] = {
        "description": profile.description,
        "tier": profile.tier,
        "may_lack": sorted(profile.may_lack),
        "confine": profile.confine,
    }
    for section in ("files", "network", "syscalls", "limits"):
        for name, value in msgspec.structs.asdict(getattr(profile, section)).items():
            table[f"{section}.{_key(name)}"] = _written(name, value)
    table.update((f"environment.{name}", value) for name, value in profile.environment.items())
    return table


def _key(name: str) -> str:
    return "cpu" if name == "cpu_cores" else name.removesuffix("_bytes")


def _written(name: str, value: object) -> object:
    if value is None:
        return "unlimited"
    if name.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, bool):
        return str(value).lower()
    return clean(str(value)) or '""'


# -- list, show, check, diff -----------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    listed = [_listed(name) for name in profile_names(profile_search_path())]
    if args.json:
        print_json(listed)
        return 0
    keys = ("name", "tier", "network", "description")
    rows = [[str(item.get(key, "")) for key in keys] for item in listed]
    print_table(("PROFILE", "LEAST TIER", "NETWORK", "DESCRIPTION"), rows)
    return 0


def _listed(name: str) -> dict[str, str]:
    """One row; a wrong profile does not hide the others."""
    try:
        profile = load_profile(name)
    except ConfigurationError as error:
        return {"name": name, "description": f"wrong: {error}"}
    keys = ("name", "description", "tier", "confine", "path")
    return {**{key: getattr(profile, key) for key in keys}, "network": profile.network.mode}


def _show(args: argparse.Namespace) -> int:
    profile = load_profile(args.profile)
    table = table_of(profile)
    if args.json:
        print_json({"name": profile.name, "path": profile.path, "keys": table})
        return 0
    print(f"# {profile.path}")
    print_table(("KEY", "VALUE"), [(key, _text(value)) for key, value in table.items()])
    return 0


def _check(args: argparse.Namespace) -> int:
    names = args.profiles or profile_names(profile_search_path())
    results = [_check_one(name) for name in names]
    wrong = [result for result in results if not result["ok"]]
    if args.json:
        print_json(results)
    else:
        for result in results:
            print(f"{result['profile']}: {'ok' if result['ok'] else clean(result['error'])}")
    return ConfigurationError.exit_code if wrong else 0


def _check_one(name: str) -> dict[str, Any]:
    try:
        profile = load_profile(name)
    except ConfigurationError as error:
        return {"profile": name, "ok": False, "error": str(error)}
    return {"profile": name, "ok": True, "path": profile.path}


def _diff(args: argparse.Namespace) -> int:
    left, right = (table_of(load_profile(name)) for name in (args.profile, args.other))
    changes = [
        {"key": key, "from": left.get(key), "to": right.get(key)}
        for key in {**left, **right}
        if left.get(key) != right.get(key)
    ]
    if args.json:
        print_json(changes)
    else:
        for change in changes:
            print(f"{change['key']}: {_change(change['from'], change['to'])}")
    return EXIT_DIFFERENT if changes else 0


def _change(before: object, after: object) -> str:
    if isinstance(before, list) and isinstance(after, list):
        gone = [f"-{item}" for item in before if item not in after]
        return " ".join([*gone, *(f"+{item}" for item in after if item not in before)])
    return " → ".join("(absent)" if value is None else _text(value) for value in (before, after))


# -- explain ---------------------------------------------------------------------------------------


def _explain(args: argparse.Namespace) -> int:
    profile = load_profile(args.profile)
    plan = _plan(profile, args.argv or EXAMPLE_COMMAND, args.tier)
    steps = list(_steps(plan, profile))
    calls = _calls(profile, plan.tier)
    if args.json:
        names = ("step", "layer", "reason")
        listed = [dict(zip(names, step, strict=True)) for step in steps]
        print_json({"tier": plan.tier, "steps": listed, "layers": plan.layers, "syscalls": calls})
        return 0
    print(f"{profile.name} here: tier {plan.tier}\n")
    for step, _, reason in steps:
        print(clean(step))
        print(f"    {clean(reason)}")
    print()
    rows = [(item["name"], item["state"], item["detail"]) for item in plan.layers]
    print_table(("LAYER", "STATE", "DETAIL"), rows)
    print(f"\nSystem calls: {calls['allowed']} allowed, of them with some arguments only:")
    for kind in ("filtered", "withheld"):
        if kind == "withheld":
            print("Brought in by no group (name one to allow it):")
        for name, reason in calls[kind].items():
            print(f"    {name}: {reason}")
    return 0


def _plan(profile: Profile, argv: list[str], tier: "Tier | None") -> "Plan":
    from vsm.closure import DEFAULT_PATH, closure
    from vsm.plan import WorkerRequest, compile_plan
    from vsm.probe import probe_host

    host = probe_host()
    itself = profile.confine == "self"
    path = profile.environment.get("PATH") or os.environ.get("PATH") or DEFAULT_PATH
    needed = None if itself else closure(argv, env={**profile.environment, "PATH": path})
    request = WorkerRequest(
        name=profile.name,
        argv=(needed.executable, *argv[1:]) if needed else (),
        read=needed.read if needed else (),
        uid=EXAMPLE_UID if host.root else None,
        tier=None if itself else tier,
        # A supervisor makes these; the probe found out which of them work here.
        cgroup_layers=tuple(layer for layer in CGROUP_LAYERS if getattr(host.cgroup, layer)),
    )
    return compile_plan(profile, request, host)


def _steps(plan: "Plan", profile: Profile) -> Iterator[tuple[str, str, str]]:
    """(description, layer, reason), in order; what the plan adds around its operations too."""
    operations = {operation.describe(): operation for operation in plan.operations}
    for line in plan.describe():
        operation = operations.get(line)
        if operation is None:
            yield line, "", _frame_reason(line)
        else:
            yield line, operation.layer, _reason(operation, profile)


def _frame_reason(line: str) -> str:
    if line.startswith("exec"):
        return "the command itself; all of the above holds for whatever it starts"
    if line.startswith("fork into"):
        return _REASONS["EnterNamespaces"]
    return "a process of its own" if line == "fork" else "a private directory of the worker's"


def _reason(operation: "Operation", profile: Profile) -> str:
    kind = type(operation).__name__
    if kind in _REASONS:
        return _REASONS[kind]
    paths = [str(value) for value in operation._asdict().values() if isinstance(value, str)]
    for key in ("system", "read", "write", "devices"):
        if any(_is_within(path, getattr(profile.files, key)) for path in paths):
            return f"files.{key}"
    if kind == "Bind":
        return "the command needs it, or the integration's entry names it"
    return "files.tmp, shm, proc: private, and bounded in size"


def _is_within(path: str, folders: tuple[str, ...]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def _calls(profile: Profile, tier: str) -> dict[str, Any]:
    syscalls = profile.syscalls
    rules = rules_for(
        syscalls.allow,
        syscalls.deny,
        unix_sockets=syscalls.unix_sockets,
        inet=profile.network.mode != "none",
        tier=tier,
    )
    withheld = dict(NOT_BY_GROUP)
    if tier != "namespaced":
        withheld |= NOT_WITHOUT_NAMESPACES
    named = {name for name, decision in rules.decisions.items() if _may_succeed(decision)}
    return {
        "allowed": len(named),
        "filtered": {name: reason for name, reason in FILTERED.items() if name in named},
        "withheld": {name: reason for name, reason in withheld.items() if name not in named},
    }


def _may_succeed(decision: object) -> bool:
    return decision is Action.ALLOW or not isinstance(decision, Action)
