"""The heartbeat board: seals, ownership, and rows that are whole under a hot writer."""

import fcntl
import mmap
import multiprocessing
import os
import zlib

import numpy as np
import pytest

from vsm.board import heartbeat as board
from vsm.core import channels


def test_reader_sees_what_the_writer_wrote() -> None:
    writer = board.BoardWriter(7)
    reader = board.BoardReader(writer.fileno(), epoch=7, pid=os.getpid())
    assert reader.read() is None
    writer.beat(lag_ns=5, received=3, invalid=2, dropped=1)
    beat = reader.read()
    assert beat is not None
    assert (beat.seq, beat.lag_ns, beat.received, beat.invalid, beat.dropped) == (1, 5, 3, 2, 1)
    reader.close()
    writer.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda fd: os.ftruncate(fd, board.SIZE_BYTES // 2),
        lambda fd: os.ftruncate(fd, board.SIZE_BYTES * 2),
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: mmap.mmap(fd, board.SIZE_BYTES),
        lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ],
)
def test_sealed_board_can_neither_shrink_nor_grow_nor_be_written_by_others(make: object) -> None:
    writer = board.BoardWriter(1)
    with pytest.raises(OSError, match="Operation not permitted"):
        make(writer.fileno())  # type: ignore[operator]
    writer.close()


def test_unsealed_memfd_is_refused() -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, board.SIZE_BYTES)
    with pytest.raises(board.BoardError, match="seals"):
        board.BoardReader(fd, epoch=1, pid=os.getpid())
    os.close(fd)


def test_file_that_is_no_memfd_is_refused() -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(board.BoardError, match="no memfd"):
        board.BoardReader(read_end, epoch=1, pid=1)
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize(("epoch", "pid"), [(2, os.getpid()), (1, 1)])
def test_board_of_another_epoch_or_process_is_refused(epoch: int, pid: int) -> None:
    writer = board.BoardWriter(1)
    with pytest.raises(board.BoardError, match="header"):
        board.BoardReader(writer.fileno(), epoch=epoch, pid=pid)
    writer.close()


def _write_for_ever(writer: board.BoardWriter) -> None:
    count = 0
    while True:
        count += 1
        writer.beat(lag_ns=count, received=count, invalid=count, dropped=count)


def test_no_torn_row_under_a_hot_writer() -> None:
    writer = board.BoardWriter(1)
    reader = board.BoardReader(writer.fileno(), epoch=1, pid=os.getpid())
    process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(writer,))
    process.start()
    last, seen = 0, 0
    try:
        while seen < 2000:
            beat = reader.read()
            if beat is None or beat.seq == last:
                continue
            assert beat.lag_ns == beat.received == beat.invalid == beat.dropped == beat.seq
            assert beat.seq > last
            last, seen = beat.seq, seen + 1
    finally:  # a torn row fails the test, and does not make it wait for the writer for ever
        process.kill()
        process.join()
        process.close()
        reader.close()
        writer.close()


def test_slots_are_a_numpy_array_too() -> None:
    writer = board.BoardWriter(1)
    writer.beat(received=9)
    reader = board.BoardReader(writer.fileno(), epoch=1, pid=os.getpid())
    slots = board.slots_as_array(reader)
    assert slots.dtype.itemsize == 128
    assert np.sort(slots["received"])[-1] == 9
    assert not slots.flags.writeable
    del slots
    reader.close()
    writer.close()


@pytest.mark.parametrize(
    ("limit", "rate", "rate_bytes"),
    [(0, 1.0, 1.0), (64, float("nan"), 1.0), (64, float("inf"), 1.0), (64, 1.0, float("nan"))],
)
def test_channel_row_that_cannot_be_true_is_none(
    limit: int, rate: float, rate_bytes: float
) -> None:
    """Whoever reads it divides by the one and rounds the other."""
    writer = board.BoardWriter(1)
    reader = board.BoardReader(writer.fileno(), epoch=1, pid=os.getpid())
    writer.channel(0, sent=5, sent_bytes=50, dropped=1, queued=2, limit=64)
    assert reader.channel(0) is not None
    raw = board._CHANNEL.pack(2, 1, 5, 1, 2, limit, rate, rate_bytes)
    slot = board._CHANNELS_OFFSET + board._LATEST.size
    writer._map[slot : slot + len(raw) + board._CRC.size] = raw + board._CRC.pack(zlib.crc32(raw))
    board._LATEST.pack_into(writer._map, board._CHANNELS_OFFSET, 2)
    assert reader.channel(0) is None
    reader.close()
    writer.close()


def test_channel_rows_are_read_as_they_were_written() -> None:
    writer = board.BoardWriter(1)
    reader = board.BoardReader(writer.fileno(), epoch=1, pid=os.getpid())
    assert reader.channels(["a", "b"]) == {"a": None, "b": None}
    writer.channel(1, sent=5, sent_bytes=50, dropped=1, queued=2, limit=64)
    writer.channel(1, sent=9, sent_bytes=90, dropped=1, queued=0, limit=64)
    row = reader.channels(["a", "b"])["b"]
    assert row is not None
    assert (row.sent, row.dropped, row.queued, row.limit) == (9, 1, 0, 64)
    assert row.rate > 0
    assert row.rate_bytes == pytest.approx(10 * row.rate)
    assert max(len(channels.sends(name)) for name in channels.SYSTEMS) <= board.MAX_CHANNELS
    assert board._CHANNEL.size + board._CRC.size <= board._CHANNEL_SLOT_BYTES
    assert board._LATEST.size + 2 * board._CHANNEL_SLOT_BYTES <= board.CHANNEL_BYTES
    reader.close()
    writer.close()


def test_row_whose_checksum_does_not_fit_is_none() -> None:
    writer = board.BoardWriter(1)
    reader = board.BoardReader(writer.fileno(), epoch=1, pid=os.getpid())
    writer.beat(received=1)
    assert reader.read() is not None
    offset = board._ROWS_OFFSET + 1 * board._SLOT_BYTES
    writer._map[offset + 32] ^= 1  # a count, not the sequence number
    assert reader.read() is None
    reader.close()
    writer.close()
