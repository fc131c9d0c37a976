"""The compiled filter in a real kernel: what must work works, what must not fails.

Every refused call has an unconfined control that gets past the entry of the same call, so that
a refusal is the filter's doing.
"""

import errno
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from vsm.configuration.profile import load_profile
from vsm.core.seccomp import compile_filter, rules_for

pytestmark = [
    pytest.mark.isolation,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="calls by x86_64 number"),
]

TIERS = ("namespaced", "landlocked")
TIMEOUT_S = 60

# Runs `argv[2:]` under the filter in hexadecimal `argv[1]`, or without one.
CONFINE = """
import ctypes, os, sys
from vsm.linux.seccomp import install
if sys.argv[1]:
    ctypes.CDLL(None, use_errno=True).prctl(38, 1, 0, 0, 0)
    install(bytes.fromhex(sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
"""

PYTHON_WORKS = """
import asyncio, concurrent.futures, multiprocessing, os, socket, ssl, subprocess, sys, tempfile
import threading, time
ssl.create_default_context()
async def main():
    await asyncio.to_thread(time.sleep, 0)
    child = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=subprocess.PIPE)
    out, _ = await child.communicate()
    assert out == b"hi\\n", out
asyncio.run(main())
threads = [threading.Thread(target=os.getpid) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
assert subprocess.run(["/bin/sh", "-c", "exit 3"]).returncode == 3
assert concurrent.futures.ThreadPoolExecutor(2).submit(len, "abc").result() == 3
with tempfile.TemporaryDirectory() as d, open(d + "/f", "w+") as f:
    f.write("x"), f.flush(), os.fsync(f.fileno()), os.rename(d + "/f", d + "/g")
assert os.isatty(os.openpty()[1])
a, b = socket.socketpair()
a.sendall(b"x")
assert b.recv(1) == b"x"
print("works")
"""

NODE_WORKS = """
const { Worker } = require("worker_threads"), cp = require("child_process"), fs = require("fs");
if (cp.execSync("echo sync").toString() !== "sync\\n") process.exit(2);
new Worker("require('fs').readdirSync('/usr')", { eval: true }).on("exit", (code) => {
  if (code) process.exit(3);
  fs.promises.readFile("/proc/self/status").then(() =>
    require("zlib").gzip("x", () =>
      cp.spawn("/bin/true").on("exit", (c) => c || console.log("works"))));
});
"""

# Prints the errno of one raw call; a negative argument is as C would pass it.
CALL = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
number, *args = map(int, sys.argv[1:])
result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in args))
print(ctypes.get_errno() if result == -1 else 0)
"""

# getpid through the 32-bit entry: mov eax, 20; int 0x80; ret
INT_80 = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")
entry = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(entry)() != 0)
"""

# A pair of datagram sockets reaches a named socket that is not its peer.
DATAGRAM_PAIR = """
import os, socket, tempfile
with tempfile.TemporaryDirectory() as folder:
    try:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    except PermissionError:
        print("refused")
    else:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind(folder + "/s")
        a.sendto(b"x", folder + "/s")
        print("reached", server.recv(1))
"""

Require = Callable[[str, bool, str], None]


def program(tier: str, profile: str = "integration", *, inet: bool = False) -> str:
    syscalls = load_profile(profile).syscalls
    rules = rules_for(
        syscalls.allow, syscalls.deny, unix_sockets=syscalls.unix_sockets, inet=inet, tier=tier
    )
    return compile_filter(rules, "x86_64").hex()


