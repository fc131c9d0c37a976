"""An MCP server whose tools end in every way that a call can; standard library only."""

import json
import os
import sys
import threading
from typing import Any

TOOLS = ("works", "fails", "refuses", "quotes", "nests", "spaced", "hangs", "dies")
ANSWERS: dict[str, dict[str, Any]] = {
    "works": {"isError": False},
    "fails": {"isError": True},
    "quotes": {},
    "nests": {"structuredContent": {"isError": True}},
    "spaced": {"isError": True},
}
TEXT = 'it says "isError":true, in a text'


def call(request_id: Any, tool: str) -> None:
    if tool == "hangs":
        return
    if tool == "dies":
        os._exit(1)
    if tool == "refuses":
        send({"id": request_id, "error": {"code": -32000, "message": "no"}})
        return
    content = [{"type": "text", "text": TEXT}]
    # "spaced" is JSON as pretty printers write it.
    send({"id": request_id, "result": {"content": content, **ANSWERS[tool]}}, tool == "spaced")


def send(message: dict[str, Any], spaced: bool = False) -> None:
    separators = (", ", ":\t ") if spaced else (",", ":")
    line = json.dumps({"jsonrpc": "2.0", **message}, separators=separators)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def serve(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        info = {"name": "outcomes", "version": "1"}
        capabilities: dict[str, Any] = {"tools": {}, "prompts": {}, "resources": {}}
        version = params["protocolVersion"]
        return {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}
    return {
        "tools/list": {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in TOOLS]},
        "prompts/list": {"prompts": [{"name": "greet"}]},
        "prompts/get": {"messages": []},
        "resources/list": {"resources": [{"uri": "mem://one", "name": "one"}]},
        "resources/templates/list": {
            "resourceTemplates": [{"uriTemplate": "mem://any/{path}", "name": "any"}]
        },
        "resources/read": {"contents": []},
    }[method]


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        method, request_id = message.get("method"), message.get("id")
        params = message.get("params") or {}
        if request_id is None:
            continue
        if method == "tools/call":
            arguments = (request_id, params["name"])
            threading.Thread(target=call, args=arguments, daemon=True).start()
            continue
        try:
            send({"id": request_id, "result": serve(method, params)})
        except KeyError:
            send({"id": request_id, "error": {"code": -32601, "message": "Method not found"}})


main()
