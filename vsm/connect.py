"""`vsm connect`: stdin and stdout bridged to the running gateway, line by line.

What a desktop client launches as its MCP server. Standard library only and no event loop, so
that it is there in a few milliseconds. One thread per direction, so each side's slowness holds
back only the other side of its own direction. When vsm goes away, what was in flight is answered
with an error, and the session goes on once vsm is there again (`vsm.core.rejoin`).
"""

import argparse
import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
from typing import Final

from vsm.core.rejoin import Rejoin, RejoinError
from vsm.errors import VsmError

CHUNK_BYTES: Final = 256 * 1024
MOST_LINE_BYTES: Final = 8 * 2**20  # the gateway refuses a longer one, whatever it says
RETRY_INTERVAL_S: Final = 0.05
RECONNECT_S: Final = 60.0
MAX_IN_VAIN: Final = 20
_MILLISECONDS: Final = 1000
_REFUSED: Final = b'{"jsonrpc":"2.0","id":null,"error":'
_VIEW: Final = b'{"jsonrpc":"2.0","method":"notifications/vsm/client","params":{"name":%b}}\n'


class ConnectionLostError(VsmError):
    """The gateway closed the connection while the client still used it."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "connect",
        help="bridge stdio to the running vsm; what a desktop client launches",
        description="Speak MCP on stdin and stdout with the running vsm.",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait up to SECONDS for vsm to be up (default: 0)",
    )
    parser.add_argument(
        "--reconnect",
        type=float,
        default=RECONNECT_S,
        metavar="SECONDS",
        help="when vsm goes away, wait up to SECONDS for it to be back (default: 60; 0: end)",
    )
    parser.add_argument(
        "--client", metavar="NAME", help="see what [clients.NAME] of vsm.toml lets a client see"
    )


def run(args: argparse.Namespace) -> int:
    """Bridge until both sides are done.

    Raises:
        VsmError: no vsm is running, or it closed the connection and did not come back.
    """
    view = b"" if args.client is None else _VIEW % json.dumps(args.client).encode()
    return Bridge(_connect(args.wait), args.reconnect, view).run()


class Bridge:
    """One client's session.

    Args:
        connection: to the gateway. reconnect_s: how long to wait for the next one.
        hello: what each gateway is told before anything of the client.
    """

    def __init__(self, connection: socket.socket, reconnect_s: float, hello: bytes = b"") -> None:
        self._connection = connection
        self._reconnect_s = reconnect_s
        self._hello = hello
        self._session = Rejoin()
        self._open = threading.Condition()  # guards the session and who is connected
        self._connected = True
        self._client_done = threading.Event()
        self._in_vain = 0  # connections that ended before the gateway said anything

    def run(self) -> int:
        """Bridge; returns the exit code."""
        with contextlib.suppress(OSError):  # gone already: receiving says so
            self._connection.sendall(self._hello)
        threading.Thread(target=self._send, daemon=True).start()
        while True:
            self._in_vain += 1
            if self._receive():
                return 0
            with self._open:
                self._connected = False
                owed = bool(self._session.in_flight)
                told = self._session.lost()
            if _gave_up(b"".join(line + b"\n" for line in told)):
                return 0
            if self._client_done.is_set() and not owed:
                return 0
            if self._client_done.is_set() or self._reconnect_s <= 0 or self._in_vain > MAX_IN_VAIN:
                raise _lost()
            self._join_again()

    # ---- from stdin ------------------------------------------------------------------------

    def _send(self) -> None:
        """From stdin to the gateway; the end of stdin closes this direction only."""
        stdin, lines = sys.stdin.fileno(), Lines(MOST_LINE_BYTES)
        buffer = bytearray(CHUNK_BYTES)  # a new one for every read would be mapped and unmapped
        while data := _read(stdin, buffer):
            self._pass(lines.feed(data))
        self._pass(lines.rest())
        with self._open:
            self._client_done.set()
            self._wait_joined()
            try:
                self._connection.shutdown(socket.SHUT_WR)
            except OSError:  # the gateway is gone: the receiving side sees it and says so
                return

    def _pass(self, block: bytes) -> None:
        if not block:
            return
        with self._open:
            self._wait_joined()
            passed = self._session.sent_block(block)
            connection = self._connection
        try:
            connection.sendall(passed)
        except OSError:  # likewise; what was a request is answered with an error
            return

    def _wait_joined(self) -> None:
        while not (self._connected and self._session.joined):
            self._open.wait()

    # ---- to stdout -------------------------------------------------------------------------

    def _receive(self) -> bool:
        """From the gateway to stdout; returns whether it ended because nobody reads stdout."""
        lines, buffer = Lines(), bytearray(CHUNK_BYTES)
        while True:
            try:
                size = self._connection.recv_into(buffer)
            except ConnectionError:
                return False
            if not size:
                return False
            data = bytes(memoryview(buffer)[:size])
            block = lines.feed(data)
            if self._in_vain and self._hello and block.startswith(_REFUSED):
                said = str(json.loads(block.split(b"\n")[0])["error"]["message"])
                raise ConnectionLostError("vsm connect --client", said, "See vsm.toml.")
            self._in_vain = 0
            if block and _gave_up(self._take(block)):
                return True

    def _take(self, block: bytes) -> bytes:
        with self._open:
            waits = not self._session.joined
            try:
                to_client, to_gateway = self._session.received_block(block)
            except RejoinError as error:
                remedy = "Launch it again for a session with the new vsm."
                raise ConnectionLostError("vsm connect", str(error), remedy) from None
            if to_gateway:
                with contextlib.suppress(OSError):  # gone again: receiving says so
                    self._connection.sendall(to_gateway)
            if waits:
                self._open.notify_all()
        return to_client

    # ---- another gateway -------------------------------------------------------------------

    def _join_again(self) -> None:
        """Connect to the next gateway and take the session up there.

        Raises:
            ConnectionLostError: there is none in time, or nobody needs one.
        """
        self._connection.close()
        time.sleep(RETRY_INTERVAL_S * self._in_vain)
        try:
            connection = _connect(self._reconnect_s, while_open=sys.stdin.fileno())
        except VsmError:
            raise _lost() from None
        with self._open:
            self._connection = connection
            frames = self._session.rejoin()
            try:
                connection.sendall(self._hello + b"".join(frame + b"\n" for frame in frames))
            except OSError:  # gone again: receiving says so
                return
            self._connected = True
            self._open.notify_all()


class Lines:
    """Splits a stream into blocks of whole lines, with their ends.

    Args:
        most_bytes: what is held of a line without an end; what is more is left out of it.
    """

    def __init__(self, most_bytes: int = sys.maxsize) -> None:
        self._parts: list[bytes] = []
        self._most_bytes = most_bytes
        self._held_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """The lines that are complete now; nothing where none is."""
        if data.endswith(b"\n") and not self._parts:
            return data
        end = data.rfind(b"\n") + 1
        if not end:
            if self._held_bytes <= self._most_bytes:
                self._parts.append(data)
                self._held_bytes += len(data)
            return b""
        block = b"".join((*self._parts, data[:end]))
        self._parts = [data[end:]] if end < len(data) else []
        self._held_bytes = len(data) - end
        return block

    def rest(self) -> bytes:
        """What is left: a line that will not be completed, with an end."""
        return b"".join((*self._parts, b"\n")) if self._parts else b""


def _lost() -> ConnectionLostError:
    return ConnectionLostError(
        "vsm connect",
        "vsm closed the connection; what was in flight may have run",
        "Launch it again once `vsm status` shows that vsm is up.",
    )


def _connect(wait_s: float, while_open: int | None = None) -> socket.socket:
    """Connect, for `wait_s` at most; with `while_open` only as long as that has another end."""
    from vsm.commands.control_client import NotRunningError, connect
    from vsm.paths import MCP_SOCKET

    deadline = time.monotonic() + wait_s
    poll = select.poll()
    if while_open is not None:
        poll.register(while_open, 0)  # hang-up only
    while True:
        try:
            return connect(MCP_SOCKET)
        except NotRunningError:
            if time.monotonic() >= deadline:
                raise
            # The socket's folder may not be there yet either, so there is nothing to watch.
            if poll.poll(RETRY_INTERVAL_S * _MILLISECONDS):
                raise


def _read(fd: int, buffer: bytearray) -> bytes:
    """What comes next; nothing at the end, as which counts a terminal or a socket that is gone."""
    while True:
        try:
            return bytes(memoryview(buffer)[: os.readv(fd, [buffer])])
        except BlockingIOError:  # somebody else made it non-blocking
            select.select([fd], [], [])
        except OSError:
            return b""


def _gave_up(data: bytes) -> bool:
    """Write to stdout; returns whether nobody reads it any more."""
    try:
        _write_all(sys.stdout.fileno(), data)
    except ConnectionError:  # of a pipe or a socket
        return True
    return False


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody else made the pipe non-blocking
            select.select([], [fd], [])
