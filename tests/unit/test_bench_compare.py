"""A worse ratio beyond the noise of the runs fails `scripts/bench --compare`, and nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_compare", BENCHMARKS / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(ratio: float | None, unit: str = "us", **more: Any) -> dict[str, Any]:
    known = {"benchmark": "route", "variant": "unix", "metric": "p50", "value": 1.0, "runs": 5}
    return {**known, "unit": unit, "ratio": ratio, "ratio_to": "direct", "spread": 0.02, **more}


@pytest.mark.parametrize(
    ("now", "then", "worse"),
    [
        (row(2.0), row(2.0), False),
        (row(2.08), row(2.0), False),  # within 5 %
        (row(2.2), row(2.0), True),
        (row(1.0), row(2.0), False),  # better
        (row(0.5, "1/s"), row(0.6, "1/s"), True),  # a rate: less is worse
        (row(0.6, "1/s"), row(0.5, "1/s"), False),
        (row(2.2, spread=0.1), row(2.0), False),  # it varies by 15 % anyway
        (row(2.2), row(2.0, spread=0.1), False),
        (row(2.4, spread=None), row(2.0), False),  # nobody knows how it varies
        (row(2.6, spread=None), row(2.0), True),
        (row(9.0, ratio_to="sdk proxy"), row(2.0), False),  # another ratio
        (row(None), row(2.0), False),
    ],
)
def test_only_what_is_worse_beyond_the_band_is_a_regression(
    compare: ModuleType, now: dict[str, Any], then: dict[str, Any], *, worse: bool
) -> None:
    assert bool(compare.regressions([now], [then])) is worse


def test_spread_is_of_ratios_within_rounds_so_that_a_slow_moment_does_not_count(
    compare: ModuleType,
) -> None:
    assert compare.spread([20.0, 40.0, 22.0, 80.0], [10.0, 20.0, 11.0, 40.0]) == 0
    assert compare.spread([10.0, 11.0, 12.0, 13.0, 14.0], [10.0] * 5) == pytest.approx(2 / 12)
    assert compare.spread([1.0, 2.0], [1.0, 1.0]) is None


def harness(tmp_path: Path, now: list[Any], then: list[Any]) -> "subprocess.CompletedProcess[str]":
    paths = []
    for name, rows in (("now.json", now), ("then.json", then)):
        path = tmp_path / name
        path.write_text(json.dumps(rows), encoding="utf-8")
        paths.append(str(path))
    words = [str(BENCHMARKS / "harness.py"), "--rows", paths[0], "--compare", paths[1]]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_command_fails_on_a_regression_and_names_the_row(tmp_path: Path) -> None:
    done = harness(tmp_path, [row(2.0), row(3.0, metric="cpu")], [row(2.0), row(2.0, metric="cpu")])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("REGRESSION route: unix, cpu: 3 x direct, was 2 x: 50 % worse")
    done = harness(tmp_path, [row(2.0)], [row(2.0), row(2.0, metric="cpu")])
    assert done.returncode == 0
    assert done.stderr == "note: route: unix, cpu: not measured any more\n"
