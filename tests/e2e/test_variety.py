"""Variety of a running vsm, end to end: an idle one, demand that nobody serves, deaths."""

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import running
from supervised import state, variety

SERVERS = Path(__file__).resolve().parents[1] / "servers"
BOUND_S = 60.0
CONFIG = f"""
[control]
interval_s = 0.5
[integrations.it]
command = ["/usr/bin/python3", "-SI", "{SERVERS}/outcomes.py"]
read = ["{SERVERS}"]
"""


class Client:
    """A legacy client on the unix socket, frame by frame."""

    def __init__(self, folder: Path) -> None:
        import socket

        self._id = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(folder / "run/mcp.sock"))
        self._lines = self._socket.makefile("rb")
        information = {"name": "test", "version": "1"}
        self.ask(
            "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=information
        )
        self._send({"method": "notifications/initialized"})

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._id += 1
        self._send({"id": self._id, "method": method, "params": params})
        while True:
            answer: dict[str, Any] = json.loads(self._lines.readline())
            if answer.get("id") == self._id:
                return answer

    def call(self, tool: str, times: int = 1) -> None:
        for _ in range(times):
            self.ask("tools/call", name=tool, arguments={})

    def tell(self, tool: str, *, modern: bool) -> dict[str, Any]:
        """What a call of one of vsm's own tools says, checked against its text."""
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        }
        envelope = {"_meta": meta} if modern else {}
        result = self.ask("tools/call", name=tool, arguments={}, **envelope)["result"]
        assert not result["isError"]
        assert ("resultType" in result) is modern
        found: dict[str, Any] = result["structuredContent"]
        assert json.loads(result["content"][0]["text"]) == found
        return found

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture(scope="module")
def vsm(
    tmp_path_factory: pytest.TempPathFactory, session_leaves_nothing: None
) -> Iterator[running.Running]:
    del session_leaves_nothing
    config = tmp_path_factory.mktemp("variety") / "vsm.toml"
    config.write_text(CONFIG, encoding="utf-8")
    with running.running(config) as it:
        yield it
        assert it.stop() == 0


def test_the_story_of_a_demand_that_nobody_serves(vsm: running.Running) -> None:
    idle = vsm.vsm("variety")
    assert "not enough evidence: nobody asked for anything" in idle.stdout, idle.stderr
    assert variety(vsm)["since_start"]["figures"] is None

    client = Client(vsm.folder)
    client.call("it__works", 40)
    client.call("it__quotes", 40)
    served = variety(vsm)["recent"]
    assert served["events"] == 80
    assert served["figures"]["requisite_ratio"]["measured"] == 1.0
    assert served["figures"]["environmental_bits"]["measured"] == 1.0
    assert served["figures"]["gap_by_class"] == []

    client.call("translate", 20)
    after = variety(vsm)["recent"]
    absorbed, part = 2 * -0.4 * math.log2(0.4), -0.2 * math.log2(0.2)
    figures = after["figures"]
    assert figures["requisite_ratio"]["measured"] == pytest.approx(absorbed / (absorbed + part))
    assert figures["gap_bits"]["measured"] == pytest.approx(part)
    (share,) = figures["gap_by_class"]
    assert (share["integration"], share["demand"]) == ("(nobody)", "translate")
    assert figures["information"]["mutual_bits"] == pytest.approx(
        -0.8 * math.log2(0.8) - 0.2 * math.log2(0.2)
    )
    told = vsm.vsm("variety").stdout
    assert "requisite ratio" in told
    assert "translate" in told
    client.close()


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_vsm_tells_models_what_it_is_can_do_and_lacks(vsm: running.Running, era: str) -> None:
    client = Client(vsm.folder)
    client.call("it__works", 40)
    client.call("spoken \x1b[31mred", 2)
    before = variety(vsm)["since_start"]["events"]
    said = {
        name: client.tell(f"vsm__{name}", modern=era == "modern")
        for name in ("status", "variety", "capabilities", "limitations")
    }
    client.close()
    assert {w["name"] for w in said["status"]["workers"]} >= {"it", "system1", "system5"}
    (it,) = said["capabilities"]["integrations"]
    assert (it["name"], it["state"], it["tools"]) == ("it", "ready", 8)
    assert it["answered_well"]["low"] < it["answered_well"]["share"] <= 1.0
    unmet = [row["demand"] for row in said["limitations"]["asked_for_and_not_served"]]
    assert "> spoken  [31mred" in unmet
    assert all(row["demand"].startswith("> ") for row in said["variety"]["since_start"]["unmet"])
    assert "no rules configured" in said["limitations"]["systems_lack"]["system5"]
    assert variety(vsm)["since_start"]["events"] == before, "its own tools are no demand"


