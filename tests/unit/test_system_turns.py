"""Periodic turns of systems: bounded whatever a board holds, never dead in one that beats."""

import asyncio
import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from operations import lines_run
from system_rig import Rig, of, ran

from vsm.board.reader import Demand
from vsm.core.demand import CLASSES, NOBODY, OK, OUTCOMES, OVERFLOW, UNSERVED
from vsm.core.demand_series import MOST_SERIES, DemandSeries, Forewarning
from vsm.core.forecast import Forecast
from vsm.core.what_if import what_if
from vsm.link import Link, channel_pair
from vsm.messages import (
    CHANNEL_PARSERS,
    Budgets,
    Configure,
    Noted,
    Proposal,
    Start,
    Stop,
    Summary,
)
from vsm.systems import control, coordination, intelligence
from vsm.systems.base import SystemContext, SystemMain
from vsm.systems.intelligence import (
    MOST_CLASSES,
    MOST_OPEN,
    MOST_RECORDED,
    MOST_WARNINGS,
    Intelligence,
)
from vsm.systems.sought import Sought, answered_well


class BrokenError(Exception):
    """Something that nobody thought of."""


async def _broken(_self: object) -> None:
    await asyncio.sleep(0)
    raise BrokenError


@pytest.mark.parametrize(
    ("name", "owner", "turn", "main"),
    [
        ("system2", coordination.Coordination, "rest", coordination.main),
        ("system3", control.Audits, "run", control.main),
        ("system4", Intelligence, "watch", intelligence.main),
    ],
)
def test_system_whose_turn_has_failed_ends_so_that_another_begins(
    monkeypatch: pytest.MonkeyPatch, name: str, owner: type, turn: str, main: SystemMain
) -> None:
    """It would beat on and be taken for one that works."""
    monkeypatch.setattr(owner, turn, _broken)
    with pytest.raises(BrokenError), ran(name, main, Start(epoch=1)):
        pass


def test_system_that_is_told_to_stop_ends_without_a_failure() -> None:
    with ran("system2", coordination.main, Start(epoch=1), Stop()):
        pass


# ---- system 4 ------------------------------------------------------------------------------


def board(integrations: int, each: int = 10**9) -> Any:
    demand = {
        f"i{number}": Demand(classes={f"t{c}": [each] * len(OUTCOMES) for c in range(CLASSES)})
        for number in range(integrations)
    }
    return SimpleNamespace(changes=lambda: 1, totals=lambda: demand, close=lambda: None)


def s4(rig: Rig, reader: Any = None) -> Intelligence:
    it = Intelligence(rig.context, 0.0)
    it._reader = reader
    return it


def in_a_loop(scenario: Any) -> None:
    async def main() -> None:
        rig = Rig("system4")
        try:
            scenario(rig)
        finally:
            rig.close()

    asyncio.run(main())


def test_system_4_looks_at_so_many_classes_and_loses_no_count() -> None:
    def scenario(rig: Rig) -> None:
        it = s4(rig, board(1000))
        it.sample(1.0)
        assert len(it.recent.table) <= MOST_CLASSES + 1000
        assert sum(map(sum, it.recent.table.values())) == 1000 * CLASSES * len(OUTCOMES) * 10**9
        assert sum(it.recent.table["i999", OVERFLOW]) == CLASSES * len(OUTCOMES) * 10**9

    in_a_loop(scenario)


def test_what_system_4_does_in_a_turn_grows_with_the_classes_and_with_nothing_else() -> None:
    lines: dict[tuple[int, int], int] = {}

    def scenario(rig: Rig) -> None:
        for integrations, each in ((50, 2), (100, 2), (100, 10**9)):
            it = s4(rig, board(integrations, each))

            def turn(it: Intelligence = it) -> None:
                it.sample(1.0)
                it.tell()
                it.sample(61.0)
                it.state()

            lines[integrations, each] = lines_run(turn)

    in_a_loop(scenario)
    assert lines[100, 2] < 2.5 * lines[50, 2]
    assert lines[100, 10**9] < 3 * lines[100, 2], (
        "logarithms beyond the table take a few lines more"
    )


