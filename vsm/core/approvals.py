"""Calls that wait for a person: asked, decided once, granted for a while, denied in time.

Pure: `now_s` is an argument. What nobody decides is denied when its time is over; what is beyond
the bounds is denied at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

MOST_PENDING: Final = 64
MOST_GRANTS: Final = 48
LONGEST_GRANT_S: Final = 7 * 86_400.0

Verdict: TypeAlias = Literal["approved", "denied", "timed out", "withdrawn", "abandoned"]


class GrantKey(NamedTuple):
    """What was approved beforehand: one thing of one integration, to one client, by one rule."""

    rule: str
    client: str
    integration: str
    kind: str
    name: str


@dataclass(frozen=True)
class Pending:
    """A call that waits.

    Args:
        id: what a person calls it. call: what S1 calls it, in one incarnation of S1.
        details: who, what, shape: for the person and the record.
    """

    id: str
    epoch: int
    call: int
    key: GrantKey
    until_s: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """Everything that waits and everything that is granted."""

    pending: tuple[Pending, ...] = ()
    grants: Mapping[GrantKey, float] = field(default_factory=dict)


class Asked(NamedTuple):
    """S1 holds a call."""

    pending: Pending


class Decided(NamedTuple):
    """A person decided; `grant_s` is how long the like of it is approved from now on."""

    id: str
    approved: bool
    by: str
    grant_s: float = 0.0


class Withdrawn(NamedTuple):
    """The client no longer waits."""

    epoch: int
    call: int


class Lost(NamedTuple):
    """S1 is gone, and with it every call that it held; or vsm ends."""

    reason: str


class Passed(NamedTuple):
    """Time has passed."""


Event: TypeAlias = Asked | Decided | Withdrawn | Lost | Passed


class Settled(NamedTuple):
    """What became of a call that waited. `by` is a person, or why there was none."""

    pending: Pending
    verdict: Verdict
    by: str
    grant_until_s: float | None = None


class UnknownError(LookupError):
    """Nothing of that id waits."""


def step(state: State, event: Event, now_s: float) -> tuple[State, tuple[Settled, ...]]:
    """Take an event; what it settles is told exactly once.

    Raises:
        UnknownError: a decision about what does not wait (any more).
    """
    state, late = _expire(state, now_s)
    match event:
        case Asked(pending):
            state, now = _ask(state, pending)
        case Decided():
            state, now = _decide(state, event, now_s)
        case Withdrawn(epoch, call):
            gone = [one for one in state.pending if (one.epoch, one.call) == (epoch, call)]
            state, now = _settle(state, gone, "withdrawn", "the client no longer waits")
        case Lost(reason):
            state, now = _settle(state, state.pending, "abandoned", reason)
        case Passed():
            now = ()
    return state, (*late, *now)


def next_s(state: State) -> float | None:
    """When time has to pass next; None where nothing waits for it."""
    return min((*(p.until_s for p in state.pending), *state.grants.values()), default=None)


def with_grants(state: State, grants: Mapping[GrantKey, float], now_s: float) -> State:
    """What was granted before a restart and still holds."""
    kept = {key: until for key, until in grants.items() if now_s < until <= now_s + LONGEST_GRANT_S}
    newest = sorted(kept.items(), key=lambda item: -item[1])[:MOST_GRANTS]
    return replace(state, grants=dict(newest))


def _expire(state: State, now_s: float) -> tuple[State, tuple[Settled, ...]]:
    grants = {key: until for key, until in state.grants.items() if until > now_s}
    state = replace(state, grants=grants)
    over = [one for one in state.pending if one.until_s <= now_s]
    return _settle(state, over, "timed out", "nobody decided in time")


def _ask(state: State, pending: Pending) -> tuple[State, tuple[Settled, ...]]:
    if len(state.pending) >= MOST_PENDING:
        return state, (Settled(pending, "denied", "too many calls wait"),)
    return replace(state, pending=(*state.pending, pending)), ()


def _decide(state: State, event: Decided, now_s: float) -> tuple[State, tuple[Settled, ...]]:
    found = [one for one in state.pending if one.id == event.id]
    if not found:
        raise UnknownError(event.id)
    until_s = None
    if event.approved and event.grant_s > 0 and len(state.grants) < MOST_GRANTS:
        until_s = now_s + min(event.grant_s, LONGEST_GRANT_S)
        state = replace(state, grants={**state.grants, found[0].key: until_s})
    verdict: Verdict = "approved" if event.approved else "denied"
    state, (settled,) = _settle(state, found[:1], verdict, event.by)
    return state, (settled._replace(grant_until_s=until_s),)


def _settle(
    state: State, which: Iterable[Pending], verdict: Verdict, by: str
) -> tuple[State, tuple[Settled, ...]]:
    gone = tuple(which)
    kept = tuple(one for one in state.pending if one not in gone)
    return replace(state, pending=kept), tuple(Settled(one, verdict, by) for one in gone)
