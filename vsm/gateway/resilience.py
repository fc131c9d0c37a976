"""What becomes of calls that a server does not answer: refused, sent again, written down.

One guard for each integration, whatever number of servers it has. It decides by `vsm.core.breaker`
and `vsm.core.retry`; whatever it knows is lost with S1, whose successor begins with a closed
breaker. Runs in S1's event loop; a call that is answered while nothing is wrong does not reach it.
"""

import asyncio
import secrets
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from vsm.core import breaker, retry
from vsm.core.breaker import Breaker
from vsm.protocol import jsonrpc

if TYPE_CHECKING:
    from vsm.gateway.call import Call

MAX_RETRIES: Final = 2  # of one call
MAX_HELD: Final = 256  # calls of one integration that wait for another server
HOLD_S: Final = 10.0
JITTER_S: Final = 0.1
MAX_KEPT_BYTES: Final = 8 * 1024  # of a dead letter's arguments
TELL_RETRIES_S: Final = 1.0
LETTERS_PER_S: Final = 10.0
LETTERS_AT_ONCE: Final = 32  # half of what the control link holds
MAX_TEXT_CHARS: Final = 500
_HOPELESS: Final = frozenset({"quarantined", "stopped"})
_MILLISECONDS: Final = 1000


@dataclass(frozen=True)
class Resilience:
    """[integrations.NAME.resilience] as far as the gateway needs it.

    Args:
        moves: whether a call that was not sent may go to another server of the integration.
    """

    failures: int = 5
    successes: int = 3
    open_s: float = 60.0
    retry_tools: tuple[str, ...] = ()
    max_waiting: int = 256
    health_interval_s: float = 30.0
    health_timeout_s: float = 10.0
    call_limit_s: float = 3600.0
    keep_arguments: bool = False
    moves: bool = True

    @property
    def terms(self) -> breaker.Terms:
        """The breaker's part."""
        return breaker.Terms(failures=self.failures, successes=self.successes, open_s=self.open_s)


class Outlet(Protocol):
    """Who hears of it: the supervisor, and S5."""

    def breaker(self, integration: str, phase: str, detail: str) -> None:
        """The breaker of an integration is open, half open or closed from now on."""

    def retried(self, integration: str, answered: int, failed: int) -> None:
        """What came of calls that were sent again and ended since this was told last."""

    def dead_letter(self, integration: str, letter: dict[str, Any]) -> None:
        """A call that was accepted was not answered by its server."""


class Letters:
    """How many dead letters may be written: of all integrations together, and what was left out."""

    def __init__(self) -> None:
        self._left = float(LETTERS_AT_ONCE)
        self._at = 0.0
        self.skipped = 0

    def take(self, now: float) -> bool:
        """Whether one more may be written."""
        grown = self._left + (now - self._at) * LETTERS_PER_S
        self._left, self._at = min(float(LETTERS_AT_ONCE), grown), now
        if self._left < 1:
            self.skipped += 1
            return False
        self._left -= 1
        return True


def named_by_operator(settings: Resilience, call: "Call") -> bool:
    """Whether calling the tool twice does no harm: the operator's word alone.

    What a server says of its own tools is no reason by itself: nobody has approved it.
    """
    return call.method == "tools/call" and call.label in settings.retry_tools


class Guards:
    """Makes the guards of a gateway, and holds what they share.

    Args:
        outlet: who hears of them. changed: called when the breaker of the integration with this
            name begins or ceases to be asked.
    """

    def __init__(self, outlet: Outlet, changed: Callable[[str], None]) -> None:
        self.outlet = outlet
        self.changed = changed
        self.letters = Letters()
        self.resend: Callable[[Guard, Call], None] | None = None
        """Sends a call again, to whichever server is right now: the router's."""
        self.approved: Callable[[Call], bool] = lambda _: False
        """Whether a person approved what the server says: that calling the tool twice is fine."""

    def make(self, name: str, settings: Resilience, calls: Callable[[str], int]) -> "Guard":
        """A guard; `calls` is how many calls the integration with a name was asked so far."""
        return Guard(name, settings, self, lambda: calls(name))


