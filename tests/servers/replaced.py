"""A legacy MCP server that says which process it is, and starts as its environment says.

GATE: a path; it answers nothing before there is something. FATE: "crash" ends at the start, "mute"
answers nothing for ever. WORDS: what its tool is said to do. Tools: who (which process this is),
slow (the same once the file `until` is there); MORE names others. It notes each `text`, and tells
all of them. Standard library only.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

SERVED = int.from_bytes(os.urandom(4), "big")  # this process, whatever its pid is inside
NOTES: list[str] = []
WISHES: list[str] = []  # what it was asked to tell, in order


def wait_for(path: str) -> None:
    """A file of the test's, which this may see and nothing else."""
    while path and not Path(path).exists():
        time.sleep(0.005)


def send(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name == "slow":
        wait_for(arguments["until"])
    if "text" in arguments:
        NOTES.append(arguments["text"])
    told = {"served": SERVED, "wishes": WISHES, "notes": NOTES}
    return {"content": [{"type": "text", "text": json.dumps(told)}]}


def serve(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}, "resources": {"subscribe": True}, "logging": {}},
            "serverInfo": {"name": "replaced", "version": "1"},
        }
    if method == "tools/list":
        schema = {"type": "object"}
        names = ["who", "slow", *os.environ.get("MORE", "").split()]
        words = os.environ.get("WORDS", "says who it is")
        return {"tools": [{"name": n, "description": words, "inputSchema": schema} for n in names]}
    if method == "resources/list":
        return {"resources": [{"uri": "replaced://one", "name": "one"}]}
    if method == "tools/call":
        return call(params["name"], params.get("arguments") or {})
    if method in {"logging/setLevel", "resources/subscribe"}:
        WISHES.append(method)
        return {}
    return {} if method == "ping" else None


def answer(message: dict[str, Any]) -> None:
    result = serve(message["method"], message.get("params") or {})
    if result is None:
        send(id=message["id"], error={"code": -32601, "message": "Method not found"})
    else:
        send(id=message["id"], result=result)


if os.environ.get("FATE") == "crash":
    sys.stderr.write("cannot read my configuration\n")
    sys.exit(7)
wait_for(os.environ.get("GATE", ""))
time.sleep(float(os.environ.get("START_S", "0")))
for line in sys.stdin:
    if os.environ.get("FATE") != "mute" and line.strip() and "id" in (got := json.loads(line)):
        if (got.get("params") or {}).get("name") == "slow":
            threading.Thread(target=answer, args=(got,), daemon=True).start()
        else:  # in order
            answer(got)
