"""All integrations behind the gateway, and the catalogue merged from what they offer.

Owns attaching and detaching servers, keeping the merged lists fresh, and who watches which
resource. Clients are the router's business. Runs in S1's event loop. One file, a bit long: an
integration's servers, lists and wishes change together.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

import msgspec
from msgspec import Raw

from vsm.gateway.accounting import Accounting
from vsm.gateway.call import Gate, Inquiry
from vsm.gateway.integration import (
    HIDDEN_STATES,
    Fetch,
    Integration,
    Settings,
    Startup,
    listen_params,
)
from vsm.gateway.own_tools import OWN, OwnTools
from vsm.gateway.resilience import Guards
from vsm.gateway.resilience_health import watch_health
from vsm.gateway.trust import Vetting
from vsm.gateway.upstream import Upstream
from vsm.protocol import catalogue, era, jsonrpc
from vsm.protocol.catalogue import Surface
from vsm.protocol.jsonrpc import Message, Object
from vsm.protocol.tables import CHANGE_OF_LIST, CHANGED, LISTS, LOG_LEVELS

SETTLE_LIMIT_S: Final = 10.0
REFETCH_DELAY_S: Final = 0.1
MAX_RECORD_BYTES: Final = 65536

GateKind: TypeAlias = Literal["rules", "rates", "queue", "breaker"]
"""In the order in which they are asked."""
GateMaker: TypeAlias = Callable[[Integration], Gate | None]


class Reports(Protocol):
    """What the supervisor wants to hear."""

    def session(self, worker: str, record: dict[str, Any]) -> None:
        """The worker's session stands; `record` resumes it."""

    def unfit(self, worker: str, reason: str) -> None:
        """The worker is to be stopped and started again."""

    def noticed(self, worker: str, text: str) -> None:
        """The worker's server broke a rule for the first time; it is borne."""

    def idle(self, integration: str) -> None:
        """A draining integration has nothing in flight."""

    def breaker(self, integration: str, phase: str, detail: str) -> None:
        """An integration's calls are refused, tried or let through from now on."""

    def dead_letter(self, integration: str, letter: dict[str, Any]) -> None:
        """A call was accepted and not answered by its server."""

    def offered(self, integration: str, document: bytes) -> None:
        """A server offers what is not pinned (JSON: key → item)."""


class Audience(Protocol):
    """Who hears what servers say: the router."""

    def list_changed(self, method: str) -> None:
        """A merged list changed."""

    def asked(self, upstream: Upstream, message: Message) -> None:
        """A server asks the client side something."""

    def told(self, upstream: Upstream, method: str, params: Object) -> None:
        """A server told something that concerns clients."""


