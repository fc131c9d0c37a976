"""Telling a service manager how things stand: sd_notify(3) without a library.

Runs in the supervisor. Without $NOTIFY_SOCKET there is nobody to tell.
"""

import os
import socket


def notify(*lines: str) -> bool:
    """Send `lines` ("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=…"); False if nobody heard."""
    address = os.environ.get("NOTIFY_SOCKET", "")
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


def watchdog_interval_s() -> float | None:
    """How often to say WATCHDOG=1: twice as often as the manager asks; None if it does not."""
    text = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isdigit() or not int(text) or pid != str(os.getpid()):
        return None
    return int(text) / 2e6
