"""`vsm doctor`: is everything here that vsm needs, and what to do where it is not."""

import argparse
import dataclasses
import os
from pathlib import Path

from vsm.commands.terminal import STATE_COLOURS, clean, coloured, print_json
from vsm.doctor import Finding, examine

WIDTH = 24


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser("doctor", help="check this host and this installation")
    parser.add_argument("--config", type=Path, metavar="FILE", help="check this vsm.toml as well")
    parser.add_argument("--json", action="store_true", help="a list of findings")


def run(args: argparse.Namespace) -> int:
    """Print every finding; exit 1 when one of them is a failure."""
    chosen = args.config or os.environ.get("VSM_CONFIG")
    findings = []
    for finding in examine(Path(chosen) if chosen else None):
        findings.append(finding)
        if not args.json:
            _print(finding)
    if args.json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    return 1 if any(finding.result == "fail" for finding in findings) else 0


def _print(finding: Finding) -> None:
    result = coloured(f"{finding.result:<4}", STATE_COLOURS[finding.result])
    print(f"{result}  {finding.check:<{WIDTH}}  {clean(finding.detail)}", flush=True)
    if finding.remedy:
        print(f"      {'':<{WIDTH}}  {clean(finding.remedy)}")
