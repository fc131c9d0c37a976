"""S3 on links whose other ends are here: what it moves, what it leaves alone, what it says."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from system_rig import Rig, of

from vsm.core import audit_schedule
from vsm.link import MAX_MESSAGE_BYTES
from vsm.messages import (
    Answer,
    Audited,
    Configure,
    Decided,
    IntegrationRow,
    Move,
    Moved,
    Outlook,
    Policy,
    Query,
    Rates,
    ResourceRow,
    Resources,
    Settled,
    Start,
)
from vsm.systems.control import MOST_MOVES, NO_BUDGET, NO_SAMPLE, Control
from vsm.systems.verdicts import MOST, STANDING_S

MIB = 2.0**20


def run(scenario: Callable[[Rig, Control], None], known: str = "", **settings: Any) -> None:
    async def main() -> None:
        rig = Rig("system3")
        try:
            control = Control(rig.context, random.Random(1))
            rows = tuple(IntegrationRow(name=name) for name in known)
            control.configure(Start(epoch=1, settings=settings, integrations=rows))
            scenario(rig, control)
        finally:
            rig.close()

    asyncio.run(main())


def row(used: float, limit: float, *, met: float = 0, ceiling: float = 512, **more: Any) -> Any:
    return ResourceRow(
        floor={"memory": 16 * MIB},
        ceiling={"memory": ceiling * MIB},
        limit={"memory": limit * MIB},
        usage={"memory": used * MIB},
        pressure={"memory": met},
        **more,
    )


def sample(control: Control, at_s: float, **rows: Any) -> None:
    control.on_resources(Resources(at_s=at_s, rows=rows), [])


def test_idle_system_moves_nothing_and_says_why() -> None:
    def without(rig: Rig, control: Control) -> None:
        assert control.reason() == NO_BUDGET
        assert NO_BUDGET in control.state()["lacks"]  # type: ignore[operator]
        assert rig.said() == []

    def idle(rig: Rig, control: Control) -> None:
        assert control.reason() == NO_SAMPLE
        for at_s in range(5):
            sample(control, float(at_s), a=row(20, 256), b=row(30, 256))
        assert rig.said() == []
        assert control.reason() == "memory: every limit is wide enough for what is used"

    run(without)
    run(idle, budget={"memory": 1024 * MIB})


def test_limit_that_was_met_is_raised_within_the_ceiling_explained_and_settled() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        sample(control, 1, a=row(70, 100, ceiling=140))
        sample(control, 2, a=row(99, 100, met=7, ceiling=140))
        said = rig.said()
        (move,) = of(Move, said)
        assert (move.integration, move.limits) == ("a", {"memory": 140 * MIB})
        (decided,) = of(Decided, said)
        assert decided.rule == "budget.raise.need"
        assert decided.choice == "memory 140 MiB"
        assert decided.inputs["need"] == 150 * MIB
        assert "keep 100 MiB" in decided.alternatives
        control.on_moved(Moved(id=move.id, state="in force"), [])
        sample(control, 3, a=row(120, 140, met=7, ceiling=140))
        (settled,) = of(Settled, rig.said())
        assert settled.key == decided.key
        assert settled.outcome == {
            "state": "in force",
            "pressure_before": 7.0,
            "pressure_since": 0.0,
            "relieved": True,
        }
        sample(control, 4, a=row(139, 140, met=9, ceiling=140))
        assert of(Move, rig.said()) == []
        (proposal,) = rig.said("system3>system5:proposal")
        assert (proposal.subject, proposal.change) == ("a", "memory ceiling")

    run(scenario, budget={"memory": 1024 * MIB})


def test_budget_that_is_used_up_while_somebody_is_short_hurts_until_there_is_enough() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        def felt(at_s: int, used: float, met: float) -> list[tuple[str, str]]:
            full = {"b": row(97, 100, met=met), "c": row(97, 100, met=met)}
            sample(control, float(at_s), a=row(used, 100, met=met), **full)
            assert of(Move, rig.said()) == []
            heard = rig.said("system3>system5:algedonic")
            for one in heard:
                assert (one.subject, one.cause) == ("memory budget", "budget")
            return [(one.severity, one.detail) for one in heard]

        assert felt(1, 97, 1) == []
        assert [felt(2, 97, 2), felt(3, 97, 3)] == [[], []], "a peak"
        assert felt(4, 97, 3) == [], "enough for everybody in between"
        assert [felt(5, 97, 4), felt(6, 97, 5)] == [[], []]
        ((severity, detail),) = felt(7, 97, 6)
        assert severity == "pain"
        assert "of 300 MiB is used up" in detail
        assert "a 50 MiB" in detail
        assert felt(8, 97, 7) == [], "told once"
        assert [one[0] for one in felt(2000, 97, 8)] == ["pain"], "and again while it lasts"
        assert [felt(2001 + n, 20, 8) for n in range(2)] == [[], []]
        assert [one[0] for one in felt(2003, 20, 8)] == ["relief"]
        assert felt(2004, 20, 8) == []

    run(scenario, budget={"memory": 300 * MIB})


def test_successor_knows_what_its_predecessor_felt_and_says_when_it_is_over() -> None:
    hurting = [["memory budget", "budget"], ["a", "audit failed"], ["gone", "audit failed"]]

    def scenario(rig: Rig, control: Control) -> None:
        def felt() -> list[tuple[str, str]]:
            return [(one.severity, one.subject) for one in rig.said("system3>system5:algedonic")]

        for at_s in (1, 2, 3):
            assert felt() == [], "a good moment is no end"
            sample(control, float(at_s), a=row(20, 100))
        assert felt() == [("relief", "memory budget")]
        for name in ("a", "gone"):
            control.audits.on_audited(Audited(id=1, integration=name, checked=9), [])
        assert felt() == [("relief", "a")]

    run(scenario, known="a", budget={"memory": 300 * MIB}, hurting=hurting)

    def still(rig: Rig, control: Control) -> None:
        sample(control, 1.0, **{name: row(97, 100, met=1) for name in "abc"})
        sample(control, 2.0, **{name: row(97, 100, met=2) for name in "abc"})
        (signal,) = rig.said("system3>system5:algedonic")
        assert (signal.severity, signal.subject) == ("pain", "memory budget")

    run(still, budget={"memory": 300 * MIB}, hurting=hurting)


def test_out_of_memory_counts_although_the_new_worker_uses_little() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        sample(control, 1, a=row(45, 64))
        sample(control, 2, a=row(5, 64, out_of_memory=1))
        (move,) = of(Move, rig.said())
        assert move.limits == {"memory": 96 * MIB}

    run(scenario, budget={"memory": 1024 * MIB})


def test_who_meets_a_small_limit_is_given_more_than_what_is_no_change() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        def cpu(used_s: float, throttled_s: float) -> ResourceRow:
            values = {"usage": {"cpu": used_s}, "pressure": {"cpu": throttled_s}}
            return ResourceRow(
                floor={"cpu": 0.02}, ceiling={"cpu": 1.5}, limit={"cpu": 0.02}, **values
            )

        sample(control, 1, a=cpu(0.0, 0.0))
        sample(control, 2, a=cpu(0.02, 0.9))
        (move,) = of(Move, rig.said())
        assert move.limits["cpu"] >= 0.04

    run(scenario, budget={"cpu": 2.0})


def test_cache_that_meets_the_limit_is_no_need() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        sample(control, 1, a=row(20, 100))
        sample(control, 2, a=row(20, 100, met=1000))
        assert rig.said() == []

    run(scenario, budget={"memory": 1024 * MIB})


def test_what_goes_to_and_fro_or_was_refused_is_left_alone() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        control.on_rates(Rates(body={"damped": {"a": ["memory"]}}), [])
        sample(control, 1, a=row(70, 100))
        sample(control, 2, a=row(99, 100, met=7))
        assert of(Move, rig.said()) == []
        assert "not to be moved" in control.reason()
        control.on_rates(Rates(body={"damped": {}}), [])
        sample(control, 3, a=row(99, 100, met=9))
        (move,) = of(Move, rig.said())
        control.on_moved(Moved(id=move.id, state="refused", detail="no"), [])
        sample(control, 4, a=row(99, 100, met=11))
        said = rig.said()
        assert of(Settled, said)[0].outcome == {"state": "refused", "detail": "no"}
        assert of(Move, said) == []
        sample(control, 100, a=row(99, 100, met=13))
        assert of(Move, rig.said())

    run(scenario, budget={"memory": 1024 * MIB})


def test_lost_variety_of_an_integration_weighs_when_both_are_short() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        gap = {"integration": "a", "demand": "x", "bits": 1.0}
        variety: Any = {"variety": {"environmental_bits": 2.0, "gap_by_class": [gap]}}
        control.on_outlook(Outlook(body=variety), [])
        sample(control, 1, a=row(70, 100), b=row(70, 100))
        sample(control, 2, a=row(99, 100, met=1), b=row(99, 100, met=1))
        moves = {m.integration: m.limits["memory"] for m in of(Move, rig.said())}
        assert moves["a"] > moves["b"] > 0
        assert moves["a"] + moves["b"] <= 260 * MIB

    run(scenario, budget={"memory": 260 * MIB})


def test_failed_audit_is_pain_and_recorded_a_good_one_recorded_only() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        control.audits.on_audited(Audited(id=1, integration="a", checked=9), [])
        assert [m.event for m in rig.said()] == ["audit.passed"]
        bad = Audited(id=2, integration="a", checked=9, failed={"seccomp": "mode 0"})
        control.audits.on_audited(bad, [])
        (noted,) = rig.said()
        assert (noted.event, noted.severity) == ("audit.failed", "error")
        (signal,) = rig.said("system3>system5:algedonic")
        assert "seccomp: mode 0" in signal.detail
        control.audits.on_audited(Audited(id=3, integration="a", checked=9), [])
        (signal,) = rig.said("system3>system5:algedonic")
        assert (signal.severity, signal.cause) == ("relief", "audit failed")

    run(scenario)


def test_audits_that_fail_in_many_ways_leave_room_for_the_answer() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        failed = {f"contract: {number} {'€' * 150}": "€" * 300 for number in range(64)}
        for number in range(20):
            bad = Audited(id=number, integration="a", checked=9, failed=failed)
            control.audits.on_audited(bad, [])
            (noted,) = rig.said()
            assert len(noted.detail["failed"]) == 64
        rig.context.answer("state", control.state)
        rig.context._reply(Query(id=7, what="state"))
        (answer,) = of(Answer, rig.said())
        assert answer.body["role"] == "control"
        assert len(answer.body["audits"][-1]["failed"]) == 8

    run(scenario)


def test_answer_that_no_message_holds_is_said_to_be_that() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        rig.context.answer("state", lambda: {"all": "x" * MAX_MESSAGE_BYTES, **control.state()})
        rig.context._reply(Query(id=7, what="state"))
        (answer,) = of(Answer, rig.said())
        assert answer.body == {"error": "the answer is larger than a message can be"}

    run(scenario)


def test_audits_come_at_random_and_leave_nobody_out() -> None:
    pauses = [audit_schedule.pause_s(100.0, dice / 1000) for dice in range(1000)]
    assert min(pauses) >= 10.0
    assert max(pauses) <= 400.0
    assert 80 <= sum(pauses) / 1000 <= 120
    assert audit_schedule.choose([], {}, 0.0, 0.5) is None
    chosen = {
        audit_schedule.choose(["a", "b", "c"], {"a": 90.0, "b": 10.0}, 100.0, dice / 100)
        for dice in range(100)
    }
    assert chosen == {"a", "b", "c"}
    likely = [
        audit_schedule.choose(["a", "b", "c"], {"a": 90.0, "b": 10.0}, 100.0, dice / 100)
        for dice in range(100)
    ]
    assert likely.count("c") > likely.count("b") > likely.count("a")


def test_taking_from_who_is_about_to_need_more_is_for_s5_to_decide() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        gap = {"integration": "a", "demand": "x", "bits": 0.7}
        body: Any = {"variety": {"gap_by_class": [gap]}, "rising": ["b"]}
        control.on_outlook(Outlook(body=body), [])
        rows = {"a": row(99, 100), "b": row(30, 400)}
        sample(control, 1, **rows)
        assert of(Move, rig.said()) == []  # what "a" is to get is not there yet
        (proposal,) = rig.said("system3>system5:proposal")
        assert (proposal.subject, proposal.change) == ("b", "memory")
        assert proposal.to_value < proposal.from_value == 400 * MIB
        assert proposal.expected_gain_bits == 0.7
        (told,) = rig.said("system3>system4:budgets")
        assert told.body["held"]["b"] == {"memory": 400 * MIB}
        sample(control, 2, **rows)
        assert rig.said("system3>system5:proposal") == []  # once, until it is answered
        control.on_policy(answer(proposal.id, "refused"), [])
        sample(control, 3, **rows)
        assert of(Move, rig.said()) == []
        assert "refused by system 5" in control.claims["memory"][1].fixed
        (undone,) = rig.said("system3>system5:proposal")
        assert undone.id == proposal.id
        assert undone.outcome == {"state": "not carried out", "held": 400 * MIB}
        sample(control, 100, **rows)
        (again,) = rig.said("system3>system5:proposal")
        control.on_policy(answer(again.id, "approved"), [])
        sample(control, 101, **rows)
        assert [m.integration for m in of(Move, rig.said())] == ["b", "a"]

    run(scenario, budget={"memory": 500 * MIB})


def answer(proposal: int, verdict: Any, **more: Any) -> Policy:
    fields = {"sender": "system3", "subject": "b", "change": "memory"} | more
    return Policy(
        id=1, proposal=proposal, verdict=verdict, rule="closure.conflict", reasons=("because",),
        **fields,
    )  # fmt: skip


def test_ceiling_that_only_an_operator_raises_is_reported_as_not_done() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        sample(control, 1, a=row(70, 140, ceiling=140))
        sample(control, 2, a=row(139, 140, met=9, ceiling=140))
        (proposal,) = rig.said("system3>system5:proposal")
        change = "memory ceiling"
        control.on_policy(answer(proposal.id, "refused", subject="a", change=change), [])
        sample(control, 3, a=row(139, 140, met=10, ceiling=140))
        (undone,) = rig.said("system3>system5:proposal")
        assert (undone.id, undone.change) == (proposal.id, change)
        assert undone.outcome == {"state": "not carried out", "held": 140 * MIB}
        assert of(Move, rig.said()) == []

    run(scenario, budget={"memory": 1024 * MIB})


def foresaw(control: Control, proposal: int, verdict: Any, mib: float) -> None:
    control.on_policy(
        answer(proposal, verdict, sender="system4", subject="a", to_value=mib * MIB), []
    )


def told_system4(rig: Rig) -> list[Any]:
    return [one for told in rig.said("system3>system4:budgets") for one in told.body["outcomes"]]


def test_what_s4_foresaw_and_s5_approved_is_carried_out_before_it_is_needed() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        rows = {"a": row(20, 100), "b": row(30, 100)}
        sample(control, 1, **rows)
        foresaw(control, 7, "approved", 180)
        sample(control, 2, **rows)
        said = rig.said()
        (move,) = of(Move, said)
        assert (move.integration, move.limits) == ("a", {"memory": 180 * MIB})
        assert of(Decided, said)[0].rule == "budget.raise.foreseen"
        control.on_moved(Moved(id=move.id, state="in force"), [])
        assert told_system4(rig) == []
        sample(control, 3, a=row(20, 180), b=rows["b"])
        (outcome,) = told_system4(rig)
        assert outcome["proposal"] == 7
        assert outcome["outcome"]["state"] == "in force"
        assert outcome["outcome"]["to"] == 180 * MIB
        sample(control, 4, a=row(20, 180), b=rows["b"])
        assert of(Move, rig.said()) == []

    run(scenario, budget={"memory": 1024 * MIB})


def test_what_s5_refused_revoked_or_had_no_room_for_is_not_carried_out() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        rows = {"a": row(20, 100), "b": row(78, 100)}
        sample(control, 1, **rows)
        foresaw(control, 7, "refused", 180)
        sample(control, 2, **rows)
        assert told_system4(rig) == [
            {"proposal": 7, "outcome": {"state": "not carried out", "held": 100 * MIB}}
        ]
        foresaw(control, 8, "approved", 180)
        foresaw(control, 8, "revoked", 180)
        sample(control, 3, **rows)
        assert told_system4(rig) == []
        foresaw(control, 9, "approved", 180)  # "b" needs all that is left
        sample(control, 4, **rows)
        sample(control, 100, **rows)
        (outcome,) = told_system4(rig)
        assert (outcome["proposal"], outcome["outcome"]["state"]) == (9, "not carried out")
        assert "nobody can spare" in outcome["outcome"]["reason"]
        foresaw(control, 10, "approved", 100)
        sample(control, 101, **rows)
        assert told_system4(rig)[0]["outcome"]["state"] == "nothing to do"
        assert of(Move, rig.said()) == []

    run(scenario, budget={"memory": 200 * MIB})


@pytest.mark.parametrize(
    "body",
    [
        {"variety": 5, "rising": 5},
        {"variety": {"gap_by_class": 5, "environmental_bits": "much"}, "rising": {"a": 1}},
        {"variety": {"gap_by_class": ["x", {"integration": "a"}], "environmental_bits": 1.0}},
        {"variety": {"gap_by_class": [{"integration": "a", "bits": -9}], "environmental_bits": 1}},
    ],
)
def test_outlook_that_makes_no_sense_changes_no_weight_and_stops_nothing(body: Any) -> None:
    def scenario(rig: Rig, control: Control) -> None:
        control.on_outlook(Outlook(body=body), [])
        sample(control, 1, a=row(99, 100), b=row(30, 400))
        assert [claim.weight for claim in control.claims["memory"]] == [1.0, 1.0]
        assert of(Move, rig.said())

    run(scenario, budget={"memory": 500 * MIB})


def test_move_whose_answer_is_lost_is_not_waited_for_for_ever() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        sample(control, 1, a=row(99, 100))
        (move,) = of(Move, rig.said())
        sample(control, 2, a=row(99, 100))
        assert "on its way" in control.claims["memory"][0].fixed
        sample(control, 1 + STANDING_S, a=row(99, 100))
        said = rig.said()
        (settled,) = of(Settled, said)
        assert settled.outcome == {"state": "not answered"}
        assert [one.integration for one in of(Move, said)] == ["a"], "it is asked for again"
        control.on_moved(Moved(id=move.id, state="in force"), [])  # late: of no interest

    run(scenario, budget={"memory": 1024 * MIB})


def test_so_many_limits_move_at_once_and_no_more() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        rows = {f"i{number}": row(99, 100) for number in range(3 * MOST_MOVES)}
        sample(control, 1, **rows)
        assert len(of(Move, rig.said())) == MOST_MOVES

    run(scenario, budget={"memory": 100_000 * MIB})


def test_move_that_could_not_be_sent_is_no_decision_and_is_asked_for_again() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        report, sent = control.context.report, []
        control.context.report = lambda one: sent.append(one) or False  # type: ignore[method-assign, func-returns-value]
        sample(control, 1, a=row(99, 100))
        control.context.report = report  # type: ignore[method-assign]
        assert of(Decided, sent) == []
        sample(control, 2, a=row(99, 100))
        assert [move.integration for move in of(Move, rig.said())] == ["a"]

    run(scenario, budget={"memory": 1024 * MIB})


def test_new_system_4_hears_of_the_limits_that_it_cannot_know() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        for at_s in (1, 2):
            sample(control, at_s, a=row(20, 100))
        assert len(rig.said("system3>system4:budgets")) == 1
        control.on_outlook(Outlook(body={}), [])
        sample(control, 3, a=row(20, 100))
        (told,) = rig.said("system3>system4:budgets")
        assert told.body["held"] == {"a": {"memory": 100 * MIB}}

    run(scenario, budget={"memory": 1024 * MIB})


def test_verdict_about_an_earlier_wish_takes_no_later_one_back() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        sample(control, 1, a=row(20, 100))
        foresaw(control, 8, "approved", 180)
        foresaw(control, 7, "revoked", 180)
        sample(control, 2, a=row(20, 100))
        assert [move.limits for move in of(Move, rig.said())] == [{"memory": 180 * MIB}]

    run(scenario, budget={"memory": 1024 * MIB})


def test_what_s5_says_without_end_fills_no_memory() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        del rig
        for number in range(5 * MOST):
            for sender in ("system3", "system4"):
                for verdict in ("refused", "approved"):
                    said = answer(
                        number, verdict, sender=sender, subject=f"i{number}", to_value=1.0
                    )
                    control.on_policy(said, [])
            control.verdicts.refuse((f"i{number}", "cpu"), "no", number * 1.0)
            control.verdicts.asked((f"i{number}", "cpu"), number, 1.0)
            control.verdicts.asked_for_ceiling((f"i{number}", "cpu"), number)
        tables = [value for value in vars(control.verdicts).values() if hasattr(value, "__len__")]
        assert max(map(len, tables)) <= MOST

    run(scenario)


def test_who_is_no_more_is_forgotten() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        del rig
        for number in range(50):
            name = f"i{number}"
            control.reconfigure(Configure(integrations=(IntegrationRow(name=name),)), [])
            control.audits.ask()
            sample(control, number * 1000.0, **{name: row(139, 140, met=9, ceiling=140)})
        for table in (control._killed, control._proposed, control.audits._last_s, control._used):
            assert len(table) <= 2

    run(scenario, budget={"memory": 1024 * MIB})


def test_audits_come_when_nobody_expects_them_with_the_configured_mean() -> None:
    pauses = [audit_schedule.pause_s(100.0, (n + 0.5) / 1000) for n in range(1000)]
    assert 85 < sum(pauses) / 1000 < 115
    assert sum(pause < 30 for pause in pauses) > 150, "often soon after another"
    assert sum(pause > 200 for pause in pauses) > 80, "and sometimes not for long"
