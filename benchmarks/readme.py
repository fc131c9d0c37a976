"""Writes the README's two tables of measurements from the rows that `scripts/bench --json` wrote.

No benchmark: `python benchmarks/readme.py ROWS.json...` replaces what stands between the two
pairs of markers of README.md. A row that was not measured is left out of the first table, and
said to be missing in the second (claims.py); none is invented.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import claims

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = tuple(f"system{number}" for number in range(1, 6))

RESIDENT = "gateway's memory (RSS)"
MANY = "1000 clients, 100 servers"
REQUISITE = "requisite, K=64 B=10000"

Row = dict[str, Any]
Lookup = Callable[[str, str, str], Row]


def _lines(get: Lookup) -> list[tuple[str, Callable[[], str], str]]:
    """(what, its figure, the benchmark that prints it)."""

    def value(benchmark: str, variant: str, metric: str, form: str = "{:.3g}") -> str:
        row = get(benchmark, variant, metric)
        return f"{form.format(row['value'])} {row['unit'].replace('us', 'µs')}"

    def times(benchmark: str, variant: str, metric: str) -> str:
        return f"{1 / get(benchmark, variant, metric)['ratio']:.0f}"

    def percent(benchmark: str, variant: str, metric: str) -> str:
        return f"{round(100 * (get(benchmark, variant, metric)['ratio'] - 1), 1) or 0:+.1f} %"

    def value_of(benchmark: str, variant: str) -> float:
        return float(get(benchmark, variant, "calls/s, 32 in flight")["value"])

    def slowest_replacement() -> str:
        rows = [get("start", name, "death to replacement ready") for name in SYSTEMS]
        return f"{max(row['value'] for row in rows):.0f} ms"

    return [
        (
            "`vsm up` to READY, five systems",
            lambda: value("start", "vsm up", "to ready", "{:.0f}"),
            "start",
        ),
        (
            "`vsm status` from being typed to its end",
            lambda: value("start", "vsm status", "to its end", "{:.0f}"),
            "start",
        ),
        ("a system killed → its successor ready, slowest of five", slowest_replacement, "start"),
        (
            "all of vsm, five systems, idle: memory (PSS); CPU",
            lambda: (
                f"{value('memory', 'five systems', 'PSS of all', '{:.0f}')}; "
                f"{value('memory', 'five systems', 'CPU while idle')}"
            ),
            "memory",
        ),
        (
            "the same with the demo's five servers (theirs not counted)",
            lambda: (
                f"{value('memory', 'five systems and the demo', 'PSS of all', '{:.0f}')}; "
                f"{value('memory', 'five systems and the demo', 'CPU while idle')}"
            ),
            "memory",
        ),
        (
            "the same as `namespaced` by bubblewrap, without Landlock and limits",
            lambda: (
                get("spawn", "bubblewrap", "added").get("skipped")
                or value("spawn", "bubblewrap", "added", "{:.1f}")
            ),
            "spawn",
        ),
        *(
            (
                f"confining adds to a start of `/bin/true`, {variant}",
                lambda variant=variant: value("spawn", variant, "added", "{:.1f}"),
                "spawn",
            )
            for variant in (
                "namespaced",
                "namespaced, prepared",
                "landlocked",
                "landlocked, prepared",
            )
        ),
        (
            "confining adds to work that computes",
            lambda: percent("spawn", "namespaced", "CPU-bound work"),
            "spawn",
        ),
        (
            "confined: stat; open and close; read of 4 KiB",
            lambda: "; ".join(
                percent("syscalls", "namespaced", m) for m in ("stat", "open+close", "read 4 KiB")
            ),
            "syscalls",
        ),
        (
            "the same for opening and closing, in a Landlock domain of one rule and nothing else",
            lambda: percent("syscalls", "Landlock alone, one rule", "open+close"),
            "syscalls",
        ),
        (
            "a call through the gateway, unix socket: CPU of the gateway; added to p50",
            lambda: (
                f"{value('route', 'vsm unix', 'gateway CPU/call, 1 at a time')}; "
                f"{value('route', 'vsm unix', 'p50 added')}"
            ),
            "route",
        ),
        (
            "gateway CPU per call, times less than the SDK's proxy: one at a time; 32 in flight",
            lambda: "; ".join(
                times("route", "vsm unix", f"gateway CPU/call, {n}")
                for n in ("1 at a time", "32 in flight")
            ),
            "route",
        ),
        (
            "the same of a relay in Python that copies bytes and looks at none",
            lambda: "; ".join(
                times("route", "bare relay", f"gateway CPU/call, {n}")
                for n in ("1 at a time", "32 in flight")
            ),
            "route",
        ),
        *(
            (
                f"calls/s, 32 in flight, {where}",
                lambda variant=variant: value(
                    "route", variant, "calls/s, 32 in flight", "{:,.0f}"
                ).replace(" 1/s", "/s"),
                "route",
            )
            for variant, where in (
                ("vsm unix", "unix socket"),
                ("vsm http", "HTTP"),
                ("sdk proxy", "the SDK's proxy"),
            )
        ),
        (
            "calls/s, 32 in flight, times more than FastMCP's proxy: socket; stdio; HTTP",
            lambda: "; ".join(
                f"{value_of('peers', f'vsm, {way}') / value_of('peers', other):.0f}"
                for way, other in (
                    ("socket", "FastMCP proxy, stdio"),
                    ("stdio", "FastMCP proxy, stdio"),
                    ("HTTP", "FastMCP proxy, HTTP"),
                )
            ),
            "peers",
        ),
        (
            "1,000 clients before 100 servers: p99 in times of p50; memory of the gateway",
            lambda: (
                f"{get('scale', MANY, 'p99')['ratio']:.1f}; "
                f"{value('scale', MANY, RESIDENT, '{:.0f}')}"
            ),
            "scale",
        ),
        (
            "`vsm.run` of a trivial function, confined, to its result",
            lambda: value("library", "vsm.run", "call to result", "{:.1f}"),
            "library",
        ),
        (
            "from pain in the gateway to the operator's terminal",
            lambda: value("pain", "quiet", "call to operator, median", "{:.0f}"),
            "pain",
        ),
        (
            "variety of 64 classes: exact with numpy; published by the original",
            lambda: f"{get('variety', 'numpy exact', REQUISITE)['value']:,.0f}/s; 177,000/s",
            "variety",
        ),
        (
            "memory of variety: empty; each integration",
            lambda: (
                f"{value('memory_board', 'empty system', 'fit: fixed part', '{:,.0f}')}; "
                f"{value('memory_board', 'one integration', 'fit: slope', '{:,.0f}')}"
            ),
            "memory_board",
        ),
        (
            "journal: durable records/s in groups",
            lambda: value("journal", "groups of 100", "durable records", "{:,.0f}").replace(
                " 1/s", "/s"
            ),
            "journal",
        ),
    ]


def lookup(rows: list[Row]) -> Lookup:
    """Find a row by benchmark, variant and metric."""
    found = {(row["benchmark"], row["variant"], row["metric"]): row for row in rows}
    return lambda benchmark, variant, metric: found[benchmark, variant, metric]


def table(get: Lookup) -> Iterator[str]:
    """The lines of the first table in Markdown."""
    yield "| what | measured | `scripts/bench` |"
    yield "|---|---|---|"
    for what, figure, benchmark in _lines(get):
        try:
            yield f"| {what} | {figure()} | `{benchmark}` |"
        except KeyError as missing:
            print(f"not measured: {what} {missing}", file=sys.stderr)


def replaced(text: str, name: str, lines: Iterable[str]) -> str:
    """The text with these lines between the markers of that name."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"README.md: expected the markers {start.strip()} and {end}")
    body = "\n".join(lines)
    return pattern.sub(lambda _: f"{start}\n{body}\n\n{end}", text)


def main() -> int:
    """Replace the tables."""
    rows = [row for name in sys.argv[1:] for row in json.loads(Path(name).read_text("utf-8"))]
    get, readme = lookup(rows), ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = replaced(text, "measured", table(get))
    readme.write_text(replaced(text, "claims", claims.table(get)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
