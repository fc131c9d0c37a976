"""What docs/viable-system.md and docs/board.md name exists; the layout is the documented one."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest

from vsm.board import demand as board_demand
from vsm.board import heartbeat as board
from vsm.core import demand

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("viable-system.md", "board.md")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_every_test_that_the_page_names_exists(name: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", page(name)))
    assert len(named) >= 5
    trees = [ast.parse(p.read_text(encoding="utf-8")) for p in (ROOT / "tests").rglob("test_*.py")]
    known = {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert named <= known, named - known


@pytest.mark.parametrize("name", PAGES)
def test_every_module_and_file_that_the_page_names_exists(name: str) -> None:
    for dotted in re.findall(r"`(vsm(?:\.\w+)+)[`(]", page(name)):
        assert pkgutil.resolve_name(dotted), dotted
    for path in re.findall(r"`((?:vsm|tests)/[\w/.*]+)`", page(name)):
        assert list(ROOT.glob(path.rstrip("/"))), path


def test_documented_offsets_are_the_layouts() -> None:
    text = page("board.md")
    assert "| 64 | u64, u64 | `claimed`, `latest` |" in text
    assert board_demand.CLAIMED_OFFSET == 64
    assert f"| {board_demand.LABELS_OFFSET} | {board_demand.LABELS_BYTES} bytes |" in text
    first, slot = board_demand.SLOTS_OFFSET, board_demand.SLOT_BYTES
    assert f"| {first}, {first + slot:,} | 2 \u00d7 {slot} bytes |" in text
    assert f"bytes of a row ({board_demand.ROW_BYTES:,})" in text
    assert f"| {board_demand.LATENCY} … {board_demand.COUNTS - 1} | latency" in text
    assert f"| {board_demand.COUNTS} … {board_demand.SLOT_WORDS - 1} | counts" in text
    assert (
        f"At byte {board._CHANNELS_OFFSET}" in text or f"at byte {board._CHANNELS_OFFSET}" in text
    )
    assert f"magic `{board_demand.MAGIC:#010x}`".lower() in text.lower()
    for outcome in demand.OUTCOMES:
        assert f"| `{outcome}` |" in text
