"""A server that makes tasks: `tasks_server.py NAME ERA`; its ids are easy to guess.

"modern": of the SDK, with the tasks extension of 2026-07-28, for clients that declare it.
"legacy": `tools/call` with `task` makes one, as of 2025-11-25; standard library only, because the
SDK's server makes none in that revision. Both: the tool `work` makes `task-1`, `task-2`, …, which
end when somebody asks for them; `tell` (legacy) tells the status of a task.
"""

import json
import sys
from typing import Any

NAME, ERA = sys.argv[1:]
EXTENSION = "io.modelcontextprotocol/tasks"
WHEN = "2026-11-29T00:00:00Z"
TASKS: dict[str, str] = {}


def make() -> dict[str, Any]:
    task_id = f"task-{len(TASKS) + 1}"
    TASKS[task_id] = "working"
    return describe(task_id)


def describe(task_id: str, status: str = "") -> dict[str, Any]:
    TASKS[task_id] = status or TASKS[task_id]
    times = {"createdAt": WHEN, "lastUpdatedAt": WHEN}
    span = {"ttlMs": 60000} if ERA == "modern" else {"ttl": 60000}
    return {"taskId": task_id, "status": TASKS[task_id], **times, **span}


def result_of(task_id: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": f"{NAME} did {task_id}"}]}


def modern() -> None:
    import mcp_types as types
    from mcp.server.extension import Extension, MethodBinding
    from mcp.server.mcpserver import MCPServer

    class ById(types.RequestParams):
        task_id: str

    async def get(_context: Any, params: ById) -> dict[str, Any]:
        done = {"result": {**result_of(params.task_id), "resultType": "complete"}}
        return {"resultType": "complete", **describe(params.task_id, "completed"), **done}

    async def cancel(_context: Any, params: ById) -> dict[str, Any]:
        return {"resultType": "complete", **describe(params.task_id, "cancelled")}

    class Tasks(Extension):
        identifier = EXTENSION

        def methods(self) -> list[MethodBinding]:
            handlers = {"tasks/get": get, "tasks/cancel": cancel}
            return [MethodBinding(method, ById, handler) for method, handler in handlers.items()]

        async def intercept_tool_call(self, params: Any, ctx: Any, call_next: Any) -> Any:
            capabilities = (params.meta or {}).get("io.modelcontextprotocol/clientCapabilities", {})
            if EXTENSION in (capabilities.get("extensions") or {}):
                return {"resultType": "task", **make()}
            return await call_next(ctx)

    server = MCPServer(NAME, extensions=[Tasks()])

    @server.tool()
    def work() -> str:
        return "at once"

    server.run()


def say(**message: Any) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:  # noqa: PLR0911
    match method:
        case "initialize":
            tasks = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}
            return {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}, "tasks": tasks},
                "serverInfo": {"name": NAME, "version": "1"},
            }
        case "tools/list":
            names = ("work", "tell")
            return {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in names]}
        case "tools/call" if params["name"] == "tell":
            say(method="notifications/tasks/status", params=describe(params["arguments"]["task"]))
            return {"content": []}
        case "tools/call":
            return {"task": make()} if "task" in params else result_of("it at once")
        case "tasks/get":
            return describe(params["taskId"], "completed")
        case "tasks/cancel":
            return describe(params["taskId"], "cancelled")
        case "tasks/result":
            related = {"io.modelcontextprotocol/related-task": {"taskId": params["taskId"]}}
            return {**result_of(params["taskId"]), "_meta": related}
        case "tasks/list":
            return {"tasks": [describe(task_id) for task_id in TASKS]}
        case "ping":
            return {}
    return None


def legacy() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        result = answer(message["method"], message.get("params") or {})
        if result is None:
            error = {"code": -32601, "message": "Method not found"}
            say(id=message["id"], error=error)
        else:
            say(id=message["id"], result=result)


if __name__ == "__main__":
    modern() if ERA == "modern" else legacy()
