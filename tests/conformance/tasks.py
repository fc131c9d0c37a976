"""The tasks extension as the suite's `tasks-` scenarios expect it, for `everything.py`.

Tools that may take long become tasks for clients that declare the extension with the call: the
tool is a coroutine that goes on behind the answer, and may ask and wait. Names, texts and shapes
are the suite's; the specification is SEP-2663.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from mcp.server.extension import Extension, MethodBinding, ToolBinding
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    InputRequiredResult,
    RequestParams,
)
from pydantic import Field

NAME: Final = "io.modelcontextprotocol/tasks"
TTL_MS: Final = 60_000
POLL_MS: Final = 100
FORM: Final = {
    "method": "elicitation/create",
    "params": {
        "mode": "form",
        "message": "Go on?",
        "requestedSchema": {"type": "object", "properties": {"confirm": {"type": "boolean"}}},
    },
}


class ById(RequestParams):
    """What every request about a task names."""

    task_id: str


class Update(ById):
    """Answers to what a task asked."""

    input_responses: dict[str, Any] = Field(default_factory=dict)


class Task:
    """One that runs, or has ended."""

    def __init__(self, work: Callable[["Task"], Awaitable[dict[str, Any]]]) -> None:
        self.id = secrets.token_urlsafe(12)
        self.status = "working"
        self.created = self.updated = _now()
        self.outcome: dict[str, Any] = {}
        self.questions: dict[str, Any] = {}
        self.answers: dict[str, Any] = {}
        self._answered = asyncio.Event()
        self.running = asyncio.create_task(self._run(work))

    async def _run(self, work: Callable[["Task"], Awaitable[dict[str, Any]]]) -> None:
        try:
            self._become("completed", result={**await work(self), "resultType": "complete"})
        except asyncio.CancelledError:
            self._become("cancelled")
        except MCPError as error:
            body = {"code": error.error.code, "message": error.error.message}
            self._become("failed", error=body)

    def _become(self, status: str, **outcome: Any) -> None:
        self.status, self.outcome, self.updated = status, outcome, _now()
        self.questions.clear()

    async def ask(self, *names: str) -> dict[str, Any]:
        """Wait until all of it is answered."""
        self.questions = dict.fromkeys(names, FORM)
        self.status, self.updated = "input_required", _now()
        await self._answered.wait()
        self.status, self.updated = "working", _now()
        return self.answers

    def answer(self, given: dict[str, Any]) -> None:
        """Take answers; what was not asked is ignored."""
        for name in self.questions.keys() & given.keys():
            self.answers[name] = given[name]
            del self.questions[name]
        if not self.questions:
            self._answered.set()

    def seed(self) -> dict[str, Any]:
        """What it is called and how it is."""
        times = {"createdAt": self.created, "lastUpdatedAt": self.updated}
        spans = {"ttlMs": TTL_MS, "pollIntervalMs": POLL_MS}
        return {"taskId": self.id, "status": self.status, **times, **spans}

    def details(self) -> dict[str, Any]:
        """The same, with what it asks or how it ended."""
        asks = {"inputRequests": self.questions} if self.questions else {}
        return {"resultType": "complete", **self.seed(), **asks, **self.outcome}


def _now() -> str:
    return datetime.now(UTC).isoformat()


def text(said: str, *, is_error: bool = False) -> dict[str, Any]:
    """A tool's result."""
    return {"content": [{"type": "text", "text": said}], "isError": is_error}


def declares(meta: Any) -> bool:
    """Whether a request's sender knows tasks."""
    capabilities = (meta or {}).get("io.modelcontextprotocol/clientCapabilities") or {}
    return NAME in (capabilities.get("extensions") or {})


def require(meta: Any) -> None:
    """Refuse a sender that does not.

    Raises:
        MCPError: it does not.
    """
    if not declares(meta):
        needed = {"requiredCapabilities": {"extensions": {NAME: {}}}}
        message = f"This needs a client with the extension {NAME}"
        raise MCPError(code=MISSING_REQUIRED_CLIENT_CAPABILITY, message=message, data=needed)


# ---- the tools, as tasks and at once -------------------------------------------------------


def greet(name: str) -> str:
    """Say hello, at once."""
    return f"Hello, {name}!"


async def slow_compute(seconds: float = 0, label: str = "") -> str:
    """Sleep."""
    await asyncio.sleep(seconds)
    return f"{label} done"


def only_a_task() -> str:
    """Take long."""
    return ""


async def _fail(_: Task) -> dict[str, Any]:
    await asyncio.sleep(0.2)
    return text("it did not work", is_error=True)


async def _break(_: Task) -> dict[str, Any]:
    raise MCPError(code=-32603, message="the job broke")


async def _confirm(task: Task) -> dict[str, Any]:
    answers = await task.ask("confirm")
    return text(f"confirmed: {answers}")


async def _two(task: Task) -> dict[str, Any]:
    return text(f"both: {await task.ask('one', 'other')}")


WORK: Final = {
    "failing_job": _fail,
    "protocol_error_job": _break,
    "confirm_delete": _confirm,
    "multi_input": _two,
}


class Tasks(Extension):
    """Tools, methods, and which calls become tasks."""

    identifier = NAME

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def tools(self) -> list[ToolBinding]:
        names = [*WORK, "test_tool_with_task"]
        only = [ToolBinding(only_a_task, kwargs={"name": name}) for name in names]
        return [ToolBinding(greet), ToolBinding(slow_compute), *only]

    def methods(self) -> list[MethodBinding]:
        return [
            MethodBinding("tasks/get", ById, self._get),
            MethodBinding("tasks/update", Update, self._update),
            MethodBinding("tasks/cancel", ById, self._cancel),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Any, call_next: Any
    ) -> Any:
        name, arguments = params.name, params.arguments or {}
        if name == "slow_compute" and declares(params.meta):

            async def sleep(_: Task) -> dict[str, Any]:
                return text(await slow_compute(**arguments))

            return self._begin(sleep)
        if name == "test_tool_with_task":
            require(params.meta)
            answer = (params.input_responses or {}).get("user_name")
            if answer is None:
                return InputRequiredResult(input_requests={"user_name": FORM})

            async def greeting(_: Task) -> dict[str, Any]:
                return text(greet(str((answer.content or {}).get("name"))))

            return self._begin(greeting)
        if name in WORK:
            require(params.meta)
            return self._begin(WORK[name])
        return await call_next(ctx)

    def _begin(self, work: Callable[[Task], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        task = Task(work)
        self._tasks[task.id] = task
        return {"resultType": "task", **task.seed()}

    def _find(self, params: ById) -> Task:
        require(params.meta)
        if params.task_id not in self._tasks:
            raise MCPError(code=INVALID_PARAMS, message="unknown task")
        return self._tasks[params.task_id]

    async def _get(self, _ctx: Any, params: ById) -> dict[str, Any]:
        return self._find(params).details()

    async def _update(self, _ctx: Any, params: Update) -> dict[str, Any]:
        self._find(params).answer(params.input_responses)
        return {"resultType": "complete"}

    async def _cancel(self, _ctx: Any, params: ById) -> dict[str, Any]:
        self._find(params).running.cancel()
        return {"resultType": "complete"}
