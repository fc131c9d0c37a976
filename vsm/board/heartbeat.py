"""The heartbeat board: a system's heartbeat and its channels, in sealed shared memory.

Owns the layout and the torn-read protocol of both; written by one system, which creates it before
it confines itself, and read by the supervisor. A heartbeat goes to the next of four slots with
its sequence number and a CRC, then the header's index moves: a reader that races a writer sees a
CRC or sequence that does not fit and tries again. Each channel that the system sends on has a row
of two slots, published likewise at every beat. What is asked of integrations is on another board:
`vsm.board.demand`.
"""

import math
import os
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

from vsm.board.memory import BoardError, create, map_verified

__all__ = ["Beat", "BoardError", "BoardReader", "BoardWriter", "ChannelRow"]

MAGIC: Final = 0x56534D42  # "VSMB"
VERSION: Final = 3
SIZE_BYTES: Final = 4096

_SLOTS: Final = 4
_SLOT_BYTES: Final = 128
_ROW: Final = struct.Struct("<QQQQQQQ")  # seq, beat_ns, state, lag_ns, received, invalid, dropped
_CRC: Final = struct.Struct("<I")
_HEADER: Final = struct.Struct("<IIQQ")  # magic, version, epoch, pid
_LATEST: Final = struct.Struct("<Q")
_LATEST_OFFSET: Final = 64
_ROWS_OFFSET: Final = 128
_READ_ATTEMPTS: Final = 64
_CHANNELS_OFFSET: Final = _ROWS_OFFSET + _SLOTS * _SLOT_BYTES
CHANNEL_BYTES: Final = 128  # latest, then two slots
_CHANNEL: Final = struct.Struct("<QQQQIIdd")  # the fields of ChannelRow, in their order
_CHANNEL_SLOT_BYTES: Final = 60
MAX_CHANNELS: Final = (SIZE_BYTES - _CHANNELS_OFFSET) // CHANNEL_BYTES
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


@dataclass(frozen=True)
class ChannelRow:
    """What a sender knows of one of its channels.

    Args:
        at_ns: CLOCK_MONOTONIC. sent, dropped: messages so far.
        queued: messages that wait for room now. limit: how many may.
        rate, rate_bytes: messages and their bytes a second between the last two beats.
    """

    seq: int
    at_ns: int
    sent: int
    dropped: int
    queued: int
    limit: int
    rate: float
    rate_bytes: float


class BoardWriter:
    """The one writer of a board. Owns the memfd and its writable mapping.

    Args:
        epoch: the incarnation that the board belongs to.
        name: a label in /proc/PID/fd, nothing else.
    """

    def __init__(self, epoch: int, name: str = "board") -> None:
        self._fd, self._map = create(name, SIZE_BYTES)
        self._seq = 0
        self._channels: dict[int, ChannelRow] = {}
        self._sent_bytes: dict[int, int] = {}
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

    def channel(
        self, index: int, *, sent: int, sent_bytes: int, dropped: int, queued: int, limit: int
    ) -> None:
        """Publish what is known of the `index`-th channel that the system sends on."""
        now = time.monotonic_ns()
        last = self._channels.get(index)
        past_s = (now - last.at_ns) / 1e9 if last else 0.0
        rate = rate_bytes = 0.0
        if last and past_s > 0:
            rate = (sent - last.sent) / past_s
            rate_bytes = (sent_bytes - self._sent_bytes[index]) / past_s
        seq = last.seq + 1 if last else 1
        row = ChannelRow(seq, now, sent, dropped, queued, limit, rate, rate_bytes)
        self._channels[index], self._sent_bytes[index] = row, sent_bytes
        start = _CHANNELS_OFFSET + index * CHANNEL_BYTES
        slot = start + _LATEST.size + (row.seq & 1) * _CHANNEL_SLOT_BYTES
        raw = _CHANNEL.pack(*astuple(row))
        self._map[slot : slot + _CHANNEL.size + _CRC.size] = raw + _CRC.pack(zlib.crc32(raw))
        _LATEST.pack_into(self._map, start, row.seq)

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
        self._map = map_verified(fd, least_bytes=SIZE_BYTES, most_bytes=SIZE_BYTES)
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

    def channel(self, index: int) -> ChannelRow | None:
        """The newest whole row of a channel; None when there is none that can be true."""
        start = _CHANNELS_OFFSET + index * CHANNEL_BYTES
        for _ in range(_READ_ATTEMPTS):
            (seq,) = _LATEST.unpack_from(self._map, start)
            if seq == 0:
                return None
            slot = start + _LATEST.size + (seq & 1) * _CHANNEL_SLOT_BYTES
            raw = self._map[slot : slot + _CHANNEL.size + _CRC.size]
            row, crc = raw[: _CHANNEL.size], raw[_CHANNEL.size :]
            if _CRC.unpack(crc)[0] == zlib.crc32(row):
                found = ChannelRow(*_CHANNEL.unpack(row))
                if found.seq == seq:
                    rates = found.rate, found.rate_bytes
                    return found if found.limit and all(map(math.isfinite, rates)) else None
        return None

    def channels(self, names: Sequence[str]) -> dict[str, ChannelRow | None]:
        """All rows, by the names of the channels that the writer sends on, in their order."""
        return {name: self.channel(index) for index, name in enumerate(names)}

    def close(self) -> None:
        """Unmap."""
        self._map.close()


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
