"""The supervisor judges whatever S2 and S3 wish; a few fakes stand for its parts."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vsm.configuration.config import Config
from vsm.configuration.profile import LimitsDocument, compile_limits, load_profile
from vsm.configuration.regulation import Control
from vsm.confinement.cgroup import CgroupLimits, Usage
from vsm.core import restart
from vsm.errors import VsmError
from vsm.governance.regulation import _MOST_OPEN_DECISIONS, Regulator
from vsm.messages import Damp, Decided, Happened, Move, Moved, Noted, ResourceRow, Settled
from vsm.processes.launch import ExitReport
from vsm.supervision.last_words import words

MIB = 2**20
BUDGET = {"memory": 700.0 * MIB, "cpu": 2.0}


class Group:
    """A control group that only remembers."""

    layers = ("memory", "cpu")

    def __init__(self) -> None:
        self.put: list[CgroupLimits] = []

    def set_limits(self, limits: CgroupLimits) -> None:
        self.put.append(limits)


class Journal:
    """A journal that only remembers."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def event(self, kind: str, **more: Any) -> int:
        self.rows.append((kind, more))
        return 1

    def decide(self, subject: str, **more: Any) -> str:
        self.rows.append((subject, more))
        return f"key/{len(self.rows)}"

    def outcome(self, key: str, outcome: Any) -> int:
        self.rows.append((key, outcome))
        return 1


class World:
    """A regulator and what is around it."""

    def __init__(self, **ranges: Any) -> None:
        self.journal = Journal()
        self.told: list[Any] = []
        self.slowed: list[Any] = []
        link = SimpleNamespace(send=self.told.append)
        self.group: Any = SimpleNamespace(
            running={},
            limits={},
            granted={},
            sets={},
            slow_down=lambda *words: self.slowed.append(words),
            integrations={
                name: SimpleNamespace(priority=1, range=range_) for name, range_ in ranges.items()
            },
            workers=SimpleNamespace(group=SimpleNamespace(workers={}), phase=lambda _key: "ready"),
        )
        self.supervisor: Any = SimpleNamespace(
            config=Config(control=Control(budget=BUDGET)),
            integrations=self.group,
            systems=SimpleNamespace(
                running={f"system{n}": SimpleNamespace(link=link) for n in range(1, 6)}
            ),
            recorder=SimpleNamespace(journal=self.journal, path=Path("/nonexistent/journal.db")),
            log=SimpleNamespace(warning=lambda *_words, **_more: None),
            policing=SimpleNamespace(told_by=lambda system: [[system, "hurts"]]),
        )
        self.regulator = Regulator(self.supervisor)

    def run(self, name: str, key: str = "") -> Group:
        """A worker of 512 MiB and half a processor serves."""
        group, profile = Group(), load_profile("integration")
        provided = SimpleNamespace(
            group=group, profile=profile, written=profile.limits, memory_bytes=None
        )
        self.group.running[key or name] = SimpleNamespace(
            name=name, provided=provided, spawned=None, incarnation=1
        )
        self.group.workers.group.workers[key or name] = object()
        return group

    def move(self, name: str, system: str = "system3", **limits: float) -> Moved | None:
        self.told.clear()
        wish = Move.model_construct(id=7, integration=name, limits=limits)  # judged once more
        self.regulator.on_message(system, wish)
        answers = [message for message in self.told if isinstance(message, Moved)]
        return answers[0] if answers else None


def run(scenario: Callable[[World], None], **ranges: Any) -> None:
    async def main() -> None:
        scenario(World(**(ranges or {"a": {}})))

    asyncio.run(main())


