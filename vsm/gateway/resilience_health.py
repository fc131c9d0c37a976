"""Whether an idle server is still alive: it is asked at intervals, and replaced if it is not.

Only a server that nobody has asked anything since the last look is asked, so one that works on
a long call is left alone. Runs in S1's event loop.
"""

import asyncio
import weakref
from typing import Any

from vsm.gateway.call import Inquiry
from vsm.gateway.upstream import Upstream, UpstreamOwner
from vsm.protocol import era, jsonrpc
from vsm.protocol.jsonrpc import Message


def watch_health(upstream: Upstream, session: era.PeerSession, owner: UpstreamOwner) -> None:
    """Ask a server that serves from now on, until it is lost; `owner` hears if it does not answer.

    Any answer will do, an error too.
    """
    Health(upstream, session, owner).look_later()


def question_for(session: era.PeerSession) -> tuple[str, dict[str, Any]]:
    """What every server of its era answers: method and params."""
    if session.is_modern:
        from vsm.gateway.integration import GATEWAY

        return "server/discover", {"_meta": era.envelope(GATEWAY)}
    return "ping", {}


class Health:
    """What was seen of one server, which no timer of this keeps once it is lost."""

    def __init__(self, upstream: Upstream, session: era.PeerSession, owner: UpstreamOwner) -> None:
        self._upstream = weakref.ref(upstream)
        self._session = session
        self._owner = owner
        self._seen = -1
        self._loop = asyncio.get_running_loop()

    def look_later(self) -> None:
        """Look at the end of an interval; a server that is lost by then needs no look."""
        upstream = self._upstream()
        if upstream is None or upstream.lost:
            return
        interval_s = upstream.guard.settings.health_interval_s
        if interval_s:
            self._loop.call_later(interval_s, self._look)

    def _look(self) -> None:
        upstream = self._upstream()
        if upstream is None or upstream.lost:
            return
        idle, self._seen = upstream.asked == self._seen, upstream.asked
        if not idle or upstream.in_flight:
            self.look_later()
            return
        timeout_s = upstream.guard.settings.health_timeout_s
        inquiry = Inquiry(self._answered, self._failed, timeout_s=timeout_s)
        upstream.ask(*question_for(self._session), inquiry)

    def _answered(self, _: Message) -> None:
        upstream = self._upstream()
        if upstream is not None:
            self._seen = upstream.asked
            self.look_later()

    def _failed(self, code: int, text: str) -> None:
        upstream = self._upstream()
        if upstream is None or upstream.lost:
            return
        if code in {jsonrpc.UNAVAILABLE, jsonrpc.INTERNAL_ERROR} and upstream.remote:
            self._owner.upstream_lost(upstream, f"a health check failed: {text}")
            return
        if code != jsonrpc.TIMED_OUT:
            return
        if upstream.in_flight:  # busy with what was asked meanwhile: that has its own time-out
            self.look_later()
            return
        timeout_s = upstream.guard.settings.health_timeout_s
        reason = f"it was idle and did not answer a health check within {timeout_s:g} s"
        self._owner.upstream_lost(upstream, reason)
