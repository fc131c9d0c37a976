"""S3's pain: a budget is used up while somebody meets his limit.

Runs in S3's process. One sample in which nobody can spare anything is a peak, a few in a row are
more; it ends when in as many in a row nobody was short. Who has only no headroom feels nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vsm.core.budget import Claim, Plan
from vsm.core.figures import amount
from vsm.messages import Algedonic

IN_A_ROW: Final = 3
SAID_AGAIN_S: Final = 1800.0
"""What system 5 does not hear again for an hour is over."""
CAUSE: Final = "budget"
_SUBJECT: Final = " budget"
_SHOWN: Final = 5


@dataclass
class _State:
    """Of one budget: samples in a row that say otherwise than what was told, and when that was."""

    otherwise: int = 0
    told_s: float | None = None


class Exhaustion:
    """Which budgets hurt."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def relearn(self, subject: str) -> None:
        """A predecessor said that this hurts: it does, until enough samples say otherwise."""
        resource = subject.removesuffix(_SUBJECT)
        if subject.endswith(_SUBJECT):
            self._states[resource] = _State(told_s=-SAID_AGAIN_S)

    def feel(
        self, resource: str, budget: float, lacking: Mapping[str, float], now_s: float
    ) -> Algedonic | None:
        """Pain that begins or lasts, or relief, by one more sample; else nothing.

        `lacking` is who lacks how much of it, where nothing can be done.
        """
        state = self._states.setdefault(resource, _State())
        exhausted = bool(lacking)
        hurts = state.told_s is not None
        state.otherwise = state.otherwise + 1 if exhausted != hurts else 0
        if state.otherwise >= IN_A_ROW:
            state.otherwise = 0
            state.told_s = now_s if exhausted else None
        elif state.told_s is None or not exhausted or now_s < state.told_s + SAID_AGAIN_S:
            return None
        else:
            state.told_s = now_s
        return _signal(resource, budget, lacking)


def lacking_of(found: Plan, claims: Sequence[Claim]) -> dict[str, float]:
    """Who meets his limit and lacks how much, where a plan can do nothing about it."""
    if found.changes:
        return {}
    pressed = {claim.name for claim in claims if claim.pressed and not claim.fixed}
    return {name: lack for name, lack in found.short.items() if name in pressed}


def _signal(resource: str, budget: float, lacking: Mapping[str, float]) -> Algedonic:
    whole = amount(resource, budget)
    rows = sorted(lacking.items(), key=lambda one: -one[1])[:_SHOWN]
    who = ", ".join(f"{name} {amount(resource, lack)}" for name, lack in rows)
    text = f"used up, and nobody can spare anything: short are {who}" if rows else "enough again"
    return Algedonic(
        severity="pain" if rows else "relief",
        subject=f"{resource}{_SUBJECT}",
        cause=CAUSE,
        detail=f"the {resource} budget of {whole} is {text}" if rows else f"{resource}: {text}",
    )
