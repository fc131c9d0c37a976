"""Which steps of a restart group become which records."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vsm.configuration.config import Journal
from vsm.core import restart
from vsm.errors import ConfinementError
from vsm.link import LinkStatistics
from vsm.logs import logger
from vsm.supervision.group import GroupRunner
from vsm.supervision.recorder import Recorder

EVENT_FIELDS = (
    "tag", "at_ns", "monotonic_ns", "source", "kind", "worker", "integration", "severity", "detail",
)  # fmt: skip


class Idle:
    """An actor whose processes are events that the test sends."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path))
    return Recorder(logger(), Journal())


def queued(recorder: Recorder) -> list[list[Any]]:
    """What waits for the journal, as it will travel."""
    message = recorder.journal._queue.next_message()
    return [] if message is None else json.loads(message)["records"]


def events(recorder: Recorder) -> list[dict[str, Any]]:
    rows = [dict(zip(EVENT_FIELDS, row, strict=True)) for row in queued(recorder) if row[0] == "e"]
    return [row | {"detail": json.loads(row["detail"])} for row in rows]


def drive(recorder: Recorder, *steps: restart.Event, name: str = "w", intensity: int = 1) -> None:
    async def main() -> None:
        spec = restart.WorkerSpec(name=name, intensity=intensity, backoff_initial_s=60.0)
        runner = GroupRunner([spec], Idle())
        recorder.watch(runner, integrations=name == "w")
        for step in steps:
            runner.send(step)
        runner.close()

    asyncio.run(main())


START, READY = restart.Start("w"), restart.Ready("w", 1)


def test_each_phase_is_an_event_with_worker_and_integration(recorder: Recorder) -> None:
    drive(recorder, START, READY)
    found = events(recorder)
    assert [row["kind"] for row in found] == ["worker.starting", "worker.ready"]
    assert {(row["worker"], row["integration"]) for row in found} == {("w", "w")}


@pytest.mark.parametrize(
    ("event", "kind", "severity"),
    [
        (restart.Hung("w", 1, "no heartbeat"), "worker.hung", 4),
        (restart.Failed("w", 1, "unfit: nonsense"), "worker.unfit", 4),
        (restart.Exited("w", 1, "killed by SIGKILL"), "worker.exited", 3),
        (restart.Exited("w", 1, "exited with status 0", clean=True), "worker.exited", 1),
        (restart.Exited("w", 1, "killed: out of memory, peak 64 MiB …"), "worker.out_of_memory", 4),
    ],
)
def test_why_it_ended_is_an_event(
    recorder: Recorder, event: restart.Event, kind: str, severity: int
) -> None:
    drive(recorder, START, READY, event)
    (found,) = [row for row in events(recorder) if row["kind"] == kind]
    assert found["severity"] == severity
    assert found["detail"]["reason"] == getattr(event, "reason", None)
    assert found["detail"]["incarnation"] == 1


def test_the_end_of_an_earlier_incarnation_is_nothing(recorder: Recorder) -> None:
    drive(recorder, START, READY, restart.Exited("w", 7, "late"))
    assert [row["kind"] for row in events(recorder)] == ["worker.starting", "worker.ready"]


def test_a_commanded_stop_is_no_warning(recorder: Recorder) -> None:
    drive(recorder, START, READY, restart.Stop("w", drain=False), restart.Exited("w", 1, "done"))
    (found,) = [row for row in events(recorder) if row["kind"] == "worker.exited"]
    assert found["severity"] == 1


def test_a_restart_is_a_decision_whose_outcome_follows(recorder: Recorder) -> None:
    drive(recorder, START, READY, restart.Exited("w", 1, "crash"), restart.Ready("w", 2))
    rows = queued(recorder)
    (decision,) = [row for row in rows if row[0] == "d"]
    (outcome,) = [row for row in rows if row[0] == "o"]
    assert decision[5:7] == ["w", "restart.intensity"]
    assert decision[9] == "restart"
    assert outcome[2] == decision[4]  # by its key
    assert json.loads(outcome[3]) == {"state": "ready"}


def test_pause_before_a_restart_is_in_the_record(recorder: Recorder) -> None:
    crashes = (restart.Exited("w", 1, "crash"), restart.Ready("w", 2), restart.Exited("w", 2, "so"))
    drive(recorder, START, READY, *crashes, intensity=9)
    rows = queued(recorder)
    pauses = [json.loads(row[7])["pause_s"] for row in rows if row[0] == "d"]
    assert pauses[0] < 1.0, "the first restart comes at once"
    assert 20.0 < pauses[1] <= 60.0
    told = [row for row in rows if row[0] == "e" and row[4] == "worker.backing_off"]
    assert json.loads(told[-1][8])["pause_s"] == pytest.approx(pauses[1], abs=0.1)


def test_quarantine_has_no_pause(recorder: Recorder) -> None:
    crashes = (restart.Exited("w", 1, "crash"), restart.Ready("w", 2), restart.Exited("w", 2, "so"))
    drive(recorder, START, READY, *crashes)
    last = [row for row in queued(recorder) if row[0] == "d"][-1]
    assert (last[9], json.loads(last[7])["pause_s"]) == ("quarantine", None)


def test_what_died_with_something_else_is_no_decision(recorder: Recorder) -> None:
    drive(recorder, START, READY, restart.Exited("w", 1, "the launcher died", collateral=True))
    assert [row for row in queued(recorder) if row[0] == "d"] == []


def test_a_new_gateway_is_said(recorder: Recorder) -> None:
    one = "system1"
    steps = (
        restart.Start(one),
        restart.Ready(one, 1),
        restart.Exited(one, 1, "killed by SIGKILL"),
        restart.Ready(one, 2),
    )
    drive(recorder, *steps, name=one)
    found = [row for row in events(recorder) if row["kind"] == "gateway.replaced"]
    assert len(found) == 1
    assert found[0]["integration"] is None


def test_a_refusal_names_the_layer(recorder: Recorder) -> None:
    recorder.refused("w", ConfinementError("w", "no namespaces", "Do this.", layer="namespaces"))
    (found,) = events(recorder)
    assert found["kind"] == "worker.refused"
    assert found["detail"] == {
        "what": "no namespaces",
        "remedy": "Do this.",
        "layer": "namespaces",
    }


def test_links_are_told_by_what_they_lost_since_the_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path))
    lost = [0, 3, 3, 5]

    def links() -> Iterator[tuple[str, int, LinkStatistics]]:
        yield "system1", 1, LinkStatistics(9, lost.pop(0), 9, 0, 0)

    recorder = Recorder(logger(), Journal(), links)
    for _ in range(4):
        recorder._look_at_links()
    found = events(recorder)
    assert [row["detail"]["count"] for row in found] == [3, 2]
    assert {row["kind"] for row in found} == {"link.dropped"}


def test_links_that_are_no_more_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start of a system is a new link, and vsm runs for months."""
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path))
    epochs = iter(range(100))

    def links() -> Iterator[tuple[str, int, LinkStatistics]]:
        yield "system1", next(epochs), LinkStatistics(9, 0, 9, 0, 0)

    recorder = Recorder(logger(), Journal(), links)
    for _ in range(100):
        recorder._look_at_links()
    assert len(recorder._seen) == 2
