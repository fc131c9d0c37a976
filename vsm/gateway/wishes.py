"""What clients wish of one server: to hear of resources, of changed lists, and of its log.

Owns no state but what the server's own object holds: which resources are watched, how often.
Whose server it is was decided before. Runs in S1's event loop.
"""

from typing import Any

from msgspec import Raw

from vsm.gateway.call import Inquiry
from vsm.gateway.client import Client
from vsm.gateway.integration import Server, listen_params
from vsm.gateway.upstream import Upstream
from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import Message
from vsm.protocol.tables import LOG_LEVELS, ROOTS_CHANGED


def watch(server: Server, uri: str, answer: Inquiry | None = None, unavailable: str = "") -> None:
    """Watch a resource once more.

    Args:
        server: who is to tell of it.
        uri: of the resource.
        answer: hears how the server took it.
        unavailable: what `answer` hears where there is no server.
    """
    count = server.watched.get(uri, 0)
    server.watched[uri] = count + 1
    if count == 0:
        _changed(server, "resources/subscribe", uri, answer, unavailable)
    elif answer is not None:
        answer.answered(Message("2.0", result=Raw(b"{}")))


def unwatch(server: Server, uri: str) -> None:
    """Watch a resource once less."""
    if count_down(server.watched, uri):
        _changed(server, "resources/unsubscribe", uri, None, "")


def count_down(watched: dict[str, int], uri: str) -> bool:
    """One less; whether that was the last."""
    count = watched.get(uri, 0) - 1
    if count > 0:
        watched[uri] = count
        return False
    return watched.pop(uri, None) is not None


def restore(server: Server, log_level: int | None) -> None:
    """Ask a server that has just become ready for all that is wished of it."""
    session = server.session
    if session is None:
        return
    if session.is_modern:
        _listen(server)
        return
    for uri in server.watched:
        _subscribe(server, "resources/subscribe", uri, None, "")
    if log_level is not None:
        tell_log_level(server, log_level)


def tell_log_level(server: Server, level: int) -> None:
    """A legacy server shall tell what is at or above the index `level` in LOG_LEVELS."""
    upstream, session = server.upstream, server.session
    if upstream is None or session is None or session.is_modern or not session.offers("logging"):
        return
    inquiry = Inquiry(_ignore_answer, _ignore_failure, timeout_s=30.0)
    upstream.ask("logging/setLevel", {"level": LOG_LEVELS[level]}, inquiry)


def tell_roots_changed(server: Server, client: Client) -> None:
    """The legacy server of one session may ask it for its roots now."""
    upstream, session = server.upstream, server.session
    if upstream is None or session is None or session.is_modern:
        return
    if client.initialized and "roots" in client.capabilities:
        upstream.tell(jsonrpc.notification(ROOTS_CHANGED))


def _changed(
    server: Server, method: str, uri: str, answer: Inquiry | None, unavailable: str
) -> None:
    if server.session is not None and server.session.is_modern:
        _listen(server)
        if answer is not None:
            answer.answered(Message("2.0", result=Raw(b"{}")))
    else:
        _subscribe(server, method, uri, answer, unavailable)


def _subscribe(
    server: Server, method: str, uri: str, answer: Inquiry | None, unavailable: str
) -> None:
    if server.upstream is None:
        if answer is not None:
            answer.failed(jsonrpc.UNAVAILABLE, unavailable)
        return
    inquiry = answer or Inquiry(_ignore_answer, _ignore_failure, timeout_s=30.0)
    server.upstream.ask(method, {"uri": uri}, inquiry)


def _listen(server: Server) -> None:
    """Open, or open anew, the gateway's own subscription to a modern server.

    The new one comes before the end of the old one, so that nothing is missed in between.
    """
    upstream, session = server.upstream, server.session
    if upstream is None or session is None:
        return
    before, server.listen_id = server.listen_id, None
    params = listen_params(session, sorted(server.watched))
    if params is not None:
        _open_listen(server, upstream, params)
    if before is not None:
        upstream.forget(before)


def _open_listen(server: Server, upstream: Upstream, params: dict[str, Any]) -> None:
    def ended(*_: object) -> None:
        if server.listen_id == listen_id:
            server.listen_id = None

    inquiry = Inquiry(ended, ended, timeout_s=None)
    listen_id = upstream.ask("subscriptions/listen", params, inquiry)
    server.listen_id = listen_id


def _ignore_answer(_: Message) -> None:
    """The answer changes nothing."""


def _ignore_failure(_code: int, _text: str) -> None:
    """A server that did not take a wish is asked again when it is started again."""
