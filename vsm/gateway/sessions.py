"""What the gateway answers itself: handshakes, discovery, log levels and subscriptions.

Owns nothing; changes the state of the client that asks and what the fleet watches for it. Runs
in S1's event loop.
"""

from collections.abc import Callable
from typing import Any, Final, cast

from msgspec import UNSET, Raw

from vsm.core.rejoin import OURS
from vsm.core.trust import INSTRUCTIONS
from vsm.gateway.call import Inquiry, Sink
from vsm.gateway.client import MAX_LISTENS, MAX_SUBSCRIBED_URIS, Client, Listen
from vsm.gateway.finder import Finder, RequestError
from vsm.gateway.fleet import Fleet
from vsm.gateway.integration import GATEWAY
from vsm.gateway.views import View
from vsm.protocol import envelope, jsonrpc
from vsm.protocol.jsonrpc import Message, Object
from vsm.protocol.tables import (
    LEGACY_VERSION,
    LEGACY_VERSIONS,
    LISTEN_FILTERS,
    LOG_LEVELS,
    META_SERVER,
    MODERN_VERSIONS,
    TASK_EXTENSION,
    Era,
)

_REJOINED: Final = f'"{OURS}'.encode()  # what the ids of `vsm connect` begin with
MAX_INSTRUCTIONS_CHARS: Final = 2048

CAPABILITIES: Final = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "completions": {},
}


