"""`vsm reload` and `vsm log-level LEVEL`: change the running vsm without a restart."""

import argparse
from typing import Any

from vsm.commands.control_client import MOVE_TIMEOUT_S, request
from vsm.commands.terminal import clean, print_json


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `reload` and `log-level`."""
    reload = subparsers.add_parser(
        "reload",
        help="apply an edited vsm.toml",
        description="Read vsm.toml and the profiles again. If anything in them is wrong, nothing "
        "changes. Otherwise new integrations start, removed ones drain and stop, changed ones "
        "restart; the others are not touched.",
    )
    reload.add_argument("--no-wait", action="store_true", help="do not wait for starts and stops")
    level = subparsers.add_parser("log-level", help="say more or less in the log, from now on")
    level.add_argument("level", help="debug, info, warning or error")
    for parser in (reload, level):
        parser.add_argument("--json", action="store_true", help="print what vsm answered")


def run(args: argparse.Namespace) -> int:
    """Ask, and print one line for each change."""
    if args.command == "log-level":
        answer = request("log-level", level=args.level)
    else:
        answer = request("reload", timeout_s=MOVE_TIMEOUT_S, wait=not args.no_wait)
    if args.json:
        print_json(answer)
    elif args.command == "log-level":
        print(f"log level: {clean(str(answer['level']))} (was {clean(str(answer['before']))})")
    else:
        _print(answer)
    return 0


def _print(answer: dict[str, Any]) -> None:
    for change in answer["changes"]:
        keys = f" ({', '.join(change['keys'])})" if change["keys"] else ""
        detail = f": {change['detail']}" if change["detail"] else ""
        print(clean(f"{change['name']}: {change['outcome']}{keys}{detail}"))
    if not answer["changes"]:
        print("nothing changed")
