"""From servers to clients: changes, log messages and questions, each to whom it concerns.

Owns the rule who hears what; the router owns the way there. Runs in S1's event loop.
"""

from typing import Final, cast

from msgspec import UNSET, Raw

from vsm.gateway.call import id_json
from vsm.gateway.client import MAX_ASKED, Client, Question
from vsm.gateway.upstream import Upstream
from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import Message, Object
from vsm.protocol.tables import ASKED_CAPABILITY, LOG_LEVELS

QUESTION_TIMEOUT_S: Final = 600.0


class Relay:
    """What servers say, passed on.

    Args:
        clients: everybody who is connected, kept by the router.
    """

    def __init__(self, clients: set[Client]) -> None:
        self.clients = clients
        self.dropped_messages = 0
        self._questions = 0

    def client_answered(self, client: Client, message: Message) -> None:
        """A client answered a server's question: pass it back."""
        question = client.asked.pop(str(message.id), None)
        if question is None:
            return
        if message.result is not UNSET:
            frame = jsonrpc.answer(question.id_bytes, message.result)
        else:
            frame = jsonrpc.forwarded_error(question.id_bytes, cast("Raw", message.error))
        question.upstream.tell(frame)
        call = question.call
        if call.timeout_s is not None and call.client.in_flight.get(call.id_bytes) is call:
            question.upstream.postpone(call, call.timeout_s)

    def list_changed(self, method: str) -> None:
        """A merged list changed: tell whoever wants to know."""
        frame = jsonrpc.notification(method)
        for client in list(self.clients):
            if client.initialized:
                client.notify(frame)
            for listen in list(client.listens.values()):
                if listen.hears(method, None):
                    listen.notify(method, {})

    def asked(self, upstream: Upstream, message: Message) -> None:
        """A server asks: pass it to the one client that has a call in flight there."""
        method = cast("str", message.method)
        id_bytes = id_json(cast("int | str", message.id))
        calls = upstream.calls()
        if len({call.client for call in calls}) != 1:
            who = "several clients have" if calls else "no client has"
            self.refuse(upstream, id_bytes, f"{who} a call in flight, so none can be asked")
            return
        call = calls[-1]
        client = call.client
        if call.to_modern or not client.initialized:
            self.refuse(upstream, id_bytes, "the client's revision of MCP has no such request")
        elif ASKED_CAPABILITY[method] not in client.capabilities:
            self.refuse(upstream, id_bytes, f"the client does not offer {method}")
        elif len(client.asked) >= MAX_ASKED:
            self.refuse(upstream, id_bytes, "the client has too many questions open")
        else:
            self._questions += 1
            asked_id = f"vsm-{self._questions}"
            client.asked[asked_id] = Question(upstream, id_bytes, call)
            upstream.postpone(call, QUESTION_TIMEOUT_S)
            params = b"{}" if message.params is UNSET else message.params
            call.sink.ask(jsonrpc.request(asked_id, method, params))

    @staticmethod
    def refuse(upstream: Upstream, id_bytes: bytes, text: str) -> None:
        """Answer a server's question with an error."""
        upstream.tell(jsonrpc.failure(id_bytes, jsonrpc.METHOD_NOT_FOUND, text))

    def told(self, upstream: Upstream, method: str, params: Object) -> None:
        """A server tells something: only those whom it concerns hear it."""
        if method == "notifications/resources/updated":
            self._resource_updated(upstream, params)
        elif method == "notifications/message":
            self._logged(upstream, params)
        elif method == "notifications/cancelled":
            self._question_withdrawn(upstream, params)
        elif method == "notifications/elicitation/complete":
            calls = upstream.calls()
            if len({call.client for call in calls}) == 1:
                calls[-1].sink.notify(jsonrpc.notification(method, jsonrpc.encode(params)))

    def _resource_updated(self, upstream: Upstream, params: Object) -> None:
        uri = jsonrpc.text(params, "uri")
        if uri is None:
            return
        method = "notifications/resources/updated"
        params.pop("_meta", None)
        frame = jsonrpc.notification(method, jsonrpc.encode(params))
        for client in list(self.clients):
            if (upstream.integration, uri) not in client.subscribed:
                continue
            if client.initialized:
                client.notify(frame)
            for listen in list(client.listens.values()):
                if listen.hears(method, uri):
                    listen.notify(method, params)

    def _logged(self, upstream: Upstream, params: Object) -> None:
        """A log message goes to the one client that it can belong to; others' is not theirs."""
        level = level_index(jsonrpc.text(params, "level"))
        if level is None:
            return
        calls = upstream.calls()
        clients = {call.client for call in calls}
        frame = jsonrpc.notification("notifications/message", jsonrpc.encode(params))
        if len(clients) == 1:
            call = calls[-1]
            # A legacy client hears all until it says otherwise, a modern request only if it asks.
            least = call.client.log_level or 0 if call.client.initialized else call.log_level
            if least is not None and level >= least:
                call.sink.notify(frame)
            return
        alone = [c for c in self.clients if c.log_level is not None]
        if not clients and len(alone) == 1 and len(self.clients) == 1:
            alone[0].notify(frame)
        else:
            self.dropped_messages += 1

    def _question_withdrawn(self, upstream: Upstream, params: Object) -> None:
        request_id = jsonrpc.identifier(params, "requestId")
        if request_id is None:
            return
        id_bytes = id_json(request_id)
        for client in self.clients:
            for asked_id, question in list(client.asked.items()):
                if question.upstream is upstream and question.id_bytes == id_bytes:
                    del client.asked[asked_id]
                    body = jsonrpc.encode({"requestId": asked_id})
                    frame = jsonrpc.notification("notifications/cancelled", body)
                    question.call.sink.notify(frame)


def level_index(name: str | None) -> int | None:
    """Where a log level stands among LOG_LEVELS; None where it is none."""
    return LOG_LEVELS.index(name) if name in LOG_LEVELS else None