class Fleet:
    """The integrations and their servers.

    Args:
        epoch: this incarnation of S1.
        accounting: where calls are counted; a board of its own where none is given.
        log_level: the lowest level that any client wants to hear, as an index in LOG_LEVELS.
    """

    def __init__(self, epoch: int, reports: Reports, accounting: Accounting | None = None) -> None:
        self._epoch = epoch
        self.accounting = accounting or Accounting(epoch)
        self._reports = reports
        self.audience: Audience | None = None
        self.own: OwnTools | None = None
        self.integrations: dict[str, Integration] = {}
        self.catalogue = catalogue.merge({})
        self.log_level: int | None = None
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiters: set[asyncio.Future[None]] = set()
        self._stale: dict[str, set[str]] = {}
        self._gate_makers: dict[GateKind, GateMaker] = {"breaker": _breaker_of}
        self.guards = Guards(reports, self._breaker_changed)

    # ---- the supervisor's side -------------------------------------------------------------

    def add(self, settings: Settings) -> None:
        """Know an integration, or know it anew; its server keeps running."""
        integration = self.integrations.get(settings.name)
        if integration is None:
            row = self.accounting.row(settings.name)
            guard = self.guards.make(settings.name, settings.resilience, self._calls)
            integration = Integration(settings, row, guard)
            self.integrations[settings.name] = integration
        else:
            integration.settings = settings
            integration.guard.configure(settings.resilience)
        self._put_gates(integration)
        self._trust(integration)

    def _trust(self, integration: Integration) -> None:
        """Compare an integration's surface by the mode that the configuration has now."""
        mode, name = integration.settings.trust, integration.settings.name
        if mode != integration.vetting.mode:
            integration.vetting = Vetting(mode, partial(self._reports.offered, name))
            integration.vet()
            self._rebuild()

    def pinned(self, name: str, document: bytes) -> None:
        """The supervisor's word on what of an integration was approved.

        Raises:
            msgspec.DecodeError: it is no such thing; nothing changes.
        """
        integration = self.integrations.get(name)
        if integration is not None:
            integration.vetting.pinned(document)
            integration.vet()
            self._rebuild()

    def _calls(self, name: str) -> int:
        return self.integrations[name].totals["calls"]

    def _breaker_changed(self, name: str) -> None:
        """Calls ask the breaker, or no longer do."""
        if name in self.integrations:
            self._put_gates(self.integrations[name])

    def guard(self, kind: GateKind, make: GateMaker) -> None:
        """Put a gate before every integration that `make` gives one for; again: replace them."""
        self._gate_makers[kind] = make
        for integration in self.integrations.values():
            self._put_gates(integration)

    def _put_gates(self, integration: Integration) -> None:
        makers = [self._gate_makers.get(kind) for kind in get_args(GateKind)]
        gates = [make(integration) for make in makers if make is not None]
        integration.gates = tuple(gate for gate in gates if gate is not None)

    def remove(self, name: str) -> None:
        """Forget an integration: what it offered is gone from every list."""
        integration = self.integrations.pop(name, None)
        if integration is None:
            return
        self._let_go(integration, f"{name} was removed from the configuration")
        integration.guard.close()
        self.accounting.remove(name)
        self._rebuild()
        self._check_settled()

    def offer(self, own: OwnTools) -> None:
        """Offer vsm's own tools beside those of the servers."""
        self.own = own
        self._rebuild()

    def attach(
        self,
        worker: str,
        name: str,
        pipes: tuple[int, int],
        record: dict[str, Any] | None = None,
    ) -> None:
        """Take a server's pipes (its stdin to write to, its stdout to read from) over."""
        integration = self.integrations.get(name)
        if integration is None:
            for fd in pipes:
                os.close(fd)
            self._reports.unfit(worker, f"no integration is called {name}")
            return
        self._let_go(integration, "the server was replaced")
        settings = integration.settings
        integration.starting = startup = self._startup(worker, settings)
        integration.draining = False
        integration.state, integration.reason = "starting", ""
        task = self._loop.create_task(self._open(integration, startup, pipes, record))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _startup(self, worker: str, settings: Settings) -> Startup:
        upstream = Upstream(
            self,
            worker=worker,
            integration=settings.name,
            guard=self.integrations[settings.name].guard,
            epoch=self._epoch,
            concurrency=settings.concurrency,
            max_frame_bytes=settings.max_frame_bytes,
        )
        return Startup(upstream, settings, on_ready=self._ready, on_failure=self._not_ready)

    async def _open(
        self,
        integration: Integration,
        startup: Startup,
        pipes: tuple[int, int],
        record: dict[str, Any] | None,
    ) -> None:
        await startup.upstream.open(*pipes, resume=record is not None)
        if integration.starting is startup:
            self._begin(startup, startup.upstream.worker, record)

    def _begin(self, startup: Startup, worker: str, record: dict[str, Any] | None) -> None:
        try:
            session = None if record is None else msgspec.convert(record, era.PeerSession)
        except msgspec.ValidationError as error:
            self._reports.unfit(worker, f"its stored session cannot be resumed: {error}")
            return
        startup.begin(session)

    def detach(self, worker: str, reason: str) -> None:
        """The worker is gone: fail what is in flight, at once."""
        for integration in self.integrations.values():
            starting = integration.starting.upstream if integration.starting else None
            if any(u is not None and u.worker == worker for u in (integration.upstream, starting)):
                self._let_go(integration, reason)
        self._check_settled()

    def _let_go(self, integration: Integration, reason: str) -> None:
        startup, integration.starting = integration.starting, None
        upstream, integration.upstream = integration.upstream, None
        integration.listen_id = None
        if startup is not None:
            startup.stop()
            startup.upstream.close(reason)
        if upstream is not None:
            upstream.close(reason)

    def availability(self, name: str, state: str, reason: str) -> None:
        """The supervisor's word on whether, and why not, the integration can be called."""
        integration = self.integrations.get(name)
        if integration is None:
            return
        hidden = integration.state in HIDDEN_STATES
        if state == "starting" and (hidden or integration.draining):  # by somebody's command
            integration.guard.server_replaced()
        integration.state, integration.reason = state, reason
        integration.guard.available(state)
        if state in ("starting", "ready"):
            integration.draining = False
        if hidden or state in HIDDEN_STATES:
            self._rebuild()
        self._check_settled()

    def drain(self, name: str) -> None:
        """Take no new calls for the integration; report when nothing is in flight."""
        integration = self.integrations.get(name)
        if integration is None:
            return
        integration.draining = True
        if integration.upstream is None or not integration.upstream.in_flight:
            self._reports.idle(name)

    def close(self, reason: str) -> None:
        """Let go of every server."""
        for integration in self.integrations.values():
            self._let_go(integration, reason)
            integration.guard.close()
        for waiter in self._waiters:
            waiter.cancel()
        self.accounting.close()
        if self.own is not None:
            self.own.close()

    # ---- becoming ready --------------------------------------------------------------------

    def _integration_of(self, upstream: Upstream) -> Integration | None:
        integration = self.integrations.get(upstream.integration)
        if integration is None:
            return None
        starting = integration.starting.upstream if integration.starting else None
        return integration if upstream in (integration.upstream, starting) else None

    def _ready(self, startup: Startup) -> None:
        integration = self._integration_of(startup.upstream)
        if integration is None or startup.session is None:
            return
        integration.starting = None
        integration.upstream = startup.upstream
        integration.session = startup.session
        integration.surface = startup.surface
        integration.vet()
        integration.state, integration.reason = "ready", ""
        self._rebuild()
        self._restore_wishes(integration, startup.session)
        record: dict[str, Any] = msgspec.to_builtins(startup.session)
        self._reports.session(startup.upstream.worker, record)
        watch_health(startup.upstream, startup.session, self)
        integration.guard.server_ready()
        self._check_settled()

    def _restore_wishes(self, integration: Integration, session: era.PeerSession) -> None:
        """Ask a new server for what its predecessor was asked: changes, resources, log level."""
        if session.is_modern:
            self._listen(integration)
            return
        for uri in integration.watched:
            self._subscribe(integration, "resources/subscribe", uri, None)
        if self.log_level is not None:
            self._tell_log_level(integration)

    def _not_ready(self, startup: Startup, reason: str) -> None:
        integration = self._integration_of(startup.upstream)
        if integration is None:
            return
        self._let_go(integration, reason)
        integration.state, integration.reason = "backing_off", reason
        self._reports.unfit(startup.upstream.worker, reason)
        self._check_settled()

    @property
    def is_settled(self) -> bool:
        """Whether every integration serves or failed."""
        return all(integration.is_settled for integration in self.integrations.values())

    async def wait_settled(self, names: Iterable[str] | None = None) -> None:
        """Wait until the integrations (all of them by default) serve or failed; bounded."""
        wanted = [
            i
            for name, i in self.integrations.items()
            if not i.is_settled and (names is None or name in names)
        ]
        limit_s = max((i.settings.start_timeout_s for i in wanted), default=0.0)
        end = self._loop.time() + min(limit_s, SETTLE_LIMIT_S)
        while (left := end - self._loop.time()) > 0 and not all(i.is_settled for i in wanted):
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            await asyncio.wait((waiter,), timeout=left)
            self._waiters.discard(waiter)

    def _check_settled(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # ---- the catalogue ---------------------------------------------------------------------

    def _rebuild(self, announced: Iterable[str] = ()) -> None:
        """Merge anew; clients hear of what changed and of the lists that a server announced."""
        surfaces: dict[str, Surface] = {
            name: integration.surface
            for name, integration in self.integrations.items()
            if integration.state not in HIDDEN_STATES
        }
        if self.own is not None:
            surfaces[OWN] = self.own.surface
        before, self.catalogue = self.catalogue, catalogue.merge(surfaces)
        changed = {
            CHANGE_OF_LIST[method]
            for method in LISTS
            if method in announced or before.pages[method] != self.catalogue.pages[method]
        }
        for method in sorted(changed):
            if self.audience is not None:
                self.audience.list_changed(method)

    def _refetch_soon(self, name: str, methods: Iterable[str]) -> None:
        """Fetch lists again; what comes within the delay, or while fetching, is one fetch."""
        stale = self._stale.get(name)
        if stale is not None:
            stale.update(methods)
            return
        self._stale[name] = set(methods)
        self._loop.call_later(REFETCH_DELAY_S, self._refetch, name)

    def _refetch(self, name: str) -> None:
        methods = sorted(self._stale.pop(name, ()))
        integration = self.integrations.get(name)
        if integration is None:
            return
        upstream, session = integration.upstream, integration.session
        if upstream is None or session is None or not methods:
            return
        self._stale[name] = set()

        def fetched(lists: dict[str, list[Object]]) -> None:
            again = self._stale.pop(name, set())
            if integration.upstream is upstream:
                integration.surface.lists.update(lists)
                integration.vet()
                self._rebuild(methods)
            if again:
                self._refetch_soon(name, again)

        Fetch(upstream, session, methods, fetched).begin()

    # ---- what servers say ------------------------------------------------------------------

    def upstream_request(self, upstream: Upstream, message: Message) -> None:
        """A server asks the client side something."""
        if self.audience is not None:
            self.audience.asked(upstream, message)

    def upstream_notification(self, upstream: Upstream, method: str, params: Object) -> None:
        """A server tells something: refetch what changed, pass the rest on."""
        if method in CHANGED:
            integration = self._integration_of(upstream)
            if integration is not None and integration.upstream is upstream:
                self._refetch_soon(upstream.integration, CHANGED[method])
        elif self.audience is not None:
            self.audience.told(upstream, method, params)

    def upstream_lost(self, upstream: Upstream, reason: str) -> None:
        """A server is not to be borne, or gone without the supervisor having said so yet."""
        integration = self._integration_of(upstream)
        if integration is not None:
            self._let_go(integration, reason)
            integration.state, integration.reason = "backing_off", reason
            self._reports.unfit(upstream.worker, reason)
            self._check_settled()

    def upstream_misbehaved(self, upstream: Upstream, text: str) -> None:
        """A server broke a rule, for the first time in this way."""
        self._reports.noticed(upstream.worker, text)

    def upstream_idle(self, upstream: Upstream) -> None:
        """Nothing is in flight any more; a draining integration is drained."""
        integration = self.integrations.get(upstream.integration)
        if integration is not None and integration.draining and integration.upstream is upstream:
            self._reports.idle(upstream.integration)

    # ---- what clients wish of servers ------------------------------------------------------

    def watch(self, name: str, uri: str, answer: Inquiry | None = None) -> None:
        """Watch a resource for one more client; `answer` hears how the server took it."""
        integration = self.integrations[name]
        count = integration.watched.get(uri, 0)
        integration.watched[uri] = count + 1
        if count == 0:
            self._watch_changed(integration, "resources/subscribe", uri, answer)
        elif answer is not None:
            answer.answered(Message(result=Raw(b"{}")))

    def unwatch(self, name: str, uri: str) -> None:
        """Watch a resource for one client less."""
        integration = self.integrations.get(name)
        if integration is None:
            return
        count = integration.watched.get(uri, 0) - 1
        if count > 0:
            integration.watched[uri] = count
        elif integration.watched.pop(uri, None) is not None:
            self._watch_changed(integration, "resources/unsubscribe", uri, None)

    def _watch_changed(
        self, integration: Integration, method: str, uri: str, answer: Inquiry | None
    ) -> None:
        if integration.session is not None and integration.session.is_modern:
            self._listen(integration)
            if answer is not None:
                answer.answered(Message(result=Raw(b"{}")))
        else:
            self._subscribe(integration, method, uri, answer)

    def _subscribe(
        self, integration: Integration, method: str, uri: str, answer: Inquiry | None
    ) -> None:
        if integration.upstream is None:
            if answer is not None:
                answer.failed(jsonrpc.UNAVAILABLE, integration.unavailable)
            return
        inquiry = answer or Inquiry(_ignore_answer, _ignore_failure, timeout_s=30.0)
        integration.upstream.ask(method, {"uri": uri}, inquiry)

    def _listen(self, integration: Integration) -> None:
        """Open, or open anew, the gateway's own subscription to a modern server."""
        upstream, session = integration.upstream, integration.session
        if upstream is None or session is None:
            return
        if integration.listen_id is not None:
            upstream.forget(integration.listen_id)
            integration.listen_id = None
        params = listen_params(session, sorted(integration.watched))
        if params is None:
            return

        def ended(*_: object) -> None:
            if integration.listen_id == listen_id:
                integration.listen_id = None

        inquiry = Inquiry(ended, ended, timeout_s=None)
        listen_id = upstream.ask("subscriptions/listen", params, inquiry)
        integration.listen_id = listen_id

    def set_log_level(self, level: int) -> None:
        """Servers shall tell what is at or above the index `level` in LOG_LEVELS."""
        self.log_level = level
        for integration in self.integrations.values():
            if integration.session is not None and not integration.session.is_modern:
                self._tell_log_level(integration)

    def _tell_log_level(self, integration: Integration) -> None:
        upstream, session, level = integration.upstream, integration.session, self.log_level
        if upstream is None or session is None or level is None or not session.offers("logging"):
            return
        inquiry = Inquiry(_ignore_answer, _ignore_failure, timeout_s=30.0)
        upstream.ask("logging/setLevel", {"level": LOG_LEVELS[level]}, inquiry)

    def totals(self) -> dict[str, dict[str, int]]:
        """What each integration was asked since S1 started, for summaries."""
        return {name: dict(i.totals) for name, i in self.integrations.items()}

    def status(self) -> dict[str, Any]:
        """What a query for "status" is answered with."""
        return {
            "integrations": {
                name: {
                    "state": i.state,
                    "era": None if i.session is None else i.session.era,
                    **i.totals,
                    **i.guard.status(),
                    "in_flight": 0 if i.upstream is None else i.upstream.in_flight,
                    "strays": 0 if i.upstream is None else i.upstream.strays,
                    "broken_frames": 0 if i.upstream is None else i.upstream.broken_frames,
                    "tools": len(i.surface.lists.get("tools/list", ())),
                }
                for name, i in self.integrations.items()
            },
            "tools": len(self.catalogue.tools),
            "prompts": len(self.catalogue.prompts),
            "resources": len(self.catalogue.resources),
            "notes": list(self.catalogue.notes[:50]),
        }


def _breaker_of(integration: Integration) -> Gate | None:
    """A closed breaker costs a call nothing."""
    return None if integration.guard.is_closed else integration.guard


def _ignore_answer(_: Message) -> None:
    """The answer changes nothing."""


def _ignore_failure(_code: int, _text: str) -> None:
    """A server that did not take a wish is asked again when it is started again."""
