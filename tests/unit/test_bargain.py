"""S3 and S4 in conflict, S5 between them: three real systems, their messages carried by hand."""

import asyncio
from typing import Any

from system_rig import Rig, of

from vsm.messages import (
    Body,
    Decided,
    Move,
    Moved,
    Outlook,
    Proposal,
    ResourceRow,
    Resources,
    Start,
)
from vsm.systems.control import Control
from vsm.systems.policy import PolicySystem

MIB = 2.0**20


def row(used: float, limit: float, met: float = 0) -> ResourceRow:
    return ResourceRow(
        floor={"memory": 16 * MIB},
        ceiling={"memory": 512 * MIB},
        limit={"memory": limit * MIB},
        usage={"memory": used * MIB},
        pressure={"memory": met},
    )


class Conflict:
    """ "a" is short now; S4 expects that "b", which could give, will need what it has."""

    def __init__(self, s3: Rig, s5: Rig, *, worth_later: float) -> None:
        self.s3, self.s5 = s3, s5
        self.undone: list[Proposal] = []
        self.control, self.policy = Control(s3.context), PolicySystem(s5.context)
        self.control.configure(Start(epoch=1, settings={"budget": {"memory": 500 * MIB}}))
        gap = {"integration": "a", "demand": "x", "bits": 0.7}
        outlook: Body = {"variety": {"gap_by_class": [gap]}, "rising": ["b"]}  # type: ignore[dict-item]
        self.control.on_outlook(Outlook(body=outlook), [])
        self.policy.decide(
            Proposal(
                id=1, sender="system4", subject="b", change="memory", from_value=400 * MIB,
                to_value=800 * MIB, evidence={"kind": "surge"}, expected_gain_bits=worth_later,
            )
        )  # fmt: skip

    def sample(self, at_s: float, a: float = 100, b: float = 400) -> list[Any]:
        """S3 looks, S5 decides what it is asked; the moves that S3 wishes."""
        self.control.on_resources(Resources(at_s=at_s, rows={"a": row(99, a), "b": row(30, b)}), [])
        for proposal in self.s3.said("system3>system5:proposal"):
            if proposal.outcome is None:
                self.policy.decide(proposal)
            else:
                self.undone.append(proposal)
        for policy in self.s5.said("system5>system3:policy"):
            self.control.on_policy(policy, [])
        return of(Move, self.s3.said())


def run(scenario: Any, *, worth_later: float) -> None:
    async def main() -> None:
        s3, s5 = Rig("system3"), Rig("system5")
        try:
            scenario(Conflict(s3, s5, worth_later=worth_later))
        finally:
            s3.close()
            s5.close()

    asyncio.run(main())


def test_inside_and_now_prevails_where_it_gains_more_and_the_other_is_revoked() -> None:
    def scenario(it: Conflict) -> None:
        assert it.sample(1) == []
        moves = it.sample(2)
        assert [move.integration for move in moves] == ["b", "a"]
        assert [p.verdict for p in it.s5.said("system5>system4:policy")] == ["approved", "revoked"]
        decided = [one for one in of(Decided, it.s5.said()) if one.subject == "b"]
        assert [(one.rule, one.choice) for one in decided] == [
            ("closure.unopposed", "approved"),
            ("closure.conflict", "approved"),
        ]
        for move in moves:
            it.control.on_moved(Moved(id=move.id, state="in force"), [])
        lowered = moves[0].limits["memory"] / MIB
        it.control.on_resources(
            Resources(at_s=3, rows={"a": row(99, 500 - lowered), "b": row(30, lowered)}), []
        )
        (told,) = it.s3.said("system3>system5:proposal")
        assert told.outcome["state"] == "in force"

    run(scenario, worth_later=0.9)  # counts half: 0.45 against 0.7 bits


def test_outside_and_then_prevails_where_it_gains_more_and_nothing_is_taken() -> None:
    def scenario(it: Conflict) -> None:
        for at_s in (1, 2, 3):
            assert it.sample(at_s) == []
        assert [p.verdict for p in it.s5.said("system5>system4:policy")] == ["approved"]
        assert "refused by system 5" in it.control.verdicts.refusal(("b", "memory"), 3)
        assert "is short" in it.control.reason()
        (undone,) = it.undone
        assert undone.outcome == {"state": "not carried out", "held": 400 * MIB}

    run(scenario, worth_later=2.0)  # 1.0 against 0.7 bits
