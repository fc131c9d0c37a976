"""A legacy MCP server on stdio, standard library only, that can also misbehave.

`echo_legacy.py [NAME] [MODE]`: MODE "" behaves; the others break one rule each, on the call of
the tool that is named after them, so that a test can see the call before and after.
"""

import json
import os
import sys
import threading
import time
from typing import Any

NAME = sys.argv[1] if len(sys.argv) > 1 else "echo"
MODE = sys.argv[2] if len(sys.argv) > 2 else ""
TOOLS = ["echo", "slow", "progress", "ask", "log", "die", "change", "big", "touch"]
TOOLS += ["late", "deaf", "same_id", "novel", "busy", "unlist", "claim"]
TOOLS += ["afterwards", "said"]
TOOLS += ["bad_utf8", "garbage", "endless", "deep", "unknown_id", "duplicate", "silence", "flood"]
lock = threading.Lock()
answers: dict[str, Any] = {}
answered = threading.Condition()
cancelled: set[Any] = set()
extra: list[str] = []
claimed = ["mem://shared"]
said: list[Any] = []  # to what was asked outside calls
spoilt: list[str] = []  # how the next lists of tools are answered
deaf = False


def send_raw(data: bytes) -> None:
    with lock:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def send(**message: Any) -> None:
    send_raw(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def text(value: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}]}


def ask(method: str, params: dict[str, Any]) -> Any:
    request_id = f"ask-{method}-{time.monotonic_ns()}"
    send(id=request_id, method=method, params=params)
    with answered:
        answered.wait_for(lambda: request_id in answers, 30)
    return answers.get(request_id)


def misbehave(tool: str, request_id: Any) -> bool:  # noqa: C901 - one branch per broken rule
    """Break one rule; return whether the call still gets its answer."""
    if tool == "bad_utf8":
        body = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"\xff"}]}}\n'
        send_raw(body % request_id)
        return False
    if tool == "garbage":
        send_raw(b"Warning: this is no JSON\n{]\n\x00\x01\n[1,2]\n5\n\n")
    elif tool == "endless":
        send_raw(b'{"jsonrpc":"2.0","id":%d,"result":{"x":"' % request_id)
        for _ in range(40):
            send_raw(b"a" * 1024 * 1024)
        send_raw(b'"}}\n')
        return False
    elif tool == "deep":
        depth = 100_000
        nested = b"[" * depth + b"]" * depth
        send_raw(b'{"jsonrpc":"2.0","id":%d,"result":{"x":%b}}\n' % (request_id, nested))
        return False
    elif tool == "unknown_id":
        for unknown in (0, -1, 10**15, "x", None, request_id + 1):
            send(id=unknown, result=text("not yours"))
    elif tool == "duplicate":
        send(id=request_id, result=text("first"))
        send(id=request_id, result=text("second"))
        return False
    elif tool == "silence":
        return False
    elif tool == "flood":
        noise = json.dumps({"jsonrpc": "2.0", "method": "notifications/message"}).encode() + b"\n"
        threading.Thread(target=lambda: [send_raw(noise * 100) for _ in range(10**6)]).start()
    return True


def outside(tool: str, request_id: Any, arguments: dict[str, Any]) -> bool:
    """Ask when the call is answered, and write down what was said to that; or tell it."""
    if tool == "afterwards":
        send(id=request_id, result=text("soon"))
        answer = ask(arguments["method"], arguments.get("params", {}))
        whole = arguments["file"] + ".part"
        with open(whole, "w", encoding="utf-8") as file:
            json.dump(answer, file)
        os.replace(whole, arguments["file"])
    elif tool == "said":
        deadline = time.monotonic() + 60
        while len(said) < arguments["least"] and time.monotonic() < deadline:
            time.sleep(0.005)
        send(id=request_id, result=text(json.dumps(said)))
    return tool in ("afterwards", "said")


def call(request_id: Any, params: dict[str, Any]) -> None:  # noqa: C901, PLR0912 - one branch per tool
    tool, arguments = params["name"], params.get("arguments") or {}
    token = (params.get("_meta") or {}).get("progressToken")
    if outside(tool, request_id, arguments):
        return
    result = text(json.dumps({"server": NAME, "arguments": arguments, "pid": os.getpid()}))
    if tool == "slow":
        deadline = time.monotonic() + arguments.get("seconds", 0.2)
        while time.monotonic() < deadline and request_id not in cancelled:
            time.sleep(0.005)
        if request_id in cancelled:
            sys.stderr.write(f"cancelled {request_id}\n")
            sys.stderr.flush()
            return
    elif tool == "progress":
        for step in range(3):
            params = {"progressToken": token, "progress": step, "total": 3}
            send(method="notifications/progress", params=params)
    elif tool == "ask":
        result = text(json.dumps(ask(arguments["method"], arguments.get("params", {}))))
    elif tool == "log":
        send(method="notifications/message", params={"level": "error", "data": "logged"})
    elif tool == "die":
        os._exit(1)
    elif tool in ("change", "unlist"):
        extra.append(f"extra{len(extra)}")
        spoilt.extend(arguments.get("how", ()))
        send(method="notifications/tools/list_changed")
    elif tool == "claim":
        claimed[:] = arguments["uris"]
        send(method="notifications/resources/list_changed")
    elif tool == "big":
        result = text("x" * arguments["bytes"])
    elif tool == "late":
        while request_id not in cancelled:
            time.sleep(0.005)
        result = text("too late")
    elif tool == "busy":
        while request_id not in cancelled:
            send(method="notifications/progress", params={"progressToken": token, "progress": 1})
            time.sleep(0.02)
    elif tool == "deaf":
        global deaf  # noqa: PLW0603 - one flag for the reading loop
        deaf = True
    elif tool == "same_id":
        # Two questions under one id, the second while the first is open.
        for _ in range(2):
            send(id="twice", method="ping", params={})
            send(id="twice", method="roots/list", params={})
    elif tool == "novel":
        send(method="notifications/x/novel", params={"n": 1})
    elif tool == "touch":
        send(method="notifications/resources/updated", params={"uri": arguments["uri"]})
    elif not misbehave(tool, request_id):
        return
    send(id=request_id, result=result)


