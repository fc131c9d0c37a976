"""Who waits until integrations serve or failed, and for how long.

Owns the waiting; whether an integration is settled, it says itself, and the fleet says when that
may have changed. Runs in S1's event loop.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from vsm.gateway.client import Client
from vsm.gateway.integration import Integration

LIMIT_S: Final = 10.0


class Settling:
    """The waiting of all clients.

    Args:
        integrations: those that there are; somebody else's, who changes them.
    """

    def __init__(self, integrations: Mapping[str, Integration]) -> None:
        self._integrations = integrations
        self._waiters: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()

    def start_unknown(self, names: Iterable[str]) -> None:
        """Have an instance of each, where nothing would start one before somebody needs it."""
        for name in names:
            instances = self._integrations[name].instances
            if instances is not None:
                instances.need()

    async def wait(
        self,
        names: Iterable[str] | None = None,
        client: Client | None = None,
        most_s: float | None = None,
    ) -> None:
        """Wait until the integrations (all of them by default) serve or failed; bounded.

        Args:
            names: of integrations that somebody needs.
            client: who waits, perhaps for an instance of its own.
            most_s: how long at most; LIMIT_S by default.
        """
        wanted = [
            i
            for name, i in self._integrations.items()
            if not i.is_settled_for(client) and (names is None or name in names)
        ]
        self.start_unknown(i.settings.name for i in wanted if names is not None)
        limit_s = max((i.settings.start_timeout_s for i in wanted), default=0.0)
        end = self._loop.time() + min(limit_s, LIMIT_S if most_s is None else most_s)
        while (left := end - self._loop.time()) > 0 and not all(
            i.is_settled_for(client) for i in wanted
        ):
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait((waiter,), timeout=left)
            finally:  # whoever waits may be cancelled
                self._waiters.discard(waiter)

    def look_again(self) -> None:
        """An integration may be settled now that was not."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Nobody has to wait any more."""
        for waiter in self._waiters:
            waiter.cancel()
