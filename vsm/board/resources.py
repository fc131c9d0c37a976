"""The resource board: what each integration uses, sampled by the supervisor, in shared memory.

Written by the supervisor alone, into one sealed memfd with a row for each integration; when
integrations come or go there is a new one, none changes its size. A sample is one aligned word of
64 bits, which a processor stores at once: no reader sees half of one, so there is no protocol. A
row is found by the CRC-32 of its integration's name. docs/board.md has the layout.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vsm.board.memory import BoardError, create, map_verified

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAGIC: Final = 0x56534D52  # "VSMR"
VERSION: Final = 1
HEADER: Final = "=IIQII"  # magic, version, pid, rows, 0
STAMP_OFFSET: Final = 24
HEADER_BYTES: Final = 64
WORD_BYTES: Final = 8
KEY_BYTES: Final = 4
ROW_BYTES: Final = WORD_BYTES + KEY_BYTES
MOST_ROWS: Final = 4096
MEMORY_UNIT: Final = 1 << 16
CPU_UNIT: Final = 0.01
LIMITS: Final = ("memory", "cpu", "processes")

_MEMORY_BITS, _CPU_BITS, _TASK_BITS = 24, 16, 16
_CPU_AT: Final = _MEMORY_BITS
_TASKS_AT: Final = _CPU_AT + _CPU_BITS
_MET_AT: Final = _TASKS_AT + _TASK_BITS
_TAKEN: Final = 1 << 63


class Sample(NamedTuple):
    """What an integration used; None where nothing counts it.

    Args:
        memory_bytes: its working set now, to MEMORY_UNIT.
        cpu: processors, on average since the sample before, to CPU_UNIT.
        processes: tasks now.
        met: which of its limits it met since the sample before.
    """

    memory_bytes: int | None
    cpu: float | None
    processes: int | None
    met: tuple[str, ...] = ()


def pack(sample: Sample) -> int:
    """A sample as one word; what is more than fits is the most that does."""
    memory = None if sample.memory_bytes is None else -(-sample.memory_bytes // MEMORY_UNIT)
    cpu = None if sample.cpu is None else round(sample.cpu / CPU_UNIT)
    word = _TAKEN | _field(memory, _MEMORY_BITS)
    word |= _field(cpu, _CPU_BITS) << _CPU_AT | _field(sample.processes, _TASK_BITS) << _TASKS_AT
    for position, name in enumerate(LIMITS):
        word |= (name in sample.met) << _MET_AT + position
    return word


def unpack(word: int) -> Sample | None:
    """The sample of a word; None where none was taken."""
    if not word & _TAKEN:
        return None
    memory = _number(word, _MEMORY_BITS)
    cpu = _number(word >> _CPU_AT, _CPU_BITS)
    return Sample(
        None if memory is None else memory * MEMORY_UNIT,
        None if cpu is None else cpu * CPU_UNIT,
        _number(word >> _TASKS_AT, _TASK_BITS),
        tuple(name for n, name in enumerate(LIMITS) if word >> _MET_AT + n & 1),
    )


def _field(value: int | None, bits: int) -> int:
    """All ones is: unknown."""
    unknown = (1 << bits) - 1
    return unknown if value is None else min(max(0, value), unknown - 1)


def _number(word: int, bits: int) -> int | None:
    unknown = (1 << bits) - 1
    value = word & unknown
    return None if value == unknown else value


def key_of(name: str) -> int:
    """What a row is found by."""
    return zlib.crc32(name.encode())


def size_bytes(rows: int) -> int:
    """Of a board."""
    return HEADER_BYTES + rows * ROW_BYTES


class ResourceBoard:
    """The writer's board. Owns the descriptor and the writable mapping.

    Of two names with one key the first has the row, of more than MOST_ROWS the first ones.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        keys = {key_of(name): name for name in sorted(self.names, reverse=True)}
        kept = list(keys.items())[:MOST_ROWS]
        self._rows = {name: row for row, (_, name) in enumerate(kept)}
        self.bytes = size_bytes(len(kept))
        self._fd, self._map = create("resources", self.bytes)
        struct.pack_into(HEADER, self._map, 0, MAGIC, VERSION, os.getpid(), len(kept), 0)
        memory = memoryview(self._map)
        words_end = HEADER_BYTES + len(kept) * WORD_BYTES
        self._stamp = memory[STAMP_OFFSET : STAMP_OFFSET + 8].cast("Q")
        self._words = memory[HEADER_BYTES:words_end].cast("Q")
        for row, (key, _) in enumerate(kept):
            struct.pack_into("=I", self._map, words_end + row * KEY_BYTES, key)

    def put(self, name: str, sample: Sample | None) -> None:
        """Show an integration's newest sample, or that there is none."""
        row = self._rows.get(name)
        if row is not None:
            self._words[row] = 0 if sample is None else pack(sample)

    def stamp(self, now_ns: int) -> None:
        """All were sampled by now, by CLOCK_MONOTONIC."""
        self._stamp[0] = now_ns

    def fileno(self) -> int:
        """The sealed memfd, for readers; the board keeps it."""
        return self._fd

    def close(self) -> None:
        """Give the memory back; readers keep what they mapped."""
        self._stamp.release()
        self._words.release()
        os.close(self._fd)


