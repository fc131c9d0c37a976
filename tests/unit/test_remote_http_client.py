"""What the client of remote servers says of a connection that does not come about."""

import asyncio
import socket
import ssl
import struct

import pytest

from vsm.remote.http_client import HttpClient, HttpError, Origin


def test_a_connection_that_is_reset_on_the_way_says_where_the_reason_is() -> None:
    """The egress process resets what it refuses, and a name that does not resolve."""

    async def main() -> str:
        def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            now = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            writer.transport.abort()

        server = await asyncio.start_server(reset, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            origin = Origin("https", "127.0.0.1", port)
            client = HttpClient(origin, ssl.create_default_context())
            with pytest.raises(HttpError) as failed:
                await client._connect()
            return str(failed.value)

    text = asyncio.run(main())
    assert text.startswith("cannot be reached: ")
    assert "`vsm status` of this integration says why, under EGRESS TO" in text


def test_a_connection_is_closed_when_its_taker_is_cancelled_before_its_end() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx")
            await reader.read()
            ended.set()
            writer.close()

        async def take() -> None:
            async with await client.exchange("GET", "/", ()):
                left.set()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with asyncio.timeout(20), server:
            port = server.sockets[0].getsockname()[1]
            client = HttpClient(Origin("http", "127.0.0.1", port), None)
            left = asyncio.Event()
            taking = asyncio.create_task(take())
            await left.wait()
            await asyncio.sleep(0)  # it waits for what is left of the body
            taking.cancel()
            await asyncio.wait([taking])
            assert taking.cancelled()
            await ended.wait()

    asyncio.run(main())


def test_what_a_server_says_unasked_is_no_answer() -> None:
    """As the 408 that says that nothing was asked for too long: alone, or behind an answer."""

    async def main() -> list[int]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await kept.wait()
            writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 1\r\n\r\n!")
            writer.close()

        kept = asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with asyncio.timeout(20), server:
            port = server.sockets[0].getsockname()[1]
            client = HttpClient(Origin("http", "127.0.0.1", port), None)
            async with await client.exchange("GET", "/", ()) as first:
                pass
            (idle,) = client._idle
            kept.set()
            await idle.reader._wait_for_data("read")  # type: ignore[attr-defined]
            async with await client.exchange("GET", "/", ()) as second:
                assert await second.body(9) == b""
            client.close()
            return [first.status, second.status]

    assert asyncio.run(main()) == [200, 200]
