"""All integrations behind the gateway, and the catalogue merged from what they offer.

Owns attaching and detaching servers, the merged lists, and who watches which resource; when lists
are fetched again and who waits are parts of their own. Clients are the router's business. Runs in
S1's event loop. One file, a bit long: an integration's servers, lists and wishes change together.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias, cast, get_args

import msgspec
from msgspec import Raw

from vsm.gateway import contract, known, wishes
from vsm.gateway.accounting import Accounting
from vsm.gateway.call import Call, Gate, Inquiry, passage
from vsm.gateway.client import Client
from vsm.gateway.instances import Instance, Instances
from vsm.gateway.integration import (
    HIDDEN_STATES,
    Integration,
    Server,
    Settings,
    Startup,
)
from vsm.gateway.own_tools import OWN, OwnTools
from vsm.gateway.refetch import Refetches
from vsm.gateway.resilience import Guards
from vsm.gateway.resilience_health import watch_health
from vsm.gateway.settling import Settling
from vsm.gateway.successors import Succession
from vsm.gateway.trust import Vetting
from vsm.gateway.upstream import Upstream
from vsm.protocol import catalogue, era
from vsm.protocol.catalogue import Catalogue, Surface
from vsm.protocol.jsonrpc import Message, Object
from vsm.protocol.tables import CHANGED

GateKind: TypeAlias = Literal["arguments", "rules", "rates", "queue", "record", "breaker"]
"""In the order in which they are asked; what a breaker lets through is sent: it may be a probe."""
GateMaker: TypeAlias = Callable[[Integration], Gate | None]
_MOST_NOTES: Final = 50
_NOTE_CHARS: Final = 200  # a URI of a server's is in it


class Reports(Protocol):
    """What the supervisor wants to hear."""

    def session(self, worker: str, record: dict[str, Any]) -> None:
        """The worker's session stands; `record` resumes it."""

    def unfit(self, worker: str, reason: str) -> None:
        """The worker is to be stopped and started again."""

    def noticed(self, worker: str, text: str) -> None:
        """The worker's server broke a rule for the first time; it is borne."""

    def idle(self, integration: str, worker: str | None = None) -> None:
        """A draining integration has nothing in flight, or a server of it that was replaced."""

    def breaker(self, integration: str, phase: str, detail: str) -> None:
        """An integration's calls are refused, tried or let through from now on."""

    def retried(self, integration: str, answered: int, failed: int) -> None:
        """So many calls that were sent again ended so."""

    def dead_letter(self, integration: str, letter: dict[str, Any]) -> None:
        """A call was accepted and not answered by its server."""

    def offered(self, integration: str, document: bytes) -> None:
        """A server offers what is not pinned (JSON: key → item)."""

    def wanted(self, integration: str, count: int, release: dict[str, str]) -> None:
        """How many instances there should be, and which should not, with the reason."""

    def learnt(self, integration: str, content: bytes) -> None:
        """What an integration offers, to be kept for `known`."""


class Audience(Protocol):
    """Who hears what servers say: the router."""

    def lists_changed(
        self, before: Catalogue, after: Catalogue, announced: Iterable[str], by: str | None
    ) -> None:
        """Merged lists may have changed; an integration announced some of its own."""

    def asked(self, upstream: Upstream, message: Message) -> None:
        """A server asks the client side something."""

    def told(self, upstream: Upstream, method: str, params: Object) -> None:
        """A server told something that concerns clients."""

    def watched_of(self, name: str) -> dict[str, int]:
        """Which resources of an integration clients wish to hear of, and how many of each."""


