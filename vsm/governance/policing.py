"""S5 in the supervisor: the rules as configured, approvals, and pain on its way to the operator.

Runs in the supervisor. Owns the desk of approvals, who is told of which rules, and the limit in
rate of what the supervisor itself feels. Pain is logged and recorded in the same turn of the
loop in which it comes; it waits for nothing and nobody.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vsm.configuration.policy import compile_policy
from vsm.core import restart
from vsm.core.policy_rules import compile_rules
from vsm.core.repeats import Repeats, Surges, keep_newest_of
from vsm.errors import VsmError, sound
from vsm.governance.approvals import Desk, wall_s
from vsm.messages import (
    Asking,
    Body,
    Felt,
    Grant,
    Hurt,
    Message,
    Policed,
    Regulation,
    Spent,
    Withdrawn,
)

if TYPE_CHECKING:
    from vsm.supervision.supervisor import Supervisor

MOST_PAINS: Final = 256  # of one sender
REPEAT_INTERVAL_S: Final = 10.0
CALM_S: Final = 5.0
OF_OTHERS: Final = frozenset({"denials", "budget"})
"""Causes of pain whose subject is no integration: a client, a rule."""
FORGOTTEN_S: Final = 3600.0
_MOST_SUBJECT: Final = 128
_MOST_DETAIL: Final = 4096

Cause = tuple[str, str, str]  # sender, subject, cause


class Pain(NamedTuple):
    """Since when something hurts, and when that was said last."""

    began_s: float
    said_s: float
    detail: str


class Policing:
    """One supervisor's part of policy."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self.table: Body = {}
        self._forgotten = ""  # why, where what was granted before could not be read
        self._spent: dict[str, int] = {}
        self.digest = ""
        self.desk = Desk(
            supervisor.recorder.journal,
            tell=lambda message: self._tell("system1", message),
            epoch=self._epoch,
            may_ask=self._why_nobody_is_asked,
        )
        self.pains: OrderedDict[Cause, Pain] = OrderedDict()
        self._repeats = Repeats(REPEAT_INTERVAL_S)
        self._attempts = Surges(1)
        self._calm: asyncio.TimerHandle | None = None
        self.configure()

    # ---- rules -----------------------------------------------------------------------------

    def configure(self) -> None:
        """Take the rules of the configuration; S1 takes only these, whoever publishes others."""
        self.table = compile_policy(self._supervisor.config.policy, "policy")
        rules = compile_rules(self.table)
        self.digest = "" if rules.say_nothing else rules.digest
        self._attempts.threshold = self._supervisor.config.policy.attempts_per_minute

    def restore(self) -> None:
        """Take back what was granted before vsm was restarted."""
        if not self.digest:
            return
        try:
            self.desk.restore(self._supervisor.recorder.path)
        except VsmError as error:
            self._forgotten = str(error)
            self._supervisor.log.warning("what was granted before is forgotten", reason=str(error))

    def start_of_operations(self) -> dict[str, Any]:
        """What the `start` of S1 says of policy."""
        limit: Body = {"denials_per_minute": self.table["denials_per_minute"]}
        grants: tuple[Grant, ...] = self.desk.grants()
        start = {"policy": limit, "rules": self.digest, "grants": grants}
        return start | {"spent": self._spent}

    def _tell(self, system: str, message: Message) -> bool:
        running = self._supervisor.systems.running.get(system)
        return running is not None and running.link is not None and running.link.send(message)

    def _epoch(self) -> int:
        running = self._supervisor.systems.running.get("system1")
        return running.epoch if running is not None else 0

    def _why_nobody_is_asked(self) -> str:
        """Without S5 nobody takes responsibility: what is to be asked is denied."""
        ready = self._supervisor.systems.systems.phase("system5") == "ready"
        return "" if ready else "system 5 is away"

    # ---- what systems report ---------------------------------------------------------------

    def on_message(self, system: str, message: Policed) -> None:
        """Take what S1 and S5 report; from others it is nothing."""
        match message:
            case Asking() if system == "system1":
                self._asking(message)
            case Withdrawn() if system == "system1":
                self.desk.withdrawn(message.id)
            case Spent() if system == "system1":
                self._spent = dict(message.calls)
            case Felt() if system == "system5":
                self._announce(
                    message.sender, message.severity, message.subject, message.cause,
                    message.detail, message.repeats,
                )  # fmt: skip

    def _asking(self, message: Asking) -> None:
        approval = self.desk.asking(message)
        self._supervisor.log.warning(
            "approval wanted",
            id=approval,
            client=message.client,
            integration=message.integration,
            name=message.name,
            remedy=f"vsm approve {approval}, or vsm deny {approval}",
        )
        self._supervisor.recorder.journal.event(
            "approval.wanted",
            integration=message.integration,
            severity="warning",
            detail={"id": approval, "name": message.name, "client": message.client},
        )

    def operations_lost(self) -> None:
        """The calls that waited died with S1, and what it felt: its successor begins anew."""
        self.desk.lost("the gateway was replaced")
        if self._supervisor.stopping:
            return
        detail = "the gateway was replaced; what hurts still is felt anew"
        for subject, cause in self.told_by("system1"):
            self._tell_policy("relief", subject, cause, detail, sender="system1")
            self._announce("system1", "relief", subject, cause, detail, 0)

    # ---- pain ------------------------------------------------------------------------------

    def hurt(self, subject: str, cause: str, detail: str) -> None:
        """The supervisor itself hurts."""
        repeats = self._repeats.passes((subject, cause), time.monotonic())
        self._tell_policy("pain", subject, cause, detail)
        if repeats is not None:
            self._announce("supervisor", "pain", subject, cause, detail, repeats)

    def relieve(self, subject: str, cause: str, detail: str) -> None:
        """It no longer does; nothing where it did not."""
        if ("supervisor", subject, cause) not in self.pains:
            return
        repeats = self._repeats.ends((subject, cause))
        self._tell_policy("relief", subject, cause, detail)
        self._announce("supervisor", "relief", subject, cause, detail, repeats)

    def forget(self, name: str) -> None:
        """An integration is no more, and hurts nobody."""
        detail = f"{name} is removed"
        for sender, subject, cause in list(self.pains):
            if subject == name and sender == "supervisor":
                self.relieve(name, cause, detail)
            elif subject == name and cause not in OF_OTHERS:
                self._announce(sender, "relief", name, cause, detail, 0)

    def told_by(self, system: str) -> list[list[str]]:
        """Subject and cause of what a system said to hurt and has not taken back."""
        self._forget_old(time.monotonic())
        return [[subject, cause] for sender, subject, cause in self.pains if sender == system]

    def trust(self, kind: str, name: str, detail: Mapping[str, Any]) -> None:
        """What a server offers was compared with its pins."""
        if kind == "trust.changed":
            items = ", ".join(str(item) for item in detail.get("items", ()))
            self.hurt(name, "pins", f"changed since it was approved, so it is not served: {items}")
        elif kind == "trust.approved":
            self.relieve(name, "pins", "somebody approved what it offers")

    def attempted(self, name: str, times: int) -> None:
        """An integration tried what its sandbox refuses, so often."""
        if self._attempts.add(name, time.monotonic(), times):
            limit = self._attempts.threshold
            self.hurt(
                name, "attempts", f"its sandbox refused it more than {limit} times in a minute"
            )
        if self._attempts.in_pain and self._calm is None:
            self._calm = asyncio.get_running_loop().call_later(CALM_S, self._calm_down)

    def _calm_down(self) -> None:
        self._calm = None
        for name in self._attempts.relieved(time.monotonic()):
            self.relieve(name, "attempts", f"{name} is refused little again")
        if self._attempts.in_pain:
            self._calm = asyncio.get_running_loop().call_later(CALM_S, self._calm_down)

    def _tell_policy(
        self,
        severity: Any,  # noqa: ANN401 - a literal
        subject: str,
        cause: str,
        detail: str,
        sender: Any = "supervisor",  # noqa: ANN401 - as above
    ) -> None:
        message = Hurt(
            sender=sender,
            severity=severity,
            subject=subject[:_MOST_SUBJECT],
            cause=cause,
            detail=detail[:_MOST_DETAIL],
        )
        self._tell("system5", message)

    def _announce(  # noqa: PLR0917 - the fields of one signal
        self, sender: str, severity: str, subject: str, cause: str, detail: str, repeats: int
    ) -> None:
        """Into the log and the journal, now."""
        key = (sender, subject, cause)
        pain = severity == "pain"
        if pain:
            now_s = time.monotonic()
            self._forget_old(now_s)
            known = self.pains.pop(key, None)
            self.pains[key] = Pain(now_s if known is None else known.began_s, now_s, detail)
            keep_newest_of(sender, self.pains, MOST_PAINS)
        else:
            self.pains.pop(key, None)
        told: dict[str, Any] = {"sender": sender, "subject": subject, "reason": detail}
        told |= {"cause": cause} if cause else {}
        told |= {"like_it_before": repeats} if repeats else {}
        log = self._supervisor.log
        (log.error if pain else log.info)(severity, **told)
        self._supervisor.recorder.journal.event(
            f"algedonic.{severity}",
            source=sender,
            worker=subject,
            severity="error" if pain else "notice",
            detail={key: value for key, value in told.items() if key not in {"sender", "subject"}},
        )

    def changed(self, change: restart.Changed) -> None:
        """A worker's phase: quarantine hurts until it serves again."""
        if change.phase == "quarantined" or change.escalated:
            self.hurt(change.name, "quarantine", change.reason or "failed too often")
        elif change.phase in {"ready", "stopped"}:
            self.relieve(change.name, "quarantine", f"{change.name} is {change.phase}")

    def _forget_old(self, now_s: float) -> None:
        """What a system did not repeat for an hour is over."""
        for key, one in list(self.pains.items()):
            if key[0] != "supervisor" and now_s - one.said_s > FORGOTTEN_S:
                del self.pains[key]

    def overview(self) -> list[dict[str, Any]]:
        """What hurts now, for `vsm status`."""
        now_s = time.monotonic()
        self._forget_old(now_s)
        return [
            {
                "sender": sender,
                "subject": subject,
                "cause": cause,
                "detail": one.detail,
                "for_s": round(now_s - one.began_s, 1),
            }
            for (sender, subject, cause), one in self.pains.items()
        ]

    # ---- commands --------------------------------------------------------------------------

    async def approvals(self, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """What waits for a person."""
        del arguments
        await asyncio.sleep(0)
        return {**self.desk.overview(), "forgotten": self._forgotten}

    async def approve(self, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """A person approves a call, and with `always_for_s` the like of it for a while."""
        seconds = arguments.get("always_for_s", 0)
        if type(seconds) not in {int, float} or not 0 <= seconds < float("inf"):
            raise VsmError("control socket", "arguments.always_for_s: expected seconds")
        return self._decide(arguments, approved=True, grant_s=float(seconds))

    async def deny(self, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """A person denies a call."""
        return self._decide(arguments, approved=False, grant_s=0.0)

    def _decide(
        self, arguments: Mapping[str, Any], *, approved: bool, grant_s: float
    ) -> dict[str, Any]:
        approval, by = arguments.get("id"), arguments.get("by")
        if not isinstance(approval, str) or not approval:
            raise VsmError("control socket", "arguments.id: expected an id")
        who = sound(by)[:64] if isinstance(by, str) and by else "the owner"
        settled = self.desk.decide(approval, approved=approved, by=f"by {who}", grant_s=grant_s)
        return {
            "id": approval,
            "verdict": settled.verdict,
            "granted_until_s": wall_s(settled.grant_until_s),
            **settled.pending.details,
        }

    def close(self) -> None:
        """The end of vsm: what waits is denied."""
        self.desk.close()
        if self._calm is not None:
            self._calm.cancel()


def govern(supervisor: "Supervisor", system: str, message: Regulation | Policed) -> None:
    """Give what a system reported to whoever judges it."""
    if isinstance(message, Policed):
        supervisor.policing.on_message(system, message)
    else:
        supervisor.regulator.on_message(system, message)
