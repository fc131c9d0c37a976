import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("demo_arguments")
def test_demo_check_uses_every_server_through_every_transport() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "demo/check.py")],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stdout.rstrip().endswith("all is well")
