"""The servers of one integration that may have several: whose each is, and where a call goes.

Owns the rule that an instance which belonged to a session never serves another one. How many
there should be is decided by `vsm.core.instance_demand`; processes are the supervisor's, which
is told the number, and which are of no use any more. Runs in S1's event loop. One file, a bit
long: whose each is, which go and how many there should be are one state.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, Protocol

from vsm.core.instance_demand import (
    LOSSES,
    LOSSES_PERIOD_S,
    SURPLUS_S,
    Load,
    Terms,
    Unused,
    to_stop,
    wanted,
)
from vsm.gateway.client import Client
from vsm.gateway.integration import Server, Settings
from vsm.gateway.upstream import Upstream
from vsm.protocol.catalogue import Surface

TELL_AGAIN_S: Final = 5.0
REFILL_DELAY_S: Final = 0.25
DRAIN_S: Final = 30.0  # for one that was replaced to answer what it has
MAX_RELEASING: Final = 256
_LOOK_S: Final = 10.0
_LOOK_FOR_SURPLUS_S: Final = 0.5


@dataclass(eq=False)
class Instance(Server):
    """One of several servers.

    Args:
        claimed: it belongs, or belonged, to a session; it is never given to another one.
        client: that session, while there is one.
        outdated: to be replaced, by one that was started later.
    """

    worker: str = field(kw_only=True)
    number: int = field(kw_only=True)
    used_at: float = field(kw_only=True)
    claimed: bool = False
    client: Client | None = None
    outdated: bool = False

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.settings.name}#{self.number}"

    @property
    def is_lost(self) -> bool:
        """Whether it ended, as far as this process can see."""
        return self.upstream is None or self.upstream.lost

    @property
    def in_flight(self) -> int:
        """Requests that wait for it."""
        return 0 if self.upstream is None else self.upstream.in_flight


@dataclass(eq=False)
class Claim:
    """One session's.

    Args:
        waiting: it wants an instance, and gets the next one.
        lost: what it has to be told before it gets another one.
        losses: when it lost one, lately.
    """

    instance: Instance | None = None
    waiting: bool = False
    lost: str = ""
    losses: tuple[float, ...] = ()


class InstanceHooks(Protocol):
    """What the fleet does for it."""

    def release(self, instance: Instance, reason: str) -> None:
        """Let go of an instance's pipes; what is in flight fails with the reason."""

    def claimed(self, instance: Instance, client: Client) -> None:
        """An instance belongs to a session from now on: watch what that one watches."""

    def tell_wanted(self, name: str, count: int, release: dict[str, str]) -> None:
        """Tell the supervisor how many there should be, and which should not."""