def test_move_within_the_range_is_put_in_force_kept_and_told() -> None:
    def scenario(world: World) -> None:
        group = world.run("a")
        answer = world.move("a", memory=300.0 * MIB)
        assert answer is not None
        assert (answer.id, answer.state) == (7, "in force")
        assert [limits.memory_bytes for limits in group.put] == [300 * MIB]
        assert world.group.granted == {"a": {"memory_bytes": 300 * MIB}}
        (happened,) = [message for message in world.told if isinstance(message, Happened)]
        assert (happened.series, happened.change) == ("memory", -212.0 * MIB)

    run(scenario)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"memory": 600.0 * MIB}, "not within"),  # above what the profile gives
        ({"memory": 100.0 * MIB}, "not within"),  # below a quarter of it
        ({"memory": float("inf")}, "not within"),
        ({"memory": float("nan")}, "not within"),
        ({"cpu": 5.0}, "not within"),
        ({"processes": 5.0}, "not system 3's"),  # no budget for it
        ({"open_files": 5.0}, "not system 3's"),
        ({"memory": 300.0 * MIB, "cpu": 9.0}, "not within"),  # all or nothing
    ],
)
def test_move_beyond_what_s3_may_is_refused_and_nothing_changes(
    limits: dict[str, float], why: str
) -> None:
    def scenario(world: World) -> None:
        group = world.run("a")
        answer = world.move("a", **limits)
        assert answer is not None
        assert answer.state == "refused"
        assert why in answer.detail
        assert group.put == []
        assert world.group.granted == {}

    run(scenario)


def test_command_goes_before_s3_and_nobody_else_may_move_limits() -> None:
    def scenario(world: World) -> None:
        group = world.run("a")
        for system in ("system1", "system2", "system4", "system5"):
            assert world.move("a", system, memory=300.0 * MIB) is None
        world.group.limits["a"] = {"memory_bytes": 400 * MIB}
        answer = world.move("a", memory=300.0 * MIB)
        assert answer is not None
        assert answer.state == "refused"
        unknown = world.move("b", memory=300.0 * MIB)
        assert unknown is not None
        assert unknown.state == "refused"
        assert group.put == []

    run(scenario)


def test_raise_beyond_the_budget_is_refused_a_lower_limit_is_not() -> None:
    def scenario(world: World) -> None:
        world.run("a")
        world.run("b")  # 512 and 512 of 700 MiB
        assert world.move("b", memory=400.0 * MIB).state == "in force"  # type: ignore[union-attr]
        answer = world.move("a", memory=600.0 * MIB)
        assert answer is not None
        assert "exceed the budget" in answer.detail
        assert world.move("a", memory=290.0 * MIB).state == "in force"  # type: ignore[union-attr]

    run(scenario, a={"memory": (64.0 * MIB, 800.0 * MIB)}, b={})


def test_instances_are_given_alike_and_count_together() -> None:
    def scenario(world: World) -> None:
        groups = [world.run("a", f"a#{number}") for number in (1, 2)]
        assert world.move("a", memory=500.0 * MIB).state == "in force"  # type: ignore[union-attr]
        assert [group.put[-1].memory_bytes for group in groups] == [250 * MIB, 250 * MIB]
        answer = world.move("a", memory=200.0 * MIB)
        assert answer is not None
        assert "200 MiB is not within 256 MiB" in answer.detail  # a quarter of each

    run(scenario)


def test_only_s2_slows_restarts_and_only_of_what_there_is() -> None:
    def scenario(world: World) -> None:
        for system in ("system1", "system3", "system4", "system5"):
            world.regulator.on_message(system, Damp(integration="a", factor=8.0))
        world.regulator.on_message("system2", Damp(integration="b", factor=8.0))
        assert world.slowed == []
        world.regulator.on_message("system2", Damp(integration="a", factor=8.0))
        assert world.slowed == [("a", 8.0)]
        world.regulator.settings("system2")  # a new S2 begins: it knows of none
        world.regulator.settings("system2")
        assert world.slowed == [("a", 8.0), ("a", 1.0)]

    run(scenario)


def test_outcome_finds_the_decision_of_the_same_system() -> None:
    def scenario(world: World) -> None:
        def decide(system: str) -> None:
            message = Decided(key="k", subject="a", rule="r", choice="c")
            world.regulator.on_message(system, message)

        decide("system2")
        decide("system3")
        world.regulator.on_message("system3", Settled(key="k", outcome={"state": "done"}))
        world.regulator.on_message("system3", Settled(key="k", outcome={"state": "again"}))
        assert world.journal.rows[2:] == [("key/2", {"state": "done"})]
        world.regulator.on_message("system4", Noted(event="x.y", integration="a"))
        kind, more = world.journal.rows[-1]
        assert (kind, more["source"], more["integration"]) == ("x.y", "system4", "a")

    run(scenario)


