"""`vsm logs`: what an integration wrote to its standard error, kept in a bounded ring."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from vsm.commands.control_client import request, stream
from vsm.commands.terminal import clean, print_json


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `logs`."""
    parser = subparsers.add_parser("logs", help="show what an integration wrote to stderr")
    parser.add_argument("name", help="an integration or another worker of `vsm status`")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until interrupted")
    parser.add_argument("-n", "--lines", type=int, default=100, help="how many (100)")
    parser.add_argument("--json", action="store_true", help="a list, or a document a line with -f")


def run(args: argparse.Namespace) -> int:
    """Print the lines, stripped of whatever a terminal would obey."""
    if args.json and not args.follow:
        print_json(list(_kept(args)))
        return 0
    said = False
    for line in _followed(args) if args.follow else _kept(args):
        print(clean(line), flush=args.follow)
        said = True
    if not said and args.lines > 0:
        print(f"vsm: {clean(args.name)} has written nothing to stderr", file=sys.stderr)
    return 0


def _kept(args: argparse.Namespace) -> Iterator[str]:
    answer: Any = request("logs", name=args.name, follow=False, lines=args.lines)
    yield from (str(line) for line in answer)


def _followed(args: argparse.Namespace) -> Iterator[str]:
    for answer in stream("logs", name=args.name, follow=True, lines=args.lines):
        if isinstance(answer, dict) and "line" in answer:
            yield str(answer["line"])
