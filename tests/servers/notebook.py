"""A legacy MCP server that remembers: one list of notes for each process, and nothing on disk.

`notebook.py NAME`; its one resource is `note://NAME`.

Tools: note (adds a text, answers all), slow (the same after a while), crash, publish (says that
the resource changed), grow (has one tool more). Standard library only.
"""

import json
import os
import sys
import threading
import time
from typing import Any

NOTES: list[str] = []
SERVED = int.from_bytes(os.urandom(4), "big")  # this process, whatever its pid is inside
TOOLS = ["note", "slow", "crash", "publish", "grow"]
URI = f"note://{sys.argv[1]}"


def send(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name == "crash":
        os._exit(9)
    if name == "publish":
        send(method="notifications/resources/updated", params={"uri": URI})
        level = {"level": "error", "data": "published"}
        send(method="notifications/message", params=level)
    if name == "grow":
        TOOLS.append(f"grown{len(TOOLS)}")
        send(method="notifications/tools/list_changed")
    if "text" in arguments:
        NOTES.append(arguments["text"])
    time.sleep(arguments.get("seconds", 0))
    told = {"notes": NOTES, "served": SERVED, "uid": os.getuid()}
    return {"content": [{"type": "text", "text": json.dumps(told)}]}


def serve(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        offers = {"tools": {"listChanged": True}, "resources": {"subscribe": True}, "logging": {}}
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": offers,
            "serverInfo": {"name": "notebook", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in TOOLS]}
    if method == "resources/list":
        return {"resources": [{"uri": URI, "name": "all"}]}
    if method == "tools/call":
        return call(params["name"], params.get("arguments") or {})
    known = {"ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"}
    return {} if method in known else None


def answer(message: dict[str, Any]) -> None:
    result = serve(message["method"], message.get("params") or {})
    if result is None:
        send(id=message["id"], error={"code": -32601, "message": "Method not found"})
    else:
        send(id=message["id"], result=result)


for line in sys.stdin:
    if line.strip() and "id" in (received := json.loads(line)):
        threading.Thread(target=answer, args=(received,), daemon=True).start()
