"""S4 over a real board: what it measures, keeps, and tells, when S1 or itself is replaced."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vsm.board.demand import DemandBoard
from vsm.board.heartbeat import BoardWriter
from vsm.board.reader import DemandReader, Row
from vsm.board.relay import DemandRelay
from vsm.configuration.policy import Policy as PolicyTable
from vsm.configuration.policy import compile_policy
from vsm.core import channels
from vsm.core.demand import NOBODY, OK, TOOL_ERROR, UNSERVED
from vsm.link import Link, channel_pair, socketpair
from vsm.messages import (
    CHANNEL_PARSERS,
    Algedonic,
    Budgets,
    Noted,
    Outlook,
    Policy,
    Proposal,
    Segments,
    Start,
    parse_from_system,
    parse_to_system,
)
from vsm.systems.base import SystemContext
from vsm.systems.intelligence import HALF_LIFE_S, Intelligence


class Rig:
    """S4's object on links whose other ends are here."""

    def __init__(self) -> None:
        control, other = socketpair()
        self.supervisor: Link[Any] = Link(other, parse_from_system)
        ends = {}
        self.heard: dict[str, Link[object]] = {}
        for channel in channels.sends("system4"):
            sender, receiver = channel_pair()
            parse = CHANNEL_PARSERS[channel.carries]
            ends[channel.name] = Link(sender, parse)
            self.heard[channel.name] = Link(receiver, parse)
        self.writer = BoardWriter(1)
        link = Link(control, parse_to_system)
        self.context = SystemContext("system4", link, ends, self.writer, layers=[])
        self.s4 = Intelligence(self.context, time.monotonic())

    def read(self, board: DemandBoard, epoch: int, age_s: float = 1.0) -> None:
        fds = [os.dup(fd) for fd in board.filenos()]
        names = tuple(f"segment{index}" for index in range(len(fds)))
        self.s4.on_segments(Segments(epoch=epoch, pid=os.getpid(), age_s=age_s, fds=names), fds)

    def said(self, kind: type[Any]) -> list[Any]:
        return [message for message in _all(self.supervisor) if isinstance(message, kind)]

    def close(self) -> None:
        self.s4.close()
        self.supervisor.close()
        self.context.control.close()
        for link in [*self.context.outgoing.values(), *self.heard.values()]:
            link.close()
        self.writer.close()


def run(scenario: Callable[[Rig], None]) -> None:
    async def main() -> None:
        rig = Rig()
        try:
            scenario(rig)
        finally:
            rig.close()

    asyncio.run(main())


@contextmanager
def board(epoch: int, *names: str) -> Iterator[DemandBoard]:
    it = DemandBoard(epoch, names)
    yield it
    it.close()


def count(it: DemandBoard, name: str, label: str, times: int, outcome: int = OK) -> None:
    for _ in range(times):
        it.rows[name].count(label, outcome, time.perf_counter_ns())


def test_idle_system_has_no_figure_and_says_why() -> None:
    def scenario(rig: Rig) -> None:
        assert "no demand board of system 1" in rig.s4.state()["lacks"]
        with board(1, "git") as it:
            rig.read(it, 1)
            assert "no demand observed" in rig.s4.state()["lacks"]
            found = rig.s4.variety()
            assert found["recent"]["figures"] is None
            assert found["recent"]["not_enough_evidence"]["reason"] == "no events"

    run(scenario)


def test_counts_survive_the_writer_and_are_seen_once() -> None:
    def scenario(rig: Rig) -> None:
        with board(1, "git") as first, board(2, "git") as second:
            rig.read(first, 1)
            count(first, "git", "log", 30)
            assert rig.s4.variety()["recent"]["events"] == 30
            count(first, "git", "log", 5)  # never sampled before S1 dies
            relay = DemandRelay()
            assert relay.announced([os.dup(fd) for fd in first.filenos()], epoch=1, pid=os.getpid())
            message, fds = relay.message()
            assert len(message.fds) == len(fds) == 1
            second.inherit(_rows(fds))
            relay.close()
            count(second, "git", "log", 2)
            rig.read(second, 2)
            found = rig.s4.variety()
            assert found["recent"]["events"] == found["since_start"]["events"] == 37
            count(first, "git", "log", 9)  # one that was only asleep writes what nobody reads
            assert rig.s4.variety()["since_start"]["events"] == 37

    run(scenario)


