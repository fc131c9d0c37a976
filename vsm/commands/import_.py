"""`vsm import FILE [--write]`: the servers of a desktop client's file, taken over by vsm.

Without --write it only says what would be done. Names and commands from the file are foreign text
and are stripped of control characters; the values of secrets are never printed.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from vsm.commands.interrupt import end_in_order_on_sigterm
from vsm.commands.terminal import clean, print_json
from vsm.core.client_entries import Entry
from vsm.errors import VsmError
from vsm.paths import runtime_dir


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `import`."""
    parser = subparsers.add_parser("import", help="take over the mcpServers of a desktop client")
    parser.add_argument("file", type=Path, metavar="FILE", help="the client's JSON file")
    parser.add_argument("--write", action="store_true", help="do it; else only say what would be")
    parser.add_argument("--config", type=Path, metavar="FILE", help="vsm.toml ($VSM_CONFIG)")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def run(args: argparse.Namespace) -> int:
    """Say it, or do it."""
    from vsm.install.import_clients import apply, describe, read_client_file

    end_in_order_on_sigterm()  # nothing half-made is left
    entries = read_client_file(args.file)
    added: list[str] = []
    failed: dict[str, VsmError] = {}
    config = args.config or Path(os.environ.get("VSM_CONFIG") or "vsm.toml")
    if args.write:
        taken, failed = apply(entries, config, _say)
        added = [one.entry.name for one in taken]
        entries = [_with_failure(entry, failed.get(entry.name)) for entry in entries]
    if args.json:
        rows = [_row(entry, list(describe(entry)), entry.name in added) for entry in entries]
        print_json({"entries": rows})
    else:
        for entry in entries:
            _print(entry, list(describe(entry)), added=entry.name in added)
        staying = [entry.client_name for entry in entries if entry.refused]
        moved = any(entry.secrets for entry in entries if entry.name in added)
        _print_rest(config, staying, added=added, wrote=args.write, moved=moved)
    return 1 if any(entry.refused for entry in entries) else 0


def _with_failure(entry: Entry, error: VsmError | None) -> Entry:
    """An entry that failed is shown as one that was refused."""
    return entry if error is None or entry.refused else entry._replace(refused=str(error))


def _row(entry: Entry, steps: list[str], added: bool) -> dict[str, object]:  # noqa: FBT001 - a row
    return {
        "client_name": entry.client_name,
        "integration": entry.name,
        "refused": entry.refused,
        "steps": [] if entry.refused else steps,
        "added": added,
    }


def _print(entry: Entry, steps: list[str], *, added: bool) -> None:
    state = "not taken over" if entry.refused else "added" if added else "would be added"
    print(f"{clean(entry.client_name)} → [integrations.{clean(entry.name)}]: {state}")
    for step in steps:
        print(f"    {clean(step)}")


def _print_rest(
    config: Path, staying: list[str], *, added: list[str], wrote: bool, moved: bool
) -> None:
    if not wrote:
        print("\nNothing was changed. `--write` does it.")
        return
    if added:
        command = shutil.which("vsm") or sys.argv[0]
        server = {
            "command": command,
            "args": ["connect"],
            "env": {"VSM_RUNTIME_DIR": str(runtime_dir())},
        }
        entry = {"mcpServers": {"vsm": server}}
        print(f"\n{config} has them now: {', '.join(map(clean, added))}.")
        print(f"`vsm up --config {config}` runs them, `vsm reload` adds them to a vsm that does.")
        print("Programs see none of your files and no network until their entries say so: `read`,")
        print("`write`, or a profile with network.allow (`vsm docs egress`). `vsm doctor --config`")
        print("names the paths that each is told of and does not see.")
        print("\nThe client's file was not touched. In place of their entries it needs this one:\n")
        print(json.dumps(entry, indent=2))
        if moved:
            print("\nRemove the secrets that moved from it.")
        if staying:
            print(f"Its other entries stay as they are: {', '.join(map(clean, staying))}.")


def _say(line: str) -> None:
    more = "" if line.endswith(".") else " ..."  # a sentence has ended
    print(f"vsm: {clean(line)}{more}", file=sys.stderr, flush=True)
