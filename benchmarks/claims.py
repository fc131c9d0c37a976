"""The README's table of what the system that vsm re-creates claimed, and what of it is here.

No benchmark: benchmarks/readme.py writes it from the rows of `scripts/bench`. Every figure comes
from a row and has the command that measures it; what was not measured is left out of the line
and told, and what is not there is said to be absent.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Row = dict[str, Any]
Lookup = Callable[[str, str, str], Row]
FEW = "one at a time, K=16"
MANY = "requisite, K=64 B=10000"
SYSTEMS = tuple(f"system{number}" for number in range(1, 6))


class Line(NamedTuple):
    """One claim: in the original's words, what is measured here, and the commands that show it."""

    claim: str
    here: Callable[[Lookup], str]
    shown_by: tuple[str, ...]


def _variety(get: Lookup) -> str:
    one, batch = (get("variety", v, m)["value"] for v, m in _VARIETY)
    return f"{one:,.0f}/s one at a time over 16 classes in plain Python; {batch:,.0f}/s over 64 by numpy, exact"  # noqa: E501 - a sentence


_VARIETY = (("plain Python exact", FEW), ("numpy exact", MANY))


def _functions(get: Lookup) -> str:
    real, toy = (
        get("variety", "numpy", f"{metric}, published")
        for metric in ("its weighted list lengths", "its map complexity, n=100")
    )
    return f"batched, {real['ratio']:,.0f} and {toy['ratio']:,.0f} times that"


def _memory(get: Lookup) -> str:
    empty, full = (get("memory_board", f"{n} integrations", "rows")["value"] for n in (0, 100))
    off = get("memory_board", "fit", "largest deviation")["value"]
    return f"{empty:,.0f} B with no integration, {full:,.0f} B with 100; {off:,.0f} B off a line"


def _sandbox(get: Lookup) -> str:
    computing = _percent(get("spawn", "namespaced", "CPU-bound work"))
    files = _percent(get("syscalls", "namespaced", "open+close"))
    start = get("spawn", "namespaced", "added")["value"]
    return f"{computing} on work that computes; {files} on opening and closing a file; {start:.1f} ms to a start"  # noqa: E501 - a sentence


def _supervision(get: Lookup) -> str:
    worst = max(get("start", name, "death to replacement ready")["value"] for name in SYSTEMS)
    return f"yes: strategies, restart types, intensity; a killed system is replaced in {worst:.0f} ms at most"  # noqa: E501 - a sentence


def _breakers(get: Lookup) -> str:
    took_ms = get("resilience", "death of the server", "until its call fails")["value"] / 1e3
    return f"yes, for each integration; the call of a killed server fails after {took_ms:.1f} ms"


def _telemetry(get: Lookup) -> str:
    count_us = get("board", "accounting", "CPU/event, 32 a turn")["value"]
    seen_us = get("board", "visible elsewhere", "p50")["value"]
    return f"every call counted in shared memory: {count_us:.2f} µs, seen by another process in {seen_us:.0f} µs. No OpenTelemetry spans"  # noqa: E501 - a sentence


def _introspection(get: Lookup) -> str:
    del get
    return "eight tools, `vsm reflect` and JSON, from the record alone, or *not enough evidence*"


def _regulation(get: Lookup) -> str:
    p50, calls = (_interval(get("acting", "acting", metric)) for metric in ("p50", "calls/s"))
    return f"yes, by five processes; with all of them acting, in times of a quiet gateway: p50 {p50}, calls/s {calls}"  # noqa: E501 - a sentence


def _acquisition(get: Lookup) -> str:
    del get
    return "**absent**: what nobody serves is found, counted and proposed; nothing is installed by itself"  # noqa: E501 - a sentence


def _percent(row: Row) -> str:
    return f"{round(100 * (row['ratio'] - 1), 1) or 0:+.1f} %"  # no -0.0


def _interval(row: Row) -> str:
    low, high = row["interval"]
    return f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _bench(*names: str) -> tuple[str, ...]:
    return tuple(f"scripts/bench {name}" for name in names)


LINES = (
    Line("177,000 variety operations/s", _variety, _bench("variety")),
    Line("its own two functions, 50,000/s as served and 207,000/s", _functions, _bench("variety")),
    Line("memory linear, 5 KB to 235 KB", _memory, _bench("memory_board")),
    Line("a sandbox that costs under 1 %", _sandbox, _bench("spawn syscalls")),
    Line(
        "OTP-like supervision",
        _supervision,
        (*_bench("start"), "pytest tests/integration/test_supervision_kills.py"),
    ),
    Line(
        "circuit breakers",
        _breakers,
        (*_bench("resilience"), "pytest tests/unit/test_breaker.py"),
    ),
    Line("telemetry", _telemetry, _bench("board")),
    Line("consciousness interface", _introspection, ("pytest tests/e2e/test_variety.py",)),
    Line("self-regulation", _regulation, (*_bench("acting"), "pytest tests/e2e/test_scenarios.py")),
    Line("autonomous acquisition of capabilities", _acquisition, ("vsm variety",)),
)


def table(get: Lookup) -> Iterator[str]:
    """The table's lines in Markdown; a claim of which a row is missing says so.

    Args:
        get: the row of a benchmark, a variant and a metric; raises KeyError where there is none.
    """
    yield "| the original claimed | here | shown by |"
    yield "|---|---|---|"
    for line in LINES:
        try:
            here = line.here(get)
        except KeyError as missing:
            here = f"not measured in this run: {missing}".replace("|", "/")
        yield f"| {line.claim} | {here} | {'; '.join(f'`{one}`' for one in line.shown_by)} |"
