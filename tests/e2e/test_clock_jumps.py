"""A running vsm whose wall clock is set a year ahead or back: nothing that it times is moved.

Every process of vsm reads the clock that the test sets (tests/wall_clock.py), the confined ones
too; each test here begins with the proof of that.
"""

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from running import Running, running
from supervised import ask, pause, rows
from wall_clock import WallClock, compiler
from wire_client import Client

SERVERS = Path(__file__).resolve().parents[1] / "servers"
BOUND_S = 40.0
YEAR_S = 365 * 86_400
SLACK_S = 3600  # less than a leap, more than any test takes
WATCHDOG_S = 2.0
LATE_S = 1.5
OPEN_S = 2.0
PACE_S = 1.0
GRANT_S = 3
ASK_S = 600
CRASHING = {"never", "soon"}
SERVING = {
    "it": "call_timeout_s = 20",
    "rare": "",
    "paced": "",
    "late": f"call_timeout_s = {LATE_S}",
    "shut": "call_timeout_s = 0.3\nresilience = { failures = 1, open_s = 600 }",
    "closes": f"call_timeout_s = 0.3\nresilience = {{ failures = 1, open_s = {OPEN_S} }}",
    "opens": f"call_timeout_s = 0.3\nresilience = {{ failures = 1, open_s = {OPEN_S} }}",
}
INTEGRATIONS = "".join(
    f"""[integrations.{name}]
command = ["/usr/bin/python3", "-SI", "{SERVERS}/echo_legacy.py", "{name}"]
read = ["{SERVERS}"]
{more}
"""
    for name, more in SERVING.items()
)
CONFIG = f"""
[gateway]
audit = "all"
[journal]
keep_days = 7

[policy]
ask_timeout_s = {ASK_S}
[[policy.rules]]
name = "ask-log"
action = "ask"
tool = "log"
[[policy.rules]]
name = "ask-progress"
action = "ask"
tool = "progress"

[[coordination.rates]]
integration = "rare"
per_second = 0.001
burst = 2
[[coordination.rates]]
integration = "paced"
per_second = {1 / PACE_S}
burst = 1
wait_s = 30

{INTEGRATIONS}[integrations.never]
command = ["/bin/false"]
restart = {{ intensity = 1000, backoff_initial_s = 600, backoff_max_s = 600 }}
[integrations.soon]
command = ["/bin/false"]
restart = {{ intensity = 1000, backoff_initial_s = 0.5, backoff_max_s = 0.5 }}
"""


