"""The way to the sockets of a running vsm: found, its owner checked, connected.

Runs as the person at the terminal, or in a program.
"""

import os
import socket
from pathlib import Path

from vsm.errors import VsmError
from vsm.paths import runtime_dir


class NotRunningError(VsmError):
    """No vsm listens in the runtime directory."""

    exit_code = 4


def connect(name: str, directory: Path | None = None) -> socket.socket:
    """Connect to a socket of the running vsm.

    Args:
        name: `vsm.paths.CONTROL_SOCKET` or `MCP_SOCKET`.
        directory: its runtime directory, if it is not the one that the environment names.

    Raises:
        NotRunningError: nobody listens there.
        VsmError: somebody else's socket, or no right to use it.
    """
    path = (directory or runtime_dir()) / name
    _check_owner(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        # Through the folder's descriptor: a socket's address holds 107 bytes, a path may be longer.
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection.connect(f"/proc/self/fd/{folder}/{name}")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise _not_running(path) from None
    except OSError as error:
        connection.close()
        raise VsmError(str(path), f"cannot connect: {error.strerror}") from error
    finally:
        if folder >= 0:
            os.close(folder)
    return connection


def _check_owner(path: Path) -> None:
    """Somebody else's socket in a shared folder could answer anything."""
    try:
        owner = path.lstat().st_uid
    except FileNotFoundError:
        raise _not_running(path) from None
    except OSError as error:
        raise VsmError(str(path), f"cannot be looked at: {error.strerror}") from error
    if owner not in {0, os.geteuid()}:
        raise VsmError(str(path), f"belongs to uid {owner}", "Set VSM_RUNTIME_DIR.")


def _not_running(path: Path) -> NotRunningError:
    return NotRunningError(
        str(path),
        "no vsm is running here",
        "Start it with `vsm up`, or point VSM_RUNTIME_DIR at the directory of the running one.",
    )
