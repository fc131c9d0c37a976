"""Using more than the limits allow; every bomb is bounded."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable

from .base import (
    DISK_GAP,
    World,
    attempt,
    last_error,
    libc,
    scratch,
)

WINDOW_S = 0.5


@attempt("exhaustion", "memory")
def use_twice_the_memory_limit(w: World) -> None:
    _touch(mmap.MAP_PRIVATE, w["memory_bytes"] * 2)


@attempt("exhaustion", "memory")
def use_twice_the_memory_limit_shared(w: World) -> None:
    """Half of it anonymous, half in files of memory."""
    block = _touch(mmap.MAP_SHARED, w["memory_bytes"])
    length, held = w["file_size_bytes"] // 2, []
    for _ in range(w["memory_bytes"] // length):
        fd = os.memfd_create("bomb", 0)
        os.ftruncate(fd, length)
        held.append(mmap.mmap(fd, length))  # mapped: the kernel ends who has it, not its parent
        os.close(fd)
        for offset in range(0, length, 4096):
            held[-1][offset] = 1
    block.close()


def _touch(kind: int, length: int) -> mmap.mmap:
    block = mmap.mmap(-1, length, flags=kind | mmap.MAP_ANONYMOUS)
    for offset in range(0, length, 4096):
        block[offset] = 1
    return block


@attempt("exhaustion", "processes")
def start_three_times_the_process_limit(w: World) -> None:
    """Living ones, or dead ones that nobody collects."""
    try:
        _start(w["processes"] * 3, signal.pause)
    except OSError:
        _start(w["processes"] * 3, lambda: None)


def _start(count: int, live: Callable[[], object]) -> None:
    pids: list[int] = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                live()
                os._exit(0)
            pids.append(pid)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@attempt("exhaustion", "processes")
def start_three_times_the_process_limit_as_threads(w: World) -> None:
    held = threading.Event()
    threads: list[threading.Thread] = []
    threading.stack_size(64 << 10)  # that memory is not what stops it
    try:
        for _ in range(w["processes"] * 3):
            threads.append(threading.Thread(target=held.wait))
            try:
                threads[-1].start()
            except RuntimeError as error:
                threads.pop()
                raise PermissionError(errno.EAGAIN, "no more threads") from error
    finally:
        held.set()
        for thread in threads:
            thread.join()


@attempt("exhaustion", "privileges", control="root")
def lock_twice_the_memory_limit(w: World) -> None:
    """No control as a user: the host's own limit for him may be smaller."""
    length = w["memory_bytes"] * 2
    block = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(length)) < 0:
        raise last_error()


@attempt("exhaustion", "privileges")
def make_a_sparse_file_above_the_size_limit(w: World) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = f"{scratch()}/sparse-{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.ftruncate(fd, w["file_size_bytes"] * 4)
    finally:
        os.close(fd)
        os.unlink(path)


@attempt("exhaustion", "privileges")
def open_more_files_than_the_limit(w: World) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for _ in range(w["open_files"]):
        os.dup(null)


@attempt("exhaustion", "root_filesystem", weaker={"landlocked": DISK_GAP})
def fill_the_private_folder(w: World) -> None:
    """With bytes, or with names."""
    try:
        _fill(scratch(), w["tmp_bytes"] * 2, w["file_size_bytes"] // 2)
    except OSError:
        _make_folders(f"{scratch()}/many-{os.getpid()}-", w["tmp_bytes"] // 4096 + 1100)


def _make_folders(prefix: str, count: int) -> None:
    made = 0
    try:
        while made < count:
            os.mkdir(f"{prefix}{made}", 0o700)
            made += 1
    finally:
        for number in range(made):
            os.rmdir(f"{prefix}{number}")


@attempt("exhaustion", "root_filesystem", "landlock")
def fill_the_shared_memory_folder(w: World) -> None:
    _fill("/dev/shm", w["shm_bytes"] * 2, w["file_size_bytes"] // 2)


@attempt("exhaustion", "privileges")
def write_a_file_above_the_size_limit(w: World) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _fill(scratch(), w["file_size_bytes"] + (1 << 20), 1 << 62)


@attempt("exhaustion", "cpu")
def use_twice_the_processor_limit(w: World) -> None:
    # The limit is small, so that an unlimited process gets more even on a crowded machine.
    for _ in range(3):
        start, cpu = time.monotonic(), time.process_time()
        while time.monotonic() - start < WINDOW_S:
            pass
        if time.process_time() - cpu > 2 * w["cpu_cores"] * WINDOW_S:
            return
    raise PermissionError(errno.EAGAIN, "throttled")


def _fill(folder: str, total_bytes: int, file_bytes: int) -> None:
    chunk, written = b"x" * (1 << 18), 0
    paths: list[str] = []
    try:
        while written < total_bytes:
            paths.append(f"{folder}/fill-{os.getpid()}-{len(paths)}")
            fd = os.open(paths[-1], os.O_CREAT | os.O_WRONLY, 0o600)
            size = 0
            while size < file_bytes and written < total_bytes:
                count = os.write(fd, chunk)
                size, written = size + count, written + count
            os.close(fd)
    finally:
        for path in paths:
            if os.path.exists(path):
                os.unlink(path)
