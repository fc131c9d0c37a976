"""The table of attempts, and how one runs: in a child of its own, with a bounded answer.

Standard library only, and relative imports only: the package is copied to where a confined
interpreter can read it. An attempt raises what the system answered; returning means "possible".
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

World = dict[str, Any]
BAD = 1  # a pointer that no process has mapped
MINUS = -1
SELF = -(1 << 40)  # stands for the attempt's own pid
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Unavailable(Exception):  # noqa: N818
    """The attempt makes no sense on this machine."""


class Attempt:
    """One attempt.

    Args:
        guards: the layers that are each meant to stop it; the first is the one to take away.
        control: "any" if an ordinary user can do it unconfined, "root" if only root can.
        weaker: tier or tier/user → why it is possible there: expected to succeed, documented.
    """

    def __init__(
        self,
        name: str,
        group: str,
        action: Callable[[World], None],
        guards: tuple[str, ...],
        *,
        control: str = "any",
        weaker: dict[str, str] | None = None,
    ) -> None:
        self.name, self.group, self.action = name, group, action
        self.guards, self.control, self.weaker = tuple(guards), control, weaker or {}


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    group: str, *guards: str, control: str = "any", weaker: dict[str, str] | None = None
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Register a function as an attempt; its name is the attempt's."""

    def register(action: Callable[[World], None]) -> Callable[[World], None]:
        name = action.__name__
        ATTEMPTS[name] = Attempt(name, group, action, guards, control=control, weaker=weaker)
        return action

    return register


def syscall(number: int, *args: int | bytes) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise last_error()
    return int(result)


def last_error() -> OSError:
    """What the C library's last call answered."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


PROC_GAP = "own /proc entries cannot be told from others by Landlock"
DISK_GAP = "the private folder is on the host's disk; only single files are bounded"
BOUNDING_GAP = "an ordinary user cannot empty it; no_new_privs makes it useless"
LANDLOCK_GAP = "Landlock does not cover it"
BUILD_GAP = "no secret: as public as the kernel's package; a worker cannot use keys"
OWN_CODE = "a server brings its own code anyhow; what it starts is confined alike"


NUMBERS: dict[str, int] = {
    "clone": 56,
    "ptrace": 101,
    "process_vm_readv": 310,
    "mq_open": 240,
    "keyctl": 250,
    "capget": 125,
}


def number(name: str) -> int:
    """The number of a system call of this table or of the calls'."""
    if platform.machine() != "x86_64":
        raise Unavailable("the table has x86_64 numbers")
    return NUMBERS[name]


def scratch() -> str:
    for folder in (os.environ.get("TMPDIR"), "/tmp", os.environ.get("HOME")):
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK):
            return folder
    raise Unavailable("no folder to write in")


def pty() -> tuple[int, int]:
    try:
        return os.openpty()
    except OSError as error:
        raise PermissionError(error.errno, f"no terminal: {error.strerror}") from error


def run_program(argv: list[str]) -> bytes:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(tell, 1)
        try:
            os.execv(argv[0], argv)
        except OSError as error:
            os._exit(error.errno or 1)
    os.close(tell)
    output = b""
    while block := os.read(told, 4096):
        output += block
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise OSError(code if code > 0 else errno.EPERM, "it did not run")
    return output


def outcome_of(action: Callable[[World], None], world: World) -> dict[str, str]:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_attempt(action, world, tell)
    os.close(tell)
    answer = b""
    while block := os.read(told, 4096):
        answer += block
    os.close(told)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if answer:
        told_us: dict[str, str] = json.loads(answer)
        return told_us
    return {"outcome": "refused", "detail": f"killed by {code}"}


def _be_attempt(action: Callable[[World], None], world: World, tell: int) -> None:
    """Runs in the child; never returns."""
    try:
        action(world)
        answer = {"outcome": "possible", "detail": ""}
    except Unavailable as error:
        answer = {"outcome": "unavailable", "detail": str(error)}
    except (OSError, MemoryError) as error:
        code = errno.errorcode.get(getattr(error, "errno", 0) or 0, type(error).__name__)
        answer = {"outcome": "refused", "detail": code}
    except BaseException as error:  # noqa: BLE001
        answer = {"outcome": "broken", "detail": repr(error)}
    os.write(tell, json.dumps(answer).encode())
    os._exit(0)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def main() -> None:
    world: World = json.loads(sys.argv[1])
    world["parent"] = os.getppid()
    world["open_at_start"] = [fd for fd in range(3, 256) if _is_open(fd)]
    results = {}
    for name in sys.argv[2:] or ATTEMPTS:
        results[name] = outcome_of(ATTEMPTS[name].action, world)
    sys.stdout.write(json.dumps(results))
