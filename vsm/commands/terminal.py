"""What the command line prints: tables, JSON, and foreign text made harmless.

Colour appears only on a terminal that wants it. Text that came from a server may hold escape
sequences or direction overrides that make a terminal lie: it is stripped and marked.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence

GREEN, YELLOW, RED, DIM, BOLD = "32", "33", "31", "2", "1"
FOREIGN_MARK = "> "
STATE_COLOURS = {
    "ready": GREEN,
    "ok": GREEN,
    "in force": GREEN,
    "starting": YELLOW,
    "draining": YELLOW,
    "stopping": YELLOW,
    "backing_off": YELLOW,
    "warn": YELLOW,
    "quarantined": RED,
    "absent": RED,
    "fail": RED,
}
_KIB = 1024
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def clean(text: str) -> str:
    """Make foreign text safe to print on one line.

    Unprintable covers the C0 and C1 controls, direction overrides and zero-width characters.
    """
    return "".join(char if char.isprintable() else " " for char in text)


def foreign(text: str) -> list[str]:
    """Make foreign text safe to print, every line marked as not being vsm's own."""
    return [FOREIGN_MARK + clean(line) for line in text.splitlines()]


def coloured(text: str, code: str) -> str:
    """Wrap text in a colour where stdout is a terminal that shows colours."""
    if not code or not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def print_json(value: object) -> None:
    """Print one JSON document; ASCII only, so that nothing foreign reaches the terminal raw."""
    print(json.dumps(value, indent=2, ensure_ascii=True))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; a cell that names a state is coloured."""
    cells = [list(headings), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for number, row in enumerate(cells):
        padded = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        colours = [DIM if number == 0 else STATE_COLOURS.get(cell, "") for cell in row]
        painted = [coloured(cell, code) for cell, code in zip(padded, colours, strict=True)]
        print("  ".join(painted).rstrip())


def bytes_text(size: float | None) -> str:
    """Write a size for a person, such as 12.5M; "-" where it is unknown."""
    if size is None:
        return "-"
    for unit in ("B", "K", "M", "G"):
        if size < _KIB or unit == "G":
            break
        size /= _KIB
    return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"


def seconds_text(seconds: float | None) -> str:
    """Write a duration for a person, such as 3h12m; "-" where it is unknown."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < _MINUTE_S:
        return f"{seconds:.1f}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S:02}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S:02}m"
    return f"{whole // _DAY_S}d{whole % _DAY_S // _HOUR_S:02}h"
