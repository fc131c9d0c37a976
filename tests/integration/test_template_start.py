"""The template that is executed ahead: taken once, or ended."""

import os
import signal
from pathlib import Path

import pytest
from running import running

from vsm.processes.template_start import ahead


def templates_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"vsm.processes.template" in words:
                found.append(int(child))
    return found


def test_a_template_that_nobody_takes_ends_with_the_block() -> None:
    with ahead("os:getpid", ["os"]) as started:
        assert started.process.poll() is None
    assert started.process.returncode == -signal.SIGKILL
    assert started.link.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(started.output)


def test_vsm_takes_the_template_that_was_executed_ahead_and_starts_no_other() -> None:
    with running(None) as vsm:
        (template,) = [row for row in vsm.status()["workers"] if row["name"] == "template"]
        assert templates_of(vsm.process.pid) == [template["pid"]]
        born = int(Path(f"/proc/{template['pid']}/stat").read_text().rpartition(")")[2].split()[19])
        (launcher,) = [row for row in vsm.status()["workers"] if row["kind"] == "launcher"]
        after = int(
            Path(f"/proc/{launcher['pid']}/stat").read_text().rpartition(")")[2].split()[19]
        )
        assert born < after  # before the supervisor had imported what starts a launcher
        assert vsm.stop() == 0