@dataclass
class World:
    """A vsm, its clock, and what was so before the clock leapt.

    Args:
        slow: a client with calls in flight, slow_call and late_call, which is never answered.
        asking: a client whose asking_call is held.
    """

    vsm: Running
    clock: WallClock
    leap_s: int
    client: Client
    slow: Client
    asking: Client
    slow_call: int = 0
    late_call: int = 0
    asking_call: int = 0
    rows_before: dict[str, dict[str, Any]] = field(default_factory=dict)
    events_before: list[dict[str, Any]] = field(default_factory=list)
    calls_before: list[dict[str, Any]] = field(default_factory=list)
    leapt_s: float = 0.0

    def answered(self, *words: str) -> Any:
        done = self.vsm.vsm(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def rows(self) -> dict[str, dict[str, Any]]:
        return rows(self.vsm)

    def approvals(self) -> dict[str, Any]:
        shown: dict[str, Any] = ask(self.vsm, "approvals")
        return shown

    def call(self, integration: str, tool: str, **arguments: Any) -> dict[str, Any]:
        return self.client.ask("tools/call", name=f"{integration}__{tool}", arguments=arguments)

    def recorded(self, what: str, *words: str) -> list[dict[str, Any]]:
        if what == "audit":
            return [json.loads(line) for line in self.vsm.vsm(what, *words).stdout.splitlines()]
        found: list[dict[str, Any]] = self.answered(what, "--limit", "100000", *words)
        return found


def until(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds anything."""
    end = time.monotonic() + BOUND_S
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen"
        pause(0.05)  # the control socket tells nobody
    return found


def said(answer: dict[str, Any]) -> str:
    return str(answer["error"]["message"]) if "error" in answer else ""


@pytest.fixture(scope="module", params=[YEAR_S, -YEAR_S], ids=["ahead", "back"])
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    require: Callable[[str, bool, str], None],
    session_leaves_nothing: None,
) -> Iterator[World]:
    """A vsm in the middle of everything that it times, at the moment after the leap."""
    del session_leaves_nothing
    require("a wall clock of its own", os.geteuid() == 0, "mounting takes root")
    require("a C compiler", compiler(), "apt-get install -y gcc libc6-dev")
    folder = tmp_path_factory.mktemp("clock")
    clock = WallClock(folder)
    require("a wall clock of its own", not clock.missing(), clock.missing())
    config = folder / "vsm.toml"
    config.write_text(CONFIG, encoding="utf-8")
    settings = {"WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    with running(config, prefix=clock.prefix, settings=settings) as vsm:
        clients = [Client(vsm.folder, name) for name in ("calls", "waits", "asks")]
        it = World(vsm, clock, request.param, *clients)
        until(lambda: all(it.rows()[name]["state"] == "ready" for name in SERVING))
        _get_busy(it)
        clock.set(it.leap_s)
        it.leapt_s = time.monotonic()
        yield it
        for client in clients:
            client.close()
        assert vsm.stop() == 0


def _get_busy(it: World) -> None:
    """Breakers open, a bucket empty, back-offs running, something granted, slow and held calls."""
    first = it.client.begin("tools/call", name="it__log", arguments={})
    approval = until(lambda: it.approvals()["pending"])[0]["id"]
    assert it.vsm.vsm("approve", approval, "--always-for", "1h").returncode == 0
    assert "result" in it.client.end(first)
    assert "did not answer" in said(it.call("shut", "late"))
    assert "are refused" in said(it.call("shut", "echo"))
    assert all("result" in it.call("rare", "echo") for _ in range(2))
    assert "error" in it.call("rare", "echo")
    until(lambda: it.rows()["never"]["state"] == "backing_off")
    it.rows_before = it.rows()
    it.asking_call = it.asking.begin("tools/call", name="it__progress", arguments={})
    until(lambda: it.approvals()["pending"])
    it.events_before, it.calls_before = it.recorded("events"), it.recorded("calls")
    assert "did not answer" in said(it.call("closes", "late"))
    assert "result" in it.call("paced", "echo")
    it.slow_call = it.slow.begin("tools/call", name="it__slow", arguments={"seconds": 3})
    it.late_call = it.slow.begin("tools/call", name="late__late", arguments={})


def test_every_process_sees_the_clock_leap(world: World) -> None:
    assert "result" in world.call("it", "echo")

    def leapt(what: str) -> list[Any]:
        ahead = [row["at_ns"] / 1e9 - time.time() for row in world.recorded(what)]
        return [one for one in ahead if abs(one - world.leap_s) < SLACK_S]

    assert until(lambda: leapt("events")), "the supervisor, which tells of crashes"
    assert until(lambda: leapt("calls")), "system 1"


def test_calls_in_flight_are_answered_or_time_out(world: World) -> None:
    assert f"did not answer within {LATE_S} s" in said(world.slow.end(world.late_call))
    assert "result" in world.slow.end(world.slow_call)


def test_the_watchdog_is_fed_and_nobody_is_taken_for_hung(world: World) -> None:
    deadline_s, fed = time.monotonic() + BOUND_S, 0
    while fed < 3:
        left_s = deadline_s - time.monotonic()
        assert select.select([world.vsm.notified], [], [], max(0.0, left_s))[0], "not fed"
        fed += world.vsm.notified.recv(4096) == b"WATCHDOG=1" and time.monotonic() > world.leapt_s
    now = world.rows()
    for name in world.rows_before.keys() - CRASHING:
        assert now[name]["pid"] == world.rows_before[name]["pid"], name


def test_a_hung_system_is_still_found(world: World) -> None:
    before = world.rows()["system3"]["pid"]
    os.kill(before, signal.SIGSTOP)
    until(lambda: world.rows()["system3"]["pid"] not in {before, None})
    until(lambda: world.rows()["system3"]["state"] == "ready")


def test_back_off_is_neither_cut_short_nor_prolonged(world: World) -> None:
    soon = world.rows()["soon"]["restarts"]
    until(lambda: world.rows()["soon"]["restarts"] > soon + 1)
    never = world.rows()["never"]
    assert (never["state"], never["restarts"]) == (
        "backing_off",
        world.rows_before["never"]["restarts"],
    )


def test_a_call_times_out_when_its_time_is_over(world: World) -> None:
    began_s = time.monotonic()
    assert f"did not answer within {LATE_S} s" in said(world.call("late", "late"))
    assert LATE_S <= time.monotonic() - began_s < BOUND_S


def test_breakers_close_when_their_time_is_over(world: World) -> None:
    assert "are refused" in said(world.call("shut", "echo")), "for 600 s"
    until(lambda: "result" in world.call("closes", "echo"))
    opened_s = time.monotonic()
    assert "did not answer" in said(world.call("opens", "late"))
    assert "are refused" in said(world.call("opens", "echo"))
    until(lambda: "result" in world.call("opens", "echo"))
    assert time.monotonic() - opened_s > OPEN_S / 2


def test_rates_go_by_time_that_passes(world: World) -> None:
    assert "error" in world.call("rare", "echo"), "nothing was filled up by the leap"
    began_s = time.monotonic()
    assert all("result" in world.call("paced", "echo") for _ in range(3))
    assert PACE_S < time.monotonic() - began_s < BOUND_S


def test_approvals_wait_and_end_by_time_that_passes(world: World) -> None:
    shown = world.approvals()
    (held,) = shown["pending"]
    assert 0 < held["left_s"] <= ASK_S
    (granted,) = shown["grants"]
    passed_s = time.monotonic() - world.leapt_s
    assert 3600 - passed_s - BOUND_S < granted["left_s"] <= 3600
    assert "result" in world.call("it", "log"), "nobody is asked"
    said_s = world.vsm.vsm("approve", held["id"], "--always-for", f"{GRANT_S}s").returncode
    assert said_s == 0
    assert "result" in world.asking.end(world.asking_call)
    until(lambda: [one["name"] for one in world.approvals()["grants"]] == ["log"])
    asked = world.asking.begin("tools/call", name="it__progress", arguments={})
    approval = until(lambda: world.approvals()["pending"])[0]["id"]
    assert world.vsm.vsm("deny", approval).returncode == 0
    assert "error" in world.asking.end(asked), "a year is over, or not: it was asked anew"


def test_the_journal_keeps_its_records_and_their_order(world: World) -> None:
    before = world.rows()["journal"]["pid"]
    os.kill(before, signal.SIGKILL)  # the next one trims at once
    until(lambda: world.rows()["journal"]["pid"] not in {before, None})
    until(lambda: world.recorded("events", "--kind", "worker.ready", "--worker", "system3"))
    rows = world.recorded("events")
    kept = {row["id"]: row for row in rows}
    assert all(kept.get(row["id"]) == row for row in world.events_before)
    of_one = [row["monotonic_ns"] for row in rows if row["source"] == "supervisor"]
    assert of_one == sorted(of_one)
    kept = {row["id"]: row for row in world.recorded("calls")}
    assert all(kept.get(row["id"]) == row for row in world.calls_before)


@pytest.mark.parametrize("what", ["events", "calls", "audit"])
def test_since_counts_the_time_that_has_passed(world: World, what: str) -> None:
    before = world.events_before if what == "events" else world.calls_before
    ids = {row["id"] for row in before}
    assert ids <= {row["id"] for row in world.recorded(what, "--since", "10m")}
    since_s = max(1, int(time.monotonic() - world.leapt_s) - 1)
    newer = world.recorded(what, "--since", f"{since_s}s")
    assert not ids & {row["id"] for row in newer}
    try:
        world.clock.set(0)  # put right: what the wrong clock recorded is as old as it is
        assert ids <= {row["id"] for row in world.recorded(what, "--since", "10m")}
        assert not {row["id"] for row in world.recorded(what, "--since", "1s")} & ids
    finally:
        world.clock.set(world.leap_s)
