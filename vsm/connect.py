"""`vsm connect`: stdin and stdout bridged to the running gateway, byte for byte.

What a desktop client launches as its MCP server. Standard library only and no event loop, so
that it is there in a few milliseconds; it looks at no message. One thread per direction, so
each side's slowness holds back only the other side of its own direction.
"""

import argparse
import json
import os
import select
import socket
import sys
import threading
import time
from typing import Final

from vsm.errors import VsmError

CHUNK_BYTES: Final = 256 * 1024
RETRY_INTERVAL_S: Final = 0.05
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
        "--client", metavar="NAME", help="see what [clients.NAME] of vsm.toml lets a client see"
    )


def run(args: argparse.Namespace) -> int:
    """Bridge until both sides are done.

    Raises:
        VsmError: no vsm is running, or it closed the connection.
    """
    connection = _connect(args.wait)
    if args.client is not None:
        connection.sendall(_VIEW % json.dumps(args.client).encode())
    client_done = threading.Event()
    sender = threading.Thread(target=_send, args=(connection, client_done), daemon=True)
    sender.start()
    reader_left = _receive(connection)
    if reader_left or client_done.is_set():
        return 0
    raise ConnectionLostError(
        "vsm connect",
        "vsm closed the connection; what was in flight may have run",
        "Launch it again once `vsm status` shows that vsm is up.",
    )


def _connect(wait_s: float) -> socket.socket:
    from vsm.commands.control_client import NotRunningError, connect
    from vsm.paths import MCP_SOCKET

    deadline = time.monotonic() + wait_s
    while True:
        try:
            return connect(MCP_SOCKET)
        except NotRunningError:
            if time.monotonic() >= deadline:
                raise
            # The socket's folder may not be there yet either, so there is nothing to watch.
            select.select([], [], [], RETRY_INTERVAL_S)


def _send(connection: socket.socket, client_done: threading.Event) -> None:
    """From stdin to the gateway; the end of stdin closes this direction only."""
    stdin = sys.stdin.fileno()
    try:
        while data := os.read(stdin, CHUNK_BYTES):
            connection.sendall(data)
    except OSError:  # the gateway is gone: the receiving side sees it and says so
        return
    client_done.set()
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # likewise
        return


def _receive(connection: socket.socket) -> bool:
    """From the gateway to stdout; returns whether it ended because nobody reads stdout."""
    stdout = sys.stdout.fileno()
    while True:
        try:
            data = connection.recv(CHUNK_BYTES)
        except ConnectionError:
            return False
        if not data:
            return False
        try:
            _write_all(stdout, data)
        except BrokenPipeError:
            return True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody else made the pipe non-blocking
            select.select([], [fd], [])
