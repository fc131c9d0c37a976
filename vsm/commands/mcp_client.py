"""A small MCP client over `mcp.sock`: enough for `vsm tools` and `vsm call`.

Modern era only, so there is no handshake: each request carries the protocol version and the
client's capabilities (none: nothing here can answer a question that a server asks back).
"""

import json
import select
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from vsm import __version__
from vsm.commands.control_client import connect, request
from vsm.errors import NotFoundError, VsmError
from vsm.paths import MCP_SOCKET

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "vsm-cli", "version": __version__},
    "io.modelcontextprotocol/clientCapabilities": {},
}
MOST_PAGES = 1000
QUIET_S = 1.0
MOST_FRAME_BYTES = 256 * 2**20
MOST_SECONDS = 10**9


def seconds(text: str) -> float:
    """A time-out as it is typed; ValueError where no socket takes it."""
    value = float(text)
    if not 0 < value <= MOST_SECONDS:
        raise ValueError(text)
    return value


def _integer(digits: str) -> int | str:
    """As text where Python takes none that is so long: a server may write whatever it likes."""
    try:
        return int(digits)
    except ValueError:
        return digits


class CallError(VsmError):
    """The gateway or the server answered with a JSON-RPC error."""

    def __init__(self, where: str, code: int, message: str) -> None:
        super().__init__(where, f"{message.rstrip('.')} (error {code})")
        self.code = code


class Client:
    """One connection; a context manager.

    Args:
        timeout_s: how long any answer may take; None waits for ever.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._socket: socket.socket = connect(MCP_SOCKET)
        self._socket.settimeout(timeout_s)
        self._lines = self._socket.makefile("rb")
        self._next_id = 1
        self.may_grow = False  # the last list was asked for while a server was starting

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()

    def request(
        self, method: str, params: dict[str, Any], on_wait: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Send one request and wait for its result; notifications on the way are dropped.

        Args:
            method: of the request.
            params: without `_meta`.
            on_wait: called once when nothing has come for a second.

        Raises:
            CallError: the answer is an error.
            VsmError: the connection broke, or the time is over.
        """
        number, self._next_id = self._next_id, self._next_id + 1
        frame = {"jsonrpc": "2.0", "id": number, "method": method}
        line = json.dumps({**frame, "params": {**params, "_meta": META}}) + "\n"
        try:
            self._socket.sendall(line.encode())
            if on_wait is not None and not select.select([self._socket], [], [], QUIET_S)[0]:
                on_wait()
            return self._result_of(number, method)
        except TimeoutError:
            what = f"no answer to {method} within {self._socket.gettimeout()} s"
            raise VsmError("gateway", what, "See `vsm status`.") from None
        except OSError as error:
            what = f"the connection broke: {error.strerror}"
            raise VsmError("gateway", what, "See `vsm status` and ask again.") from error

    def _result_of(self, number: int, method: str) -> dict[str, Any]:
        while line := self._lines.readline(MOST_FRAME_BYTES):
            message = json.loads(line, parse_int=_integer)
            unread = message.get("id") is None and "error" in message  # what we sent was no message
            if (message.get("id") != number and not unread) or "method" in message:
                continue
            if "error" in message:
                error = message["error"]
                raise CallError(method, int(error["code"]), str(error["message"]))
            result: dict[str, Any] = message["result"]
            return result
        raise VsmError("gateway", "hung up without an answer", "See `vsm status` and ask again.")

    def items(self, method: str, key: str) -> Iterator[dict[str, Any]]:
        """Yield every item of a list request, page after page."""
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            result = self.request(method, {} if cursor is None else {"cursor": cursor})
            self.may_grow = result.get("ttlMs") == 0
            yield from result.get(key, ())
            cursor = result.get("nextCursor")
            if not cursor:
                return


def tool_prefixes(integration: str) -> dict[str, str]:
    """What the tools of every integration start with ("" where the names are bare).

    Raises:
        NotFoundError: `integration` is none of them.
    """
    found: dict[str, str] = {}
    for worker in request("status")["workers"]:
        name, prefix = worker.get("integration"), worker.get("prefix")
        if name:
            found[name] = name if prefix is None else prefix
    if integration not in found:
        raise NotFoundError(integration, "no such integration", "See `vsm status`.")
    return found
