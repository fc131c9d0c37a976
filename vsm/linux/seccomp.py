"""Installing a system call filter that `vsm.core.seccomp` compiled."""

import ctypes

from vsm.linux.syscall import call

_SET_MODE_FILTER = 1  # include/uapi/linux/seccomp.h
TSYNC = 1  # the filter is for every thread of the process
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


def take_descriptor(pidfd: int, fd: int) -> int:
    """A duplicate of another process's descriptor; needs to be allowed to trace it."""
    return call("pidfd_getfd", pidfd, fd, 0)
