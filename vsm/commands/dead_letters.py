"""`vsm dead-letters`: the calls that servers did not answer, and calling one again.

Reads the journal's file, whether or not vsm runs; only a replay needs a running vsm. Runs as the
person at the terminal, without whom nothing is called again.
"""

import argparse
import json
import sys
from typing import Any, Final

from vsm.commands.call import call_tool, print_result
from vsm.commands.control_client import request
from vsm.commands.events import when_text
from vsm.commands.mcp_client import seconds
from vsm.commands.terminal import clean, foreign, print_json, print_table
from vsm.errors import ConfigurationError, NotFoundError, VsmError
from vsm.journal.reader import MAX_LIMIT, Filter, JournalReader, Now, Row, parse_since
from vsm.journal.records import JOURNAL_FILE
from vsm.paths import state_dir

KIND: Final = "call.failed"
REPLAYED: Final = "call.replayed"
DEFAULT_LIMIT: Final = 50
EXIT_TOOL_ERROR: Final = 1
HEADINGS: Final = ("ID", "WHEN", "INTEGRATION", "WHAT", "RAN", "ARGUMENTS", "REPLAYED", "WHY")
_WHY_CHARS: Final = 60


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `dead-letters`."""
    parser = subparsers.add_parser(
        "dead-letters",
        help="show calls that servers did not answer, or call one again",
        description="Calls that were accepted and not answered by their server.",
    )
    parser.add_argument("action", nargs="?", choices=("list", "show", "replay"), default="list")
    parser.add_argument("id", nargs="?", type=int, metavar="ID", help="of show and replay")
    parser.add_argument("--integration", metavar="NAME", help="only its calls")
    parser.add_argument("--since", help="90s, 10m, 1h, 2d, 1w ago, or 2026-11-22T10:00")
    parser.add_argument("-n", "--limit", type=int, default=DEFAULT_LIMIT, help="newest (50)")
    parser.add_argument("--yes", action="store_true", help="replay without being asked")
    parser.add_argument("--timeout", type=seconds, default=120.0, metavar="S", help="seconds (120)")
    parser.add_argument("--json", action="store_true", help="one document")


def run(args: argparse.Namespace) -> int:
    """List, show or replay."""
    if args.action == "list":
        return _list(args)
    if args.id is None:
        raise ConfigurationError("vsm dead-letters", "no letter is named", "Give its ID.")
    letter = _find(args.id)
    return _show(letter, args) if args.action == "show" else _replay(letter, args)


def _list(args: argparse.Namespace) -> int:
    if not 0 < args.limit <= MAX_LIMIT:
        raise ConfigurationError("--limit", f"expected 1 to {MAX_LIMIT}, found {args.limit}")
    since = None if args.since is None else parse_since(args.since, Now.read())
    with _journal() as reader:
        chosen = Filter(since=since, kind=KIND, worker=args.integration, source="system1")
        letters = reader.newest("events", chosen, args.limit)
        replayed = _replayed(reader)
    for letter in letters:
        letter["replayed"] = replayed.get(letter["id"])
    if args.json:
        print_json(letters)
    elif letters:
        print_table(HEADINGS, [_row(letter) for letter in letters])
    else:
        print("no dead letters")
    return 0


def _row(letter: Row) -> tuple[str, ...]:
    detail = letter["detail"]
    why = str(detail.get("text", ""))
    return (
        str(letter["id"]),
        when_text(letter["at_ns"]),
        str(letter["integration"]),
        str(detail.get("what", "")),
        "perhaps" if detail.get("may_have_run") else "no",
        "kept" if "arguments" in detail else "not kept",
        letter["replayed"] or "-",
        why if len(why) <= _WHY_CHARS else why[: _WHY_CHARS - 1] + "…",
    )


def _find(number: int) -> Row:
    with _journal() as reader:
        letter = reader.one("events", number)
        if letter is None or (letter["kind"], letter["source"]) != (KIND, "system1"):
            raise NotFoundError(
                f"dead letter {number}", "there is none", "`vsm dead-letters` lists them."
            )
        letter["replayed"] = _replayed(reader).get(number)
    return letter


def _show(letter: Row, args: argparse.Namespace) -> int:
    if args.json:
        print_json(letter)
        return 0
    detail = dict(letter["detail"])
    arguments, why = detail.pop("arguments", None), str(detail.pop("text", ""))
    print(f"{letter['id']}: {when_text(letter['at_ns'])}, {clean(str(letter['integration']))}")
    for key, value in detail.items():
        print(f"  {clean(key)}: {clean(value if isinstance(value, str) else json.dumps(value))}")
    print(f"  replayed: {clean(letter['replayed'] or 'no')}")
    print("why:")
    print("\n".join(foreign(why)))
    if arguments is not None:
        print("arguments:")
        print("\n".join(foreign(str(arguments))))
    return 0


def _replay(letter: Row, args: argparse.Namespace) -> int:
    arguments = _arguments(letter)
    integration, tool = str(letter["integration"]), str(letter["detail"].get("what", ""))
    _confirm(letter, integration, tool, agreed=args.yes)
    outcome = "error"
    try:
        result = call_tool(integration, tool, arguments, args.timeout)
        outcome = "tool error" if result.get("isError") else "ok"
    finally:
        _record(letter, integration, outcome)
    if args.json:
        print_json(result)
    else:
        print_result(result)
    return EXIT_TOOL_ERROR if result.get("isError") else 0


def _record(letter: Row, integration: str, outcome: str) -> None:
    """In the journal; vsm may have ended meanwhile, and the answer counts all the same."""
    try:
        request("replayed", id=letter["id"], name=integration, outcome=outcome)
    except VsmError as error:
        print(f"vsm: not recorded: {clean(str(error))}", file=sys.stderr)


def _arguments(letter: Row) -> dict[str, Any]:
    where, detail = f"dead letter {letter['id']}", letter["detail"]
    if detail.get("method") != "tools/call":
        raise VsmError(where, "only a tool's call can be made again", "Ask from an MCP client.")
    if "arguments" not in detail:
        remedy = "Set resilience.keep_arguments = true of the integration for those to come."
        raise VsmError(where, "its arguments were not kept", remedy)
    try:
        arguments = json.loads(detail["arguments"])
    except (ValueError, TypeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise VsmError(where, "its arguments are no JSON object", "See `vsm dead-letters show`.")
    return arguments


def _confirm(letter: Row, integration: str, tool: str, *, agreed: bool) -> None:
    """A person decides.

    Raises:
        VsmError: nobody is there, or they said no.
    """
    if agreed:
        return
    where = f"dead letter {letter['id']}"
    if not sys.stdin.isatty():
        raise VsmError(where, "nobody is here to ask", "Say --yes to call it again.")
    ran = "It may have run already. " if letter["detail"].get("may_have_run") else ""
    again = "It was called again before. " if letter["replayed"] else ""
    question = f"{ran}{again}Call {clean(tool)} of {clean(integration)} again? [y/N] "
    try:
        answer = input(question)
    except EOFError:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise VsmError(where, "not called", "")


def _replayed(reader: JournalReader) -> dict[int, str]:
    """What came of the letters that were called again, the last time each."""
    rows = reader.newest("events", Filter(kind=REPLAYED, source="supervisor"), MAX_LIMIT)
    return {row["detail"].get("letter"): str(row["detail"].get("outcome")) for row in rows}


def _journal() -> JournalReader:
    return JournalReader(state_dir() / JOURNAL_FILE)
