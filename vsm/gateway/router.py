"""From clients to servers by name, and back to the client that it concerns.

Owns the clients and the meaning of each MCP method in both eras; bytes in and out are the
transports' business, servers are the fleet's. Runs in S1's event loop; a request is handled
without waiting unless an integration that it needs is still starting. A bit long: what each method
means can be read in one place.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Final, cast

from msgspec import UNSET

from vsm.core.demand import UNSERVED
from vsm.gateway import search_tools
from vsm.gateway.accounting import (
    count_unserved,
    now_ns,
    outcome_of_failure,
    routed_label,
)
from vsm.gateway.bridge import Bridge, BridgedCall
from vsm.gateway.call import Call, Gate, Sink, id_json, is_admitted, passage
from vsm.gateway.call_log import CallLog
from vsm.gateway.client import MAX_IN_FLIGHT, Client
from vsm.gateway.finder import Finder, RequestError, StartingError, check_era, check_offered
from vsm.gateway.fleet import Fleet
from vsm.gateway.integration import CLOSED_STATES
from vsm.gateway.own_tools import OWN
from vsm.gateway.relay import Relay, level_index
from vsm.gateway.resilience import Guard
from vsm.gateway.sessions import Sessions
from vsm.gateway.tasks import TaskCall, check_task_request
from vsm.gateway.views import View, Views
from vsm.protocol import envelope, jsonrpc, parameter_headers
from vsm.protocol.envelope import EnvelopeError, unwrap_header
from vsm.protocol.jsonrpc import DecodeError, Message, Object
from vsm.protocol.tables import (
    CLIENT_NOTIFICATIONS,
    CLIENT_REQUESTS,
    LISTS,
    META_CLIENT,
    META_LOG_LEVEL,
    META_VERSION,
    ROOTS_CHANGED,
    ROUTED,
    TASK_REQUESTS,
    Era,
)

TTL_MS: Final = 1000
MAX_DEFERRED: Final = 1024
LIST_WAIT_S: Final = 10.0  # as long as a call waits for its server
OTHER: Final = "other requests"
_PLAIN_METHOD: Final = re.compile(r"[A-Za-z0-9_./$-]{1,128}")  # goes into frames as it is
_KNOWN_REQUESTS: Final = CLIENT_REQUESTS[Era.LEGACY] | CLIENT_REQUESTS[Era.MODERN]
_KNOWN_NOTIFICATIONS: Final = CLIENT_NOTIFICATIONS[Era.LEGACY] | CLIENT_NOTIFICATIONS[Era.MODERN]
_MODERN: Final = Era.MODERN  # to look it up in its class takes three times as long
_PROGRESS_TOKEN = "progressToken"  # noqa: S105 - the name of a member


class Router:
    """The gateway's middle: takes clients' messages, finds servers, tells clients."""

    def __init__(self, fleet: Fleet, views: Views | None = None) -> None:
        self._fleet = fleet
        self.views = views or Views()
        self.call_log: CallLog | None = None
        self.clients: set[Client] = set()
        self._bridge = Bridge(fleet)
        self.relay = fleet.audience = Relay(self.clients, self._bridge)
        self._deferred: dict[tuple[Client, bytes], asyncio.Task[None]] = {}
        self._finder = Finder(fleet)
        self._tasks = self.relay.tasks
        fleet.guards.resend = self._resend
        fleet.go_on = self._release
        self._sessions = Sessions(fleet, self.clients, self._finder)
        self._modern = self._sessions.answers[Era.MODERN]
        self._legacy = self._sessions.answers[Era.LEGACY]

    # ---- clients ---------------------------------------------------------------------------

    def join(self, client: Client) -> None:
        """Know a client."""
        self.clients.add(client)

    def leave(self, client: Client, reason: str) -> None:
        """A client is gone: cancel what it asked, answer for it what it was asked."""
        self.clients.discard(client)
        client.end(reason)
        if self._deferred:
            for key in [key for key in self._deferred if key[0] is client]:
                self._deferred.pop(key).cancel()
        self.hears_only(client, "the client is gone")
        self._tasks.left(client)
        self._fleet.forget_elicited(client)
        if client.lasts:
            self._bridge.client_left(client)
        for name, uri in client.subscribed:
            self._fleet.unwatch(name, uri, client)
        client.subscribed.clear()
        for listen in client.listens.values():
            self._sessions.unwatch_all(listen)
        client.listens.clear()
        if client.lasts:
            self._fleet.left(client)

    @staticmethod
    def hears_only(client: Client, reason: str = "the client sends no more") -> None:
        """A client sends nothing more, and so no answer to what it was asked."""
        for asked_id, question in list(client.asked.items()):
            if client.asked.pop(asked_id, None) is question:
                question.dropped(reason)

    def is_busy(self, client: Client) -> bool:
        """Whether the client waits for an answer."""
        waits = bool(client.in_flight) or client.owed > 0
        return waits or any(key[0] is client for key in self._deferred)

    def stop(self) -> None:
        """End every subscription on purpose and forget what waits."""
        for client in self.clients:
            for listen in client.listens.values():
                listen.end()
            client.listens.clear()
        self._bridge.stop()
        for task in self._deferred.values():
            task.cancel()

    # ---- messages from clients -------------------------------------------------------------

    def receive(
        self,
        client: Client,
        sink: Sink,
        message: Message,
        headers: Mapping[str, str] | None = None,
        *,
        patient: bool = True,
    ) -> None:
        """Take one decoded message.

        The answer goes to `sink`; `headers` are those of a modern request over HTTP, to be
        judged against its body. Only a `patient` request waits for what is still starting.
        """
        if message.method is UNSET:
            self.relay.client_answered(client, message)
            return
        if message.id is UNSET:
            self._client_told(client, message)
            return
        id_bytes = jsonrpc.encode(message.id)
        try:
            self._serve(client, sink, message, id_bytes, headers, patient)
        except StartingError as starting:
            if patient:
                self._defer(client, sink, message, id_bytes, starting, headers=headers)
            else:
                self._fail_starting(sink, id_bytes, starting.names)
                count_unserved(self._fleet, message)
                self._log_refusal(client, message, UNSERVED)
        except RequestError as error:
            sink.answer(jsonrpc.failure(id_bytes, error.code, error.message, error.data))
            if error.unserved:
                count_unserved(self._fleet, message)
            outcome = UNSERVED if error.unserved else outcome_of_failure(error.code)
            self._log_refusal(client, message, outcome)
        except EnvelopeError as error:
            sink.answer(jsonrpc.failure(id_bytes, error.code, error.message, error.data))
        except DecodeError as error:
            sink.answer(jsonrpc.failure(id_bytes, error.code, error.message))

    def _log_refusal(self, client: Client, message: Message, outcome: int) -> None:
        """Write down a call that never became one."""
        method = cast("str", message.method)
        if self.call_log is not None and method in ROUTED:
            params = jsonrpc.members(message.params)
            label = routed_label(self._finder.catalogue(client), method, params)
            if label == search_tools.CALL and client.view is not None and client.view.search:
                label = jsonrpc.text(jsonrpc.nested(params, "arguments"), "name") or label
            self.call_log.refused(client, method, label, outcome)

    def _serve(  # noqa: PLR0917 - the hot path: keywords cost
        self,
        client: Client,
        sink: Sink,
        message: Message,
        id_bytes: bytes,
        headers: Mapping[str, str] | None,
        patient: bool,  # noqa: FBT001 - the same
    ) -> None:
        method: str = message.method  # type: ignore[assignment]  # a request has one; cast() costs
        params = jsonrpc.members(message.params)
        meta = jsonrpc.nested(params, "_meta") if "_meta" in params else {}
        modern = META_VERSION in meta or headers is not None
        if modern:
            envelope.check(method, params, meta, headers)
            client.introduces_itself(jsonrpc.nested(meta, META_CLIENT))
        if method != "tools/call" or not (modern or client.initialized):
            self._check_method(client, method, modern=modern)
        if id_bytes in client.in_flight or id_bytes in client.listens:
            raise RequestError(jsonrpc.INVALID_REQUEST, "this id is in flight already")
        if method == "tools/call":
            self._call_tool(client, sink, id_bytes, params, meta, headers, modern, patient)
        elif method in LISTS:
            self._list(client, sink, id_bytes, method, params, modern=modern, patient=patient)
        elif method in self._modern or method in self._legacy:
            own = self._modern if modern else self._legacy
            own[method](client, sink, id_bytes, params)
        elif method not in ROUTED:
            if method in TASK_REQUESTS:
                check_task_request(method, meta, modern=modern)
                owner = self._tasks.find(client, params).server.integration
            else:
                owner = self._only_one(method, client.view)
            self._route(client, sink, id_bytes, method, params, meta, owner, modern, OTHER)
        else:
            name = self._finder.route_of(method, params, client, modern=modern)
            label = routed_label(self._finder.catalogue(client), method, params)
            self._route(client, sink, id_bytes, method, params, meta, name, modern, label)

    def _check_method(self, client: Client, method: str, *, modern: bool) -> None:
        own = CLIENT_REQUESTS[Era.MODERN if modern else Era.LEGACY]
        if method not in own and method in _KNOWN_REQUESTS:
            raise _unknown_method(method)
        if not modern and not client.initialized and method not in ("initialize", "ping"):
            raise RequestError(jsonrpc.INVALID_REQUEST, "send initialize first")

    def _call_tool(  # noqa: PLR0917 - the hot path: keywords cost
        self,
        client: Client,
        sink: Sink,
        id_bytes: bytes,
        params: Object,
        meta: Object,
        headers: Mapping[str, str] | None,
        modern: bool,  # noqa: FBT001 - the same
        patient: bool,  # noqa: FBT001
    ) -> None:
        view = client.view
        if view is not None and view.search:
            if self._search(client, sink, id_bytes, params, modern=modern, patient=patient):
                return
            headers = None  # they were checked, and are about the name before it was changed
        whole = self._fleet.catalogue
        tools = (whole if view is None else view.of(whole)).tools
        entry = self._finder.entry("tools/call", params, tools, view)
        owner = entry.integration
        if owner == OWN and self._fleet.own is not None:
            self._fleet.own.call(client, sink, id_bytes, entry.name, params, modern=modern)
            return
        if headers is not None and entry.header_rules:
            parameter_headers.check(entry.header_rules, params, headers, unwrap_header)
        params["name"] = entry.raw_name
        self._route(client, sink, id_bytes, "tools/call", params, meta, owner, modern, entry.name)

    def _search(
        self,
        client: Client,
        sink: Sink,
        id_bytes: bytes,
        params: Object,
        *,
        modern: bool,
        patient: bool,
    ) -> bool:
        """Answer a search or a description; make of `vsm__call` the call that is meant."""
        name = jsonrpc.text(params, "name")
        if name == search_tools.CALL:
            search_tools.rename_call(params)
        if name not in (search_tools.SEARCH, search_tools.DESCRIBE):
            return False
        self._wait_known(client, "tools/list", patient=patient)
        tools = cast("View", client.view).search_tools(self._fleet.catalogue)
        arguments = jsonrpc.nested(params, "arguments")
        if name == search_tools.DESCRIBE:
            result = tools.describe(arguments)
        else:
            result, missed = tools.search(arguments)
            if missed is not None:
                self._fleet.accounting.nobody.count(f"search {missed}", UNSERVED, now_ns())
        body = search_tools.for_era(result, modern=modern)
        sink.answer(jsonrpc.answer(id_bytes, body))
        return True

    def _wait_known(self, client: Client, method: str, *, patient: bool) -> bool:
        """Whether something is still starting, so that a list may change soon.

        Nobody waits for a server whose lists are known from its last run. For one that was never
        seen only those wait who would not hear of the change, and not for long.

        Raises:
            StartingError: this client is to wait.
        """
        starting = [i for i in self._finder.seen(client.view).values() if not i.is_settled]
        unknown = [i.settings.name for i in starting if i.session is None]
        if unknown and patient:
            self._fleet.settling.start_unknown(unknown)
            limit_s = self._fleet.list_wait_s
            if limit_s is None:
                limit_s = 0.0 if client.hears_of(method) else LIST_WAIT_S
            if limit_s:
                raise StartingError(unknown, limit_s)
        return bool(starting)

    def _only_one(self, method: str, view: View | None) -> str:
        """Who gets a request that we do not know: the only integration that it sees, or nobody."""
        seen = list(self._finder.seen(view))
        unclear = len(seen) != 1 or method == "tasks/list"
        if unclear or not _PLAIN_METHOD.fullmatch(method):
            raise _unknown_method(method)
        return seen[0]

    def _defer(
        self,
        client: Client,
        sink: Sink,
        message: Message,
        id_bytes: bytes,
        starting: StartingError,
        *,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Serve the request once what it needs has started, or failed to; bounded in time."""
        key = (client, id_bytes)
        own = sum(1 for other, _ in self._deferred if other is client)
        full = len(self._deferred) >= MAX_DEFERRED or own >= MAX_IN_FLIGHT
        if full or key in self._deferred:
            self._fail_starting(sink, id_bytes, starting.names)
            count_unserved(self._fleet, message)
            return

        async def later() -> None:
            await self._fleet.settling.wait(starting.names, client, starting.limit_s)
            self._deferred.pop(key, None)
            self.receive(client, sink, message, headers, patient=False)

        self._deferred[key] = asyncio.get_running_loop().create_task(later())

    # ---- routing ---------------------------------------------------------------------------

    def _fail_starting(self, sink: Sink, id_bytes: bytes, names: list[str]) -> None:
        known = [self._fleet.integrations[name] for name in names]
        text = " ".join(one.unavailable for one in known)
        sink.answer(jsonrpc.failure(id_bytes, jsonrpc.UNAVAILABLE, text, known[0].availability))

    def _route(  # noqa: C901, PLR0917 - the hot path: keywords and further calls cost
        self,
        client: Client,
        sink: Sink,
        id_bytes: bytes,
        method: str,
        params: Object,
        meta: Object,
        name: str,
        modern: bool,  # noqa: FBT001 - the same
        label: str,
    ) -> None:
        integration = self._fleet.integrations[name]
        upstream = integration.upstream
        if upstream is None or integration.draining or integration.state in CLOSED_STATES:
            upstream = self._finder.instance_of(integration, client)
        integration.totals["calls"] += 1
        if len(client.in_flight) >= MAX_IN_FLIGHT:
            text = f"this client has {MAX_IN_FLIGHT} requests in flight already"
            raise RequestError(jsonrpc.UNAVAILABLE, text, unserved=True)
        row, timeout_s, log = integration.demand, integration.settings.call_timeout_s, self.call_log
        of_call = client, sink, id_bytes, method, params, name, row, label, timeout_s, log
        if modern is (upstream.era is _MODERN):
            call = Call(*of_call)
            if upstream.makes_tasks or "task" in params or method in TASK_REQUESTS:
                call, upstream = self._tasks.take(call, params, upstream)
        elif method not in ROUTED:
            raise _unknown_method(method)
        else:
            call = BridgedCall(*of_call, bridge=self._bridge, to_modern=modern)
            call.change_era(params, meta)
        if meta:  # as of every modern request
            _take_meta(call, meta, modern=modern)
            if call.log_level is not None and upstream.era is not _MODERN:
                self._fleet.want_log_level(call.log_level)
            if type(call) is BridgedCall and modern and "requestState" in params:
                self._bridge.resume(call)
                return
        way, admitted = integration.passage, True
        if way:
            admitted = is_admitted(call, way)
        client.in_flight[id_bytes] = call
        if admitted:
            upstream.call(call)

    def _release(self, gates: tuple[Gate, ...], call: Call) -> None:
        """Send a call that a gate held past those behind it, unless it was cancelled meanwhile."""
        if call.client.in_flight.get(call.id_bytes) is not call:
            return
        integration = self._fleet.integrations.get(call.integration)
        if integration is None or not integration.takes_calls:
            text = integration.unavailable if integration else f"{call.integration} was removed."
            guard = integration.guard if integration and integration.state == "restarting" else None
            if guard is None or not guard.keeps(call, jsonrpc.UNAVAILABLE, text):
                call.failed(jsonrpc.UNAVAILABLE, text)
            return
        try:
            check_offered(integration, call)
            upstream = integration.upstream or self._finder.instance_of(integration, call.client)
            if isinstance(call, TaskCall):
                upstream = call.server(upstream)
            check_era(call, upstream)
            if is_admitted(call, passage(gates, self._release)):
                upstream.call(call)
        except StartingError:
            call.failed(jsonrpc.UNAVAILABLE, integration.unavailable)
        except RequestError as error:
            call.failed(error.code, error.message)

    def _resend(self, guard: Guard, call: Call) -> None:
        """Send a call whose server ended to the one that takes calls now."""
        self._release(() if guard.is_closed else (guard,), call)

    # ---- what the gateway answers itself ---------------------------------------------------

    def _list(
        self,
        client: Client,
        sink: Sink,
        id_bytes: bytes,
        method: str,
        params: Object,
        *,
        modern: bool,
        patient: bool,
    ) -> None:
        if "cursor" in params and bytes(params["cursor"]) != b"null":
            raise RequestError(jsonrpc.INVALID_PARAMS, "unknown cursor: this list has one page")
        starting = self._wait_known(client, method, patient=patient)
        catalogue = self._finder.catalogue(client)
        if client.view is not None and client.view.search and method == "tools/list":
            catalogue = search_tools.CATALOGUE
        if method == "resources/list":
            self._finder.lists_resources(client)
        if modern:
            body = catalogue.modern_page(method, 0 if starting else TTL_MS)
        else:
            body = catalogue.legacy_page(method)
        sink.answer(jsonrpc.answer(id_bytes, body))

    # ---- notifications and answers from clients --------------------------------------------

    def _client_told(self, client: Client, message: Message) -> None:
        method = cast("str", message.method)
        try:
            params = jsonrpc.members(message.params)
        except DecodeError:
            return
        if method == ROOTS_CHANGED:
            self._fleet.roots_changed(client)
        elif method == "notifications/progress":
            self.relay.client_progressed(client, params)
        elif method not in _KNOWN_NOTIFICATIONS:
            self._pass_on(client, method, params)
        elif method == "notifications/cancelled":
            self._client_cancelled(client, params)

    def _pass_on(self, client: Client, method: str, params: Object) -> None:
        """What we do not know goes to the only integration that the client sees, or to nobody."""
        upstream = self._finder.only_upstream(client)
        if upstream is not None and _PLAIN_METHOD.fullmatch(method):
            upstream.mention(jsonrpc.notification(method, jsonrpc.encode(params)))

    def _client_cancelled(self, client: Client, params: Object) -> None:
        reason = (jsonrpc.text(params, "reason") or "cancelled by the client")[:200]
        if (request_id := jsonrpc.identifier(params, "requestId")) is not None:
            self.cancel(client, id_json(request_id), reason)

    def cancel(self, client: Client, id_bytes: bytes, reason: str) -> None:
        """The client wants no answer to its request any more."""
        call = client.in_flight.get(id_bytes)
        if call is not None:
            call.cancel(reason)
        listen = client.listens.pop(id_bytes, None)
        if listen is not None:
            self._sessions.unwatch_all(listen)
        task = self._deferred.pop((client, id_bytes), None)
        if task is not None:
            task.cancel()
        if call is not None or task is not None:
            client.wants_no_answer(id_bytes)


def _take_meta(call: Call, meta: Object, *, modern: bool) -> None:
    """What a request's `_meta` says of what may come before its answer."""
    if META_LOG_LEVEL in meta and modern:
        call.log_level = level_index(jsonrpc.text(meta, META_LOG_LEVEL))
    if _PROGRESS_TOKEN in meta and jsonrpc.identifier(meta, _PROGRESS_TOKEN) is not None:
        call.progress = meta[_PROGRESS_TOKEN]


def _unknown_method(method: str) -> RequestError:
    return RequestError(jsonrpc.METHOD_NOT_FOUND, f"Method not found: {method[:80]}")
