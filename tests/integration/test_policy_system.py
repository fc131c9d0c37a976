"""S5's own loop on real links: S3 and S4 in conflict, and pain that overtakes what is queued."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from vsm.board.heartbeat import BoardWriter
from vsm.configuration.policy import Policy as PolicyTable
from vsm.configuration.policy import RuleDocument, compile_policy
from vsm.core import channels
from vsm.core.policy_rules import compile_rules
from vsm.link import Link, channel_pair, close_fds, socketpair
from vsm.messages import (
    CHANNEL_PARSERS,
    Algedonic,
    Configure,
    Decided,
    Felt,
    Policy,
    Proposal,
    Ready,
    SnapshotOut,
    Start,
    Stop,
    parse_from_system,
    parse_to_system,
)
from vsm.systems import policy
from vsm.systems.base import SystemContext, run_system

TABLE = PolicyTable(rules=(RuleDocument(action="deny", tool="x"),), margin_bits=0.1)


class Rig:
    """S5 and everybody who talks with it."""

    def __init__(self) -> None:
        control, other = socketpair()
        self.supervisor: Link[Any] = Link(other, parse_from_system)
        self.others: dict[str, Link[Any]] = {}
        ends: dict[str, Link[Any]] = {}
        for channel in (*channels.sends("system5"), *channels.receives("system5")):
            sender, receiver = channel_pair()
            parse = CHANNEL_PARSERS[channel.carries]
            ours = channel.sender == "system5"
            ends[channel.name] = Link(sender if ours else receiver, parse)
            self.others[channel.name] = Link(receiver if ours else sender, parse)
        link = Link(control, parse_to_system)
        self._writer = writer = BoardWriter(3)
        self._theirs: list[Link[Any]] = [link, *ends.values()]
        self.context = lambda: SystemContext("system5", link, ends, writer, layers=[])
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        heard = [self.others[channel.name] for channel in channels.sends("system5")]
        for one in (self.supervisor, *heard):
            one.start(self._hear, lambda: None)

    def _hear(self, message: Any, fds: list[int]) -> None:
        close_fds(fds)
        self.heard.put_nowait(message)

    async def hears(self, kind: type) -> Any:
        """The next message of a kind, whoever it is for."""
        async with asyncio.timeout(20):
            while not isinstance(message := await self.heard.get(), kind):
                pass
        return message

    def close(self) -> None:
        for one in (self.supervisor, *self.others.values(), *self._theirs):
            one.close()
        self._writer.close()


def with_system(scenario: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        rig = Rig()
        system = asyncio.create_task(run_system(rig.context, policy.main))
        rig.supervisor.send(Start(epoch=3, policy=compile_policy(TABLE, "policy")))
        try:
            await rig.hears(Ready)
            await scenario(rig)
        finally:
            rig.supervisor.send(Stop())
            async with asyncio.timeout(20):
                await system
            rig.close()

    asyncio.run(main())


def propose(rig: Rig, sender: Any, to_value: float, bits: float) -> bool:
    message = Proposal(
        id=1,
        sender=sender,
        subject="it",
        change="memory",
        from_value=100.0,
        to_value=to_value,
        evidence={"need": to_value},
        expected_gain_bits=bits,
    )
    return rig.others[f"{sender}>system5:proposal"].send(message)


def test_s5_decides_between_s3_and_s4_by_the_written_rule() -> None:
    async def scenario(rig: Rig) -> None:
        propose(rig, "system3", 200.0, 0.3)
        first = await rig.hears(Policy)
        assert (first.sender, first.verdict, first.rule) == (
            "system3", "approved", "closure.unopposed",
        )  # fmt: skip
        propose(rig, "system4", 50.0, 0.7)
        decided = await rig.hears(Decided)
        while decided.inputs["sender"] != "system4":
            decided = await rig.hears(Decided)
        assert (decided.rule, decided.choice) == ("closure.conflict", "refused")
        assert decided.inputs["weighs_bits"] == 0.35
        assert "not more by the margin" in decided.inputs["reasons"][0]

    with_system(scenario)


def test_pain_reaches_the_supervisor_past_a_full_channel() -> None:
    async def scenario(rig: Rig) -> None:
        queued = 0
        while propose(rig, "system3", 200.0, 0.3):
            queued += 1
        pain = Algedonic(severity="pain", subject="it", cause="breaker", detail="it hurts")
        assert rig.others["system1>system5:algedonic"].send(pain)
        heard = 0
        async with asyncio.timeout(20):
            while not isinstance(message := await rig.heard.get(), Felt):
                heard += isinstance(message, Decided)
        assert (message.sender, message.subject) == ("system1", "it")
        assert heard < queued / 2, "it did not wait for what came before it"

    with_system(scenario)


def test_edited_rules_are_published_once() -> None:
    async def scenario(rig: Rig) -> None:
        table = compile_policy(PolicyTable(default="deny"), "policy")
        rig.supervisor.send(Configure(policy=compile_policy(TABLE, "policy")))
        rig.supervisor.send(Configure(policy=table))
        snapshot = await rig.hears(SnapshotOut)
        assert compile_rules(snapshot.body).digest == compile_rules(table).digest

    with_system(scenario)
