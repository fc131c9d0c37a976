"""SIGKILL of every kind of process at every stage: the rest goes on, and nothing is left."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import Running, running
from supervised import (
    BOUND_S,
    NOBODY,
    OURSELVES,
    STAGES,
    SYSTEMS,
    Started,
    Vsm,
    all_ready,
    ask,
    call,
    call_in_flight,
    descendants,
    folder_of,
    kill,
    left_of,
    ordinary_user,
    pause,
    rows,
    server_of,
    wait_all_gone,
    wait_nothing_left,
    wait_until,
    watch,
    write_config,
)

BYSTANDERS = ("system2", "system3", "system4", "system5", "journal")  # no call needs them
CARRIERS = ("system1", "template", "launcher", "mini-init", "server")
OFTEN = "well;restart = { intensity = 50, backoff_initial_s = 0.05 }"


@pytest.fixture
def vsm(tmp_path: Path) -> Iterator[Running]:
    """A vsm whose integration "good" is killed and whose "near" is its neighbour."""
    with running(write_config(tmp_path, good=OFTEN, near=OFTEN)) as one:
        wait_until(one, settled)
        yield one
        assert "hello" in call(one, "near", "echo", text="hello")
        assert one.stop() == 0, one.log()
        assert left_of(one) == []


def settled(seen: dict[str, dict[str, object]]) -> bool:
    """All serve, and behind each system waits its spare."""
    return all_ready(seen) and all(seen[name].get("spare") for name in SYSTEMS)


def pid_of(vsm: Vsm, kind: str) -> int:
    seen = rows(vsm)
    if kind == "server":
        return server_of(seen)
    return int(seen["good" if kind == "mini-init" else kind]["pid"])


def assert_whole_again(vsm: Running, descriptors: int) -> None:
    """Everything serves, and neither descriptors nor control groups have grown."""
    wait_until(vsm, settled)
    wait_until(vsm, lambda _: "hello" in call(vsm, "good", "echo", text="hello"))
    wait_until(vsm, lambda _: groups_of(vsm) in ([], ["good", "near", *SYSTEMS]))
    wait_until(vsm, lambda _: descriptors_of(vsm) == descriptors)


def taken_along(kind: str) -> set[str]:
    """Whose processes end with it."""
    more = {"launcher": {"good", "near"}, "template": set(SYSTEMS)}.get(kind, set())
    return more | {"good" if kind in {"mini-init", "server"} else kind}


def wait_replaced(vsm: Running, kind: str, before: dict[str, int]) -> None:
    wait_until(vsm, lambda seen: all(seen[n]["pid"] != before[n] for n in taken_along(kind)))


def descriptors_of(vsm: Running) -> int:
    return len(os.listdir(f"/proc/{vsm.process.pid}/fd"))


def groups_of(vsm: Running) -> list[str]:
    """Whose control groups there are; an integration's is named after the incarnation, too."""
    found = {line.rpartition("/")[2] for line in left_of(vsm) if line.startswith("group ")}
    return sorted(name.partition("-")[0] for name in found if not name.startswith("vsm-"))


# ---- a running vsm ---------------------------------------------------------------------------


def test_each_kind_of_process_killed_while_ready_is_replaced(vsm: Running) -> None:
    descriptors = descriptors_of(vsm)
    for kind in (*CARRIERS, *BYSTANDERS):
        before = {name: row["pid"] for name, row in rows(vsm).items()}
        kill(pid_of(vsm, kind))
        wait_replaced(vsm, kind, before)
        assert_whole_again(vsm, descriptors)
        after = {name: row["pid"] for name, row in rows(vsm).items()}
        assert {n for n in before if after[n] != before[n]} == taken_along(kind), kind


def test_a_call_in_flight_survives_every_process_that_does_not_carry_it(vsm: Running) -> None:
    descriptors = descriptors_of(vsm)
    client = call_in_flight(vsm, seconds=3)
    for kind in BYSTANDERS:
        kill(pid_of(vsm, kind))
    assert client.wait(BOUND_S) == 0
    assert_whole_again(vsm, descriptors)


def test_a_call_fails_at_once_with_the_process_that_carries_it(vsm: Running) -> None:
    descriptors = descriptors_of(vsm)
    for kind in CARRIERS:
        client = call_in_flight(vsm, seconds=8)  # a server whose gateway is gone finishes it
        before = {name: row["pid"] for name, row in rows(vsm).items()}
        kill(pid_of(vsm, kind))
        assert client.wait(BOUND_S) != 0, kind
        wait_replaced(vsm, kind, before)
        assert_whole_again(vsm, descriptors)


def test_a_draining_integration_stops_whatever_is_killed(vsm: Running) -> None:
    descriptors = descriptors_of(vsm)
    for kinds in ([*BYSTANDERS, "server"], *([kind] for kind in CARRIERS)):
        client = call_in_flight(vsm)
        drain = vsm_command(vsm, "drain", "good")
        wait_until(vsm, lambda seen: seen["good"]["state"] == "draining")
        for kind in kinds:
            assert rows(vsm)["good"]["state"] == "draining", kind
            assert client.poll() is None, kind
            kill(pid_of(vsm, kind))
        assert client.wait(BOUND_S) != 0, kinds
        wait_until(vsm, lambda seen: seen["good"]["state"] == "stopped")
        assert drain.wait(BOUND_S) == 0, kinds
        ask(vsm, "start", name="good")
        assert_whole_again(vsm, descriptors)


