"""What docs/variety.md names exists, and the benchmark's batched functions are the plain ones."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_variety", ROOT / "benchmarks/variety.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions_in(paths: list[Path]) -> set[str]:
    trees = [ast.parse(path.read_text()) for path in paths]
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_test_and_function_that_the_docs_name_exists() -> None:
    text = (ROOT / "docs/variety.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 20
    assert named <= functions_in(
        [*HERE.glob("test_variety*.py"), HERE / "test_channel_measures.py"]
    )
    rows = [line.split(" | ") for line in text.splitlines() if line.count(" | ") == 4]
    used = {name for row in rows for name in re.findall(r"`(?:\w+\.)*(\w+)`", row[3])}
    assert {"measure", "gap_by_class", "ashby_bound"} <= used - {"function"}
    assert used <= functions_in([*(ROOT / "vsm/core").glob("variety*.py")])


def test_batched_map_complexity_equals_the_plain_function(benchmark: ModuleType) -> None:
    kinds, complexity, links = benchmark._maps()
    plain = [benchmark.map_complexity(m) for m in benchmark._as_maps(kinds, complexity, links)]
    batch = benchmark.map_complexity_batch(kinds, complexity, links)
    np.testing.assert_allclose(batch[: len(plain)], plain, rtol=1e-5)


def test_batched_list_lengths_equal_the_plain_function(benchmark: ModuleType) -> None:
    chance = np.random.default_rng(3)
    system, world = chance.integers(0, 9, (50, 5)), chance.integers(0, 9, (50, 5))
    world[7] = 0
    plain = [
        benchmark.weighted_lengths(
            benchmark._as_lists(benchmark.SYSTEM_TERMS, ours),
            benchmark._as_lists(benchmark.WORLD_TERMS, theirs),
        )
        for ours, theirs in zip(system.tolist(), world.tolist(), strict=True)
    ]
    np.testing.assert_allclose(benchmark.weighted_lengths_batch(system, world), plain)


def test_the_benchmark_reports_every_variant(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "SLICE_S", 1e-4)
    monkeypatch.setattr(benchmark, "BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setattr(benchmark.variety_fast, "is_installed", lambda: False)
    rows: list[dict[str, Any]] = benchmark.run(1)
    keys = {"benchmark", "variant", "metric", "value", "unit", "ratio", "ratio_to", "runs"}
    assert all(set(row) == keys for row in rows)
    assert all(row["value"] > 0 for row in rows)
    assert all((row["ratio"] is None) == (row["ratio_to"] is None) for row in rows)
    assert len({(row["metric"], row["variant"]) for row in rows}) == len(rows)
