"""An MCP server on stdio whose surface is what a file says: `offering.py FILE`.

FILE holds {"tools": [...], "instructions": "..."}; it is read at each start and at each call of
the tools "reread", which then announces that the list has changed, and "quietly", which does not.
The tool "mute" ends all answers.
"""

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(sys.argv[1])
offer: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def result_of(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        return {
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "offering", "version": "1"},
            "instructions": offer.get("instructions", ""),
        }
    if method == "tools/list":
        return {"tools": [{"inputSchema": {"type": "object"}, **tool} for tool in offer["tools"]]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": f"did {params['name']}"}]}
    return None


for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    params = request.get("params", {})
    answer = result_of(request["method"], params)
    if answer is None:
        send({"id": request["id"], "error": {"code": -32601, "message": "Method not found"}})
        continue
    send({"id": request["id"], "result": answer})
    tool = params.get("name") if request["method"] == "tools/call" else None
    if tool in {"reread", "quietly"}:
        offer = json.loads(FILE.read_text(encoding="utf-8"))
    if tool == "reread":
        send({"method": "notifications/tools/list_changed"})
    if tool == "mute":
        sys.stdin.read()