def test_one_look_answers_for_all_that_is_sought() -> None:
    def scenario(rig: Rig) -> None:
        it = s4(rig, board(100))
        it.sample(1.0)
        few, many = (
            {(NOBODY, f"x{number}"): Sought(number, 1e9, 10**9) for number in range(count)}
            for count in (1, 200)
        )
        it.sought = few
        alone = lines_run(lambda: it._look_for_sought(2.0))
        it.sought = many
        assert lines_run(lambda: it._look_for_sought(2.0)) < 2 * alone + 200 * 20

    in_a_loop(scenario)


def test_what_is_sought_is_found_under_each_of_its_names_and_counted_once() -> None:
    totals = {
        ("git", "log"): [5, 0, 0, 0, 0, 0],
        (NOBODY, "git__log"): [1, 0, 0, 0, 0, 0],
        ("time", "log"): [2, 0, 0, 0, 0, 0],
    }
    keys = [(NOBODY, "git__log"), ("git", "log"), (NOBODY, "diff")]
    assert answered_well(totals, keys) == {keys[0]: 6, keys[1]: 8, keys[2]: 0}


def test_question_what_if_takes_as_long_however_many_are_called_so() -> None:
    table = {(f"i{number}", "search"): [1, 0, 0, 0, 0, 1] for number in range(30_000)}
    began_s = time.process_time()
    found = what_if(table, "search")
    assert time.process_time() - began_s < 5
    assert len(found["classes"]) == found["answered_well"] == 30_000


@pytest.mark.parametrize(
    "body",
    [
        {"held": 5, "outcomes": 5},
        {"held": {"i0": "all"}, "outcomes": ["x", {}, {"proposal": [1], "outcome": {}}]},
        {"held": {"i0": {"memory": "much", "cpu": None}}},
        {"held": {"i0": {"x" * 100: 1.0}}, "outcomes": [{"proposal": 9, "outcome": "well"}]},
    ],
)
def test_what_s3_says_that_makes_no_sense_stops_nothing(body: Any) -> None:
    def scenario(rig: Rig) -> None:
        it = s4(rig)
        it._room[9] = ("i0", "memory")
        it.on_budgets(Budgets(body=body), [])
        assert it._held("i0") == {}
        assert of(Proposal, rig.said("system4>system5:proposal")) == []

    in_a_loop(scenario)


def test_what_s5_never_answers_is_forgotten() -> None:
    def scenario(rig: Rig) -> None:
        it = s4(rig)
        it.configure(Start(epoch=1, settings={"step_s": 10.0, "season_steps": 12}), 0.0)
        it._serving = {-number: (NOBODY, "x") for number in range(1, MOST_OPEN + 50)}
        it._proposed = {(NOBODY, f"x{number}"): 100.0 for number in range(1000)}
        it._reader = board(1, 1)
        it._reader.totals()["i0"].classes["new"] = [0, 0, 0, 0, 0, 3]
        for step in range(1, 20):
            it._reader.totals()["i0"].classes["new"][UNSERVED] += 3
            it._changes = -1
            it.sample(step * 10.0)
        assert of(Proposal, rig.said("system4>system5:proposal"))
        assert len(it._serving) <= MOST_OPEN
        assert set(it._proposed) == {("i0", "new")}

    in_a_loop(scenario)


def test_of_more_classes_than_there_is_room_for_the_most_asked_are_forecast() -> None:
    """Whatever order a set of texts has in this process: with another seed it is another one."""
    series = DemandSeries(step_s=1.0, season=4, now_s=0.0)
    names = [("i", f"t{number}") for number in range(2 * MOST_SERIES)]
    series.look({key: [0] * 6 for key in names}, 0.0)
    counts = {key: [1 + index] + [0] * 5 for index, key in enumerate(names)}
    series.look(counts, 1.0)
    assert set(series._asked) == set(names[MOST_SERIES:])
    assert list(series._asked) == names[: -MOST_SERIES - 1 : -1]
    assert OK == 0


