"""Sealed shared memory: created, mapped and sealed by its one writer, verified by every reader.

The writer maps the memfd before it seals it against shrinking, growing, new writable mappings and
more seals, so nobody else can ever write it or pull it from under a reader, root included. Owns
no layout. Runs in writers (after they confined themselves, or before) and readers alike.
"""

import fcntl
import mmap
import os
import platform
from typing import Final

F_SEAL_FUTURE_WRITE: Final = 0x0010  # linux/fcntl.h; Python names it from 3.13 on
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
STORES_IN_ORDER: Final = platform.machine() in {"x86_64", "AMD64"}
"""Whether other cores see one core's stores in its own order; a checksum guards rows elsewhere."""


class BoardError(ValueError):
    """A board that must not be mapped or believed."""


def create(name: str, size_bytes: int) -> tuple[int, mmap.mmap]:
    """Make a sealed memfd of zeros.

    Args:
        name: a label in /proc/PID/fd, nothing else.
        size_bytes: for ever.

    Returns:
        The descriptor, for readers, and the only writable mapping that there will ever be.
    """
    fd = os.memfd_create(f"vsm-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    mapping = mmap.mmap(fd, size_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd, mapping


def map_verified(fd: int, *, least_bytes: int, most_bytes: int) -> mmap.mmap:
    """Map somebody else's memory read-only, once its seals and its size are as they must be.

    Raises:
        BoardError: it is no memfd, a seal is missing, or the size is out of bounds.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BoardError(f"no memfd: {error.strerror}") from error
    size_bytes = os.fstat(fd).st_size
    if seals & SEALS != SEALS or not least_bytes <= size_bytes <= most_bytes:
        raise BoardError(f"seals {seals:#x}, {size_bytes} bytes")
    return mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ)