class Guard:
    """The breaker, the retries and the dead letters of one integration.

    Args:
        name: the integration's. calls: how many calls the integration was asked so far.
    """

    def __init__(
        self,
        name: str,
        settings: Resilience,
        guards: Guards,
        calls: Callable[[], int],
    ) -> None:
        self.name = name
        self.settings = settings
        self.alert = False  # whether an answered call has to be told that was sent once only
        self.weigh: Callable[[Hashable], int] = lambda _lane: 1  # of who waits in a queue; by S2
        self.retries = 0
        self.letters_written = 0
        self.queued = 0  # calls that waited for room, ever
        self.turned_away = 0  # of those, who found no room to wait
        self._ends = [0, 0]  # of calls that were sent again: answered, failed
        self._told: asyncio.TimerHandle | None = None
        self._guards = guards
        self._calls = calls
        self._breaker = Breaker(terms=settings.terms)
        self._probe: Call | None = None
        self._budget = retry.Budget()
        self._held: dict[Call, tuple[int, str, asyncio.TimerHandle]] = {}
        self._hopeless = ""
        self._loop = asyncio.get_running_loop()

    def configure(self, settings: Resilience) -> None:
        """Go by other terms from now on; a breaker whose own were changed is closed."""
        if settings.terms != self.settings.terms:
            before, self._breaker = self._breaker.phase, Breaker(terms=settings.terms)
            self._probe = None
            self._changed(before, "its terms were changed")
        self.settings = settings

    # ---- the breaker -----------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether calls need not ask."""
        return self._breaker.phase == "closed"

    def admit(self, call: "Call", go: Callable[["Call"], None]) -> bool:  # noqa: ARG002 - Gate's
        """Let a call through, as a probe if it is one; a gate of the integration.

        Raises:
            RequestError: it is refused.
        """
        verdict = self._step(breaker.Asked())
        if verdict == "refuse":
            self._refuse()
        if verdict == "probe":
            self._probe = call
        return True

    def _refuse(self) -> None:
        from vsm.gateway.finder import RequestError

        wait_s = breaker.retry_in_s(self._breaker, self._loop.time())
        if self._breaker.phase == "open":
            when = f"It is tried again in {wait_s:.0f} s"
        else:
            when = "It is being tried with one call at a time"
        text = (
            f"{self.name} failed too often, so calls are refused for now. {when}; "
            f"see `vsm status {self.name}` and `vsm logs {self.name}`."
        )
        data = {
            "integration": self.name,
            "state": f"breaker {self._breaker.phase}",
            "sent": False,
            "retry_after_ms": int(wait_s * _MILLISECONDS),
        }
        raise RequestError(jsonrpc.UNAVAILABLE, text, data, unserved=True)

    def _step(self, event: breaker.Event, why: str = "") -> breaker.Verdict:
        before = self._breaker.phase
        self._breaker, verdict = breaker.step(self._breaker, event, self._loop.time())
        self.alert = self._breaker.is_alert
        if self._breaker.phase != before:
            self._changed(before, why)
        return verdict

    def _changed(self, before: str, why: str) -> None:
        phase = self._breaker.phase
        self.alert = self._breaker.is_alert
        terms = self._breaker.terms
        tried = "a call that was tried failed"
        cause = tried if before == "half_open" else f"{terms.failures} failures, the last"
        detail = {
            "open": f"{cause}: {why.rstrip('.')}; calls are refused for {terms.open_s:g} s",
            "half_open": f"calls are tried one at a time, {terms.successes} in a row close it",
            "closed": why or f"{terms.successes} calls in a row were answered",
        }[phase]
        if phase != before:
            self._guards.changed(self.name)
            self._guards.outlet.breaker(self.name, phase, detail[:MAX_TEXT_CHARS])

    def answered(self, call: "Call") -> None:
        """A call was answered; told only while `alert`, or if it was sent again."""
        if call.retries:
            self._retry_ended(0)
        probe = call is self._probe
        if probe:
            self._probe = None
        self._step(breaker.Answered(probe))

    def cancelled(self, call: "Call") -> None:
        """Nobody waits for a call any more."""
        held = self._held.pop(call, None)
        if held is not None:
            held[2].cancel()
        if call is self._probe:
            self._probe = None
            self._step(breaker.Abandoned())

    def failed(self, call: "Call", code: int, text: str) -> None:
        """A call that had been accepted failed: count it where the server is to blame."""
        probe = call is self._probe
        if call.retries:
            self._retry_ended(1)
        private = call.upstream is not None and call.upstream.private
        to_blame = probe or code in {jsonrpc.TIMED_OUT, jsonrpc.INTERNAL_ERROR}
        blamed = call.sent and to_blame and not private
        if probe:
            self._probe = None
        if blamed:
            self._step(breaker.Failed(probe), text)
        elif probe:
            self._step(breaker.Abandoned())
        self._write_letter(call, code, text)

    def not_reached(self, call: "Call", text: str) -> None:
        """A call could not be brought to a remote server: a failure, although it did not run."""
        probe = call is self._probe
        if probe:
            self._probe = None
        private = call.upstream is not None and call.upstream.private
        if not private or probe:
            self._step(breaker.Failed(probe), text)

    def server_lost(self, reason: str) -> None:
        """A server ended with calls in flight: one failure, whatever their number."""
        self._step(breaker.Failed(), f"{self.name}: {reason}")

    def server_replaced(self) -> None:
        """An operator had it replaced: whatever was wrong with the old one is over, perhaps."""
        self._step(breaker.Replaced())

    # ---- again -----------------------------------------------------------------------------

    def keeps(self, call: "Call", code: int, text: str) -> bool:
        """Whether a call whose server ended is sent to the next one instead of failing.

        One that was not sent always may be; one that may have run, where that does no harm and
        the budget allows it. `text` is what it fails with if no server comes in time.
        """
        if not self._may_go_again(call):
            return False
        ran = call.sent or call.may_have_run
        if ran:
            if not named_by_operator(self.settings, call) and not self._guards.approved(call):
                return False
            self._budget, allowed = retry.spend(self._budget, self._calls(), self._loop.time())
            if not allowed:
                return False
        if call is self._probe:
            self._probe = None
            self._step(breaker.Failed(probe=True) if call.sent else breaker.Abandoned(), text)
        call.retries += 1
        call.may_have_run, call.sent = ran, False
        self.retries += 1
        hold_s = HOLD_S
        if call.deadline is not None:
            hold_s = min(hold_s, max(0.0, call.deadline - self._loop.time()))
        timer = self._loop.call_later(hold_s, self._give_up, call)
        self._held[call] = (code, text, timer)
        return True

    def _retry_ended(self, how: int) -> None:
        """Whether it helped to send it again: told for many at once."""
        self._ends[how] += 1
        if self._told is None:
            self._told = self._loop.call_later(TELL_RETRIES_S, self._tell_retries)

    def _tell_retries(self) -> None:
        if self._told is not None:
            self._told.cancel()
            self._told = None
            (answered, failed), self._ends = self._ends, [0, 0]
            self._guards.outlet.retried(self.name, answered, failed)

    def _may_go_again(self, call: "Call") -> bool:
        bound = not self.settings.moves or getattr(call, "rounds", 0) > 0
        waits = call.client.in_flight.get(call.id_bytes) is call
        room = len(self._held) < MAX_HELD and call.retries < MAX_RETRIES
        return waits and room and not bound and not self._hopeless

    def server_ready(self) -> None:
        """A server takes calls: send what was kept, not all at once."""
        self._hopeless = ""
        for call, (code, text, timer) in list(self._held.items()):
            timer.cancel()
            delay_s = secrets.randbelow(_MILLISECONDS) / _MILLISECONDS * JITTER_S
            again = self._loop.call_later(delay_s, self._send_again, call)
            self._held[call] = (code, text, again)

    def available(self, state: str) -> None:
        """The supervisor's word on the integration: where no server will come, nothing waits."""
        self._hopeless = state if state in _HOPELESS else ""
        if self._hopeless:
            self.close()

    def close(self) -> None:
        """Fail what was kept."""
        for call in list(self._held):
            self._give_up(call)
        self._tell_retries()

    def _send_again(self, call: "Call") -> None:
        self._held.pop(call, None)
        if self._guards.resend is not None:
            self._guards.resend(self, call)

    def _give_up(self, call: "Call") -> None:
        held = self._held.pop(call, None)
        if held is not None:
            held[2].cancel()
            if call.client.in_flight.get(call.id_bytes) is call:  # else cancelled meanwhile
                call.failed(held[0], held[1])

    # ---- dead letters ----------------------------------------------------------------------

    def _write_letter(self, call: "Call", code: int, text: str) -> None:
        letters = self._guards.letters
        if not letters.take(self._loop.time()):
            return
        self.letters_written += 1
        letter: dict[str, Any] = {
            "method": call.method,
            "what": call.label[:MAX_TEXT_CHARS],
            "code": code,
            "text": text[:MAX_TEXT_CHARS],
            "may_have_run": call.sent or call.may_have_run,
            "retries": call.retries,
            "client": call.client.identity,
            "calls_itself": call.client.calls_itself,
            "skipped": letters.skipped,
        }
        letters.skipped = 0
        if call.method == "tools/call":
            letter |= self._arguments(call)
        self._guards.outlet.dead_letter(self.name, letter)

    def _arguments(self, call: "Call") -> dict[str, Any]:
        """What the tool was called with, where the operator wants it kept; else only its size."""
        raw = bytes(call.params.get("arguments", b"{}"))
        told: dict[str, Any] = {"arguments_bytes": len(raw)}
        if self.settings.keep_arguments and len(raw) <= MAX_KEPT_BYTES:
            told["arguments"] = raw.decode(errors="replace")
        return told

    def status(self) -> dict[str, Any]:
        """For `vsm status`."""
        now = self._loop.time()
        return {
            "breaker": self._breaker.phase,
            "failures_in_a_row": self._breaker.failures,
            "retry_in_s": round(breaker.retry_in_s(self._breaker, now), 1),
            "retries": self.retries,
            "held": len(self._held),
            "dead_letters": self.letters_written,
        }