def test_decisions_of_one_system_push_none_of_another_out() -> None:
    """The gateway decides once for each call that a rule denies, and nothing comes of those."""

    def scenario(world: World) -> None:
        def decide(system: str, key: str) -> None:
            message = Decided(key=key, subject="a", rule="r", choice="c")
            world.regulator.on_message(system, message)

        decide("system5", "k")
        for number in range(3 * _MOST_OPEN_DECISIONS):
            decide("system1", f"denied-{number}")
        world.regulator.on_message("system5", Settled(key="k", outcome={"state": "done"}))
        assert world.journal.rows[-1] == ("key/1", {"state": "done"})
        assert sum(map(len, world.regulator._open.values())) <= _MOST_OPEN_DECISIONS

    run(scenario)


def test_system_that_notes_without_end_fills_the_record_and_not_the_log() -> None:
    def scenario(world: World) -> None:
        logged: list[dict[str, Any]] = []
        world.supervisor.log.warning = lambda _what, **more: logged.append(more)
        for number in range(1000):
            noted = Noted(
                event="audit.failed",
                severity="error",
                integration="a",
                detail={"what": f"{number}"},
            )
            world.regulator.on_message("system3", noted)
        assert len(world.journal.rows) == 1000
        assert [more["reason"] for more in logged] == ["0"]

    run(scenario)


def test_only_what_s4_says_is_kept_for_a_successor_of_s4() -> None:
    def scenario(world: World) -> None:
        said: list[str] = []
        world.regulator._learned.note = lambda event, _detail: said.append(event)  # type: ignore[method-assign]
        for number in range(1, 6):
            noted = Noted(event=f"intelligence.of{number}")
            world.regulator.on_message(f"system{number}", noted)
        assert said == ["intelligence.of4"]

    run(scenario)


def ended(report: ExitReport, *, oom_kills: int) -> str:
    """What the supervisor says of the end of a worker."""
    usage = Usage(
        memory_bytes=0, memory_peak_bytes=64 << 20, oom_kills=oom_kills, cpu_s=0.0, processes=0
    )
    return words(report, usage, compile_limits(LimitsDocument(memory="64M"), "test"))


EARLY = "unfit: the server closed its output"  # what system 1 sees of such an end at the start


@pytest.mark.parametrize(
    ("reason", "counts"),
    [
        (ended(ExitReport(None, signal.SIGKILL), oom_kills=1), True),
        (ended(ExitReport(1, None), oom_kills=1), True),  # a process below the server was killed
        (ended(ExitReport(1, None), oom_kills=0), False),
        (ended(ExitReport(None, signal.SIGKILL), oom_kills=0), False),
        (f"{EARLY}; {ended(ExitReport(None, signal.SIGKILL), oom_kills=1)}", True),
        (f"3 crashes; last: {ended(ExitReport(None, signal.SIGKILL), oom_kills=1)}", True),
        ("unfit: its server says killed: out of memory", False),
        (f"{EARLY}; killed: out of memory; {ended(ExitReport(1, None), oom_kills=0)}", False),
    ],
)
def test_want_of_memory_is_known_by_the_words_that_are_said_of_it(
    reason: str, counts: bool
) -> None:
    def scenario(world: World) -> None:
        phases: list[restart.Phase] = ["starting", "ready", "backing_off"]
        for phase, why in zip(phases, ["", "", reason], strict=True):
            changed = restart.Changed(name="a", incarnation=1, phase=phase, reason=why)
            world.regulator.changed(changed)
        assert world.regulator.out_of_memory == ({"a": 1} if counts else {})

    run(scenario)


def test_crash_counts_once_however_many_phases_it_takes() -> None:
    killed = ended(ExitReport(None, signal.SIGKILL), oom_kills=1)

    def scenario(world: World) -> None:
        def change(phase: restart.Phase, reason: str = "") -> None:
            world.regulator.changed(
                restart.Changed(name="a", incarnation=1, phase=phase, reason=reason)
            )

        change("starting")
        change("ready")
        change("backing_off", killed)
        change("starting", killed)
        change("ready")
        swings = [message.change for message in world.told]
        assert swings == [1.0, -1.0, 1.0]
        assert world.regulator.out_of_memory == {"a": 1}

    run(scenario)


