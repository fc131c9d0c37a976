"""What S3 makes of S5's verdicts: approved is carried out, refused is not, and S5 hears of both.

Runs in system 3. Limits are S3's to move whoever proposed it, so S5 tells it of S4's proposals
too: an approved one is a need until it is met or too old. What came of each is told when the
kernel's limits show it, S4's by way of S4, and stands beside the decision in the journal.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from vsm.core.budget import Change, Claim
from vsm.messages import Body, Policy, ResourceRow

STANDING_S: Final = 60.0
"""So long a verdict, or a refusal of the supervisor's, is heeded."""

MOST: Final = 256
"""Of what S5 says or does not answer, and no sample settles."""

Where = tuple[str, str]  # integration, resource
Answer = Callable[[int, Where, Body], None]


class _Foreseen(NamedTuple):
    """What S4 foresaw and S5 approved: somebody should have so much, until then."""

    proposal: int
    amount: float
    until_s: float


class Verdicts:
    """The proposals on their way, and what was decided.

    Args:
        answer: tells S5 what came of a proposal of S3's, by its number.

    Attributes:
        outcomes: what came of S4's proposals; whoever tells S4 empties it.
    """

    def __init__(self, answer: Answer) -> None:
        self.outcomes: list[Body] = []
        self._answer = answer
        self._asked: dict[Where, tuple[int, float]] = {}  # the proposal, and when it was made
        self._approved: dict[Where, float] = {}
        self._refused: dict[Where, tuple[float, str]] = {}
        self._ceilings: dict[int, Where] = {}  # proposals about ceilings
        self._foreseen: dict[Where, _Foreseen] = {}
        self._undone: list[Policy] = []  # the next sample shows that nothing moved

    # ---- what S5 says ----------------------------------------------------------------------

    def hear(self, message: Policy, now_s: float) -> None:
        """S5 decided about a proposal of S3's or of S4's."""
        if message.verdict == "refused":
            self._undone = [*self._undone[-MOST + 1 :], message]
        where = message.subject, message.change
        if message.sender == "system4":
            self._foresee(message, where, now_s)
        elif self._asked.get(where, (-1, 0.0))[0] == message.proposal:
            self._hear_of_own(message, where, now_s)

    def _foresee(self, message: Policy, where: Where, now_s: float) -> None:
        standing = self._foreseen.get(where)
        if message.verdict == "approved" and message.to_value is not None:
            until_s = now_s + STANDING_S
            self._foreseen[where] = _Foreseen(message.proposal, message.to_value, until_s)
            _keep_newest(self._foreseen)
        elif standing is not None and standing.proposal == message.proposal:
            del self._foreseen[where]  # revoked; S5 has said so itself

    def _hear_of_own(self, message: Policy, where: Where, now_s: float) -> None:
        if message.verdict == "approved":
            self._approved[where] = now_s + STANDING_S
            return
        del self._asked[where]
        self._approved.pop(where, None)
        self.refuse(where, f"{message.verdict} by system 5: {'; '.join(message.reasons)}", now_s)

    # ---- what holds ------------------------------------------------------------------------

    def refuse(self, where: Where, why: str, now_s: float) -> None:
        """A limit is not to be moved for a while."""
        self._refused = {key: held for key, held in self._refused.items() if now_s < held[0]}
        self._refused[where] = (now_s + STANDING_S, why[:200])

    def refusal(self, where: Where, now_s: float) -> str:
        """Why a limit is not to be moved; "" if it is."""
        until_s, why = self._refused.get(where, (0.0, ""))
        return why if now_s < until_s else ""

    def approves(self, where: Where, now_s: float) -> bool:
        """Whether S5 let S3 take from somebody."""
        return now_s < self._approved.get(where, 0.0)

    def foreseen(self, where: Where) -> float:
        """How much somebody should have by what S4 foresaw; 0 where nothing says so."""
        wish = self._foreseen.get(where)
        return 0.0 if wish is None else wish.amount

    # ---- what S3 asks ----------------------------------------------------------------------

    def may_ask(self, where: Where, now_s: float) -> bool:
        """Whether S5 is not asked already, and has not just answered."""
        _, asked_s = self._asked.get(where, (0, -STANDING_S))
        return now_s >= asked_s + STANDING_S and not self.refusal(where, now_s)

    def asked(self, where: Where, proposal: int, now_s: float) -> None:
        """S5 is asked."""
        self._asked[where] = proposal, now_s
        _keep_newest(self._asked)

    def asked_for_ceiling(self, where: Where, proposal: int) -> None:
        """S5 is told that somebody needs more than his ceiling."""
        self._ceilings[proposal] = where
        _keep_newest(self._ceilings)

    # ---- what came of it -------------------------------------------------------------------

    def moved(self, where: Where, change: Change, outcome: Body) -> None:
        """A limit was moved, or the supervisor refused: S5 hears it of what it approved."""
        told: Body = {**outcome, "from": change.before, "to": change.after}
        if change.after > change.before:
            self._over(where, told)
        if where in self._approved and where in self._asked:
            del self._approved[where]
            self._answer(self._asked.pop(where)[0], where, told)

    def settle_undone(self, rows: Mapping[str, ResourceRow]) -> None:
        """What S5 refused was not done: the limit that the kernel holds says so."""
        for verdict in self._undone:
            where = verdict.subject, verdict.change
            name, resource = self._ceilings.pop(verdict.proposal, where)
            held = rows[name].limit.get(resource) if name in rows else None
            outcome: Body = {"state": "not carried out", "held": held}
            if verdict.sender == "system3":
                self._answer(verdict.proposal, where, outcome)
            else:
                self.outcomes.append({"proposal": verdict.proposal, "outcome": outcome})
        self._undone = []

    def give_up(
        self,
        resource: str,
        claims: Sequence[Claim],
        *,
        reason: str,
        moving: frozenset[Where],
        least: float,
        now_s: float,
    ) -> None:
        """What was foreseen and needs nothing, or could not be done in time, is over.

        Args:
            resource: which one.
            claims: as they were divided.
            reason: why nothing moves.
            moving: limits on their way.
            least: less is no difference.
            now_s: the time.
        """
        held = {claim.name: claim for claim in claims}
        for where, wish in list(self._foreseen.items()):
            if where[1] != resource or where in moving:
                continue
            claim = held.get(where[0])
            if claim is not None and claim.held >= min(wish.amount, claim.ceiling) - least:
                self._over(where, {"state": "nothing to do", "held": claim.held})
            elif now_s >= wish.until_s:
                why = reason if claim is not None else "it does not run"
                self._over(where, {"state": "not carried out", "reason": why})

    def _over(self, where: Where, outcome: Body) -> None:
        wish = self._foreseen.pop(where, None)
        if wish is not None:
            self.outcomes.append({"proposal": wish.proposal, "outcome": outcome})


def _keep_newest(table: dict[Any, Any]) -> None:
    while len(table) > MOST:
        del table[next(iter(table))]
