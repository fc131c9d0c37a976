"""`vsm profile list|show|check|explain|diff`: what the profiles say and what they do on this host.

Needs no running supervisor, starts no worker, and loads nothing but msgspec beside the standard
library. `learn`, which starts one, is in `vsm.commands.learn`.
"""

import argparse
from collections.abc import Callable
from typing import Any

import msgspec

from vsm.commands import learn
from vsm.commands.terminal import clean, print_json, print_table
from vsm.configuration.profile import Profile, file_key, load_profile, profile_names
from vsm.configuration.units import format_bytes
from vsm.confinement.explain import explain
from vsm.errors import ConfigurationError
from vsm.paths import profile_search_path

EXIT_DIFFERENT = 1


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
            table[f"{section}.{file_key(name)}"] = _written(name, value)
    table.update((f"environment.{name}", value) for name, value in profile.environment.items())
    return table


def _written(name: str, value: object) -> object:
    if value is None:
        return "unlimited"
    if name.endswith(("_bytes", "_bytes_s")) and isinstance(value, int):
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
    found = explain(profile, args.argv or (), args.tier)
    calls = found.syscalls
    if args.json:
        print_json(found.to_json())
        return 0
    print(f"{profile.name} here: tier {found.tier}\n")
    for step, _, reason in found.steps:
        print(clean(step))
        print(f"    {clean(reason)}")
    print()
    rows = [(item["name"], item["state"], item["detail"]) for item in found.layers]
    print_table(("LAYER", "STATE", "DETAIL"), rows)
    print(f"\nSystem calls: {calls['allowed']} allowed, of them with some arguments only:")
    for kind in ("filtered", "withheld"):
        if kind == "withheld":
            print("Brought in by no group (name one to allow it):")
        for name, reason in calls[kind].items():
            print(f"    {name}: {reason}")
    return 0
