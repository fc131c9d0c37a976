"""`vsm variety`: what is asked against what is answered well, in bits, with its evidence."""

import argparse
from typing import Any

from vsm.commands.control_client import request
from vsm.commands.terminal import BOLD, YELLOW, clean, coloured, print_json, print_table
from vsm.core.figures import figure

_FIGURES = (
    ("environmental", "H(D)", "environmental_bits", "bits"),
    ("absorbed", "", "absorbed_bits", "bits"),
    ("gap", "", "gap_bits", "bits"),
    ("requisite ratio", "", "requisite_ratio", ""),
)
_SHOWN = 8
_UNITS = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `variety`."""
    parser = subparsers.add_parser(
        "variety", help="show what is asked against what is answered well, in bits"
    )
    parser.add_argument("--json", action="store_true", help="the schema: `vsm docs board`")
    parser.add_argument(
        "--what-if", metavar="DEMAND", help="the ratio if this tool or demand class were served"
    )


def run(args: argparse.Namespace) -> int:
    """Print both windows, integrations and channels in trouble, or JSON."""
    body = request("variety", **({"what_if": args.what_if} if args.what_if else {}))
    if args.json:
        print_json(body)
        return 0
    try:
        (_print_what_if if args.what_if else _print_measured)(body)
    except (LookupError, TypeError, AttributeError, ValueError):
        print("system4 answers what makes no sense: `vsm variety --json` shows it")
    if not args.what_if:
        _print_channels(body["channels"])
    return 0


def _print_measured(body: dict[str, Any]) -> None:
    """What system 4 says, which need not make sense."""
    minutes = body["half_life_s"] / 60
    _print_report(f"Lately (an event weighs half after {minutes:g} minutes)", body["recent"])
    print()
    _print_report(f"For {_span(body['since_start_s'])}", body["since_start"])
    _print_unmet(body["since_start"])
    _print_integrations(body["integrations"])


def _span(seconds: float) -> str:
    return next(
        (f"{seconds / unit:.1f} {name}" for unit, name in _UNITS if seconds >= unit),
        f"{seconds:.0f} s",
    )


def _print_what_if(found: dict[str, Any]) -> None:
    demand = clean(found["demand"])
    if "not_enough_evidence" in found:
        why = clean(str(found["not_enough_evidence"]))
        print(f"{demand}: {coloured('not enough evidence', YELLOW)}: {why}")
        return
    well = f"answered well {found['answered_well']}"
    print(clean(f"{demand}: asked {found['asked']} times lately, {well}"))
    ratios = found["requisite_ratio"], found["requisite_ratio_if_served"]
    print(f"  requisite ratio {ratios[0]:.3f}, if it were served {ratios[1]:.3f}")
    print(f"  {found['gain_bits']:.3f} of {found['gap_bits']:.3f} bits of the gap")


def _print_report(title: str, report: dict[str, Any]) -> None:
    events, classes = report["events"], report["classes"]
    counted = clean(f"{events} events in {classes} demand classes")
    print(f"{coloured(title, BOLD)}: {counted}")
    figures = report["figures"]
    if figures is None:
        print(f"  {coloured('not enough evidence', YELLOW)}: {clean(_why(report))}")
        return
    rows = [_figure(figures, *row) for row in _FIGURES]
    found = figures.get("information")
    if found:
        rows.append(("transinformation", "I(D;R)", f"{found['mutual_bits']:.3f} bits", ""))
        ashby = figures["ashby"]
        text = f"{ashby['outcome_bits']:.3f} bits", f"at least {ashby['bound_bits']:.3f} by Ashby"
        rows.append(("outcomes", "H(E)", *text))
    print_table(("", "", "MEASURED", "95 % INTERVAL"), rows)
    if figures["gap_by_class"]:
        print("  Where the gap comes from:")
        rows = [_gap(share) for share in figures["gap_by_class"][:_SHOWN]]
        print_table(("INTEGRATION", "DEMAND", "ANSWERED WELL", "BITS"), rows)


def _figure(
    figures: dict[str, Any], name: str, symbol: str, key: str, unit: str
) -> tuple[str, str, str, str]:
    found = figures[key]
    interval = f"{found['low']:.3f} to {found['high']:.3f}"
    return name, symbol, f"{found['measured']:.3f} {unit}".rstrip(), interval


def _why(report: dict[str, Any]) -> str:
    missing = report["not_enough_evidence"]
    if not missing["events"]:
        return "nobody asked for anything"
    return f"{missing['reason']}, {missing['events']} of at least {missing['events_needed']}"


def _gap(share: dict[str, Any]) -> tuple[str, str, str, str]:
    answered = f"{share['answered_well']} of {share['asked']}"
    return share["integration"], clean(share["demand"]), answered, f"{share['bits']:.3f}"


def _print_unmet(report: dict[str, Any]) -> None:
    if report["unmet"]:
        print("\nAsked for and not served (names are what clients wrote):")
        rows = [
            (row["integration"], clean(row["demand"]), f"{row['unserved']} of {row['asked']}")
            for row in report["unmet"][:_SHOWN]
        ]
        print_table(("INTEGRATION", "DEMAND", "NOT SERVED"), rows)


def _print_integrations(integrations: list[dict[str, Any]]) -> None:
    if integrations:
        print()
        rows = [
            (
                row["integration"],
                str(row["events"]),
                str(row["answered_well"]),
                _at_most(row["p50_s"]),
                _at_most(row["p95_s"]),
            )
            for row in integrations
        ]
        print_table(("INTEGRATION", "CALLS", "ANSWERED WELL", "P50", "P95"), rows)


def _at_most(limit_s: float | None) -> str:
    return "-" if limit_s is None else f"< {figure(limit_s * 1000, 2)} ms"


def _print_channels(channels: list[dict[str, Any]]) -> None:
    """Only those that carry less than they are given; the others are in the JSON."""
    short = [row for row in channels if row["sufficient"] is False]
    for row in short:
        text = f"{row['dropped']} messages dropped, {row['fill']:.0%} full"
        rate, room = figure(row["bits_s"], 6), figure(row["capacity_bits"], 6)
        text += f", {rate} bits/s at most, room for {room} bits"
        print(f"channel {row['sender']} to {row['receiver']} ({row['carries']}): {text}")
