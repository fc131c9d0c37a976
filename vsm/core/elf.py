"""What an ELF file asks of its dynamic linker: the loader, the libraries, the search paths.

Pure: the caller reads. Source: elf(5), System V gABI chapter 5. 64- and 32-bit little-endian
programs and libraries; anything else (a core dump, an object file, a file that lies about its
own layout) is "no ELF file that we can read" and yields None.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NULL, DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH = 0, 1, 5, 15, 29
MOST_HEADERS, MOST_HEADER_BYTES = 256, 256
MOST_DYNAMIC_BYTES = 64 * 1024
MOST_NAME_BYTES = 4096
MOST_NEEDED, MOST_FOLDERS = 512, 64
ET_EXEC, ET_DYN = 2, 3
_MOST_OFFSET = (1 << 63) - (1 << 20)  # what pread(2) takes, with room for what is read

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Linkage:
    """One file's dynamic section; a static file has no loader and needs nothing."""

    loader: str
    needed: tuple[str, ...]
    search: tuple[str, ...]  # RPATH and RUNPATH entries, `$ORIGIN` unexpanded


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def parse_linkage(read_at: ReadAt) -> Linkage | None:
    """Read a file's linkage through `read_at(offset, size)`; None if it is no such ELF file."""
    head = read_at(0, 64)
    if len(head) < 52 or head[:4] != b"\x7fELF" or head[5] != 1:  # noqa: PLR2004  # e_ident
        return None
    if struct.unpack_from("<H", head, 16)[0] not in (ET_EXEC, ET_DYN):
        return None

    def read(offset: int, size: int) -> bytes:
        if offset > _MOST_OFFSET:
            raise IndexError(offset)
        return read_at(offset, size)

    try:
        return _linkage(read, head, wide=head[4] == 2)  # noqa: PLR2004  # ELFCLASS64
    except (struct.error, IndexError):
        return None


def _linkage(read_at: ReadAt, head: bytes, *, wide: bool) -> Linkage:
    segments = list(_segments(read_at, head, wide=wide))
    interpreter = next((s for s in segments if s.kind == PT_INTERP), None)
    loader = ""
    if interpreter is not None:
        loader = _text(read_at(interpreter.offset, min(interpreter.size, MOST_NAME_BYTES)))
    dynamic = next((s for s in segments if s.kind == PT_DYNAMIC), None)
    if dynamic is None:
        return Linkage(loader, (), ())
    raw = read_at(dynamic.offset, min(dynamic.size, MOST_DYNAMIC_BYTES))
    entries = list(_entries(raw, wide=wide))
    table = next((value for tag, value in entries if tag == DT_STRTAB), None)
    if table is None:
        raise IndexError(DT_STRTAB)
    strings = _offset(segments, table)
    names = {
        tag: [_text(read_at(strings + v, MOST_NAME_BYTES)) for v in values[:MOST_NEEDED]]
        for tag in (DT_NEEDED, DT_RPATH, DT_RUNPATH)
        for values in ([value for kind, value in entries if kind == tag],)
    }
    lines = (*names[DT_RPATH][:1], *names[DT_RUNPATH][:1])  # the linker takes one of each
    search = [folder for line in lines for folder in line.split(":") if folder]
    return Linkage(loader, tuple(names[DT_NEEDED]), tuple(search[:MOST_FOLDERS]))


def _segments(read_at: ReadAt, head: bytes, *, wide: bool) -> Iterator[_Segment]:
    start = struct.unpack_from("<Q" if wide else "<I", head, 32 if wide else 28)[0]
    size, count = struct.unpack_from("<HH", head, 54 if wide else 42)
    if not 0 < size <= MOST_HEADER_BYTES:
        raise IndexError(start)
    table = read_at(start, size * min(count, MOST_HEADERS))
    for at in range(0, size * min(count, MOST_HEADERS), size):
        if wide:
            kind, _flags, offset, address, _physical, length = struct.unpack_from(
                "<IIQQQQ", table, at
            )
        else:
            kind, offset, address, _physical, length = struct.unpack_from("<IIIII", table, at)
        yield _Segment(kind, offset, address, length)


def _entries(raw: bytes, *, wide: bool) -> Iterator[tuple[int, int]]:
    form = "<qQ" if wide else "<iI"
    whole = len(raw) - len(raw) % struct.calcsize(form)
    for tag, value in struct.iter_unpack(form, raw[:whole]):
        if tag == DT_NULL:
            return
        yield tag, value


def _offset(segments: list[_Segment], address: int) -> int:
    for segment in segments:
        if segment.kind == PT_LOAD and 0 <= address - segment.address < segment.size:
            return segment.offset + address - segment.address
    raise IndexError(address)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
