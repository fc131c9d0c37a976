"""HTTP on loopback: who may ask, what a request must say, sessions, streams and bounds."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import gateway_harness as harness
import httpx2
import pytest
import uvloop

from vsm.gateway import http
from vsm.gateway.http_connection import MAX_BODY_BYTES

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
AUTHORIZED = {
    "authorization": f"Bearer {harness.TOKEN}",
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
}
LEGACY = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t"}}


def rpc(method: str, request_id: Any = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def modern(method: str, name: str | None = None) -> dict[str, str]:
    headers = {**AUTHORIZED, "mcp-protocol-version": "2026-07-28", "mcp-method": method}
    return headers if name is None else {**headers, "mcp-name": name}


@asynccontextmanager
async def served() -> AsyncIterator[tuple[harness.Harness, httpx2.AsyncClient, str]]:
    servers = {"old": harness.echo_legacy("old")}
    async with harness.running(servers) as gateway, httpx2.AsyncClient(timeout=20) as client:
        yield gateway, client, gateway.url


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Basic {harness.TOKEN}"}, 401),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:80"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"accept": "text/html"}, 406),
        ({}, 200),
    ],
)
def test_only_who_belongs_here_is_served(changed: dict[str, str], status: int) -> None:
    async def main() -> None:
        async with served() as (_, client, url):
            headers = {**modern("tools/list"), **changed}
            answer = await client.post(url, headers=headers, json=rpc("tools/list", _meta=META))
            assert answer.status_code == status
            own = {**modern("tools/list"), "origin": url.removesuffix("/mcp")}
            answer = await client.post(url, headers=own, json=rpc("tools/list", _meta=META))
            assert answer.status_code == 200
            health = await client.get(url.replace("/mcp", "/healthz"))
            assert health.json() == {"status": "ok"}

    uvloop.run(main())


@pytest.mark.parametrize(
    ("headers", "message", "status", "code"),
    [
        ({"mcp-method": "tools/list"}, rpc("tools/call", name="x", _meta=META), 400, -32020),
        ({"mcp-protocol-version": "2025-11-25"}, rpc("tools/list", _meta=META), 400, -32020),
        ({"mcp-name": "other"}, rpc("tools/call", name="old__echo", _meta=META), 400, -32020),
        ({}, rpc("tools/list", _meta={}), 400, -32602),
        ({}, rpc("tools/list"), 400, -32602),
        ({}, rpc("nonsense", _meta=META), 404, -32601),
        ({}, rpc("initialize", _meta=META), 404, -32601),
        ({}, rpc("tools/call", name="nobody__x", _meta=META), 400, -32602),
        ({}, {"jsonrpc": "2.0", "id": 1, "result": {}}, 400, -32600),
        ({}, [rpc("tools/list", _meta=META)], 400, -32600),
    ],
)
def test_a_modern_request_that_contradicts_itself_is_refused(
    headers: dict[str, str], message: Any, status: int, code: int
) -> None:
    async def main() -> None:
        async with served() as (_, client, url):
            method = message.get("method", "x") if isinstance(message, dict) else "tools/list"
            name = message["params"].get("name") if "params" in message else None
            sent = {**modern(method, name), **headers}
            answer = await client.post(url, headers=sent, json=message)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert "mcp-session-id" not in answer.headers

    uvloop.run(main())


def test_an_unknown_version_is_told_the_served_ones() -> None:
    async def main() -> None:
        async with served() as (_, client, url):
            meta = {**META, "io.modelcontextprotocol/protocolVersion": "2031-01-01"}
            headers = {**modern("tools/list"), "mcp-protocol-version": "2031-01-01"}
            answer = await client.post(url, headers=headers, json=rpc("tools/list", _meta=meta))
            assert answer.status_code == 400
            assert answer.json()["error"]["data"]["supported"] == ["2026-07-28"]

    uvloop.run(main())


def test_a_body_over_several_lines_stays_one_message_for_the_server() -> None:
    async def main() -> None:
        async with served() as (_, client, url):
            message = rpc("tools/call", name="old__echo", arguments={"a": [1]}, _meta=META)
            body = json.dumps(message, indent=2).replace("\n", "\r\n")
            headers = modern("tools/call", "old__echo")
            answer = await client.post(url, headers=headers, content=body)
            text = answer.json()["result"]["content"][0]["text"]
            assert json.loads(text)["arguments"] == {"a": [1]}

    uvloop.run(main())


def test_bodies_headers_and_json_are_bounded() -> None:
    async def main() -> None:
        async with served() as (gateway, client, url):
            headers = modern("tools/list")
            for body, status in (
                (b"{", 400),
                (b"\xff", 400),
                (b"[" * 100_000, 400),
                (b" " * (MAX_BODY_BYTES + 1), 413),
            ):
                answer = await client.post(url, headers=headers, content=body)
                assert answer.status_code == status
            host, port = str(urlsplit(gateway.url).hostname), int(urlsplit(gateway.url).port or 0)
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"POST /mcp HTTP/1.1\r\n")
            try:
                for _ in range(64):
                    writer.write(b"x: " + b"y" * 4096 + b"\r\n")
                    await writer.drain()
                assert await asyncio.wait_for(reader.read(), 20) == b""
            except ConnectionError:
                pass  # cut off while it was still sending
            finally:
                writer.close()

    uvloop.run(main())


def test_a_legacy_session_lives_from_initialize_to_delete() -> None:
    async def main() -> None:
        async with served() as (gateway, client, url):
            answer = await client.post(url, headers=AUTHORIZED, json=rpc("tools/list"))
            assert answer.status_code == 400
            answer = await client.post(
                url, headers=AUTHORIZED, json=rpc("initialize", "i", **LEGACY)
            )
            session = {**AUTHORIZED, "mcp-session-id": answer.headers["mcp-session-id"]}
            note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            assert (await client.post(url, headers=session, json=note)).status_code == 202
            answer = await client.post(url, headers=session, json=rpc("tools/list"))
            assert "old__echo" in {tool["name"] for tool in answer.json()["result"]["tools"]}
            strange = {**session, "mcp-protocol-version": "1999-01-01"}
            answer = await client.post(url, headers=strange, json=rpc("ping"))
            assert answer.status_code == 400
            assert gateway.gateway.status()["clients"] == 1
            assert (await client.delete(url, headers=session)).status_code == 204
            assert gateway.gateway.status()["clients"] == 0
            answer = await client.post(url, headers=session, json=rpc("ping"))
            assert answer.status_code == 404

    uvloop.run(main())


def test_a_session_has_one_stream_and_it_carries_what_belongs_to_no_request() -> None:
    async def main() -> None:
        async with served() as (_, client, url):
            answer = await client.post(url, headers=AUTHORIZED, json=rpc("initialize", **LEGACY))
            session = {**AUTHORIZED, "mcp-session-id": answer.headers["mcp-session-id"]}
            async with client.stream("GET", url, headers=session) as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "id: 0-0"
                assert (await client.get(url, headers=session)).status_code == 409
                call = rpc("tools/call", name="old__change", arguments={})
                await client.post(url, headers=session, json=call)
                async with asyncio.timeout(20):
                    while not (line := await anext(lines)).startswith("data: {"):
                        pass
                assert "notifications/tools/list_changed" in line

    uvloop.run(main())


async def events_until(lines: Any, word: str) -> tuple[list[str], list[str]]:
    """Ids and data of the events up to the one that holds `word`."""
    ids, data = [], []
    async with asyncio.timeout(20):
        async for line in lines:
            if line.startswith("id: "):
                ids.append(line[4:])
            elif line.startswith("data: ") and len(line) > 6:
                data.append(line[6:])
                if word in line:
                    return ids, data
    return ids, data


def test_a_stream_that_broke_off_is_taken_up_where_it_ended() -> None:
    async def main() -> None:
        async with served() as (gateway, client, url):
            answer = await client.post(url, headers=AUTHORIZED, json=rpc("initialize", **LEGACY))
            session = {**AUTHORIZED, "mcp-session-id": answer.headers["mcp-session-id"]}
            meta = {"progressToken": 7}
            call = rpc("tools/call", "p", name="old__progress", arguments={}, _meta=meta)
            async with client.stream("POST", url, headers=session, json=call) as stream:
                ids, seen = await events_until(stream.aiter_lines(), "notifications/progress")
            # The connection is gone; the call goes on, and what it says is kept.
            resumed = {**session, "last-event-id": ids[-1]}
            async with client.stream("GET", url, headers=resumed) as stream:
                assert stream.status_code == 200
                more, rest = await events_until(stream.aiter_lines(), '"id":"p"')
            assert len(ids) == len(set(ids))
            assert not set(more) & set(ids)
            whole = [json.loads(one) for one in [*seen, *rest]]
            progress = [m["params"]["progress"] for m in whole if "method" in m]
            assert progress == sorted(set(progress))
            assert "result" in whole[-1]
            again = {**session, "last-event-id": ids[0]}
            async with client.stream("GET", url, headers=again) as stream:
                _, everything = await events_until(stream.aiter_lines(), '"id":"p"')
            assert [json.loads(one) for one in everything] == whole
            for unknown in ("9-1", "x", "1-99999", "-", "1-1-1"):
                nothing = {**session, "last-event-id": unknown}
                assert (await client.get(url, headers=nothing)).status_code == 404
            stranger = await client.post(url, headers=AUTHORIZED, json=rpc("initialize", **LEGACY))
            theirs = {**AUTHORIZED, "mcp-session-id": stranger.headers["mcp-session-id"]}
            stolen = await client.get(url, headers={**theirs, "last-event-id": ids[-1]})
            assert stolen.status_code == 404
            assert gateway.gateway.status()["clients"] == 2

    uvloop.run(main())


def test_what_came_while_nobody_listened_follows_when_somebody_does() -> None:
    async def main() -> None:
        async with served() as (_, client, url):
            answer = await client.post(url, headers=AUTHORIZED, json=rpc("initialize", **LEGACY))
            session = {**AUTHORIZED, "mcp-session-id": answer.headers["mcp-session-id"]}
            async with client.stream("GET", url, headers=session) as stream:
                assert await anext(stream.aiter_lines()) == "id: 0-0"
            call = rpc("tools/call", name="old__change", arguments={})
            await client.post(url, headers=session, json=call)
            async with asyncio.timeout(20):
                while True:
                    headers = {**session, "last-event-id": "0-0"}
                    async with client.stream("GET", url, headers=headers) as stream:
                        lines = stream.aiter_lines()
                        if await anext(lines, "") == "id: 0-1":
                            break

    uvloop.run(main())


def test_a_list_that_changed_between_two_streams_is_told_on_the_second() -> None:
    async def main() -> None:
        async with served() as (gateway, client, url):
            answer = await client.post(url, headers=AUTHORIZED, json=rpc("initialize", **LEGACY))
            session = {**AUTHORIZED, "mcp-session-id": answer.headers["mcp-session-id"]}
            one = next(iter(gateway.gateway.router.clients))
            async with client.stream("GET", url, headers=session) as stream:
                assert await anext(stream.aiter_lines()) == "id: 0-0"
            async with asyncio.timeout(20):
                while one.hears_of("tools/list"):  # noqa: ASYNC110 - until the end is noticed
                    await asyncio.sleep(0)
            before = gateway.gateway.fleet.catalogue
            await client.post(url, headers=session, json=rpc("tools/call", name="old__change"))
            async with asyncio.timeout(20):
                while gateway.gateway.fleet.catalogue is before:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0)
            async with client.stream("GET", url, headers=session) as stream:
                _, said = await events_until(stream.aiter_lines(), "tools/list_changed")
            assert said

    uvloop.run(main())


def test_an_error_has_its_status_however_long_its_id_is() -> None:
    async def main() -> None:
        async with served() as (_, client, url):
            message = rpc("nonsense", "\x01" * 256, _meta=META)
            answer = await client.post(url, headers=modern("nonsense"), json=message)
            assert answer.status_code == 404

    uvloop.run(main())


def test_a_modern_call_is_cancelled_when_its_connection_closes() -> None:
    async def main() -> None:
        async with served() as (gateway, client, url):
            upstream = gateway.gateway.fleet.integrations["old"].upstream
            assert upstream is not None
            message = rpc("tools/call", name="old__slow", arguments={"seconds": 600}, _meta=META)
            headers = modern("tools/call", "old__slow")
            with pytest.raises(httpx2.TimeoutException):
                await client.post(url, headers=headers, json=message, timeout=0.5)
            async with asyncio.timeout(20):
                while upstream.in_flight:  # noqa: ASYNC110 - the gateway tells nobody
                    await asyncio.sleep(0)

    uvloop.run(main())


def test_a_repeated_routing_header_is_refused() -> None:
    async def main() -> None:
        async with served() as (_, client, url):
            headers = [*modern("tools/list").items(), ("mcp-method", "tools/list")]
            message = rpc("tools/list", _meta=META)
            answer = await client.post(url, headers=headers, json=message)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)

    uvloop.run(main())


def test_the_listener_is_closed_when_the_gateway_stops() -> None:
    async def main() -> None:
        async with served() as (gateway, _, url):
            port = int(urlsplit(url).port or 0)
            await gateway.gateway.stop()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)

    uvloop.run(main())


def test_where_there_is_no_room_the_session_that_nobody_uses_makes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MAX_SESSIONS", 3)

    async def main() -> None:
        async with served() as (_, client, url):

            async def begin() -> tuple[int, dict[str, str]]:
                message = rpc("initialize", **LEGACY)
                answer = await client.post(url, headers=AUTHORIZED, json=message)
                session_id = answer.headers.get("mcp-session-id", "")
                return answer.status_code, {**AUTHORIZED, "mcp-session-id": session_id}

            async def status(session: dict[str, str]) -> int:
                answer = await client.post(url, headers=session, json=rpc("ping"))
                return answer.status_code

            (_, listens), (_, calls), (_, left) = [await begin() for _ in range(3)]
            slow = rpc("tools/call", name="old__slow", arguments={"seconds": 600})
            async with (
                client.stream("GET", url, headers=listens) as stream,
                asyncio.TaskGroup() as tasks,
            ):
                lines = stream.aiter_lines()  # what forgets them closes the stream
                assert await anext(lines) == "id: 0-0"
                calling = tasks.create_task(client.post(url, headers=calls, json=slow))
                assert await status(left) == 200
                assert (await begin())[0] == 503, "it was used a moment ago"
                monkeypatch.setattr(http, "SESSION_SPARED_S", 0.0)
                monkeypatch.setattr(http, "SESSION_IDLE_S", 0.0)
                assert (await begin())[0] == 200
                assert [await status(one) for one in (listens, calls, left)] == [200, 200, 404]
                calling.cancel()

    uvloop.run(main())


@pytest.mark.parametrize("tool", ["old__late", "old__busy"])
def test_a_cancelled_call_of_a_session_keeps_no_connection_open(tool: str) -> None:
    async def main() -> None:
        async with served() as (gateway, client, url):
            answer = await client.post(url, headers=AUTHORIZED, json=rpc("initialize", **LEGACY))
            session = {**AUTHORIZED, "mcp-session-id": answer.headers["mcp-session-id"]}
            call = rpc("tools/call", "c", name=tool, arguments={}, _meta={"progressToken": 1})
            calling = asyncio.create_task(client.post(url, headers=session, json=call))
            upstream = gateway.gateway.fleet.integrations["old"].upstream
            assert upstream is not None
            async with asyncio.timeout(20):
                while not upstream.in_flight:  # noqa: ASYNC110 - the gateway tells nobody
                    await asyncio.sleep(0)
                gone = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
                gone |= {"params": {"requestId": "c"}}  # type: ignore[dict-item]
                assert (await client.post(url, headers=session, json=gone)).status_code == 202
                ended = await calling
            assert '"id":"c"' not in ended.text
            assert not upstream.in_flight
            answer = await client.post(url, headers=session, json=rpc("ping", "c"))
            assert answer.json()["result"] == {}

    uvloop.run(main())


def test_a_handshake_that_fails_leaves_no_session() -> None:
    async def main() -> None:
        async with served() as (gateway, client, url):
            answer = await client.post(url, headers=AUTHORIZED, json=rpc("initialize"))
            assert answer.json()["error"]["code"] == -32602
            assert gateway.gateway.status()["clients"] == 0

    uvloop.run(main())
