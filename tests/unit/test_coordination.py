"""S2 on links whose other ends are here: what it publishes, finds, damps and lets go again."""

import asyncio
from collections.abc import Callable
from typing import Any

from system_rig import Rig, of

from vsm.messages import Damp, Decided, Happened, Noted, Settled, Start
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
        assert it.snapshot == {"rates": [], "configured": False}
        assert "no rates configured" in it.state()["lacks"]  # type: ignore[operator]

    def configured(_: Rig, it: Coordination) -> None:
        assert it.snapshot == {"rates": [RATE], "configured": True}

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

    run(scenario, reversals=3, window_s=600.0, cool_down_s=60.0)
