"""From clients to servers by name, and back to the client that it concerns.

Owns the clients and the meaning of each MCP method in both eras; bytes in and out are the
transports' business, servers are the fleet's. Runs in S1's event loop; a request is handled
without waiting unless an integration that it needs is still starting.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from msgspec import UNSET, Raw

from vsm.gateway.accounting import count_unserved, routed_label
from vsm.gateway.bridge import Bridge, BridgedCall
from vsm.gateway.call import Call, Inquiry, Sink, id_json
from vsm.gateway.client import (
    MAX_IN_FLIGHT,
    MAX_LISTENS,
    MAX_SUBSCRIBED_URIS,
    Client,
    Listen,
)
from vsm.gateway.fleet import Fleet
from vsm.gateway.integration import GATEWAY, Integration
from vsm.gateway.own_tools import OWN
from vsm.gateway.relay import Relay, level_index
from vsm.protocol import envelope, jsonrpc, parameter_headers
from vsm.protocol.catalogue import SEPARATOR, Entry
from vsm.protocol.envelope import EnvelopeError, unwrap_header
from vsm.protocol.jsonrpc import DecodeError, Message, Object
from vsm.protocol.tables import (
    CLIENT_REQUESTS,
    LEGACY_VERSION,
    LEGACY_VERSIONS,
    LISTEN_FILTERS,
    LISTS,
    LOG_LEVELS,
    META_CAPABILITIES,
    META_LOG_LEVEL,
    META_SERVER,
    META_VERSION,
    MODERN_VERSIONS,
    ROUTED,
    Era,
)

TTL_MS: Final = 1000
MAX_DEFERRED: Final = 1024
OTHER: Final = "other requests"
_PLAIN_METHOD: Final = re.compile(r"[A-Za-z0-9_./$-]{1,128}")  # goes into frames as it is
_KNOWN_REQUESTS: Final = CLIENT_REQUESTS[Era.LEGACY] | CLIENT_REQUESTS[Era.MODERN]
MAX_INSTRUCTIONS_CHARS: Final = 2048

CAPABILITIES: Final = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "completions": {},
}
_PROGRESS_TOKEN = "progressToken"  # noqa: S105 - the name of a member


class RequestError(DecodeError):
    """A request cannot be served: `code`, `message` and `data` go into the answer.

    Args:
        unserved: it was demand that nobody serves, and is counted as such.
    """

    def __init__(
        self, code: int, message: str, data: object = None, *, unserved: bool = False
    ) -> None:
        super().__init__(code, message)
        self.data = data
        self.unserved = unserved


class StartingError(Exception):
    """What the request needs is still starting; `names` are the integrations to wait for."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


