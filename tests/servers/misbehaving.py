"""A legacy MCP server over stdio, standard library only, that misbehaves as its argument says.

    python misbehaving.py MODE

It answers `initialize`, `ping`, `tools/list` and `tools/call`: `echo` returns its text, `slow`
answers after some seconds, `crash` dies in the middle of the call, `act` does what a mode does.
Whatever it eats is bounded here too, so that an unconfined run harms nobody.
"""

import ctypes
import json
import mmap
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

REFUSED = {"x86_64": (101, 321), "aarch64": (117, 280)}  # ptrace, bpf
REFUSED_FLOOD = 1_000_000
LARGEST_EATEN_BYTES = 2 * 2**30
SHARED_BYTES = 200 * 2**20
MOST_PROCESSES = 2000
FLOOD_BYTES = 256 * 2**20
KEPT: list[IO[bytes]] = []
TOOLS = [
    {"name": name, "description": name, "inputSchema": {"type": "object"}}
    for name in ("echo", "slow", "crash", "act", "pid")
]


def well() -> str:
    """Nothing bad."""
    return "well"


def exit_at_once() -> str:
    sys.stderr.write("cannot find my configuration\n")
    sys.exit(7)


def silent() -> str:
    while True:
        signal.pause()


def garbage() -> str:
    for _ in range(100):
        sys.stdout.buffer.write(os.urandom(1024) + b"\n{]\n\xff\xfe\n[1,2\n")
    sys.stdout.buffer.flush()
    return "wrote garbage"


def flood(stream: int) -> str:
    block = (b"x" * 100 + b"\n") * 1000
    written = 0
    while written < FLOOD_BYTES:
        written += os.write(stream, block)
    return f"{written} bytes"


def ignore_term() -> str:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "SIGTERM is ignored, and so is the end of stdin"


