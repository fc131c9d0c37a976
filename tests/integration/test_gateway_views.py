"""What single clients see: by token, by name, by search; what is hidden is not there."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import gateway_harness as harness
import pytest
import uvloop
from gateway_harness import Harness, Raw
from mcp import Client
from mcp_types import ElicitResult

import vsm.core.demand as names
from vsm.gateway.views import View
from vsm.protocol.jsonrpc import raw_of

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


async def seen_as(gateway: Harness, name: str, era: str = "legacy") -> Raw:
    client = await Raw.connect(gateway.socket_path)
    gateway.raws.append(client)
    client.send(method="notifications/vsm/client", params={"name": name})
    if era == "legacy":
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
            ref = {"type": "ref/prompt", "name": "two__greet"}
            argument = {"name": "who", "value": ""}
            unknown = await client.request("u", "completion/complete", ref=ref, argument=argument)
            assert unknown["error"]["message"] == "Unknown prompt: two__greet"
        assert upstream.asked == before

    run(main, views)


LIST_CHANGES = ["notifications/resources/list_changed", "notifications/tools/list_changed"]
SHARED = "mem://shared"  # both claim it
ONLY = (View("first", frozenset({"one"})), View("second", frozenset({"two"}), token=NARROW_TOKEN))
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def run_twins(main: Any, views: Sequence[View] = ONLY) -> None:
    async def wrapped() -> None:
        servers = {name: harness.echo_legacy(name, "twin") for name in ("one", "two")}
        async with harness.running(servers, views=views) as gateway:
            await main(gateway)

    uvloop.run(wrapped())


async def read_by(client: Raw, uri: str = SHARED, **more: Any) -> str:
    """Who served a resource, or the error's text."""
    answer = await client.request(f"read {uri} {more}", "resources/read", uri=uri, **more)
    if "error" in answer:
        return str(answer["error"]["message"])
    return str(answer["result"]["contents"][0]["text"]).partition(":")[0]


def test_a_uri_of_two_goes_to_the_one_in_the_clients_view() -> None:
    async def main(gateway: Harness) -> None:
        for view, name in (("first", "one"), ("second", "two")):
            client = await seen_as(gateway, view)
            for era in ({}, {"_meta": META}):
                listed = await client.request(f"l{len(era)}", "resources/list", **era)
                uris = [item["uri"] for item in listed["result"]["resources"]]
                assert uris == [f"mem://{name}/one", SHARED]
                assert await read_by(client, **era) == name
                assert await read_by(client, "any://thing", **era) == name
                of_template = {"type": "ref/resource", "uri": "any://{path}"}
                completed = await client.request(
                    f"c{len(era)}",
                    "completion/complete",
                    ref=of_template,
                    argument={"name": "path", "value": ""},
                    **era,
                )
                assert completed["result"]["completion"]["values"] == ["uri", name]
            assert "result" in await client.request("s", "resources/subscribe", uri=SHARED)
        async with Client(harness.http_transport(gateway.url, NARROW_TOKEN)) as modern:
            read = await modern.read_resource(SHARED)
            assert read.contents[0].text.startswith("two: ")  # type: ignore[union-attr]

    run_twins(main)


def test_only_the_one_in_the_view_tells_of_it() -> None:
    async def main(gateway: Harness) -> None:
        whole = await gateway.raw()
        for era in ("legacy", "modern"):
            client = await seen_as(gateway, "second", era)
            meta = {"_meta": META} if era == "modern" else {}
            if era == "legacy":
                await client.request("s", "resources/subscribe", uri=SHARED)
            else:
                wanted = {"resourceSubscriptions": [SHARED, "nothing://offers/this"]}
                client.send(
                    id="l",
                    method="subscriptions/listen",
                    params={"_meta": META, "notifications": wanted},
                )
                heard = await client.receive()
                assert heard["method"] == "notifications/subscriptions/acknowledged"
                honoured = heard["params"]["notifications"]["resourceSubscriptions"]
                assert honoured == [SHARED, "nothing://offers/this"]  # two serves all others too
            for name in ("one", "two"):
                await whole.call(f"{era} {name}", f"{name}__touch", uri=SHARED)
            told = await client.receive()
            assert told["method"] == "notifications/resources/updated"
            assert await read_by(client, **meta) == "two"
            assert client.early == []

    run_twins(main)


def test_a_uri_of_two_in_one_view_is_refused_with_their_names_and_the_remedy() -> None:
    views = (View("both", frozenset({"one", "two"})),)

    async def main(gateway: Harness) -> None:
        await gateway.start("three", harness.echo_legacy("three"))
        await gateway.ready()
        client = await seen_as(gateway, "both")
        for era in ({}, {"_meta": META}):
            listed = await client.request(f"l{len(era)}", "resources/list", **era)
            assert SHARED not in json.dumps(listed)
            refused = await read_by(client, **era)
            assert "claimed by one, two," in refused
            assert "[clients.NAME]" in refused
            assert "three" not in refused
        assert "error" in await client.request("s", "resources/subscribe", uri=SHARED)
        wanted = {"resourceSubscriptions": [SHARED, "mem://one/one", "none://of/them"]}
        listen = {"_meta": META, "notifications": wanted}
        client.send(id="l", method="subscriptions/listen", params=listen)
        heard = (await client.receive())["params"]["notifications"]
        assert heard == {"resourceSubscriptions": ["mem://one/one"]}

    run_twins(main, views)


