"""Signals read from a descriptor, signalfd(2): none interrupts, and no handler runs."""

import os
import signal
import struct
import sys
from collections.abc import Iterable

from vsm.linux.syscall import call

_SETMASK = 2  # include/uapi/asm-generic/signal-defs.h
_CLOEXEC, _NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK  # SFD_…, include/uapi/linux/signalfd.h
_INFO_BYTES = 128  # struct signalfd_siginfo; the number comes first
_MASK_BYTES = 8  # the kernel's sigset_t
_MOST_AT_ONCE = 16


def listen(signos: Iterable[int]) -> int:
    """Block exactly these signals for this thread and whom it starts; a descriptor of them.

    By system calls: what `signal` offers makes enumeration members, which costs more.
    """
    mask = sum(1 << (signo - 1) for signo in signos).to_bytes(_MASK_BYTES, sys.byteorder)
    call("rt_sigprocmask", _SETMASK, mask, None, _MASK_BYTES)
    return call("signalfd4", -1, mask, _MASK_BYTES, _CLOEXEC | _NONBLOCK)


def read(fd: int) -> list[int]:
    """The signals that have come."""
    try:
        found = os.read(fd, _MOST_AT_ONCE * _INFO_BYTES)
    except BlockingIOError:
        return []
    return [number for (number,) in struct.iter_unpack(f"=I{_INFO_BYTES - 4}x", found)]


def name(signo: int) -> str:
    """Such as SIGTERM; those of real time have a number only."""
    try:
        return signal.Signals(signo).name
    except ValueError:
        return f"signal {signo}"


def forget(signos: Iterable[int]) -> None:
    """In a fork: have these signals do what they do to any program, and block none."""
    for signo in signos:
        signal.signal(signo, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
