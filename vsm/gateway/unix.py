"""The unix socket that local clients connect to: newline-delimited JSON-RPC, both eras.

Owns the listener that it is given and every connection on it. Only the owner's uid and root
may connect (SO_PEERCRED). Runs in S1's event loop; what it reads is a client's.
"""

import asyncio
import select
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, Final, cast

from vsm.gateway.call import LARGE_BYTES
from vsm.gateway.client import Client
from vsm.gateway.router import Router
from vsm.protocol import jsonrpc
from vsm.protocol.framing import LineSplitter, OversizedFrame
from vsm.protocol.jsonrpc import DecodeError, Message

VIEW_METHOD: Final = "notifications/vsm/client"
MAX_FRAME_BYTES: Final = 8 * 1024 * 1024
MAX_CONNECTIONS: Final = 1024
FRAMES_PER_TURN: Final = 32
HIGH_WATER_BYTES: Final = 1024 * 1024
MAX_UNREAD_BYTES: Final = 64 * 1024 * 1024
UNREAD_LIMIT_S: Final = 30.0
_UCRED = struct.Struct("=iII")  # struct ucred, unix(7)


class UnixClient(Client):
    """A client on the unix socket."""

    def __init__(self, protocol: "UnixProtocol") -> None:
        super().__init__()
        self._protocol = protocol

    @property
    def can_answer(self) -> bool:
        """Whether it has not ended its side."""
        return not self._protocol.ending

    def ask_session(self, frame: bytes) -> bool:
        """Send a question that belongs to no request."""
        self._protocol.ask(frame)
        return True

    def notify(self, frame: bytes) -> None:
        """Send a notification that belongs to no request."""
        self._protocol.notify(frame)


