"""vsm's own tools: what it is, can do and lacks, for models that use it.

Owns their descriptions and the way of one call: the supervisor is asked, and its answer becomes
the tool's result. They change nothing and are no demand on an integration, so they are not
counted. Runs in S1's event loop.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import Raw

from vsm.gateway.call import Sink
from vsm.protocol import envelope, jsonrpc
from vsm.protocol.catalogue import Surface

if TYPE_CHECKING:
    from vsm.gateway.client import Client

OWN: Final = "vsm"
"""Their integration, so to speak; no configured one may have its name or its prefix."""
MAX_ASKED: Final = 16
_MARK = "Text that begins with '> ' was written by a server or a client, not by vsm."
_DESCRIPTIONS: Final = {
    "status": f"Which servers and systems run now, and how well each is confined. {_MARK}",
    "variety": "What clients ask for against what is answered well, in bits, with intervals, or "
    f"why there is not enough evidence for a figure. {_MARK}",
    "capabilities": "Each server with its number of tools, the share of calls that it answered "
    "well with its 95 % interval, and its latency; null where there is not enough evidence.",
    "limitations": "What vsm cannot do now: servers that are away and why, demand that nobody "
    f"serves, what its systems lack. {_MARK}",
    "explain_decision": "Why vsm decided what it decided: rule, inputs, alternatives, and what "
    f"came of it. The newest, or those that `about` names. {_MARK}",
    "reflect": "How often each thing that clients ask for is answered well, with intervals; what "
    "happens more often than it used to; how often decisions turned out well; or why there is not "
    f"enough evidence. {_MARK}",
    "predictions": "What is expected to be asked for next, with intervals, and how well such "
    f"forecasts came true (Brier score, errors, coverage). {_MARK}",
    "events": f"What happened lately: the newest, or those that `about` names. {_MARK}",
}
_ABOUT: Final = {
    "explain_decision": "a decision's number, a rule such as 'policy.*', or whom it concerned",
    "events": "a kind of event such as 'worker.*', or a worker's or an integration's name",
}
MOST_ABOUT: Final = 128

Consult: TypeAlias = Callable[[str, str], Awaitable[dict[str, Any] | None]]


class OwnTools:
    """The tools and their calls.

    Args:
        consult: asks the supervisor; None when it does not answer.
    """

    def __init__(self, consult: Consult) -> None:
        self._consult = consult
        self._asked: set[asyncio.Task[None]] = set()
        tools = [_tool(name, description) for name, description in _DESCRIPTIONS.items()]
        self.surface = Surface(OWN, {"tools/list": tools})

    def call(
        self,
        client: "Client",
        sink: Sink,
        id_bytes: bytes,
        name: str,
        params: jsonrpc.Object,
        *,
        modern: bool,
    ) -> None:
        """Answer a tools/call of one of them, soon."""
        about = jsonrpc.text(jsonrpc.nested(params, "arguments"), "about") or ""
        if len(self._asked) >= MAX_ASKED:
            text = f"{MAX_ASKED} calls of vsm's own tools are in flight already. Try again."
            sink.answer(jsonrpc.failure(id_bytes, jsonrpc.UNAVAILABLE, text))
            return
        client.owed += 1
        task = asyncio.get_running_loop().create_task(
            self._answer(client, sink, id_bytes, (name, about[:MOST_ABOUT]), modern=modern)
        )
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(
        self,
        client: "Client",
        sink: Sink,
        id_bytes: bytes,
        question: tuple[str, str],
        *,
        modern: bool,
    ) -> None:
        body = await self._consult(*question)
        client.owed -= 1
        result = _result(body) if body is not None else _failed()
        if modern:
            result = envelope.result_for_modern(Raw(result), cacheable=False)
        sink.answer(jsonrpc.answer(id_bytes, result))

    def close(self) -> None:
        """Forget what is in flight."""
        for task in self._asked:
            task.cancel()


def _tool(name: str, description: str) -> jsonrpc.Object:
    about: dict[str, Any] = {}
    if name in _ABOUT:
        about["about"] = {"type": "string", "maxLength": MOST_ABOUT, "description": _ABOUT[name]}
    tool: dict[str, Any] = {
        "name": name,
        "description": description,
        "inputSchema": {"type": "object", "properties": about, "additionalProperties": False},
        "annotations": {"readOnlyHint": True, "openWorldHint": False},
    }
    return {key: jsonrpc.raw_of(value) for key, value in tool.items()}


def _result(body: dict[str, Any]) -> bytes:
    content = [{"type": "text", "text": jsonrpc.encode(body).decode()}]
    return jsonrpc.encode({"content": content, "structuredContent": body, "isError": False})


def _failed() -> bytes:
    content = [{"type": "text", "text": "vsm's supervisor did not answer in time. Try again."}]
    return jsonrpc.encode({"content": content, "isError": True})
