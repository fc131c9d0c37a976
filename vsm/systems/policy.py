"""S5, policy: the operator's rules, the final say between S3 and S4, and everybody's pain.

Runs in its own confined process. Publishes the rules for S1, which takes only those whose digest
the supervisor named; decides on proposals by the rule of vsm.core.policy_weighing and records
each decision; passes pain on to the operator at once, and what is like it once in a while.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping
from typing import Any, Final, Literal

from vsm.core import channels
from vsm.core.figures import amount
from vsm.core.policy_rules import RuleError, Rules, compile_rules, to_body
from vsm.core.policy_weighing import (
    CEILING,
    NOW,
    RESOURCES,
    THEN,
    Offer,
    Ruling,
    Standing,
    State,
    Weights,
    feel,
    weigh,
)
from vsm.core.repeats import OTHERS, Repeats, keep_newest_of
from vsm.link import close_fds
from vsm.messages import (
    Algedonic,
    Body,
    Configure,
    Decided,
    Felt,
    Hurt,
    Policy,
    Proposal,
    Settled,
    SnapshotOut,
    Start,
)
from vsm.systems.base import SystemContext

KEPT_SIGNALS: Final = 64
MOST_PAINS: Final = 256  # of one sender
MOST_DECISIONS: Final = 512
REPEAT_INTERVAL_S: Final = 10.0
FLUSH_S: Final = 1.0
FORGOTTEN_S: Final = 3600.0  # a pain that nobody repeats is over
_SHOWN: Final = 8

Cause = tuple[str, str, str]  # sender, subject, cause


class PolicySystem:
    """What S5 knows."""

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.rules = Rules()
        self.weights = Weights()
        self.weighing = State()
        self.signals: deque[tuple[str, Algedonic | Hurt]] = deque(maxlen=KEPT_SIGNALS)
        self.signals_total = 0
        self.pains: OrderedDict[Cause, tuple[float, str]] = OrderedDict()
        self.decided = {"approved": 0, "refused": 0}
        self._epoch = 0
        self._table: Body = {}
        self._repeats = Repeats(REPEAT_INTERVAL_S)
        self._reliefs: dict[str, Repeats] = {}  # by sender: none uses up another's
        self._held: dict[
            Hashable, tuple[str, Algedonic]
        ] = {}  # by kind: who said it last, and what
        self._keys: OrderedDict[tuple[str, int], str] = OrderedDict()
        self._flusher: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def listen(self) -> None:
        """Receive the signals of every system, the proposals of S3 and S4, and news."""
        for channel in channels.receives("system5"):
            if channel.carries == "algedonic":
                self._listen_to(channel)
            elif channel.carries == "proposal":
                self._take_proposals(channel)
        self.context.handle("hurt", self._hurt)
        self.context.handle("configure", self._configure)
        self.context.answer("state", self.state)

    def begin(self, start: Start) -> None:
        """Publish the operator's rules."""
        self._epoch = start.epoch
        self.configure(start.policy)

    def configure(self, table: Mapping[str, Any]) -> None:
        """Publish these rules; what cannot be read is not published, so S1 lets nothing pass."""
        self._table = dict(table)
        try:
            self.rules = compile_rules(table)
        except RuleError:
            return
        known = {key: table[key] for key in Weights._fields if key in table}
        self.weights = Weights(**known)
        self.context.report(SnapshotOut(body=to_body(self.rules)))

    def _configure(self, message: Configure, fds: list[int]) -> None:
        """Only vsm.toml's integrations changed, or its rules too."""
        close_fds(fds)
        if message.policy != self._table:
            self.configure(message.policy)

    # ---- pain ------------------------------------------------------------------------------

    def _listen_to(self, channel: channels.Channel) -> None:
        def receive(message: Algedonic, fds: list[int]) -> None:
            close_fds(fds)
            self.feel(channel.sender, message)

        self.context.handle(channel.name, receive)

    def _hurt(self, message: Hurt, fds: list[int]) -> None:
        """The supervisor hurts, or who is gone no longer does; it has told the operator."""
        close_fds(fds)
        self._remember(message.sender, message)
        if message.sender != "supervisor":
            cause = (message.sender, message.subject, message.cause)
            self._repeats.ends(cause)
            self._held.pop(cause, None)

    def feel(self, sender: str, message: Algedonic) -> None:
        """Tell the operator of a signal, at once unless it was told of the like just now."""
        self._remember(sender, message)
        cause = (sender, message.subject, message.cause)
        now_s = self._loop.time()
        reliefs = self._reliefs.setdefault(sender, Repeats(REPEAT_INTERVAL_S, MOST_PAINS))
        repeats: int | None
        if message.severity == "relief" and reliefs.passes(cause, now_s) is not None:
            repeats = self._repeats.ends(cause)
        else:  # one that comes and goes without end is held back like one that stays
            repeats = self._repeats.passes(cause, now_s)
        if repeats is None:
            self._hold(cause if self._repeats.knows(cause) else OTHERS, sender, message)
        else:
            self._held.pop(cause, None)
            self._tell(sender, message, repeats)

    def _remember(self, sender: str, message: Algedonic | Hurt) -> None:
        self.signals.append((sender, message))
        self.signals_total += 1
        cause = (sender, message.subject, message.cause)
        now_s = self._loop.time()
        self.pains.pop(cause, None)
        if message.severity == "pain":
            self.pains[cause] = (now_s, message.detail)
        keep_newest_of(sender, self.pains, MOST_PAINS)
        self._forget(now_s)
        self._weigh_pain()

    def _forget(self, now_s: float) -> None:
        """What nobody has repeated for long is over."""
        while self.pains and next(iter(self.pains.values()))[0] < now_s - FORGOTTEN_S:
            self.pains.popitem(last=False)

    def _weigh_pain(self) -> None:
        hurting = frozenset(subject for _, subject, _ in self.pains)
        for subject in self.weighing.hurting ^ hurting:
            self.weighing = feel(self.weighing, subject, hurts=subject in hurting)

    def _hold(self, kind: Hashable, sender: str, message: Algedonic) -> None:
        self._held[kind] = (sender, message)
        if self._flusher is None:
            self._flusher = self._loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        """Tell the last of what was held back, once its interval is over."""
        self._flusher = None
        for kind, count in self._repeats.due(self._loop.time()):
            held = self._held.pop(kind, None)
            if held is not None:
                self._tell(*held, count - 1)
        if self._repeats.holds:
            self._flusher = self._loop.call_later(FLUSH_S, self._flush)

    def _tell(self, sender: str, message: Algedonic, repeats: int) -> None:
        felt = Felt(
            sender=sender,  # type: ignore[arg-type]  # a channel's of the table
            severity=message.severity,
            subject=message.subject,
            cause=message.cause,
            detail=message.detail,
            repeats=repeats,
        )
        self.context.report(felt)

    # ---- closure ---------------------------------------------------------------------------

    def _take_proposals(self, channel: channels.Channel) -> None:
        def receive(message: Proposal, fds: list[int]) -> None:
            close_fds(fds)
            if message.sender != channel.sender:
                return  # the channel says who sent it
            if message.outcome is not None:
                self._settle(message.sender, message.id, message.outcome)
            else:
                self.decide(message)

        self.context.handle(channel.name, receive)

    def decide(self, message: Proposal) -> Ruling:
        """Decide on a proposal, record why, and tell whom it concerns."""
        offer = Offer(
            message.sender,
            message.id,
            message.subject,
            message.change,
            message.from_value,
            message.to_value,
            message.evidence,
            message.expected_gain_bits,
            message.cost,
        )
        now_s = self._loop.time()
        self._forget(now_s)
        self._weigh_pain()
        self.weighing, ruling = weigh(self.weighing, offer, self.weights, now_s)
        verdict: Literal["approved", "refused"] = "approved" if ruling.approved else "refused"
        self.decided[verdict] += 1
        number = sum(self.decided.values())
        self._record(offer, ruling, verdict, number)
        answer = Policy(
            id=number,
            sender=message.sender,
            proposal=message.id,
            subject=message.subject,
            change=message.change,
            to_value=message.to_value,
            verdict=verdict,
            rule=ruling.rule,
            alternatives=_alternatives(ruling),
            reasons=ruling.reasons,
        )
        self._tell_verdict(answer)
        if ruling.approved:
            self.context.send("system2", answer)
        if ruling.revoked is not None:
            self._revoke(ruling.revoked, ruling, number, f"{offer.sender}'s proposal {offer.id}")
        return ruling

    def _record(self, offer: Offer, ruling: Ruling, verdict: str, number: int) -> None:
        key = f"{self._epoch}-{number}"
        self._keys[offer.sender, offer.id] = key
        while len(self._keys) > MOST_DECISIONS:
            self._keys.popitem(last=False)
        decided = Decided(
            key=key,
            subject=offer.subject,
            rule=ruling.rule,
            inputs={
                "why": f"{_wish(offer)}: {'; '.join(ruling.reasons)}",
                **offer._asdict(),
                "evidence": dict(offer.evidence),
                "weighs_bits": ruling.bits,
                "reasons": list(ruling.reasons),
                "hurts": offer.subject in self.weighing.hurting,
            },
            alternatives=_alternatives(ruling),
            choice=verdict,
        )
        self.context.report(decided)

    def _revoke(self, standing: Standing, ruling: Ruling, number: int, winner: str) -> None:
        """Another proposal prevailed over one that was approved."""
        offer = standing.offer
        self._settle(offer.sender, offer.id, {"state": "revoked", "revoked_by": winner})
        revoked = Policy(
            id=number,
            sender="system3" if offer.sender == NOW else "system4",
            proposal=offer.id,
            subject=offer.subject,
            change=offer.change,
            to_value=offer.from_value,
            verdict="revoked",
            rule=ruling.rule,
            reasons=ruling.reasons,
        )
        self._tell_verdict(revoked)

    def _tell_verdict(self, answer: Policy) -> None:
        """To who proposed it, and to S3, which alone carries out what is about limits."""
        self.context.send(answer.sender, answer)
        if answer.sender == THEN and answer.change in RESOURCES:
            self.context.send(NOW, answer)

    def _settle(self, sender: str, proposal: int, outcome: Body) -> None:
        key = self._keys.pop((sender, proposal), None)
        if key is not None:
            self.context.report(Settled(key=key, outcome=outcome))

    # ---- what it says of itself --------------------------------------------------------------

    def state(self) -> Body:
        """What it has and what it lacks."""
        configured = not self.rules.say_nothing
        return {
            "role": "policy",
            "purpose": self._table.get("purpose", ""),
            "goals": self._table.get("goals", []),
            "rules": len(self.rules.rules),
            "default": self.rules.default,
            "digest": self.rules.digest,
            "proposals": dict(self.decided),
            "standing": len(self.weighing.standing),
            "signals_total": self.signals_total,
            "signals": [
                {
                    "sender": sender,
                    "severity": signal.severity,
                    "subject": signal.subject,
                    "cause": signal.cause,
                    "detail": signal.detail[:256],
                }
                for sender, signal in list(self.signals)[-_SHOWN:]
            ],
            "pains": [
                {"sender": sender, "subject": subject, "cause": cause, "detail": detail[:256]}
                for (sender, subject, cause), (_, detail) in list(self.pains.items())[-_SHOWN:]
            ],
            "lacks": [] if configured else ["no rules configured"],
            **self.context.channel_state(),
        }

    def close(self) -> None:
        """Stop the timer."""
        if self._flusher is not None:
            self._flusher.cancel()


def _alternatives(ruling: Ruling) -> tuple[str, ...]:
    other = "refuse" if ruling.approved else "approve"
    if ruling.against is None:
        return (other,)
    offer = ruling.against.offer
    return (other, f"{_wish(offer)}, {ruling.against.bits:.3g} bits")


def _wish(offer: Offer) -> str:
    """What a proposal is, for people."""
    if offer.from_value is None or offer.to_value is None:
        return f"{offer.sender}: {offer.change} {offer.subject}"
    resource = offer.change.removesuffix(CEILING)
    before, after = amount(resource, offer.from_value), amount(resource, offer.to_value)
    return f"{offer.sender}: {offer.change} of {offer.subject} from {before} to {after}"


async def main(context: SystemContext) -> None:
    """Publish the rules, then listen and decide until told to stop."""
    policy = PolicySystem(context)
    policy.listen()
    start, fds = await context.started()
    close_fds(list(fds.values()))
    policy.begin(start)
    context.ready()
    try:
        await context.stopping.wait()
    finally:
        policy.close()
