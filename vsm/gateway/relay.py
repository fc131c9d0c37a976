"""From servers to clients: changes, log messages and questions, each to whom it concerns.

Owns the rule who hears what; the router owns the way there. Runs in S1's event loop.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Final, cast

from msgspec import UNSET, Raw

from vsm.gateway.bridge import QUESTION_TIMEOUT_S, Bridge, BridgedCall, check_offered
from vsm.gateway.call import Call, id_json
from vsm.gateway.client import MAX_ASKED, Client, Question, SessionQuestion
from vsm.gateway.elicitations import COMPLETE
from vsm.gateway.tasks import Tasks
from vsm.gateway.upstream import Upstream
from vsm.gateway.views import View
from vsm.protocol import jsonrpc
from vsm.protocol.catalogue import Catalogue
from vsm.protocol.jsonrpc import DecodeError, Message, Object
from vsm.protocol.tables import CHANGE_OF_LIST, LISTS, LOG_LEVELS, TASK_NOTIFICATIONS

ROOTS: Final = "roots/list"


class Relay:
    """What servers say, passed on.

    Args:
        clients: everybody who is connected, kept by the router.
        bridge: asks across the eras.
    """

    def __init__(self, clients: set[Client], bridge: Bridge) -> None:
        self.clients = clients
        self._bridge = bridge
        self.tasks = Tasks()
        self.dropped_messages = 0

    def client_answered(self, client: Client, message: Message) -> None:
        """A client answered a server's question: pass it back."""
        question = client.asked.pop(str(message.id), None)
        if question is None:
            return
        question.answered(message)

    def watched_of(self, name: str) -> dict[str, int]:
        """Which resources of an integration clients wish to hear of, and how many of each."""
        return Counter(
            uri for one in self.clients for owner, uri in one.subscribed if owner == name
        )

    def lists_changed(
        self, before: Catalogue, after: Catalogue, announced: Iterable[str], by: str | None
    ) -> None:
        """Tell whoever wants to know, and sees what changed.

        Args:
            before: the merged lists.
            after: what they are now.
            announced: lists of which their server `by` says that they changed.
            by: an integration.
        """
        told: dict[View | None, list[str]] = {None: _changes(before, after, announced)}
        for client in list(self.clients):
            view = client.view
            if view is not None and view not in told:
                own = announced if by is None or view.serves(by) else ()
                told[view] = _changes(view.of(before), view.of(after), own)
            for method in told[view]:
                self._tell_changed(client, method)

    @staticmethod
    def _tell_changed(client: Client, method: str) -> None:
        if client.initialized:
            client.notify(jsonrpc.notification(method))
        for listen in list(client.listens.values()):
            if listen.hears(method, None):
                listen.notify(method, {})

    def asked(self, upstream: Upstream, message: Message) -> None:
        """A server asks: pass it to the one client that has a call in flight there.

        Outside any call only the server that a session has for itself may ask it, and only for
        its roots: what one client answers is known to a server that others share.
        """
        id_bytes = id_json(cast("int | str", message.id))
        calls, parked = upstream.calls(), self._bridge.parked_of(upstream)
        clients = {call.client for call in calls} | {one.call.client for one in parked}
        alone = not clients and upstream.private and message.method == ROOTS
        if len(clients) != 1 and not alone:
            who = "several clients have" if clients else "no client has"
            self.refuse(upstream, id_bytes, f"{who} a call in flight, so none can be asked")
            return
        try:
            if alone:
                self._ask_session(upstream, id_bytes, message)
                return
            if not calls:
                self._bridge.ask_parked(parked[-1], message)
            elif isinstance(calls[-1], BridgedCall):
                self._bridge.ask_modern_client(calls[-1], upstream, message)
            else:
                self._ask_legacy(upstream, calls[-1], id_bytes, message)
        except DecodeError as error:
            self.refuse(upstream, id_bytes, error.message, error.code)

    def _ask_legacy(
        self, upstream: Upstream, call: Call, id_bytes: bytes, message: Message
    ) -> None:
        client, method = call.client, cast("str", message.method)
        params = jsonrpc.members(message.params)
        check_offered(client.capabilities, method, params)
        _check_room(client)
        asked_id = client.number_question()
        progress, body = _as_asked(message, params, asked_id)
        client.asked[asked_id] = Question(upstream, id_bytes, call, progress)
        upstream.elicitations.asked(client, params)
        upstream.postpone(call, QUESTION_TIMEOUT_S)
        call.sink.ask(jsonrpc.request(asked_id, method, body))

    def _ask_session(self, upstream: Upstream, id_bytes: bytes, message: Message) -> None:
        """Ask the session whose own the server is, where it is there to hear it."""
        (client,) = self._audience_of(upstream) or (None,)
        if client is None or not client.initialized:
            raise DecodeError(jsonrpc.METHOD_NOT_FOUND, "no session has this server yet")
        params = jsonrpc.members(message.params)
        check_offered(client.capabilities, ROOTS, params)
        asked_id = client.number_question()
        progress, body = _as_asked(message, params, asked_id)
        _check_room(client)
        if not client.ask_session(jsonrpc.request(asked_id, ROOTS, body)):
            raise DecodeError(jsonrpc.UNAVAILABLE, "the client keeps no stream open to be asked on")
        question = client.asked[asked_id] = SessionQuestion(upstream, id_bytes, progress)

        def unanswered() -> None:
            if client.asked.pop(asked_id, None) is question:
                question.dropped("the client did not answer")

        loop = asyncio.get_running_loop()
        question.timer = loop.call_later(QUESTION_TIMEOUT_S, unanswered)

    @staticmethod
    def client_progressed(client: Client, params: Object) -> None:
        """A client says how far it is with what a server asked: the server's token goes back."""
        question = client.asked.get(jsonrpc.text(params, "progressToken") or "")
        if isinstance(question, Question | SessionQuestion) and question.progress is not None:
            params["progressToken"] = question.progress
            body = jsonrpc.encode(params)
            question.upstream.mention(jsonrpc.notification("notifications/progress", body))

    @staticmethod
    def refuse(
        upstream: Upstream, id_bytes: bytes, text: str, code: int = jsonrpc.METHOD_NOT_FOUND
    ) -> None:
        """Answer a server's question with an error."""
        upstream.tell(jsonrpc.failure(id_bytes, code, text))

    def told(self, upstream: Upstream, method: str, params: Object) -> None:
        """A server tells something: only those whom it concerns hear it."""
        if method == "notifications/resources/updated":
            self._resource_updated(upstream, params)
        elif method == "notifications/message":
            self._logged(upstream, params)
        elif method == "notifications/cancelled":
            self._question_withdrawn(upstream, params)
        elif method in TASK_NOTIFICATIONS:
            owner = self.tasks.told(upstream, params)
            if owner is not None and owner in self.clients:
                owner.notify(jsonrpc.notification(method, jsonrpc.encode(params)))
        elif method != "notifications/subscriptions/acknowledged":
            self._told_one(upstream, method, params)

    def _told_one(self, upstream: Upstream, method: str, params: Object) -> None:
        """The end of an elicitation by URL, or one that we do not know: it concerns one client."""
        calls = upstream.calls()
        frame = jsonrpc.notification(method, jsonrpc.encode(params))
        client = upstream.elicitations.done(params) if method == COMPLETE else None
        if client is not None:
            calls = [call for call in calls if call.client is client]
            if not calls and client in self.clients:
                client.notify(frame)
        alone = len({call.client for call in calls}) == 1
        if alone and not isinstance(calls[-1], BridgedCall):
            calls[-1].sink.notify(frame)

    def _resource_updated(self, upstream: Upstream, params: Object) -> None:
        uri = jsonrpc.text(params, "uri")
        if uri is None:
            return
        method = "notifications/resources/updated"
        params.pop("_meta", None)
        frame = jsonrpc.notification(method, jsonrpc.encode(params))
        for client in self._audience_of(upstream):
            if (upstream.integration, uri) not in client.subscribed:
                continue
            if client.initialized:
                client.notify(frame)
            for listen in list(client.listens.values()):
                if listen.hears(method, uri):
                    listen.notify(method, params)

    def _audience_of(self, upstream: Upstream) -> list[Client]:
        """Who may hear of a server at all: who sees it; of a session's own, that session alone."""
        if not upstream.private:
            name = upstream.integration
            return [c for c in self.clients if c.view is None or c.view.serves(name)]
        own = upstream.client
        return [own] if own is not None and own in self.clients else []

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
        audience = self._audience_of(upstream)
        if clients or len(audience) != 1:
            self.dropped_messages += 1
        elif audience[0].initialized and level >= (audience[0].log_level or 0):
            audience[0].notify(frame)

    def _question_withdrawn(self, upstream: Upstream, params: Object) -> None:
        request_id = jsonrpc.identifier(params, "requestId")
        if request_id is None:
            return
        id_bytes = id_json(request_id)
        for parked in self._bridge.parked_of(upstream):
            parked.withdrawn(id_bytes)
        for client in self.clients:
            for asked_id, question in list(client.asked.items()):
                if not isinstance(question, Question | SessionQuestion):
                    continue
                if question.upstream is upstream and question.id_bytes == id_bytes:
                    del client.asked[asked_id]
                    body = jsonrpc.encode({"requestId": asked_id})
                    frame = jsonrpc.notification("notifications/cancelled", body)
                    if isinstance(question, Question):
                        question.call.sink.notify(frame)
                    else:
                        question.end()
                        client.notify(frame)


