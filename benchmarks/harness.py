"""Runs benchmarks, prints their rows, writes them as JSON, compares them with an earlier file.

Each benchmark is a module here with `run(rounds) -> rows`; a row is {"benchmark", "variant",
"metric", "value", "unit", "ratio", "ratio_to", "runs"}: medians, with the variants interleaved in
one run. Ratios carry over to other machines, absolute times do not. A row may have a "spread":
see compare.py, which says what counts as a regression.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import compare  # noqa: E402 - beside this file

BENCHMARKS = sorted(
    path.stem for path in HERE.glob("*.py") if "\ndef run(" in path.read_text(encoding="utf-8")
)
ROUNDS = {"spawn": 40, "breakdown": 40, "library": 50, "start": 9, "memory": 1}
OTHERWISE = 5

Row = dict[str, Any]
Run = Callable[[int], list[Row]]


def main() -> int:
    """Run what was asked for."""
    args = _parse()
    names = BENCHMARKS if "all" in args.names else args.names
    rows: list[Row] = _read(args.rows) if args.rows else []
    for name in names if not args.rows else ():
        print(f"{name} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        run: Run = importlib.import_module(name).run
        rows += run(args.rounds or ROUNDS.get(name, OTHERWISE))
        print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    earlier = _read(args.compare) if args.compare else []
    _print(rows, earlier)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for line in compare.missing(rows, earlier):
        print(f"note: {line}", file=sys.stderr)
    worse = compare.regressions(rows, earlier)
    for line in worse:
        print(f"REGRESSION {line}", file=sys.stderr)
    return 1 if worse else 0


def _read(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, "all"], default="all")
    parser.add_argument("--rounds", type=int, help="instead of each benchmark's own number")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="rows of an earlier run; exit code 1 where a ratio is worse beyond its noise band",
    )
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="take these rows instead of measuring"
    )
    args = parser.parse_args()
    args.names = [args.names] if isinstance(args.names, str) else args.names
    return args


def _key(row: Row) -> tuple[str, str, str]:
    return row["benchmark"], row["variant"], row["metric"]


def _print(rows: list[Row], earlier: list[Row]) -> None:
    before = {_key(row): row["value"] for row in earlier}
    print(f"# {os.cpu_count()} CPUs, kernel {os.uname().release}, Python {sys.version.split()[0]}")
    for row in rows:
        if row.get("skipped"):
            print(
                f"{row['benchmark']:<9} {row['variant']:<26} {row['metric']:<28} {row['skipped']}"
            )
            continue
        ratio = f"{row['ratio']:.2f} x {row['ratio_to']}" if row.get("ratio") else ""
        note = row.get("note", "")
        old = before.get(_key(row))
        change = f"  was {old:.4g} ({row['value'] / old:.2f} x)" if old else ""
        print(
            f"{row['benchmark']:<9} {row['variant']:<26} {row['metric']:<28} "
            f"{row['value']:>12.4g} {row['unit']:<8} {ratio}{change}  {note}".rstrip()
        )


if __name__ == "__main__":
    sys.exit(main())
