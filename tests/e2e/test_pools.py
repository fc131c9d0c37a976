"""S3 moves how many instances pools may have, on a running vsm with slow servers."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running, running
from supervised import ask, pause, state
from wire_client import Client

SERVERS = Path(__file__).resolve().parents[1] / "servers"
BOUND_S = 120.0
REST_S = 0.25
IN_FLIGHT = 12
SHARE, MOST, BUDGET = 3, 6, 7
CAP_PER_S = SHARE / REST_S
"""No more calls than that can be answered by as many instances as a pool has at first."""
COUNTED = 60
CONFIG = """
[control]
instances = {budget}
interval_s = 0.5
audit_interval_s = 0
[integrations.slow]
command = ["/usr/bin/python3", "-SI", "{server}"]
read = ["{folder}"]
instances = "pool"
pool_max = {most}
[integrations.other]
command = ["/usr/bin/python3", "-SI", "{server}"]
read = ["{folder}"]
instances = "pool"
pool_max = {most}
"""


@pytest.fixture
def vsm(tmp_path: Path, session_leaves_nothing: None) -> Iterator[Running]:
    del session_leaves_nothing
    path = tmp_path / "vsm.toml"
    text = CONFIG.format(server=SERVERS / "hungry.py", folder=SERVERS, budget=BUDGET, most=MOST)
    path.write_text(text, encoding="utf-8")
    with running(path) as it:
        it.wait_serving()
        yield it
        assert it.stop() == 0, it.log()


class Flood:
    """So many calls in flight, until it is ended; what fails is told then."""

    def __init__(self, vsm: Running, pool: str) -> None:
        self.answered = 0
        self.failed: list[Any] = []
        self._client = Client(vsm.folder)
        self._pool = pool
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pour)
        self._thread.start()

    def _pour(self) -> None:
        for _ in range(IN_FLIGHT):
            self._begin()
        in_flight = IN_FLIGHT
        while in_flight:
            answer = self._client.next()
            if "result" in answer:
                self.answered += 1
            else:
                self.failed.append(answer)
            in_flight -= 1
            if not self._stop.is_set():
                self._begin()
                in_flight += 1

    def _begin(self) -> None:
        arguments = {"seconds": REST_S}
        self._client.begin("tools/call", name=f"{self._pool}__rest", arguments=arguments)

    def per_s(self) -> float:
        """How many are answered in a second, over so many answers."""
        before, began = self.answered, time.monotonic()
        until(lambda: self.answered >= before + COUNTED)
        return (self.answered - before) / (time.monotonic() - began)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()
        assert self.failed == []


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < end
        pause(0.05)


def claims(vsm: Running) -> dict[str, float]:
    """How many each may have, by S3."""
    rows = state(vsm, "system3")["budget"]["instances"]["claims"]
    return {row["name"]: row["held"] for row in rows}


def bound(vsm: Running, pool: str) -> dict[str, str]:
    """The same by `vsm limit`."""
    done = vsm.vsm("limit", pool, "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, str]] = json.loads(done.stdout)["held"]
    return next(row for row in rows if row["key"] == "instances")


def instances(vsm: Running, pool: str) -> int:
    rows = ask(vsm, "status")["workers"]
    return sum(row["kind"] == "instance" and row["integration"] == pool for row in rows)


def moves(vsm: Running, pool: str) -> list[dict[str, Any]]:
    done = vsm.vsm("decisions", "--source", "system3", "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return [r for r in rows if r["subject"] == pool and r["choice"].startswith("instances")]


def test_pool_whose_calls_queue_gets_the_room_of_an_idle_one_and_answers_more(
    vsm: Running,
) -> None:
    until(lambda: claims(vsm) == {"slow": SHARE, "other": SHARE})  # within the budget, both idle
    assert bound(vsm, "slow")["detail"] == f"from 1 to {MOST}; set by system 3"
    flood = Flood(vsm, "slow")
    try:
        until(lambda: claims(vsm) == {"slow": MOST, "other": 1})
        until(lambda: instances(vsm, "slow") == MOST)
        until(lambda: flood.per_s() > CAP_PER_S * 1.2)
        until(lambda: all(row["outcome"] for row in moves(vsm, "slow")))
    finally:
        flood.end()
    raised = next(row for row in moves(vsm, "slow") if row["rule"] == "budget.raise.need")
    assert raised["inputs"]["crowded_share"] > 0.05
    assert raised["inputs"]["in_flight"] > raised["inputs"]["held"]
    outcome = raised["outcome"]
    assert outcome["state"] == "in force"
    before, after = outcome["answered_per_s"]
    assert after > before
    rows = json.loads(vsm.vsm("reflect", "--json").stdout)["learned"]
    (row,) = [
        row
        for row in rows
        if (row["rule"], row["choice"]) == ("budget.raise.need", "instances of slow")
    ]
    assert row["before_after"]["figure"] == "answers per second"
    assert row["before_after"]["after"] > row["before_after"]["before"]
    client = Client(vsm.folder)
    about = {"about": "slow"}
    told = client.ask("tools/call", name="vsm__explain_decision", arguments=about)
    assert f"instances {MOST}" in json.dumps(told)
    client.close()
    # The other way round: who is idle now gives, and no call in flight is cut.
    flood = Flood(vsm, "other")
    try:
        until(lambda: claims(vsm) == {"slow": 1, "other": MOST})
        until(lambda: instances(vsm, "slow") == 1)
        until(lambda: instances(vsm, "other") == MOST)
    finally:
        flood.end()


def test_without_a_move_of_s3_the_calls_go_on_queueing(vsm: Running) -> None:
    """The control: an operator holds the bound where S3 had put it."""
    until(lambda: claims(vsm) == {"slow": SHARE, "other": SHARE})
    assert vsm.vsm("limit", "slow", f"instances={SHARE}").returncode == 0
    assert bound(vsm, "slow")["detail"].endswith("set by command")
    flood = Flood(vsm, "slow")
    try:
        until(lambda: instances(vsm, "slow") == SHARE)
        samples = state(vsm, "system3")["samples"]
        # Twice: who is held up counts for once what was answered meanwhile.
        assert min(flood.per_s(), flood.per_s()) <= CAP_PER_S * 1.2
        until(lambda: state(vsm, "system3")["samples"] > samples + 25)
        assert claims(vsm)["slow"] == instances(vsm, "slow") == SHARE
        assert vsm.vsm("limit", "slow", "instances=unlimited").returncode == 0  # S3's again
        until(lambda: claims(vsm) == {"slow": MOST, "other": 1})
        until(lambda: flood.per_s() > CAP_PER_S * 1.2)
    finally:
        flood.end()


def pid_of(vsm: Running, name: str) -> int:
    rows = ask(vsm, "status")["workers"]
    return next(int(row["pid"] or 0) for row in rows if row["name"] == name)


def test_new_s1_goes_by_the_bounds_that_hold(vsm: Running) -> None:
    def bound_of_s1() -> int:
        s1 = ask(vsm, "status")["systems"].get("system1", {})
        return int(s1.get("integrations", {}).get("slow", {}).get("instances_bound") or 0)

    until(lambda: claims(vsm) == {"slow": SHARE, "other": SHARE})
    until(lambda: bound_of_s1() == SHARE)
    before = pid_of(vsm, "system1")
    os.kill(before, signal.SIGKILL)
    until(lambda: pid_of(vsm, "system1") not in {0, before})
    until(lambda: bound_of_s1() == SHARE)


def test_death_of_s3_leaves_pools_as_configured_until_the_next_one_divides(vsm: Running) -> None:
    until(lambda: claims(vsm) == {"slow": SHARE, "other": SHARE})
    os.kill(pid_of(vsm, "system3"), signal.SIGKILL)

    def released() -> set[str]:
        done = vsm.vsm("events", "--kind", "control.released", "--json")
        return {row["integration"] for row in json.loads(done.stdout or "[]")}

    until(lambda: released() == {"slow", "other"})
    until(lambda: ask(vsm, "status")["systems"].get("system3", {}).get("samples"))
    until(lambda: claims(vsm) == {"slow": SHARE, "other": SHARE})
