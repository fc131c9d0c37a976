"""The service manager's protocol without a library: sd_notify(3) and sd_listen_fds(3).

Runs in the supervisor. Children must neither speak for vsm nor take its sockets: `take_over`
removes the variables from the environment and keeps what they said. Without it, as inside a program
that uses vsm as a library and may be a service of its own, there is nobody to tell.
"""

import os
import socket
import time
from typing import Final

_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_VARIABLES: Final = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
)  # fmt: skip
_kept: dict[str, str] = {}


def take_over() -> None:
    """Keep what the service manager said and hide it from every child; once, at the start."""
    for name in _VARIABLES:
        value = os.environ.pop(name, None)
        if value is not None:
            _kept[name] = value


def notify(*lines: str) -> bool:
    """Send `lines` ("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=…"); False if nobody heard."""
    address = _said("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # the abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(0)
        try:
            sender.sendto("\n".join(lines).encode(), address)
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
    count, pid = _said("LISTEN_FDS"), _said("LISTEN_PID")
    _kept.pop("LISTEN_FDS", None)
    if not count.isdigit() or pid != str(os.getpid()):
        return []
    given = [socket.socket(fileno=fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]
    for sock in given:
        sock.set_inheritable(False)
        sock.settimeout(0)
    return given


def _said(name: str) -> str:
    return _kept.get(name, "")
