"""Tasks: what a server goes on with after it has answered, asked about later by an id.

Two servers may use one id, and an id may be guessed. So a client never sees a server's own: it
gets one of the gateway's, which nobody can guess, which says whose it is, and which is good for
the client alone that got it (for clients without a session, for all that see what it sees). The
legacy era nests a task in the result and asks `tasks/result` for the rest; in the modern one, where
tasks are an extension, the result is the task. Of a server that has ended its tasks keep its name,
so that whoever asks is told, and nothing else of it. Runs in S1's event loop.
"""

import secrets
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Raw

from vsm.gateway.call import Call
from vsm.gateway.finder import RequestError
from vsm.gateway.task_maker import Maker
from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import Object
from vsm.protocol.tables import (
    META_CAPABILITIES,
    RELATED_TASK,
    TASK_EXTENSION,
    TASK_METHODS,
    TASK_REQUESTS,
    Era,
)

if TYPE_CHECKING:
    from vsm.gateway.client import Client
    from vsm.gateway.upstream import Upstream

MOST_TASKS: Final = 1024  # of one client; the oldest is forgotten
MOST_ID_CHARS: Final = 1024

Owner: TypeAlias = "Client | str"


class Task:
    """One task.

    Args:
        maker: the server.
        own_id: what it calls the task; "" once it has ended.
        owner: who may ask about it.
        name: what the owner calls it.
    """

    __slots__ = ("maker", "name", "own_id", "owner")

    def __init__(self, maker: Maker, own_id: str, owner: Owner, name: str) -> None:
        self.maker = maker
        self.own_id = own_id
        self.owner = owner
        self.name = name

    @property
    def server(self) -> "Upstream":
        """Who alone can answer.

        Raises:
            TaskError: it has ended.
        """
        server = self.maker.server
        if server is None or server.lost:
            text = f"{self.maker.integration}: its server ended, and the task with it"
            raise TaskError(text)
        return server


class TaskError(RequestError):
    """What a client is told of an id that leads nowhere."""

    def __init__(self, text: str) -> None:
        super().__init__(jsonrpc.INVALID_PARAMS, text)


class Tasks:
    """Every client's tasks, by the ids that the client knows."""

    def __init__(self) -> None:
        self._of: dict[Owner, dict[str, Task]] = {}

    def name(self, client: "Client", maker: Maker, own_id: str) -> str | None:
        """What the client calls a task; the same again for one that it has. None: not its own."""
        owner, known = client.owner, maker.tasks.get(own_id)
        if known is not None:
            return known.name if known.owner == owner else None
        own = self._of.setdefault(owner, {})
        if len(own) >= MOST_TASKS:
            self._forget(next(iter(own.values())))
        task = Task(maker, own_id, owner, secrets.token_urlsafe(24))
        own[task.name] = maker.tasks[own_id] = task
        return task.name

    def find(self, client: "Client", params: Object) -> Task:
        """The task that a request is about.

        Raises:
            TaskError: this client has none of this id, or its server has ended.
        """
        name = jsonrpc.text(params, "taskId") or ""
        task = self._of.get(client.owner, {}).get(name)
        if task is None:
            raise TaskError("unknown task")
        if task.maker.server is None:
            self._forget(task)
        return task

    def take(self, call: Call, params: Object, picked: "Upstream") -> "tuple[TaskCall, Upstream]":
        """Make of a call one that may be about tasks, and find its server; raises TaskError."""
        fields = {name: getattr(call, name) for name in Call.__struct_fields__}
        taken = TaskCall(**fields, tasks=self)
        if call.method in TASK_REQUESTS:
            task = self.find(call.client, params)
            params["taskId"] = jsonrpc.raw_of(task.own_id)
            taken.bound = task.server
        return taken, taken.server(picked)

    def told(self, upstream: "Upstream", params: Object) -> "Client | None":
        """Who hears of a server's task, under the client's own name of it from now on."""
        task = upstream.maker.tasks.get(jsonrpc.text(params, "taskId") or "")
        if task is None or isinstance(task.owner, str):
            return None
        params["taskId"] = jsonrpc.raw_of(task.name)
        return task.owner

    def left(self, client: "Client") -> None:
        """A client's session ended."""
        for task in self._of.pop(client, {}).values():
            task.maker.tasks.pop(task.own_id, None)

    def _forget(self, task: Task) -> None:
        task.maker.tasks.pop(task.own_id, None)
        self._of[task.owner].pop(task.name, None)


def check_task_request(method: str, meta: Object, *, modern: bool) -> None:
    """Refuse a request about a task that its revision or its sender does not know.

    In 2026-07-28 tasks are an extension, declared with every request (SEP-2663).

    Raises:
        RequestError: it is refused.
    """
    if method not in TASK_METHODS[Era.MODERN if modern else Era.LEGACY]:
        raise RequestError(jsonrpc.METHOD_NOT_FOUND, f"Method not found: {method}")
    capabilities = jsonrpc.nested(meta, META_CAPABILITIES)
    if modern and TASK_EXTENSION not in jsonrpc.nested(capabilities, "extensions"):
        text = f"{method} is for clients that declare the extension {TASK_EXTENSION}"
        needed: object = {"requiredCapabilities": {"extensions": {TASK_EXTENSION: {}}}}
        raise RequestError(jsonrpc.MISSING_CAPABILITY, text, needed)


class TaskCall(Call, kw_only=True):
    """A request whose answer may name tasks.

    Attributes:
        tasks: where they are known.
        bound: the server that alone can answer, where the request is about one of its tasks.
    """

    tasks: Tasks
    bound: "Upstream | None" = None

    def server(self, picked: "Upstream") -> "Upstream":
        """Where it goes: to the one that made the task, else to what was picked; or TaskError."""
        if self.bound is not None and self.bound.lost:
            raise TaskError("the server of this task has ended")
        return self.bound or picked

    def _deliver(self, result: bytes | Raw) -> None:
        try:
            members = jsonrpc.members(result if isinstance(result, Raw) else Raw(result))
            named = self._rename(members)
        except (jsonrpc.DecodeError, TaskError):
            text = f"{self.integration} answered with what is no task of this client's."
            self._fail(jsonrpc.INTERNAL_ERROR, text)
            return
        super()._deliver(jsonrpc.raw_of(members) if named else result)

    def _rename(self, members: Object) -> bool:
        """Put the client's ids in place of the server's; whether there was any."""
        whole = self.method in TASK_REQUESTS or jsonrpc.text(members, "resultType") == "task"
        named = whole and self._rename_in(members)
        for key, inner in (("task", "taskId"), ("_meta", RELATED_TASK)):
            if key not in members or not bytes(members[key]).startswith(b"{"):
                continue
            nested = jsonrpc.nested(members, key)
            if inner == "taskId":
                found = self._rename_in(nested)
            else:
                related = jsonrpc.nested(nested, inner) if inner in nested else {}
                found = self._rename_in(related)
                if found:
                    nested[inner] = jsonrpc.raw_of(related)
            if found:
                members[key], named = jsonrpc.raw_of(nested), True
        return named

    def _rename_in(self, holder: Object) -> bool:
        own_id = jsonrpc.text(holder, "taskId") if "taskId" in holder else None
        if own_id is None:
            return False
        if self.upstream is None or len(own_id) > MOST_ID_CHARS:
            raise TaskError(own_id[:64])
        name = self.tasks.name(self.client, self.upstream.maker, own_id)
        if name is None:
            raise TaskError("another client's")
        holder["taskId"] = jsonrpc.raw_of(name)
        return True