def _rows(fds: list[int]) -> list[Row]:
    reader = DemandReader([os.dup(fd) for fd in fds], epoch=1, pid=None)
    rows = reader.rows()
    reader.close()
    return rows


@pytest.mark.parametrize(("age_s", "recent"), [(HALF_LIFE_S - 1, 35), (HALF_LIFE_S + 1, 3)])
def test_successor_of_s4_counts_as_recent_only_what_surely_is(age_s: float, recent: int) -> None:
    def scenario(rig: Rig) -> None:
        with board(1, "git") as it:
            count(it, "git", "log", 32)
            rig.read(it, 1, age_s)
            count(it, "git", "log", 3)
            found = rig.s4.variety()
            assert (found["recent"]["events"], found["since_start"]["events"]) == (recent, 35)

    run(scenario)


def test_false_board_changes_nothing() -> None:
    def scenario(rig: Rig) -> None:
        with board(1, "git") as it:
            rig.read(it, 1)
            count(it, "git", "log", 3)
            fds = [os.dup(fd) for fd in it.filenos()]
            rig.s4.on_segments(Segments(epoch=2, pid=1, fds=("segment0",)), fds)
            assert rig.s4.variety()["recent"]["events"] == 3
        relay = DemandRelay()
        fd = os.memfd_create("x")
        assert not relay.announced([fd], epoch=1, pid=0)
        assert relay.message()[1] == []
        assert relay.refused == 1

    run(scenario)


def test_low_ratio_hurts_once_and_relief_follows() -> None:
    def scenario(rig: Rig) -> None:
        policy = compile_policy(PolicyTable(), "policy")
        rig.s4.configure(Start(epoch=1, policy=policy), time.monotonic())
        with board(1, "git") as it:
            rig.read(it, 1)
            for tool in ("log", "diff"):
                count(it, "git", tool, 40)
            rig.s4.sample(time.monotonic())
            rig.s4.tell()
            count(it, NOBODY, "translate", 60, UNSERVED)
            for _ in range(3):
                rig.s4.sample(time.monotonic())
                rig.s4.tell()
            for tool in ("log", "diff"):
                count(it, "git", tool, 900)
            rig.s4.sample(time.monotonic())
            rig.s4.tell()
        outlooks = _all(rig.heard["system4>system3:outlook"])
        assert len(outlooks) == 3  # one for each change
        ratios = [
            one.body["variety"]["requisite_ratio"]["measured"]  # type: ignore[index, call-overload]
            for one in outlooks
            if isinstance(one, Outlook)
        ]
        assert ratios[0] == 1.0 > ratios[2] > ratios[1]
        signals = _all(rig.heard["system4>system5:algedonic"])
        assert [s.severity for s in signals if isinstance(s, Algedonic)] == ["pain", "relief"]

    run(scenario)


def _all(link: Link[Any]) -> list[object]:
    found = []
    while (received := link.receive(0)) is not None:
        found.append(received[0])
    return found


def test_unserved_demand_is_forecast_warned_of_and_proposed_with_its_gain() -> None:
    def scenario(rig: Rig) -> None:
        begin_s = time.monotonic() + 1e6  # whole steps in no time
        rig.s4.configure(Start(epoch=1, settings={"step_s": 10.0, "season_steps": 12}), begin_s)
        with board(1, "git") as it:
            rig.read(it, 1)
            for step in range(1, 20):
                count(it, "git", "log", 6)
                count(it, NOBODY, "translate", 3, UNSERVED)
                rig.s4.sample(begin_s + step * 10.0)
            (warning,) = rig.s4.warnings
            assert (warning.kind, warning.key, warning.forecast.low) == (
                "unserved", (NOBODY, "translate"), 3,
            )  # fmt: skip
            noted = rig.said(Noted)
            assert sum(one.event == "intelligence.warning" for one in noted) == 1
            record = [one for one in noted if one.event == "intelligence.forecast"][-1]
            assert {"expected": 6.0, "came": 6}.items() <= record.detail["forecasts"][0].items()
            (proposal,) = _all(rig.heard["system4>system5:proposal"])
            assert isinstance(proposal, Proposal)
            assert (proposal.subject, proposal.change) == ("translate", "serve")
            found: Any = rig.s4.what_if("translate")
            assert proposal.expected_gain_bits > 0
            assert found["requisite_ratio_if_served"] == 1.0
            report: Any = rig.s4.predictions()["calibration"]
            assert report["mean_absolute_error"] == 0
            rig.s4.on_policy(verdict(proposal, "approved"), [])
            (sought,) = [one for one in rig.said(Noted) if one.event == "intelligence.sought"]
            assert sought.detail["demand"] == "translate"
            assert rig.s4.state()["sought"] == [{"integration": NOBODY, "demand": "translate"}]
            rig.s4.sample(begin_s + 200.0)
            assert _all(rig.heard["system4>system5:proposal"]) == [], "nobody serves it yet"
            count(it, "git", "translate", 2)
            rig.s4.sample(begin_s + 201.0)
            (outcome,) = _all(rig.heard["system4>system5:proposal"])
            assert isinstance(outcome, Proposal)
            assert outcome.id == proposal.id
            assert outcome.outcome == {"state": "served", "answered_well": 2}

    run(scenario)


