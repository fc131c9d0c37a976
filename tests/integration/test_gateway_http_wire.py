"""HTTP/1.1 as bytes: order, old clients, bodies in parts, and clients that take their time."""

import asyncio
import json
import tracemalloc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import gateway_harness as harness
import pytest
import uvloop

from vsm.gateway import http, http_connection

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Wire:
    """A TCP connection to the gateway."""

    def __init__(self, gateway: harness.Harness) -> None:
        self.gateway = gateway
        parts = urlsplit(gateway.url)
        self.host, self.port = str(parts.hostname), int(parts.port or 0)

    async def open(self) -> "Wire":
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    def head(
        self, length: str, *more: str, method: str = "tools/call", version: str = "1.1"
    ) -> bytes:
        lines = [
            f"POST /mcp HTTP/{version}",
            f"host: {self.host}:{self.port}",
            f"authorization: Bearer {harness.TOKEN}",
            "content-type: application/json",
            "mcp-protocol-version: 2026-07-28",
            f"mcp-method: {method}",
            *(["mcp-name: old__echo"] if method == "tools/call" else []),
            length,
            *more,
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def echo(self, number: int, *more: str, version: str = "1.1") -> bytes:
        params = {"name": "old__echo", "arguments": {"n": number}, "_meta": META}
        message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
        body = json.dumps(message).encode()
        return self.head(f"content-length: {len(body)}", *more, version=version) + body

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(20):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:-2])
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split()[1]), headers, body

    async def number(self) -> int:
        """Which call the next answer is to."""
        status, _, body = await self.answer()
        assert status == 200
        text = json.loads(body)["result"]["content"][0]["text"]
        return int(json.loads(text)["arguments"]["n"])

    async def ended(self) -> bool:
        async with asyncio.timeout(20):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True

    def close(self) -> None:
        self.writer.transport.abort()


def with_wire(test: Callable[[Wire], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with harness.running({"old": harness.echo_legacy("old")}) as gateway:
            wire = await Wire(gateway).open()
            try:
                await test(wire)
            finally:
                wire.close()

    uvloop.run(main())


def test_requests_in_one_write_are_answered_in_order() -> None:
    async def main(wire: Wire) -> None:
        wire.writer.write(b"".join(wire.echo(n) for n in range(5)))
        assert [await wire.number() for _ in range(5)] == [0, 1, 2, 3, 4]

    with_wire(main)


def test_more_requests_at_once_than_are_kept_cut_the_client_off() -> None:
    async def main(wire: Wire) -> None:
        wire.writer.write(b"".join(wire.echo(n) for n in range(20)))
        assert await wire.ended()

    with_wire(main)


def test_an_old_client_is_answered_and_the_connection_ends() -> None:
    async def main(wire: Wire) -> None:
        wire.writer.write(wire.echo(1, version="1.0"))
        assert await wire.number() == 1
        assert await wire.ended()

    with_wire(main)


def test_a_wish_for_another_protocol_is_refused_and_the_connection_ends() -> None:
    async def main(wire: Wire) -> None:
        wire.writer.write(wire.echo(1, "connection: upgrade", "upgrade: h2c"))
        assert (await wire.answer())[0] == 400
        assert await wire.ended()

    with_wire(main)


def test_a_body_in_chunks_byte_by_byte_is_one_body() -> None:
    async def main(wire: Wire) -> None:
        body = wire.echo(7).partition(b"\r\n\r\n")[2]
        parts = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        for byte in wire.head("transfer-encoding: chunked") + parts:
            wire.writer.write(bytes([byte]))
        assert await wire.number() == 7

    with_wire(main)


def test_a_body_in_very_many_parts_takes_no_more_room_than_in_one() -> None:
    async def main(wire: Wire) -> None:
        body = wire.echo(7).partition(b"\r\n\r\n")[2] + b" " * 400_000
        parts = b"".join(b"2\r\n%b\r\n" % body[n : n + 2] for n in range(0, len(body) - 1, 2))
        sent = wire.head("transfer-encoding: chunked") + parts + b"0\r\n\r\n"
        tracemalloc.start()
        try:
            wire.writer.write(sent)
            assert await wire.number() == 7
            assert tracemalloc.get_traced_memory()[1] < 6 * len(body)
        finally:
            tracemalloc.stop()

    with_wire(main)


def test_a_client_that_waits_for_leave_to_send_gets_it() -> None:
    async def main(wire: Wire) -> None:
        head, _, body = wire.echo(7, "expect: 100-continue").partition(b"\r\n\r\n")
        wire.writer.write(head + b"\r\n\r\n")
        assert (await wire.answer())[0] == 100
        wire.writer.write(body)
        assert await wire.number() == 7

    with_wire(main)


@pytest.mark.parametrize(
    "bad",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"nonsense\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
def test_what_is_no_http_ends_the_connection(bad: bytes) -> None:
    async def main(wire: Wire) -> None:
        wire.writer.write(bad)
        async with asyncio.timeout(20):
            said = await wire.reader.read()
        assert not said or said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403"))

    with_wire(main)


def test_two_hosts_in_one_request_are_refused() -> None:
    async def main(wire: Wire) -> None:
        wire.writer.write(wire.echo(1, f"host: {wire.host}:{wire.port}"))
        assert (await wire.answer())[0] == 403

    with_wire(main)


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a body"])
def test_a_client_that_dawdles_is_cut_off_and_others_are_served(
    sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "HEADER_LIMIT_S", 1)  # the other's too
    monkeypatch.setattr(http_connection, "BODY_LIMIT_S", 1)
    monkeypatch.setattr(http, "SWEEP_INTERVAL_S", 0.05)

    async def main(wire: Wire) -> None:
        whole = wire.echo(1)
        cut = {"nothing": 0, "half a head": 40, "half a body": len(whole) - 10}[sent]
        wire.writer.write(whole[:cut])
        other = await Wire(wire.gateway).open()
        other.writer.write(other.echo(2))
        assert await other.number() == 2
        assert await wire.ended()
        other.close()

    with_wire(main)


def test_one_connection_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 1)

    async def main(wire: Wire) -> None:
        wire.writer.write(wire.echo(1))
        assert await wire.number() == 1
        other = await Wire(wire.gateway).open()
        assert (await other.answer())[0] == 503
        other.close()
        wire.writer.write(wire.echo(2))
        assert await wire.number() == 2

    with_wire(main)


def test_a_client_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "UNREAD_LIMIT_S", 0.2)
    monkeypatch.setattr(http, "SWEEP_INTERVAL_S", 0.05)

    async def main() -> None:
        servers = {"old": harness.echo_legacy("old")}
        async with harness.running(servers, max_frame_bytes=64 * 2**20) as gateway:
            greedy = await Wire(gateway).open()
            greedy.writer.transport.pause_reading()  # type: ignore[attr-defined]
            params = {"name": "old__big", "arguments": {"bytes": 20_000_000}, "_meta": META}
            message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            body = json.dumps(message).encode()
            head = greedy.head(f"content-length: {len(body)}").replace(b"old__echo", b"old__big")
            greedy.writer.write(head + body)
            listener = gateway.gateway._listeners[1]
            assert isinstance(listener, http.HttpListener)
            async with asyncio.timeout(20):
                while not listener._connections:  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.01)
                while listener._connections:  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0.01)
            greedy.close()

    uvloop.run(main())


