"""`vsm board dump`: what is in the shared memory of the running vsm."""

import argparse
from typing import Any

from vsm.commands.control_client import request
from vsm.commands.terminal import clean, print_json, print_table
from vsm.core.figures import figure


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `board`."""
    parser = subparsers.add_parser("board", help="show what is in the shared memory")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    dump = actions.add_parser("dump", help="print every count as it is now")
    dump.add_argument("--json", action="store_true", help="the layout: `vsm docs board`")


def run(args: argparse.Namespace) -> int:
    """Print the demand board's counts, resources and the channels' rows, or JSON."""
    body = request("board")
    if args.json:
        print_json(body)
        return 0
    demand = body["demand"]
    print(
        f"demand board version {demand['version']} of system1, pid {demand['pid']}, "
        f"epoch {demand['epoch']}: {demand['segments']} segments, {demand['bytes']} bytes"
    )
    rows = [
        (name, clean(label), *map(str, counts))
        for name, one in demand["integrations"].items()
        for label, counts in one["classes"].items()
    ]
    print_table(("INTEGRATION", "DEMAND", *map(str.upper, demand["outcomes"])), rows)
    _print_resources(body["resources"])
    print(f"\nchannels: {body['channel_bytes']} bytes")
    print_table(
        ("FROM", "TO", "CARRIES", "SENT", "PER S", "BITS/S", "DROPPED", "QUEUED", "FILL"),
        [_channel(row) for row in body["channels"]],
    )
    return 0


def _print_resources(found: dict[str, Any]) -> None:
    ago_s = found["sampled_s_ago"]
    when = "not sampled yet" if ago_s is None else f"sampled {ago_s:.1f} s ago"
    print(f"\nresources: {found['bytes']} bytes, {when}")
    rows = [
        (name, _amount(one["memory_bytes"], 2.0**20), _amount(one["cpu"]),
         _amount(one["processes"]), ", ".join(one["met"]) or "-")
        for name, one in found["integrations"].items()
    ]  # fmt: skip
    if rows:
        print_table(("INTEGRATION", "MIB", "CPU", "TASKS", "LIMITS MET"), rows)


def _amount(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else figure(value / unit, 4)


def _channel(row: dict[str, Any]) -> tuple[str, ...]:
    texts = (row[key] for key in ("messages", "messages_s", "bits_s", "dropped", "queued"))
    shown = ("-" if value is None else figure(value, 6) for value in texts)
    return row["sender"], row["receiver"], row["carries"], *shown, f"{row['fill']:.1%}"
