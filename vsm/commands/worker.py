"""`vsm start|stop|restart|drain NAME`: command the supervisor to move one integration."""

import argparse
import os
import select
import sys
from typing import Any

from vsm.commands.control_client import MOVE_TIMEOUT_S, request
from vsm.commands.terminal import clean, print_json
from vsm.errors import ConfigurationError, VsmError

SUMMARIES = {
    "start": "start an integration; ends its quarantine as well",
    "stop": "stop an integration until told to start it, or all of vsm",
    "restart": "stop an integration and start it again",
    "drain": "take no new calls, finish those in flight, then stop",
}
FAILED = ("backing_off", "quarantined")


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
    """Send the command once for each name; 1 where one was to serve and does not."""
    if args.command == "stop" and args.all == bool(args.names):
        raise ConfigurationError("vsm stop", "expected names or --all", "Give one of them.")
    if args.command == "stop" and args.all:
        return _shut_down(args)
    answers = {}
    for name in args.names:
        if sys.stderr.isatty():
            print(f"{clean(name)}: {args.command} ...", file=sys.stderr, flush=True)
        answers[name] = request(args.command, timeout_s=MOVE_TIMEOUT_S, name=name)
        if not args.json:  # at once: the next one may fail
            print(f"{clean(name)}: {clean(_told(answers[name]))}", flush=True)
    if args.json:
        print_json(answers)
    return int(any(answer["state"] in FAILED for answer in answers.values()))


def _told(answer: dict[str, Any]) -> str:
    """Its state; the reason as well where it was to serve and does not."""
    state, detail = answer["state"], answer["detail"]
    return f"{state}: {detail}" if detail and state in FAILED else state


def _shut_down(args: argparse.Namespace) -> int:
    """End it, and wait until it has ended: what follows in a script may start the next one."""
    pid = request("status")["pid"]
    try:
        sentinel = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0  # it ended by itself
    try:
        answer = request("shutdown", timeout_s=MOVE_TIMEOUT_S)
        if not args.json:
            print("vsm: shutting down", flush=True)
        if not select.select([sentinel], [], [], MOVE_TIMEOUT_S)[0]:
            what = f"pid {pid} has not ended after {MOVE_TIMEOUT_S:g} s"
            raise VsmError(
                "vsm stop", what, "Its log says what it waits for; `kill` it if need be."
            )
    finally:
        os.close(sentinel)
    if args.json:
        print_json(answer)
    return 0
