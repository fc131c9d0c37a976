"""How large the variety state is: bytes of rows by number of integrations, with the linear fit.

Counts what is kept: rows and segments' headers on the demand board, the resource board, and the
rows of channels on the heartbeat boards. Pages that the kernel gives for them are reported beside.
The last step takes every integration away again.
"""

import os
from typing import Any

import numpy as np

from vsm.board import resources
from vsm.board.demand import DemandBoard
from vsm.board.heartbeat import CHANNEL_BYTES
from vsm.core.channels import CHANNELS

SIZES = (0, 1, 10, 50, 100)
LABELS = 40  # more than a row has room for: the size does not depend on what is asked


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure once: nothing here varies."""
    del rounds
    measured = [_bytes(size) for size in SIZES]
    rows = [row for row, _ in measured]
    per, fixed = np.polyfit(SIZES, rows, 1)
    residual = float(np.max(np.abs(np.polyval((per, fixed), SIZES) - rows)))
    found = [_row("empty system", "fit: fixed part", float(fixed), "B")]
    found.append(_row("one integration", "fit: slope", float(per), "B"))
    found.append(_row("fit", "largest deviation", residual, "B"))
    for size, (row_bytes, page_bytes) in zip(SIZES, measured, strict=True):
        found.append(_row(f"{size} integrations", "rows", row_bytes, "B"))
        found.append(_row(f"{size} integrations", "pages", page_bytes, "B"))
    for metric, left in zip(("rows", "pages"), _left(100), strict=True):
        found.append(_row("100 came and went", f"{metric} beyond the baseline", left, "B"))
    return found


def _bytes(size: int) -> tuple[int, int]:
    board = DemandBoard(1, [f"integration{index}" for index in range(size)])
    for row in board.rows.values():
        for label in range(LABELS):
            row.count(f"tool{label}", 0, 0)
    fixed = CHANNEL_BYTES * len(CHANNELS)
    used = resources.size_bytes(size)
    page = os.sysconf("SC_PAGE_SIZE")
    pages = -(-used // page) * page
    found = fixed + used + board.row_bytes, fixed + pages + board.page_bytes
    board.close()
    return found


def _left(size: int) -> tuple[int, int]:  # resource boards are made for those that there are
    board = DemandBoard(1)
    before = board.row_bytes, board.page_bytes
    names = [f"integration{index}" for index in range(size)]
    for name in names:
        board.add([name])
    for name in names:
        board.remove(name)
    left = board.row_bytes - before[0], board.page_bytes - before[1]
    board.close()
    return left


def _row(variant: str, metric: str, value: float, unit: str) -> dict[str, Any]:
    return {
        "benchmark": "memory_board",
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": unit,
        "ratio": None,
        "ratio_to": None,
        "runs": 1,
    }