class Sessions:
    """What clients ask of the gateway rather than of a server.

    Args:
        clients: everybody who is connected, kept by the router.
        finder: finds the integration of a resource.
    """

    def __init__(self, fleet: Fleet, clients: set[Client], finder: Finder) -> None:
        self._fleet = fleet
        self._clients = clients
        self._finder = finder
        self.answers: dict[Era, dict[str, Callable[[Client, Sink, bytes, Object], None]]] = {
            Era.LEGACY: {
                "initialize": self._initialize,
                "ping": self._ping,
                "logging/setLevel": self._set_level,
                "resources/subscribe": self._subscribe,
                "resources/unsubscribe": self._unsubscribe,
            },
            Era.MODERN: {
                "server/discover": self._discover,
                "subscriptions/listen": self._listen,
            },
        }

    def _instructions(self, view: View | None) -> str:
        """What the servers say of themselves, each marked as theirs and cut to a bound."""
        texts = []
        for name, integration in sorted(self._fleet.integrations.items()):
            session = integration.session
            if session is None or not integration.takes_calls:
                continue
            if view is not None and not view.serves(name):
                continue
            if session.instructions and integration.vetting.permits(INSTRUCTIONS):
                said = session.instructions[:MAX_INSTRUCTIONS_CHARS]
                texts.append(f"[{name}, in its own words] {said}")
        return "\n\n".join(texts)

    def _tasks_of(self, client: Client, era: Era) -> dict[str, Any]:
        """What to say of tasks, where a server of the client's era is known to make any."""
        for name, integration in self._fleet.integrations.items():
            session = integration.session
            if session is None or (client.view is not None and not client.view.serves(name)):
                continue
            if era is Era.LEGACY and not session.is_modern and session.offers("tasks"):
                return {"tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}}
            if era is Era.MODERN and session.makes_tasks:
                return {"extensions": {TASK_EXTENSION: {}}}
        return {}

    def _initialize(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        wanted = jsonrpc.text(params, "protocolVersion")
        if wanted is None:
            raise RequestError(jsonrpc.INVALID_PARAMS, "initialize: protocolVersion is a string")
        client.version = wanted if wanted in LEGACY_VERSIONS else LEGACY_VERSION
        client.introduces_itself(jsonrpc.nested(params, "clientInfo"))
        client.capabilities = jsonrpc.nested(params, "capabilities")
        client.initialized = True
        client.rejoined = id_bytes.startswith(_REJOINED)
        client.envelope = envelope.of_legacy_client(GATEWAY, client.capabilities, client.log_level)
        result: dict[str, Any] = {
            "protocolVersion": client.version,
            "capabilities": {**CAPABILITIES, "logging": {}, **self._tasks_of(client, Era.LEGACY)},
            "serverInfo": GATEWAY,
        }
        instructions = self._instructions(client.view)
        if instructions:
            result["instructions"] = instructions
        sink.answer(jsonrpc.answer(id_bytes, jsonrpc.encode(result)))

    def _discover(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:  # noqa: ARG002
        result: dict[str, Any] = {
            "resultType": "complete",
            "supportedVersions": list(MODERN_VERSIONS),
            "capabilities": {**CAPABILITIES, **self._tasks_of(client, Era.MODERN)},
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": {META_SERVER: GATEWAY},
        }
        instructions = self._instructions(client.view)
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
        levels = [c.log_level for c in self._clients if c.log_level is not None]
        self._fleet.set_log_level(min(levels, default=client.log_level))
        sink.answer(jsonrpc.answer(id_bytes, b"{}"))

    def _subscribe(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        uri = jsonrpc.text(params, "uri") or ""
        name = self._finder.resource_owner(uri, client)
        integration = self._fleet.integrations[name]
        if not integration.takes_calls:
            self._finder.raise_unavailable(integration)
        if integration.instances is not None:
            self._finder.instance_of(integration, client, quietly=True)
        key = (name, uri)
        if key in client.subscribed:
            sink.answer(jsonrpc.answer(id_bytes, b"{}"))
            return
        if len(client.subscribed) >= MAX_SUBSCRIBED_URIS:
            raise RequestError(jsonrpc.UNAVAILABLE, f"at most {MAX_SUBSCRIBED_URIS} subscriptions")
        client.subscribed.add(key)
        client.owed += 1

        def answered(message: Message) -> None:
            client.owed -= 1
            if message.result is UNSET:
                undo()
                error = cast("Raw", message.error)
                sink.answer(jsonrpc.forwarded_error(id_bytes, error))
            else:
                sink.answer(jsonrpc.answer(id_bytes, b"{}"))

        def failed(code: int, text: str) -> None:
            client.owed -= 1
            undo()
            sink.answer(jsonrpc.failure(id_bytes, code, text))

        def undo() -> None:
            if key in client.subscribed:
                client.subscribed.discard(key)
                self._fleet.unwatch(name, uri, client)

        self._fleet.watch(name, uri, client, Inquiry(answered, failed, timeout_s=30.0))

    def _unsubscribe(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        uri = jsonrpc.text(params, "uri")
        for key in [key for key in client.subscribed if key[1] == uri]:
            client.subscribed.discard(key)
            self._fleet.unwatch(*key, client)
        sink.answer(jsonrpc.answer(id_bytes, b"{}"))

    def _listen(self, client: Client, sink: Sink, id_bytes: bytes, params: Object) -> None:
        wanted = jsonrpc.nested(params, "notifications")
        if len(client.listens) >= MAX_LISTENS:
            raise RequestError(jsonrpc.UNAVAILABLE, f"at most {MAX_LISTENS} subscriptions")
        methods = {m for m, key in LISTEN_FILTERS.items() if bytes(wanted.get(key, b"")) == b"true"}
        uris = _strings(wanted.get("resourceSubscriptions"))
        found = {uri: self._finder.find_resource(uri, client) for uri in uris}
        owners = {uri: owner for uri, owner in found.items() if isinstance(owner, str)}
        listen = Listen(client, sink, id_bytes, frozenset(methods), frozenset(owners))
        client.listens[id_bytes] = listen
        listen.acknowledge()
        for uri, owner in owners.items():
            if (owner, uri) not in client.subscribed:
                self._fleet.watch(owner, uri, client)
                client.subscribed.add((owner, uri))

    def unwatch_all(self, listen: Listen) -> None:
        """A subscription ended: watch no resource for it that nobody else of its client wants."""
        others = listen.client.listens.values()
        kept = {uri for other in others if other is not listen for uri in other.uris}
        gone = listen.uris - kept
        for key in [key for key in listen.client.subscribed if key[1] in gone]:
            listen.client.subscribed.discard(key)
            self._fleet.unwatch(*key, listen.client)


def _strings(raw: Raw | None) -> list[str]:
    if raw is None:
        return []
    members = jsonrpc.strings(raw)
    return members[:MAX_SUBSCRIBED_URIS]
