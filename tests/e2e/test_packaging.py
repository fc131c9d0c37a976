"""The wheel, installed where no checkout is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _run(*words: str, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_wheel_holds_profiles_and_documentation_and_works_in_a_clean_environment(
    tmp_path: Path,
) -> None:
    _run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT), cwd=ROOT
    )
    (wheel,) = tmp_path.glob("vsm-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    profiles = {path.name for path in (ROOT / "sandbox_profiles").glob("*.toml")}
    assert profiles
    assert {f"vsm/sandbox_profiles/{name}" for name in profiles} <= names
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert {f"vsm/{name}" for name in pages} <= names
    assert not any(name.startswith(("tests/", "demo/", "benchmarks/")) for name in names)
    _run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    _run(str(tmp_path / "venv/bin/pip"), "install", "--quiet", str(wheel), cwd=tmp_path)
    vsm = str(tmp_path / "venv/bin/vsm")
    assert _run(vsm, "--version", cwd=tmp_path).startswith("vsm ")
    listed = _run(vsm, "profile", "list", cwd=tmp_path)
    assert all(Path(name).stem in listed for name in profiles)
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert _run(vsm, "docs", "configuration", cwd=tmp_path) == page
    inside = _run(
        vsm, "sandbox", "run", "--profile", "integration", "--", "/bin/echo", "in", cwd=tmp_path
    )
    assert inside == "in\n"
