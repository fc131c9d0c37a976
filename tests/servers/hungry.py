"""A legacy MCP server on stdio, standard library only, that uses what it is told to.

`hold` keeps so many MiB until the next `hold`, `spin` uses a processor for so many seconds, `rest`
sleeps so long, `fail` is an error of the tool.
"""

import json
import sys
import time
from typing import Any

NAMES = ("hold", "spin", "rest", "fail", "die")
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in NAMES]
MOST_MIB, MOST_S = 512, 5.0
held: list[bytearray] = []


def call(name: str, arguments: dict[str, Any]) -> str:
    if name == "hold":
        held.clear()
        held.append(bytearray(min(MOST_MIB, int(arguments["mib"])) << 20))
        held[0][::4096] = b"\1" * len(held[0][::4096])  # memory is used once it is written
    elif name == "spin":
        end = time.process_time() + min(MOST_S, float(arguments["seconds"]))
        while time.process_time() < end:
            pass
    elif name == "rest":
        time.sleep(min(MOST_S, float(arguments["seconds"])))
    elif name == "die":
        sys.exit(3)
    return name


def answer(request: dict[str, Any]) -> dict[str, Any]:
    method, params = request["method"], request.get("params", {})
    if method == "initialize":
        information = {"name": "hungry", "version": "1"}
        version = params["protocolVersion"]
        return {
            "protocolVersion": version,
            "capabilities": {"tools": {}},
            "serverInfo": information,
        }
    if method == "tools/list":
        return {"tools": TOOLS}
    if method == "tools/call":
        text = call(params["name"], params.get("arguments", {}))
        return {"content": [{"type": "text", "text": text}], "isError": text == "fail"}
    return {}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message and "method" in message:
        frame = {"jsonrpc": "2.0", "id": message["id"], "result": answer(message)}
        sys.stdout.write(json.dumps(frame) + "\n")
        sys.stdout.flush()