def _as_asked(message: Message, params: Object, asked_id: str) -> tuple[Raw | None, bytes | Raw]:
    """A server's progress token, if it has one, and its question with one that we know again."""
    meta = jsonrpc.nested(params, "_meta")
    if jsonrpc.identifier(meta, "progressToken") is None:
        return None, b"{}" if message.params is UNSET else message.params
    token = meta["progressToken"]
    meta["progressToken"] = jsonrpc.raw_of(asked_id)
    return token, jsonrpc.encode({**params, "_meta": jsonrpc.raw_of(meta)})


def _changes(before: Catalogue, after: Catalogue, announced: Iterable[str]) -> list[str]:
    """What to tell of lists that differ, or of which it was announced."""
    differing = {method for method in LISTS if before.pages[method] != after.pages[method]}
    return sorted({CHANGE_OF_LIST[method] for method in differing.union(announced)})


def _check_room(client: Client) -> None:
    """Judge whether a client can be asked one thing more; nobody waits for what a lost one asked.

    Raises:
        DecodeError: it has too many questions open, or sends nothing any more.
    """
    if not client.can_answer:
        raise DecodeError(jsonrpc.UNAVAILABLE, "the client sends no more")
    client.make_room()
    if len(client.asked) >= MAX_ASKED:
        raise DecodeError(jsonrpc.UNAVAILABLE, "the client has too many questions open")


def level_index(name: str | None) -> int | None:
    """Where a log level stands among LOG_LEVELS; None where it is none."""
    return LOG_LEVELS.index(name) if name in LOG_LEVELS else None
