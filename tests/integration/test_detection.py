"""Without a control group a tree that outgrows its limit is noticed and killed, and said so."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from supervised import (
    NOBODY,
    Row,
    Started,
    ask,
    folder_of,
    ordinary_user,
    rows,
    wait_until,
    write_config,
)

from vsm.governance.detection import descendants, measure

PROFILE = 'extends = "integration"\n[limits]\nmemory = "100M"\n'


def hog_is_ready(seen: dict[str, Row]) -> bool:
    return str(seen["hog"]["state"]) == "ready"


def test_shared_memory_of_a_tree_is_detected(
    scratch: Path, require: Callable[[str, bool, str], None]
) -> None:
    uid = NOBODY if os.geteuid() == 0 else os.geteuid()
    with folder_of(uid, scratch) as folder:
        who = ordinary_user(folder, require)
        (folder / "small.toml").write_text(PROFILE, encoding="utf-8")
        profile = 'profile = "./small.toml"'
        one = Started(folder, write_config(folder, hog=f"well;{profile}"), who=who)
        one.wait_log("vsm: ready")
        before = wait_until(one, hog_is_ready)["hog"]
        memory = next(layer for layer in before["layers"] if layer["name"] == "memory")
        if memory["state"] == "in force":  # a delegated control group: nothing to detect
            assert one.end() == 0
            return
        assert "a detection, no limit" in memory["detail"]
        held = {row["key"]: row for row in ask(one, "limit", name="hog", limits={})["held"]}
        assert held["memory"]["state"] == "detected"
        assert held["cpu"]["state"] == "absent"
        refused = one.start("call", "hog", "act", '{"mode": "refused"}', to=subprocess.PIPE)
        assert b"[1, 1, 1, 1]" in refused.communicate(timeout=20)[0]
        wait_until(one, lambda seen: seen["hog"]["refused_calls"] == {"ptrace": 3, "bpf": 1})
        call = one.start("call", "hog", "act", '{"mode": "shared"}', to=subprocess.PIPE)
        wait_until(one, lambda seen: seen["hog"]["restarts"] == 1)
        call.communicate(timeout=20)
        assert call.returncode == 1
        assert "killed: out of memory, found at" in one.log()
        wait_until(one, hog_is_ready)
        assert rows(one)["hog"]["pid"] != before["pid"]
        assert one.end() == 0, one.log()


def test_a_tree_is_its_descendants() -> None:
    script = "sleep 60 & sleep 60 & echo ready; wait"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == b"ready\n"
        seen = measure(shell.pid)
        assert seen.tasks == 3
        assert 0 < seen.memory_bytes < 64 << 20
        subprocess.run(["/usr/bin/pkill", "-P", str(shell.pid)], check=True)
    assert measure(shell.pid).tasks == 0


@pytest.mark.parametrize("name", [b"\x0bThreads:", b"\x1cThreads:\tx", b"\xe2\x80\xa8RssAnon:\ty"])
def test_process_that_calls_itself_a_line_of_its_status_is_measured_all_the_same(
    name: bytes,
) -> None:
    """A look that failed at it would fail for ever, and for the workers after it, too."""
    script = f"import ctypes; ctypes.CDLL(None).prctl(15, {name!r}); print('ready', flush=True)"
    argv = [sys.executable, "-SIc", f"{script}; input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"ready\n"
        seen = measure(process.pid)
        assert seen.tasks == 1
        assert seen.memory_bytes > 0
        process.communicate(b"\n")


BURNS = "import time\nwhile time.process_time() < 0.34: pass\nprint('done', flush=True)\n"


def test_the_processor_time_of_a_tree_is_that_of_the_living_and_of_the_reaped() -> None:
    """And its memory that of all, however little the first of them has."""
    burn = f'{sys.executable} -c "{BURNS}"'
    keep = f'{sys.executable} -c "x = bytearray(40 << 20); {"print(1, flush=True)"}; input()"'
    with subprocess.Popen(
        ["/bin/sh", "-c", f"{burn}; {keep}; exit 0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        assert shell.stdout.readline() == b"done\n"
        assert shell.stdout.readline() == b"1\n"
        seen = measure(shell.pid)
        assert seen.cpu_s >= 0.3  # the kernel tells whole ticks: of each figure up to 0.01 less
        assert seen.memory_bytes >= 40 << 20
        shell.stdin.write(b"\n")
        shell.stdin.close()


def test_process_that_ends_while_its_threads_are_listed_has_nothing_below_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(path: object) -> NoReturn:
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", ended)
        patch.setattr(os, "scandir", ended)
        found = list(descendants(os.getpid()))
    assert found == [os.getpid()]
