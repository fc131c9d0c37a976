"""A modern MCP server (2026-07-28) on stdio, standard library only: `echo_modern.py [NAME]`."""

import json
import os
import sys
import threading
import time
from typing import Any

NAME = sys.argv[1] if len(sys.argv) > 1 else "modern"
VERSION = "2026-07-28"
META = "io.modelcontextprotocol/"
lock = threading.Lock()
listens: dict[Any, dict[str, Any]] = {}
extra: list[str] = []
unheard: list[Any] = []  # subscriptions that ended while there was no other


def send(**message: Any) -> None:
    with lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def complete(**members: Any) -> dict[str, Any]:
    return {"resultType": "complete", **members}


def cached(**members: Any) -> dict[str, Any]:
    return complete(ttlMs=5000, cacheScope="public", **members)


def tell_listeners(method: str, wanted: str, **params: Any) -> None:
    for listen_id, notifications in list(listens.items()):
        hears = notifications.get(wanted)
        if hears is True or (isinstance(hears, list) and params.get("uri") in hears):
            meta = {META + "subscriptionId": listen_id}
            send(method=method, params={**params, "_meta": meta})


def call(request_id: Any, params: dict[str, Any]) -> None:
    tool, arguments, meta = params["name"], params.get("arguments") or {}, params["_meta"]
    seen = {"server": NAME, "arguments": arguments, "pid": os.getpid(), "meta": meta}
    result = complete(content=[{"type": "text", "text": json.dumps(seen)}])
    if tool == "question":
        if "inputResponses" in params:
            said = json.dumps([params["requestState"], params["inputResponses"]])
            result = complete(content=[{"type": "text", "text": said}])
        else:
            schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
            ask = {"message": "sure?", "requestedSchema": schema, "mode": "form"}
            asked = {"q": {"method": "elicitation/create", "params": ask}}
            result = {"resultType": "input_required", "inputRequests": asked}
            result["requestState"] = "state-1"
    elif tool == "slow":
        time.sleep(arguments.get("seconds", 0.2))
    elif tool == "progress":
        for step in range(3):
            progress = {"progressToken": meta["progressToken"], "progress": step, "total": 3}
            send(method="notifications/progress", params=progress)
    elif tool == "change":
        extra.append(f"extra{len(extra)}")
        tell_listeners("notifications/tools/list_changed", "toolsListChanged")
    elif tool == "touch":
        uri = arguments["uri"]
        tell_listeners("notifications/resources/updated", "resourceSubscriptions", uri=uri)
    elif tool == "unheard":
        result = complete(content=[{"type": "text", "text": json.dumps(unheard)}])
    elif tool == "die":
        os._exit(1)
    send(id=request_id, result=result)


def serve(method: str, params: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911 - one return per method
    if method == "server/discover":
        capabilities = {
            "tools": {"listChanged": True},
            "resources": {"subscribe": True},
            "prompts": {},
            "completions": {},
        }
        info = {META + "serverInfo": {"name": NAME, "version": "1"}}
        return cached(supportedVersions=[VERSION], capabilities=capabilities, _meta=info)
    if method == "tools/list":
        names = [
            "echo",
            "slow",
            "progress",
            "question",
            "change",
            "touch",
            "unheard",
            "die",
            *extra,
        ]
        return cached(tools=[{"name": n, "inputSchema": {"type": "object"}} for n in names])
    if method == "resources/list":
        return cached(resources=[{"uri": f"mem://{NAME}/one", "name": "one"}])
    if method == "resources/templates/list":
        return cached(resourceTemplates=[{"uriTemplate": f"mem://{NAME}/{{p}}", "name": "any"}])
    if method == "resources/read":
        return cached(contents=[{"uri": params["uri"], "text": f"{NAME}: {params['uri']}"}])
    if method == "prompts/list":
        return cached(prompts=[{"name": "greet"}])
    if method == "prompts/get":
        content = {"type": "text", "text": f"{NAME} greets"}
        return complete(messages=[{"role": "user", "content": content}])
    if method == "completion/complete":
        return complete(completion={"values": [NAME]})
    raise KeyError(method)


def request(message: dict[str, Any]) -> None:
    request_id, method, params = message["id"], message["method"], message.get("params") or {}
    if (params.get("_meta") or {}).get(META + "protocolVersion") != VERSION:
        data = {"supported": [VERSION], "requested": ""}
        error = {"code": -32022, "message": "Unsupported protocol version", "data": data}
        send(id=request_id, error=error)
    elif method == "tools/call":
        threading.Thread(target=call, args=(request_id, params), daemon=True).start()
    elif method == "subscriptions/listen":
        listens[request_id] = params["notifications"]
        meta = {META + "subscriptionId": request_id}
        acknowledged = {"notifications": params["notifications"], "_meta": meta}
        send(method="notifications/subscriptions/acknowledged", params=acknowledged)
    else:
        try:
            send(id=request_id, result=serve(method, params))
        except KeyError:
            send(id=request_id, error={"code": -32601, "message": "Method not found"})


for line in sys.stdin:
    if line.strip():
        received = json.loads(line)
        if "id" in received and "method" in received:
            request(received)
        elif received.get("method") == "notifications/cancelled":
            gone = received["params"]["requestId"]
            if listens.pop(gone, None) is not None and not listens:
                unheard.append(gone)
