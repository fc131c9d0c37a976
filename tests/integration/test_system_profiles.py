"""Each system's own filter, applied by the process to itself, leaves it what it needs."""

import os
import platform
import signal
import socket
import subprocess
import sys

import pytest

from vsm.configuration.profile import load_profile
from vsm.core.seccomp import compile_filter, rules_for

pytestmark = [
    pytest.mark.isolation,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is the host's"),
]

TIMEOUT_S = 60

# What a system does after it has confined itself: a loop, a listener and a descriptor that it was
# given, a board of its own, a late import, a thread. A program or a socket it may not have.
SYSTEM = """
import array, asyncio, ctypes, faulthandler, mmap, os, resource, signal, socket, sys
import numpy, pydantic, uvloop
from vsm.linux.seccomp import install
listener, link = socket.socket(fileno=int(sys.argv[2])), socket.socket(fileno=int(sys.argv[3]))
faulthandler.enable()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
install(bytes.fromhex(sys.argv[1]))

async def main():
    loop = asyncio.get_running_loop()
    board = os.memfd_create("board", os.MFD_ALLOW_SEALING)
    os.ftruncate(board, 4096)
    mmap.mmap(board, 4096)[:2] = b"ok"
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    await asyncio.to_thread(resource.getrusage, resource.RUSAGE_SELF)
    __import__("xml.dom.minidom")
    given = socket.recv_fds(link, 16, 1)[1][0]
    os.write(given, b"given")
    for attempt in (lambda: socket.socket(socket.AF_UNIX), lambda: socket.socket(socket.AF_INET),
                    lambda: os.execv("/bin/true", ["true"]), lambda: os.fork() or os._exit(0),
                    lambda: os.unlink("/nonexistent"), lambda: os.pidfd_open(1)):
        try:
            attempt()
        except OSError as error:
            print(error.errno, end=" ")
        else:
            print("done", end=" ")
    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    if sys.argv[4] == "system1":
        server = await asyncio.start_unix_server(echo, sock=listener)
    link.send(b"ready")
    await loop.sock_recv(link, 1)
    print("end", flush=True)
    os.abort()

link.setblocking(True)
runner = asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[4] == "system1" else None)
runner.run(main())
"""


def program(name: str) -> str:
    syscalls = load_profile(name).syscalls
    rules = rules_for(
        syscalls.allow, syscalls.deny, unix_sockets=False, inet=False, tier="landlocked"
    )
    return compile_filter(rules, "x86_64").hex()


@pytest.mark.parametrize("name", [f"system{number}" for number in range(1, 6)])
def test_a_system_works_under_its_own_filter(name: str) -> None:
    address = f"\0vsm-test-{os.getpid()}-{name}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (listener.fileno(), theirs.fileno())
        child = subprocess.Popen(
            [sys.executable, "-c", SYSTEM, program(name), *map(str, fds), name],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with ours, theirs, child:
            try:
                converse(ours, name, address)
            finally:
                theirs.close()
                out, err = child.communicate(timeout=TIMEOUT_S)
    assert out.split() == [*["1"] * 6, "end"], err
    assert child.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in err


def converse(ours: socket.socket, name: str, address: str) -> None:
    """Give a descriptor, wait for readiness, be a client of system 1, let the system end."""
    ours.settimeout(TIMEOUT_S)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader:
        socket.send_fds(ours, [b"x"], [write_end])
        os.close(write_end)
        assert ours.recv(16) == b"ready"
        if name == "system1":
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(TIMEOUT_S)
                client.connect(address)
                client.sendall(b"hello\n")
                assert client.recv(16) == b"hello\n"
        ours.send(b"x")
        assert reader.read() == b"given"
