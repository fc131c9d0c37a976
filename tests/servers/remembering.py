"""A legacy MCP server on stdio that remembers what it is told, and says what a call asks it to.

`ask` puts a question and is answered by what comes back, `tell` sends a notification once it is
answered, `refer` answers by the error that wants its client to go to a URL first; `heard` waits
for so many messages of a method and is answered by their params, `asking` by the ids of questions
that nobody answered.
"""

import json
import sys
from typing import Any

heard: list[dict[str, Any]] = []
asking: dict[str, int] = {}
waiting: list[tuple[int, dict[str, Any]]] = []
CAPABILITIES = {"tools": {}, "logging": {}}
TOOLS = [
    {"name": name, "inputSchema": {"type": "object"}}
    for name in ("ask", "tell", "refer", "heard", "asking")
]


def send(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def answer(request_id: int, value: Any) -> None:
    send(id=request_id, result={"content": [{"type": "text", "text": json.dumps(value)}]})


def call(request_id: int, tool: str, arguments: dict[str, Any]) -> None:
    said = {key: arguments[key] for key in ("method", "params") if key in arguments}
    if tool == "ask":
        question = f"question-{request_id}"
        asking[question] = request_id
        send(id=question, **said)
    elif tool == "refer":
        wanted = [{"mode": "url", "message": "go", "url": "https://x", **arguments}]
        data = {"elicitations": wanted}
        send(id=request_id, error={"code": -32042, "message": "go there first", "data": data})
    elif tool == "heard":
        waiting.append((request_id, arguments))
    elif tool == "asking":
        answer(request_id, list(asking))
    else:
        answer(request_id, "soon")
        send(**said)


def remind() -> None:
    for one in list(waiting):
        request_id, wanted = one
        found = [m.get("params") for m in heard if m["method"] == wanted["method"]]
        if len(found) >= wanted.get("least", 1):
            waiting.remove(one)
            answer(request_id, found)


for line in sys.stdin:
    message = json.loads(line)
    method, request_id, params = message.get("method"), message.get("id"), message.get("params")
    if method is None:
        answer(asking.pop(request_id), message.get("result", message.get("error")))
    elif method == "tools/call":
        call(request_id, params["name"], params.get("arguments") or {})
    else:
        heard.append(message)
        result: dict[str, Any] = {}
        if method == "initialize":
            info = {"name": "remembering", "version": "1"}
            version = params["protocolVersion"]
            result = {
                "protocolVersion": version,
                "capabilities": CAPABILITIES,
                "serverInfo": info,
            }
        elif method == "tools/list":
            result = {"tools": TOOLS}
        if method == "server/discover":
            send(id=request_id, error={"code": -32601, "message": "Method not found"})
        elif request_id is not None:
            send(id=request_id, result=result)
    remind()
