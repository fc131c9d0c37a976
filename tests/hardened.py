"""What each directive of the service unit takes away, tried from inside a service.

    python3 hardened.py        # {DIRECTIVE: "possible" | "refused" | "killed"}

Needs nothing but Python: scripts/service-proof copies it into the container and runs it without
any directive, under each alone, and under all. Beside it lie `suid`, a copy of id(1) that is
root's and set-uid, and it expects /usr/lib/modules/proof, which nothing but itself looks for.
An invalid argument shows that a call is allowed: the kernel then says EFAULT or EINVAL.
"""

import ctypes
import errno
import json
import mmap
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).parent
NOBODY = 65534
ANSWERED = {0, errno.EFAULT, errno.EINVAL, errno.ENOSYS}  # of a call that no filter stopped
LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {  # x86_64, aarch64; of each group in the unit's SystemCallFilter one that both have
    "adjtimex": (159, 171),  # @clock
    "perf_event_open": (298, 241),  # @debug
    "delete_module": (176, 106),  # @module
    "reboot": (169, 142),  # @reboot
    "swapoff": (168, 225),  # @swap
    "clock_settime": (227, 112),
    "sched_setscheduler": (144, 119),
    "personality": (135, 92),
    "keyctl": (250, 219),
}
X86 = {"modify_ldt": 154, "iopl": 172, "sysfs": 139}  # @cpu-emulation, @raw-io, @obsolete
FILTERED = ("adjtimex", "perf_event_open", "delete_module", "reboot", "swapoff")


def call(name: str, *arguments: int) -> int:
    """Make a system call; its result.

    Raises:
        OSError: it failed.
    """
    x86 = platform.machine() == "x86_64"
    number = X86[name] if name in X86 else NUMBERS[name][0 if x86 else 1]
    result = LIBC.syscall(number, *(ctypes.c_long(one) for one in (*arguments, 0, 0, 0)))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return int(result)


def answered(name: str, *arguments: int) -> None:
    """Make a call with arguments that the kernel takes for wrong.

    Raises:
        OSError: it did not get as far.
    """
    try:
        call(name, *arguments)
    except OSError as error:
        if error.errno not in ANSWERED:
            raise


def gain_privileges_by_exec() -> None:
    """Root's set-uid program, started by nobody."""
    done = subprocess.run(
        [HERE / "suid", "-u"], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    if done.stdout.strip() != "0":
        raise PermissionError(errno.EPERM, "no privilege")


def use_another_capability() -> None:
    """CAP_SYS_CHROOT."""
    os.chroot("/")


def write_to_the_system() -> None:
    """A file in each place of its own."""
    for folder in ("/etc", "/usr"):
        with tempfile.TemporaryFile(dir=folder):
            pass


def read_modules() -> None:
    """The kernel's modules, or what stands for them."""
    if "proof" not in os.listdir("/usr/lib/modules"):
        raise PermissionError(errno.EACCES, "nothing is there")


def read_the_kernels_log() -> None:
    """The device of the log; a node without any permission lies over it."""
    if not os.stat("/dev/kmsg").st_mode & 0o777:
        raise PermissionError(errno.EACCES, "/dev/kmsg")


def set_the_clock() -> None:
    """To a time that is nowhere."""
    answered("clock_settime", 0, 0)


def change_personality() -> None:
    """PER_LINUX32."""
    call("personality", 8)


def run_in_real_time() -> None:
    """SCHED_FIFO, with no parameter."""
    answered("sched_setscheduler", 0, 1, 0)


def enter_by_another_architecture() -> None:
    """getpid by int 0x80; where there is no such entry, nothing is shown."""
    if platform.machine() != "x86_64":
        return
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() != os.getpid():
        raise PermissionError(errno.EPERM, "no answer")


def open_a_packet_socket() -> None:
    """With all frames of its network."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


def make_a_call_that_nobody_needs() -> None:
    """One of each filtered group: all have to be stopped, and one that is not is enough."""
    names = FILTERED if platform.machine() != "x86_64" else (*FILTERED, *X86)
    ends = {tried(partial(call, name, -1)) for name in names}
    if ends == {"killed"}:
        os.kill(os.getpid(), signal.SIGSYS)
    if "possible" not in ends:
        raise PermissionError(errno.EPERM, "every call")


def share_the_session_keyring() -> None:
    """One without the key that systemd puts into a service's own."""
    words = [ctypes.create_string_buffer(word) for word in (b"user", b"invocation_id")]
    held = ctypes.create_string_buffer(16)
    try:
        key = call("keyctl", 10, -3, *map(ctypes.addressof, words))  # KEYCTL_SEARCH the session's
        call("keyctl", 11, key, ctypes.addressof(held), len(held))  # KEYCTL_READ
    except OSError as error:
        if error.errno != errno.ENOKEY:
            raise
    if held.raw.hex() == os.environ["INVOCATION_ID"]:
        raise PermissionError(errno.EPERM, "a keyring of its own")


def leave_files_readable() -> None:
    """By a plain open."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.touch()
        if not path.stat().st_mode & 0o077:
            raise PermissionError(errno.EACCES, str(path))


def leave_a_core() -> None:
    """In a file, or, unless the limit is one byte (core(5)), to the host's helper by a pipe."""
    if resource.getrlimit(resource.RLIMIT_CORE) == (1, 1):
        raise PermissionError(errno.EPERM, "no core")


PROBES: dict[str, Callable[[], None]] = {
    "NoNewPrivileges": gain_privileges_by_exec,
    "CapabilityBoundingSet": use_another_capability,
    "ProtectSystem": write_to_the_system,
    "ProtectKernelModules": read_modules,
    "ProtectKernelLogs": read_the_kernels_log,
    "ProtectClock": set_the_clock,
    "LockPersonality": change_personality,
    "RestrictRealtime": run_in_real_time,
    "SystemCallArchitectures": enter_by_another_architecture,
    "RestrictAddressFamilies": open_a_packet_socket,
    "SystemCallFilter": make_a_call_that_nobody_needs,
    "SystemCallErrorNumber": make_a_call_that_nobody_needs,
    "KeyringMode": share_the_session_keyring,
    "UMask": leave_files_readable,
    "LimitCORE": leave_a_core,
}


def tried(probe: Callable[[], object]) -> str:
    """How it ends, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        _try(probe)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGSYS else "broken"
    return ("possible", "refused")[os.WEXITSTATUS(status)]


def _try(probe: Callable[[], object]) -> NoReturn:
    try:
        probe()
    except OSError as error:
        name = getattr(probe, "__name__", "")
        sys.stderr.write(f"{name}: {error}\n")
        os._exit(0 if error.errno in ANSWERED else 1)
    os._exit(0)


if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: tried(probe) for name, probe in PROBES.items()}))
