"""Failures on real processes: the breaker, dead letters and their replay, from the command line."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from running import VSM, Running, running
from supervised import state

SERVER = Path(__file__).resolve().parents[1] / "servers/echo_legacy.py"
BOUND_S = 30
IN_FLIGHT = 8
CONFIG = """
[integrations.x]
command = ["/usr/bin/python3", "{server}", "x"]
call_timeout_s = 0.3
[integrations.x.resilience]
failures = 2
successes = 1
open_s = 600
keep_arguments = true
[integrations.y]
command = ["/usr/bin/python3", "{server}", "y"]
"""


@pytest.fixture(scope="module")
def vsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("resilience")
    server = shutil.copy(SERVER, folder)
    config = folder / "vsm.toml"
    config.write_text(CONFIG.format(server=server), encoding="utf-8")
    with running(config) as started:
        yield started
        assert started.stop() == 0


def wait_for(found: Callable[[], Any]) -> Any:
    """What is written by another process within a moment."""
    end = time.monotonic() + BOUND_S
    while not (value := found()):
        assert time.monotonic() < end
    return value


def events(vsm: Running, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(vsm.vsm("events", "--kind", kind, "--json").stdout)
    return rows


def test_a_failing_integration_is_refused_said_so_everywhere_and_replayed_by_hand(
    vsm: Running,
) -> None:
    for _ in range(2):
        failed = vsm.vsm("call", "x", "late", '{"secret": "kept"}')
        assert "did not answer within 0.3 s" in failed.stderr
    refused = vsm.vsm("call", "x", "echo")
    assert "calls are refused for now" in refused.stderr
    assert "breaker open: calls are refused" in vsm.vsm("status").stdout
    (opened,) = wait_for(lambda: events(vsm, "breaker.open"))
    assert (opened["integration"], opened["severity"]) == ("x", "warning")
    pain = wait_for(lambda: state(vsm, "system5")["signals"])
    assert pain[-1]["severity"] == "pain"
    assert pain[-1]["subject"] == "x"

    letters = json.loads(vsm.vsm("dead-letters", "--json").stdout)
    assert [letter["detail"]["what"] for letter in letters] == ["late", "late"]
    assert letters[0]["detail"]["may_have_run"] is True
    listed = vsm.vsm("dead-letters").stdout
    assert "late" in listed
    assert "perhaps" in listed
    number = str(letters[0]["id"])
    assert '> {"secret": "kept"}' in vsm.vsm("dead-letters", "show", number).stdout

    nobody = vsm.vsm("dead-letters", "replay", number)
    assert (nobody.returncode, "Say --yes" in nobody.stderr) == (1, True)
    assert "calls are refused" in vsm.vsm("dead-letters", "replay", number, "--yes").stderr
    replayed = wait_for(lambda: events(vsm, "call.replayed"))
    assert replayed[0]["detail"] == {"letter": letters[0]["id"], "outcome": "error"}

    assert vsm.vsm("restart", "x").returncode == 0  # the new server is tried at once
    assert vsm.vsm("call", "x", "echo").returncode == 0
    wait_for(lambda: events(vsm, "breaker.closed"))
    assert "breaker" not in vsm.vsm("status").stdout


def test_a_session_of_connect_outlives_the_gateway(vsm: Running) -> None:
    def ask(number: int, method: str, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()

    def answer(number: int) -> dict[str, Any]:
        while (message := json.loads(process.stdout.readline())).get("id") != number:
            pass
        return dict(message)

    process: Any
    with subprocess.Popen(
        [VSM, "connect"], env=vsm.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        ask(0, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={})
        assert "result" in answer(0)
        ask(1, "tools/call", name="y__slow", arguments={"seconds": 600})
        wait_for(lambda: _integration(vsm)["in_flight"])
        operations = next(w for w in vsm.status()["workers"] if w["name"] == "system1")
        os.kill(operations["pid"], signal.SIGKILL)
        assert "may have run" in answer(1)["error"]["message"]
        ask(2, "tools/call", name="y__echo", arguments={})
        assert "result" in answer(2)
        process.stdin.close()
        assert process.wait(BOUND_S) == 0


def test_a_restart_by_command_under_load_fails_no_call(vsm: Running) -> None:
    wrong: list[Any] = []
    answered = [0]
    enough = threading.Event()

    def load() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(vsm.folder / "run/mcp.sock"))
            with connection.makefile("rwb", buffering=0) as lines:
                first = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}}
                message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": first}
                lines.write(json.dumps(message).encode() + b"\n")
                lines.readline()
                number = under_way = 0
                while not enough.is_set() or under_way:
                    while under_way < IN_FLIGHT and not enough.is_set():
                        number, under_way = number + 1, under_way + 1
                        params = {"name": "y__slow", "arguments": {"seconds": 0.005}}
                        call = {"jsonrpc": "2.0", "id": number, "method": "tools/call"}
                        lines.write(json.dumps(call | {"params": params}).encode() + b"\n")
                    answer = json.loads(lines.readline())
                    if "id" in answer:
                        under_way -= 1
                        answered[0] += 1
                        wrong.extend([answer] if "result" not in answer else [])

    def answered_more_than(number: int) -> bool:
        return answered[0] > number

    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        pids = set()
        for _ in range(2):
            before = answered[0]
            wait_for(partial(answered_more_than, before + 50))
            pids.add(next(w["pid"] for w in vsm.status()["workers"] if w["name"] == "y"))
            assert vsm.vsm("restart", "y").returncode == 0
    finally:
        enough.set()
        for client in clients:
            client.join(BOUND_S)
    assert wrong == []
    assert len(pids) == 2


def _integration(vsm: Running) -> dict[str, Any]:
    return dict(state(vsm, "system1")["integrations"]["y"])


def test_a_letter_without_arguments_or_of_another_kind_is_not_replayed(vsm: Running) -> None:
    absent = vsm.vsm("dead-letters", "replay", "999999", "--yes")
    assert (absent.returncode, "there is none" in absent.stderr) == (5, True)
    other = str(wait_for(lambda: events(vsm, "vsm.started"))[0]["id"])
    assert vsm.vsm("dead-letters", "show", other).returncode == 5
    path = vsm.folder / "state/journal.db"
    with contextlib.closing(sqlite3.connect(path, timeout=BOUND_S)) as journal:
        found = journal.execute("SELECT count(*) FROM events WHERE kind = 'call.replayed'")
        assert found.fetchone()[0] <= 1
