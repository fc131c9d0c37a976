"""How a value leaves a confined worker: JSON, bytes or a numpy array in a sealed memfd.

`send_value` runs in the worker, `receive_value` in the program, which believes nothing that it
has not checked: whoever holds the worker's end may send anything. No pickle in this direction.
"""

import fcntl
import json
import math
import mmap
import os
import re
import socket
import sys
from contextlib import suppress
from typing import Any, NamedTuple

MOST_HEAD_BYTES = 32768  # the longest text, each character escaped twice
SIGNAL = b"signal "  # and its number: what the program tells the runner of a lasting worker
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_DTYPE = re.compile(r"[<>|](b1|[iu][1248]|f[248]|c(8|16))")  # numbers only: nothing has pointers
_MOST_DIMENSIONS = 32
_MOST_LENGTH = 1 << 31
MOST_JSON_BYTES = 8 * 2**20
"""Parsed it may take thirty times as much of the caller's memory."""
_MOST_TEXT = 2000
_LEAST_MAPPED_BYTES = 4 << 20


class UnfitError(ValueError):
    """What a worker sent, or would have sent, is no value."""


class Answer(NamedTuple):
    """What a worker says of its own end: not to be believed beyond itself.

    Args:
        kind: "value", "error" (an exception), "unfit" (no value could be made), "start" (the
            work could not be begun), "ready" (it waits for calls).
        text: what went wrong.
        denied: "violation" or "memory" where the exception means that.
        call: the number of the call that it answers.
    """

    kind: str
    value: object = None
    text: str = ""
    denied: str = ""
    call: int = 0


# -- in the worker ---------------------------------------------------------------------------------


