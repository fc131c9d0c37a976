"""What is told between a client and a legacy server beside calls and answers: nothing is lost."""

import asyncio
import json
import sys
from typing import Any

import httpx2
import pytest
import uvloop
from gateway_harness import SERVERS, TOKEN, Harness, Raw, echo_legacy, running

from vsm.gateway.upstream import Upstream
from vsm.protocol.jsonrpc import Object

META = "io.modelcontextprotocol/"
MODERN = {META + "protocolVersion": "2026-07-28", META + "clientCapabilities": {}}
FORM = {"message": "who?", "requestedSchema": {"type": "object", "properties": {}}}
URL = {"message": "go", "mode": "url", "elicitationId": "e-1", "url": "https://x"}
SAMPLE = {"messages": [], "maxTokens": 1}
TOOLS = [{"name": "t", "inputSchema": {"type": "object"}}]
COMPLETE = "notifications/elicitation/complete"


def remembering() -> list[str]:
    return [sys.executable, "-SI", str(SERVERS / "remembering.py")]


def value(answer: dict[str, Any]) -> Any:
    return json.loads(answer["result"]["content"][0]["text"])


async def heard(client: Raw, method: str, least: int = 1) -> list[Any]:
    """What the server was told, once it was so often; by a client that is in no other call."""
    answer = await client.call(f"heard {method}", "it__heard", method=method, least=least)
    said: list[Any] = value(answer)
    return said


async def told(client: Raw, method: str) -> dict[str, Any]:
    """The next message of a method; what came before it is left out."""
    while (message := await client.receive()).get("method") != method:
        pass
    return message


class Listening:
    """What the gateway was told so far, to wait for what a server says once it has answered.

    Else it may find the next call in flight, and concern that one's client.
    """

    def __init__(self, gateway: Harness) -> None:
        self.relay = gateway.gateway.router.relay
        self.methods: list[str] = []
        self._told = self.relay.told
        self.relay.told = self._heard  # type: ignore[method-assign]

    def _heard(self, upstream: Upstream, method: str, params: Object) -> None:
        self._told(upstream, method, params)
        self.methods.append(method)

    async def tell(self, client: Raw, number: int, **said: Any) -> None:
        """Have the server say it, and wait until that was read."""
        before = len(self.methods)
        await client.call(number, "it__tell", **said)
        async with asyncio.timeout(20):
            while len(self.methods) == before:
                await client.request("a turn of the loop", "ping")


def test_how_far_a_client_is_with_a_question_is_told_to_the_server_that_asked() -> None:
    async def main() -> None:
        servers = {"it": remembering(), "other": remembering()}
        async with running(servers) as gateway:
            client = await gateway.raw(sampling={})
            for server, token in (("it", "same"), ("other", "same"), ("it", 7)):
                params = {**SAMPLE, "_meta": {"progressToken": token, "kept": 1}}
                arguments = {"method": "sampling/createMessage", "params": params}
                call = {"name": f"{server}__ask", "arguments": arguments}
                client.send(id=f"{server} {token}", method="tools/call", params=call)
            asked = [await told(client, "sampling/createMessage") for _ in range(3)]
            tokens = [one["params"]["_meta"]["progressToken"] for one in asked]
            assert len(set(tokens)) == 3, "a client tells by them which question it speaks of"
            assert all(one["params"]["_meta"]["kept"] == 1 for one in asked)
            for token in (*tokens, "same", 7, "vsm-99"):
                params = {"progressToken": token, "progress": 1, "total": 2, "message": str(token)}
                client.send(method="notifications/progress", params=params)
            for one in asked:
                client.send(id=one["id"], result={"role": "assistant"})
            for request in ("it same", "other same", "it 7"):
                assert value(await client.answer(request)) == {"role": "assistant"}
            late = {"progressToken": tokens[0], "progress": 2}
            client.send(method="notifications/progress", params=late)
            both = await heard(client, "notifications/progress", 2)
            assert sorted(map(str, (one["progressToken"] for one in both))) == ["7", "same"]
            assert {one["total"] for one in both} == {2}

    uvloop.run(main())


