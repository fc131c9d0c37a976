"""Servers that change places: the one that is to come, and those that only finish.

A successor starts beside the server that takes the calls, by terms of its own; nobody sees what
it offers before it serves. One that was replaced is in no list any more and gets no new call; it
answers those that it has. Runs in S1's event loop; when they change places is the supervisor's
word.
"""

from dataclasses import dataclass, field

from vsm.gateway.integration import Server, Startup
from vsm.gateway.upstream import Upstream


@dataclass(eq=False)
class Succession:
    """What of one integration waits to serve, and what has served.

    Args:
        coming: starts, or is ready and waits for its turn; `arrived` once it does.
        leaving: by worker, those that finish what is in flight.
    """

    coming: Server | None = None
    arrived: Startup | None = None
    leaving: dict[str, Upstream] = field(default_factory=dict)

    @property
    def in_flight(self) -> int:
        """Requests that those that leave have still to answer."""
        return sum(upstream.in_flight for upstream in self.leaving.values())

    def expect(self, server: Server) -> None:
        """One is starting, in place of any other that was to come."""
        self.drop("another one is to come")
        self.coming = server

    def arrive(self, startup: Startup) -> None:
        """It is ready: its session stands and its lists are here."""
        self.arrived = startup

    def take(self, worker: str) -> tuple[Server, Startup] | None:
        """The one that is ready, which serves from now on; None where it is gone."""
        server, startup = self.coming, self.arrived
        if server is None or startup is None or startup.upstream.worker != worker:
            return None
        self.coming = self.arrived = None
        return server, startup

    def leave(self, server: Server) -> None:
        """A server takes no new call; what it has in flight, it finishes."""
        upstream, server.upstream = server.upstream, None
        server.listen_id = None
        if upstream is not None:
            self.leaving[upstream.worker] = upstream

    def ended(self, worker: str, reason: str) -> None:
        """The supervisor says that a worker is gone: fail what it has in flight."""
        upstream = self.leaving.pop(worker, None)
        if upstream is not None:
            upstream.close(reason)
        if self.coming is not None and worker in _workers(self.coming):
            self.drop(reason)

    def drop(self, reason: str) -> None:
        """None is to come any more."""
        coming, self.coming, self.arrived = self.coming, None, None
        if coming is None:
            return
        if coming.starting is not None:
            coming.starting.stop()
            coming.starting.upstream.close(reason)
        if coming.upstream is not None:
            coming.upstream.close(reason)

    def close(self, reason: str) -> None:
        """Let go of all of them."""
        self.drop(reason)
        for worker in list(self.leaving):
            self.ended(worker, reason)


def _workers(server: Server) -> set[str]:
    upstreams = (server.upstream, server.starting.upstream if server.starting else None)
    return {upstream.worker for upstream in upstreams if upstream is not None}