def orphan() -> str:
    """A grandchild in a session of its own, which ignores what it can and outlives its parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            while True:
                signal.pause()
        os._exit(0)
    return "orphaned"


def memory() -> str:
    eaten: list[bytearray] = []
    while len(eaten) * 2**20 < LARGEST_EATEN_BYTES:
        eaten.append(bytearray(os.urandom(2**20)))
    return "ate 2 GiB"


def shared() -> str:
    """Memory that RLIMIT_DATA does not see."""
    block = mmap.mmap(-1, SHARED_BYTES)
    for offset in range(0, len(block), mmap.PAGESIZE):
        block[offset] = 1
    time.sleep(600)
    return "kept it"


def cpu() -> str:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        pass
    return "burnt ten minutes"


def processes() -> str:
    made = 0
    try:
        while made < MOST_PROCESSES:
            if os.fork() == 0:
                while True:
                    signal.pause()
            made += 1
    except OSError as error:
        return f"{made} processes, then {error.strerror}"
    return f"{made} processes"


def descriptors() -> str:
    opened: list[int] = []
    try:
        while len(opened) < 100_000:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        return f"{len(opened)} descriptors, then {error.strerror}"
    finally:
        for fd in opened:
            os.close(fd)
    return f"{len(opened)} descriptors"


def disk() -> str:
    written = 0
    try:
        with tempfile.TemporaryFile() as file:
            while written < LARGEST_EATEN_BYTES:
                written += file.write(b"\0" * 2**20)
                file.flush()
    except OSError as error:
        return f"{written} bytes, then {error.strerror}"
    return f"{written} bytes"


def refused() -> str:
    """Three calls of ptrace and one of bpf, in a thread and in a child as well; all harmless."""
    libc = ctypes.CDLL(None, use_errno=True)
    ptrace, bpf = REFUSED[platform.machine()]
    answers: list[int] = []

    def ask(number: int) -> None:
        libc.syscall(number, -1, -1, 0, 0)  # unconfined: EINVAL, EIO or ESRCH
        answers.append(ctypes.get_errno())

    ask(ptrace)
    ask(bpf)
    thread = threading.Thread(target=ask, args=(ptrace,))
    thread.start()
    thread.join()
    if (pid := os.fork()) == 0:
        ask(ptrace)
        os._exit(answers[-1])
    answers.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return str(answers)


def refused_flood() -> str:
    """As many refused calls as fast as can be, beside the protocol; bounded."""

    def flood_calls() -> None:
        libc = ctypes.CDLL(None)  # lets go of the interpreter while it calls
        bpf = REFUSED[platform.machine()][1]
        for _ in range(REFUSED_FLOOD):
            libc.syscall(bpf, -1, 0, 0)

    threading.Thread(target=flood_calls, daemon=True).start()
    return "begun"


def private_folder() -> Path:
    return Path(os.environ.get("STATE_DIRECTORY") or os.environ["TMPDIR"])


def fill(size_mib: int) -> str:
    """Files of 8 MiB in the private directory, which stay."""
    for number in range(size_mib // 8):
        (private_folder() / f"filled-{number}").write_bytes(b"x" * 2**23)
    return f"{size_mib} MiB"


def removed() -> str:
    """Space that no name leads to: the file is open still."""
    KEPT.append(tempfile.TemporaryFile(dir=private_folder()))  # noqa: SIM115
    for _ in range(48):
        KEPT[-1].write(b"x" * 2**20)
    KEPT[-1].flush()
    return "kept 48 MiB"


def read_disk() -> str:
    """Reads 3 MiB past the page cache; says how many seconds that took."""
    path = private_folder() / "on-the-disk"
    with path.open("wb") as file:
        file.write(os.urandom(3 * 2**20))
        file.flush()
        os.fsync(file.fileno())
    block = mmap.mmap(-1, 2**18)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    began, read = time.monotonic(), 0
    while count := os.readv(fd, [block]):
        read += count
    os.close(fd)
    path.unlink()
    return f"{read} bytes in {time.monotonic() - began:.3f} s"


def many_files() -> str:
    for number in range(1500):
        (private_folder() / f"empty-{number}").touch()
    return "1500 files"


def empty_again() -> str:
    for path in private_folder().iterdir():
        path.unlink()
    KEPT.clear()
    return "emptied"


def hang() -> str:
    """Stop reading for ever, though the process runs."""
    return silent()


MODES: dict[str, Callable[[], str]] = {
    "well": well,
    "exit": exit_at_once,
    "silent": silent,
    "garbage": garbage,
    "flood-stdout": lambda: flood(1),
    "flood-stderr": lambda: flood(2),
    "ignore-term": ignore_term,
    "orphan": orphan,
    "memory": memory,
    "shared": shared,
    "cpu": cpu,
    "processes": processes,
    "descriptors": descriptors,
    "disk": disk,
    "refused": refused,
    "refused-flood": refused_flood,
    "fill-24": lambda: fill(24),
    "fill-48": lambda: fill(48),
    "removed": removed,
    "many-files": many_files,
    "read-disk": read_disk,
    "empty-again": empty_again,
    "hang": hang,
}


def send(message: dict[str, object]) -> None:
    line = json.dumps({"jsonrpc": "2.0", **message}) + "\n"
    os.write(1, line.encode())


def call(name: str, arguments: dict[str, object]) -> str:
    if name == "slow":
        time.sleep(float(str(arguments.get("seconds", 1))))
        return "slept"
    if name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "act":
        return MODES[str(arguments["mode"])]()
    if name == "pid":
        return str(os.getpid())
    return str(arguments.get("text", ""))


def answer(request: dict[str, object]) -> None:
    method, params = request.get("method"), request.get("params") or {}
    assert isinstance(params, dict)
    result: dict[str, object]
    if method == "initialize":
        result = {
            "protocolVersion": params.get("protocolVersion", "2025-11-25"),
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "misbehaving", "version": "1"},
        }
    elif method == "ping":
        result = {}
    elif method == "tools/list":
        result = {"tools": TOOLS}
    elif method == "tools/call":
        text = call(str(params.get("name")), params.get("arguments") or {})
        result = {"content": [{"type": "text", "text": text}]}
    else:
        send({"id": request["id"], "error": {"code": -32601, "message": f"no {method}"}})
        return
    send({"id": request["id"], "result": result})


def main() -> None:
    mode = sys.argv[1] if len(sys.argv) > 1 else "well"
    if mode in {"flood-stdout", "flood-stderr"}:
        # Beside the protocol: the server answers and floods at the same time.
        threading.Thread(target=MODES[mode], daemon=True).start()
    else:
        MODES[mode]()
    marker = os.environ.get("MARKER")
    if marker:
        Path(marker).write_text("started", encoding="ascii")
    for line in sys.stdin:
        request = json.loads(line) if line.strip() else {}
        if "id" in request:
            answer(request)
    if mode == "ignore-term":
        silent()


if __name__ == "__main__":
    main()
