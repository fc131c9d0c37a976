"""Who may say what to the supervisor: a system that says another's words is not heard."""

import os
import sys
from pathlib import Path

from supervised import (
    Started,
    Who,
    all_ready,
    ask,
    left_of,
    rows,
    wait_until,
    write_config,
)

SERVERS = Path(__file__).resolve().parents[1] / "servers"
LYING = """
import sys
from vsm.systems import preload
preload.ENTRY = "lying_systems:enter"
from vsm.cli import main
sys.exit(main())
"""


def test_a_system_that_says_what_others_may_say_changes_nothing(tmp_path: Path) -> None:
    environment = dict(os.environ) | {"PYTHONPATH": str(SERVERS)}
    who = Who(command=(sys.executable, "-c", LYING), environment=environment)
    one = Started(tmp_path, write_config(tmp_path, good="well"), who=who)
    one.wait_log("intelligence.lied")  # what it said before was read before
    seen = wait_until(one, all_ready)
    assert {name: row["restarts"] for name, row in seen.items() if row["restarts"]} == {}
    assert "a lie" not in one.log()
    assert ask(one, "status")["pains"] == []
    held = {row["key"]: row["value"] for row in ask(one, "limit", name="good", limits={})["held"]}
    assert held["processes"] != "1"
    assert rows(one)["good"]["pid"] == seen["good"]["pid"]
    assert one.end() == 0, one.log()
    assert left_of(one) == []
