"""Lists that servers changed are fetched again; what does not come stays as it was told before.

Owns which lists are to be fetched, when, and how often again after a failure; what they mean for
the catalogue is the fleet's. Runs in S1's event loop.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final, Protocol, cast

from vsm.gateway.integration import Fetch, Integration, Server, Startup
from vsm.gateway.upstream import Upstream
from vsm.protocol.jsonrpc import Object

DELAY_S: Final = 0.1
PAUSE_S: Final = 1.0  # after a list that did not come; doubles
ATTEMPTS: Final = 6


class Lists(Protocol):
    """Whose lists they are: the fleet."""

    def server_of(self, upstream: Upstream) -> tuple[Integration, Server] | tuple[None, None]:
        """Whose server it is, as long as it is in use."""

    def relisted(
        self, integration: Integration, server: Server, lists: dict[str, list[Object]]
    ) -> None:
        """A server gave these anew, perhaps none."""


class Refetches:
    """What is to be fetched again, of all servers."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self._stale: dict[str, set[str]] = {}
        self._loop = asyncio.get_running_loop()

    def soon(self, upstream: Upstream, methods: Iterable[str]) -> None:
        """Fetch lists again; what comes within the delay, or while fetching, is one fetch."""
        stale = self._stale.get(upstream.worker)
        if stale is not None:
            stale.update(methods)
            return
        self._stale[upstream.worker] = set(methods)
        self._loop.call_later(DELAY_S, self._fetch, upstream)

    def _fetch(self, upstream: Upstream) -> None:
        methods = sorted(self._stale.pop(upstream.worker, ()))
        integration, server = self._lists.server_of(upstream)
        if integration is None or server is None:
            return
        if server.upstream is not upstream:  # it does not serve yet
            cast("Startup", server.starting).stale.update(methods)
            return
        if server.session is None or not methods:
            return
        self._stale[upstream.worker] = set()

        def fetched(lists: dict[str, list[Object]]) -> None:
            again = self._stale.pop(upstream.worker, set())
            if server.upstream is upstream:
                self.came(server, upstream, fetch.failures, lists)
                self._lists.relisted(integration, server, lists)
            if again:
                self.soon(upstream, again)

        fetch = Fetch(upstream, server.session, methods, fetched)
        fetch.begin()

    def came(
        self,
        server: Server,
        upstream: Upstream,
        failures: Mapping[str, str],
        lists: Iterable[str] = (),
    ) -> None:
        """Of what did not come, what was told before stays; say so, and ask again some times."""
        for method in lists:
            server.behind.pop(method, None)
        if not failures or upstream.lost:
            return
        for method, text in failures.items():
            server.behind[method] = server.behind.get(method, 0) + 1
            upstream.notice(
                f"no {method}",
                f"{upstream.title}: {text}. What it listed before, if anything, still counts.",
            )
        attempt = max(server.behind[method] for method in failures)
        if attempt < ATTEMPTS:
            delay_s = PAUSE_S * 2 ** (attempt - 1)
            self._loop.call_later(delay_s, self.soon, upstream, tuple(failures))
