"""What single clients see: by token, by name, by search; what is hidden is not there."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import gateway_harness as harness
import uvloop
from gateway_harness import Harness, Raw
from mcp import Client

import vsm.core.demand as names
from vsm.gateway.views import View

NARROW_TOKEN = "narrow-token-with-no-meaning"
VIEWS = (
    View("narrow", frozenset({"one"}), ("one__echo", "one__t*", "!one__touch"), token=NARROW_TOKEN),
    View("finder", search=True),
    View("blind", frozenset()),
)


def run(main: Any, views: Sequence[View] = VIEWS) -> None:
    async def wrapped() -> None:
        servers = {"one": harness.echo_legacy("one"), "two": harness.echo_modern("two")}
        async with harness.running(servers, views=views) as gateway:
            await main(gateway)

    uvloop.run(wrapped())


async def seen_as(gateway: Harness, name: str) -> Raw:
    client = await Raw.connect(gateway.socket_path)
    gateway.raws.append(client)
    client.send(method="notifications/vsm/client", params={"name": name})
    await client.initialize()
    return client


def tools_of(answer: dict[str, Any]) -> set[str]:
    return {tool["name"] for tool in answer["result"]["tools"]}


def test_a_view_hides_integrations_tools_prompts_and_resources() -> None:
    async def main(gateway: Harness) -> None:
        whole, narrow = await gateway.raw(), await seen_as(gateway, "narrow")
        everything = tools_of(await whole.request(1, "tools/list"))
        assert {"one__echo", "one__touch", "two__echo"} <= everything
        assert tools_of(await narrow.request(1, "tools/list")) == {"one__echo"}
        for hidden in ("two__echo", "one__touch", "one__die"):
            refused = await narrow.call(hidden, hidden)
            assert refused["error"]["message"] == f"Unknown tool: {hidden}"
            if hidden != "one__die":
                assert "result" in await whole.call(hidden, hidden, text="x", uri="test:x")
        assert "result" in await narrow.call(3, "one__echo", text="x")
        for method in ("prompts/list", "resources/list"):
            key = method.partition("/")[0]
            seen = (await narrow.request(method, method))["result"][key]
            theirs = (await whole.request(method, method))["result"][key]
            assert all(item in theirs for item in seen)
            assert "two" not in json.dumps(seen)

    run(main)


SPELLINGS = (
    b'"name":"two__echo"',
    b'"name":"two__ech\\u006f"',
    b'"name":"one__echo","name":"two__echo"',
    b'"name":"one__echo","\\u006eame":"two__echo"',
    b'"name":"two__echo "',
    b'"name":"TWO__echo"',
    b'"name":"echo"',
    b'"name":"one__echo__two__echo"',
    b'"name":"vsm__call","arguments":{"name":"two__echo"}',
    b'"name":"vsm__call","arguments":{"name":"one__echo","name":"two__echo"}',
    b'"name":"vsm__call","arguments":{"name":"vsm__call","arguments":{"name":"two__echo"}}',
    b'"name":["two__echo"]',
    b'"name":"one__touch"',
)


def test_no_spelling_reaches_what_is_hidden() -> None:
    views = (*VIEWS, View("seeker", frozenset({"one"}), ("!one__touch",), search=True))

    async def main(gateway: Harness) -> None:
        upstream = gateway.gateway.fleet.integrations["two"].upstream
        assert upstream is not None
        before = upstream.asked
        for name in ("narrow", "seeker"):
            client = await seen_as(gateway, name)
            for number, spelling in enumerate(SPELLINGS):
                frame = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{%b}}\n'
                client.writer.write(frame % (number, spelling))
                answer = await client.answer(number)
                assert answer["error"]["code"] == -32602, (name, spelling, answer)
            for number, params in enumerate(
                (
                    {"ref": {"type": "ref/prompt", "name": "two__greet"}},
                    {"ref": {"type": "ref/prompt", "name": "greet"}},
                    {"ref": {"type": "ref/tool", "name": "two__echo", "uri": "two://x"}},
                )
            ):
                argument = {"argument": {"name": "who", "value": ""}}
                await client.request(f"c{number}", "completion/complete", **params, **argument)
            assert "error" in await client.request("p", "prompts/get", name="two__greet")
        assert upstream.asked == before

    run(main, views)


def test_a_token_of_its_own_gives_a_client_its_view_and_no_other_session() -> None:
    async def main(gateway: Harness) -> None:
        async with Client(harness.http_transport(gateway.url, NARROW_TOKEN)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"one__echo"}
        async with Client(harness.http_transport(gateway.url), mode="legacy") as client:
            assert "two__echo" in {tool.name for tool in (await client.list_tools()).tools}
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
        body["params"] = {"protocolVersion": "2025-11-25", "capabilities": {}}
        answer = await _post(gateway, harness.TOKEN, body)
        session = next(
            line.split(": ")[1] for line in answer.lower().splitlines() if "mcp-session-id" in line
        )
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        theirs = await _post(gateway, NARROW_TOKEN, listing, session)
        assert theirs.startswith("HTTP/1.1 404")
        assert (await _post(gateway, "wrong-token-of-some-length", listing)).startswith(
            "HTTP/1.1 401"
        )

    run(main)


async def _post(gateway: Harness, token: str, body: dict[str, Any], session: str = "") -> str:
    host = gateway.url.split("/")[2]
    reader, writer = await asyncio.open_connection(*host.split(":"))
    data = json.dumps(body).encode()
    more = f"mcp-session-id: {session}\r\n" if session else ""
    writer.write(
        f"POST /mcp HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{more}"
        "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        f"connection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer.decode()


def test_a_view_is_chosen_first_and_once() -> None:
    async def main(gateway: Harness) -> None:
        for name, late in (("nobody", False), ("narrow", True)):
            client = await Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            if late:
                await client.initialize()
            client.send(method="notifications/vsm/client", params={"name": name})
            refused = await client.receive()
            assert ("too late" if late else "no client 'nobody'") in refused["error"]["message"]
            assert await client.reader.read() == b""

    run(main)


def test_search_shows_three_tools_and_reaches_all_others() -> None:
    async def main(gateway: Harness) -> None:
        client = await seen_as(gateway, "finder")
        listed = tools_of(await client.request(1, "tools/list"))
        assert listed == {"vsm__search", "vsm__describe", "vsm__call"}
        found = await client.call(2, "vsm__search", query="echo it back", limit=2)
        body = found["result"]["structuredContent"]
        assert len(body["tools"]) == 2
        assert {tool["name"].partition("__")[2] for tool in body["tools"]} == {"echo"}
        described = await client.call(3, "vsm__describe", name="one__echo")
        assert described["result"]["structuredContent"]["tool"]["name"] == "one__echo"
        called = await client.call(4, "vsm__call", name="one__echo", arguments={"text": "hello"})
        assert called["result"] == (await client.call(5, "one__echo", text="hello"))["result"]
        for tool, arguments in (
            ("vsm__call", {"name": "vsm__call"}),
            ("vsm__call", {}),
            ("vsm__call", {"name": "nothing"}),
            ("vsm__describe", {"name": "nothing"}),
            ("vsm__search", {}),
        ):
            assert "error" in await client.call(6, tool, **arguments)
        missed = await client.call(7, "vsm__search", query="teleportation")
        assert missed["result"]["structuredContent"]["tools"] == []
        nobody = gateway.gateway.fleet.accounting.nobody
        assert nobody.outcomes()[names.OUTCOMES[names.UNSERVED]] >= 1

    run(main)


def test_search_over_http_in_the_modern_era_and_as_default() -> None:
    async def main(gateway: Harness) -> None:
        async with Client(gateway_transport(gateway)) as client:
            assert len((await client.list_tools()).tools) == 3
            arguments = {"name": "two__echo", "arguments": {"text": "hello"}}
            result = await client.call_tool("vsm__call", arguments)
            assert not result.is_error
            found = await client.call_tool("vsm__search", {"query": "echo"})
            assert found.structured_content is not None
            assert found.structured_content["tools"]

    def gateway_transport(gateway: Harness) -> Any:
        return harness.http_transport(gateway.url)

    run(main, (View("default", search=True),))


def test_control_without_a_view_search_tools_are_not_there() -> None:
    async def main(gateway: Harness) -> None:
        client = await gateway.raw()
        assert "error" in await client.call(1, "vsm__search", query="echo")
        blind = await seen_as(gateway, "blind")
        assert tools_of(await blind.request(1, "tools/list")) == set()

    run(main)
