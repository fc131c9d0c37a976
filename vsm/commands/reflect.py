"""`vsm reflect`: how well each thing works, what is unusual, what was learned, what is expected.

The supervisor answers, from the counts and the journal. Names are servers' and clients' words:
nothing of them reaches the terminal unless it is printable.
"""

import argparse
from typing import Any

from vsm.commands.control_client import request
from vsm.commands.terminal import clean, print_json, print_table
from vsm.core.figures import figure

NOT_ENOUGH = "not enough evidence"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `reflect`."""
    parser = subparsers.add_parser(
        "reflect", help="show what works, what is unusual, what it learnt"
    )
    parser.add_argument("--json", action="store_true", help="print what vsm answered")


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    found = request("reflect")
    if args.json:
        print_json(found)
        return 0
    _print_capabilities(found["capabilities"])
    _print_unusual(found["unusual"], found["hurts"])
    _print_learned(found["learned"])
    _print_predictions(found["predictions"])
    return 0


def _print_capabilities(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print(f"capabilities: {NOT_ENOUGH}: nobody asked for anything")
        return
    shown = [
        (r["integration"], clean(r["demand"]), str(r["calls"]), _share(r["answered_well"]))
        for r in rows
    ]
    print_table(("INTEGRATION", "DEMAND", "CALLS", "ANSWERED WELL (95 %)"), shown)


def _print_unusual(unusual: dict[str, Any], hurts: list[dict[str, Any]]) -> None:
    for one in hurts:
        print(clean(f"hurts: {one['subject']} {one['cause']} {one['detail']}"))
    if unusual["not_enough_evidence"]:
        print(f"unusual: {NOT_ENOUGH}: {unusual['not_enough_evidence']}")
    elif not unusual["more_than_usual"]:
        print("unusual: nothing happens more often than it used to")
    for one in unusual["more_than_usual"]:
        minutes = one["looked_at_s"] / 60
        text = f"{one['times']} in {minutes:.0f} min, {figure(one['expected'], 2)} expected"
        print(f"unusual: {one['kind']}: {text} (chance {one['chance']:.1g})")


def _print_learned(rows: list[dict[str, Any]]) -> None:
    if not rows:
        print(f"learned: {NOT_ENOUGH}: nothing was decided yet")
        return
    shown = [
        (
            clean(r["rule"]), clean(r["choice"]), str(r["decisions"]), str(r["outcomes_known"]),
            _share(r["turned_out_well"]), _beside(r),
        )
        for r in rows
    ]  # fmt: skip
    headings = ("RULE", "CHOICE", "DECISIONS", "OUTCOMES", "TURNED OUT WELL (95 %)", "BESIDE")
    print_table(headings, shown)


def _beside(row: dict[str, Any]) -> str:
    """How it was before, or with the alternatives."""
    moved = row.get("before_after")
    if moved is None:
        return clean(row.get("compared", "-"))
    return clean(f"{moved['figure']}: {moved['before']:g} before, {moved['after']:g} after")


def _print_predictions(found: dict[str, Any]) -> None:
    """What system 4 says, which need not make sense."""
    try:
        _print_forecasts(found)
    except (LookupError, TypeError, AttributeError, ValueError):
        print("system4 answers what makes no sense: `vsm reflect --json` shows it")


def _print_forecasts(found: dict[str, Any]) -> None:
    if found.get("not_enough_evidence"):
        print(f"forecasts: {NOT_ENOUGH}: {clean(str(found['not_enough_evidence']))}")
        return
    shown = [
        (
            clean(str(r["integration"])), clean(str(r["demand"])), f"{r['expected']:.1f}",
            f"{r['low']:.1f} to {r['high']:.1f}", clean(str(r["model"])),
        )
        for r in found["forecasts"]
    ]  # fmt: skip
    print_table(("INTEGRATION", "DEMAND", "EXPECTED", "90 % INTERVAL", "BY"), shown)
    for r in found.get("surprises", ()):
        name = f"{r['integration']} {r['demand']}".strip()
        came = f"{r['came']} of {r['of']} answered well" if "of" in r else f"{r['came']} asked"
        text = f"{came} in {r['step_s']:g} s, {r['expected']:.1f} expected"
        print(clean(f"unusual: {name}: {text} (chance {r['chance']:.1g})"))
    calibration = found.get("calibration")
    if calibration:
        text = f"forecasts so far: {calibration['forecasts']}, within their interval "
        text += f"{calibration['coverage']:.0%}, Brier score {calibration['brier']:.3f}"
        print(clean(text))


def _share(share: dict[str, float] | None) -> str:
    if share is None:
        return NOT_ENOUGH
    return f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})"
