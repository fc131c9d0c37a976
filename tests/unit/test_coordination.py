"""S2 on links whose other ends are here: what it publishes, finds, damps and lets go again."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from system_rig import Rig, of, ran

from vsm.messages import Damp, Decided, Happened, Noted, Settled, SnapshotOut, Start, Stop
from vsm.systems import coordination
from vsm.systems.coordination import Coordination

RATE = {"client": "*", "calls_itself": "*", "integration": "*", "per_second": 1.0, "burst": 1}


def run(scenario: Callable[[Rig, Coordination], None], **settings: Any) -> None:
    async def main() -> None:
        rig = Rig("system2")
        try:
            coordination = Coordination(rig.context)
            coordination.configure(Start(epoch=1, settings=settings))
            scenario(rig, coordination)
        finally:
            rig.close()

    asyncio.run(main())


def swing(it: Coordination, series: str, times: int, begin_s: float = 0.0) -> None:
    for number in range(times):
        change = 1.0 if number % 2 else -1.0
        message = Happened(
            integration="a", series=series, change=change, at_s=begin_s + number * 2.0
        )
        it.on_happened(message, [])


def test_without_rates_it_says_so_and_with_rates_it_publishes_them() -> None:
    def without(_: Rig, it: Coordination) -> None:
        assert it.snapshot == {"rates": [], "configured": False, "steady": []}
        assert "no rates configured" in it.state()["lacks"]  # type: ignore[operator]

    def configured(_: Rig, it: Coordination) -> None:
        assert it.snapshot == {"rates": [RATE], "configured": True, "steady": []}

    run(without)
    run(configured, rates=[RATE])


def test_restart_loop_is_slowed_explained_and_forgiven_when_it_rests() -> None:
    def scenario(rig: Rig, it: Coordination) -> None:
        swing(it, "restart", 6)
        assert rig.said() == []
        swing(it, "restart", 1, 12.0)
        said = rig.said()
        assert [one.factor for one in of(Damp, said)] == [8.0]
        (noted,) = of(Noted, said)
        assert (noted.event, noted.integration) == ("coordination.oscillation", "a")
        (decided,) = of(Decided, said)
        assert decided.choice == "restart more slowly for 60 s"
        assert decided.inputs["reversals"] == 6
        it.tick(30.0)
        assert rig.said() == []
        it.tick(100.0)
        said = rig.said()
        assert [one.factor for one in of(Damp, said)] == [1.0]
        assert [one.key for one in of(Settled, said)] == [decided.key]
        assert it.damped() == {}

    run(scenario, reversals=6, window_s=600.0, cool_down_s=60.0)


def test_pool_that_goes_to_and_fro_lets_none_go_until_it_rests() -> None:
    def scenario(rig: Rig, it: Coordination) -> None:
        swing(it, "scaling", 4)
        said = rig.said()
        (snapshot,) = of(SnapshotOut, said)
        assert snapshot.body["steady"] == ["a"]
        assert of(Damp, said) == []
        assert [one.choice for one in of(Decided, said)] == ["let no instance go for 60 s"]
        swing(it, "memory", 4)
        assert of(SnapshotOut, rig.said()) == [], "that is S3's affair"
        it.tick(500.0)
        assert [one.body["steady"] for one in of(SnapshotOut, rig.said())] == [[]]

    run(scenario, reversals=3, window_s=600.0, cool_down_s=60.0)


def test_limit_that_goes_to_and_fro_is_told_to_s3_and_a_second_time_hurts() -> None:
    def scenario(rig: Rig, it: Coordination) -> None:
        swing(it, "memory", 4)
        assert of(Damp, rig.said()) == []
        told = [message.body for message in rig.said("system2>system3:rates")]
        assert told == [{"damped": {"a": ["memory"]}}]
        assert rig.said("system2>system5:algedonic") == []
        assert it.state()["damped"] == {"a": ["memory"]}
        it.tick(500.0)
        assert [m.body for m in rig.said("system2>system3:rates")] == [{"damped": {}}]
        swing(it, "memory", 5, 501.0)
        (signal,) = rig.said("system2>system5:algedonic")
        assert (signal.severity, signal.cause) == ("pain", "oscillation")
        it.tick(2000.0)
        (signal,) = rig.said("system2>system5:algedonic")
        assert (signal.severity, signal.subject) == ("relief", "a")
        assert signal.detail == "a: memory has rested"

    run(scenario, reversals=3, window_s=600.0, cool_down_s=60.0)


def test_relief_comes_when_the_last_thing_that_hurt_has_rested() -> None:
    def scenario(rig: Rig, it: Coordination) -> None:
        for begin_s in (0.0, 501.0):
            swing(it, "memory", 5, begin_s)
            swing(it, "restart", 5, begin_s + 300.0 * (begin_s > 0))
            it.tick(begin_s + 200.0)
        hurt = [signal.severity for signal in rig.said("system2>system5:algedonic")]
        assert hurt == ["pain", "pain"]
        assert it.damped() == {"a": ["restart"]}
        it.tick(2000.0)
        (signal,) = rig.said("system2>system5:algedonic")
        assert signal.detail == "a: restart has rested"

    run(scenario, reversals=3, window_s=600.0, cool_down_s=60.0)


def test_new_system_2_takes_its_predecessors_word_back() -> None:
    """What that one damped, S3 would leave alone for ever."""
    with ran("system2", coordination.main, Start(epoch=1), Stop()) as rig:
        assert [told.body for told in rig.said("system2>system3:rates")] == [{"damped": {}}]


def test_what_is_damped_is_told_again_since_system_3_may_be_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordination, "TICK_S", 0.001)

    async def main() -> None:
        rig = Rig("system2")
        it = Coordination(rig.context)
        it.configure(Start(epoch=1, settings={"reversals": 2}))
        swing(it, "memory", 6, asyncio.get_running_loop().time())
        rig.said("system2>system3:rates")
        resting = asyncio.create_task(it.rest())
        try:
            async with asyncio.timeout(20):
                while not (told := rig.said("system2>system3:rates")):  # noqa: ASYNC110 - its turn
                    await asyncio.sleep(0.001)
            assert told[0].body == {"damped": {"a": ["memory"]}}
        finally:
            resting.cancel()
            rig.close()

    asyncio.run(main())
