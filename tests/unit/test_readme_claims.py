"""README's table against the original's claims: each line has a command that exists."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from vsm import cli

ROOT = Path(__file__).resolve().parents[2]
CLAIMED = (
    "177,000",
    "5 KB to 235 KB",
    "under 1 %",
    "OTP",
    "circuit breakers",
    "telemetry",
    "consciousness",
    "acquisition",
)


@pytest.fixture(scope="module")
def claims() -> Any:
    spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks/claims.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["claims"]


def row(benchmark: str, variant: str, metric: str) -> dict[str, Any]:
    del benchmark, variant, metric
    return {"value": 1000.0, "unit": "1/s", "ratio": 1.05, "interval": [1.0, 1.1]}


def test_every_claim_of_the_original_has_a_line(claims: Any) -> None:
    for one in CLAIMED:
        assert [line for line in claims.LINES if one in line.claim], one


def test_commands_of_the_lines_exist(claims: Any) -> None:
    benchmarks = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    for command in [one for line in claims.LINES for one in line.shown_by]:
        program, *words = command.split()
        if program == "scripts/bench":
            assert set(words) <= benchmarks, command
        elif program == "pytest":
            assert (ROOT / words[0]).is_file(), command
        else:
            assert (program, words[0] in cli.COMMANDS) == ("vsm", True), command


def test_figure_without_its_row_is_said_to_be_missing(claims: Any) -> None:
    def get(benchmark: str, variant: str, metric: str) -> dict[str, Any]:
        if benchmark == "spawn":
            raise KeyError(benchmark, variant, metric)
        return row(benchmark, variant, metric)

    lines = list(claims.table(get))
    assert len(lines) == len(claims.LINES) + 2
    assert ["not measured" in line for line in lines].count(True) == 1
    assert "absent" in lines[-1]


def test_readme_holds_the_table(claims: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("<!-- claims -->")[2].partition("<!-- /claims -->")[0]
    for line in claims.LINES:
        assert f"| {line.claim} |" in table, line.claim
    assert "not measured" not in table
