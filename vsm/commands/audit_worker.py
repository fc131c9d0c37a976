"""`vsm audit NAME`: a running worker against its plan, attacked from within, and asked.

`vsm audit --since WHEN` is the other audit: every recorded call, for another program to keep.
"""

import argparse

from vsm.commands.control_client import MOVE_TIMEOUT_S, request
from vsm.commands.terminal import clean, print_json
from vsm.errors import ConfigurationError

EXIT_FAILED = 1


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `audit`."""
    parser = subparsers.add_parser(
        "audit",
        help="audit a running integration from outside, from within and by its contract",
        description="Every process of the worker: user, capabilities, no_new_privs, system-call "
        "filter, namespaces, control group and limits, as the kernel has them. A sibling under "
        "the same plan, inside the worker's namespaces, tries attacks that harm nothing. The "
        "server is asked whether it still offers what it told. Exit code 1 where something fails. "
        "With --since instead: every call that was recorded since then, one JSON object a line.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="an integration")
    parser.add_argument("--since", help="export calls: 90s, 10m, 1h, 2d, 1w ago, or a time")
    parser.add_argument("--json", action="store_true", help="print what vsm answered")


def run(args: argparse.Namespace) -> int:
    """Ask, and print what is not as planned; or export calls."""
    if args.since is not None:
        from vsm.commands.calls import export

        export(args.since, args.name)
        return 0
    if args.name is None:
        remedy = "Give NAME, or --since WHEN for the record of calls."
        raise ConfigurationError("vsm audit", "no integration is named", remedy)
    found = request("audit", timeout_s=MOVE_TIMEOUT_S, name=args.name)
    if args.json:
        print_json(found)
    else:
        failed = found["failed"]
        facts = found["checked"] - found["attacks"] - found["contract"]
        words = f"{facts} facts of {found['processes']} processes, {found['attacks']} attacks from "
        words += f"within, {found['contract']} answers and items of its contract"
        print(f"{args.name}: {words}: {len(failed) or 'none'} not as planned")
        for name, text in failed.items():
            print(clean(f"  {name}: {text}"))
        if found["unknown"]:
            print(clean(f"  not looked at: {', '.join(found['unknown'])}"))
        if found["detail"]:
            print(f"  {found['detail']}")
    return EXIT_FAILED if found["failed"] else 0
