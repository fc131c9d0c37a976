"""`vsm install`, `vsm uninstall`, `vsm outdated`: servers from npm and PyPI, pinned and read-only.

None of them needs a running vsm. What is printed of a package (names, commands) is foreign text and
is stripped of control characters.
"""

import argparse
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from vsm.commands.interrupt import end_in_order_on_sigterm
from vsm.commands.terminal import clean, print_json, print_table
from vsm.errors import ConfigurationError, VsmError

SUMMARIES = {
    "install": "install a server from npm or PyPI: confined, pinned by hash, no scripts",
    "uninstall": "remove an installed server",
    "outdated": "compare installed servers with what their registries have",
}

SEES_NOTHING = """\
It sees none of your files and no network. `read` and `write` give it folders. For hosts write
a profile, such as {name}.toml beside vsm.toml, and name it by profile = "./{name}.toml"
(`vsm docs egress`):

extends = "{profile}"
tier = "namespaced"
[network]
mode = "proxy"
allow = ["api.example.com:443"]"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `install`, `uninstall` and `outdated`."""
    for name, summary in SUMMARIES.items():
        parser = subparsers.add_parser(name, help=summary, description=summary)
        if name == "install":
            metavar = "npm:NAME[@VERSION]|pypi:NAME[==VERSION]"
            parser.add_argument("package", nargs="?", metavar=metavar, help="none lists them")
            parser.add_argument("--name", default="", help="of the server; default: the package's")
        elif name == "uninstall":
            parser.add_argument("names", nargs="+", metavar="NAME")
            parser.add_argument(
                "--config", type=Path, metavar="FILE", help="a further vsm.toml that may name it"
            )
        if name != "uninstall":
            parser.add_argument(
                "--allow", action="append", default=[], metavar="HOST:PORT", help="a further host"
            )
        parser.add_argument("--json", action="store_true", help="machine-readable")


def run(args: argparse.Namespace) -> int:
    """Run the chosen command."""
    end_in_order_on_sigterm()  # nothing half-made is left
    if args.command == "uninstall":
        return _uninstall(args)
    if args.command == "outdated":
        return _outdated(args)
    return _install(args) if args.package else _list(args)


def _install(args: argparse.Namespace) -> int:
    from vsm.install.installation import install

    server, done = install(args.package, name=args.name, allow=tuple(args.allow), say=_say)
    if args.json:
        import msgspec

        print_json({"server": msgspec.to_builtins(server), "installed": done})
        return 0
    state = "installed" if done else "is installed already"
    print(f"{server.name} {server.version} {state}: {len(server.files)} packages pinned")
    if not server.commands:
        print(f"It offers no command, as a library does: `vsm uninstall {server.name}` removes it,")
        print("unless its own page says how it is started.")
        return 0
    print("\nFor vsm.toml:\n")
    print(f"[integrations.{server.name}]")
    profile = "node-server" if server.kind == "npm" else "python-server"
    if server.command:
        print(f"command = {json.dumps(list(server.command))}")
    else:
        listed = ", ".join(map(clean, server.commands))
        print(f"command = []   # which of its commands is the server? {listed}")
    print(f'profile = "{profile}"')
    print(f"\n{SEES_NOTHING.format(name=server.name, profile=profile)}")
    return 0


def _list(args: argparse.Namespace) -> int:
    import msgspec

    from vsm.install.installation import installed

    servers = installed()
    if args.json:
        print_json({"servers": msgspec.to_builtins(servers)})
        return 0
    rows = [(one.name, f"{one.kind}:{one.package}", one.version) for one in servers]
    print_table(("NAME", "PACKAGE", "VERSION"), rows)
    return 0


def _uninstall(args: argparse.Namespace) -> int:
    from vsm.install.entries import entries_of
    from vsm.install.installation import uninstall

    removed, files = uninstall(args.names), _configurations(args.config)
    left = [one for server in removed for one in entries_of(server.name, files)]
    if args.json:
        rows = [{"file": str(one.file), "integration": one.integration} for one in left]
        print_json({"removed": [server.name for server in removed], "left": rows})
        return 0
    for server in removed:
        what = f"{server.kind}:{server.package} {server.version}"
        print(f"{server.name}: removed ({what if server.kind else 'its record was damaged'})")
    for one in left:
        what = f"{one.file}: [integrations.{clean(one.integration)}] runs it and cannot start again"
        print(f"{what}: remove the entry, then `vsm reload`")
    return 0


def _configurations(given: Path | None) -> list[Path]:
    """Where entries usually are: what a vsm here, or a service, would be started with."""
    from vsm import paths

    usual = [Path("vsm.toml"), paths.SYSTEM_CONFIG]
    with suppress(ConfigurationError):  # some have no home
        usual.append(paths.home() / paths.USER_CONFIG)
    named = os.environ.get("VSM_CONFIG")
    return [one for one in (given, Path(named) if named else None, *usual) if one is not None]


def _outdated(args: argparse.Namespace) -> int:
    from vsm.install.installation import installed, latest

    rows, unknown = [], 0
    for server in installed():
        _say(f"asking for {server.kind}:{server.package}")
        try:
            newest = latest(server, tuple(args.allow))
        except VsmError as error:
            newest, unknown = "", 1
            print(f"vsm: {clean(str(error))}", file=sys.stderr)
        rows.append({"name": server.name, "installed": server.version, "latest": newest})
    if args.json:
        print_json({"servers": rows})
        return unknown
    shown = [
        (row["name"], row["installed"], row["latest"] or "unknown", _verdict(row)) for row in rows
    ]
    print_table(("NAME", "INSTALLED", "LATEST", ""), shown)
    return unknown


def _verdict(row: dict[str, str]) -> str:
    return "outdated" if row["latest"] not in ("", row["installed"]) else ""


def _say(line: str) -> None:
    more = "" if line.endswith(".") else " ..."  # a sentence has ended
    print(f"vsm: {clean(line)}{more}", file=sys.stderr, flush=True)
