"""The service manager's protocol without a library: sd_notify(3), sd_listen_fds(3), its fd store.

Runs in the supervisor. Children must neither speak for vsm nor take its descriptors: `take_over`
removes the variables from the environment and keeps what they said. Without it, as inside a program
that uses vsm as a library and may be a service of its own, there is nobody to tell.
"""

import array
import contextlib
import os
import socket
import stat
import time
from collections.abc import Sequence
from typing import Final

_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_VARIABLES: Final = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
)  # fmt: skip
_STORED: Final = "stored-"  # what tells a descriptor of the store from a listener of a socket unit
_kept: dict[str, str] = {}
_given: list[tuple[str, int]] = []  # name and descriptor; whoever asks for one owns it


def take_over() -> None:
    """Keep what the service manager said and hide it from every child; once, at the start."""
    for name in _VARIABLES:
        value = os.environ.pop(name, None)
        if value is not None:
            _kept[name] = value
    count, pid = _said("LISTEN_FDS"), _said("LISTEN_PID")
    if not count.isdigit() or pid != str(os.getpid()):
        return
    names = _said("LISTEN_FDNAMES").split(":")
    for number in range(int(count)):
        with contextlib.suppress(OSError):  # one that is not open was not given
            os.set_inheritable(_FIRST_FD + number, False)  # noqa: FBT003 - its only argument
            _given.append((names[number] if number < len(names) else "", _FIRST_FD + number))


def is_managed() -> bool:
    """Whether a service manager listens to this process."""
    return bool(_said("NOTIFY_SOCKET"))


def notify(*lines: str, fds: Sequence[int] = ()) -> bool:
    """Send `lines` ("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=…"); False if nobody heard."""
    address = _said("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(0)
        given = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sender.sendmsg(["\n".join(lines).encode()], given, 0, address)
        except OSError:
            return False
    return True


def notify_reloading() -> bool:
    """Say that a reload began; READY=1 ends it. The time stamp is what `notify-reload` asks for."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval_s() -> float | None:
    """How often to say WATCHDOG=1: twice as often as the manager asks; None if it does not."""
    text = _said("WATCHDOG_USEC")
    pid = _said("WATCHDOG_PID") or str(os.getpid())
    if not text.isdigit() or not int(text) or pid != str(os.getpid()):
        return None
    return int(text) / 2e6


def listeners() -> list[socket.socket]:
    """The sockets that the service manager handed over, now the caller's; none the second time."""
    given = [socket.socket(fileno=fd) for name, fd in _take(stored=False) if _is_socket(name, fd)]
    for sock in given:
        sock.settimeout(0)
    return given


def store(name: str, fds: Sequence[int]) -> bool:
    """Have the service manager keep duplicates of `fds` until the unit is stopped.

    It keeps an open file once: what it holds under one name cannot be stored under another.

    Returns:
        False if it did not hear; whether there is a store at all it does not say.
    """
    return notify("FDSTORE=1", f"FDNAME={_STORED}{name}", fds=fds)


def unstore(name: str) -> bool:
    """Have it close whatever it keeps under a name."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={_STORED}{name}")


def stored() -> dict[str, list[int]]:
    """What it kept, by name, the descriptors now the caller's; nothing the second time."""
    found: dict[str, list[int]] = {}
    for name, fd in _take(stored=True):
        found.setdefault(name.removeprefix(_STORED), []).append(fd)
    return found


def _take(*, stored: bool) -> list[tuple[str, int]]:
    taken = [one for one in _given if one[0].startswith(_STORED) == stored]
    _given[:] = [one for one in _given if one not in taken]
    return taken


def _is_socket(name: str, fd: int) -> bool:
    """Whether it is one; what is not belongs to no vsm that we know, and is let go."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return True
    notify("FDSTOREREMOVE=1", f"FDNAME={name}")
    os.close(fd)
    return False


def _said(name: str) -> str:
    return _kept.get(name, "")