def test_whoever_listed_a_uri_to_a_client_serves_it_though_another_claims_it_later() -> None:
    async def main(gateway: Harness) -> None:
        uri = "mem://contested"
        early, late, other = await gateway.raw(), await gateway.raw(), await gateway.raw()

        async def claim(name: str, *uris: str) -> None:
            assert "result" in await other.call(f"{name} {uris}", f"{name}__claim", uris=uris)
            while True:
                told = await other.receive()
                if told["method"] == "notifications/resources/list_changed":
                    return

        await claim("one", uri)
        assert uri in json.dumps(await early.request("l", "resources/list"))
        await claim("two", uri)
        assert "no integration offers" in await read_by(early)  # both gave it up for the other
        assert await read_by(early, uri) == "one"
        assert "result" in await early.request("s", "resources/subscribe", uri=uri)
        relisted = await early.request("again", "resources/list")
        assert uri not in json.dumps(relisted)
        assert await read_by(early, uri) == "one"
        assert "claimed by one, two" in await read_by(late, uri)
        assert uri not in json.dumps(await late.request("l", "resources/list"))
        assert "claimed by one, two" in await read_by(late, uri)
        await claim("one", "mem://else")
        assert await read_by(early, uri) == await read_by(late, uri) == "two"

    run_twins(main)


def test_a_client_hears_of_no_list_and_no_log_of_what_it_does_not_see() -> None:
    async def main(gateway: Harness) -> None:
        first, listening = (
            await seen_as(gateway, "first"),
            await seen_as(gateway, "first", "modern"),
        )
        wanted = {"toolsListChanged": True, "resourcesListChanged": True}
        params = {"_meta": META, "notifications": wanted}
        listening.send(id="listen", method="subscriptions/listen", params=params)
        assert (await listening.receive())["method"].endswith("acknowledged")
        whole = await gateway.raw()
        for number, name in enumerate(("two", "one")):
            await whole.call(f"c{number}", f"{name}__change")
            await whole.call(f"r{number}", f"{name}__claim", uris=[f"mem://new/{name}"])
            for _ in range(2):
                while (await whole.receive()).get("method") not in LIST_CHANGES:
                    pass
        for client, meta in ((first, {}), (listening, {"_meta": META})):
            assert "result" in await client.request("last", "tools/list", **meta)
            heard = [message["method"] for message in client.early]
            assert sorted(heard) == LIST_CHANGES

    run_twins(main)


def test_a_log_message_outside_calls_is_told_to_nobody_who_does_not_see_its_server() -> None:
    async def main(gateway: Harness) -> None:
        first = await seen_as(gateway, "first")
        await first.request("level", "logging/setLevel", level="debug")
        relay = gateway.gateway.router.relay
        for name, heard in (("two", 0), ("one", 1)):
            upstream = gateway.gateway.fleet.integrations[name].upstream
            assert upstream is not None
            said = {"level": raw_of("error"), "data": raw_of("x")}
            relay.told(upstream, "notifications/message", said)
            assert "result" in await first.request(name, "ping")
            assert len([m for m in first.early if m["method"] == "notifications/message"]) == heard

    run_twins(main)


def test_an_unknown_request_goes_to_the_only_integration_that_a_client_sees() -> None:
    async def main(gateway: Harness) -> None:
        whole, first = await gateway.raw(), await seen_as(gateway, "first")
        assert (await whole.request(1, "x/novel", n=1))["error"]["code"] == -32601
        assert (await first.request(1, "x/novel", n=1))["result"] == {"novel": {"n": 1}}
        two = gateway.gateway.fleet.integrations["two"]
        assert two.totals["calls"] == 0

    run_twins(main)


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


@pytest.mark.parametrize("transport", ["unix", "http"])
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_a_call_by_search_has_progress_questions_and_cancellation(
    transport: str, mode: str
) -> None:
    async def elicited(_context: Any, _params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"ok": True})

    async def main() -> None:
        servers = {"old": harness.echo_legacy("old"), "new": harness.echo_modern("new")}
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
        question = {"message": "sure?", "requestedSchema": schema}
        asks = {"old": "old__ask", "new": "new__question"}
        searching = harness.running(servers, views=[View("default", search=True)])
        async with (
            searching as gateway,
            gateway.client(transport, mode=mode, elicitation_callback=elicited) as c,
        ):
            for server in servers:
                steps: list[float] = []

                async def stepped(done: float, *_: Any, steps: list[float] = steps) -> None:
                    steps.append(done)

                def by_search(tool: str, **arguments: Any) -> dict[str, Any]:
                    return {"name": tool, "arguments": arguments}

                progress = by_search(f"{server}__progress")
                await c.call_tool("vsm__call", progress, progress_callback=stepped)
                assert steps == [0, 1, 2]
                asked = by_search(asks[server], method="elicitation/create", params=question)
                answer = await c.call_tool("vsm__call", asked)
                assert '"ok": true' in answer.content[0].text  # type: ignore[union-attr]
                slow = by_search(f"{server}__slow", seconds=600)
                call = asyncio.ensure_future(c.call_tool("vsm__call", slow))
                upstream = gateway.gateway.fleet.integrations[server].upstream
                assert upstream is not None
                async with asyncio.timeout(20):
                    while not upstream.calls():  # noqa: ASYNC110 - no event tells of it
                        await asyncio.sleep(0)
                    call.cancel()
                    while upstream.calls():  # noqa: ASYNC110 - the same
                        await asyncio.sleep(0)

    asyncio.run(main())
