"""`vsm events` and `vsm decisions`: what the journal holds, whether or not vsm runs.

Reads the file itself, read-only, as the person at the terminal. Details may quote foreign text:
nothing of it reaches the terminal unless it is printable.
"""

import argparse
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from vsm.commands.terminal import DIM, RED, YELLOW, clean, coloured, print_json
from vsm.errors import ConfigurationError
from vsm.journal.reader import (
    MAX_LIMIT,
    Filter,
    JournalReader,
    Now,
    Row,
    Table,
    follow,
    parse_severity,
    parse_since,
)
from vsm.journal.records import JOURNAL_FILE, SEVERITIES
from vsm.paths import state_dir

DEFAULT_LIMIT = 100
_COLOURS = {"debug": DIM, "warning": YELLOW, "error": RED, "critical": RED}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `events` and `decisions`."""
    events = subparsers.add_parser("events", help="show what happened, from the journal")
    events.add_argument("--kind", help='such as worker.exited; "worker.*" for all of a family')
    events.add_argument("--worker", help="a worker or an integration")
    events.add_argument("--severity", help=f"at least this: {', '.join(SEVERITIES)}")
    decisions = subparsers.add_parser("decisions", help="show what vsm decided, and by which rule")
    decisions.add_argument("--rule", help='such as restart.quarantine; "restart.*" for a family')
    decisions.add_argument("--worker", help="whom it concerned")
    for parser in (events, decisions):
        parser.add_argument("--since", help="90s, 10m, 1h, 2d, 1w ago, or 2026-11-22T10:00")
        parser.add_argument("--source", help="which process said so, such as supervisor")
        parser.add_argument("-n", "--limit", type=int, default=DEFAULT_LIMIT, help="newest (100)")
        parser.add_argument("-f", "--follow", action="store_true", help="go on until interrupted")
        parser.add_argument("--json", action="store_true", help="a list, or a line each with -f")


def run(args: argparse.Namespace) -> int:
    """Print the newest records, oldest first, and with --follow what comes after them."""
    chosen, table = _filter(args), _table(args)
    path = state_dir() / JOURNAL_FILE
    with JournalReader(path) as reader:
        last_id = reader.last_id(table)
        rows = reader.newest(table, chosen, args.limit)
    if args.json and not args.follow:
        print_json(rows)
        return 0
    if args.follow:
        # A record that came between the two questions is older than `last_id` or follows.
        rows = [row for row in rows if row["id"] <= last_id]
    for row in rows:
        _print(row, args)
    if args.follow:
        _print_all(follow(path, table, chosen, last_id), args)
    return 0


def _print_all(batches: Iterator[list[Row]], args: argparse.Namespace) -> None:
    for batch in batches:
        for row in batch:
            _print(row, args)


def _table(args: argparse.Namespace) -> Table:
    return "events" if args.command == "events" else "decisions"


def _filter(args: argparse.Namespace) -> Filter:
    if not 0 < args.limit <= MAX_LIMIT:
        raise ConfigurationError("--limit", f"expected 1 to {MAX_LIMIT}, found {args.limit}")
    of_events = args.command == "events"
    severity = args.severity if of_events else None
    return Filter(
        since=None if args.since is None else parse_since(args.since, Now.read()),
        kind=args.kind if of_events else args.rule,
        worker=args.worker,
        severity=None if severity is None else parse_severity(severity),
        source=args.source,
    )


def _print(row: Row, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(row, ensure_ascii=True), flush=True)
        return
    text = _event_line(row) if args.command == "events" else _decision_line(row)
    print(text, flush=args.follow)


def _event_line(row: Row) -> str:
    severity = coloured(f"{row['severity']:<8}", _COLOURS.get(row["severity"], ""))
    who = row["worker"] or row["integration"] or row["source"]
    return (
        f"{when_text(row['at_ns'])}  {severity}  {_cell(row['kind'], 22)}  {_cell(who, 14)}  "
        + (_pairs(row["detail"]))
    )


def _decision_line(row: Row) -> str:
    outcome = "" if row["outcome"] is None else f"  outcome: {_pairs(row['outcome'])}"
    why, inputs = _why(row["inputs"])
    return (
        f"{when_text(row['at_ns'])}  {_cell(row['subject'], 14)}  {_cell(row['choice'], 12)}"
        f"  by {_cell(row['rule'], 20)}{why}{f'  from {_pairs(inputs)}' if inputs else ''}"
        f"  instead of {_pairs(row['alternatives'])}{outcome}"
    )


def _why(inputs: Any) -> tuple[str, Any]:  # noqa: ANN401 - JSON
    """What a system says in words of why it decided so, and the other inputs."""
    table = inputs if isinstance(inputs, dict) else {}
    words = table.get("why", table.get("reasons"))
    told = words if isinstance(words, str) else ""
    if isinstance(words, list):
        told = "; ".join(map(str, words))
    if not told:
        return "", inputs
    rest = {key: value for key, value in table.items() if key not in {"why", "reasons"}}
    return f"  because {clean(told)}", rest


def _cell(text: str, width: int) -> str:
    return f"{clean(text):<{width}}"


def when_text(at_ns: int) -> str:
    """Wall clock for a person."""
    try:
        return datetime.fromtimestamp(at_ns / 10**9).astimezone().isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{at_ns} ns"


def _pairs(value: Any) -> str:  # noqa: ANN401 - JSON
    """JSON for a person: key=value, lists by commas, nothing that a terminal obeys."""
    if isinstance(value, dict):
        return " ".join(f"{clean(str(key))}={_value(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value) or "nothing"
    return _value(value)


def _value(item: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(item, dict | list):
        return clean(json.dumps(_rounded(item)))  # its own quotes and brackets bound it
    text = item if isinstance(item, str) else json.dumps(_rounded(item))
    return json.dumps(clean(text), ensure_ascii=False) if " " in text else clean(text)


def _rounded(item: Any) -> Any:  # noqa: ANN401 - JSON
    """Numbers as a person reads them: no digits that nobody needs, nor a fraction of nothing."""
    if isinstance(item, dict):
        return {key: _rounded(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_rounded(value) for value in item]
    if not isinstance(item, float):
        return item
    short = round(item, 3) if abs(item) >= 1 else float(f"{item:.3g}")
    return int(short) if short.is_integer() else short
