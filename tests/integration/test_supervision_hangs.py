"""Processes that run but no longer serve: noticed, made to say where they hang, replaced."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from running import running
from supervised import (
    BOUND_S,
    SYSTEMS,
    Started,
    Who,
    all_ready,
    ask,
    call,
    left_of,
    rows,
    wait_until,
    write_config,
)

from vsm.processes import pulse
from vsm.processes.launch import LauncherLink

SERVERS = Path(__file__).resolve().parents[1] / "servers"
SPINNING = """
import sys
from vsm.systems import preload
preload.ENTRY = "spinning_systems:enter"
from vsm.cli import main
sys.exit(main())
"""


def test_a_spinning_system_prints_its_stack_and_is_killed_and_replaced(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"PYTHONPATH": str(SERVERS)}
    who = Who(command=(sys.executable, "-c", SPINNING), environment=environment)
    one = Started(tmp_path, write_config(tmp_path, good="well"), who=who)
    one.wait_log("vsm: ready")
    before = rows(one)
    seen = wait_until(one, lambda seen: seen["system4"]["restarts"] == 1 and all_ready(seen))
    untouched = set(before) - {"system4", "good"}
    assert {n: seen[n]["pid"] for n in untouched} == {n: before[n]["pid"] for n in untouched}
    printed = "\n".join(ask(one, "logs", name="system4", lines=500))
    assert "Fatal Python error: Aborted" in printed
    assert "in spin" in printed
    assert "hung: no heartbeat for 3 s" in one.log()
    assert one.end() == 0, one.log()
    assert left_of(one) == []


def test_a_stopped_template_is_noticed_without_an_order_and_replaced(tmp_path: Path) -> None:
    with running(write_config(tmp_path, good="well")) as vsm:
        before = wait_until(vsm, all_ready)
        os.kill(before["template"]["pid"], signal.SIGSTOP)
        seen = wait_until(vsm, lambda seen: seen["template"]["restarts"] == 1 and all_ready(seen))
        assert all(seen[name]["pid"] != before[name]["pid"] for name in SYSTEMS)
        assert seen["good"]["pid"] == before["good"]["pid"]
        assert "hung: no answer for 3 s" in vsm.log()
        assert "hello" in call(vsm, "good", "echo", text="hello")
        assert vsm.stop() == 0
        assert left_of(vsm) == []


def test_a_stopped_launcher_is_killed_and_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "INTERVAL_S", 0.05)

    async def scene() -> None:
        lost = asyncio.Event()
        link = LauncherLink(lambda _worker, _report: None, lost.set)
        await link.start()
        os.kill(link.pid, signal.SIGSTOP)
        await asyncio.wait_for(lost.wait(), BOUND_S)
        await link.close()

    asyncio.run(scene())