class ResourceReader:
    """A read-only view of a resource board. Owns its mapping, not the descriptor.

    Raises:
        BoardError: a seal is missing, or size, magic, version or writer is not as expected.
    """

    def __init__(self, fd: int, *, pid: int | None = None) -> None:
        most = size_bytes(MOST_ROWS)
        self._map: mmap.mmap = map_verified(fd, least_bytes=HEADER_BYTES, most_bytes=most)
        magic, version, owner, rows, _ = struct.unpack_from(HEADER, self._map, 0)
        fits = (magic, version, size_bytes(rows)) == (MAGIC, VERSION, len(self._map))
        if not fits or (pid is not None and pid != owner):
            self._map.close()
            raise BoardError(f"resource board: version {version}, {rows} rows, pid {owner}")
        self.rows: int = rows
        self.pid: int = owner

    @property
    def stamp_ns(self) -> int:
        """When it was written last, by CLOCK_MONOTONIC; 0 is never."""
        (stamp,) = struct.unpack_from("=Q", self._map, STAMP_OFFSET)
        return int(stamp)

    def read(self, names: Iterable[str]) -> dict[str, Sample]:
        """The newest sample of each of these integrations that has one."""
        keys, words = self._columns("I", KEY_BYTES), self._columns("Q", 0)
        found = {key: unpack(word) for key, word in zip(keys, words, strict=True)}
        rows = {name: found.get(key_of(name)) for name in names}
        return {name: sample for name, sample in rows.items() if sample is not None}

    def _columns(self, code: str, key_bytes: int) -> tuple[int, ...]:
        start = HEADER_BYTES + (self.rows * WORD_BYTES if key_bytes else 0)
        found: tuple[int, ...] = struct.unpack_from(f"@{self.rows}{code}", self._map, start)
        return found

    def as_array(self) -> "npt.NDArray[np.void]":
        """A copy of all rows as a structured array; what is not known is nan."""
        import numpy as np

        kind = [("key", "u4"), ("memory_bytes", "f8"), ("cpu", "f8"), ("processes", "f8")]
        out = np.zeros(self.rows, [*kind, *((f"met_{one}", "?") for one in LIMITS)])
        words = np.array(self._columns("Q", 0), np.uint64)
        out["key"] = self._columns("I", KEY_BYTES)
        for name, at, bits, unit in (
            ("memory_bytes", 0, _MEMORY_BITS, MEMORY_UNIT),
            ("cpu", _CPU_AT, _CPU_BITS, CPU_UNIT),
            ("processes", _TASKS_AT, _TASK_BITS, 1),
        ):
            unknown = (1 << bits) - 1
            value = words >> np.uint64(at) & np.uint64(unknown)
            known = (value != unknown) & (words >> np.uint64(63) == 1)
            out[name] = np.where(known, value * float(unit), np.nan)
        for position, name in enumerate(LIMITS):
            out[f"met_{name}"] = words >> np.uint64(_MET_AT + position) & np.uint64(1) == 1
        return out

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def as_json(sample: Sample) -> dict[str, Any]:
    """For `vsm board dump`."""
    return {**sample._asdict(), "met": list(sample.met)}
