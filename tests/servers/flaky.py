"""A legacy MCP server on stdio that fails in the way that its first argument says.

"dies": every third call ends the process before it is answered. "well" and "badly": `find` is
answered so. `fetch` says of itself that calling it twice does no harm, `plain` does not.
"""

import itertools
import json
import os
import sys
from typing import Any

NAMES = ("fetch", "plain", "find")
TOOLS: list[dict[str, Any]] = [{"name": name, "inputSchema": {"type": "object"}} for name in NAMES]
TOOLS[0]["annotations"] = {"idempotentHint": True}
MODE = sys.argv[1]
calls = itertools.count(1)


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "flaky", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": TOOLS}
    if method != "tools/call":
        return {}
    if MODE == "dies" and next(calls) % 3 == 0:
        os._exit(1)
    content = [{"type": "text", "text": params["name"]}]
    return {"content": content, "isError": MODE == "badly"}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message and "method" in message:
        result = answer(message["method"], message.get("params", {}))
        frame = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        sys.stdout.write(json.dumps(frame) + "\n")
        sys.stdout.flush()
