"""A legacy MCP client on the unix socket that writes and reads frames as they are."""

import json
import socket
from pathlib import Path
from typing import Any

BOUND_S = 60.0


class Client:
    """A legacy client on the unix socket."""

    def __init__(self, folder: Path, name: str = "claude-test") -> None:
        self._id = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(BOUND_S)
        self._socket.connect(str(folder / "run/mcp.sock"))
        self._lines = self._socket.makefile("rb")
        information = {"name": name, "version": "1"}
        self.ask(
            "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=information
        )
        self._send({"method": "notifications/initialized"})

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def begin(self, method: str, **params: Any) -> int:
        self._id += 1
        self._send({"id": self._id, "method": method, "params": params})
        return self._id

    def tell(self, method: str, **params: Any) -> None:
        self._send({"method": method, "params": params})

    def end(self, request: int) -> dict[str, Any]:
        while True:
            answer: dict[str, Any] = json.loads(self._lines.readline())
            if answer.get("id") == request:
                return answer

    def next(self) -> dict[str, Any]:
        """The next answer, whichever call it is of."""
        while "id" not in (answer := json.loads(self._lines.readline())):
            pass
        found: dict[str, Any] = answer
        return found

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self.end(self.begin(method, **params))

    def begin_call(self, tool: str, **arguments: Any) -> int:
        return self.begin("tools/call", name=f"it__{tool}", arguments=arguments)

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return self.end(self.begin_call(tool, **arguments))

    def call_many(self, name: str, times: int = 1, **arguments: Any) -> None:
        """All at once, by the whole name; returns when the last is answered."""
        asked = [self.begin("tools/call", name=name, arguments=arguments) for _ in range(times)]
        self.end(asked[-1])

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
