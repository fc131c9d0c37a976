"""`vsm audit NAME`: what the kernel says of a running worker, against its plan."""

import argparse

from vsm.commands.control_client import request
from vsm.commands.terminal import clean, print_json

EXIT_FAILED = 1


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `audit`."""
    parser = subparsers.add_parser(
        "audit",
        help="compare a running integration with its plan",
        description="Every process of the worker: user, capabilities, no_new_privs, system-call "
        "filter, namespaces, control group and limits, as the kernel has them. Exit code 1 where "
        "one is not as planned. `vsm sandbox audit` tries to break out instead.",
    )
    parser.add_argument("name", metavar="NAME", help="an integration")
    parser.add_argument("--json", action="store_true", help="print what vsm answered")


def run(args: argparse.Namespace) -> int:
    """Ask, and print what is not as planned."""
    found = request("audit", name=args.name)
    if args.json:
        print_json(found)
    else:
        failed = found["failed"]
        words = f"{found['checked']} facts of {found['processes']} processes"
        print(f"{args.name}: {words}: {len(failed) or 'none'} not as planned")
        for name, text in failed.items():
            print(clean(f"  {name}: {text}"))
        if found["unknown"]:
            print(f"  not readable by this user: {', '.join(found['unknown'])}")
    return EXIT_FAILED if found["failed"] else 0
