"""`vsm start|stop|restart|drain NAME`: command the supervisor to move one integration."""

import argparse
import sys

from vsm.commands.control_client import request
from vsm.commands.terminal import clean, print_json
from vsm.errors import ConfigurationError

SUMMARIES = {
    "start": "start an integration; ends its quarantine as well",
    "stop": "stop an integration until told to start it, or all of vsm",
    "restart": "stop an integration and start it again",
    "drain": "take no new calls, finish those in flight, then stop",
}
# The supervisor bounds every one of these itself; this only guards against a hung supervisor.
ANSWER_TIMEOUT_S = 180.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `start`, `stop`, `restart` and `drain`."""
    for name, summary in SUMMARIES.items():
        parser = subparsers.add_parser(name, help=summary, description=summary)
        several = "*" if name == "stop" else "+"
        parser.add_argument("names", nargs=several, metavar="NAME", help="integrations")
        if name == "stop":
            parser.add_argument("--all", action="store_true", help="end vsm itself, in order")
        parser.add_argument(
            "--json", action="store_true", help="print what the supervisor answered"
        )


def run(args: argparse.Namespace) -> int:
    """Send the command once for each name."""
    if args.command == "stop" and args.all == bool(args.names):
        raise ConfigurationError("vsm stop", "expected names or --all", "Give one of them.")
    if args.command == "stop" and args.all:
        return _shut_down(args)
    answers = {}
    for name in args.names:
        if sys.stderr.isatty():
            print(f"{clean(name)}: {args.command} ...", file=sys.stderr, flush=True)
        answers[name] = request(args.command, timeout_s=ANSWER_TIMEOUT_S, name=name)
    if args.json:
        print_json(answers)
    else:
        for name, answer in answers.items():
            state = answer.get("state") if isinstance(answer, dict) else None
            print(f"{clean(name)}: {clean(str(state or 'done'))}")
    return 0


def _shut_down(args: argparse.Namespace) -> int:
    answer = request("shutdown", timeout_s=ANSWER_TIMEOUT_S)
    if args.json:
        print_json(answer)
    else:
        print("vsm: shutting down")
    return 0
