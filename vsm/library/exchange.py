"""One run as the program sees it: its sockets and pipes, until the runner says that it is over.

Does no waiting itself: `vsm.library.run` polls its fds in a thread, or has a loop watch them.
"""

import json
import os
import socket
from contextlib import suppress
from typing import Any

from vsm.errors import ConfigurationError, ConfinementError, VsmError
from vsm.library import runner_link
from vsm.library.values import Answer, UnfitError, receive_value
from vsm.library.work import Work, memory_file

_MOST_EVENT_BYTES = 65536
_BLOCK_BYTES = 65536


class _Output:
    """One stream of the worker, kept up to a bound and drained beyond it."""

    def __init__(self, most_bytes: int) -> None:
        self.fd, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self.kept = bytearray()
        self.truncated = False
        self._most = most_bytes

    def read(self) -> bool:
        """Take what is there; False at the end."""
        with suppress(BlockingIOError):
            while block := os.read(self.fd, _BLOCK_BYTES):
                room = self._most - len(self.kept)
                self.kept += block[:room]
                self.truncated |= len(block) > room
            return False
        return True


class Exchange:
    """The fds of one run; close it in any case.

    Args:
        message: the runner's order.
        work: what to do.
        stdin: what an argv reads.
        output_bytes: to keep of each stream.
        most_bytes: of the value.

    Attributes:
        ended: the runner's report; None while it runs.
        late: it has been told to end.
    """

    def __init__(
        self, message: bytes, work: Work, stdin: bytes, *, output_bytes: int, most_bytes: int
    ) -> None:
        self.ended: dict[str, Any] | None = None
        self.late = False
        self._most_bytes = most_bytes
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.outputs = [_Output(output_bytes), _Output(output_bytes)]
        self._open = {self._control.fileno(): None, **{o.fd: o for o in self.outputs}}
        theirs = [o.theirs for o in self.outputs]
        try:
            _send_work(self._channel, work, stdin)
            runner_link.order(message, [control.fileno(), channel.fileno(), *theirs])
        except BaseException:
            self.close()
            raise
        finally:
            control.close()
            channel.close()
            for fd in theirs:
                os.close(fd)

    @property
    def fds(self) -> list[int]:
        """What to wait for."""
        return list(self._open)

    def ready(self, fd: int) -> bool:
        """Something came at this fd; False when the fd is to be waited for no more."""
        output = self._open[fd]
        if output is not None:
            if not output.read():
                del self._open[fd]
        else:
            self._hear()
        return fd in self._open

    def give_up(self) -> None:
        """Have it killed; its end is reported still."""
        self.late = True
        with suppress(OSError):
            self._control.send(b"kill")

    def answer(self) -> tuple[Answer | None, str]:
        """What the worker said, and why it made no sense; after the end."""
        try:
            return receive_value(self._channel, self._most_bytes), ""
        except UnfitError as error:
            return None, str(error)

    def close(self) -> None:
        """Close all; a worker that runs still is killed."""
        self._control.close()
        self._channel.close()
        for output in self.outputs:
            os.close(output.fd)
        self._open = {}

    def _hear(self) -> None:
        data = b""
        for _ in range(2):  # a reset (of a word that it did not read) is said before its last word
            with suppress(ConnectionResetError):
                data = self._control.recv(_MOST_EVENT_BYTES)
                break
        if not data:
            what = "the runner died"
            raise VsmError("vsm.run", what, "Run again: another one will be started.")
        event = json.loads(data)
        if event["event"] == "refused":
            raise _refusal(event)
        self.ended = event
        for output in self.outputs:
            output.read()


def _send_work(channel: socket.socket, work: Work, stdin: bytes) -> None:
    fds = [work.open(), memory_file("stdin", stdin)]
    try:
        socket.send_fds(channel, [b"work"], fds)
    finally:
        for fd in fds:
            os.close(fd)


def _refusal(event: dict[str, Any]) -> VsmError:
    where, what, remedy = event["where"], event["what"], event["remedy"]
    if event["kind"] == "confinement" and event["layer"]:
        return ConfinementError(where, what, remedy, layer=event["layer"])
    if event["kind"] == "configuration":
        return ConfigurationError(where, what, remedy)
    return VsmError(where, what, remedy)
