"""When calls to an integration are refused at once: a circuit breaker as a pure function.

`step(breaker, event, now) -> (breaker, verdict)`. No clock and no I/O: `now` is an argument in
seconds, and only `Asked` has a verdict.

phase       a call is                     leaves by
closed      sent                          `failures` Failed in a row → open
open        refused                       the first Asked at or after `retry_at` → half_open
half_open   a probe, one at a time;       `successes` probes Answered in a row → closed;
            the others are refused        a probe Failed → open

An answer or a failure of a call that is no probe, sent before the breaker opened, changes
nothing any more. A probe that is never heard of again is given up after `open_s`.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

Phase: TypeAlias = Literal["closed", "open", "half_open"]
Verdict: TypeAlias = Literal["send", "probe", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """When to open and when to close; `failures` 0 never opens."""

    failures: int = 5
    successes: int = 3
    open_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The state.

    Args:
        failures: in a row, while closed. successes: of probes in a row, while half open.
        retry_at: when an open breaker lets a probe through.
        probe_until: a probe is under way and is given up then; None: there is none.
    """

    terms: Terms
    phase: Phase = "closed"
    failures: int = 0
    successes: int = 0
    retry_at: float = 0.0
    probe_until: float | None = None

    @property
    def is_alert(self) -> bool:
        """Whether a success would change anything."""
        return self.phase != "closed" or self.failures > 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A call is to be sent."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A call was answered, whatever the answer says."""

    probe: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A call got no answer, or an unusable one, and the server is to blame."""

    probe: bool = False


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A probe ended without saying anything about the server."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """Somebody put a new server in the place of the old one: it deserves a probe now."""


Event: TypeAlias = Asked | Answered | Failed | Abandoned | Replaced

_NOTHING: Final[Verdict] = "send"


def step(breaker: Breaker, event: Event, now: float) -> tuple[Breaker, Verdict]:
    """Apply one event; the verdict concerns `Asked` only."""
    match event:
        case Asked():
            return _asked(breaker, now)
        case Answered(probe):
            return _answered(breaker, probe=probe), _NOTHING
        case Failed(probe):
            return _failed(breaker, now, probe=probe), _NOTHING
        case Abandoned():
            return replace(breaker, probe_until=None), _NOTHING
        case Replaced():
            return replace(breaker, retry_at=min(breaker.retry_at, now)), _NOTHING


def retry_in_s(breaker: Breaker, now: float) -> float:
    """How long until a call has a chance; 0 where it has one now."""
    if breaker.phase == "open":
        return max(0.0, breaker.retry_at - now)
    if breaker.probe_until is not None:
        return max(0.0, breaker.probe_until - now)
    return 0.0


def _asked(breaker: Breaker, now: float) -> tuple[Breaker, Verdict]:
    if breaker.phase == "closed":
        return breaker, "send"
    if retry_in_s(breaker, now) > 0:
        return breaker, "refuse"
    successes = breaker.successes if breaker.phase == "half_open" else 0
    until = now + breaker.terms.open_s
    half_open = replace(breaker, phase="half_open", successes=successes, probe_until=until)
    return half_open, "probe"


def _answered(breaker: Breaker, *, probe: bool) -> Breaker:
    if breaker.phase == "closed":
        return replace(breaker, failures=0) if breaker.failures else breaker
    if breaker.phase == "open" or not probe:
        return breaker
    successes = breaker.successes + 1
    if successes >= breaker.terms.successes:
        return Breaker(terms=breaker.terms)
    return replace(breaker, successes=successes, probe_until=None)


def _failed(breaker: Breaker, now: float, *, probe: bool) -> Breaker:
    terms = breaker.terms
    if breaker.phase == "half_open" and probe:
        return _opened(breaker, now)
    if breaker.phase != "closed" or not terms.failures:
        return breaker
    failed = replace(breaker, failures=breaker.failures + 1)
    return _opened(failed, now) if failed.failures >= terms.failures else failed


def _opened(breaker: Breaker, now: float) -> Breaker:
    until = now + breaker.terms.open_s
    return replace(breaker, phase="open", successes=0, retry_at=until, probe_until=None)
