"""The leak check itself: what it must see, and what it must not blame."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import leaks
import pytest

DOUBLE_FORK = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        sys.stdout.write(f"{os.getpid()}\\n"); sys.stdout.flush(); os.close(1)
        time.sleep(60)
    os._exit(0)
os.wait()
"""


def _since(before: leaks.Traces, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(leaks, "SETTLE_TIMEOUT_S", 0.0)
    return leaks.leaks_since(before, scratch)


def test_orphan_in_a_session_of_its_own_is_seen(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = leaks.snapshot(scratch)
    done = subprocess.run(
        [sys.executable, "-c", DOUBLE_FORK], env={}, stdout=subprocess.PIPE, check=True
    )
    orphan = int(done.stdout)
    lines = _since(before, scratch, monkeypatch)
    os.kill(orphan, 9)
    os.waitpid(orphan, 0)  # adopted: we are its parent now
    assert [line for line in lines if str(orphan) in line]


def test_descriptor_and_file_are_seen(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = leaks.snapshot(scratch)
    left, right = socket.socketpair()
    handle, name = tempfile.mkstemp()
    lines = _since(before, scratch, monkeypatch)
    left.close()
    right.close()
    os.close(handle)
    os.unlink(name)
    assert sum(line.startswith("descriptor") for line in lines) == 3
    assert f"file {name}" in lines


def test_zombie_of_an_orphan_is_no_leak(scratch: Path) -> None:
    before = leaks.snapshot(scratch)
    subprocess.run([sys.executable, "-c", "import os\nif os.fork(): os._exit(0)"], check=True)
    assert leaks.leaks_since(before, scratch) == []


def test_processes_below_an_older_one_are_not_blamed(scratch: Path) -> None:
    with subprocess.Popen(
        ["sh", "-c", "read line; sleep 60 & echo started; wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as shell:
        assert shell.stdin
        assert shell.stdout
        before = leaks.snapshot(scratch)
        shell.stdin.write(b"\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == b"started\n"
        lines = leaks.leaks_since(before, scratch)
        os.killpg(shell.pid, 9)
    assert lines == []


def test_require_fails_instead_of_skipping_when_isolation_is_a_must(
    require: Callable[[str, bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("anything", True, "present")
    monkeypatch.setenv("VSM_MUST_ISOLATE", "1")
    with pytest.raises(pytest.fail.Exception, match="cgroup: not writable"):
        require("cgroup", False, "not writable")
    monkeypatch.delenv("VSM_MUST_ISOLATE")
    with pytest.raises(pytest.skip.Exception, match="cgroup: not writable"):
        require("cgroup", False, "not writable")


def test_runtime_dir_is_private_and_announced(runtime_dir: Path) -> None:
    assert os.environ["VSM_RUNTIME_DIR"] == str(runtime_dir)
    assert runtime_dir.stat().st_mode & 0o777 == 0o700
    assert len(str(runtime_dir / "control.sock")) < 100
