"""`vsm tools`: every tool behind the endpoint, by the name that clients use."""

import argparse
import sys
from typing import Any

from vsm.commands.mcp_client import Client, tool_prefixes
from vsm.commands.terminal import BOLD, clean, coloured, foreign, print_json

ANSWER_TIMEOUT_S = 60.0
SHORT_CHARS = 100


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `tools`."""
    parser = subparsers.add_parser(
        "tools",
        help="list the tools of all integrations",
        description="List the tools behind the endpoint. Lines that start with '>' are a "
        "server's own words: vsm did not write them and nobody has checked them.",
    )
    parser.add_argument("name", nargs="?", help="only this integration's")
    parser.add_argument("-l", "--long", action="store_true", help="whole descriptions, arguments")
    parser.add_argument("--json", action="store_true", help="the tools as the gateway lists them")


def run(args: argparse.Namespace) -> int:
    """Print them."""
    with Client(ANSWER_TIMEOUT_S) as client:
        tools = list(client.items("tools/list", "tools"))
        if client.may_grow:
            print("Some integrations are still starting: see `vsm status`.", file=sys.stderr)
    if args.name:
        tools = _of(args.name, tools)
    if args.json:
        print_json({"tools": tools})
        return 0
    for tool in tools:
        _print_tool(tool, long=args.long)
    print(f"{len(tools)} tools. Lines after '>' are the servers' own words.")
    return 0


def _of(integration: str, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the tools of one integration; bare names are those that nobody's prefix explains."""
    prefixes = tool_prefixes(integration)
    own = prefixes.pop(integration)
    if own:
        return [tool for tool in tools if tool["name"].startswith(f"{own}__")]
    others = tuple(f"{prefix}__" for prefix in prefixes.values() if prefix)
    return [tool for tool in tools if not tool["name"].startswith(others)]


def _print_tool(tool: dict[str, Any], *, long: bool) -> None:
    print(coloured(clean(tool["name"]), BOLD) + _arguments(tool.get("inputSchema")))
    lines = foreign(str(tool.get("description") or ""))
    if not long and lines:
        more = len(lines) > 1 or len(lines[0]) > SHORT_CHARS
        lines = [lines[0][:SHORT_CHARS] + (" ..." if more else "")]
    for line in lines:
        print(f"  {line}")


def _arguments(schema: object) -> str:
    """The names of the arguments, those that may be left out in brackets."""
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return ""
    required = schema.get("required")
    needed = required if isinstance(required, list) else []
    words = [name if name in needed else f"[{name}]" for name in schema["properties"]]
    return "".join(f" {clean(word)}" for word in words)
