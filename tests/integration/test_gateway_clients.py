"""The SDK's client through the gateway, over every transport and in both eras."""

import asyncio
import json
from typing import Any

import gateway_harness as harness
import pytest
import uvloop
from mcp import Client

from vsm.gateway.client import MAX_IN_FLIGHT
from vsm.gateway.router import MAX_DEFERRED

TRANSPORTS = ["unix", "http", "stdio"]
MODES = {"auto": "2026-07-28", "legacy": "2025-11-25", "2026-07-28": "2026-07-28"}


def text_of(result: Any) -> str:
    return str(result.content[0].text)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("mode", list(MODES))
def test_everything_of_both_eras_servers_is_served(transport: str, mode: str) -> None:
    async def main() -> None:
        servers = {"old": harness.echo_legacy("old"), "new": harness.echo_modern("new")}
        async with harness.running(servers) as gateway, gateway.client(transport, mode=mode) as c:
            assert c.protocol_version == MODES[mode]
            names = {tool.name for tool in (await c.list_tools()).tools}
            assert {"old__echo", "old__flood", "new__echo", "new__question"} <= names
            for server in servers:
                called = json.loads(text_of(await c.call_tool(f"{server}__echo", {"é": [1]})))
                assert (called["server"], called["arguments"]) == (server, {"é": [1]})
                for uri in (f"mem://{server}/one", f"mem://{server}/by-template"):
                    read = await c.read_resource(uri)
                    assert read.contents[0].text == f"{server}: {uri}"
                prompt = await c.get_prompt(f"{server}__greet")
                assert prompt.messages[0].content.text.startswith(f"{server} greets")
            prompts = {prompt.name for prompt in (await c.list_prompts()).prompts}
            assert prompts == {"old__greet", "new__greet"}
            templates = (await c.list_resource_templates()).resource_templates
            assert len(templates) == 2

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.parametrize("server", ["old", "new"])
def test_progress_reaches_the_client_that_asked_for_it(
    transport: str, mode: str, server: str
) -> None:
    async def main() -> None:
        seen: list[float] = []

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            assert (total, message) == (3, None)
            seen.append(progress)

        servers = {"old": harness.echo_legacy("old"), "new": harness.echo_modern("new")}
        async with harness.running(servers) as gateway, gateway.client(transport, mode=mode) as c:
            await c.call_tool(f"{server}__progress", {}, progress_callback=progressed)
        assert seen == [0, 1, 2]

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_fifty_calls_in_flight_on_several_servers_at_once(transport: str, mode: str) -> None:
    async def main() -> None:
        servers = {
            "a": harness.echo_legacy("a"),
            "b": harness.echo_legacy("b"),
            "m": harness.echo_modern("m"),
        }
        async with harness.running(servers) as gateway, gateway.client(transport, mode=mode) as c:

            async def call(server: str, number: int) -> None:
                arguments = {"n": number, "seconds": 0.05}
                answer = json.loads(text_of(await c.call_tool(f"{server}__slow", arguments)))
                assert (answer["server"], answer["arguments"]["n"]) == (server, number)

            async with asyncio.TaskGroup() as tasks:
                for number in range(50):
                    for server in servers:
                        tasks.create_task(call(server, number))

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("server", ["old", "new"])
def test_a_modern_client_hears_changes_that_it_listens_for(transport: str, server: str) -> None:
    async def main() -> None:
        servers = {"old": harness.echo_legacy("old"), "new": harness.echo_modern("new")}
        uri = f"mem://{server}/one"
        async with harness.running(servers) as gateway, gateway.client(transport) as c:
            wanted = {"tools_list_changed": True, "resource_subscriptions": [uri]}
            async with asyncio.timeout(20), c.listen(**wanted) as heard:
                # The server has taken the subscription before it takes the call behind it.
                await c.call_tool(f"{server}__touch", {"uri": uri})
                event = await anext(aiter(heard))
                assert type(event).__name__ == "ResourceUpdated"
                await c.call_tool(f"{server}__change", {})
                event = await anext(aiter(heard))
                assert type(event).__name__ == "ToolsListChanged"
            names = {tool.name for tool in (await c.list_tools()).tools}
            assert f"{server}__extra0" in names

    asyncio.run(main())


