"""`vsm trust [list]`, `vsm trust diff NAME`, `vsm trust approve NAME`: what servers may offer."""

import argparse
import difflib
import json
from itertools import islice
from typing import Any

from vsm.commands.control_client import request
from vsm.commands.terminal import clean, foreign, print_json, print_table


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `trust`."""
    parser = subparsers.add_parser(
        "trust",
        help="compare what servers offer with what was approved",
        description="Tools, prompts, resources and instructions are pinned as they were approved. "
        "What a server changes afterwards is neither shown nor callable until you approve it.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="one line for each integration")
    diff = actions.add_parser("diff", help="what waits for approval, and what looks suspicious")
    approve = actions.add_parser("approve", help="approve what is offered now")
    for one in (diff, approve):
        one.add_argument("name", metavar="NAME", help="an integration")
    approve.add_argument(
        "items",
        nargs="*",
        default=[],
        metavar="ITEM",
        help='such as "tool echo"; default: everything open',
    )
    approve.add_argument(
        "--seen", metavar="DIGEST", default="", help="only if it is what `vsm trust diff` showed"
    )
    for one in (parser, listing, diff, approve):
        one.add_argument("--json", action="store_true", help="print what vsm answered")


def run(args: argparse.Namespace) -> int:
    """Ask the supervisor, and print."""
    if args.action == "approve":
        answer = request("trust-approve", name=args.name, items=args.items, seen=args.seen)
    elif args.action == "diff":
        answer = request("trust-diff", name=args.name)
    else:
        answer = request("trust")
    if args.json:
        print_json(answer)
    elif args.action == "approve":
        for item in answer["approved"]:
            print(clean(f"{args.name}: approved {item}"))
        if not answer["approved"]:
            print(f"{clean(args.name)}: nothing waits for approval")
    elif args.action == "diff":
        _print_differences(answer)
    else:
        keys = ("name", "trust", "approved", "open", "flags")
        print_table(
            ("INTEGRATION", "TRUST", "APPROVED", "OPEN", "FLAGS"),
            [[str(row[key]) for key in keys] for row in answer["integrations"]],
        )
    return 0


def _print_differences(answer: dict[str, Any]) -> None:
    for one in answer["open"]:
        print(clean(f"{one['item']}: {one['state']}"))
        if one["cut"]:
            print("look at the file in the state directory too: it is too long to be shown whole")
        before, after = _lines(one["before"]), _lines(one["after"])
        if before == after:
            print("it says the same, written in another way: in another order, or another era")
        # The two lines of a head, and then nothing by what it says: a server's text may begin so.
        for line in islice(difflib.unified_diff(before, after, lineterm="", n=2), 2, None):
            if not line.startswith("@@"):
                print("\n".join(foreign(line)))
    for flag in answer["flags"]:
        print(clean(f"look at {flag['item']}, {flag['where']}: {flag['why']}"))
        if flag["excerpt"]:
            print("\n".join(foreign(flag["excerpt"])))
    if answer["open"]:
        name = clean(answer["name"])
        print(f"to approve exactly this: vsm trust approve {name} --seen {answer['digest']}")
    else:
        print("nothing waits for approval")


def _lines(text: str) -> list[str]:
    """An item as lines that can be compared; invisible characters are shown as escapes."""
    if not text:
        return []
    try:
        whole = json.loads(text, object_pairs_hook=_members)
        return json.dumps(whole, indent=2, sort_keys=True).splitlines()
    except (ValueError, RecursionError):  # cut, or to be seen as it is
        return [text]


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a member that is there twice a client may read the one that is not shown."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is there twice")
    return members