def test_vsms_own_tools_can_be_turned_off(tmp_path: Path, session_leaves_nothing: None) -> None:
    del session_leaves_nothing
    config = tmp_path / "vsm.toml"
    config.write_text("[gateway]\nintrospection = false\n", encoding="utf-8")
    with running.running(config) as it:
        client = Client(it.folder)
        assert client.ask("tools/list")["result"]["tools"] == []
        assert "Unknown tool" in str(client.ask("tools/call", name="vsm__status", arguments={}))
        client.close()
        assert it.stop() == 0


def test_control_and_coordination_hear_how_calls_ended(vsm: running.Running) -> None:
    client = Client(vsm.folder)
    client.call("it__fails", 2)
    client.close()
    end = time.monotonic() + BOUND_S
    while True:
        heard = [state(vsm, name)["last_summary"] for name in ("system2", "system3")]
        if all(one and one["integrations"]["it"].get("tool_error") for one in heard):
            return
        assert time.monotonic() < end, heard
        time.sleep(0.05)  # S1 summarises every five seconds


def test_board_dump_shows_every_count(vsm: running.Running) -> None:
    client = Client(vsm.folder)
    client.call("it__refuses", 3)
    client.close()
    dump = json.loads(vsm.vsm("board", "dump", "--json").stdout)
    demand = dump["demand"]["integrations"]["it"]
    assert demand["classes"]["refuses"] == [0, 0, 3, 0, 0, 0]
    assert sum(demand["latency"]) == demand["events"]
    sizes = dump["demand"]["bytes"] + dump["resources"]["bytes"] + dump["channel_bytes"]
    assert sizes <= 5000 + 2300
    assert set(dump["heartbeats"]) == {f"system{n}" for n in range(1, 6)}
    assert all(row["sufficient"] for row in dump["channels"])
    assert "refuses" in vsm.vsm("board", "dump").stdout


def test_board_shows_what_an_integration_uses_without_any_budget(vsm: running.Running) -> None:
    """And with the supervisor's own word beside it: the kernel counts in the same group."""
    (worker,) = [w for w in vsm.status()["workers"] if w["kind"] == "integration"]
    states = {layer["name"]: layer["state"] for layer in worker["layers"]}
    if states.get("memory") != "in force":
        pytest.skip("no control group holds memory here")
    end = time.monotonic() + BOUND_S
    while True:
        found = json.loads(vsm.vsm("board", "dump", "--json").stdout)["resources"]
        if "it" in found["integrations"]:
            break
        assert time.monotonic() < end, vsm.log()
        time.sleep(0.1)
    sample = found["integrations"]["it"]
    assert found["sampled_s_ago"] < 60
    assert 1 << 20 < sample["memory_bytes"] < 1 << 29
    assert sample["processes"] is None or 1 <= sample["processes"] < 50
    assert "TASKS" in vsm.vsm("board", "dump").stdout


@pytest.mark.parametrize("name", ["system1", "system4"])
def test_counts_outlive_the_systems_that_keep_them(vsm: running.Running, name: str) -> None:
    before = variety(vsm)["since_start"]["events"]
    systems = {worker["name"]: worker for worker in vsm.status()["workers"]}
    os.kill(systems[name]["pid"], signal.SIGKILL)
    _wait_replaced(vsm, name, systems[name]["pid"])
    client = Client(vsm.folder)
    client.call("it__works", 5)
    client.close()
    found = variety(vsm)
    assert found["since_start"]["events"] == before + 5
    assert found["recent"]["events"] == before + 5, "vsm is younger than a half-life"


def _wait_replaced(vsm: running.Running, name: str, pid: int) -> None:
    """Until the successor serves; the control socket has nothing to wait on."""
    end = time.monotonic() + BOUND_S
    while True:
        worker = next(one for one in vsm.status()["workers"] if one["name"] == name)
        if worker["state"] == "ready" and worker["pid"] != pid:
            return
        assert time.monotonic() < end, f"{name} was not replaced:\n{vsm.log()}"
        time.sleep(0.05)
