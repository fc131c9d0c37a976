"""What S1 tells of its breakers: each opening is a decision, and the record has what came of it."""

import asyncio

from system_rig import Rig, of

from vsm.messages import Algedonic, Decided, Noted, Settled
from vsm.systems.operations import SupervisorReports


def test_opened_breaker_is_a_decision_whose_outcome_follows() -> None:
    async def main() -> None:
        rig = Rig("system1")
        try:
            reports = SupervisorReports(rig.context)
            for phase in ("open", "half_open", "open", "half_open", "closed"):
                reports.breaker("it", phase, f"it is {phase}")
            said = rig.said()
            first, second = of(Decided, said)
            assert (first.subject, first.rule, first.choice) == (
                "it",
                "breaker.failures",
                "refuse calls",
            )
            assert first.inputs == {"why": "it is open"}
            assert [(one.key, one.outcome["state"]) for one in of(Settled, said)] == [
                (first.key, "opened again"),
                (second.key, "closed"),
            ]
            told = [one.event for one in of(Noted, said)]
            assert told[:3] == ["breaker.open", "breaker.half_open", "breaker.open"]
            felt = of(Algedonic, rig.said("system1>system5:algedonic"))
            assert [one.severity for one in felt] == ["pain", "pain", "relief"]
        finally:
            rig.close()

    asyncio.run(main())


def test_breaker_that_closes_without_having_opened_settles_nothing() -> None:
    """Its terms were changed by a reload."""

    async def main() -> None:
        rig = Rig("system1")
        try:
            SupervisorReports(rig.context).breaker("it", "closed", "its terms were changed")
            assert of(Decided, said := rig.said()) == of(Settled, said) == []
        finally:
            rig.close()

    asyncio.run(main())