class Fleet:
    """The integrations and their servers.

    Args:
        epoch: this incarnation of S1.
        accounting: where calls are counted; a board of its own where none is given.
        log_level: the lowest level that any client wants to hear, as an index in LOG_LEVELS.
        list_wait_s: how long lists wait for a server that was never seen; None: by the client.
        go_on: sends a call that a gate held past the gates behind it.
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
        self.list_wait_s: float | None = None
        self.go_on: Callable[[tuple[Gate, ...], Call], None] = _nobody_routes
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self.settling = Settling(self.integrations)
        self.refetches = Refetches(self)
        self._bounds: dict[str, int] = {}
        self._gate_makers: dict[GateKind, GateMaker] = {"breaker": _breaker_of}
        self._steady: frozenset[str] = frozenset()
        self.guards = Guards(reports, self._breaker_changed)
        self.guards.approved = self._is_approved_harmless

    # ---- the supervisor's side -------------------------------------------------------------

    def add(self, settings: Settings) -> None:
        """Know an integration, or know it anew; its server keeps running."""
        integration = self.integrations.get(settings.name)
        if integration is None:
            row = self.accounting.row(settings.name)
            guard = self.guards.make(settings.name, settings.resilience, self._calls)
            succession = Succession()
            integration = Integration(settings, demand=row, guard=guard, succession=succession)
            self.integrations[settings.name] = integration
            self._put_watched(integration)  # it may have been there before
            self._put_gates(integration, *get_args(GateKind))
        else:
            integration.settings = settings
            integration.guard.configure(settings.resilience)
            self._put_gates(integration, "arguments")
        self._put_instances(integration)
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

    def _is_approved_harmless(self, call: Call) -> bool:
        """Whether a person approved the tool, and it says that calling it twice does no harm."""
        integration = self.integrations.get(call.integration)
        if integration is None or call.method != "tools/call":
            return False
        return integration.vetting.approves_again(integration.surface, call.label)

    def _breaker_changed(self, name: str) -> None:
        """Calls ask the breaker, or no longer do."""
        if name in self.integrations:
            self._put_gates(self.integrations[name], "breaker")

    def guard(self, kind: GateKind, make: GateMaker) -> None:
        """Put a gate before every integration that `make` gives one for; again: replace them."""
        self._gate_makers[kind] = make
        for integration in self.integrations.values():
            self._put_gates(integration, kind)

    def _put_gates(self, integration: Integration, *kinds: GateKind) -> None:
        """Make gates of these kinds anew; the others stay, with what they know of clients."""
        for kind in kinds:
            make = self._gate_makers.get(kind)
            integration.gate_of[kind] = None if make is None else make(integration)
        gates = [integration.gate_of.get(kind) for kind in get_args(GateKind)]
        integration.gates = tuple(gate for gate in gates if gate is not None)
        integration.passage = passage(integration.gates, self._go_on)

    def _go_on(self, gates: tuple[Gate, ...], call: Call) -> None:
        self.go_on(gates, call)

    def _put_instances(self, integration: Integration) -> None:
        """Have instances by the terms of the configuration; of another kind once no old is left."""
        terms, old = integration.settings.terms, integration.instances
        if terms == (None if old is None else old.terms):
            return
        if old is not None and terms is not None and old.terms.kind == terms.kind:
            old.renew(terms)
            return
        if old is not None:
            if old.members:
                return
            old.close("its configuration changed")
        name = integration.settings.name
        integration.instances = None if terms is None else Instances(name, terms, self)
        self._put_watched(integration)
        if integration.instances is not None and name in self._bounds:
            integration.instances.bind(self._bounds[name])
        self._hold(integration)

    def _put_watched(self, integration: Integration) -> None:
        """Watch what those clients subscribed to who were there before it, or before its kind."""
        if self.audience is not None:
            integration.watched = self.audience.watched_of(integration.settings.name)

    def bind(self, name: str, most: int) -> None:
        """A pool may have so many instances from now on."""
        self._bounds[name] = most
        integration = self.integrations.get(name)
        if integration is not None and integration.instances is not None:
            integration.instances.bind(most)

    def hold(self, names: Iterable[str]) -> None:
        """These integrations' pools let no instance go until others are named."""
        self._steady = frozenset(names)
        for integration in self.integrations.values():
            self._hold(integration)

    def _hold(self, integration: Integration) -> None:
        if integration.instances is not None:
            integration.instances.is_steady = integration.settings.name in self._steady

    def remove(self, name: str) -> None:
        """Forget an integration: what it offered is gone from every list."""
        integration = self.integrations.pop(name, None)
        if integration is None:
            return
        reason = f"{name} was removed from the configuration"
        integration.guard.available("stopped")  # so that nothing is kept for another server
        self._let_go(integration, reason)
        integration.succession.close(reason)
        if integration.instances is not None:
            integration.instances.close(reason)
        integration.guard.close()
        self._bounds.pop(name, None)
        self.accounting.remove(name)
        self._rebuild()
        self.settling.look_again()

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
        instance: int = 0,
        *,
        beside: Settings | None = None,
        outdated: bool = False,
    ) -> None:
        """Take a server's pipes (its stdin to write to, its stdout to read from) over.

        With `beside` it starts by those terms, beside what serves, until `switch`; one that is
        `outdated` serves until another one of its kind can.
        """
        integration = self.integrations.get(name)
        if integration is None or bool(instance) is (integration.instances is None):
            for fd in pipes:
                os.close(fd)
            self._reports.unfit(worker, f"no integration {name} has such a server")
            return
        server: Server = integration
        several = integration.instances
        if beside is not None:
            server = several.make(worker, instance, beside) if several else Server(beside)
            integration.succession.expect(server)
        elif several is not None:
            server = several.add(worker, instance, integration.settings)
            server.outdated = outdated
        else:
            self._let_go(integration, "the server was replaced")
            hidden = integration.state in HIDDEN_STATES
            integration.state, integration.reason = "starting", ""
            integration.draining = False
            if hidden:  # its names are known: a call of one waits for it
                self._rebuild()
        server.starting = startup = self._startup(worker, server)
        task = self._loop.create_task(self._open(server, startup, pipes, record))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _startup(self, worker: str, server: Server) -> Startup:
        settings = server.settings
        upstream = Upstream(
            self,
            worker=worker,
            integration=settings.name,
            guard=self.integrations[settings.name].guard,
            epoch=self._epoch,
            concurrency=settings.concurrency,
            max_frame_bytes=settings.max_frame_bytes,
            remote=settings.remote,
            credentials=settings.credentials,
        )
        if isinstance(server, Instance):
            upstream.title = server.label
            upstream.private = _is_private(server)
        return Startup(upstream, settings, on_ready=self._ready, on_failure=self._not_ready)

    async def _open(
        self,
        server: Server,
        startup: Startup,
        pipes: tuple[int, int],
        record: dict[str, Any] | None,
    ) -> None:
        await startup.upstream.open(*pipes, resume=record is not None)
        if server.starting is startup:
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
            integration.succession.ended(worker, reason)
            if integration.instances is not None:
                instance = integration.instances.ended(worker, reason)
                if instance is not None:
                    self._let_go(instance, reason)
                self._put_instances(integration)
            for upstream in (integration.upstream, _starting(integration)):
                if upstream is not None and upstream.worker == worker:
                    self._let_go(integration, reason)
        self.settling.look_again()

    def _let_go(self, server: Server, reason: str) -> None:
        self._let_go_starting(server, reason)
        upstream, server.upstream = server.upstream, None
        server.listen_id = None
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
        if integration.instances is not None:
            integration.instances.begin_again()
        if hidden or state in HIDDEN_STATES:
            self._rebuild()
        self.settling.look_again()

    def check_contract(self, name: str, on_done: Callable[[contract.Kept], None]) -> None:
        """Ask its servers whether they offer what they told; what differs is fetched anew."""
        contract.check(self.integrations.get(name), on_done, self.refetches.soon)

    def drain(self, name: str, worker: str | None = None) -> None:
        """Take no new calls for the integration; report when nothing is in flight.

        With `worker` it is about that server alone, which another one has replaced.
        """
        integration = self.integrations.get(name)
        if integration is None:
            return
        if worker is not None:
            self._retire(integration, worker)
            return
        integration.draining = True
        if not integration.in_flight:
            self._reports.idle(name)

    def close(self, reason: str) -> None:
        """Let go of every server."""
        for integration in self.integrations.values():
            self._let_go(integration, reason)
            integration.succession.close(reason)
            if integration.instances is not None:
                integration.instances.close(reason)
            integration.guard.close()
        self.settling.close()
        self.accounting.close()
        if self.own is not None:
            self.own.close()

    # ---- becoming ready --------------------------------------------------------------------

    def server_of(self, upstream: Upstream) -> tuple[Integration, Server] | tuple[None, None]:
        """Whose server it is, as long as it is in use."""
        integration = self.integrations.get(upstream.integration)
        for server in () if integration is None else integration.servers:
            if upstream in (server.upstream, _starting(server)):
                return cast("Integration", integration), server
        return None, None

    def _ready(self, startup: Startup) -> None:
        integration, server = self.server_of(startup.upstream)
        if integration is None or server is None or startup.session is None:
            return
        if server is integration.succession.coming:
            integration.succession.arrive(startup)
            self._report_session(startup)
        else:
            self._serve(integration, server, startup, startup.session)

    def _report_session(self, startup: Startup) -> None:
        record: dict[str, Any] = msgspec.to_builtins(startup.session)
        self._reports.session(startup.upstream.worker, record)

    def _serve(
        self,
        integration: Integration,
        server: Server,
        startup: Startup,
        session: era.PeerSession,
    ) -> None:
        """A server that is ready takes calls from now on."""
        before = integration.session
        server.starting = None
        server.upstream = startup.upstream
        server.session = session
        server.behind = {}
        server.upstream.makes_tasks = session.makes_tasks
        if server is integration or integration.state == "starting":
            integration.state, integration.reason = "ready", ""
        self._offer_of(integration, server, startup, like_before=session == before)
        self._restore_wishes(server)
        self._report_session(startup)
        watch_health(startup.upstream, session, self)
        integration.guard.server_ready()
        if isinstance(server, Instance) and integration.instances is not None:
            integration.instances.became_ready(server)
        self.settling.look_again()

    def switch(self, name: str, worker: str) -> None:
        """A server that was started beside another serves from now on, in its place.

        Between two calls: what goes to the new one is compared with what was approved as at any
        start, before the first call reaches it.
        """
        integration = self.integrations.get(name)
        taken = None if integration is None else integration.succession.take(worker)
        if integration is None or taken is None:
            return  # it has ended, which the supervisor was told
        server, startup = taken
        session = cast("era.PeerSession", startup.session)
        if isinstance(server, Instance) and integration.instances is not None:
            alike = session == integration.session
            alike = alike and startup.surface.lists == integration.surface.lists
            integration.instances.join(server, integration.surface, alike=alike)
        else:
            server = integration
            self._let_go_starting(integration, "another server took its place")
            integration.succession.leave(integration)
        integration.guard.server_replaced()
        self._serve(integration, server, startup, session)

    def _let_go_starting(self, server: Server, reason: str) -> None:
        startup, server.starting = server.starting, None
        if startup is not None:
            startup.stop()
            startup.upstream.close(reason)

    def _retire(self, integration: Integration, worker: str) -> None:
        """A server takes no new call; report when it has answered those in flight."""
        if integration.upstream is not None and integration.upstream.worker == worker:
            integration.succession.leave(integration)
        leaving = integration.succession.leaving.get(worker)
        if leaving is None or not leaving.in_flight:
            self._reports.idle(integration.settings.name, worker)

    def _offer_of(
        self, integration: Integration, server: Server, startup: Startup, *, like_before: bool
    ) -> None:
        """Offer what a server offers; one instance more that is like the others changes nothing."""
        session = cast("era.PeerSession", startup.session)
        lists, told = startup.surface.lists, integration.surface.lists
        if like_before:
            lists |= {method: told[method] for method in startup.failures if method in told}
        self.refetches.came(server, startup.upstream, startup.failures)
        if startup.stale:
            self.refetches.soon(startup.upstream, startup.stale)
        if like_before and isinstance(server, Instance) and lists == told:
            return
        if _is_succeeded(integration, server):
            server.surface = startup.surface
            return
        integration.session = session
        integration.surface = server.surface = startup.surface
        integration.vet()
        self._rebuild()
        if startup.failures.keys() <= lists.keys():
            self._keep_surface(integration, session)

    def _restore_wishes(self, server: Server) -> None:
        """Ask a new server for what its predecessor was asked: changes, resources, log level."""
        if isinstance(server, Instance) and not _is_private(server):
            server.watched = dict(self.integrations[server.settings.name].watched)
        wishes.restore(server, self.log_level)

    def _not_ready(self, startup: Startup, reason: str) -> None:
        self._useless(startup.upstream, reason)

    def _useless(self, upstream: Upstream, reason: str) -> None:
        """A server did not become ready, or is not to be borne any more."""
        integration, server = self.server_of(upstream)
        if integration is None or server is None:
            return
        if server is integration.succession.coming:
            integration.succession.drop(reason)
        elif isinstance(server, Instance) and integration.instances is not None:
            integration.instances.unfit(server, reason)
        else:
            integration.state, integration.reason = "backing_off", reason
        self._let_go(server, reason)
        self._reports.unfit(upstream.worker, reason)
        self.settling.look_again()

    # ---- instances -------------------------------------------------------------------------

    def release(self, instance: Instance, reason: str) -> None:
        """Let go of an instance's pipes; what is in flight fails with the reason."""
        self._let_go(instance, reason)

    def claimed(self, instance: Instance, client: Client) -> None:
        """An instance belongs to a session from now on: watch what that one watches."""
        name = instance.settings.name
        if instance.upstream is not None:
            instance.upstream.client = client
            wishes.tell_roots_changed(instance, client)
        for owner, uri in client.subscribed:
            if owner == name:
                wishes.watch(instance, uri)
        self.settling.look_again()

    def roots_changed(self, client: Client) -> None:
        """A client has other roots: the servers that are its own may ask for them."""
        for integration in self.integrations.values():
            own = None if integration.instances is None else integration.instances.of(client)
            if own is not None:
                wishes.tell_roots_changed(own, client)

    def tell_wanted(self, name: str, count: int, release: dict[str, str]) -> None:
        """Tell the supervisor how many there should be, and which should not."""
        self._reports.wanted(name, count, release)

    def forget_elicited(self, client: Client) -> None:
        """A client is gone that servers may have sent to URLs."""
        for integration in self.integrations.values() if client.initialized else ():
            for server in integration.servers:
                if server.upstream is not None:
                    server.upstream.elicitations.left(client)

    def left(self, client: Client) -> None:
        """A client's session ended, and with it the instances that were its own."""
        for integration in self.integrations.values():
            if integration.instances is not None:
                integration.instances.left(client)

    def _keep_surface(self, integration: Integration, session: era.PeerSession) -> None:
        kept = known.pack(session, integration.surface.lists)
        if kept is not None:
            self._reports.learnt(integration.settings.name, kept)

    def know(self, name: str, content: bytes) -> None:
        """What an integration offered when it last ran, until it runs again."""
        integration = self.integrations.get(name)
        found = known.unpack(content)
        if integration is None or integration.session is not None or found is None:
            return
        integration.session, integration.surface.lists = found
        integration.surface.serves_resources = integration.session.offers("resources")
        integration.vet()
        self._rebuild()
        self.settling.look_again()

    # ---- the catalogue ---------------------------------------------------------------------

    def _rebuild(self, announced: Iterable[str] = (), by: str | None = None) -> None:
        """Merge anew; clients hear of what changed and of the lists that a server announced."""
        surfaces: dict[str, Surface] = {
            name: integration.surface
            for name, integration in self.integrations.items()
            if integration.state not in HIDDEN_STATES
        }
        if self.own is not None:
            surfaces[OWN] = self.own.surface
        before, self.catalogue = self.catalogue, catalogue.merge(surfaces)
        if self.audience is not None:
            self.audience.lists_changed(before, self.catalogue, announced, by)

    def relisted(
        self, integration: Integration, server: Server, lists: dict[str, list[Object]]
    ) -> None:
        """A server gave these lists anew, perhaps none."""
        if _is_succeeded(integration, server):
            server.surface.lists.update(lists)
            return
        integration.surface.lists.update(lists)
        integration.vet()
        self._rebuild(lists, integration.settings.name)
        self._keep_surface(integration, cast("era.PeerSession", server.session))

    # ---- what servers say ------------------------------------------------------------------

    def upstream_request(self, upstream: Upstream, message: Message) -> None:
        """A server asks the client side something."""
        if self.audience is not None:
            self.audience.asked(upstream, message)

    def upstream_notification(self, upstream: Upstream, method: str, params: Object) -> None:
        """A server tells something: refetch what changed, pass the rest on."""
        if method in CHANGED:
            # What one session made of its own server is not what the others are offered.
            if upstream.client is None:
                self.refetches.soon(upstream, CHANGED[method])
        elif self.audience is not None:
            self.audience.told(upstream, method, params)

    def upstream_lost(self, upstream: Upstream, reason: str) -> None:
        """A server is not to be borne, or gone without the supervisor having said so yet."""
        self._useless(upstream, reason)

    def upstream_misbehaved(self, upstream: Upstream, text: str) -> None:
        """A server broke a rule, for the first time in this way."""
        self._reports.noticed(upstream.worker, text)

    def calls_beside(self, upstream: Upstream) -> int:
        """How many calls went to other integrations, ever."""
        name = upstream.integration
        return sum(i.totals["calls"] for n, i in self.integrations.items() if n != name)

    def upstream_idle(self, upstream: Upstream) -> None:
        """Nothing is in flight any more; a draining integration is drained."""
        integration = self.integrations.get(upstream.integration)
        if integration is None:
            return
        if upstream.worker in integration.succession.leaving:
            self._reports.idle(upstream.integration, upstream.worker)
        if integration.instances is not None:
            integration.instances.idle(upstream.worker)
        if integration.draining and not integration.in_flight:
            self._reports.idle(upstream.integration)

    # ---- what clients wish of servers ------------------------------------------------------

    def watch(self, name: str, uri: str, client: Client, answer: Inquiry | None = None) -> None:
        """Watch a resource for one more client; `answer` hears how the server took it."""
        integration = self.integrations[name]
        if integration.instances is None:
            wishes.watch(integration, uri, answer, integration.unavailable)
        elif integration.settings.terms is not None and integration.settings.terms.kind == "pool":
            integration.watched[uri] = integration.watched.get(uri, 0) + 1
            for number, instance in enumerate(integration.instances.ready):
                wishes.watch(instance, uri, answer if number == 0 else None)
            if not integration.instances.ready and answer is not None:
                answer.answered(Message("2.0", result=Raw(b"{}")))
        else:
            own = integration.instances.of(client)
            if own is not None:
                wishes.watch(own, uri, answer)

    def unwatch(self, name: str, uri: str, client: Client) -> None:
        """Watch a resource for one client less."""
        integration = self.integrations.get(name)
        if integration is None:
            return
        if integration.instances is None:
            wishes.unwatch(integration, uri)
            return
        for instance in integration.instances.ready:
            if instance.client in (None, client):
                wishes.unwatch(instance, uri)
        wishes.count_down(integration.watched, uri)

    def want_log_level(self, level: int) -> None:
        """One call wants to hear what is at or above `level`: servers shall tell it, too."""
        if self.log_level is None or level < self.log_level:
            self.set_log_level(level)

    def set_log_level(self, level: int) -> None:
        """Servers shall tell what is at or above the index `level` in LOG_LEVELS."""
        self.log_level = level
        for integration in self.integrations.values():
            for server in integration.servers:
                if server.session is not None and not server.session.is_modern:
                    wishes.tell_log_level(server, level)

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
                    "in_flight": i.in_flight,
                    "strays": sum(s.upstream.strays for s in i.servers if s.upstream),
                    "broken_frames": sum(s.upstream.broken_frames for s in i.servers if s.upstream),
                    "tools": len(i.surface.lists.get("tools/list", ())),
                    "lists_behind": sorted({m for s in i.servers for m in s.behind}),
                    "instances": [] if i.instances is None else list(i.instances.rows()),
                    "instances_bound": None if i.instances is None else i.instances.bound,
                }
                for name, i in self.integrations.items()
            },
            "tools": len(self.catalogue.tools),
            "prompts": len(self.catalogue.prompts),
            "resources": len(self.catalogue.resources),
            "notes": [note[:_NOTE_CHARS] for note in self.catalogue.notes[:_MOST_NOTES]],
        }


def _nobody_routes(gates: tuple[Gate, ...], call: Call) -> None:  # noqa: ARG001
    raise RuntimeError("a gate held a call and nobody routes calls")


def _breaker_of(integration: Integration) -> Gate | None:
    """A closed breaker costs a call nothing."""
    return None if integration.guard.is_closed else integration.guard


def _starting(server: Server) -> Upstream | None:
    return None if server.starting is None else server.starting.upstream


def _is_succeeded(integration: Integration, server: Server) -> bool:
    """Whether it only finishes what is its own: what is offered is what its successor offers."""
    if integration.instances is None or not isinstance(server, Instance):
        return False
    return server.outdated and integration.instances.has_renewed


def _is_private(server: Server) -> bool:
    return server.settings.terms is not None and server.settings.terms.kind == "session"