def test_a_notification_that_is_not_known_reaches_the_only_server_of_the_clients_era() -> None:
    async def main() -> None:
        async with running({"it": remembering()}) as gateway:
            modern = await Raw.connect(gateway.socket_path)
            gateway.raws.append(modern)
            modern.send(method="notifications/x/novel", params={"n": 0})
            await modern.request(1, "server/discover", _meta=MODERN)
            client = await gateway.raw()
            client.send(method='notifications/x","id":1,"y":"', params={})
            client.send(method="notifications/x/novel", params=[1])
            client.send(method="notifications/x/novel", params={"n": 1})
            assert await heard(client, "notifications/x/novel") == [{"n": 1}]
            await gateway.start("other", echo_legacy("other"))
            await gateway.ready()
            client.send(method="notifications/x/novel", params={"n": 2})
            assert await heard(client, "notifications/x/novel") == [{"n": 1}]

    uvloop.run(main())


@pytest.mark.parametrize(
    ("offered", "method", "params", "says"),
    [
        ({"elicitation": {}}, "elicitation/create", FORM, None),
        ({"elicitation": {"form": {}}}, "elicitation/create", FORM, None),
        ({"elicitation": {"form": {}, "url": {}}}, "elicitation/create", URL, None),
        ({"elicitation": {}}, "elicitation/create", URL, "elicitation by URL"),
        ({"elicitation": {"url": {}}}, "elicitation/create", FORM, "elicitation by form"),
        ({"elicitation": {}}, "elicitation/create", {**FORM, "mode": "x"}, "elicitation by x"),
        ({"sampling": {"tools": {}}}, "sampling/createMessage", {**SAMPLE, "tools": TOOLS}, None),
        ({"sampling": {}}, "sampling/createMessage", {**SAMPLE, "tools": TOOLS}, "in sampling"),
        ({"sampling": {}}, "sampling/createMessage", {**SAMPLE, "toolChoice": {}}, "in sampling"),
    ],
)
def test_a_client_is_asked_only_in_the_ways_that_it_offers(
    offered: dict[str, Any], method: str, params: dict[str, Any], says: str | None
) -> None:
    async def main() -> None:
        async with running({"it": remembering()}) as gateway:
            client = await gateway.raw(**offered)
            (greeting,) = await heard(client, "initialize")
            assert greeting["capabilities"]["sampling"]["tools"] == {}
            call = {"name": "it__ask", "arguments": {"method": method, "params": params}}
            client.send(id=1, method="tools/call", params=call)
            if says is None:
                question = await client.receive()
                assert (question["method"], question["params"]) == (method, params)
                client.send(id=question["id"], result={"well": True})
                assert value(await client.answer(1)) == {"well": True}
            else:
                assert says in value(await client.answer(1))["message"]

    uvloop.run(main())


@pytest.mark.parametrize("sent", ["by a question", "by an error"])
def test_who_was_sent_to_a_url_hears_that_it_is_done_when_no_call_waits(sent: str) -> None:
    async def main() -> None:
        async with running({"it": remembering()}) as gateway:
            other = await gateway.raw(elicitation={"url": {}})
            client = await gateway.raw(elicitation={"url": {}})
            if sent == "by a question":
                call = {"method": "elicitation/create", "params": URL}
                client.send(
                    id=1, method="tools/call", params={"name": "it__ask", "arguments": call}
                )
                client.send(id=(await client.receive())["id"], result={"action": "accept"})
                await client.answer(1)
            else:
                answer = await client.call(1, "it__refer", elicitationId="e-1")
                assert answer["error"]["data"]["elicitations"][0]["elicitationId"] == "e-1"
            listening = Listening(gateway)
            for _ in range(2):  # it is told once
                done = {"method": COMPLETE, "params": {"elicitationId": "e-1"}}
                await listening.tell(other, 2, **done)
            stranger = {"method": COMPLETE, "params": {"elicitationId": "e-2"}}
            await listening.tell(other, 3, **stranger)
            assert (await told(client, COMPLETE))["params"] == {"elicitationId": "e-1"}
            await heard(client, "initialize")
            await heard(other, "initialize")
            assert (client.early, other.early) == ([], [])

    uvloop.run(main())


def test_nobody_hears_of_the_url_of_a_client_that_has_left() -> None:
    async def main() -> None:
        async with running({"it": remembering()}) as gateway:
            gone, client = await gateway.raw(), await gateway.raw()
            await gone.call(1, "it__refer", elicitationId="e-1")
            upstream = gateway.gateway.fleet.integrations["it"].upstream
            assert upstream is not None
            await gone.close()
            async with asyncio.timeout(20):
                while gateway.gateway.status()["clients"] > 1:  # noqa: ASYNC110 - none tells of it
                    await asyncio.sleep(0)
            assert upstream.elicitations.done({}) is None
            done = {"method": COMPLETE, "params": {"elicitationId": "e-1"}}
            await Listening(gateway).tell(client, 2, **done)
            await heard(client, "initialize")
            assert client.early == []
            assert not upstream.elicitations._of

    uvloop.run(main())


