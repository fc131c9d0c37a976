"""Messages of a unix socket with who sent them, by the kernel's word (unix(7), linux/socket.h)."""

import os
import socket
import struct
from contextlib import suppress
from typing import Final, NamedTuple

_SO_PASSPIDFD: Final = 76  # asm-generic/socket.h, since 6.5
_SCM_PIDFD: Final = 4  # linux/socket.h
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred
_FD: Final = struct.Struct("=i")


class Letter(NamedTuple):
    """A message and its sender.

    Args:
        data: empty at the end of the connection.
        pid: as this process sees it; 0 if it is not told.
        pidfd: of the sender, close-on-exec, the receiver's; -1 where the kernel gives none.
    """

    data: bytes
    pid: int
    pidfd: int


def ask_for_senders(link: socket.socket) -> None:
    """From now on every message tells who sent it."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with suppress(OSError):  # an older kernel: the pid has to do
        link.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 1)


def receive(link: socket.socket, limit_bytes: int) -> Letter:
    """One message of a socket that was asked for senders; fds that it brings are closed.

    Raises:
        BlockingIOError: there is none.
        ValueError: it is longer than the limit.
    """
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_FD.size)
    data, ancillary, flags, _ = link.recvmsg(limit_bytes, room, socket.MSG_CMSG_CLOEXEC)
    pid, pidfd = 0, -1
    for level, kind, content in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS and len(content) >= _CREDENTIALS.size:
            pid = _CREDENTIALS.unpack_from(content)[0]
        elif kind == _SCM_PIDFD and len(content) >= _FD.size:
            pidfd = _FD.unpack_from(content)[0]
        elif kind == socket.SCM_RIGHTS:
            for (fd,) in _FD.iter_unpack(content[: len(content) // _FD.size * _FD.size]):
                os.close(fd)
    if flags & socket.MSG_TRUNC:
        if pidfd >= 0:
            os.close(pidfd)
        raise ValueError(f"a message of more than {limit_bytes} bytes")
    return Letter(data, pid, pidfd)