def vsm_command(vsm: Running, *words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*OURSELVES.command, *words], env=vsm.environment,
                            stdout=subprocess.DEVNULL)  # fmt: skip


# ---- at its beginning and its end ------------------------------------------------------------


def new_child(pid: int, text: str, known: set[int]) -> int:
    """Wait for a descendant that was not known, whose command line has the text."""
    end_s = time.monotonic() + BOUND_S
    while time.monotonic() < end_s:
        for child in sorted(descendants(pid) - known):
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in command:
                return child
        pause(0.001)
    raise AssertionError(f"no process with {text!r}")


# What its command line has; a system and a mini-init are forked, so theirs is their parent's.
STARTING = {
    "launcher": ("launcher.main",),
    "template": ("vsm.processes.template",),
    "journal": ("vsm.journal.process",),
    "server": ("misbehaving.py",),
    "mini-init": ("launcher.main", "launcher.main"),
    "system": ("vsm.processes.template", "vsm.processes.template"),
}


@pytest.mark.parametrize("kind", STARTING)
def test_a_process_killed_while_it_starts_is_started_again(tmp_path: Path, kind: str) -> None:
    one = Started(tmp_path, write_config(tmp_path, good=OFTEN))
    known: set[int] = set()
    for text in STARTING[kind]:
        known.add(found := new_child(one.process.pid, text, known))
    os.kill(found, signal.SIGKILL)
    one.wait_log("vsm: ready")
    wait_until(one, all_ready)
    assert one.end() == 0, one.log()
    wait_nothing_left(one)


@pytest.mark.parametrize(
    "kinds",
    [("launcher", "system5", "journal"), ("template", "mini-init"), ("system1", "server")],
)
def test_a_shutdown_ends_whatever_is_killed_meanwhile(
    tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    one = Started(tmp_path, write_config(tmp_path, good=OFTEN))
    one.wait_log("vsm: ready")
    client = call_in_flight(one)
    pids = [pid_of(one, kind) for kind in kinds]
    one.process.send_signal(signal.SIGTERM)
    one.wait_log("draining")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert one.process.wait(BOUND_S) == 0, one.log()
    assert client.wait(BOUND_S) != 0
    assert left_of(one) == []


# ---- the supervisor --------------------------------------------------------------------------


def kill_supervisor(one: Started, stage: str) -> None:
    """Kill it at that stage; nothing is left but its log and its history."""
    one.wait_log(stage if stage in STAGES else "vsm: ready")
    client = call_in_flight(one) if stage not in STAGES else None
    if stage == "draining":
        one.process.send_signal(signal.SIGTERM)
        one.wait_log("draining")
    tree = watch(descendants(one.process.pid))
    one.process.kill()
    one.process.wait()
    wait_all_gone(tree)
    if client is not None:
        assert client.wait(BOUND_S) != 0
    wait_nothing_left(one)


@pytest.mark.parametrize(
    "stage", ["worker=template", "worker=good", "vsm: ready", "mid-call", "draining"]
)
def test_killed_supervisor_leaves_nothing(tmp_path: Path, stage: str) -> None:
    one = Started(tmp_path, write_config(tmp_path, good="well", forks="orphan"))
    kill_supervisor(one, stage)


@pytest.mark.parametrize("stage", ["worker=template", "mid-call"])
def test_killed_supervisor_of_an_ordinary_user_leaves_nothing(
    scratch: Path, require: Callable[[str, bool, str], None], stage: str
) -> None:
    with folder_of(NOBODY if os.geteuid() == 0 else os.geteuid(), scratch) as folder:
        who = ordinary_user(folder, require)
        config = write_config(folder, good="well", forks="orphan")
        kill_supervisor(Started(folder, config, who=who), stage)


def test_the_next_vsm_starts_while_the_launcher_of_a_killed_one_tidies_up(tmp_path: Path) -> None:
    config = write_config(tmp_path, good="well")
    one = Started(tmp_path, config)
    one.wait_log("vsm: ready")
    one.process.kill()
    one.process.wait()
    after = Started(tmp_path, config)
    after.wait_log("vsm: ready")
    assert {"control.sock", "mcp.sock", "lock"} <= set(os.listdir(tmp_path / "run"))
    assert after.end() == 0, after.log()
    wait_nothing_left(one)
    assert left_of(after) == []


def test_what_launcher_and_supervisor_killed_together_leave_is_swept_by_the_next(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, good="well", forks="orphan")
    one = Started(tmp_path, config)
    one.wait_log("vsm: ready")
    tree = watch(descendants(one.process.pid))
    launcher = rows(one)["launcher"]["pid"]
    for signo in (signal.SIGSTOP, signal.SIGKILL):  # stopped, neither can clean up for the other
        for pid in (launcher, one.process.pid):
            os.kill(pid, signo)
    one.process.wait()
    wait_all_gone(tree)
    assert left_of(one) != []
    after = Started(tmp_path, config)
    after.wait_log("vsm: ready")
    kept = [line for line in left_of(one) if line.startswith(("group ", "private "))]
    assert kept == []
    assert after.end() == 0, after.log()
    assert left_of(after) == []
