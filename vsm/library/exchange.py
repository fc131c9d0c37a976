"""One worker as the program sees it: its sockets and pipes, until the runner says that it is over.

Does no waiting itself: `vsm.library.run` polls its fds in a thread, or has a loop watch them.
"""

import json
import os
import socket
from contextlib import suppress
from typing import Any

from vsm.errors import ConfigurationError, ConfinementError, VsmError
from vsm.library import runner_link
from vsm.library.values import SIGNAL, Answer, UnfitError, receive_value
from vsm.library.work import Work, memory_file

_MOST_EVENT_BYTES = 65536
_BLOCK_BYTES = 65536
_BLOCKS = 16
_MOST_BLOCKS = 1024  # a pipe holds no more, and its writers are dead


class _Output:
    """One stream of the worker, kept up to a bound and drained beyond it.

    Args:
        most_bytes: the bound.
        last: keep the last bytes instead of the first.
    """

    def __init__(self, most_bytes: int, *, last: bool = False) -> None:
        self.fd, self.theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self.kept = bytearray()
        self.truncated = False
        self._most = most_bytes
        self._last = last

    def read(self, blocks: int = _BLOCKS) -> bool:
        """Take what is there, within bounds, for others wait; False at the end."""
        with suppress(BlockingIOError):
            for _ in range(blocks):
                if not (block := os.read(self.fd, _BLOCK_BYTES)):
                    return False
                self._keep(block)
        return True

    def _keep(self, block: bytes) -> None:
        room = self._most - len(self.kept)
        self.truncated |= len(block) > room
        if self._last:
            self.kept += block
            del self.kept[: -self._most]
        else:
            self.kept += block[:room]


class Exchange:
    """The fds of one worker; close it in any case.

    Args:
        message: the runner's order.
        work: what to do.
        stdin: what it reads there, or an fd that stays the caller's.
        output_bytes: to keep of each stream.
        most_bytes: of a value.
        stdout: an fd instead of a stream that is kept; stays the caller's.
        last: keep the last of what it writes, not the first.

    Attributes:
        began: the runner's word that a lasting one runs.
        ended: the runner's report; None while it runs.
        late: it has been told to end.
        outputs: stdout, if it is kept, and stderr.
    """

    def __init__(
        self,
        message: bytes,
        work: Work,
        stdin: bytes | int,
        *,
        output_bytes: int,
        most_bytes: int,
        stdout: int | None = None,
        last: bool = False,
    ) -> None:
        self.began: dict[str, Any] | None = None
        self.ended: dict[str, Any] | None = None
        self.late = False
        self._most_bytes = most_bytes
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.outputs: list[_Output] = []
        theirs: list[int] = []
        try:
            for _ in range(2 if stdout is None else 1):
                self.outputs.append(_Output(output_bytes, last=last))
                theirs.append(self.outputs[-1].theirs)
            self._open = {self._control.fileno(): None, **{o.fd: o for o in self.outputs}}
            handed = theirs if stdout is None else [stdout, *theirs]
            _send_work(self._channel, work, stdin)
            self._runner = runner_link.order(message, [control.fileno(), channel.fileno(), *handed])
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

    @property
    def channel_fd(self) -> int:
        """Readable when the worker said something."""
        return self._channel.fileno()

    def call(self, number: int, content: bytes) -> bool:
        """Send a serving worker a call; False where it takes none. Never blocks."""
        fd = memory_file("call", content)
        try:
            socket.send_fds(self._channel, [b"%d" % number], [fd], socket.MSG_DONTWAIT)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def signal(self, signo: int) -> None:
        """Have a lasting worker signalled."""
        with suppress(OSError):
            self._control.send(SIGNAL + b"%d" % signo, socket.MSG_DONTWAIT)

    def give_up(self) -> None:
        """Have it killed; its end is reported still."""
        self.late = True
        with suppress(OSError):
            self._control.send(b"kill")

    def answer(self) -> tuple[Answer | None, str]:
        """What the worker said last, and why it made no sense."""
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
            runner_link.lost(self._runner)
            raise VsmError("vsm.run", what, "Run again: another one will be started.")
        event = json.loads(data)
        if event["event"] == "refused":
            raise _refusal(event)
        if event["event"] == "began":
            self.began = event
            return
        self.ended = event
        for output in self.outputs:
            output.read(_MOST_BLOCKS)


def _send_work(channel: socket.socket, work: Work, stdin: bytes | int) -> None:
    fds = [work.open()]
    try:
        fds.append(os.dup(stdin) if isinstance(stdin, int) else memory_file("stdin", stdin))
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