def spoil(how: str, request_id: Any) -> None:
    """Answer a list as it must not be; `none` says that there is no such list."""
    if how == "exit":
        os._exit(1)
    if how == "no list":
        send(id=request_id, result={"tools": "all of them"})
    else:
        code = -32601 if how == "none" else -32000
        send(id=request_id, error={"code": code, "message": "the database is away"})


def tools(cursor: str | None) -> dict[str, Any]:
    names = TOOLS + extra
    start = int(cursor or 0)
    page = [
        {"name": n, "description": f"{n} of {NAME}", "inputSchema": {"type": "object"}}
        for n in names[start : start + 10]
    ]
    for tool in page:
        if tool["name"] == "late":
            tool["annotations"] = {"idempotentHint": True}
    more = {"nextCursor": str(start + 10)} if start + 10 < len(names) else {}
    return {"tools": page, **more}


def serve(method: str, params: dict[str, Any]) -> dict[str, Any]:  # noqa: C901, PLR0911 - one return per method
    if method == "initialize":
        capabilities = {
            "tools": {"listChanged": True},
            "resources": {"subscribe": True, "listChanged": True},
            "prompts": {},
            "logging": {},
            "completions": {},
        }
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": capabilities,
            "serverInfo": {"name": NAME, "version": "1"},
            "instructions": f"I am {NAME}.",
        }
    if method == "tools/list":
        return tools(params.get("cursor"))
    if method == "resources/list":
        resources = [{"uri": f"mem://{NAME}/one", "name": "one"}]
        return {"resources": [*resources, *({"uri": u, "name": "shared"} for u in claimed)]}
    if method == "resources/templates/list":
        patterns = [f"mem://{NAME}/{{path}}", *(["any://{path}"] if MODE == "twin" else [])]
        return {"resourceTemplates": [{"uriTemplate": p, "name": "any"} for p in patterns]}
    if method == "resources/read":
        return {"contents": [{"uri": params["uri"], "text": f"{NAME}: {params['uri']}"}]}
    if method == "prompts/list":
        return {"prompts": [{"name": "greet", "arguments": [{"name": "who"}]}]}
    if method == "prompts/get":
        who = (params.get("arguments") or {}).get("who", "you")
        content = {"type": "text", "text": f"{NAME} greets {who}"}
        return {"messages": [{"role": "user", "content": content}]}
    if method == "completion/complete":
        return {"completion": {"values": [params["ref"].get("name", "uri"), NAME]}}
    if method == "x/novel":
        return {"novel": params}
    if method in ("ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
        return {}
    raise KeyError(method)


def main() -> None:  # noqa: C901, PLR0912 - the whole loop in one place
    if MODE == "exit":
        sys.exit(3)
    if MODE == "unlisted":
        spoilt.extend(["error"] * 9)
    for line in sys.stdin.buffer:
        while deaf:
            time.sleep(3600)
        if not line.strip() or MODE == "mute":
            continue
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if "method" not in message:
            with answered:
                answers[message["id"]] = message.get("result", message.get("error"))
                answered.notify_all()
        elif "id" not in message:
            if message["method"] == "notifications/cancelled":
                cancelled.add(message["params"]["requestId"])
            elif message["method"] == "notifications/roots/list_changed" and MODE == "roots":
                threading.Thread(target=lambda: said.append(ask("roots/list", {}))).start()
        elif message["method"] == "tools/call":
            tool = message["params"]["name"]
            if tool == "echo":
                call(message["id"], message["params"])
            else:
                args = (message["id"], message["params"])
                threading.Thread(target=call, args=args, daemon=True).start()
        elif message["method"] == "tools/list" and spoilt:
            spoil(spoilt.pop(0), message["id"])
        else:
            try:
                send(id=message["id"], result=serve(message["method"], message.get("params") or {}))
            except KeyError:
                error = {"code": -32601, "message": "Method not found"}
                send(id=message["id"], error=error)


main()
