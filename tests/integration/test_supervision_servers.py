"""Servers that misbehave in every way, under a real `vsm up`: limited or quarantined, never more.

One vsm for all of them; each is started for its test and stopped by it, while the neighbour
must answer.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from running import VSM, Running, running
from sessions import Sessions, play
from supervised import (
    BOUND_S,
    SYSTEMS,
    ask,
    call,
    descendants,
    left_of,
    rows,
    wait_all_gone,
    wait_until,
    watch,
    write_config,
)

LONG = {"arguments": {"seconds": 600}}
PATIENCE_S = 10.0  # for the neighbour's answer, a new `vsm call` process included
TERMS = """
enabled = false
profile = "{profile}"
start_timeout_s = {start_timeout_s}
stop_timeout_s = 0.5
call_timeout_s = {call_timeout_s}
restart = {{ intensity = 1, backoff_initial_s = 0.05 }}
"""
PROFILE = """
extends = "integration"
[files]
tmp = "8M"
[limits]
memory = "96M"
processes = 16
cpu = 0.5
open_files = 64
file_size = "4M"
"""
WELL = ("hungry", "endless")  # until they are called
NEVER_READY = ("silent", "cpu")
MODES = ("exit", "garbage", "flood-stdout", "flood-stderr", "ignore-term", "orphan", "memory",
         "processes", *NEVER_READY, *WELL)  # fmt: skip


@pytest.fixture(scope="module")
def vsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("servers")
    (folder / "tight.toml").write_text(PROFILE, encoding="utf-8")
    tables = {}
    for mode in MODES:
        terms = TERMS.format(
            profile=folder / "tight.toml",
            start_timeout_s=2 if mode in NEVER_READY else BOUND_S,
            call_timeout_s=2 if mode == "endless" else 60,
        )
        tables[mode] = f"{'well' if mode in WELL else mode};{terms}"
    with running(write_config(folder, good="well", **tables)) as one:
        wait_until(one, lambda seen: seen["good"]["state"] == "ready")
        yield one
        assert one.stop() == 0, one.log()
        assert left_of(one) == []


class Trial:
    """One misbehaving integration: started here, watched, stopped at the end."""

    def __init__(self, vsm: Running, name: str) -> None:
        self.vsm = vsm
        self.name = name
        self.untouched = {n: rows(vsm)[n]["pid"] for n in ("good", *SYSTEMS)}

    def __enter__(self) -> Self:
        self.starting = subprocess.Popen([VSM, "start", self.name], env=self.vsm.environment,
                                         stdout=subprocess.DEVNULL)  # fmt: skip
        wait_until(self.vsm, lambda seen: seen[self.name]["state"] != "stopped")
        self.neighbour_answers()
        return self

    def __exit__(self, *_: object) -> None:
        self.neighbour_answers()
        pid = rows(self.vsm)[self.name]["pid"]
        tree = watch(descendants(pid) | {pid} if pid else set())
        ask(self.vsm, "stop", name=self.name)
        wait_all_gone(tree)
        self.starting.wait(BOUND_S)
        wait_until(self.vsm, lambda seen: seen[self.name]["state"] == "stopped")
        wait_until(self.vsm, lambda _: not self.groups())
        after = rows(self.vsm)
        assert {n: after[n]["pid"] for n in self.untouched} == self.untouched

    def groups(self) -> list[str]:
        return [line for line in left_of(self.vsm) if f"/{self.name}-" in line]

    def neighbour_answers(self) -> None:
        began = time.monotonic()
        assert "hello" in call(self.vsm, "good", "echo", text="hello")
        assert time.monotonic() - began < PATIENCE_S

    def detail_once(self, state: str) -> str:
        seen = wait_until(self.vsm, lambda seen: seen[self.name]["state"] == state)
        return str(seen[self.name]["detail"])

    def call(self, tool: str, **arguments: str) -> str:
        return call(self.vsm, self.name, tool, **arguments)

    def assert_refused(self, *causes: str) -> None:
        """A call says whose fault it is, why, and what to do."""
        done = self.vsm.vsm("call", self.name, "echo", "{}")
        assert done.returncode == 1
        for text in (self.name, "quarantined", f"vsm logs {self.name}", f"vsm start {self.name}",
                     *causes):  # fmt: skip
            assert text in done.stderr
        assert f"`vsm start {self.name}` tries again" in self.vsm.vsm("status").stdout

    def assert_limited(self, mode: str, error: str) -> int:
        """The server itself was told; how far it got."""
        said = self.call("act", mode=mode)
        assert error in said, said
        return int(next(word for word in said.split() if word.isdigit()))


def test_exit_at_once_ends_in_quarantine_with_status_and_output(vsm: Running) -> None:
    with Trial(vsm, "exit") as trial:
        assert "exited with status 7" in trial.detail_once("quarantined")
        assert "cannot find my configuration" in ask(vsm, "logs", name="exit")
        trial.assert_refused("exited with status 7", "2 crashes")


def test_never_answering_ends_in_quarantine(vsm: Running) -> None:
    with Trial(vsm, "silent") as trial:
        assert "not ready within 2 s" in trial.detail_once("quarantined")
        trial.assert_refused("not ready within 2 s")


def test_burning_the_processor_ends_in_quarantine(vsm: Running) -> None:
    with Trial(vsm, "cpu") as trial:  # it may get as far as its first answer, or not
        assert "within 2 s" in trial.detail_once("quarantined")
        trial.assert_refused("within 2 s")


def test_garbage_before_the_protocol_is_passed_over(vsm: Running) -> None:
    with Trial(vsm, "garbage") as trial:
        trial.detail_once("ready")
        assert "hi" in trial.call("echo", text="hi")


def test_flooding_stdout_ends_in_quarantine(vsm: Running) -> None:
    with Trial(vsm, "flood-stdout") as trial:
        assert "invalid messages" in trial.detail_once("quarantined")
        trial.assert_refused("invalid messages")


def cpu_s(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def test_flooding_stderr_costs_the_supervisor_little(vsm: Running) -> None:
    with Trial(vsm, "flood-stderr") as trial:
        trial.detail_once("ready")
        assert "hi" in trial.call("echo", text="hi")  # the burst is behind us
        before, began = cpu_s(vsm.process.pid), time.monotonic()
        while time.monotonic() - began < 1.0:
            trial.neighbour_answers()
        share = (cpu_s(vsm.process.pid) - before) / (time.monotonic() - began)
        assert share < 0.1, f"{share:.1%} of a core"
        assert "x" * 100 in ask(vsm, "logs", name="flood-stderr")


@pytest.mark.parametrize("mode", ["ignore-term", "orphan"])
def test_ignoring_signals_or_escaping_into_a_session_is_killed(vsm: Running, mode: str) -> None:
    with Trial(vsm, mode) as trial:
        trial.detail_once("ready")
        below = descendants(rows(vsm)[mode]["pid"])
        assert len(below) >= (2 if mode == "orphan" else 1)


def test_eating_memory_is_named_as_such(vsm: Running, need: Callable[[str], None]) -> None:
    with Trial(vsm, "memory") as trial:
        wait_until(vsm, lambda seen: seen["memory"]["pid"] or seen["memory"]["restarts"])
        need("memory")
        detail = trial.detail_once("quarantined")
        assert "out of memory" in detail
        assert "96 MiB" in detail
        trial.assert_refused("out of memory")


def test_eating_processes_is_limited(vsm: Running, need: Callable[[str], None]) -> None:
    need("processes")
    with Trial(vsm, "processes") as trial:
        trial.detail_once("ready")
        assert len(descendants(rows(vsm)["processes"]["pid"])) <= 16
        assert "hi" in trial.call("echo", text="hi")


@pytest.mark.parametrize(
    ("mode", "error", "most"),
    [
        ("descriptors", "Too many open files", 64),
        ("disk", "File too large", 4 << 20),
        ("processes", "Resource temporarily unavailable", 16),
    ],
)
def test_a_call_that_eats_is_told_its_limit(vsm: Running, mode: str, error: str, most: int) -> None:
    with Trial(vsm, "hungry") as trial:
        trial.detail_once("ready")
        assert 0 < trial.assert_limited(mode, error) <= most
        assert "hi" in trial.call("echo", text="hi")


def test_a_call_that_burns_the_processor_times_out_with_what_to_do(vsm: Running) -> None:
    with Trial(vsm, "endless") as trial:
        trial.detail_once("ready")
        answer = trial.call("act", mode="cpu")
        assert "endless did not answer within 2 s" in answer
        assert "call_timeout_s" in answer


def test_a_call_that_eats_memory_fails_and_the_next_server_answers(
    vsm: Running, need: Callable[[str], None]
) -> None:
    need("memory")
    with Trial(vsm, "hungry") as trial:
        trial.detail_once("ready")
        answer = trial.call("act", mode="memory")
        assert "hungry" in answer
        assert "may have run" in answer
        wait_until(
            vsm, lambda seen: seen["hungry"]["restarts"] and seen["hungry"]["state"] == "ready"
        )
        assert "out of memory" in vsm.log()
        assert "hi" in trial.call("echo", text="hi")


@pytest.fixture
def need(vsm: Running, require: Callable[[str, bool, str], None]) -> Callable[[str], None]:
    """Skip where no control group enforces this limit."""

    def check(layer: str) -> None:
        layers = {one["name"]: one["state"] for one in rows(vsm)["good"]["layers"]}
        require(f"{layer} limit", layers.get(layer) == "in force", "no control group limits it")

    return check


def test_what_is_in_flight_when_a_worker_dies_fails_within_fifty_milliseconds(
    tmp_path: Path,
) -> None:
    names = [f"w{number}" for number in range(6)]
    path = write_config(tmp_path, **dict.fromkeys([*names, "near"], "well"))

    async def scenario(it: Sessions) -> None:
        client = await it.open()
        took_s = []
        for name in names:
            client.send(id=name, method="tools/call", params={"name": f"{name}__slow", **LONG})
            assert "result" in await it.call(client, "near__echo", text="x")
            pid = rows(it.vsm)[name]["pid"]
            began_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            error = (await client.answer(name))["error"]
            took_s.append(time.monotonic() - began_s)
            assert name in error["message"]
            assert "it may have run" in error["message"]
            assert error["data"]["sent"] is True
        assert min(took_s) < 0.05, took_s  # others use this machine, too

    with running(path) as one:
        one.wait_serving()
        play(one, scenario)
        assert one.stop() == 0
