"""`vsm calls`: who called what, and how it ended, from the call journal, whether or not vsm runs.

Reads the file itself, read-only. Names are foreign text: nothing of them reaches the terminal
unless it is printable.
"""

import argparse
import json
from collections.abc import Iterator

from vsm.commands.events import when_text
from vsm.commands.terminal import clean, foreign, print_json
from vsm.errors import ConfigurationError
from vsm.journal.calls import CALLS_FILE
from vsm.journal.reader import MAX_LIMIT, Filter, JournalReader, Now, Row, follow, parse_since
from vsm.paths import state_dir

DEFAULT_LIMIT = 100


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `calls`."""
    parser = subparsers.add_parser(
        "calls",
        help="show who called what, and how it ended",
        description="One line for each call: client, integration, tool, outcome, duration, bytes. "
        "gateway.audit says which calls are recorded, audit_contents of an integration whether "
        "with what they carried.",
    )
    parser.add_argument("--since", help="90s, 10m, 1h, 2d, 1w ago, or 2026-11-22T10:00")
    parser.add_argument("--outcome", help="ok, tool_error, protocol_error, timeout, denied, …")
    parser.add_argument("--integration", help="calls to this one")
    parser.add_argument("--client", help='such as "unix:0" or "http:desktop"')
    parser.add_argument("--contents", action="store_true", help="what was kept of it, too")
    parser.add_argument("-n", "--limit", type=int, default=DEFAULT_LIMIT, help="newest (100)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until interrupted")
    parser.add_argument("--json", action="store_true", help="a list, or a line each with -f")


def run(args: argparse.Namespace) -> int:
    """Print the newest calls, oldest first, and with --follow what comes after them."""
    if not 0 < args.limit <= MAX_LIMIT:
        raise ConfigurationError("--limit", f"expected 1 to {MAX_LIMIT}, found {args.limit}")
    chosen = Filter(
        since=None if args.since is None else parse_since(args.since, Now.read()),
        kind=None if args.outcome is None else f"call.{args.outcome}",
        worker=args.integration,
        source=args.client,
    )
    path = state_dir() / CALLS_FILE
    with JournalReader(path) as reader:
        last_id = reader.last_id("events")
        rows = reader.newest("events", chosen, args.limit)
    if args.json and not args.follow:
        print_json(rows)
        return 0
    for row in rows:
        if not args.follow or row["id"] <= last_id:
            _print(row, args)
    if args.follow:
        for batch in follow(path, "events", chosen, last_id):
            for row in batch:
                _print(row, args)
    return 0


def export(since: str, integration: str | None) -> None:
    """Print every call recorded since then, oldest first, one JSON object a line.

    Args:
        since: as --since has it.
        integration: of this one alone.
    """
    chosen = Filter(since=parse_since(since, Now.read()), worker=integration)
    last_id = 0
    with JournalReader(state_dir() / CALLS_FILE) as reader:
        while rows := reader.after("events", chosen, last_id):
            last_id = rows[-1]["id"]
            for row in rows:
                print(json.dumps(row, ensure_ascii=True))


def _print(row: Row, args: argparse.Namespace) -> None:
    if args.json:
        lines = [json.dumps(row, ensure_ascii=True)]
    else:
        lines = _lines(row, contents=args.contents)
    print("\n".join(lines), flush=args.follow)


def _lines(row: Row, *, contents: bool) -> list[str]:
    """For people; what S1 had written down of a call need not make sense."""
    try:
        return [_line(row), *(_contents(row) if contents else ())]
    except (LookupError, TypeError, AttributeError, ValueError):
        when, kind = when_text(row["at_ns"]), row["kind"]
        return [clean(f"{when}  {kind}  makes no sense: `vsm calls --json` shows it")]


def _contents(row: Row) -> Iterator[str]:
    contents = row["detail"].get("contents", {})
    if "left_out" in contents:
        yield clean(f"  contents left out: {contents['left_out']}")
    for key in ("arguments", "result"):
        if key in contents:
            cut = " (the beginning)" if key in contents.get("truncated", ()) else ""
            yield f"  {key}{cut}:"
            yield from foreign(contents[key])


def _line(row: Row) -> str:
    detail = row["detail"]
    if "what" not in detail:
        pairs = " ".join(f"{key}={value}" for key, value in detail.items())
        return clean(f"{when_text(row['at_ns'])}  {row['kind']}  {pairs}")
    who = row["source"] + (f" ({detail['client']})" if detail["client"] else "")
    what = "/".join(part for part in (row["integration"], detail["what"]) if part)
    sizes = f"{detail['bytes_in']} B in, {detail['bytes_out']} B out"
    outcome = row["kind"].removeprefix("call.")
    return clean(
        f"{when_text(row['at_ns'])}  {outcome:<14}  {what}  {who}  {detail['ms']:.1f} ms  {sizes}"
    )
