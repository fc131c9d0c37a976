"""The gateway as one object: fleet, router and listeners, without the processes around it.

Owns what it is given: server pipes and listening sockets. The system worker wires it to the
supervisor; tests and embedders can run it on any asyncio loop.
"""

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

from vsm.gateway.accounting import Accounting
from vsm.gateway.call_log import CallLog
from vsm.gateway.fleet import Fleet, Reports
from vsm.gateway.gate_arguments import arguments_gate
from vsm.gateway.http import HttpListener
from vsm.gateway.integration import Settings
from vsm.gateway.router import Router
from vsm.gateway.unix import UnixListener
from vsm.gateway.views import View, Views


class Gateway:
    """One endpoint in front of many servers.

    Args:
        epoch: distinguishes this gateway's request ids from a predecessor's on the same pipes.
        reports: hears which sessions stand and which servers are unfit.
        accounting: where calls are counted; closed with the gateway.
        views: what single clients see; who has none sees everything.
    """

    def __init__(
        self,
        epoch: int,
        reports: Reports,
        accounting: Accounting | None = None,
        views: Iterable[View] = (),
    ) -> None:
        self.fleet = Fleet(epoch, reports, accounting)
        self.fleet.guard("arguments", arguments_gate)
        self.router = Router(self.fleet, Views(views))
        self._listeners: list[UnixListener | HttpListener] = []

    def add(self, settings: Settings) -> None:
        """Know an integration."""
        self.fleet.add(settings)
        self._keep_contents()

    def configure(self, settings: list[Settings]) -> None:
        """Know exactly these integrations from now on; the servers of those that stay run on."""
        for gone in set(self.fleet.integrations) - {one.name for one in settings}:
            self.fleet.remove(gone)
        for one in settings:
            self.fleet.add(one)
        self._keep_contents()

    async def listen_unix(self, sock: socket.socket) -> None:
        """Serve local clients on a listening unix socket."""
        await self._listen(UnixListener(self.router, sock))

    async def listen_http(self, sock: socket.socket, *, token: str) -> None:
        """Serve streamable HTTP on a listening TCP socket; "" for `token` lets everybody in."""
        await self._listen(HttpListener(self.router, sock, token=token))

    def record_calls(self, log: CallLog) -> None:
        """Write every call down from now on; with "all", hold back those that could not be."""
        self.router.call_log = log
        self._keep_contents()
        if log.mode == "all":
            self.fleet.guard("record", lambda _integration: log)

    def _keep_contents(self) -> None:
        if self.router.call_log is not None:
            known = {n: i.settings.audit_contents_bytes for n, i in self.fleet.integrations.items()}
            self.router.call_log.kept_bytes = {name: most for name, most in known.items() if most}

    async def _listen(self, listener: UnixListener | HttpListener) -> None:
        self._listeners.append(listener)
        await listener.start()

    def status(self) -> dict[str, Any]:
        """What the gateway knows of itself, for `vsm status`."""
        return {**self.fleet.status(), "clients": len(self.router.clients)}

    async def stop(self, reason: str = "the gateway stops") -> None:
        """Answer what is in flight with `reason`, end every stream and close everything."""
        self.fleet.close(reason)
        self.router.stop()
        for listener in self._listeners:
            listener.stop()
        if self.router.call_log is not None:
            self.router.call_log.close()
        await asyncio.sleep(0)
