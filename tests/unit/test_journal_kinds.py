"""The code records nothing that docs/journal.md does not explain."""

import re
from pathlib import Path
from typing import get_args

from vsm.core import channels
from vsm.core.policy_weighing import Rule

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "journal.md").read_text(encoding="utf-8")
KIND = re.compile(
    r'(?:journal\.event|own_event|_note|_tell|Noted)\(\s*(?:event=)?"([a-z_]+\.[a-z_]+)"'
)
RULE = re.compile(r'[( ]rule="((?!raise)[a-z_]+\.[a-z_.]+)"')

MOVED = re.compile(r'"((?:raise|lower)\.[a-z]+)"')


def said(pattern: re.Pattern[str]) -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "vsm").rglob("*.py")]
    return {found for source in sources for found in pattern.findall(source)}


def test_every_kind_of_event_is_explained() -> None:
    kinds = said(KIND)
    assert len(kinds) > 30, "the pattern finds them"
    assert {kind for kind in kinds if f"`{kind}`" not in PAGE} == set()


def test_every_rule_is_explained() -> None:
    rules = said(RULE) | set(get_args(Rule)) | {f"budget.{one}" for one in said(MOVED)}
    assert {rule for rule in rules if f"`{rule}`" not in PAGE} == set()


def test_tables_of_who_notes_and_decides_what_name_what_there_is() -> None:
    for prefixes in (*channels.NOTES.values(), *channels.RULES.values()):
        for prefix in prefixes:
            assert f"`{prefix}" in PAGE