class Router:
    """The gateway's middle: takes clients' messages, finds servers, tells clients."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.clients: set[Client] = set()
        self._bridge = Bridge(fleet)
        self.relay = fleet.audience = Relay(self.clients, self._bridge)
        self._deferred: dict[tuple[Client, bytes], asyncio.Task[None]] = {}
        self._legacy: dict[str, Callable[[Client, Sink, bytes, Object], None]] = {
            "initialize": self._initialize,
            "ping": self._ping,
            "logging/setLevel": self._set_level,
            "resources/subscribe": self._subscribe,
            "resources/unsubscribe": self._unsubscribe,
        }
        self._modern: dict[str, Callable[[Client, Sink, bytes, Object], None]] = {
            "server/discover": self._discover,
            "subscriptions/listen": self._listen,
        }

    # ---- clients ---------------------------------------------------------------------------

    def join(self, client: Client) -> None:
        """Know a client."""
        self.clients.add(client)

    def leave(self, client: Client, reason: str) -> None:
        """A client is gone: cancel what it asked, answer for it what it was asked."""
        self.clients.discard(client)
        client.end(reason)
        for key in [key for key in self._deferred if key[0] is client]:
            self._deferred.pop(key).cancel()
        for question in client.asked.values():
            question.dropped("the client is gone")
        client.asked.clear()
        if client.lasts:
            self._bridge.client_left(client)
        for name, uri in client.subscribed:
            self._fleet.unwatch(name, uri)
        client.subscribed.clear()
        for listen in client.listens.values():
            self._unwatch_all(listen)
        client.listens.clear()

    def is_busy(self, client: Client) -> bool:
        """Whether the client waits for an answer."""
        return bool(client.in_flight) or any(key[0] is client for key in self._deferred)

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
        self, client: Client, sink: Sink, message: Message, headers: Mapping[str, str] | None = None
    ) -> None:
        """Take one decoded message.

        The answer goes to `sink`; `headers` are those of a modern request over HTTP, to be
        judged against its body.
        """
        if message.method is UNSET:
            self.relay.client_answered(client, message)
        elif message.id is UNSET:
            self._client_told(client, message)
        else:
            id_bytes = id_json(cast("int | str", message.id))
            self._request(client, sink, message, id_bytes, headers)

    def _request(
        self,
        client: Client,
        sink: Sink,
        message: Message,
        id_bytes: bytes,
        headers: Mapping[str, str] | None,
        *,
        patient: bool = True,
    ) -> None:
        try:
            self._serve(client, sink, message, id_bytes, headers, patient=patient)
        except StartingError as starting:
            if patient:
                self._defer(client, sink, message, id_bytes, starting.names)
            else:
                integration = self._fleet.integrations[starting.names[0]]
                self._fail_unavailable(sink, id_bytes, integration)
                count_unserved(self._fleet, message)
        except RequestError as error:
            sink.answer(jsonrpc.failure(id_bytes, error.code, error.message, error.data))
            if error.unserved:
                count_unserved(self._fleet, message)
        except EnvelopeError as error:
            sink.answer(jsonrpc.failure(id_bytes, error.code, error.message, error.data))
        except DecodeError as error:
            sink.answer(jsonrpc.failure(id_bytes, error.code, error.message))

    def _serve(
        self,
        client: Client,
        sink: Sink,
        message: Message,
        id_bytes: bytes,
        headers: Mapping[str, str] | None,
        *,
        patient: bool,
    ) -> None:
        method = cast("str", message.method)
        params = jsonrpc.members(message.params)
        meta = jsonrpc.nested(params, "_meta") if "_meta" in params else {}
        modern = META_VERSION in meta or headers is not None
        if modern:
            envelope.check(method, params, meta, headers)
        self._check_method(client, method, modern=modern)
        if id_bytes in client.in_flight or id_bytes in client.listens:
            raise RequestError(jsonrpc.INVALID_REQUEST, "this id is in flight already")
        if method == "tools/call":
            entry = self._entry(method, params, self._fleet.catalogue.tools)
            own_tools = self._fleet.own
            if entry.integration == OWN and own_tools is not None:
                own_tools.call(sink, id_bytes, entry.name, modern=modern)
                return
            if headers is not None and entry.header_rules:
                parameter_headers.check(entry.header_rules, params, headers, unwrap_header)
            params["name"] = entry.raw_name
            owner = entry.integration
            self._route(client, sink, id_bytes, method, params, meta, owner, modern, entry.name)
        elif method in LISTS:
            self._list(sink, id_bytes, method, params, modern=modern, patient=patient)
        elif method in self._modern or method in self._legacy:
            own = self._modern if modern else self._legacy
            own[method](client, sink, id_bytes, params)
        elif method not in ROUTED:
            owner = self._only_one(method)
            self._route(client, sink, id_bytes, method, params, meta, owner, modern, OTHER)
        else:
            name = self._route_of(method, params, modern=modern)
            label = routed_label(self._fleet.catalogue, method, params)
            self._route(client, sink, id_bytes, method, params, meta, name, modern, label)

    def _check_method(self, client: Client, method: str, *, modern: bool) -> None:
        own = CLIENT_REQUESTS[Era.MODERN if modern else Era.LEGACY]
        if method not in own and method in _KNOWN_REQUESTS:
            raise _unknown_method(method)
        if not modern and not client.initialized and method not in ("initialize", "ping"):
            raise RequestError(jsonrpc.INVALID_REQUEST, "send initialize first")

    def _only_one(self, method: str) -> str:
        """Who gets a request that we do not know: the only integration, or nobody."""
        if len(self._fleet.integrations) != 1 or not _PLAIN_METHOD.fullmatch(method):
            raise _unknown_method(method)
        (name,) = self._fleet.integrations
        return name

    def _defer(
        self, client: Client, sink: Sink, message: Message, id_bytes: bytes, names: list[str]
    ) -> None:
        """Serve the request once what it needs has started, or failed to; bounded in time."""
        key = (client, id_bytes)
        if len(self._deferred) >= MAX_DEFERRED or key in self._deferred:
            self._fail_unavailable(sink, id_bytes, self._fleet.integrations[names[0]])
            count_unserved(self._fleet, message)
            return

        async def later() -> None:
            await self._fleet.wait_settled(names)
            self._deferred.pop(key, None)
            self._request(client, sink, message, id_bytes, None, patient=False)

        self._deferred[key] = asyncio.get_running_loop().create_task(later())

    # ---- routing ---------------------------------------------------------------------------

    def _entry(self, method: str, params: Object, entries: dict[str, Entry]) -> Entry:
        name = jsonrpc.text(params, "name")
        if name is None:
            raise RequestError(jsonrpc.INVALID_PARAMS, f"{method}: params.name is a string")
        entry = entries.get(name)
        if entry is None:
            self._raise_unknown(method, name)
        return cast("Entry", entry)

    def _raise_unknown(self, method: str, name: str) -> None:
        """Say why a name leads nowhere: its integration is away, or there is no such name."""
        for integration in self._fleet.integrations.values():
            prefix = integration.settings.prefix
            if prefix and name.startswith(prefix + SEPARATOR) and not integration.takes_calls:
                self._raise_unavailable(integration)
        unsettled = [n for n, i in self._fleet.integrations.items() if not i.is_settled]
        if unsettled:
            raise StartingError(unsettled)
        kind = "prompt" if method.startswith("prompts") else "tool"
        text = f"Unknown {kind}: {name[:200]}"
        raise RequestError(jsonrpc.INVALID_PARAMS, text, unserved=True)

    def _raise_unavailable(self, integration: Integration) -> None:
        if not integration.is_settled:
            raise StartingError([integration.settings.name])
        integration.totals["refused"] += 1
        text, data = integration.unavailable, integration.availability
        raise RequestError(jsonrpc.UNAVAILABLE, text, data, unserved=True)

    def _fail_unavailable(self, sink: Sink, id_bytes: bytes, integration: Integration) -> None:
        text, data = integration.unavailable, integration.availability
        sink.answer(jsonrpc.failure(id_bytes, jsonrpc.UNAVAILABLE, text, data))

    def _route_of(self, method: str, params: Object, *, modern: bool) -> str:
        """The integration that serves a prompt, a resource or a completion; renames within."""
        if method == "prompts/get":
            entry = self._entry(method, params, self._fleet.catalogue.prompts)
            params["name"] = entry.raw_name
            return entry.integration
        if method == "resources/read":
            return self._resource_owner(jsonrpc.text(params, "uri"), modern=modern)
        ref = jsonrpc.nested(params, "ref")
        if jsonrpc.text(ref, "type") == "ref/prompt":
            entry = self._entry(method, ref, self._fleet.catalogue.prompts)
            params["ref"] = jsonrpc.raw_of({**ref, "name": entry.raw_name})
            return entry.integration
        return self._resource_owner(jsonrpc.text(ref, "uri"), modern=modern)

    def _resource_owner(self, uri: str | None, *, modern: bool = False) -> str:
        if uri is None:
            raise RequestError(jsonrpc.INVALID_PARAMS, "expected the uri of a resource")
        owner = self._fleet.catalogue.resource_owner(uri)
        if isinstance(owner, str):
            return owner
        unsettled = [n for n, i in self._fleet.integrations.items() if not i.is_settled]
        if unsettled and not owner:
            raise StartingError(unsettled)
        if owner:
            text = f"{uri[:200]}: claimed by {', '.join(owner)}, so served by none"
        else:
            text = f"{uri[:200]}: no integration offers this resource"
        code = jsonrpc.INVALID_PARAMS if modern else jsonrpc.RESOURCE_NOT_FOUND
        raise RequestError(code, text, {"uri": uri[:200]}, unserved=True)

    def _route(  # noqa: PLR0917 - the hot path: keywords cost
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
        if upstream is None or not integration.takes_calls:
            self._raise_unavailable(integration)
            return
        integration.totals["calls"] += 1
        if len(client.in_flight) >= MAX_IN_FLIGHT:
            text = f"this client has {MAX_IN_FLIGHT} requests in flight already"
            raise RequestError(jsonrpc.UNAVAILABLE, text, unserved=True)
        if modern is (upstream.era is Era.MODERN):
            call = Call(client, sink, id_bytes, method, name, integration.demand, label)
        elif method not in ROUTED:
            raise _unknown_method(method)
        else:
            of_call = client, sink, id_bytes, method, name, integration.demand, label
            call = BridgedCall(self._bridge, *of_call, to_modern=modern)
            _change_era(call, params, meta)
        if META_LOG_LEVEL in meta and modern:
            call.log_level = level_index(jsonrpc.text(meta, META_LOG_LEVEL))
        if _PROGRESS_TOKEN in meta and jsonrpc.identifier(meta, _PROGRESS_TOKEN) is not None:
            call.progress = meta[_PROGRESS_TOKEN]
        call.params = params
        call.timeout_s = integration.settings.call_timeout_s
        if type(call) is BridgedCall and modern and "requestState" in params:
            self._bridge.resume(call)
            return
        client.in_flight[id_bytes] = call
        upstream.call(call)

    # ---- what the gateway answers itself ---------------------------------------------------

    def _list(
        self,
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
        unsettled = [n for n, i in self._fleet.integrations.items() if not i.is_settled]
        if unsettled and patient:
            raise StartingError(unsettled)
        catalogue = self._fleet.catalogue
        if modern:
            body = catalogue.modern_page(method, 0 if unsettled else TTL_MS)
        else:
            body = catalogue.legacy_page(method)
        sink.answer(jsonrpc.answer(id_bytes, body))

    def _instructions(self) -> str:
        """What the servers say of themselves, each marked as theirs and cut to a bound."""
        texts = []
        for name, integration in sorted(self._fleet.integrations.items()):
            session = integration.session
            if session is not None and session.instructions and integration.upstream is not None:
                said = session.instructions[:MAX_INSTRUCTIONS_CHARS]
                texts.append(f"[{name}, in its own words] {said}")
        return "\n\n".join(texts)

    def _initialize(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        wanted = jsonrpc.text(params, "protocolVersion")
        if wanted is None:
            raise RequestError(jsonrpc.INVALID_PARAMS, "initialize: protocolVersion is a string")
        client.version = wanted if wanted in LEGACY_VERSIONS else LEGACY_VERSION
        client.capabilities = jsonrpc.nested(params, "capabilities")
        client.initialized = True
        client.envelope = envelope.of_legacy_client(GATEWAY, client.capabilities, client.log_level)
        result: dict[str, Any] = {
            "protocolVersion": client.version,
            "capabilities": {**CAPABILITIES, "logging": {}},
            "serverInfo": GATEWAY,
        }
        instructions = self._instructions()
        if instructions:
            result["instructions"] = instructions
        sink.answer(jsonrpc.answer(id_bytes, jsonrpc.encode(result)))

    def _discover(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:  # noqa: ARG002
        result: dict[str, Any] = {
            "resultType": "complete",
            "supportedVersions": list(MODERN_VERSIONS),
            "capabilities": CAPABILITIES,
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": {META_SERVER: GATEWAY},
        }
        instructions = self._instructions()
        if instructions:
            result["instructions"] = instructions
        sink.answer(jsonrpc.answer(id_bytes, jsonrpc.encode(result)))

    def _ping(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:  # noqa: ARG002
        sink.answer(jsonrpc.answer(id_bytes, b"{}"))

    def _set_level(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        level = jsonrpc.text(params, "level")
        if level not in LOG_LEVELS:
            raise RequestError(jsonrpc.INVALID_PARAMS, f"level: one of {', '.join(LOG_LEVELS)}")
        client.log_level = LOG_LEVELS.index(level)
        client.envelope = envelope.of_legacy_client(GATEWAY, client.capabilities, client.log_level)
        levels = [c.log_level for c in self.clients if c.log_level is not None]
        self._fleet.set_log_level(min(levels, default=client.log_level))
        sink.answer(jsonrpc.answer(id_bytes, b"{}"))

    def _subscribe(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        uri = jsonrpc.text(params, "uri") or ""
        name = self._resource_owner(uri)
        if not self._fleet.integrations[name].takes_calls:
            self._raise_unavailable(self._fleet.integrations[name])
        key = (name, uri)
        if key in client.subscribed:
            sink.answer(jsonrpc.answer(id_bytes, b"{}"))
            return
        if len(client.subscribed) >= MAX_SUBSCRIBED_URIS:
            raise RequestError(jsonrpc.UNAVAILABLE, f"at most {MAX_SUBSCRIBED_URIS} subscriptions")
        client.subscribed.add(key)

        def answered(message: Message) -> None:
            if message.result is UNSET:
                undo()
                error = cast("Raw", message.error)
                sink.answer(jsonrpc.forwarded_error(id_bytes, error))
            else:
                sink.answer(jsonrpc.answer(id_bytes, b"{}"))

        def failed(code: int, text: str) -> None:
            undo()
            sink.answer(jsonrpc.failure(id_bytes, code, text))

        def undo() -> None:
            if key in client.subscribed:
                client.subscribed.discard(key)
                self._fleet.unwatch(name, uri)

        self._fleet.watch(name, uri, Inquiry(answered, failed, timeout_s=30.0))

    def _unsubscribe(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        uri = jsonrpc.text(params, "uri")
        for key in [key for key in client.subscribed if key[1] == uri]:
            client.subscribed.discard(key)
            self._fleet.unwatch(*key)
        sink.answer(jsonrpc.answer(id_bytes, b"{}"))

    def _listen(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        wanted = jsonrpc.nested(params, "notifications")
        if len(client.listens) >= MAX_LISTENS:
            raise RequestError(jsonrpc.UNAVAILABLE, f"at most {MAX_LISTENS} subscriptions")
        methods = {m for m, key in LISTEN_FILTERS.items() if bytes(wanted.get(key, b"")) == b"true"}
        uris = _strings(wanted.get("resourceSubscriptions"))
        listen = Listen(client, sink, id_bytes, frozenset(methods), frozenset(uris))
        client.listens[id_bytes] = listen
        listen.acknowledge()
        for uri in listen.uris:
            owner = self._fleet.catalogue.resource_owner(uri)
            if isinstance(owner, str) and (owner, uri) not in client.subscribed:
                self._fleet.watch(owner, uri)
                client.subscribed.add((owner, uri))

    def _unwatch_all(self, listen: Listen) -> None:
        others = listen.client.listens.values()
        kept = {uri for other in others if other is not listen for uri in other.uris}
        gone = listen.uris - kept
        for key in [key for key in listen.client.subscribed if key[1] in gone]:
            listen.client.subscribed.discard(key)
            self._fleet.unwatch(*key)

    # ---- notifications and answers from clients --------------------------------------------

    def _client_told(self, client: Client, message: Message) -> None:
        if message.method != "notifications/cancelled":
            return
        try:
            params = jsonrpc.members(message.params)
        except DecodeError:
            return
        request_id = jsonrpc.identifier(params, "requestId")
        if request_id is not None:
            reason = (jsonrpc.text(params, "reason") or "cancelled by the client")[:200]
            self.cancel(client, id_json(request_id), reason)

    def cancel(self, client: Client, id_bytes: bytes, reason: str) -> None:
        """The client wants no answer to its request any more."""
        call = client.in_flight.get(id_bytes)
        if call is not None:
            call.cancel(reason)
        listen = client.listens.pop(id_bytes, None)
        if listen is not None:
            self._unwatch_all(listen)
        task = self._deferred.pop((client, id_bytes), None)
        if task is not None:
            task.cancel()


def _unknown_method(method: str) -> RequestError:
    return RequestError(jsonrpc.METHOD_NOT_FOUND, f"Method not found: {method[:80]}")


def _change_era(call: BridgedCall, params: Object, meta: Object) -> None:
    """Make a request's `_meta` what the server's era expects."""
    if call.to_modern:
        call.capabilities = jsonrpc.nested(meta, META_CAPABILITIES)
        sent = envelope.for_legacy_server(meta)
    else:
        call.capabilities = call.client.capabilities
        sent = {**meta, **call.client.envelope}
    if sent:
        params["_meta"] = jsonrpc.raw_of(sent)
    else:
        params.pop("_meta", None)


def _strings(raw: Raw | None) -> list[str]:
    if raw is None:
        return []
    members = jsonrpc.strings(raw)
    return members[:MAX_SUBSCRIBED_URIS]
