"""An MCP server on stdio of one era, `whole.py legacy|modern`, whose messages have every member.

Every result says in its `_meta` what the request was; each has members that no revision knows.
"""

import json
import sys
from typing import Any

ERA = sys.argv[1]
META = "io.modelcontextprotocol/"
ICONS = [{"src": "data:image/png;base64,AA==", "mimeType": "image/png", "sizes": ["48x48"]}]
COMMON = {"title": "Titel é", "icons": ICONS, "_meta": {"x.org/kept": [1]}, "x-novel": {"a": 1}}
NOTES = {"audience": ["user"], "priority": 0.5, "lastModified": "2026-01-01T00:00:00Z"}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "x-more": True}
LISTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tools/list": (
        "tools",
        {
            "name": "t",
            "description": "d",
            "inputSchema": SCHEMA,
            "outputSchema": SCHEMA,
            "annotations": {"title": "T", "readOnlyHint": True, "openWorldHint": False},
        },
    ),
    "prompts/list": (
        "prompts",
        {"name": "p", "description": "d", "arguments": [{"name": "a", "title": "A"}]},
    ),
    "resources/list": (
        "resources",
        {"uri": "w://1", "name": "r", "mimeType": "text/plain", "size": 7, "annotations": NOTES},
    ),
    "resources/templates/list": (
        "resourceTemplates",
        {"uriTemplate": "w://{x}", "name": "r", "mimeType": "text/plain", "annotations": NOTES},
    ),
}
RESULTS: dict[str, dict[str, Any]] = {
    "tools/call": {
        "content": [
            {"type": "text", "text": "é", "annotations": NOTES, "_meta": {"k": 1}},
            {"type": "resource_link", "uri": "w://1", "name": "r", "icons": ICONS},
            {"type": "audio", "data": "AA==", "mimeType": "audio/wav"},
            {"type": "x-novel", "y": [None, 1e-7, 12345678901234567890]},
        ],
        "structuredContent": {"n": 1, "big": 12345678901234567890, "exact": 0.1},
        "isError": False,
    },
    "prompts/get": {
        "description": "d",
        "messages": [{"role": "user", "content": {"type": "text", "text": "é"}}],
    },
    "resources/read": {
        "contents": [{"uri": "w://1", "mimeType": "a/b", "blob": "AA==", "_meta": {"k": 1}}]
    },
    "completion/complete": {"completion": {"values": ["v"], "total": 9, "hasMore": True}},
}


def serve(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "server/discover" and ERA == "modern":
        capabilities = {"tools": {}, "resources": {}, "prompts": {}, "completions": {}}
        return {"supportedVersions": ["2026-07-28"], "capabilities": capabilities}
    if method == "initialize" and ERA == "legacy":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}, "resources": {}, "prompts": {}, "completions": {}},
            "serverInfo": {"name": "whole", "version": "1"},
        }
    if method in LISTS:
        name, item = LISTS[method]
        return {name: [{**item, **COMMON}]}
    if method in RESULTS:
        return {**RESULTS[method], "_meta": {"asked": params}, "x-novel": True}
    return None


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        result = serve(message["method"], message.get("params") or {})
        if result is None:
            answer: dict[str, Any] = {"error": {"code": -32601, "message": "Method not found"}}
        else:
            answer = {"result": result | ({"resultType": "complete"} if ERA == "modern" else {})}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}) + "\n")
        sys.stdout.flush()
