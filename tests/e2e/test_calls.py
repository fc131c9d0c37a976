"""Who called what: every call is in the record once, over deaths of those who write it."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import Raw
from running import Running, running

SERVER = Path(__file__).resolve().parents[1] / "servers/echo_legacy.py"
CONFIG = """
[gateway]
audit = "{audit}"
audit_rate = {rate}
[integrations.a]
command = ["/usr/bin/python3", {server}]
read = [{folder}]
profile = "python-server"
"""
BOUND_S = 30.0
MEANT = "a-secret-of-the-arguments"


@pytest.fixture
def write(test_leaves_nothing: None, tmp_path: Path) -> Callable[..., Path]:
    del test_leaves_nothing

    def written(audit: str, rate: int = 1000) -> Path:
        path = tmp_path / "vsm.toml"
        server, folder = json.dumps(str(SERVER)), json.dumps(str(SERVER.parent))
        path.write_text(CONFIG.format(audit=audit, rate=rate, server=server, folder=folder))
        return path

    return written


def calls(vsm: Running, *words: str) -> list[dict[str, Any]]:
    done = vsm.vsm("calls", "-n", "1000", *words, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def call(vsm: Running, tool: str) -> None:
    vsm.vsm("call", "a", tool, json.dumps({"text": MEANT}))


def wait_calls(vsm: Running, least: int, *words: str) -> list[dict[str, Any]]:
    end = time.monotonic() + BOUND_S
    while len(found := calls(vsm, *words)) < least:
        assert time.monotonic() < end, found[-3:]
        time.sleep(0.05)
    return found


def kill(vsm: Running, name: str) -> None:
    pid = next(row["pid"] for row in vsm.status()["workers"] if row["name"] == name)
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + BOUND_S
    while not any(
        row["name"] == name and row["pid"] not in (None, pid) and row["state"] == "ready"
        for row in vsm.status()["workers"]
    ):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_every_call_is_recorded_once_whoever_dies(write: Callable[..., Path]) -> None:
    with running(write("all")) as vsm:
        for tool in ("echo", "nothing", "echo"):
            call(vsm, tool)
        wait_calls(vsm, 3)
        kill(vsm, "calls")
        call(vsm, "echo")
        wait_calls(vsm, 4)
        kill(vsm, "system1")
        call(vsm, "echo")
        rows = wait_calls(vsm, 5)
        kinds = Counter(row["kind"] for row in rows)
        assert kinds == {"call.ok": 4, "call.unserved": 1}
        served = [row for row in rows if row["kind"] == "call.ok"]
        assert {row["integration"] for row in served} == {"a"}
        assert {row["detail"]["what"] for row in served} == {"echo"}
        assert {row["source"] for row in served} == {f"unix:{os.geteuid()}"}
        assert all(row["detail"]["ms"] > 0 for row in served)
        assert all(row["detail"]["bytes_in"] > len(MEANT) for row in served)
        assert all(row["detail"]["bytes_out"] > len(MEANT) for row in served)
        assert MEANT not in json.dumps(rows)
        shown = vsm.vsm("calls", "--since", "1h", "--outcome", "ok", "--integration", "a").stdout
        assert len(shown.splitlines()) == 4
        assert "a/echo" in shown
        assert calls(vsm, "--client", "http:nobody") == []
        exported = vsm.vsm("audit", "--since", "1h").stdout
        assert [json.loads(line) for line in exported.splitlines()] == rows
        assert len(vsm.vsm("audit", "--since", "1h", "a").stdout.splitlines()) == 4
        assert vsm.vsm("audit", "--since", "2099-01-01T00:00").stdout == ""
        assert "--since WHEN" in vsm.vsm("audit").stderr
        assert vsm.stop() == 0
        assert len(calls(vsm)) == 5  # without a running vsm, too


def test_all_is_every_call_of_many_at_once(write: Callable[..., Path]) -> None:
    made = 3000

    async def flood(vsm: Running) -> None:
        client = await Raw.connect(str(vsm.folder / "run/mcp.sock"))
        await client.initialize()
        for first in range(0, made, 200):
            for number in range(first, first + 200):
                params = {"name": "a__echo", "arguments": {"n": number}}
                client.send(id=number, method="tools/call", params=params)
            for _ in range(200):
                assert "result" in await client.receive()
        await client.close()

    with running(write("all", rate=1)) as vsm:
        vsm.wait_serving()
        asyncio.run(flood(vsm))
        wait_calls(vsm, made, "-n", "5000")
        exported = vsm.vsm("audit", "--since", "1h", "a").stdout.splitlines()
        assert Counter(json.loads(line)["kind"] for line in exported) == {"call.ok": made}
        assert vsm.stop() == 0


def test_beyond_the_rate_calls_are_counted(write: Callable[..., Path]) -> None:
    with running(write("counted", rate=1)) as vsm:
        made = 6
        for _ in range(made):
            call(vsm, "echo")
        end = time.monotonic() + BOUND_S
        while True:
            rows = calls(vsm)
            recorded = sum(row["kind"] == "call.ok" for row in rows)
            counted = sum(r["detail"]["count"] for r in rows if r["kind"] == "calls.dropped")
            if recorded + counted == made:
                break
            assert time.monotonic() < end, rows
            time.sleep(0.05)
        assert recorded >= 1
        assert vsm.stop() == 0


def test_control_without_a_record_there_is_no_process_and_no_file(
    write: Callable[..., Path],
) -> None:
    with running(write("off")) as vsm:
        call(vsm, "echo")
        assert "calls" not in {row["name"] for row in vsm.status()["workers"]}
        assert not (vsm.folder / "state/calls.db").exists()
        assert vsm.vsm("calls").returncode != 0
        assert vsm.stop() == 0