@pytest.mark.parametrize("shown", [harness.TOKEN, "a wrong one"])
@pytest.mark.parametrize("line_end", [b"\r\n", b""])
def test_trailers_without_end_are_cut_off(shown: str, line_end: bytes) -> None:
    async def main(wire: Wire) -> None:
        head = wire.head("transfer-encoding: chunked").replace(
            harness.TOKEN.encode(), shown.encode()
        )
        wire.writer.write(head + b"2\r\n{}\r\n0\r\nx: ")
        with suppress(ConnectionError):
            for number in range(1024):
                wire.writer.write(b"y" * 16_384 + line_end + (b"x-%d: " % number) * bool(line_end))
                await wire.writer.drain()
        assert wire.reader.at_eof() or await wire.ended()

    with_wire(main)


def test_trailers_say_nothing() -> None:
    async def main(wire: Wire) -> None:
        body = wire.echo(7).partition(b"\r\n\r\n")[2]
        trailers = b"mcp-name: old__slow\r\nmcp-session-id: another\r\nhost: evil.example\r\n"
        chunks = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)
        wire.writer.write(wire.head("transfer-encoding: chunked") + chunks + wire.echo(8))
        assert [await wire.number(), await wire.number()] == [7, 8]

    with_wire(main)


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("content-length: {n}\r\ntransfer-encoding: chunked", 400),
        ("content-length: {n}\r\ncontent-length: 5", 400),
        ("content-length: {n}, {n}", 400),
        ("content-length: +{n}", 400),
        ("transfer-encoding: xchunked", 400),
        ("transfer-encoding: chunked, identity", 400),
        ("transfer-encoding : chunked", 400),
        ("x: y\r\n transfer-encoding: chunked\r\ncontent-length: {n}", 400),
        ("x: a\rb\r\ncontent-length: {n}", 400),
        ("x: a\0b\r\ncontent-length: {n}", 400),
        ("transfer-encoding: gzip, chunked", 501),
    ],
)
def test_a_body_whose_end_two_readers_would_see_differently_is_refused(
    length: str, status: int
) -> None:
    async def main(wire: Wire) -> None:
        body = wire.echo(7).partition(b"\r\n\r\n")[2]
        head = wire.head(length.format(n=len(body)))
        chunked = "transfer-encoding" in length
        wire.writer.write(
            head + (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        )
        assert (await wire.answer())[0] == status

    with_wire(main)


def test_a_second_host_is_not_hidden_by_another_repeated_header() -> None:
    async def main(wire: Wire) -> None:
        for more in (("host: evil.example", "mcp-name: b"), ("mcp-name: b", "host: evil.example")):
            again = f"host: {wire.host}:{wire.port}"
            wire.writer.write(wire.echo(1, more[0], again, more[1]))
            assert (await wire.answer())[0] == 403

    with_wire(main)


def test_an_old_client_that_keeps_its_connection_sees_where_a_stream_ends() -> None:
    async def main(wire: Wire) -> None:
        params = {"name": "old__progress", "arguments": {}, "_meta": {**META, "progressToken": 1}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        body = json.dumps(message).encode()
        head = wire.head(f"content-length: {len(body)}", "connection: keep-alive", version="1.0")
        wire.writer.write(head.replace(b"old__echo", b"old__progress") + body)
        async with asyncio.timeout(20):
            said = await wire.reader.read()
        assert b"notifications/progress" in said
        assert b'"result":' in said

    with_wire(main)


def test_a_request_behind_another_has_all_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "KEEP_ALIVE_S", 0.0)
    monkeypatch.setattr(http, "SWEEP_INTERVAL_S", 0.01)

    async def main(wire: Wire) -> None:
        params = {"name": "old__slow", "arguments": {"seconds": 0.2}, "_meta": META}
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
        body = json.dumps(message).encode()
        slow = wire.head(f"content-length: {len(body)}").replace(b"old__echo", b"old__slow") + body
        wire.writer.write(slow + slow)
        for _ in range(2):
            status, _, answer = await wire.answer()
            assert (status, "result" in json.loads(answer)) == (200, True)

    with_wire(main)