def send_value(channel: socket.socket, value: object, most_bytes: int, call: int = 0) -> None:
    """Seal a value and send it.

    Raises:
        UnfitError: it is neither JSON, bytes nor an array of numbers, or too large.
    """
    head, content = _encode(value)
    if len(content) > most_bytes:
        raise UnfitError(f"the result has {len(content)} bytes, more than {most_bytes}")
    fd = os.memfd_create("result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        done = 0
        while done < len(content):
            done += os.write(fd, content[done:])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        _send(channel, {"kind": "value", "size": len(content), "call": call, **head}, [fd])
    finally:
        os.close(fd)


def send_failure(
    channel: socket.socket, kind: str, text: str, denied: str = "", call: int = 0
) -> None:
    """Say why there is no value."""
    _send(channel, {"kind": kind, "text": text[:_MOST_TEXT], "denied": denied, "call": call}, [])


def _send(channel: socket.socket, head: dict[str, Any], fds: list[int]) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(channel, [json.dumps(head).encode()], fds)


def _encode(value: object) -> tuple[dict[str, Any], memoryview]:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"form": "bytes"}, memoryview(bytes(value))
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _encode_array(numpy, value)
    try:
        text = json.dumps(value, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnfitError(f"the result is neither JSON, bytes nor an array: {error}") from error
    return {"form": "json"}, memoryview(text.encode())


def _encode_array(numpy: Any, value: Any) -> tuple[dict[str, Any], memoryview]:  # noqa: ANN401
    dtype = value.dtype.str
    if not _DTYPE.fullmatch(dtype):
        raise UnfitError(f"the result is an array of {value.dtype}, not of numbers")
    flat = numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)
    return {"form": "array", "dtype": dtype, "shape": list(value.shape)}, memoryview(
        flat.tobytes() if not flat.size else flat
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever json cannot take
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


# -- in the program --------------------------------------------------------------------------------


def receive_value(channel: socket.socket, most_bytes: int) -> Answer | None:
    """The worker's answer, if it gave one; never blocks.

    Raises:
        UnfitError: it sent something else.
    """
    try:
        data, fds, flags, _ = socket.recv_fds(
            channel, MOST_HEAD_BYTES, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
    except (BlockingIOError, ConnectionResetError):
        return None
    too_long = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
    try:
        return _parse(data, fds, most_bytes, too_long=too_long) if data else None
    except UnfitError:
        raise
    # Too much for this program (no numpy, no memory, a shape that numpy refuses) is the worker's
    # failure as well: whoever waits for the answer has to hear of it.
    except (ImportError, MemoryError, OSError, RecursionError, ValueError) as error:
        raise UnfitError(f"its answer cannot be taken: {type(error).__name__}") from error
    finally:
        for fd in fds:
            os.close(fd)


def _parse(data: bytes, fds: list[int], most_bytes: int, *, too_long: bool) -> Answer:
    if too_long:
        raise UnfitError("its answer is too long")
    try:
        head = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnfitError("its answer is no JSON") from error
    if not isinstance(head, dict):
        raise UnfitError("its answer is no object")
    kind, text, denied = head.get("kind"), head.get("text", ""), head.get("denied", "")
    if not all(isinstance(part, str) for part in (kind, text, denied)):
        raise UnfitError("its answer holds no value")
    text = _plain_text(text)
    call = head.get("call", 0)
    if type(call) is not int:
        raise UnfitError("its answer is to no call")
    if kind in {"error", "unfit", "start", "ready"}:
        known = denied if denied in {"violation", "memory"} else ""
        return Answer(kind, text=text, denied=known, call=call)
    if kind != "value" or len(fds) != 1:
        raise UnfitError("its answer holds no value")
    return Answer("value", _decode(head, fds[0], most_bytes), call=call)


def _plain_text(text: str) -> str:
    """Foreign words for a person: bounded, and nothing that a terminal would obey."""
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"
        for character in text[:_MOST_TEXT]
    )


def _decode(head: dict[str, Any], fd: int, most_bytes: int) -> object:
    size, form = head.get("size"), head.get("form")
    if type(size) is not int or not 0 <= size <= most_bytes:
        raise UnfitError(f"its result claims {size!r:.40} bytes, at most {most_bytes} are taken")
    _check_memory(fd, size)
    if form == "array":
        return _map_array(head, fd, size)
    content = _read(fd, size)
    if form == "bytes":
        return content
    if form != "json":
        raise UnfitError("its result has no known form")
    if size > MOST_JSON_BYTES:
        what = f"its result is {size} bytes of JSON, at most {MOST_JSON_BYTES} are taken"
        raise UnfitError(f"{what}: return bytes or an array")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnfitError("its result is no JSON") from error


def _check_memory(fd: int, size: int) -> None:
    """Sealed, so that nobody changes or shortens it under a reader, and of ordinary pages."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise UnfitError("its result is in no memfd") from error
    if seals & _SEALS != _SEALS:
        raise UnfitError("its result is not sealed")
    if os.fstat(fd).st_size != size:
        raise UnfitError("its result has another size than it says")
    # A file of huge pages can fail at the first touch of a page.
    if os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
        raise UnfitError("its result is in memory of another kind")


def _read(fd: int, size: int) -> bytes:
    parts, offset = [], 0
    while offset < size and (block := os.pread(fd, size - offset, offset)):
        parts.append(block)
        offset += len(block)
    return b"".join(parts)


def _map_array(head: dict[str, Any], fd: int, size: int) -> object:
    import numpy as np

    dtype, shape = head.get("dtype"), head.get("shape")
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise UnfitError("its array is not one of numbers")
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise UnfitError("its array has no shape")
    if not all(type(n) is int and 0 <= n <= _MOST_LENGTH for n in shape):
        raise UnfitError("its array has a wrong shape")
    kind = np.dtype(dtype)
    if math.prod(shape) * kind.itemsize != size:
        raise UnfitError("its array has another size than its shape says")
    if not size:
        return np.empty(shape, kind)
    if size < _LEAST_MAPPED_BYTES:  # a map holds a descriptor as long as the array lives
        return np.frombuffer(_read(fd, size), kind).reshape(shape)
    # Private, because kernels before 6.7 give no shared map of memory sealed against writing.
    memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return np.frombuffer(memory, kind).reshape(shape)
