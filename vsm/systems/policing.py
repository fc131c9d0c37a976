"""S1's side of S5's rules: the gate, wired to the supervisor and to S5.

Owns the gate and turns what it does into messages: denials and questions to the supervisor, pain
to S5. Runs in S1's event loop.
"""

from typing import Any, Final

from vsm.core.policy_rules import Asked, Decision
from vsm.gateway.fleet import Fleet
from vsm.gateway.gate_rules import Question, RuleGate
from vsm.link import close_fds
from vsm.messages import (
    Algedonic,
    Asking,
    Body,
    Configure,
    Decided,
    Grant,
    Grants,
    Spent,
    Start,
    Verdict,
    Withdrawn,
)
from vsm.systems.base import SystemContext

DENIALS_PER_MINUTE: Final = 30
_MOST_NAME: Final = 512
_MOST_SUBJECT: Final = 128


class Policing:
    """The rules in S1."""

    def __init__(self, context: SystemContext, fleet: Fleet, start: Start) -> None:
        self._context = context
        self._fleet = fleet
        self._epoch = start.epoch
        self._denied = 0
        per_minute = _limit(start.policy)
        self.gate = RuleGate(self, digest=start.rules, denials_per_minute=per_minute)
        self._grant(start.grants)
        self.gate.restore(start.spent)
        self._put()

    def register(self) -> None:
        """Take what concerns rules from now on."""
        self._context.handle("verdict", self._verdict)
        self._context.handle("grants", self._granted)

    def take(self, body: Body) -> None:
        """S5 published rules."""
        if self.gate.take(body):
            self._put()

    def configure(self, message: Configure) -> None:
        """The operator's rules may be others from now on."""
        self.gate.expect(message.rules, denials_per_minute=_limit(message.policy))
        self._put()

    def close(self) -> None:
        """S1 stops."""
        self.gate.close("the gateway stops")

    def _put(self) -> None:
        self._fleet.guard("rules", self.gate.guards)

    # ---- from the supervisor ---------------------------------------------------------------

    def _verdict(self, message: Verdict, fds: list[int]) -> None:
        close_fds(fds)
        self.gate.verdict(message.id, message.reason, approved=message.approved)

    def _granted(self, message: Grants, fds: list[int]) -> None:
        close_fds(fds)
        self._grant(message.grants)

    def _grant(self, grants: tuple[Grant, ...]) -> None:
        self.gate.grant(
            {(g.rule, g.client, g.integration, g.asks, g.name): g.until_s for g in grants}
        )

    # ---- what the gate tells ---------------------------------------------------------------

    def denied(self, asked: Asked, decision: Decision, repeats: int) -> None:
        """The journal hears of it."""
        self._denied += 1
        rule = decision.rule
        decided = Decided(
            key=f"denied-{self._epoch}-{self._denied}",
            subject=f"{asked.integration}: {asked.name}"[:_MOST_SUBJECT],
            rule="policy.rule" if rule else "policy.default",
            inputs={
                "client": asked.client,
                "calls_itself": asked.calls_itself,
                "integration": asked.integration,
                "asks": asked.kind,
                "name": asked.name[:_MOST_NAME],
                "rule": rule.name if rule else None,
                "reason": decision.reason,
                "like_it_before": repeats,
            },
            alternatives=("allow", "ask"),
            choice="deny",
        )
        self._context.report(decided)

    def asking(self, question: Question) -> bool:
        """The supervisor asks a person."""
        asked, rule, arguments = question.asked, question.rule, question.arguments
        if len(asked.name) > _MOST_NAME:
            return False
        message = Asking(
            id=question.id,
            rule=rule.name if rule else "",
            rule_digest=rule.digest if rule else "",
            client=asked.client,
            calls_itself=asked.calls_itself,
            integration=asked.integration,
            asks=asked.kind,
            name=asked.name,
            size_bytes=arguments.size_bytes,
            digest=arguments.digest(),
            shape=arguments.shape(),
            arguments=question.text,
            timeout_s=question.timeout_s,
        )
        return self._context.report(message)

    def withdrawn(self, question_id: int) -> None:
        """Nobody has to decide that any more."""
        self._context.report(Withdrawn(id=question_id))

    def spent(self, calls: dict[str, int]) -> None:
        """The supervisor keeps it for a successor of ours."""
        self._context.report(Spent(calls=calls))

    def hurt(self, severity: Any, subject: str, cause: str, detail: str) -> None:  # noqa: ANN401 - a literal of the model's
        """S5 hears of it past everything else."""
        subject = subject[:_MOST_SUBJECT]
        signal = Algedonic(severity=severity, subject=subject, cause=cause, detail=detail[:4096])
        self._context.send("system5", signal)


def _limit(policy: Body) -> int:
    limit = policy.get("denials_per_minute")
    return limit if isinstance(limit, int) else DENIALS_PER_MINUTE
