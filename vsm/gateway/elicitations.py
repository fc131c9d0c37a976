"""Whom a server sent to a URL, so that its word that this is done finds that client again.

A call may be over by then, or have been answered by the error that asks for it (-32042). Pure but
for what it keeps, which is bounded. Runs in S1's event loop.
"""

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET

from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import ErrorBody, Object

if TYPE_CHECKING:
    from vsm.gateway.client import Client

COMPLETE: Final = "notifications/elicitation/complete"
MOST: Final = 256
MAX_ID_CHARS: Final = 256


class _Asked(msgspec.Struct):
    elicitationId: str = ""  # noqa: N815 - the wire's name


class _Required(msgspec.Struct):
    elicitations: list[_Asked] = msgspec.field(default_factory=list)


class Elicitations:
    """Those of one server, the latest of them."""

    def __init__(self) -> None:
        self._of: dict[str, Client] = {}

    def asked(self, client: "Client", params: Object) -> None:
        """A client is asked by `elicitation/create`."""
        self._keep(client, jsonrpc.text(params, "elicitationId") or "")

    def required(self, client: "Client", error: ErrorBody) -> None:
        """A client's call was answered by the error that wants it to go to URLs first."""
        if error.code != jsonrpc.URL_REQUIRED or error.data is UNSET:
            return
        try:
            wanted = msgspec.json.decode(error.data, type=_Required)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        for one in wanted.elicitations[:MOST]:
            self._keep(client, one.elicitationId)

    def _keep(self, client: "Client", elicitation_id: str) -> None:
        if not client.initialized or not 0 < len(elicitation_id) <= MAX_ID_CHARS:
            return  # the modern era has no such notification
        if len(self._of) >= MOST:
            del self._of[next(iter(self._of))]
        self._of[elicitation_id] = client

    def done(self, params: Object) -> "Client | None":
        """Who was sent there, of what the server says is done; nobody where it is not known."""
        return self._of.pop(jsonrpc.text(params, "elicitationId") or "", None)

    def left(self, client: "Client") -> None:
        """A client is gone."""
        for elicitation_id in [key for key, one in self._of.items() if one is client]:
            del self._of[elicitation_id]
