"""`vsm limit NAME [KEY=VALUE…]`: show or move the limits of a running integration."""

import argparse
from typing import Any

from vsm.commands.control_client import request
from vsm.commands.terminal import clean, print_json, print_table
from vsm.errors import ConfigurationError


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `limit`."""
    parser = subparsers.add_parser(
        "limit",
        help="show or move the limits of a running integration",
        description="Without KEY=VALUE: each limit, what holds it and whether it is in force. "
        "What a control group holds (memory, swap, processes, cpu) and what is detected on the "
        "disk (disk, disk_files) moves at once; open_files, file_size, cpu_time_s and wall_time_s "
        "count from the next start. instances=N bounds a pool, instances=unlimited ends that. Kept "
        "until vsm ends.",
    )
    parser.add_argument("name", metavar="NAME", help="an integration")
    parser.add_argument(
        "limits", nargs="*", default=[], metavar="KEY=VALUE", help="as in a profile's [limits]"
    )
    parser.add_argument("--json", action="store_true", help="print what vsm answered")


def run(args: argparse.Namespace) -> int:
    """Ask, and print one line for each limit."""
    answer = request("limit", name=args.name, limits=dict(map(_pair, args.limits)))
    if args.json:
        print_json(answer)
        return 0
    if not args.limits:
        print_limits(answer["held"] or [])
        return 0
    for row in answer["limits"]:
        text = f"{args.name}: {row['key']} = {row['value']}: {row['state']} ({row['detail']})"
        print(clean(text))
    return 0


def print_limits(held: list[dict[str, str]]) -> None:
    """A table of what holds each limit."""
    if not held:
        print("It does not run: nothing is in force.")
        return
    keys = ("key", "value", "state", "mechanism", "detail")
    rows = [tuple(clean(row[key]) or "-" for key in keys) for row in held]
    print_table(("LIMIT", "VALUE", "STATE", "BY", "DETAIL"), rows)


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ConfigurationError("vsm limit", f"{text!r} is no KEY=VALUE", "Write memory=512M.")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value