async def logged(client: Raw, level: str) -> None:
    message = {"method": "notifications/message", "params": {"level": level, "data": level}}
    await client.call(f"tell {level}", "it__tell", **message)


def test_a_log_message_outside_calls_is_heard_from_the_level_on_that_the_client_chose() -> None:
    async def main() -> None:
        async with running({"it": remembering()}) as gateway:
            client = await gateway.raw()
            await logged(client, "debug")
            assert (await told(client, "notifications/message"))["params"]["level"] == "debug"
            await client.request(1, "logging/setLevel", level="error")
            await logged(client, "warning")
            await logged(client, "alert")
            assert (await told(client, "notifications/message"))["params"]["level"] == "alert"

    uvloop.run(main())


def test_a_modern_request_makes_a_legacy_server_tell_as_much_as_it_asks_for() -> None:
    async def main() -> None:
        async with running({"it": remembering()}) as gateway:
            quiet = await gateway.raw()
            await quiet.request(1, "logging/setLevel", level="error")
            headers = {
                "authorization": f"Bearer {TOKEN}",
                "mcp-protocol-version": "2026-07-28",
                "mcp-method": "tools/call",
                "mcp-name": "it__heard",
            }
            for level in ("alert", "info", "warning"):
                arguments = {"method": "logging/setLevel", "least": 1 if level == "alert" else 2}
                params = {"name": "it__heard", "arguments": arguments}
                params["_meta"] = {**MODERN, META + "logLevel": level}
                message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
                async with httpx2.AsyncClient(timeout=20) as client:
                    answer = await client.post(gateway.url, headers=headers, json=message)
                levels = [one["level"] for one in value(answer.json())]
                assert levels == (["error"] if level == "alert" else ["error", "info"])

    uvloop.run(main())


def test_a_question_that_its_server_withdraws_is_withdrawn_from_the_client_that_was_asked() -> None:
    async def main() -> None:
        async with running({"it": remembering(), "other": remembering()}) as gateway:
            client, caller = await gateway.raw(elicitation={}), await gateway.raw()
            asked = []
            for server in ("it", "other"):
                call = {"method": "elicitation/create", "params": FORM}
                params = {"name": f"{server}__ask", "arguments": call}
                client.send(id=server, method="tools/call", params=params)
                asked.append(await client.receive())
            first, second = asked
            question = value(await caller.call(1, "it__asking"))[0]
            gone = {"requestId": question, "reason": "no longer"}
            await caller.call(2, "it__tell", method="notifications/cancelled", params=gone)
            withdrawn = await told(client, "notifications/cancelled")
            assert withdrawn["params"]["requestId"] == first["id"]
            for one in (first, second):
                client.send(id=one["id"], result={"action": one["id"]})
            assert value(await client.answer("other")) == {"action": second["id"]}
            assert value(await caller.call(3, "it__asking")) == [question], "nobody answered it"

    uvloop.run(main())


def test_a_question_that_is_withdrawn_while_a_modern_client_thinks_is_not_answered() -> None:
    async def main() -> None:
        async with running({"it": remembering()}) as gateway:
            client = await Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            other = await gateway.raw()
            meta = {**MODERN, META + "clientCapabilities": {"elicitation": {}}}
            call = {"method": "elicitation/create", "params": FORM}
            params = {"name": "it__ask", "arguments": call, "_meta": meta}
            asked = (await client.request(1, "tools/call", **params))["result"]
            (name,) = asked["inputRequests"]
            (question,) = value(await other.call(1, "it__asking"))
            gone = {"requestId": question}
            await other.call(2, "it__tell", method="notifications/cancelled", params=gone)
            assert value(await other.call(4, "it__asking")) == [question]  # so that was read
            back = {"requestState": asked["requestState"], "inputResponses": {name: {}}}
            client.send(id=2, method="tools/call", params={**params, **back})
            await client.request(3, "server/discover", _meta=MODERN)
            assert value(await other.call(3, "it__asking")) == [question], "nobody answered it"

    uvloop.run(main())
