"""`vsm panic`: stop every integration now and refuse calls; `vsm resume` ends that."""

import argparse

from vsm.commands.control_client import request
from vsm.commands.terminal import print_json

SENTENCES = {
    "panic": "panic: every integration is stopped and calls are refused. `vsm resume` ends it.",
    "resume": "resumed: integrations start again.",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `panic` and `resume`."""
    for name in SENTENCES:
        parser = subparsers.add_parser(name)
        parser.add_argument(
            "--json", action="store_true", help="print what the supervisor answered"
        )


def run(args: argparse.Namespace) -> int:
    """Send it."""
    answer = request(args.command)
    if args.json:
        print_json(answer)
    else:
        print(SENTENCES[args.command])
    return 0
