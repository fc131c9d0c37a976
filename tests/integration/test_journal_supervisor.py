"""What a real `vsm up` leaves in its journal, and that nobody waits for it or dies of it."""

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running, running

SERVER = Path(__file__).resolve().parents[1] / "servers/misbehaving.py"
BOUND_S = 20.0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """One server that exits at once, one whose profile's file is not there."""
    crashing = json.dumps(["/usr/bin/python3", str(SERVER), "exit"])
    path = tmp_path / "vsm.toml"
    path.write_text(
        f"[journal]\nkeep_days = 7\n"
        f"[integrations.crashing]\ncommand = {crashing}\n"
        f"[integrations.crashing.restart]\nintensity = 1\nbackoff_initial_s = 0.05\n"
        f'[integrations.absent]\ncommand = ["/usr/bin/true"]\nread = ["/nonexistent"]\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def vsm(config: Path) -> Iterator[Running]:
    with running(config) as started:
        yield started


def told(vsm: Running, *words: str) -> list[dict[str, Any]]:
    done = vsm.vsm(*words, "--json", "--limit", "100000")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def wait_told(
    vsm: Running, holds: Callable[[list[tuple[str, str | None]]], bool]
) -> list[dict[str, Any]]:
    """Read the journal until it holds; the reading itself paces this."""
    end_s = time.monotonic() + BOUND_S
    while True:
        rows = told(vsm, "events")
        if holds([(row["kind"], row["worker"]) for row in rows]):
            return rows
        assert time.monotonic() < end_s, f"{rows}\n{vsm.log()}"


def pid_of(vsm: Running, name: str) -> int:
    """Once it has one: a killed one's successor is not there in the same moment."""
    end_s = time.monotonic() + BOUND_S
    while True:
        pid = next(row["pid"] for row in vsm.status()["workers"] if row["name"] == name)
        if pid:
            return int(pid)
        assert time.monotonic() < end_s, vsm.log()


def kill(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], BOUND_S)[0]
    finally:
        os.close(pidfd)


def test_a_life_is_recorded_from_start_to_stop(vsm: Running) -> None:
    wait_told(vsm, lambda seen: ("worker.quarantined", "crashing") in seen)
    assert vsm.stop() == 0
    rows = told(vsm, "events")
    kinds = [(row["kind"], row["worker"]) for row in rows]
    assert kinds[0] == ("vsm.started", None)
    assert kinds[-1] == ("vsm.stopped", None)
    for system in range(1, 6):
        assert ("worker.ready", f"system{system}") in kinds
        assert ("worker.stopped", f"system{system}") in kinds
    (refused,) = [row for row in rows if row["kind"] == "worker.refused"]
    assert refused["integration"] == "absent"
    assert "/nonexistent" in refused["detail"]["what"]
    assert ("worker.exited", "crashing") in kinds
    assert len({row["boot_id"] for row in rows}) == 1
    assert [row["at_ns"] for row in rows] == sorted(row["at_ns"] for row in rows)


def test_a_quarantine_is_a_decision_with_its_rule_and_inputs(vsm: Running) -> None:
    wait_told(vsm, lambda seen: ("worker.quarantined", "crashing") in seen)
    decisions = told(vsm, "decisions", "--worker", "crashing")
    assert [row["choice"] for row in decisions] == ["restart", "quarantine"]
    last = decisions[-1]
    assert last["rule"] == "restart.intensity"
    assert last["inputs"]["intensity"] == 1
    assert last["inputs"]["crashes"] == 2
    assert last["alternatives"] == ["restart"]
    assert decisions[0]["outcome"]["state"] == "exited"


def test_a_replaced_gateway_and_a_panic_are_recorded(vsm: Running) -> None:
    kill(pid_of(vsm, "system1"))
    wait_told(vsm, lambda seen: ("gateway.replaced", "system1") in seen)
    assert vsm.vsm("panic").returncode == 0
    assert vsm.vsm("resume").returncode == 0
    rows = wait_told(vsm, lambda seen: ("vsm.resumed", None) in seen)
    severity = {row["kind"]: row["severity"] for row in rows}
    assert severity["vsm.panic"] == "critical"


def test_a_killed_journal_is_replaced_and_nothing_is_missing(vsm: Running) -> None:
    for _ in range(3):
        kill(pid_of(vsm, "journal"))
        assert vsm.vsm("panic").returncode == 0
        assert vsm.vsm("resume").returncode == 0
    rows = wait_told(
        vsm, lambda seen: [kind for kind, _ in seen].count("vsm.resumed") == 3
    )  # fmt: skip
    kinds = [row["kind"] for row in rows]
    assert kinds.count("vsm.panic") == 3
    assert kinds.count("journal.ended") == 3
    assert vsm.status()["ready"] is True


def test_a_killed_supervisor_leaves_its_history_to_the_next(config: Path, tmp_path: Path) -> None:
    with running(config, again=_made(tmp_path / "r")) as first:
        wait_told(first, lambda seen: ("worker.ready", "system5") in seen)
        assert first.vsm("panic").returncode == 0
        journal = os.pidfd_open(pid_of(first, "journal"))
        first.process.kill()
        first.process.wait()
        assert select.select([journal], [], [], BOUND_S)[0], "the journal outlives its supervisor"
        os.close(journal)
    with running(config, again=tmp_path / "r") as second:
        rows = wait_told(second, lambda seen: [k for k, _ in seen].count("vsm.started") == 2)
        assert "vsm.panic" in [row["kind"] for row in rows]
        assert "journal.moved_aside" not in [row["kind"] for row in rows]


def test_vsm_runs_on_without_a_journal(config: Path, tmp_path: Path) -> None:
    folder = _made(tmp_path / "r")
    state = folder / "state"
    state.mkdir(mode=0o700)
    (state / "journal.db").mkdir()  # nothing can be opened there
    with running(config, again=folder) as vsm:
        row = next(row for row in vsm.status()["workers"] if row["name"] == "journal")
        assert row["state"] in {"starting", "backing_off"}
        assert vsm.status()["ready"] is True
        assert vsm.stop() == 0
        assert "journal: cannot write" in vsm.log()
        assert "records lost" in vsm.log()


def test_following_shows_what_comes(vsm: Running) -> None:
    import subprocess

    from running import VSM

    follower = subprocess.Popen(
        [VSM, "events", "--follow", "--json", "--kind", "vsm.*"],
        env=vsm.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["kind"] == "vsm.started"
        vsm.vsm("panic")
        assert json.loads(follower.stdout.readline())["kind"] == "vsm.panic"
    finally:
        follower.kill()
        follower.communicate()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
