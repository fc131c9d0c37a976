"""Questions that servers ask while a client waits, where the two speak different eras."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import gateway_harness as harness
import httpx2
import pytest
import uvloop
from mcp_types import ElicitResult

from vsm.gateway import bridge
from vsm.gateway.views import View

META = "io.modelcontextprotocol/"
ENVELOPE = {
    META + "protocolVersion": "2026-07-28",
    META + "clientCapabilities": {"elicitation": {}, "sampling": {}},
}
QUESTION = {"message": "name?", "requestedSchema": {"type": "object", "properties": {}}}
ASK = {"method": "elicitation/create", "params": QUESTION}
ANSWER = {"action": "accept", "content": {"name": "Ada"}}


async def elicited(_context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"ok": True, "to": params.message})


@pytest.mark.parametrize("transport", ["unix", "http", "stdio"])
def test_a_legacy_servers_question_reaches_a_modern_client(transport: str) -> None:
    async def main() -> None:
        async with (
            harness.running({"old": harness.echo_legacy("old")}) as gateway,
            gateway.client(transport, mode="2026-07-28", elicitation_callback=elicited) as c,
        ):
            result = await c.call_tool("old__ask", ASK)
            said = json.loads(result.content[0].text)  # type: ignore[union-attr]
        assert said["content"] == {"ok": True, "to": "name?"}

    asyncio.run(main())


@pytest.mark.parametrize("transport", ["unix", "http", "stdio"])
def test_a_modern_servers_question_reaches_a_legacy_client(transport: str) -> None:
    async def main() -> None:
        async with (
            harness.running({"new": harness.echo_modern("new")}) as gateway,
            gateway.client(transport, mode="legacy", elicitation_callback=elicited) as c,
        ):
            result = await c.call_tool("new__question", {})
            state, responses = json.loads(result.content[0].text)  # type: ignore[union-attr]
        assert state == "state-1"
        assert responses["q"]["content"] == {"ok": True, "to": "sure?"}

    asyncio.run(main())


class Modern:
    """A modern client that writes its frames itself."""

    def __init__(self, raw: harness.Raw, gateway: harness.Harness) -> None:
        self.raw = raw
        self.gateway = gateway
        self._ids = 0

    async def call(self, tool: str, arguments: dict[str, Any], **members: Any) -> dict[str, Any]:
        self._ids += 1
        params = {"name": tool, "arguments": arguments, "_meta": ENVELOPE, **members}
        return await self.raw.request(self._ids, "tools/call", **params)

    async def asked(self, tool: str = "old__ask", arguments: Any = None) -> dict[str, Any]:
        result = dict((await self.call(tool, arguments or ASK))["result"])
        assert result["resultType"] == "input_required"
        return result


def with_modern(test: Callable[[Modern], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with harness.running({"old": harness.echo_legacy("old")}) as gateway:
            raw = await harness.Raw.connect(gateway.socket_path)
            gateway.raws.append(raw)
            await test(Modern(raw, gateway))

    uvloop.run(main())


def replies(result: dict[str, Any], response: Any = ANSWER) -> dict[str, Any]:
    """The members by which a client comes back to what it was asked."""
    responses = dict.fromkeys(result["inputRequests"], response)
    return {"requestState": result["requestState"], "inputResponses": responses}


def said(answer: dict[str, Any]) -> Any:
    assert answer["result"]["resultType"] == "complete"
    return json.loads(answer["result"]["content"][0]["text"])


def test_the_question_arrives_as_the_server_asked_it() -> None:
    async def main(client: Modern) -> None:
        result = await client.asked()
        assert list(result["inputRequests"].values()) == [ASK]
        reordered = dict(reversed(list(ASK.items())))
        answer = await client.call("old__ask", reordered, **replies(result))
        assert said(answer) == ANSWER

    with_modern(main)


def test_a_state_is_good_once() -> None:
    async def main(client: Modern) -> None:
        result = await client.asked()
        assert said(await client.call("old__ask", ASK, **replies(result))) == ANSWER
        again = await client.call("old__ask", ASK, **replies(result))
        assert again["error"]["code"] == -32602
        assert "was used before" in again["error"]["message"]

    with_modern(main)


@pytest.mark.parametrize("change", ["flipped", "cut", "foreign", "not text"])
def test_a_changed_state_is_refused_and_the_true_one_still_works(change: str) -> None:
    async def main(client: Modern) -> None:
        result = await client.asked()
        state = result["requestState"]
        middle = len(state) // 2
        other = "A" if state[middle] != "A" else "B"
        bad: Any = {
            "flipped": state[:middle] + other + state[middle + 1 :],
            "cut": state[:-4],
            "foreign": "round-1",
            "not text": {"a": 1},
        }[change]
        refused = await client.call("old__ask", ASK, **{**replies(result), "requestState": bad})
        assert refused["error"]["code"] == -32602
        assert "requestState" in refused["error"]["message"]
        assert said(await client.call("old__ask", ASK, **replies(result))) == ANSWER

    with_modern(main)


def test_a_state_serves_no_other_request_than_its_own() -> None:
    async def main(client: Modern) -> None:
        result = await client.asked()
        for tool, arguments in (("old__ask", {**ASK, "more": 1}), ("old__echo", ASK)):
            refused = await client.call(tool, arguments, **replies(result))
            assert "belongs to another request" in refused["error"]["message"]
        assert said(await client.call("old__ask", ASK, **replies(result))) == ANSWER

    with_modern(main)


def test_what_is_left_unanswered_is_asked_again() -> None:
    async def main(client: Modern) -> None:
        first = await client.asked()
        nothing = {"requestState": first["requestState"], "inputResponses": {}}
        second = (await client.call("old__ask", ASK, **nothing))["result"]
        assert second["inputRequests"] == first["inputRequests"]
        assert second["requestState"] != first["requestState"]
        stale = await client.call("old__ask", ASK, **replies(first))
        assert "was used before" in stale["error"]["message"]
        no_object = await client.call("old__ask", ASK, **replies(second, "Ada"))
        assert no_object["error"]["code"] == -32602
        assert said(await client.call("old__ask", ASK, **replies(second))) == ANSWER

    with_modern(main)


def test_a_state_is_good_for_nobody_but_the_client_that_got_it() -> None:
    async def main(client: Modern) -> None:
        result = await client.asked()
        thief = Modern(await harness.Raw.connect(client.gateway.socket_path), client.gateway)
        client.gateway.raws.append(thief.raw)
        stolen = await thief.call("old__ask", ASK, **replies(result, {"action": "decline"}))
        assert "belongs to another client" in stolen["error"]["message"]
        assert stolen["error"]["code"] == -32602
        assert said(await client.call("old__ask", ASK, **replies(result))) == ANSWER

    with_modern(main)


def test_what_a_client_is_asked_does_not_tell_how_often_others_were_asked() -> None:
    async def main(client: Modern) -> None:
        gateway = client.gateway
        for _ in range(2):
            result = await client.asked()
            assert list(result["inputRequests"]) == ["vsm-1"]
            assert said(await client.call("old__ask", ASK, **replies(result))) == ANSWER
        await gateway.start("new", harness.echo_modern("new"))
        await gateway.ready()
        for tool, arguments in (("old__ask", ASK), ("new__question", {})) * 2:
            raw = await gateway.raw(elicitation={"form": {}})
            raw.send(id=1, method="tools/call", params={"name": tool, "arguments": arguments})
            while "id" not in (question := await raw.receive()):
                pass
            assert (question["method"], question["id"]) == ("elicitation/create", "vsm-1")
            raw.send(id=question["id"], result=ANSWER)
            assert "result" in await raw.answer(1)

    with_modern(main)


def test_over_http_a_state_is_good_for_the_view_that_got_it() -> None:
    async def main() -> None:
        token = "narrow-token-with-no-meaning"
        views = (View("narrow", frozenset({"old"}), token=token),)
        servers = {"old": harness.echo_legacy("old")}
        async with (
            harness.running(servers, views=views) as gateway,
            httpx2.AsyncClient(timeout=60) as http,
        ):

            async def call(shown: str, **members: Any) -> dict[str, Any]:
                params = {"name": "old__ask", "arguments": ASK, "_meta": ENVELOPE, **members}
                headers = {
                    "authorization": f"Bearer {shown}",
                    "accept": "application/json, text/event-stream",
                    "mcp-protocol-version": "2026-07-28",
                    "mcp-method": "tools/call",
                    "mcp-name": "old__ask",
                }
                body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
                answer = await http.post(gateway.url, json=body, headers=headers)
                return dict(answer.json())

            result = (await call(token))["result"]
            stolen = await call(harness.TOKEN, **replies(result))
            assert "belongs to another client" in stolen["error"]["message"]
            assert said(await call(token, **replies(result))) == ANSWER

    uvloop.run(main())


def test_a_state_of_another_integration_tool_gateway_or_spelling_is_refused() -> None:
    async def main() -> None:
        servers = {name: harness.echo_legacy(name) for name in ("old", "other")}
        async with harness.running(servers) as gateway, harness.running(servers) as successor:
            raw = await harness.Raw.connect(gateway.socket_path)
            gateway.raws.append(raw)
            client = Modern(raw, gateway)
            result = await client.asked()
            token = result["requestState"]
            for tool, arguments in (
                ("other__ask", ASK),
                ("old__echo", ASK),
                ("old__ask", {**ASK, "more": 1}),
            ):
                refused = await client.call(tool, arguments, **replies(result))
                assert "belongs to another request" in refused["error"]["message"]
            later = Modern(await harness.Raw.connect(successor.socket_path), successor)
            successor.raws.append(later.raw)
            refused = await later.call("old__ask", ASK, **replies(result))
            assert "before the gateway was started again" in refused["error"]["message"]
            last = token.rstrip("=")
            spellings = [
                token[:-1],
                token + "=",
                token[:40] + token[41:],
                token.lower(),
                "",
                "vsm1.",
            ]
            spellings += [
                last[:-1] + chr(ord(last[-1]) ^ 1) + token[len(last) :],
                token * 20,
                5,
                None,
            ]
            for spelling in spellings:
                members = {**replies(result), "requestState": spelling}
                assert (await client.call("old__ask", ASK, **members))["error"]["code"] == -32602
            assert said(await client.call("old__ask", ASK, **replies(result))) == ANSWER
            again = await client.call("old__ask", ASK, **replies(result))
            assert "was used before" in again["error"]["message"]

    uvloop.run(main())


def test_a_state_ends_in_time_and_the_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "QUESTION_TIMEOUT_S", 0.2)

    async def main(client: Modern) -> None:
        result = await client.asked()
        upstream = client.gateway.gateway.fleet.integrations["old"].upstream
        assert upstream is not None
        async with asyncio.timeout(20):
            while upstream.in_flight:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.01)
        late = await client.call("old__ask", ASK, **replies(result))
        assert "has expired" in late["error"]["message"]
        assert said(await client.call("old__echo", {}))["server"] == "old"

    with_modern(main)


def test_a_server_that_dies_while_its_client_thinks_is_reported_to_it() -> None:
    async def main(client: Modern) -> None:
        result = await client.asked()
        client.gateway.kill("old-1")
        await client.gateway.reported.wait_unfit("old-1")
        await client.gateway.attach("old", harness.echo_legacy("old"))
        await client.gateway.ready()
        error = (await client.call("old__ask", ASK, **replies(result)))["error"]
        assert "it may have run" in error["message"]

    with_modern(main)


def test_a_client_that_leaves_takes_its_parked_calls_with_it() -> None:
    async def main(client: Modern) -> None:
        result = await client.asked()
        other = Modern(await harness.Raw.connect(client.gateway.socket_path), client.gateway)
        client.gateway.raws.append(other.raw)
        await client.raw.close()
        upstream = client.gateway.gateway.fleet.integrations["old"].upstream
        assert upstream is not None
        async with asyncio.timeout(20):
            while upstream.in_flight:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.01)
        error = (await other.call("old__ask", ASK, **replies(result)))["error"]
        assert "has ended" in error["message"]

    with_modern(main)


def test_clients_that_do_not_offer_it_are_not_asked() -> None:
    async def main(client: Modern) -> None:
        for ask in (
            {"method": "roots/list", "params": {}},
            {"method": "elicitation/create", "params": {**QUESTION, "mode": "url", "url": "x:"}},
        ):
            refused = said(await client.call("old__ask", ask))
            assert "does not offer" in refused["message"]

    with_modern(main)


def test_with_two_clients_in_flight_neither_is_asked_for_the_other() -> None:
    async def main(client: Modern) -> None:
        first = await client.asked()
        other = Modern(await harness.Raw.connect(client.gateway.socket_path), client.gateway)
        client.gateway.raws.append(other.raw)
        assert "several clients" in said(await other.call("old__ask", ASK))["message"]
        assert said(await client.call("old__ask", ASK, **replies(first))) == ANSWER

    with_modern(main)


def test_a_legacy_client_that_refuses_fails_the_call_with_its_reason() -> None:
    async def main() -> None:
        async with harness.running({"new": harness.echo_modern("new")}) as gateway:
            raw = await gateway.raw(elicitation={})
            raw.send(id=1, method="tools/call", params={"name": "new__question"})
            asked = await raw.receive()
            assert asked["method"] == "elicitation/create"
            raw.send(id=asked["id"], error={"code": -1, "message": "not now"})
            assert "not now" in (await raw.answer(1))["error"]["message"]
            mute = await gateway.raw()
            error = (await mute.call(1, "new__question"))["error"]
            assert "does not offer elicitation/create" in error["message"]

    uvloop.run(main())


def test_a_legacy_client_may_cancel_while_it_is_asked() -> None:
    async def main() -> None:
        async with harness.running({"new": harness.echo_modern("new")}) as gateway:
            raw = await gateway.raw(elicitation={})
            raw.send(id=1, method="tools/call", params={"name": "new__question"})
            asked = await raw.receive()
            raw.send(method="notifications/cancelled", params={"requestId": 1})
            raw.send(id=asked["id"], result=ANSWER)
            assert "result" in await raw.call(2, "new__echo")
            assert raw.early == []

    uvloop.run(main())
