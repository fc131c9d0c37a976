"""Installing a system call filter that `vsm.core.seccomp` compiled; answering what it reports.

Sources: seccomp(2), seccomp_unotify(2), include/uapi/linux/seccomp.h.
"""

import ctypes
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from vsm.linux.syscall import call

_SET_MODE_FILTER = 1
TSYNC = 1  # the filter is for every thread of the process
NEW_LISTENER = 1 << 3
TSYNC_ESRCH = 1 << 4  # without it TSYNC's answer would be mistaken for a listener
_WAIT_KILLABLE = 1 << 5  # 5.19: once received, only a deadly signal interrupts a call
_RECEIVE, _SEND = 0xC050_2100, 0xC018_2101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, nr, arch, ip, args
_ANSWER = struct.Struct("=QqiI")  # id, val, error, flags
_EMPTY = bytes(_NOTIFICATION.size)  # the kernel refuses a buffer that is not zeroed
_CONTINUE = 1
_LISTENER = "anon_inode:seccomp notify"
_INSTRUCTION_BYTES = 8
_MOST_INSTRUCTIONS = 4096


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(program: bytes, flags: int = 0) -> int:
    """Filter every later system call of this thread and its descendants; cannot be undone.

    Needs no_new_privs (or CAP_SYS_ADMIN).

    Args:
        program: an array of struct sock_filter.
        flags: SECCOMP_FILTER_FLAG_… bits.

    Returns:
        0; the listener's fd if `flags` ask for one; with TSYNC the thread that refused.
    """
    length, rest = divmod(len(program), _INSTRUCTION_BYTES)
    if rest or not 0 < length <= _MOST_INSTRUCTIONS:
        raise ValueError(f"expected 1 to 4096 BPF instructions, found {len(program)} bytes")
    buffer = ctypes.create_string_buffer(program, len(program))
    descriptor = _Program(length, ctypes.addressof(buffer))
    return call("seccomp", _SET_MODE_FILTER, flags, descriptor)


def install_reported(program: bytes, *, every_thread: bool) -> int:
    """As `install`; NOTIFY answers are asked of whoever holds the listener.

    Returns:
        The listener: close-on-exec, the caller's. When its last holder closes it, every call that
        asks, waiting or to come, answers ENOSYS.

    Raises:
        OSError: EBUSY where a filter further out has a listener.
    """
    flags = NEW_LISTENER | (TSYNC | TSYNC_ESRCH if every_thread else 0)
    try:
        return install(program, flags | _WAIT_KILLABLE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return install(program, flags)


def is_listener(fd: int) -> bool:
    """Whether a descriptor is what `install_reported` returns."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == _LISTENER
    except OSError:
        return False


class Notification(NamedTuple):
    """A call that waits for its answer; `arguments` are registers, not what they point to."""

    ident: int
    pid: int
    nr: int
    arguments: tuple[int, ...]


def receive(listener: int) -> Notification | None:
    """Take the next call from a listener that polls readable; None if it has died meanwhile."""
    buffer = bytearray(_EMPTY)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except FileNotFoundError:
        return None
    ident, pid, _flags, nr, _arch, _ip, *arguments = _NOTIFICATION.unpack(buffer)
    return Notification(ident, pid, nr, tuple(arguments))


def refuse(listener: int, ident: int) -> None:
    """Answer EPERM."""
    _answer(listener, _ANSWER.pack(ident, 0, -errno.EPERM, 0))


def let_pass(listener: int, ident: int) -> None:
    """Have the kernel carry the call out. For observing only: see `vsm.audit.learn`."""
    _answer(listener, _ANSWER.pack(ident, 0, 0, _CONTINUE))


def _answer(listener: int, answer: bytes) -> None:
    while True:
        try:
            fcntl.ioctl(listener, _SEND, answer)
        except FileNotFoundError:
            return  # it died, or was interrupted and asks again
        except InterruptedError:
            continue  # it waited for the filter's lock; Python does not repeat this one
        return


def take_descriptor(pidfd: int, fd: int) -> int:
    """A duplicate of another process's descriptor; needs to be allowed to trace it."""
    return call("pidfd_getfd", pidfd, fd, 0)
