"""A real `vsm up` whose processes are killed, stopped and misused; nothing may be left."""

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import VSM, Running, running

SERVER = Path(__file__).resolve().parents[1] / "servers/misbehaving.py"
SYSTEMS = ("system1", "system2", "system3", "system4", "system5")
BOUND_S = 20.0

Row = dict[str, Any]


class Started:
    """A `vsm up` that this module started itself, ready or not."""

    def __init__(self, folder: Path, config: Path, http: str = "") -> None:
        self.folder = folder
        self.environment = os.environ | {
            "VSM_RUNTIME_DIR": str(folder / "run"),
            "VSM_STATE_DIR": str(folder / "state"),
        }
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [VSM, "up", "--http", http, "--config", str(config)],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def wait_log(self, text: str) -> None:
        end = time.monotonic() + BOUND_S
        while text not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, f"{text!r} is not in the log:\n{self.log()}"

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(BOUND_S)


Vsm = Running | Started


def write_config(folder: Path, **modes: str) -> Path:
    """One integration for each keyword, in that mode; text after ";" is more TOML."""
    tables = []
    for name, mode in modes.items():
        word, _, more = mode.partition(";")
        command = json.dumps(["/usr/bin/python3", str(SERVER), word])
        tables.append(f"[integrations.{name}]\ncommand = {command}\n{more}\n")
    path = folder / "vsm.toml"
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