def test_a_modern_servers_question_reaches_a_modern_client() -> None:
    async def main() -> None:
        from mcp_types import ElicitResult

        async def elicited(_context: Any, params: Any) -> ElicitResult:
            assert params.message == "sure?"
            return ElicitResult(action="accept", content={"ok": True})

        async with (
            harness.running({"new": harness.echo_modern("new")}) as gateway,
            gateway.client("unix", elicitation_callback=elicited) as c,
        ):
            state, responses = json.loads(text_of(await c.call_tool("new__question", {})))
        assert state == "state-1"
        assert responses["q"]["content"] == {"ok": True}

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_legacy_servers_question_reaches_the_legacy_client_that_called(transport: str) -> None:
    async def main() -> None:
        from mcp_types import ElicitResult

        async def elicited(_context: Any, params: Any) -> ElicitResult:
            assert params.message == "name?"
            return ElicitResult(action="accept", content={"name": "Ada"})

        async with (
            harness.running({"old": harness.echo_legacy("old")}) as gateway,
            gateway.client(transport, mode="legacy", elicitation_callback=elicited) as c,
        ):
            schema = {"type": "object", "properties": {"name": {"type": "string"}}}
            params = {"message": "name?", "requestedSchema": schema}
            arguments = {"method": "elicitation/create", "params": params}
            said = json.loads(text_of(await c.call_tool("old__ask", arguments)))
        assert said["content"] == {"name": "Ada"}

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_a_question_that_no_client_can_be_asked_is_refused_at_once(mode: str) -> None:
    async def main() -> None:
        async with (
            harness.running({"old": harness.echo_legacy("old")}) as gateway,
            gateway.client("unix", mode=mode) as c,
        ):
            said = json.loads(text_of(await c.call_tool("old__ask", {"method": "roots/list"})))
        assert said["code"] == -32601

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:resources/subscribe is removed")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_legacy_client_hears_of_changed_tools_logs_and_resources(transport: str) -> None:
    async def main() -> None:
        heard: asyncio.Queue[Any] = asyncio.Queue()

        async def on_message(message: Any) -> None:
            heard.put_nowait(message)

        async def until(kind: str) -> None:
            async with asyncio.timeout(20):
                while type(await heard.get()).__name__ != kind:
                    pass

        async with (
            harness.running({"old": harness.echo_legacy("old")}) as gateway,
            gateway.client(transport, mode="legacy", message_handler=on_message) as c,
        ):
            await c.subscribe_resource("mem://old/one")
            await c.call_tool("old__log", {})
            await until("LoggingMessageNotification")
            await c.call_tool("old__touch", {"uri": "mem://old/one"})
            await until("ResourceUpdatedNotification")
            await c.call_tool("old__change", {})
            await until("ToolListChangedNotification")

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_a_cancelled_call_is_cancelled_at_the_server(transport: str, mode: str) -> None:
    async def main() -> None:
        running = harness.running({"old": harness.echo_legacy("old")}, concurrency=1)
        async with running as gateway, gateway.client(transport, mode=mode) as c:
            call = asyncio.ensure_future(c.call_tool("old__slow", {"seconds": 600}))
            upstream = gateway.gateway.fleet.integrations["old"].upstream
            assert upstream is not None
            async with asyncio.timeout(20):
                while not upstream.in_flight:  # noqa: ASYNC110 - the client knows no such event
                    await asyncio.sleep(0)
                call.cancel()
                # The one place is free again only when the first call is forgotten.
                assert "old" in text_of(await c.call_tool("old__echo", {}))

    asyncio.run(main())


def test_one_client_does_not_take_every_place_of_those_who_wait_for_a_start() -> None:
    async def main() -> None:
        servers = {"mute": harness.echo_legacy("mute", "mute")}
        async with harness.running(servers, ready=False) as gateway:
            greedy, other = await gateway.raw(), await gateway.raw()
            for number in range(MAX_DEFERRED + 8):
                greedy.send(id=number, method="tools/call", params={"name": "mute__echo"})
            for number in range(MAX_IN_FLIGHT, MAX_DEFERRED + 8):
                assert "still starting" in (await greedy.answer(number))["error"]["message"]
            other.send(id=1, method="tools/call", params={"name": "mute__echo"})
            await other.request(2, "ping")
            assert not other.early, "it waits"

    asyncio.run(main())


def test_a_client_that_never_lists_can_call_a_server_that_is_still_starting() -> None:
    async def main() -> None:
        servers = {"old": harness.echo_legacy("old")}
        async with harness.running(servers, ready=False) as gateway:
            client: Client = gateway.client("unix")
            async with client as c:
                assert "old" in text_of(await c.call_tool("old__echo", {}))

    asyncio.run(main())


def test_a_modern_client_hears_log_messages_only_where_it_asks_for_them() -> None:
    async def main() -> None:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        wish = {**meta, "io.modelcontextprotocol/logLevel": "info"}
        async with harness.running({"old": harness.echo_legacy("old")}) as gateway:
            client = await harness.Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            client.send(id=1, method="tools/call", params={"name": "old__log", "_meta": meta})
            assert (await client.receive())["id"] == 1
            client.send(id=2, method="tools/call", params={"name": "old__log", "_meta": wish})
            assert (await client.receive())["params"] == {"level": "error", "data": "logged"}
            assert (await client.receive())["id"] == 2

    asyncio.run(main())


def test_every_call_of_every_client_reaches_the_same_process() -> None:
    async def main() -> None:
        servers = {"old": harness.echo_legacy("old"), "new": harness.echo_modern("new")}
        processes: dict[str, set[int]] = {name: set() for name in servers}
        async with harness.running(servers) as gateway:
            for transport in TRANSPORTS:
                for mode in ("legacy", "2026-07-28"):
                    async with gateway.client(transport, mode=mode) as c:
                        for name in (*servers, *servers):
                            called = json.loads(text_of(await c.call_tool(f"{name}__echo", {})))
                            processes[name].add(called["pid"])
            started = {worker.split("-")[0]: one.pid for worker, one in gateway.servers.items()}
        assert processes == {name: {pid} for name, pid in started.items()}

    asyncio.run(main())


def test_what_a_modern_server_tells_is_heard_while_subscriptions_change() -> None:
    async def main() -> None:
        async with harness.running({"new": harness.echo_modern("new")}) as gateway:
            client = await gateway.raw()
            for number in range(3):
                uri = f"mem://new/{number}"
                await client.request(f"on {number}", "resources/subscribe", uri=uri)
            await client.request("off", "resources/unsubscribe", uri="mem://new/0")
            unheard = await client.call("unheard", "new__unheard")
            assert json.loads(unheard["result"]["content"][0]["text"]) == []
            for number in range(3):
                uri = f"mem://new/{number}"
                await client.call(f"touch {number}", "new__touch", uri=uri)
            told = [one["params"]["uri"] for one in client.early]
            assert told == ["mem://new/1", "mem://new/2"], "each is told once"

    uvloop.run(main())
