"""A real `vsm up` whose processes are replaced, hang, or are misused; nothing may be left."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, running
from supervised import (
    BOUND_S,
    STAGES,
    SYSTEMS,
    Started,
    Who,
    all_ready,
    ask,
    call,
    call_in_flight,
    descendants,
    rows,
    state,
    wait_all_gone,
    wait_until,
    watch,
    write_config,
)

# A drain that no test waits for.
PATIENT = """
import sys
from vsm.supervision import supervisor
supervisor.DRAIN_S = 600.0
from vsm.cli import main
sys.exit(main())
"""


@pytest.fixture
def vsm(tmp_path: Path) -> Iterator[Running]:
    """A vsm with a good integration and its neighbour, all ready; stopped in order."""
    config = write_config(tmp_path, good="well", near="well")
    with running(config) as one:
        wait_until(one, all_ready)
        yield one
        assert one.stop() == 0, one.log()
        assert os.listdir(one.folder / "run") == []


@pytest.mark.parametrize("name", ["system1", "system4"])
def test_hung_system_prints_its_stack_and_is_replaced(vsm: Running, name: str) -> None:
    before = rows(vsm)
    os.kill(before[name]["pid"], signal.SIGSTOP)
    wait_until(vsm, lambda seen: seen[name]["restarts"] == 1 and all_ready(seen))
    printed = "\n".join(ask(vsm, "logs", name=name, lines=500))
    assert "Fatal Python error: Aborted" in printed
    assert "most recent call first" in printed
    assert "no heartbeat" in vsm.log()


def test_systems_answer_for_themselves_and_their_layers(vsm: Running) -> None:
    status = ask(vsm, "status")
    assert set(status["systems"]) == set(SYSTEMS)
    assert "no rules configured" in state(vsm, "system5")["lacks"]
    lacks = state(vsm, "system4")["lacks"]
    assert any(line.startswith("no demand observed") for line in lacks)
    layers = {row["name"]: {one["name"]: one["state"] for one in row["layers"]}
              for row in status["workers"] if row["kind"] == "system"}  # fmt: skip
    for name in SYSTEMS:
        assert layers[name]["seccomp"] == layers[name]["privileges"] == "in force"
        seccomp = Path(f"/proc/{rows(vsm)[name]['pid']}/status").read_text(encoding="ascii")
        assert "Seccomp:\t2" in seccomp
        assert "NoNewPrivs:\t1" in seccomp
        assert "CapEff:\t0000000000000000" in seccomp


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's systems have the user's uid")
def test_systems_of_two_vsm_of_roots_have_uids_of_their_own(vsm: Running) -> None:
    def uids_of(one: Running) -> set[int]:
        return {os.stat(f"/proc/{rows(one)[name]['pid']}").st_uid for name in SYSTEMS}

    with running(None) as other:
        wait_until(other, all_ready)
        assert len(uids_of(vsm) | uids_of(other)) == 2 * len(SYSTEMS)
        assert other.stop() == 0


def sockets_of(pid: int) -> set[str]:
    folder = Path(f"/proc/{pid}/fd")
    return {
        target for entry in folder.iterdir() if (target := os.readlink(entry)).startswith("socket:")
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what a system holds")
def test_intelligence_holds_no_socket_that_operations_holds(vsm: Running) -> None:
    seen = rows(vsm)
    held = {name: sockets_of(seen[name]["pid"]) for name in SYSTEMS}
    # Both ends of a pair are different sockets; a system shares none with another.
    for one in SYSTEMS:
        for other in SYSTEMS:
            assert one == other or not held[one] & held[other]
    # Its control link, three sending and two receiving ends, and the loop's wake-up pair.
    assert len(held["system4"]) == 1 + 3 + 2 + 2


def test_missing_command_is_refused_with_its_path_and_no_retry(tmp_path: Path) -> None:
    config = tmp_path / "vsm.toml"
    config.write_text('[integrations.gone]\ncommand = ["/no/such/server"]\n', encoding="utf-8")
    with running(config) as vsm:
        seen = wait_until(vsm, lambda seen: seen["gone"]["state"] == "quarantined")
        assert "/no/such/server" in seen["gone"]["detail"]
        assert seen["gone"]["restarts"] == 0
        assert vsm.stop() == 0


def test_panic_kills_every_integration_and_resume_brings_them_back(vsm: Running) -> None:
    before = rows(vsm)
    trees = watch({before["good"]["pid"], before["near"]["pid"]})
    assert ask(vsm, "panic") == {"panic": True}
    wait_all_gone(trees)
    assert ask(vsm, "status")["panic"]
    assert vsm.vsm("call", "good", "echo", "{}").returncode != 0
    assert vsm.vsm("start", "good").returncode != 0
    ask(vsm, "resume")
    wait_until(vsm, all_ready)
    assert "hello" in call(vsm, "good", "echo", text="hello")


def test_second_vsm_in_the_same_directory_is_refused(vsm: Running) -> None:
    done = vsm.vsm("up", "--http", "")
    assert done.returncode == 1
    assert "another vsm runs here" in done.stderr
    assert str(vsm.process.pid) in done.stderr


def test_taken_port_is_named_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        one = Started(tmp_path, write_config(tmp_path), http=address)
        assert one.process.wait(BOUND_S) == 1
    assert "the port is taken" in one.log()
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_at_any_stage_of_the_start_ends_in_order(tmp_path: Path, stage: str) -> None:
    one = Started(tmp_path, write_config(tmp_path, good="well"))
    one.wait_log(stage)
    tree = watch(descendants(one.process.pid))
    assert one.end() == 0, one.log()
    wait_all_gone(tree)
    assert os.listdir(tmp_path / "run") == []


def test_second_sigterm_does_not_wait_for_the_call_in_flight(tmp_path: Path) -> None:
    who = Who(command=(sys.executable, "-c", PATIENT))
    one = Started(tmp_path, write_config(tmp_path, good="well;stop_timeout_s = 600"), who=who)
    one.wait_log("vsm: ready")
    client = call_in_flight(one, seconds=600)
    one.process.send_signal(signal.SIGTERM)
    one.wait_log("draining")
    assert one.end() == 0, one.log()
    client.wait(BOUND_S)