class Instances:
    """The instances of one integration.

    Args:
        name: the integration's.
        terms: how many there may be, and who gets one; of what kind stays.

    Attributes:
        is_steady: a pool lets none go that it may have, although it is unused; S2's word.
    """

    def __init__(self, name: str, terms: Terms, hooks: InstanceHooks) -> None:
        self.name = name
        self.terms = terms
        self._within = terms
        self.is_steady = False
        self.members: dict[str, Instance] = {}
        self.releasing: dict[str, str] = {}
        self._hooks = hooks
        self._claims: dict[Client, Claim] = {}
        self._ready: list[Instance] = []
        self._leaving: dict[str, Instance] = {}
        self._alike = True
        self._needed = False
        self._wanted = terms.first
        self._loop = asyncio.get_running_loop()
        self._told_at = 0.0
        self._look: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._refill: asyncio.TimerHandle | None = None

    # ---- where a call goes -----------------------------------------------------------------

    def pick(self, client: Client, *, quietly: bool = False) -> Upstream | str | None:
        """The server for a client's request; None: there will be one; a text: why there is none.

        Args:
            client: whose request it is.
            quietly: keep what the session has to be told for its next call.
        """
        if self.terms.kind == "pool":
            return self._least_busy()
        claim = self._claims.get(client)
        instance = None if claim is None else claim.instance
        if instance is not None and instance.is_lost:
            self._lose(instance, "the server closed its output")
            self._release(instance, "it ended")
            self._review()
            instance = None
        if claim is None or instance is None or claim.lost:
            refusal, instance = self._claim(client, quietly=quietly)
            if instance is None:
                return refusal
        instance.used_at = self._loop.time()
        return instance.upstream

    def _least_busy(self) -> Upstream | None:
        best, least = None, inf
        ready = self._ready
        if len(ready) > self._within.most:  # the newest are to fall idle
            ready = ready[: self._within.most]
        for instance in ready:
            upstream = instance.upstream
            if upstream is None or (load := upstream.in_flight) >= least or upstream.lost:
                continue
            best, least = instance, load
            if not load:
                break
        if least and self._wanted <= len(self._ready) < self._within.most:
            self._review(called=True)
        if best is None:
            self._remind()
            return None
        best.used_at = self._loop.time()
        return best.upstream

    def _claim(self, client: Client, *, quietly: bool) -> tuple[str | None, Instance | None]:
        """An instance for a session, or why it gets none; neither: it waits for one."""
        if not client.lasts:
            return self._stateless, None
        claim = self._claims.get(client)
        if claim is None:
            claim = self._claims[client] = Claim(lost=self._before if client.rejoined else "")
        if claim.lost and not quietly:
            text, claim.lost = claim.lost, ""
            return text, None
        if claim.waiting or claim.instance is not None:
            self._remind()
            return None, claim.instance
        refusal = self._refusal(claim)
        if refusal:
            return refusal, None
        claim.waiting = True
        self._serve_waiting()
        self._review()
        return None, claim.instance

    @property
    def _before(self) -> str:
        return (
            f"{self.name}: vsm was away, and whatever state this session had there is gone. The "
            "call was not sent; the next one goes to a fresh server."
        )

    @property
    def _stateless(self) -> str:
        return (
            f"{self.name} gives each session a server of its own, and a request of the stateless "
            "revision belongs to none. Connect by `vsm connect`, the socket or a session of an "
            'earlier revision, or set instances = "shared" or "pool".'
        )

    def _refusal(self, claim: Claim) -> str:
        recent = [at for at in claim.losses if self._loop.time() - at < LOSSES_PERIOD_S]
        if len(recent) >= LOSSES:
            return (
                f"{self.name}: this session lost {len(recent)} instances within "
                f"{LOSSES_PERIOD_S:g} s. Wait, and see `vsm logs {self.name}`."
            )
        if self._sessions >= self.terms.most:
            return (
                f"{self.name}: all {self.terms.most} instances belong to other sessions. Try "
                "again when one has ended, or raise max_instances of the integration."
            )
        return ""

    @property
    def _sessions(self) -> int:
        """Sessions that have an instance or wait for one."""
        return sum(1 for c in self._claims.values() if c.waiting or c.instance is not None)

    def of(self, client: Client) -> Instance | None:
        """The instance that belongs to a client."""
        claim = self._claims.get(client)
        return None if claim is None else claim.instance

    @property
    def ready(self) -> tuple[Instance, ...]:
        """Those that take calls."""
        return tuple(self._ready)

    @property
    def in_flight(self) -> int:
        """Requests in flight to all of them."""
        every = (*self.members.values(), *self._leaving.values())
        return sum(instance.in_flight for instance in every)

    def is_awaited_by(self, client: object) -> bool:
        """Whether a request of the client waits for an instance."""
        if self.terms.kind == "pool":
            return all(instance.is_lost for instance in self._ready)
        claim = self._claims.get(client) if isinstance(client, Client) else None
        return claim is not None and claim.waiting

    # ---- what becomes of instances ---------------------------------------------------------

    def add(self, worker: str, number: int, settings: Settings) -> Instance:
        """A new one, which is starting."""
        instance = self.members[worker] = self.make(worker, number, settings)
        return instance

    def make(self, worker: str, number: int, settings: Settings) -> Instance:
        """One that is starting, and is none of these before it has joined."""
        now = self._loop.time()
        return Instance(settings, worker=worker, number=number, used_at=now)

    def join(self, instance: Instance, told: Surface, *, alike: bool) -> None:
        """One of these from now on, before it became ready; the others are to be replaced.

        Args:
            instance: by other terms, or of another program, than the others.
            told: what the others offer.
            alike: it offers the same, so that calls may go to either for a while.
        """
        for other in self.members.values():
            other.outdated = True
            if not other.surface.lists:
                other.surface = Surface(told.prefix, dict(told.lists))
        self.members[instance.worker] = instance
        self._alike = alike

    def became_ready(self, instance: Instance) -> None:
        """Its session stands."""
        instance.used_at = self._loop.time()
        self._needed = False
        if instance.outdated:
            self._ready.append(instance)
        else:
            self._ready.insert(self._first_outdated(), instance)
        if not instance.outdated or (self.has_renewed and not self._one_by_one):
            self._replace_outdated()
        self._serve_waiting()
        self._review()
        if self._look is None:
            self._look_later()

    def _serve_waiting(self) -> None:
        waiting = [item for item in self._claims.items() if item[1].waiting]
        free = [i for i in self._ready if not i.claimed] if self.terms.kind == "session" else []
        for (client, claim), instance in zip(waiting, free, strict=False):
            claim.waiting, claim.instance = False, instance
            instance.claimed, instance.client = True, client
            instance.used_at = self._loop.time()
            self._hooks.claimed(instance, client)

    @property
    def has_renewed(self) -> bool:
        """Whether one serves that is not to be replaced."""
        return any(not one.outdated for one in self._ready)

    @property
    def _one_by_one(self) -> bool:
        """Whether calls may go to either while they are replaced."""
        return self.terms.kind == "pool" and self._alike

    def _first_outdated(self) -> int:
        ready = enumerate(self._ready)
        return next((at for at, one in ready if one.outdated), len(self._ready))

    def _replace_outdated(self) -> None:
        """One more of the new ones serves: of a pool an old one goes; spares all go at once."""
        outdated = [one for one in self.members.values() if one.outdated and not one.claimed]
        if self._one_by_one:
            outdated = sorted(outdated, key=lambda one: one.in_flight)[:1]
        for one in outdated:
            self._forget(one)
            self._leaving[one.worker] = one
            one.used_at = self._loop.time()
            self._loop.call_later(DRAIN_S, self._leave, one)
            self.idle(one.worker)

    def idle(self, worker: str) -> None:
        """One has nothing in flight any more: if it was replaced, it goes."""
        instance = self._leaving.get(worker)
        if instance is not None and not instance.in_flight:
            self._leave(instance)

    def _leave(self, instance: Instance) -> None:
        if self._leaving.pop(instance.worker, None) is not None:
            self._release(instance, "it was replaced")
            self._review()

    def ended(self, worker: str, reason: str) -> Instance | None:
        """The supervisor says that it is gone; the instance where nobody had let go of it."""
        instance = self.members.get(worker) or self._leaving.pop(worker, None)
        if instance is not None:
            self._lose(instance, reason)
        elif self.releasing.pop(worker, None) is None:
            return None
        self._review()
        return instance

    def unfit(self, instance: Instance, reason: str) -> None:
        """It is of no use, and the supervisor is told so by others."""
        self._lose(instance, reason)

    def _lose(self, instance: Instance, reason: str) -> None:
        said = instance.upstream is not None and instance.upstream.failed_some
        said = said or bool(instance.in_flight)
        self._forget(instance)
        client = instance.client
        claim = None if client is None else self._claims.get(client)
        if claim is None:
            return
        claim.instance = None
        claim.losses = (*claim.losses, self._loop.time())[-LOSSES:]
        if not said:
            claim.lost = (
                f"{instance.label}, the server of this session, ended ({reason}), and its state "
                "with it. The call was not sent; the next one goes to a fresh server."
            )

    def _forget(self, instance: Instance) -> None:
        self.members.pop(instance.worker, None)
        if instance in self._ready:
            self._ready.remove(instance)

    def left(self, client: Client) -> None:
        """A session ended, and its instance with it."""
        claim = self._claims.pop(client, None)
        if claim is None:
            return
        if claim.instance is not None:
            self._release(claim.instance, "its session ended")
        self._review()

    def _release(self, instance: Instance, reason: str) -> None:
        self._forget(instance)
        if len(self.releasing) < MAX_RELEASING:
            self.releasing[instance.worker] = reason
        self._hooks.release(instance, reason)

    def need(self) -> None:
        """Somebody wants to know what the server offers."""
        if not self.members:
            self._needed = True
            self._review()

    # ---- how many --------------------------------------------------------------------------

    @property
    def bound(self) -> int:
        """How many there may be: what the entry says, or less."""
        return self._within.most

    def bind(self, bound: int) -> None:
        """Have so many at most from now on; who is one too many ends as soon as it is idle."""
        self._within = self.terms.within(bound)
        if self._is_surplus and self._ready:
            if self._look is not None:
                self._look.cancel()
            self._stop_unused()
        self._review()

    def renew(self, terms: Terms) -> None:
        """Go by other terms of the same kind from now on; whose each is stays so."""
        self.terms = terms
        self.bind(terms.most)

    @property
    def _is_surplus(self) -> bool:
        return self.terms.kind == "pool" and self._lasting > self._within.most

    @property
    def _lasting(self) -> int:
        return self._load(called=False).lasting

    def begin_again(self) -> None:
        """The supervisor opened or closed the whole: it has forgotten what it was told."""
        self._wanted = -1
        self._review()

    def _load(self, *, called: bool) -> Load:
        claims = self._claims.values()
        return Load(
            live=len(self.members),
            busy=sum(1 for instance in self._ready if instance.in_flight),
            starting=len(self.members) - len(self._ready),
            claimed=sum(1 for claim in claims if claim.instance is not None),
            waiting=sum(1 for claim in claims if claim.waiting),
            needed=self._needed,
            called=called,
            outdated=sum(1 for one in self.members.values() if one.outdated),
        )

    def _review(self, *, called: bool = False) -> None:
        load = self._load(called=called)
        count = wanted(self._within, load)
        if count > self._wanted >= load.claimed and not load.waiting and self._is_refill(load):
            if self._refill is None:
                self._refill = self._loop.call_later(REFILL_DELAY_S, self._refill_now)
            count = self._wanted
        if count != self._wanted or self.releasing:
            self._wanted = count
            self._tell()

    def _is_refill(self, load: Load) -> bool:
        """Whether what is missing is only a spare: a start would slow the one just claimed."""
        return self.terms.kind == "session" and load.claimed > 0 and not load.needed

    def _refill_now(self) -> None:
        self._refill = None
        count = wanted(self._within, self._load(called=False))
        if count != self._wanted:
            self._wanted = count
            self._tell()

    def _remind(self) -> None:
        """Somebody waits: say again what was said a while ago, in case it was lost."""
        if self._loop.time() - self._told_at > TELL_AGAIN_S:
            self._tell()

    def _tell(self) -> None:
        self._told_at = self._loop.time()
        self._hooks.tell_wanted(self.name, self._wanted, dict(self.releasing))
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self.releasing:
            self._again = self._loop.call_later(TELL_AGAIN_S, self._tell)

    def _look_later(self) -> None:
        interval_s = min(_LOOK_S, (self.terms.idle_stop_s or SURPLUS_S) / 4)
        if self._is_surplus:
            interval_s = min(interval_s, _LOOK_FOR_SURPLUS_S)
        self._look = self._loop.call_later(interval_s, self._stop_unused)

    def _stop_unused(self) -> None:
        """Stop what has been unused for too long; look again while there is any."""
        self._look = None
        now = self._loop.time()
        unused = [
            Unused(one.worker, one.used_at, one.claimed) for one in self._ready if not one.in_flight
        ]
        for instance in self._ready:
            if instance.in_flight:
                instance.used_at = now
        if self.is_steady and self.terms.kind == "pool" and not self._is_surplus:
            unused = []
        gone = to_stop(self._within, self._lasting, self._sessions, unused, now)
        for worker in gone:
            instance = self.members[worker]
            surplus = self._is_surplus
            reason = f"unused for {now - instance.used_at:.0f} s"
            if surplus:
                reason = f"{self.name} may have {self._within.most} instances now"
            self._lose(instance, reason)
            self._release(instance, reason)
        if gone:
            self._review()
        if self._ready:
            self._look_later()

    # ---- the end ---------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Let go of all of them."""
        for timer in (self._look, self._again, self._refill):
            if timer is not None:
                timer.cancel()
        for instance in [*self.members.values(), *self._leaving.values()]:
            self._forget(instance)
            self._hooks.release(instance, reason)
        self._leaving.clear()

    def rows(self) -> Iterator[dict[str, Any]]:
        """One for each instance, for `vsm status`."""
        for worker, instance in [*self.members.items(), *self._leaving.items()]:
            state = "ready" if instance.upstream is not None else "starting"
            state = "draining" if worker in self._leaving else state
            if self.terms.kind == "session" and state == "ready":
                state = "claimed" if instance.claimed else "spare"
            yield {
                "worker": worker,
                "name": instance.label,
                "state": state,
                "in_flight": instance.in_flight,
            }