class Pool:
    """A pool of "a" whose workers are as the test says, and what S2 hears of it."""

    def __init__(self, world: World, kind: str) -> None:
        self.world = world
        self.after = "crash"
        self.whole: restart.Phase = "ready"
        terms = SimpleNamespace(kind=kind)
        self.set = SimpleNamespace(terms=terms, in_exchange=False)
        world.group.sets["a"] = self.set
        world.group.workers.phase = lambda _key: self.whole
        world.group.workers.worker = lambda _key: SimpleNamespace(after=self.after)

    def change(self, name: str, *phases: restart.Phase, reason: str = "") -> list[Any]:
        self.world.told.clear()
        for phase in phases:
            self.world.regulator.changed(
                restart.Changed(name=name, incarnation=1, phase=phase, reason=reason)
            )
        return [(one.series, one.change) for one in self.world.told if isinstance(one, Happened)]


def test_pool_that_grows_and_lets_go_is_told_a_failure_or_a_command_is_not() -> None:
    def scenario(world: World) -> None:
        pool = Pool(world, "pool")
        assert pool.change("a#1", "starting", "ready") == [("scaling", 1.0)]
        assert pool.change("a#1", "stopping", reason="unfit: x") == [], "it failed"
        assert pool.change("a#2", "starting", "ready") == [("scaling", 1.0)]
        pool.after = "stop"
        gone = pool.change("a#2", "stopping", "stopped", reason="unused for 60 s")
        assert gone == [("scaling", -1.0)]
        pool.change("a#3", "starting", "ready")
        pool.whole = "stopping"
        assert pool.change("a#3", "stopping", reason="stopped") == [], "somebody stopped the whole"
        pool.whole, pool.set.in_exchange = "ready", True
        replaced = pool.change("a#5", "starting", "ready") + pool.change("a#4", "ready", "stopping")
        assert replaced == [], "one takes the place of another: it does not go to and fro"
        sessions = Pool(world, "session")
        assert sessions.change("a#4", "starting", "ready") == [], "clients come and go"

    run(scenario)


def test_audit_of_what_does_not_serve_is_an_error() -> None:
    def scenario(world: World) -> None:
        with pytest.raises(VsmError, match="does not serve"):
            world.regulator.audits.command({"name": "a"}).send(None)

    run(scenario)


def test_sample_that_does_not_reach_s3_gives_pools_back_what_is_configured() -> None:
    def scenario(world: World) -> None:
        released: list[str] = []
        pools: Any = world.regulator.pools
        pools.release = released.append
        pools.add = lambda rows, _workers: rows.update(a=ResourceRow())
        link = SimpleNamespace(send=lambda _message: True)
        world.supervisor.systems.running["system3"] = SimpleNamespace(link=link)
        world.regulator._sample()
        assert released == []
        link.send = lambda _message: False
        world.regulator._sample()
        assert released == ["system 3 takes no samples"]
        world.regulator.stop()

    run(scenario)


def test_moved_size_of_a_pool_is_told_to_s2_and_moves_by_itself() -> None:
    def scenario(world: World) -> None:
        pools: Any = world.regulator.pools
        pools.put = lambda name, value: value - 3 if name == "a" else None
        answer = world.move("a", instances=5.0)
        assert answer is not None
        assert answer.state == "in force"
        (happened,) = [message for message in world.told if isinstance(message, Happened)]
        assert (happened.integration, happened.series) == ("a", "instances")
        assert happened.change == 2.0
        answer = world.move("a", instances=5.0, memory=300.0 * MIB)
        assert answer is not None
        assert (answer.state, "by itself" in answer.detail) == ("refused", True)

    run(scenario)


def test_new_system_3_is_told_what_the_one_before_it_felt() -> None:
    def scenario(world: World) -> None:
        assert world.regulator.settings("system3")["hurting"] == [["system3", "hurts"]]
        assert "hurting" not in world.regulator.settings("system2")

    run(scenario)
