"""S3 and S4 in conflict on a running vsm: S5 decides by its rule, the loser does not move.

"near" is short of memory now; "far" has it, and S4 sees demand for "far" rise. What S4 proposes
first stands when S3 wants to take from "far".
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import Running, running
from supervised import pause, state
from wire_client import Client

SERVERS = Path(__file__).resolve().parents[1] / "servers"
BOUND_S = 60.0
STEP_S = 0.2
QUIET_STEPS = 70
BURST = 25  # calls in a step; one before
MIB = 2**20
PROFILE = 'extends = "python-server"\n[limits]\nmemory = "{}M"\n'
CONFIG = """
[intelligence]
step_s = {step_s}
season_steps = 1000
[policy]
weight_of_future = {weight}
[control]
memory = "400M"
interval_s = 0.2
audit_interval_s = 0
[integrations.near]
command = ["/usr/bin/python3", "-SI", "{server}"]
read = ["{folder}"]
profile = "{folder_of_profiles}/near.toml"
range = {{ memory = ["96M", "256M"] }}
[integrations.far]
command = ["/usr/bin/python3", "-SI", "{server}"]
read = ["{folder}"]
profile = "{folder_of_profiles}/far.toml"
range = {{ memory = ["64M", "512M"] }}
"""


@contextmanager
def demand(folder: Path) -> Iterator[Callable[[int], None]]:
    """Calls of "far" at an even pace, so many in a step; how many is told to what this gives."""
    client, stop, pace = Client(folder), threading.Event(), [1]

    def run() -> None:
        next_s = time.monotonic()
        while not stop.is_set():
            client.call_many("far__hold", pace[0], mib=1)
            next_s = max(next_s + STEP_S, time.monotonic())
            stop.wait(next_s - time.monotonic())

    def set_pace(calls: int) -> None:
        pace[0] = calls

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield set_pace
    finally:
        stop.set()
        thread.join()
        client.close()


def wait(vsm: Running, system: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    end = time.monotonic() + BOUND_S
    while not holds(seen := state(vsm, system)):
        assert time.monotonic() < end, f"{json.dumps(seen)}\n{vsm.log()}"
        pause(0.05)
    return seen


def held(seen: dict[str, Any]) -> dict[str, float]:
    claims = seen["budget"]["memory"]["claims"]
    return {one["name"]: one["held"] / MIB for one in claims}


def decisions(vsm: Running, *words: str) -> list[dict[str, Any]]:
    done = vsm.vsm("decisions", "--json", *words)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def conflict(vsm: Running) -> list[dict[str, Any]]:
    """What S5 decided of S3's proposal against S4's."""
    rows = decisions(vsm, "--source", "system5")
    return [row for row in rows if row["rule"] == "closure.conflict"]


@contextmanager
def conflicting(tmp_path: Path, *, weight: float, lost: int) -> Iterator[Running]:
    """A running vsm in which the conflict has been decided."""
    config = tmp_path / "vsm.toml"
    for name, mib in (("near", 100), ("far", 300)):
        (tmp_path / f"{name}.toml").write_text(PROFILE.format(mib), encoding="utf-8")
    text = CONFIG.format(
        server=SERVERS / "hungry.py",
        folder=SERVERS,
        folder_of_profiles=tmp_path,
        step_s=STEP_S,
        weight=weight,
    )
    config.write_text(text, encoding="utf-8")
    with running(config) as vsm:
        vsm.wait_serving()  # who does not serve yet claims nothing
        samples = state(vsm, "system3")["samples"]
        seen = wait(vsm, "system3", lambda s: s["samples"] > samples + 1)
        if not seen["budget"]["memory"]["claims"]:
            assert vsm.stop() == 0
            pytest.skip("no control group holds memory here")
        wait(vsm, "system3", lambda s: held(s) == {"near": 100.0, "far": 300.0})
        client = Client(vsm.folder)
        client.call_many("near__hold", mib=30)
        with demand(vsm.folder) as pace:
            began = state(vsm, "system4")["steps"]
            wait(vsm, "system4", lambda s: s["steps"] >= began + QUIET_STEPS)
            if lost:  # what "near" leaves unanswered is what S3 has to gain
                client.call_many("near__fail", lost)
            pace(BURST)
            wait(vsm, "system3", lambda s: "far" in (s["outlook"] or {}).get("rising", ()))
            client.call_many("near__hold", mib=88)
            end = time.monotonic() + BOUND_S
            while not conflict(vsm):
                assert time.monotonic() < end, f"{state(vsm, 'system3')}\n{vsm.log()}"
        client.close()
        yield vsm
        assert vsm.stop() == 0


def outcome(vsm: Running, key: str) -> dict[str, Any]:
    """What stands beside a decision, once something does."""
    end = time.monotonic() + BOUND_S
    while (row := next(r for r in decisions(vsm) if r["key"] == key))["outcome"] is None:
        assert time.monotonic() < end, row
        pause(0.05)
    found: dict[str, Any] = row["outcome"]
    return found


def test_where_the_future_weighs_more_nothing_is_taken_from_it(
    tmp_path: Path, session_leaves_nothing: None
) -> None:
    del session_leaves_nothing
    with conflicting(tmp_path, weight=1.0, lost=0) as vsm:
        (row,) = conflict(vsm)
        assert (row["choice"], row["subject"]) == ("refused", "far")
        assert row["inputs"]["sender"] == "system3"
        assert row["inputs"]["to_value"] < row["inputs"]["from_value"]
        assert "not more" in row["inputs"]["reasons"][0]
        (theirs,) = [r for r in decisions(vsm) if r["rule"] == "closure.unopposed"]
        assert (theirs["choice"], theirs["inputs"]["sender"]) == ("approved", "system4")
        assert outcome(vsm, row["key"]) == {"state": "not carried out", "held": 300.0 * MIB}
        samples = state(vsm, "system3")["samples"]
        seen = wait(vsm, "system3", lambda s: s["samples"] > samples + 3)
        assert held(seen) == {"near": 100.0, "far": 300.0}, "the loser's move did not come"
        assert decisions(vsm, "--rule", "budget.lower.budget") == []


def test_where_the_present_weighs_more_s3_takes_and_s4_is_revoked(
    tmp_path: Path, session_leaves_nothing: None
) -> None:
    del session_leaves_nothing
    with conflicting(tmp_path, weight=0.0, lost=400) as vsm:
        (row,) = conflict(vsm)
        assert (row["choice"], row["inputs"]["sender"]) == ("approved", "system3")
        done = outcome(vsm, row["key"])
        assert done["state"] == "in force"
        assert done["to"] < done["from"] == 300.0 * MIB
        (theirs,) = [r for r in decisions(vsm) if r["rule"] == "closure.unopposed"]
        assert outcome(vsm, theirs["key"]) == {
            "state": "revoked",
            "revoked_by": f"system3's proposal {row['inputs']['id']}",
        }
        seen = wait(vsm, "system3", lambda s: held(s)["near"] > 100)
        assert held(seen)["far"] < 300
        assert sum(held(seen).values()) <= 400