def ask(vsm: Vsm, command: str, **arguments: object) -> Any:
    """One question over the control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(BOUND_S)
        connection.connect(str(vsm.folder / "run/control.sock"))
        question = json.dumps({"command": command, "arguments": arguments}) + "\n"
        connection.sendall(question.encode())
        answer = json.loads(connection.makefile().readline())
    assert answer["ok"], answer
    return answer["result"]


def rows(vsm: Vsm) -> dict[str, Row]:
    return {row["name"]: row for row in ask(vsm, "status")["workers"]}


def wait_until(vsm: Vsm, holds: Callable[[dict[str, Row]], bool]) -> dict[str, Row]:
    """Ask until it holds; the answers themselves pace this."""
    end = time.monotonic() + BOUND_S
    while not holds(seen := rows(vsm)):
        assert time.monotonic() < end, f"{seen}\n{vsm.log()}"
    return seen


def all_ready(seen: dict[str, Row]) -> bool:
    return all(row["state"] == "ready" for row in seen.values())


def call(vsm: Running, integration: str, tool: str, **arguments: object) -> str:
    done = vsm.vsm("call", integration, tool, json.dumps(arguments))
    return done.stdout + done.stderr


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    found: set[int] = set()
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found.update(children)
        todo += children
    return found


def wait_all_gone(pidfds: dict[int, int]) -> None:
    """Wait by pidfd until each has ended; closes the pidfds."""
    end = time.monotonic() + BOUND_S
    for pid, pidfd in pidfds.items():
        left = max(0.0, end - time.monotonic())
        assert select.select([pidfd], [], [], left)[0], f"process {pid} outlives its supervisor"
        os.close(pidfd)


def watch(pids: set[int]) -> dict[int, int]:
    watched = {}
    for pid in pids:
        try:
            watched[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
    return watched


@pytest.fixture
def vsm(tmp_path: Path) -> Iterator[Running]:
    """A vsm with a good integration and its neighbour, all ready; stopped in order."""
    config = write_config(tmp_path, good="well", near="well")
    with running(config) as one:
        wait_until(one, all_ready)
        yield one
        assert one.stop() == 0, one.log()
        assert os.listdir(one.folder / "run") == []


@pytest.mark.parametrize("name", ["launcher", "template", *SYSTEMS, "good"])
def test_killed_process_is_replaced_and_calls_are_answered_again(vsm: Running, name: str) -> None:
    before = rows(vsm)
    os.kill(before[name]["pid"], signal.SIGKILL)
    after = wait_until(
        vsm, lambda seen: all_ready(seen) and seen[name]["pid"] not in {None, before[name]["pid"]}
    )
    follow = {"launcher": {"good", "near"}, "template": set(SYSTEMS)}.get(name, set())
    untouched = set(before) - follow - {name}
    assert {n: after[n]["pid"] for n in untouched} == {n: before[n]["pid"] for n in untouched}
    assert "hello" in call(vsm, "good", "echo", text="hello")
    assert "hello" in call(vsm, "near", "echo", text="hello")


def test_killed_server_is_restarted_and_its_call_fails_at_once(vsm: Running) -> None:
    before = rows(vsm)
    answer = call(vsm, "good", "crash")
    assert "good" in answer
    after = wait_until(vsm, lambda seen: all_ready(seen) and seen["good"]["restarts"] == 1)
    assert after["near"]["pid"] == before["near"]["pid"]
    assert "SIGKILL" in vsm.log()


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
    assert "no rules configured" in status["systems"]["system5"]["lacks"]
    assert "no demand observed" in status["systems"]["system4"]["lacks"]
    layers = {row["name"]: {one["name"]: one["state"] for one in row["layers"]}
              for row in status["workers"] if row["kind"] == "system"}  # fmt: skip
    for name in SYSTEMS:
        assert layers[name]["seccomp"] == layers[name]["privileges"] == "in force"
        seccomp = Path(f"/proc/{rows(vsm)[name]['pid']}/status").read_text(encoding="ascii")
        assert "Seccomp:\t2" in seccomp
        assert "NoNewPrivs:\t1" in seccomp
        assert "CapEff:\t0000000000000000" in seccomp


def sockets_of(pid: int) -> set[str]:
    folder = Path(f"/proc/{pid}/fd")
    return {
        target for entry in folder.iterdir() if (target := os.readlink(entry)).startswith("socket:")
    }


def test_intelligence_holds_no_socket_that_operations_holds(vsm: Running) -> None:
    seen = rows(vsm)
    held = {name: sockets_of(seen[name]["pid"]) for name in SYSTEMS}
    # Both ends of a pair are different sockets; a system shares none with another.
    for one in SYSTEMS:
        for other in SYSTEMS:
            assert one == other or not held[one] & held[other]
    # Its control link, three sending and two receiving ends, and the loop's wake-up pair.
    assert len(held["system4"]) == 1 + 3 + 2 + 2


def test_crash_loop_ends_in_quarantine_and_the_neighbour_never_notices(tmp_path: Path) -> None:
    loop = "exit;restart = { backoff_initial_s = 0.05 }"
    with running(write_config(tmp_path, good="well", loops=loop)) as vsm:
        wait_until(vsm, lambda seen: seen["good"]["state"] == "ready")
        before = rows(vsm)["good"]
        seen = wait_until(vsm, lambda seen: seen["loops"]["state"] == "quarantined")
        assert "crashes within" in seen["loops"]["detail"]
        assert seen["good"]["pid"] == before["pid"]
        assert seen["good"]["restarts"] == 0
        assert "cannot find my configuration" in ask(vsm, "logs", name="loops")
        assert vsm.vsm("call", "loops", "echo", "{}").returncode != 0
        assert "hello" in call(vsm, "good", "echo", text="hello")
        assert vsm.stop() == 0


def test_missing_command_is_refused_with_its_path_and_no_retry(tmp_path: Path) -> None:
    config = tmp_path / "vsm.toml"
    config.write_text('[integrations.gone]\ncommand = ["/no/such/server"]\n', encoding="utf-8")
    with running(config) as vsm:
        seen = wait_until(vsm, lambda seen: seen["gone"]["state"] == "quarantined")
        assert "/no/such/server" in seen["gone"]["detail"]
        assert seen["gone"]["restarts"] == 0
        assert vsm.stop() == 0


def test_silent_server_is_quarantined_with_the_reason(tmp_path: Path) -> None:
    silent = (
        "silent;start_timeout_s = 0.5\n"
        "stop_timeout_s = 0.5\nrestart = { intensity = 1, backoff_initial_s = 0.05 }"
    )
    with running(write_config(tmp_path, mute=silent)) as vsm:
        seen = wait_until(vsm, lambda seen: seen["mute"]["state"] == "quarantined")
        assert "crashes" in seen["mute"]["detail"]
        assert vsm.stop() == 0


def test_server_that_ignores_everything_is_killed_with_its_orphans(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, deaf="ignore-term;stop_timeout_s = 0.3", forks="orphan;stop_timeout_s = 0.3"
    )
    with running(config) as vsm:
        seen = wait_until(vsm, all_ready)
        trees = watch(descendants(seen["deaf"]["pid"]) | descendants(seen["forks"]["pid"]))
        assert len(trees) >= 3
        ask(vsm, "stop", name="deaf")
        ask(vsm, "stop", name="forks")
        wait_all_gone(trees)
        assert vsm.stop() == 0


def cpu_s(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def test_stderr_flood_costs_the_supervisor_little_and_the_neighbour_nothing(
    tmp_path: Path,
) -> None:
    with running(write_config(tmp_path, good="well", loud="flood-stderr")) as vsm:
        wait_until(vsm, lambda seen: seen["good"]["state"] == "ready")
        assert "hello" in call(vsm, "good", "echo", text="hello")  # the burst is behind us
        before, began = cpu_s(vsm.process.pid), time.monotonic()
        select.select([], [], [], 3.0)
        share = (cpu_s(vsm.process.pid) - before) / (time.monotonic() - began)
        assert share < 0.05, f"{share:.1%} of a core"
        assert "x" * 100 in ask(vsm, "logs", name="loud")
        assert vsm.stop() == 0


def test_memory_eater_is_reported_as_out_of_memory(
    tmp_path: Path, require: Callable[[str, bool, str], None]
) -> None:
    config = write_config(tmp_path, good="well", eats="memory;start_timeout_s = 60")
    with running(config) as vsm:
        seen = wait_until(
            vsm, lambda seen: seen["eats"]["state"] != "starting" or seen["eats"]["pid"]
        )
        memory = next((x for x in seen["eats"]["layers"] if x["name"] == "memory"), None)
        in_force = memory is None or memory["state"] == "in force"
        require("memory limit", in_force, "no cgroup limits memory here")
        seen = wait_until(vsm, lambda seen: "out of memory" in seen["eats"]["detail"])
        assert "peak" in seen["eats"]["detail"]
        assert seen["good"]["restarts"] == 0
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


STAGES = ["worker=template", "worker=launcher", "worker=good", "system3", "vsm: ready"]


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_at_any_stage_of_the_start_ends_in_order(tmp_path: Path, stage: str) -> None:
    one = Started(tmp_path, write_config(tmp_path, good="well"))
    one.wait_log(stage)
    tree = watch(descendants(one.process.pid))
    assert one.end() == 0, one.log()
    wait_all_gone(tree)
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize("stage", [*STAGES, "mid-call", "draining"])
def test_killed_supervisor_leaves_no_process_and_the_next_one_starts(
    tmp_path: Path, stage: str
) -> None:
    config = write_config(tmp_path, good="well", forks="orphan")
    one = Started(tmp_path, config)
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
    after = Started(tmp_path, config)
    after.wait_log("vsm: ready")
    assert after.end() == 0, after.log()
    assert os.listdir(tmp_path / "run") == []


def call_in_flight(vsm: Started) -> "subprocess.Popen[bytes]":
    """Begin a slow call whose client waits until its connection breaks."""
    wait_until(vsm, all_ready)
    client = subprocess.Popen(
        [VSM, "call", "good", "slow", '{"seconds": 60}'],
        env=vsm.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(vsm, lambda _: in_flight(vsm))
    return client


def in_flight(vsm: Started) -> bool:
    """The server sleeps in its tool: in a clock call and in no read."""
    pid = max(descendants(rows(vsm)["good"]["pid"]), default=0)
    try:
        number = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()[0]
    except (OSError, IndexError):
        return False
    return number in {"35", "230"}  # nanosleep, clock_nanosleep on x86_64


def test_second_sigterm_does_not_wait_for_the_call_in_flight(tmp_path: Path) -> None:
    one = Started(tmp_path, write_config(tmp_path, good="well;stop_timeout_s = 60"))
    one.wait_log("vsm: ready")
    client = call_in_flight(one)
    began = time.monotonic()
    one.process.send_signal(signal.SIGTERM)
    one.wait_log("draining")
    assert one.end() == 0, one.log()
    assert time.monotonic() - began < 4.0  # less than the drain's bound
    client.wait(BOUND_S)
