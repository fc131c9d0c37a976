"""What legacy servers ask outside any call: who may be asked, and who is never."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvloop
from gateway_harness import TOKEN, Harness, Raw, echo_legacy, running

from vsm.core.instance_demand import Terms
from vsm.gateway.client import MAX_ASKED
from vsm.gateway.integration import Settings

SESSION = Terms(kind="session", most=4)
ROOTS = {"roots": [{"uri": "file:///of/this/client"}]}
CHANGED = "notifications/roots/list_changed"
REFUSED = "no client has a call in flight, so none can be asked"


def own(harness: Harness, terms: Terms = SESSION) -> None:
    harness.gateway.add(Settings(name="own", prefix="own", terms=terms))
    harness.gateway.fleet.availability("own", "ready", "")


async def begin(harness: Harness, client: Raw, number: int) -> None:
    """Give a client a server of its own."""
    called = asyncio.create_task(client.call(f"first {number}", "own__echo"))
    await harness.attach("own", echo_legacy("own", "roots"), instance=number)
    assert "result" in await called


async def said(client: Raw, name: str, least: int) -> list[Any]:
    """What a server was answered outside calls, once it was so often."""
    answer = await client.call(f"said {name} {least}", f"{name}__said", least=least)
    found: list[Any] = json.loads(answer["result"]["content"][0]["text"])
    return found


async def outside(client: Raw, name: str, method: str, file: Path) -> Any:
    """What a server is told that asks when its call is answered; nothing is in flight then."""
    await client.call(str(file), f"{name}__afterwards", method=method, file=str(file))
    return await written(file)


async def written(file: Path) -> Any:
    async with asyncio.timeout(60):
        while (text := content(file)) is None:  # noqa: ASYNC110 - a server's file tells nobody
            await asyncio.sleep(0.01)
    return json.loads(text)


def content(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.exists() else None


async def asked(client: Raw) -> dict[str, Any]:
    """The next question."""
    while "id" not in (message := await client.receive()) or "method" not in message:
        pass
    return message


def test_a_sessions_own_server_asks_that_session_for_its_roots_and_no_other() -> None:
    async def main() -> None:
        async with running(ready=False) as harness:
            own(harness)
            first, second = await harness.raw(roots={}), await harness.raw(roots={})
            for number, client in enumerate((first, second), 1):
                await begin(harness, client, number)
                question = await asked(client)  # it is told that it may ask from now on
                assert question["method"] == "roots/list"
                roots = {"roots": [{"uri": f"file:///{number}"}]}
                client.send(id=question["id"], result=roots)
                assert await said(client, "own", 1) == [roots]
            first.send(method=CHANGED)
            question = await asked(first)
            first.send(id=question["id"], error={"code": -1, "message": "not now"})
            assert (await said(first, "own", 2))[1] == {"code": -1, "message": "not now"}
            assert await said(second, "own", 1) == [{"roots": [{"uri": "file:///2"}]}]
            assert [m for m in second.early if m.get("method") == "roots/list"] == []

    uvloop.run(main())


@pytest.mark.parametrize("method", ["sampling/createMessage", "elicitation/create"])
def test_what_a_person_would_have_to_answer_is_not_asked_outside_a_call(
    method: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with running(ready=False) as harness:
            own(harness)
            client = await harness.raw(sampling={}, elicitation={"form": {}})
            await begin(harness, client, 1)
            refused = await outside(client, "own", method, tmp_path / "said")
            assert refused["message"] == REFUSED
            assert [m for m in client.early if m.get("method") == method] == []

    uvloop.run(main())


def test_a_server_that_others_share_learns_nobodys_roots(tmp_path: Path) -> None:
    async def main() -> None:
        async with running({"shared": echo_legacy("shared", "roots")}) as harness:
            client = await harness.raw(roots={"listChanged": True})
            client.send(method=CHANGED)
            refused = await outside(client, "shared", "roots/list", tmp_path / "said")
            assert refused["message"] == REFUSED
            assert await outside(client, "shared", "ping", tmp_path / "pinged") == {}
            assert await said(client, "shared", 0) == []

    uvloop.run(main())


def test_who_does_not_offer_roots_or_listens_to_nothing_is_not_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(ready=False) as harness, httpx2.AsyncClient(timeout=60) as http:
            own(harness)
            client = await harness.raw()
            await begin(harness, client, 1)
            refused = await outside(client, "own", "roots/list", tmp_path / "raw")
            assert "does not offer" in refused["message"]
            headers = {
                "authorization": f"Bearer {TOKEN}",
                "accept": "application/json, text/event-stream",
            }

            async def post(number: int, method: str, **params: Any) -> httpx2.Response:
                body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                return await http.post(harness.url, headers=headers, json=body)

            offers = {"protocolVersion": "2025-11-25", "capabilities": {"roots": {}}}
            opened = await post(1, "initialize", **offers)
            headers["mcp-session-id"] = opened.headers["mcp-session-id"]
            called = asyncio.create_task(post(2, "tools/call", name="own__echo"))
            await harness.attach("own", echo_legacy("own"), instance=2)
            assert "result" in (await called).text
            arguments = {"method": "roots/list", "file": str(tmp_path / "http")}
            await post(3, "tools/call", name="own__afterwards", arguments=arguments)
            assert "no stream open" in (await written(tmp_path / "http"))["message"]

    uvloop.run(main())


def test_questions_of_servers_that_are_gone_take_nobodys_place(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(ready=False) as harness:
            own(harness)
            client = await harness.raw(roots={})
            (known,) = harness.gateway.router.clients
            await begin(harness, client, 1)
            client.send(id=(await asked(client))["id"], result=ROOTS)
            for number in range(MAX_ASKED):
                arguments = {"method": "roots/list", "file": str(tmp_path / "never")}
                await client.call(number, "own__afterwards", **arguments)
                await asked(client)
            assert len(known.asked) == MAX_ASKED
            full = await outside(client, "own", "roots/list", tmp_path / "full")
            assert "too many questions" in full["message"]
            (worker,) = harness.servers
            harness.gateway.fleet.detach(worker, "it was killed")
            harness.kill(worker)
            lost = await client.call("lost", "own__echo")
            assert "its state" in lost["error"]["message"]
            await begin(harness, client, 2)
            assert (await asked(client))["method"] == "roots/list"
            assert len(known.asked) == 1

    uvloop.run(main())
