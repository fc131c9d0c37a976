"""Clients on the socket of a real vsm, each a session with a server of its own."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from gateway_harness import Raw
from supervised import BOUND_S, Row, Vsm, rows, state

Scenario = Callable[["Sessions"], Coroutine[Any, Any, None]]


class Sessions:
    """Clients on the socket, closed at the end."""

    def __init__(self, vsm: Vsm, stack: AsyncExitStack) -> None:
        self.vsm = vsm
        self._stack = stack
        self._calls = 0

    async def open(self) -> Raw:
        client = await Raw.connect(str(self.vsm.folder / "run/mcp.sock"))
        self._stack.push_async_callback(client.close)
        await client.initialize()
        return client

    async def call(self, client: Raw, tool: str, **arguments: Any) -> dict[str, Any]:
        """The whole answer."""
        self._calls += 1
        return await client.call(self._calls, tool, **arguments)

    async def note(self, client: Raw, integration: str, text: str, **more: Any) -> dict[str, Any]:
        """What the server says of itself once it has noted the text."""
        answer = await self.call(client, f"{integration}__note", text=text, **more)
        assert "result" in answer, answer
        told: dict[str, Any] = json.loads(answer["result"]["content"][0]["text"])
        return told

    def instances(self, name: str) -> dict[str, Row]:
        return {key: row for key, row in rows(self.vsm).items() if _is_of(name, row)}

    def catalogue(self, name: str) -> list[dict[str, Any]]:
        """What the gateway says of the instances."""
        answer = state(self.vsm, "system1")
        found: list[dict[str, Any]] = answer["integrations"][name]["instances"]
        return found

    async def wait(self, holds: Callable[[], bool]) -> None:
        """Without keeping clients from being served."""
        async with asyncio.timeout(BOUND_S):
            while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - other processes' doing
                await asyncio.sleep(0.02)

    async def wait_spare(self, name: str) -> None:
        await self.wait(lambda: any(one["state"] == "spare" for one in self.catalogue(name)))

    async def wait_only(self, name: str, count: int) -> None:
        await self.wait(lambda: len(self.instances(name)) == count)


def _is_of(name: str, row: Row) -> bool:
    return row["kind"] == "instance" and row["integration"] == name


def play(vsm: Vsm, scenario: Scenario) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            await scenario(Sessions(vsm, stack))

    asyncio.run(run())