def run(filter_hex: str, *argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", CONFINE, filter_hex, *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def python(filter_hex: str, code: str, *args: object) -> "subprocess.CompletedProcess[str]":
    return run(filter_hex, sys.executable, "-c", code, *map(str, args))


@pytest.mark.parametrize("tier", TIERS)
def test_python_runs_unmodified(tier: str) -> None:
    done = python(program(tier), PYTHON_WORKS)
    assert done.stdout == "works\n", done.stderr


@pytest.mark.parametrize("tier", TIERS)
def test_node_runs_unmodified(tier: str, require: Require) -> None:
    node = shutil.which("node")
    require("node", node is not None, "not installed")
    done = run(program(tier, "node-server"), str(node), "-e", NODE_WORKS)
    assert done.stdout == "works\n", done.stderr


BAD_ADDRESS = 1


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("name", "number", "args"),
    [
        ("ptrace of nobody", 101, (16, 2**22)),
        ("bpf", 321, (0, BAD_ADDRESS, 72)),
        ("perf_event_open", 298, (BAD_ADDRESS, 0, 0, -1, 0)),
        ("io_uring_setup", 425, (1, BAD_ADDRESS)),
        ("keyctl", 250, (0, 2**30, 0)),
        ("add_key", 248, (BAD_ADDRESS, 0, 0, 0, -3)),
        ("process_vm_readv", 310, (2**22, 0, 0, 0, 0, 0)),
        ("kcmp", 312, (2**22, 2**22, 0, 0, 0)),
        ("open_tree", 428, (-1, BAD_ADDRESS, 0)),
        ("fsopen", 430, (BAD_ADDRESS, 0)),
        ("mount", 165, (BAD_ADDRESS, BAD_ADDRESS, BAD_ADDRESS, 0, 0)),
        ("unshare of files", 272, (0x400,)),
        ("setns", 308, (-1, 0)),
        ("name_to_handle_at", 303, (-1, BAD_ADDRESS, BAD_ADDRESS, 0, 0)),
        ("memfd_secret", 447, (-1,)),
        ("seccomp", 317, (99, 0, 0)),
        ("prctl PR_SET_MM", 157, (35, 99, 0, 0, 1)),
        ("prctl PR_SET_PTRACER", 157, (0x59616D61, 2**22, 0, 0, 0)),
        ("personality without randomised addresses", 135, (0x0040000,)),
        ("socket of AF_ALG", 41, (38, 5, 0)),
        ("socket of AF_NETLINK", 41, (16, 3, 0)),
        ("socket of AF_UNIX", 41, (1, 1, 0)),
        ("socket of AF_INET", 41, (2, 1, 0)),
        ("socket with garbage above its domain", 41, (2 | 7 << 32, 1, 0)),
        ("clone of a user namespace", 56, (0x10000000 | 0x10000, 0, 0, 0, 0)),
        ("ioctl TIOCLINUX", 16, (1, 0x541C, BAD_ADDRESS)),
        ("ioctl TIOCSTI with garbage above it", 16, (1, 0x5412 | 7 << 32, BAD_ADDRESS)),
    ],
)
def test_a_refused_call_answers_eperm_and_its_control_does_not(
    tier: str, name: str, number: int, args: tuple[int, ...], require: Require
) -> None:
    control = python("", CALL, number, *args)
    require(name, control.stdout.strip() != str(errno.EPERM), "refused without a filter too")
    confined = python(program(tier), CALL, number, *args)
    assert confined.stdout.strip() == str(errno.EPERM), f"{name}: {confined}"


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize(
    ("number", "args"),
    [
        (318, (BAD_ADDRESS, 8, 0)),
        (257, (-100, BAD_ADDRESS, 0)),
        (53, (1, 1, 0, BAD_ADDRESS)),
        (302, (0, 7, 0, BAD_ADDRESS)),
    ],
)
def test_an_allowed_call_reaches_the_kernel(tier: str, number: int, args: tuple[int, ...]) -> None:
    assert python(program(tier), CALL, number, *args).stdout.strip() == str(errno.EFAULT)


def test_clone3_does_not_exist() -> None:
    assert python("", CALL, 435, 0, 0).stdout.strip() == str(errno.EINVAL)
    assert python(program("namespaced"), CALL, 435, 0, 0).stdout.strip() == str(errno.ENOSYS)


def test_the_32_bit_entry_kills() -> None:
    control = python("", INT_80)
    if control.returncode:
        pytest.skip("this kernel has no 32-bit entry")
    assert control.stdout == "True\n"
    assert python(program("namespaced"), INT_80).returncode == -signal.SIGSYS


def test_a_datagram_pair_cannot_reach_a_named_socket() -> None:
    assert python("", DATAGRAM_PAIR).stdout == "reached b'x'\n"
    assert python(program("landlocked"), DATAGRAM_PAIR).stdout == "refused\n"
