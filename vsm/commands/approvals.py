"""`vsm approvals`, `vsm approve ID`, `vsm deny ID`: the calls that wait for a person.

What waits is asked of the running vsm; what was decided is read from the journal, whether or not
vsm runs. Names and shapes are a client's words: nothing of them reaches the terminal unless it is
printable.
"""

import argparse
import getpass
import json
import re
import sys
from datetime import datetime
from typing import Any

from vsm.commands.control_client import NotRunningError, request
from vsm.commands.terminal import clean, print_json, print_table, seconds_text
from vsm.errors import ConfigurationError
from vsm.journal.reader import Filter, JournalError, JournalReader, is_absent
from vsm.journal.records import JOURNAL_FILE
from vsm.paths import state_dir

RULE = "policy.ask"
DEFAULT_LIMIT = 20
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d{1,7})([smhd])", re.ASCII)
_NS = 10**9


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `approvals`, `approve` and `deny`."""
    shown = subparsers.add_parser("approvals", help="show the calls that wait for a person")
    shown.add_argument("-n", "--limit", type=int, default=DEFAULT_LIMIT, help="decided ones (20)")
    approve = subparsers.add_parser("approve", help="let a call that waits pass")
    approve.add_argument(
        "--always-for",
        metavar="TIME",
        help="this client needs no approval for this by this rule for so long: 10m, 1h, 7d at most",
    )
    deny = subparsers.add_parser("deny", help="refuse a call that waits")
    for parser in (approve, deny):
        parser.add_argument("id", metavar="ID", help="see `vsm approvals`")
    for parser in (shown, approve, deny):
        parser.add_argument("--json", action="store_true", help="print what vsm answered")


def run(args: argparse.Namespace) -> int:
    """Show, or decide and say what was decided."""
    if args.command == "approvals":
        return _show(args)
    always_for = getattr(args, "always_for", None)
    seconds = 0 if always_for is None else _seconds(always_for)
    answer = request(args.command, id=args.id, by=_person(), always_for_s=seconds)
    if args.json:
        print_json(answer)
        return 0
    until_s = answer["granted_until_s"]
    if seconds and until_s is None:
        more = ", this once: too much is approved beforehand already"
    else:
        more = "" if until_s is None else f", and the like of it until {_when(until_s)}"
    print(clean(f"{answer['verdict']}: {answer['name']} of {answer['integration']}{more}"))
    return 0


def _show(args: argparse.Namespace) -> int:
    if not 0 <= args.limit <= 1000:  # noqa: PLR2004 - what fits on anybody's screen
        raise ConfigurationError("--limit", f"expected 0 to 1000, found {args.limit}")
    now: dict[str, Any] = {"pending": [], "grants": [], "decided": []}
    runs = True
    try:
        now |= request("approvals")
    except NotRunningError:
        runs = False
    try:
        now["decided"] = _decided(args.limit)
    except JournalError as error:
        if not runs:
            raise
        print(f"vsm: what was decided is not shown: {clean(str(error))}", file=sys.stderr)
    if args.json:
        print_json(now)
        return 0
    _print(now)
    return 0


def _decided(limit: int) -> list[dict[str, Any]]:
    path = state_dir() / JOURNAL_FILE
    if not limit or is_absent(path):
        return []
    with JournalReader(path) as reader:
        rows = reader.newest("decisions", Filter(kind=RULE, source="supervisor"), limit)
    return [
        {"at_s": row["at_ns"] / _NS, **row["inputs"], **row["outcome"]}
        for row in rows
        if row["outcome"] is not None
    ]


def _print(now: dict[str, Any]) -> None:
    if now["pending"]:
        headings = ("ID", "LEFT", "CLIENT", "INTEGRATION", "WHAT", "ARGUMENTS", "RULE")
        print_table(headings, [_row(one) for one in now["pending"]])
    else:
        print("nothing waits")
    if now["grants"]:
        print_table(
            ("APPROVED FOR", "CLIENT", "INTEGRATION", "WHAT"),
            [
                (seconds_text(g["left_s"]), clean(g["client"]), g["integration"], clean(g["name"]))
                for g in now["grants"]
            ],
        )
    if now.get("forgotten"):
        print(clean(f"what was approved before vsm was started is forgotten: {now['forgotten']}"))
    if now["decided"]:
        print_table(
            ("DECIDED", "VERDICT", "BY", "CLIENT", "INTEGRATION", "WHAT"),
            [
                (
                    _when(one["at_s"]), one["verdict"], clean(one["by"]),
                    *(clean(one.get(key, "?")) for key in ("client", "integration", "name")),
                )
                for one in now["decided"]
            ],
        )  # fmt: skip


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    name = f' "{one["calls_itself"]}"' if one["calls_itself"] else ""
    shown = one.get("arguments") or json.dumps(one["shape"], ensure_ascii=True)
    return (
        one["id"],
        seconds_text(one["left_s"]),
        clean(one["client"] + name),
        one["integration"],
        clean(f"{one['asks']} {one['name']}"),
        clean(f"{one['size_bytes']} bytes {shown}"),
        clean(one["rule"]),
    )


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError("--always-for", f"{text[:40]!r} is no time", "Write 10m or 1h.")
    return int(found[1]) * _UNITS_S[found[2]]


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().isoformat(" ", "seconds")


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "the owner"
