"""What `scripts/kernel-proof` says of a guest: how each part ended, and how to run the rest."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/kernel-proof"
GROUPS = [
    "PROOF BEGIN root groups 6.12.1-amd64\r\n",
    "tests/integration/test_cgroup.py::test_kill PASSED   [100%]\r\n",
    "========== 10 passed, 1 skipped in 301.20s (0:05:01) ==========\r\n",
    "PROOF END root groups 0\r\n",
]
LIMITS = [
    "PROOF BEGIN root limits 6.12.1-amd64\r\n",
    "========== 1 failed, 14 passed in 400.00s (0:06:40) ==========\r\n",
    "PROOF END root limits 1\r\n",
]
LAYERS = ["PROOF BEGIN root layers 6.12.1-amd64\r\n", "Kernel panic - not syncing\r\n"]
WANTED = [("root", part) for part in ("groups", "limits", "layers", "attempts")]


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("kernel_proof", str(SCRIPT))
    spec = spec_from_loader("kernel_proof", loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kernel_proof", module)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # beside a script it would be litter
    loader.exec_module(module)
    return module


def shown(proof: Any, lines: list[str]) -> Any:
    guest = proof.Shown()
    for line in lines:
        proof.note(line, guest)
    return guest


def test_all_parts_that_passed_are_good(proof: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert proof.report("trixie", WANTED[:1], shown(proof, GROUPS))
    assert capsys.readouterr().out.splitlines() == [
        "trixie, kernel 6.12.1-amd64:",
        "  root groups: ok: 10 passed, 1 skipped",
    ]


def test_what_failed_hung_or_was_not_reached_is_said_with_the_command_for_the_rest(
    proof: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not proof.report("trixie", WANTED, shown(proof, GROUPS + LIMITS + LAYERS))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  root groups: ok: 10 passed, 1 skipped",
        "  root limits: NOT OK: 1 failed, 14 passed",
        "  root layers: NOT OK: did not end",
        "  root attempts: NOT OK: was not reached",
        "the rest: scripts/kernel-proof --suite trixie --who root --part layers --part attempts",
    ]


def test_a_guest_that_does_not_come_up_is_not_good(
    proof: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not proof.report("bookworm", WANTED[:1], shown(proof, ["Kernel panic\r\n"]))
    assert "kernel that ran no part" in capsys.readouterr().out
