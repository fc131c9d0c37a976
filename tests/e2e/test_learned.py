"""What a running vsm learned: which retries, limits and routes helped, by real servers.

Whether a moved limit helped is in test_pools.py and test_regulation.py, whose servers need one.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running, running
from supervised import ask, pause
from wire_client import Client

SERVERS = Path(__file__).resolve().parents[1] / "servers"
BOUND_S = 90.0
NOT_ENOUGH = "not enough evidence"
CONFIG = """
[integrations.flaky]
command = ["/usr/bin/python3", "-SI", "{server}", "dies"]
read = ["{folder}"]
trust = "approve"
restart = {{ intensity = 1000, backoff_initial_s = 0.01, backoff_max_s = 0.05 }}
[integrations.well]
command = ["/usr/bin/python3", "-SI", "{server}", "well"]
read = ["{folder}"]
[integrations.badly]
command = ["/usr/bin/python3", "-SI", "{server}", "badly"]
read = ["{folder}"]
[integrations.pool]
command = ["/usr/bin/python3", "-SI", "{server}", "well"]
read = ["{folder}"]
instances = "pool"
pool_min = 2
pool_max = 2
"""


@pytest.fixture(scope="module")
def vsm(
    tmp_path_factory: pytest.TempPathFactory, session_leaves_nothing: None
) -> Iterator[Running]:
    del session_leaves_nothing
    path = tmp_path_factory.mktemp("learned") / "vsm.toml"
    text = CONFIG.format(server=SERVERS / "flaky.py", folder=SERVERS)
    path.write_text(text, encoding="utf-8")
    with running(path) as it:
        it.wait_serving()
        yield it
        assert it.stop() == 0, it.log()


def until(holds: Callable[[], Any]) -> Any:
    end = time.monotonic() + BOUND_S
    while not (found := holds()):
        assert time.monotonic() < end
        pause(0.1)
    return found


def learned(vsm: Running, rule: str) -> dict[str, dict[str, Any]]:
    """What was learned under a rule, by choice."""
    done = vsm.vsm("reflect", "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["learned"]
    return {row["choice"].removeprefix("> "): row for row in rows if row["rule"] == rule}


def call(client: Client, integration: str, tool: str) -> dict[str, Any]:
    return client.ask("tools/call", name=f"{integration}__{tool}", arguments={})


def test_retries_that_helped_are_told_by_a_running_vsm(vsm: Running) -> None:
    client = Client(vsm.folder)
    until(lambda: "tool fetch" in str(vsm.vsm("trust", "diff", "flaky", "--json").stdout))
    assert vsm.vsm("trust", "approve", "flaky").returncode == 0
    until(lambda: "result" in call(client, "flaky", "fetch"))
    # Whoever dies takes the call along; the next one answers it. Ten such calls are in any budget.
    before = len(pids(vsm, "flaky"))
    for _ in range(20):
        assert "result" in call(client, "flaky", "fetch")
    row = until(lambda: enough(learned(vsm, "gateway.retry")))
    assert row["decisions"] == row["outcomes_known"] == 10
    assert row["turned_out_well"]["share"] == 1.0
    assert 0.6 < row["turned_out_well"]["low"] < 1.0
    assert before == len(pids(vsm, "flaky"))
    answers = [call(client, "flaky", "plain") for _ in range(3)]  # says nothing of itself
    failed = [one["error"]["message"] for one in answers if "error" in one]
    assert failed
    assert "may have run" in failed[0]
    told = client.ask("tools/call", name="vsm__reflect", arguments={})
    assert "send again to flaky" in json.dumps(told)
    client.close()


def enough(rows: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    row = rows.get("send again to flaky")
    return row if row is not None and row["turned_out_well"] is not None else None


def pids(vsm: Running, name: str) -> list[int]:
    rows = ask(vsm, "status")["workers"]
    return [row["pid"] for row in rows if row["integration"] == name and row["pid"]]


def test_of_two_integrations_with_one_tool_the_better_is_told_once_there_is_evidence(
    vsm: Running,
) -> None:
    client = Client(vsm.folder)
    for _ in range(5):
        call(client, "well", "find")
        call(client, "badly", "find")
    rows = until(lambda: learned(vsm, "client.route"))
    assert {row["compared"] for row in rows.values()} == {NOT_ENOUGH}
    for _ in range(35):
        call(client, "well", "find")
        call(client, "badly", "find")

    def verdicts() -> dict[str, str]:
        found = learned(vsm, "client.route")
        return {choice: row["compared"] for choice, row in found.items()}

    expected = {
        "well for find": "better than the others",
        "badly for find": "worse than the others",
    }
    until(lambda: verdicts() == expected)
    assert "better than the others" in vsm.vsm("reflect").stdout
    client.close()


def summarised_calls(vsm: Running) -> int | None:
    """Of the pool, in the last summary of S1, which has looked at the instances by then."""
    state = ask(vsm, "status")["systems"]["system2"] or {}
    summary = state.get("last_summary") or {"integrations": {}}
    row: dict[str, int] = summary["integrations"].get("pool", {})
    return row.get("calls")


def test_instances_of_a_pool_are_told_with_what_each_answered_once_they_have_ended(
    vsm: Running,
) -> None:
    client = Client(vsm.folder)
    for _ in range(40):
        client.begin("tools/call", name="pool__find", arguments={})
    for _ in range(40):
        assert "result" in client.next()
    until(lambda: summarised_calls(vsm))
    until(lambda: summarised_calls(vsm) == 0)
    rows = ask(vsm, "status")["workers"]
    ours = [r for r in rows if r["kind"] == "instance" and r["integration"] == "pool"]
    for one in ours:
        os.kill(one["pid"], signal.SIGKILL)
    names = {one["name"] for one in ours}

    def told() -> list[dict[str, Any]]:
        return [row for name, row in learned(vsm, "gateway.route").items() if name in names]

    until(lambda: sum(row["decisions"] for row in told()) == 40)
    assert {row["compared"] for row in told()} == {NOT_ENOUGH}
    client.close()
