"""S5 with links that only remember: rules published, pain passed on, proposals decided."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from system_rig import Rig

from vsm.configuration.policy import Policy as PolicyTable
from vsm.configuration.policy import compile_policy
from vsm.core.goals import Goal
from vsm.core.policy_rules import compile_rules
from vsm.core.policy_weighing import Offer
from vsm.messages import (
    Algedonic,
    Decided,
    Felt,
    Hurt,
    Policy,
    Proposal,
    Settled,
    SnapshotOut,
    Start,
)
from vsm.systems import policy
from vsm.systems.policy import (
    FORGOTTEN_S,
    MOST_DECISIONS,
    MOST_PAINS,
    REPEAT_INTERVAL_S,
    PolicySystem,
    _wish,
)


class Context:
    """What a system is given, without processes."""

    def __init__(self) -> None:
        self.reported: list[Any] = []
        self.sent: list[tuple[str, Any]] = []
        self.callbacks: dict[str, Callable[[Any, list[int]], None]] = {}
        self._changed = asyncio.Event()

    def handle(self, kind: str, callback: Callable[[Any, list[int]], None]) -> None:
        self.callbacks[kind] = callback

    def answer(self, what: str, body: Any) -> None:
        del what, body

    def report(self, message: Any) -> bool:
        self.reported.append(message)
        self._changed.set()
        return True

    async def told(self, kind: type, count: int) -> None:
        while len(self.of(kind)) < count:
            self._changed.clear()
            await self._changed.wait()

    def send(self, receiver: str, message: Any) -> bool:
        self.sent.append((receiver, message))
        return True

    def channel_state(self) -> dict[str, Any]:
        return {}

    def take(self, channel: str, message: Any) -> None:
        self.callbacks[channel](message, [])

    def of(self, kind: type) -> list[Any]:
        return [one for one in self.reported if isinstance(one, kind)]


def with_system(scenario: Callable[[PolicySystem, Context], Awaitable[None]]) -> None:
    async def main() -> None:
        context = Context()
        system = PolicySystem(context)  # type: ignore[arg-type]
        system.listen()
        table = compile_policy(PolicyTable(default="deny", margin_bits=0.1), "policy")
        system.begin(Start(epoch=3, policy=table))
        try:
            await scenario(system, context)
        finally:
            system.close()

    asyncio.run(main())


def pain(subject: str = "it", cause: str = "breaker", **more: Any) -> Algedonic:
    return Algedonic(severity="pain", subject=subject, cause=cause, detail="it hurts", **more)


RELIEF = Algedonic(severity="relief", subject="it", cause="breaker", detail="over")
PAPERS = Goal("answered_well", "it", 0.9)
FROM_S1, FROM_S4 = "system1>system5:algedonic", "system4>system5:algedonic"


def test_pain_overtakes_a_flood_of_decisions() -> None:
    """Real links: system 4 proposes without end, and nobody reads what system 5 says of it."""

    async def main() -> None:
        rig = Rig("system5")
        system = PolicySystem(rig.context)
        try:
            seen = rig.context.control.statistics
            number = 0
            while not seen().dropped:
                number += 1
                system.decide(proposal("system4", number, 200.0, 0.1))
            waited = seen().queued
            system.feel("system1", pain())
            said = []
            while (received := rig.supervisor.receive(0)) is not None:
                said.append(received[0])
                rig.context.control.flush()
            kinds = [type(one) for one in said]
            assert kinds.count(Felt) == 1, "it was not dropped"
            assert len(kinds) - kinds.index(Felt) - 1 == waited, "all that waited comes after it"
        finally:
            system.close()
            rig.close()

    asyncio.run(main())


def test_rules_are_published_with_the_digest_that_the_supervisor_names() -> None:
    async def scenario(system: PolicySystem, context: Context) -> None:
        (snapshot,) = context.of(SnapshotOut)
        table = compile_policy(PolicyTable(default="deny", margin_bits=0.1), "policy")
        assert compile_rules(snapshot.body).digest == compile_rules(table).digest
        system.configure({"rules": [{"action": "perhaps"}]})
        assert len(context.of(SnapshotOut)) == 1, "what cannot be read is not published"
        assert system.state()["lacks"] == []

    with_system(scenario)


class Loop:
    """A loop whose time stands still."""

    now_s = 100.0

    def time(self) -> float:
        return self.now_s

    def call_later(self, *_words: Any) -> SimpleNamespace:
        return SimpleNamespace(cancel=lambda: None)


def test_pain_that_comes_and_goes_without_end_is_told_seldom_and_how_it_is_at_the_end() -> None:
    async def scenario(system: PolicySystem, context: Context) -> None:
        loop = system._loop = Loop()  # type: ignore[assignment]
        for _ in range(500):
            context.take(FROM_S1, pain())
            context.take(FROM_S1, RELIEF)
        assert [one.severity for one in context.of(Felt)] == ["pain", "relief", "pain"]
        assert system.state()["pains"] == []
        loop.now_s += REPEAT_INTERVAL_S + 1
        system._flush()
        (last,) = context.of(Felt)[3:]
        assert (last.severity, last.repeats) == ("relief", 996)

    with_system(scenario)


def test_reliefs_of_what_never_hurt_are_bounded_and_keep_nobody_elses_back() -> None:
    async def scenario(system: PolicySystem, context: Context) -> None:
        system._loop = Loop()  # type: ignore[assignment]
        for number in range(3 * MOST_PAINS):
            context.take(FROM_S1, RELIEF.model_copy(update={"subject": f"no. {number}"}))
        told = len(context.of(Felt))
        assert told < 2 * MOST_PAINS
        context.take(FROM_S4, RELIEF)
        assert [one.sender for one in context.of(Felt)[told:]] == ["system4"]

    with_system(scenario)


def test_what_a_gateway_felt_that_is_gone_hurts_no_more_and_is_news_where_it_hurts_again() -> None:
    async def scenario(system: PolicySystem, context: Context) -> None:
        for _ in range(3):
            context.take(FROM_S1, pain())
        gone = Hurt(
            sender="system1", severity="relief", subject="it", cause="breaker", detail="gone"
        )
        context.take("hurt", gone)
        assert system.state()["pains"] == []
        assert len(context.of(Felt)) == 1, "the operator was told by the supervisor"
        context.take(FROM_S1, pain())
        assert [one.repeats for one in context.of(Felt)] == [0, 0]

    with_system(scenario)


def test_pain_is_passed_on_in_the_same_turn_and_the_like_of_it_is_counted() -> None:
    async def scenario(system: PolicySystem, context: Context) -> None:
        for _ in range(5):
            context.take(FROM_S1, pain())
        context.take(FROM_S4, pain())
        context.take(FROM_S1, pain("other"))
        felt = context.of(Felt)
        assert [(one.sender, one.subject) for one in felt] == [
            ("system1", "it"), ("system4", "it"), ("system1", "other"),
        ]  # fmt: skip
        context.take(FROM_S1, RELIEF)
        assert (context.reported[-1].severity, context.reported[-1].repeats) == ("relief", 4)
        context.take(FROM_S1, pain())
        assert context.reported[-1].severity == "pain", "after relief it is news again"
        assert system.signals_total == 9
        assert {key[1] for key in system.pains} == {"it", "other"}

    with_system(scenario)


def test_missed_goal_of_an_integration_keeps_s4_from_prevailing_there() -> None:
    verdicts = []
    missed = [pain(PAPERS.subject, PAPERS.cause)]

    async def scenario(_system: PolicySystem, context: Context) -> None:
        while missed:
            context.take(FROM_S4, missed.pop())
        context.take(FROM["system3"], proposal("system3", 1, 50.0, 0.2))
        context.take(FROM["system4"], proposal("system4", 1, 200.0, 2.0))
        verdicts.append((context.of(Decided)[-1].rule, context.of(Decided)[-1].choice))

    with_system(scenario)
    with_system(scenario)  # the same without pain
    assert verdicts == [("closure.pain", "refused"), ("closure.conflict", "approved")]


def test_the_last_of_what_was_held_back_is_told_in_the_end(monkeypatch: Any) -> None:
    monkeypatch.setattr(policy, "REPEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(policy, "FLUSH_S", 0.02)

    async def scenario(_system: PolicySystem, context: Context) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        with monkeypatch.context() as at_once:  # however long the processor takes over it
            at_once.setattr(loop, "time", lambda: now_s)
            for _ in range(4):
                context.take(FROM_S1, pain())
        await asyncio.wait_for(context.told(Felt, 2), 20)
        assert [one.repeats for one in context.of(Felt)] == [0, 2], (
            "one told, two counted, one told"
        )

    with_system(scenario)


def test_no_system_pushes_the_pain_of_another_out() -> None:
    async def scenario(system: PolicySystem, context: Context) -> None:
        context.take(FROM_S4, pain(PAPERS.subject, PAPERS.cause))
        for number in range(3 * MOST_PAINS):
            context.take(FROM_S1, pain(f"no. {number}"))
        assert ("system4", PAPERS.subject, PAPERS.cause) in system.pains
        assert len(system.pains) == MOST_PAINS + 1
        assert PAPERS.subject in system.weighing.hurting
        assert len(system.weighing.hurting) == MOST_PAINS + 1

    with_system(scenario)


def test_pain_that_nobody_repeats_weighs_no_longer_than_it_is_said_to_last() -> None:
    async def scenario(system: PolicySystem, context: Context) -> None:
        context.take(FROM_S1, pain())
        (key,) = system.pains
        began_s, detail = system.pains[key]
        system.pains[key] = (began_s - FORGOTTEN_S - 1, detail)
        context.take(FROM["system3"], proposal("system3", 1, 50.0, 0.2))
        context.take(FROM["system4"], proposal("system4", 1, 200.0, 2.0))
        assert context.of(Decided)[-1].rule == "closure.conflict"
        assert not system.pains

    with_system(scenario)


def test_of_more_kinds_than_are_told_apart_every_signal_is_counted(monkeypatch: Any) -> None:
    monkeypatch.setattr(policy, "REPEAT_INTERVAL_S", 0.05)
    monkeypatch.setattr(policy, "FLUSH_S", 0.02)

    async def scenario(system: PolicySystem, context: Context) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        with monkeypatch.context() as at_once:  # however long the processor takes over it
            at_once.setattr(loop, "time", lambda: now_s)
            for number in range(200):
                context.take(FROM_S1, pain(f"no. {number}"))
        told = context.of(Felt)
        assert 60 < len(told) < 70
        await asyncio.wait_for(context.told(Felt, len(told) + 1), 20)
        assert sum(1 + one.repeats for one in context.of(Felt)) == 200
        assert system._held == {}

    with_system(scenario)


def proposal(sender: str, number: int, to_value: float, bits: float, **more: Any) -> Proposal:
    fields = {"subject": "it", "change": "memory", "from_value": 100.0, "evidence": {"why": "x"}}
    return Proposal(
        id=number,
        sender=sender,  # type: ignore[arg-type]
        to_value=to_value,
        expected_gain_bits=bits,
        **(fields | more),  # type: ignore[arg-type]
    )


FROM = {name: f"{name}>system5:proposal" for name in ("system3", "system4")}


def test_conflict_is_decided_recorded_and_told_to_both() -> None:
    async def scenario(_system: PolicySystem, context: Context) -> None:
        context.take(FROM["system3"], proposal("system3", 1, 200.0, 0.2))
        context.take(FROM["system4"], proposal("system4", 1, 50.0, 0.5))
        context.take(FROM["system4"], proposal("system4", 2, 50.0, 2.0))
        told = [(to, one.sender, one.proposal, one.verdict) for to, one in context.sent]
        assert told == [
            ("system3", "system3", 1, "approved"),
            ("system2", "system3", 1, "approved"),
            ("system4", "system4", 1, "refused"),
            ("system3", "system4", 1, "refused"),  # S3 carries out what is about limits
            ("system4", "system4", 2, "approved"),
            ("system3", "system4", 2, "approved"),
            ("system2", "system4", 2, "approved"),
            ("system3", "system3", 1, "revoked"),
        ]
        assert all(isinstance(one, Policy) for _, one in context.sent)
        rules = [(one.key, one.rule, one.choice) for one in context.of(Decided)]
        assert rules == [
            ("3-1", "closure.unopposed", "approved"),
            ("3-2", "closure.conflict", "refused"),
            ("3-3", "closure.conflict", "approved"),
        ]
        assert context.of(Decided)[1].inputs["weighs_bits"] == 0.25
        assert "system3: memory of it from" in context.of(Decided)[1].alternatives[1]
        assert context.of(Decided)[0].inputs["why"].endswith(": nothing stands against it")
        assert context.of(Settled)[0].outcome == {
            "state": "revoked",
            "revoked_by": "system4's proposal 2",
        }
        done = proposal("system4", 2, 50.0, 2.0, outcome={"state": "in force"})
        context.take(FROM["system4"], done)
        assert (context.reported[-1].key, context.reported[-1].outcome["state"]) == (
            "3-3", "in force",
        )  # fmt: skip

    with_system(scenario)


def test_pain_turns_a_decision_and_nobody_speaks_for_another() -> None:
    async def scenario(_system: PolicySystem, context: Context) -> None:
        hurt = Hurt(severity="pain", subject="it", cause="quarantine", detail="x")
        context.take("hurt", hurt)
        assert context.of(Felt) == [], "the supervisor has told it already"
        context.take(FROM["system3"], proposal("system3", 1, 200.0, 0.1))
        context.take(FROM["system4"], proposal("system4", 1, 50.0, 9.0))
        assert context.of(Decided)[-1].rule == "closure.pain"
        assert context.of(Decided)[-1].choice == "refused"
        before = len(context.of(Decided))
        context.take(FROM["system4"], proposal("system3", 7, 300.0, 9.0))
        assert len(context.of(Decided)) == before, "the channel says who it is"

    with_system(scenario)


def test_decisions_whose_outcome_never_comes_fill_no_memory() -> None:
    async def scenario(system: PolicySystem, context: Context) -> None:
        for number in range(MOST_DECISIONS + 50):
            context.take(FROM["system4"], proposal("system4", number, 200.0, 2.0))
        assert len(system._keys) == MOST_DECISIONS

    with_system(scenario)


def test_proposal_is_told_in_words_and_units() -> None:
    def wish(change: str, before: float | None, after: float | None) -> str:
        return _wish(Offer("system4", 1, "it", change, before, after, {}, 0.1, 0.0))

    assert wish("memory", 300 * 2.0**20, 600 * 2.0**20) == (
        "system4: memory of it from 300 MiB to 600 MiB"
    )
    assert wish("memory ceiling", 2.0**20, 2.0**21) == (
        "system4: memory ceiling of it from 1 MiB to 2 MiB"
    )
    assert wish("instances", 2, 4) == "system4: instances of it from 2 to 4"
    assert wish("serve", None, None) == "system4: serve it"
