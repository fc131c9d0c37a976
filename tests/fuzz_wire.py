"""Fuzz targets for atheris: what foreign bytes do to the gateway. Run by `scripts/fuzz`.

An input is a choice of target, then chunks behind one byte each that says whose they are. No
exception may leave a callback, nothing that is no message may go out, every call ends, and a
stream of events must not depend on how it is cut.
"""

import asyncio
import json
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import atheris

sys.path[:0] = [str(Path(__file__).parent / "unit"), str(Path(__file__).parents[1])]

with atheris.instrument_imports(include=["vsm"]):
    from test_gateway_fuzz import ASKABLE, ENVELOPE, FIRST_ID, METHODS, Listening, gateway

    from vsm.gateway.http import HttpApplication
    from vsm.gateway.http_connection import Connection
    from vsm.gateway.unix import UnixListener, UnixProtocol
    from vsm.protocol import jsonrpc
    from vsm.protocol.events import EventParser, TooLargeError
    from vsm.protocol.tables import Era

CUT: Final = b"\xfe\xfd"  # between two chunks; no valid UTF-8, so no part of a seed
MOST_EVENT_BYTES: Final = 256


class Ends:
    """The gateway's end of a client's connection; `check` sees what is written."""

    def __init__(self, sock: socket.socket, check: Callable[[bytes], None]) -> None:
        self.sock = sock
        self.check = check
        self.closing = False

    def write(self, data: bytes) -> None:
        self.check(bytes(data))

    def writelines(self, parts: Any) -> None:
        self.check(b"".join(parts))

    def get_extra_info(self, _name: str) -> socket.socket:
        return self.sock

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, *_: int) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Connections:
    """Every connection may stay."""

    def join(self, _connection: Connection) -> bool:
        return True

    def leave(self, _connection: Connection) -> None: ...


def messages(data: bytes) -> None:
    """Lines are messages, whatever was asked."""
    for line in data.splitlines():
        jsonrpc.decode(line)


async def wire(chunks: list[bytes], era: Era, ours: socket.socket, *, http: bool) -> None:
    """A server and a client, in turn, say what the chunks hold."""
    broken: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    router, upstream, other = gateway(era)
    listener = UnixListener(router, ours)
    client: UnixProtocol | Connection
    if http:
        application = HttpApplication(router, token="", hosts=frozenset({b"localhost"}))
        client = Connection(application, Connections())
        ends = Ends(ours, lambda _data: None)
    else:
        client = UnixProtocol(listener)
        ends = Ends(ours, messages)
    client.connection_made(ends)  # type: ignore[arg-type]
    for chunk in chunks:
        whose, rest = chunk[:1], chunk[1:]
        if whose == b"s":
            upstream.intake.data_received(rest)
        elif whose == b".":
            await asyncio.sleep(0)
        elif not ends.closing:
            client.data_received(rest)
    await asyncio.sleep(0)
    client.connection_lost(None)
    leave(router, other)
    if isinstance(client, UnixProtocol):
        assert client._client.in_flight == {}
    upstream.close("done")
    router.stop()
    router._fleet.close("done")
    await asyncio.sleep(0)
    assert broken == [], broken


def leave(router: Any, client: Listening) -> None:
    router.leave(client, "done")
    assert client.in_flight == {}


def events(data: bytes) -> None:
    """The same events, whole and byte by byte, and bounded."""

    def parsed(blocks: list[bytes]) -> list[Any]:
        parser, found = EventParser(MOST_EVENT_BYTES), []
        try:
            for block in blocks:
                found += parser.feed(block)
        except TooLargeError:
            found.append("too large")
        return [*found, parser.last_id, parser.retry_s]

    whole = parsed([data])
    assert whole == parsed([data[n : n + 1] for n in range(len(data))])
    assert all(len(one.data) <= MOST_EVENT_BYTES for one in whole if hasattr(one, "data"))


def one_input(data: bytes) -> None:
    """One input of the fuzzer's."""
    kind, rest = data[:1], data[1:]
    if kind == b"e":
        events(rest)
        return
    era = Era.MODERN if kind in b"mM" else Era.LEGACY
    chunks = [chunk for chunk in rest.split(CUT) if chunk][:64]
    ours, theirs = PAIR
    del theirs
    asyncio.run(wire(chunks, era, ours, http=kind in b"LM" and kind != b""))


PAIR = socket.socketpair()


def seeds(folder: Path) -> None:
    """Inputs that get somewhere, to begin with."""

    def line(**message: Any) -> bytes:
        return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"

    hello = line(
        id=0,
        method="initialize",
        params={"protocolVersion": "2025-11-25", "capabilities": ASKABLE, "clientInfo": {}},
    )
    begun = line(method="notifications/initialized")
    params = {"name": "echo", "uri": "x://1", "arguments": {"a": 1}, "_meta": {"progressToken": 7}}
    modern = {**params, "_meta": ENVELOPE}
    found: list[bytes] = []
    for method in METHODS:
        plain = CUT.join(
            (b"c" + hello, b"c" + begun, b"c" + line(id=1, method=method, params=params))
        )
        found.append(b"l" + plain)
        found.append(b"m" + CUT.join((b"c" + line(id=1, method=method, params=modern), b".")))
        told = line(method=method, params={"progressToken": FIRST_ID, "uri": "x://1"})
        asked = line(id="q", method=method, params={"message": "?", "requestedSchema": {}})
        found.append(b"l" + plain + CUT + b"s" + told + CUT + b"s" + asked)
    call = b"c" + line(id=1, method="tools/call", params=params)
    for result in (
        {"content": []},
        {"resultType": "input_required", "inputRequests": {"q": {"method": "roots/list"}}},
    ):
        answer = b"s" + line(id=FIRST_ID, result=result)
        found.append(b"l" + CUT.join((b"c" + hello, b"c" + begun, call, b".", answer)))
        modern_call = b"c" + line(id=1, method="tools/call", params=modern)
        found.append(b"m" + CUT.join((modern_call, b".", answer)))
    body = hello.strip()
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Accept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n"
    found.append(b"Lc" + head % len(body) + body)
    found.append(b"MsX" + CUT + b"cGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found.append(b"e: x\r\nevent: y\nid: 1\nretry: 5\ndata: {}\n\r\n\ndata\n\n")
    for number, seed in enumerate(found):
        (folder / f"{number:03}").write_bytes(seed)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        seeds(corpus)
        keys = (*METHODS, *ENVELOPE, "jsonrpc", "inputResponses", "requestState", "progressToken")
        quoted = [json.dumps(json.dumps(key)) for key in keys if "\\" not in json.dumps(key)]
        words.write_text("\n".join([*quoted, r'"\xfe\xfd"', r'"\xfe\xfds"', r'"\xfe\xfdc"']) + "\n")
        files = [word for word in sys.argv[1:] if not word.startswith("-")]
        argv = [*sys.argv, *([] if files else [f"-dict={words}", str(corpus)])]
        atheris.Setup(argv, one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