def test_flood_is_a_surprise_until_the_next_step_and_in_the_record() -> None:
    def scenario(rig: Rig) -> None:
        begin_s = time.monotonic() + 1e6
        rig.s4.configure(Start(epoch=1, settings={"step_s": 10.0, "season_steps": 12}), begin_s)
        with board(1, "git") as it:
            rig.read(it, 1)
            for step in range(1, 61):
                count(it, "git", "log", 5 + step % 3)
                rig.s4.sample(begin_s + step * 10.0)
            assert rig.s4.predictions()["surprises"] == []
            count(it, "git", "log", 60)
            rig.s4.sample(begin_s + 610.0)
            rows: Any = rig.s4.predictions()["surprises"]
            assert [(row["demand"], row["came"]) for row in rows] == [("log", 60)]
            assert rows[0]["chance"] < 0.001
            noted = [one for one in rig.said(Noted) if one.event == "intelligence.surprise"]
            assert [one.detail for one in noted] == rows
            count(it, "git", "log", 6)
            rig.s4.sample(begin_s + 620.0)
            assert rig.s4.predictions()["surprises"] == []
            count(it, "git", "log", 6)
            count(it, "git", "log", 6, TOOL_ERROR)
            rig.s4.sample(begin_s + 630.0)
            (worse,) = [one for one in rig.said(Noted) if one.event == "intelligence.surprise"]
            assert worse.detail.items() >= {"measure": "answered_well", "came": 6, "of": 12}.items()

    run(scenario)


def verdict(proposal: Proposal, said: Any) -> Policy:
    return Policy(
        id=1, sender="system4", proposal=proposal.id, subject=proposal.subject,
        change=proposal.change, verdict=said, rule="closure.unopposed",
    )  # fmt: skip


def test_what_is_refused_or_nobody_comes_to_serve_is_told_as_that() -> None:
    def scenario(rig: Rig) -> None:
        proposal = Proposal(id=5, sender="system4", subject="translate", change="serve")
        for said, later_s in (("refused", 0.0), ("approved", 1000.0)):
            with board(1, "git") as it:
                rig.read(it, 1)
                rig.s4._serving[5] = (NOBODY, "translate")
                rig.s4.on_policy(verdict(proposal, said), [])
                rig.s4.sample(time.monotonic() + later_s)
                (outcome,) = _all(rig.heard["system4>system5:proposal"])
                assert isinstance(outcome, Proposal)
                assert outcome.outcome is not None
                wanted = {"refused": "not sought", "approved": "not served"}[said]
                assert outcome.outcome["state"] == wanted

    run(scenario)


def test_what_s3_says_of_limits_that_s4_proposed_reaches_s5_once() -> None:
    def scenario(rig: Rig) -> None:
        rig.s4._room[9] = ("git", "memory")
        outcomes: Any = [{"proposal": 9, "outcome": {"state": "in force"}}]
        for _ in range(2):
            rig.s4.on_budgets(Budgets(body={"held": {}, "outcomes": outcomes}), [])
        (outcome,) = _all(rig.heard["system4>system5:proposal"])
        assert isinstance(outcome, Proposal)
        assert (outcome.id, outcome.subject, outcome.change) == (9, "git", "memory")
        assert outcome.outcome == {"state": "in force"}

    run(scenario)


def test_idle_system_predicts_nothing_and_says_why() -> None:
    def scenario(rig: Rig) -> None:
        with board(1, "git") as it:
            rig.read(it, 1)
            found = rig.s4.predictions()
            assert found["forecasts"] == []
            assert "not_enough_evidence" in found
            assert rig.s4.what_if("x")["not_enough_evidence"] == "nobody asked for anything"

    run(scenario)