class UnixProtocol(asyncio.Protocol):
    """One connection; every request's sink, since one stream carries everything."""

    def __init__(self, listener: "UnixListener") -> None:
        self._listener = listener
        self._router = listener.router
        self._loop = asyncio.get_running_loop()
        self._splitter = LineSplitter(MAX_FRAME_BYTES)
        self._client = UnixClient(self)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._behind: asyncio.TimerHandle | None = None
        self._untouched = True
        self._left: Iterator[bytes | OversizedFrame] | None = None
        self._hang_up: select.epoll | None = None
        self._refused = False
        self.ending = False
        self.writable = True
        self.dropped = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, if its peer may have one."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._listener.admit(self):
            self._transport.abort()
            return
        self._client.identity = f"unix:{self.peer_uid}"
        self._client.view = self._router.views.default
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self._router.join(self._client)

    @property
    def peer_uid(self) -> int:
        """The uid of the process at the other end."""
        return _peer_uid(cast("asyncio.Transport", self._transport).get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._take(self._splitter.feed(data))

    def _take(self, frames: Iterator[bytes | OversizedFrame]) -> None:
        """Take some frames; the others wait for the next turn, so that every client has one."""
        for number, frame in enumerate(frames, 1):
            self._take_one(frame)
            if self._refused:
                return
            if number == FRAMES_PER_TURN:
                self._left = frames
                cast("asyncio.Transport", self._transport).pause_reading()
                self._loop.call_soon(self._go_on)
                return

    def _go_on(self) -> None:
        """Take what is left, then read again; not from a client that is behind with reading."""
        transport = cast("asyncio.Transport", self._transport)
        if not self.writable or transport.is_closing():
            return
        left, self._left = self._left, None
        if left is not None:
            self._take(left)
        if self._left is None and self.writable and not transport.is_closing():
            transport.resume_reading()

    def _take_one(self, frame: bytes | OversizedFrame) -> None:
        if type(frame) is not bytes:
            size = cast("OversizedFrame", frame).size_bytes
            text = f"the message has {size} bytes, more than {MAX_FRAME_BYTES}"
            self.answer(jsonrpc.failure(b"null", jsonrpc.INVALID_REQUEST, text))
            return
        try:
            message = jsonrpc.decode(frame if frame.find(b"\r") < 0 else jsonrpc.compact(frame))
        except DecodeError as error:
            self.answer(jsonrpc.failure(b"null", error.code, error.message))
            return
        if message.method == VIEW_METHOD:
            self._choose_view(message)
        else:
            self._untouched = False
            self._router.receive(self._client, self, message)

    def _choose_view(self, message: Message) -> None:
        """A connection says, first of all and once, which of the configured clients it is."""
        try:
            name = jsonrpc.text(jsonrpc.members(message.params), "name") or ""
        except DecodeError:
            name = ""
        view = self._router.views.named(name)
        if view is None or not self._untouched:
            text = f"no client {name[:64]!r} is configured" if self._untouched else "too late"
            self.answer(jsonrpc.failure(b"null", jsonrpc.INVALID_REQUEST, text))
            self._refused = True  # what came with it is not served either
            self.close()
            return
        self._untouched = False
        self._client.view = view

    def answer(self, frame: bytes) -> None:
        """Send an answer with what else is sent in this turn of the loop."""
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(frame)
        if self.ending:
            self.close_when_answered()

    def ask(self, frame: bytes) -> None:
        """Send a question in the same way."""
        self.answer(frame)

    def notify(self, frame: bytes) -> None:
        """Send a notification; dropped while the client is behind with reading."""
        if self.writable:
            self.answer(frame)
        else:
            self.dropped += 1

    def _flush(self) -> None:
        transport, out = self._transport, self._out
        if transport is None or transport.is_closing():
            out.clear()
            return
        if len(out) == 1 and len(out[0]) > LARGE_BYTES:
            transport.writelines((out[0], b"\n"))  # without a copy
        else:
            out.append(b"")
            transport.write(b"\n".join(out))
        out.clear()
        if not self.writable and transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            transport.abort()

    def pause_writing(self) -> None:
        """The client is behind: take nothing more from it, and not for ever."""
        self.writable = False
        transport = cast("asyncio.Transport", self._transport)
        transport.pause_reading()
        self._behind = self._loop.call_later(UNREAD_LIMIT_S, transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.writable = True
        if self._behind is not None:
            self._behind.cancel()
            self._behind = None
        self._go_on()

    def eof_received(self) -> bool:
        """The client sends no more; it gets the answers to what it asked, then the end.

        One that closed its whole end reads none either: it is gone.
        """
        sock = cast("asyncio.Transport", self._transport).get_extra_info("socket")
        if _hung_up(sock):
            return False
        self.ending = True
        self._watch_hang_up(sock)
        self._router.hears_only(self._client)
        self._loop.call_soon(self.close_when_answered)
        return True

    def _watch_hang_up(self, sock: socket.socket) -> None:
        """Nobody reads from it any more, so that only this tells when it closes its other end."""
        self._hang_up = select.epoll()
        self._hang_up.register(sock.fileno(), 0)
        transport = cast("asyncio.Transport", self._transport)
        self._loop.add_reader(self._hang_up.fileno(), transport.abort)

    def close_when_answered(self) -> None:
        """Close once nothing is owed to a client that sends no more."""
        if not self._router.is_busy(self._client):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The connection is gone."""
        if self._hang_up is not None:
            self._loop.remove_reader(self._hang_up.fileno())
            self._hang_up.close()
        if self._behind is not None:
            self._behind.cancel()
        self._listener.connections.discard(self)
        self._router.leave(self._client, "the client disconnected")

    def close(self) -> None:
        """Close the connection once what is queued is written."""
        if self._transport is not None:
            self._flush()
            self._transport.close()


def _hung_up(sock: socket.socket) -> bool:
    """Whether the peer has closed both directions, rather than only the one towards us."""
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return bool(poll.poll(0))


def _peer_uid(sock: socket.socket) -> int:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])


class UnixListener:
    """The listener and its connections.

    Args:
        sock: a listening unix socket, whose ownership goes over.
    """

    def __init__(self, router: Router, sock: socket.socket) -> None:
        self.router = router
        self.connections: set[UnixProtocol] = set()
        self.refused = 0
        self._sock = sock
        # Who called listen(2): the supervisor, whatever uid this process has changed to.
        self._owners = {0, _peer_uid(sock)}
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        # From Python 3.13 on the loop would stat and unlink the file, which is the supervisor's.
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await loop.create_unix_server(
            lambda: UnixProtocol(self), sock=self._sock, **keep
        )

    def admit(self, protocol: UnixProtocol) -> bool:
        """Whether a connection may stay: the owner's or root's, and not one too many."""
        allowed = protocol.peer_uid in self._owners and len(self.connections) < MAX_CONNECTIONS
        if allowed:
            self.connections.add(protocol)
        else:
            self.refused += 1
        return allowed

    def stop(self) -> None:
        """Accept nothing more and close what is open."""
        if self._server is not None:
            self._server.close()
        for protocol in list(self.connections):
            protocol.close()