def test_record_of_a_step_and_its_warnings_are_bounded_and_hold_the_most_asked() -> None:
    def scenario(rig: Rig) -> None:
        it = s4(rig, board(0))
        it.configure(Start(epoch=1, settings={"step_s": 10.0, "season_steps": 12}), 0.0)
        it.budgets = {"held": {"i0": {"memory": 1.0, "cpu": 1.0}}}
        labels = [f"t{number}" for number in range(3 * MOST_RECORDED)]
        classes = {label: [0, 0, 0, 0, 0, 0] for label in labels}
        it._reader = SimpleNamespace(
            changes=lambda: 1, totals=lambda: {"i0": Demand(classes=classes)}, close=lambda: None
        )
        for step in range(1, 15):
            for number, label in enumerate(labels):
                classes[label] = [*classes[label][:UNSERVED], classes[label][UNSERVED] + 1 + number]
            it._changes = -1
            it.sample(step * 10.0)
        assert len(it.warnings) == MOST_WARNINGS
        noted = [one for one in of(Noted, rig.said()) if one.event == "intelligence.step"]
        counts: Any = noted[-1].detail["counts"]
        assert [row[1] for row in counts] == labels[: -MOST_RECORDED - 1 : -1]

    in_a_loop(scenario)


def test_proposals_about_limits_that_nobody_answers_are_forgotten() -> None:
    def scenario(rig: Rig) -> None:
        it = s4(rig)
        it.budgets = {"held": {"i0": {"memory": 1.0, "cpu": 1.0}}}
        forecast = Forecast(9.0, 8.0, 10.0, "last value", 0.1, 1.0)
        for number in range(MOST_OPEN):
            it._propose_room(Forewarning("surge", ("i0", f"t{number}"), forecast, 1.0), 1.0)
        assert len(it._room) == MOST_OPEN

    in_a_loop(scenario)


# ---- what every system has in common -------------------------------------------------------


def test_descriptors_on_a_channel_are_closed_and_what_came_early_is_held() -> None:
    heard: list[Any] = []
    closed: list[bool] = []

    async def main() -> None:
        rig = Rig("system2")
        sender, receiver = channel_pair()
        name = "system1>system2:summary"
        link: Link[Any] = Link(receiver, CHANNEL_PARSERS["summary"])
        rig.context.incoming[name] = link
        read_end, write_end = os.pipe()
        with sender:
            try:
                rig.supervisor.send(Start(epoch=1))
                rig.supervisor.send(Configure(rules="early"))
                rig.context.open()
                assert await rig.context.wait_start()
                await rig.context.started()
                got = asyncio.Event()
                rig.context.handle("configure", lambda message, _fds: heard.append(message))
                rig.context.handle(name, lambda *words: (heard.append(words), got.set()))
                given = Link(sender, CHANNEL_PARSERS["summary"])
                given.send(Summary(interval_s=1.0, fds=("x",)), [write_end])
                os.close(write_end)
                await asyncio.wait_for(got.wait(), 20)
                os.set_blocking(read_end, False)
                closed.append(os.read(read_end, 1) == b"")  # else nothing to read yet: an error
            finally:
                os.close(read_end)
                link.close()
                rig.close()

    asyncio.run(main())
    assert heard[0].rules == "early"
    assert heard[1][1] == []
    assert closed == [True]


def test_what_came_before_a_system_had_begun_is_taken_whatever_one_of_it_does() -> None:
    taken: list[str] = []

    async def main(context: SystemContext) -> None:
        await context.started()

        def take(message: Configure, _fds: list[int]) -> None:
            taken.append(message.rules)
            if len(taken) == 1:
                raise BrokenError

        context.handle("configure", take)
        await context.stopping.wait()

    told = [Start(epoch=1, token=""), *(Configure(rules=name) for name in ("a", "b")), Stop()]
    with ran("system2", main, *told):
        assert taken == ["a", "b"]
