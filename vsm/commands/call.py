"""`vsm call INTEGRATION TOOL '{...}'`: call one tool and print what it answers."""

import argparse
import json
import math
import sys
from typing import Any, NoReturn, TextIO

from vsm.commands.control_client import request
from vsm.commands.mcp_client import CallError, Client, seconds, tool_prefixes
from vsm.commands.terminal import clean, foreign, print_json
from vsm.errors import ConfigurationError, NotFoundError, VsmError

EXIT_TOOL_ERROR = 1
INVALID_PARAMS = -32602


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `call`."""
    parser = subparsers.add_parser(
        "call",
        help="call one tool",
        description="Call one tool. Lines that start with '>' are the server's own words.",
    )
    parser.add_argument("integration", metavar="INTEGRATION")
    parser.add_argument("tool", metavar="TOOL", help="the server's name for it, or the listed one")
    parser.add_argument("arguments", metavar="JSON", nargs="?", default="{}", help="- reads stdin")
    parser.add_argument("--timeout", type=seconds, default=120.0, metavar="S", help="seconds (120)")
    parser.add_argument("--json", action="store_true", help="the result as the gateway gave it")


def run(args: argparse.Namespace) -> int:
    """Call it; a tool's own error is exit code 1."""
    arguments = _parse_arguments(args.arguments)
    result = call_tool(args.integration, args.tool, arguments, args.timeout)
    if args.json:
        print_json(result)
    else:
        print_result(result)
    return EXIT_TOOL_ERROR if result.get("isError") else 0


def call_tool(
    integration: str, tool: str, arguments: dict[str, Any], timeout_s: float
) -> dict[str, Any]:
    """Call a tool by the server's name for it, or the listed one.

    Raises:
        VsmError: there is no such tool, or it gave no result.
    """
    name = _public_name(integration, tool_prefixes(integration)[integration], tool)
    params = {"name": name, "arguments": arguments}
    with Client(timeout_s) as client:
        try:
            return client.request("tools/call", params, lambda: _say_who_is_awaited(name))
        except CallError as error:
            if error.code == INVALID_PARAMS and error.what.startswith(f"Unknown tool: {name} ("):
                remedy = f"See `vsm tools {integration}` and `vsm status {integration}`."
                raise NotFoundError(integration, f"no tool {tool!r}", remedy) from None
            raise


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        typed = sys.stdin.read() if text == "-" else text
        value = json.loads(typed, parse_constant=_refuse, parse_float=_number)
    except (ValueError, RecursionError) as error:
        remedy = 'Write an object in single quotes, such as \'{"path": "hello.txt"}\'.'
        raise ConfigurationError(
            "vsm call", f"the arguments are no JSON ({error})", remedy
        ) from None
    if not isinstance(value, dict):
        raise ConfigurationError("vsm call", "expected a JSON object", "Name each argument.")
    return value


def _refuse(name: str) -> NoReturn:
    """Python's JSON has more numbers than anybody else's."""
    raise ValueError(f"{name} is none of its numbers")


def _number(digits: str) -> float:
    """What is too large for one would leave as "Infinity"."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:40]} is too large")
    return number


def _public_name(integration: str, prefix: str, tool: str) -> str:
    from vsm.protocol.catalogue import SEPARATOR, public_name

    if prefix and tool.startswith(prefix + SEPARATOR):
        return tool
    return public_name(prefix, tool, integration)


def _say_who_is_awaited(name: str) -> None:
    """Name the servers that are not ready, of those that may have the tool."""
    from vsm.protocol.catalogue import SEPARATOR

    try:
        workers = request("status")["workers"]
    except VsmError:  # a word on the way: the call goes on, and says itself how it ended
        return
    for worker in workers:
        integration, state = worker.get("integration"), worker.get("state")
        if not integration or state == "ready":
            continue
        prefix = integration if worker.get("prefix") is None else worker["prefix"]
        if not prefix or name.startswith(prefix + SEPARATOR):
            text = f"vsm: waiting for {worker['name']}, which is {state}"
            print(clean(text), file=sys.stderr, flush=True)


def print_result(result: dict[str, Any]) -> None:
    """Print what a tool answered.

    Raises:
        VsmError: it asks back, and nobody here can answer; or it is no result of a tool's.
    """
    if result.get("resultType") == "input_required":
        what = "the server asks a question back"
        raise VsmError("the call", what, "Call it from an MCP client.")
    stream = sys.stderr if result.get("isError") else sys.stdout
    try:
        _print_content(result, stream)
    except (LookupError, TypeError, AttributeError):
        what = "its server answers what makes no sense"
        raise VsmError("the call", what, "`--json` shows it.") from None


def _print_content(result: dict[str, Any], stream: TextIO) -> None:
    for item in result.get("content", ()):
        kind = item.get("type")
        text = item["text"] if kind == "text" else json.dumps(_without_blobs(item))
        for line in foreign(str(text)):
            print(line, file=stream)
    if not result.get("content") and "structuredContent" in result:
        print(json.dumps(result["structuredContent"], indent=2), file=stream)


def _without_blobs(item: dict[str, Any]) -> dict[str, Any]:
    """Name the size of encoded bytes instead of printing them."""
    return {
        key: f"<{len(value)} characters>" if key in {"data", "blob"} else value
        for key, value in item.items()
    }
