"""The heartbeat board: one row in sealed shared memory, written by one process.

Owns the layout, the seals and the torn-read protocol. The writer (a system, before it confines
itself) creates a memfd, maps it writable and seals it; a reader (the supervisor) checks the seals
and the size before it maps the file read-only, so that no writer can shrink it under a reader.
A row goes to the next of four slots with its sequence number and a CRC, then the header's index
moves: a reader that races a writer sees a CRC or sequence that does not fit and tries again.
"""

import fcntl
import mmap
import os
import struct
import time
import zlib
from dataclasses import dataclass
from typing import Any, Final

MAGIC: Final = 0x56534D42  # "VSMB"
VERSION: Final = 1
SIZE_BYTES: Final = 4096
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x0010 | fcntl.F_SEAL_SEAL
F_SEAL_FUTURE_WRITE: Final = 0x0010  # linux/fcntl.h; Python names it from 3.13 on

_SLOTS: Final = 4
_SLOT_BYTES: Final = 128
_ROW: Final = struct.Struct("<QQQQQQQ")  # seq, beat_ns, state, lag_ns, received, invalid, dropped
_CRC: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<IIQQ")  # magic, version, epoch, pid
_LATEST: Final = struct.Struct("<Q")
_LATEST_OFFSET: Final = 64
_ROWS_OFFSET: Final = 128
_READ_ATTEMPTS: Final = 64
ROW_FIELDS: Final = ("seq", "beat_ns", "state", "lag_ns", "received", "invalid", "dropped")


@dataclass(frozen=True)
class Beat:
    """One heartbeat. `beat_ns` is CLOCK_MONOTONIC."""

    seq: int
    beat_ns: int
    state: int
    lag_ns: int
    received: int
    invalid: int
    dropped: int


class BoardError(ValueError):
    """A board that must not be mapped or believed."""


class BoardWriter:
    """The one writer of a board. Owns the memfd and its writable mapping.

    Args:
        epoch: the incarnation that the board belongs to.
        name: a label in /proc/PID/fd, nothing else.
    """

    def __init__(self, epoch: int, name: str = "board") -> None:
        self._fd = os.memfd_create(f"vsm-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, SIZE_BYTES)
        self._map = mmap.mmap(self._fd, SIZE_BYTES)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, SEALS)
        self._seq = 0
        self.state = 0
        _HEADER.pack_into(self._map, 0, MAGIC, VERSION, epoch, os.getpid())

    def fileno(self) -> int:
        """The sealed memfd, for the reader."""
        return self._fd

    def beat(
        self, *, lag_ns: int = 0, received: int = 0, invalid: int = 0, dropped: int = 0
    ) -> None:
        """Publish one row, stamped now."""
        self._seq += 1
        row = _ROW.pack(
            self._seq, time.monotonic_ns(), self.state, lag_ns, received, invalid, dropped
        )
        offset = _ROWS_OFFSET + (self._seq % _SLOTS) * _SLOT_BYTES
        self._map[offset : offset + _ROW.size + _CRC.size] = row + _CRC.pack(zlib.crc32(row))
        _LATEST.pack_into(self._map, _LATEST_OFFSET, self._seq)

    def close(self) -> None:
        """Unmap and close."""
        self._map.close()
        os.close(self._fd)


class BoardReader:
    """A read-only view of another process's board. Owns its mapping, not the descriptor.

    Raises:
        BoardError: a seal is missing, or size, magic, version or owner is not as expected.
    """

    def __init__(self, fd: int, *, epoch: int, pid: int) -> None:
        self._map = _map_verified(fd)
        header = _HEADER.unpack_from(self._map, 0)
        if header != (MAGIC, VERSION, epoch, pid):
            self._map.close()
            raise BoardError(f"board header {header} is not of epoch {epoch}, pid {pid}")

    def read(self) -> Beat | None:
        """The newest whole row; None when there is none, or the writer outran every attempt."""
        for _ in range(_READ_ATTEMPTS):
            (seq,) = _LATEST.unpack_from(self._map, _LATEST_OFFSET)
            if seq == 0:
                return None
            offset = _ROWS_OFFSET + (seq % _SLOTS) * _SLOT_BYTES
            raw = self._map[offset : offset + _ROW.size + _CRC.size]
            row, crc = raw[: _ROW.size], raw[_ROW.size :]
            if _CRC.unpack(crc)[0] == zlib.crc32(row):
                beat = Beat(*_ROW.unpack(row))
                if beat.seq == seq:
                    return beat
        return None

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def _map_verified(fd: int) -> mmap.mmap:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BoardError(f"no memfd: {error.strerror}") from error
    if seals & SEALS != SEALS or os.fstat(fd).st_size != SIZE_BYTES:
        raise BoardError(f"seals {seals:#x}, {os.fstat(fd).st_size} bytes")
    return mmap.mmap(fd, SIZE_BYTES, prot=mmap.PROT_READ)


def row_dtype() -> Any:  # noqa: ANN401 - numpy is imported only by who wants arrays
    """The numpy dtype of a slot, for readers that look at boards as arrays."""
    import numpy as np

    fields = [(name, "<u8") for name in ROW_FIELDS]
    padding = _SLOT_BYTES - _ROW.size - _CRC.size
    return np.dtype([*fields, ("crc", "<u4"), ("padding", f"V{padding}")])


def slots_as_array(reader: BoardReader) -> Any:  # noqa: ANN401 - as above
    """All slots as a read-only structured array over the mapping; rows may be torn: check crc."""
    import numpy as np

    return np.frombuffer(reader._map, row_dtype(), _SLOTS, _ROWS_OFFSET)  # noqa: SLF001
