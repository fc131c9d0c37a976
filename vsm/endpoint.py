"""The runtime directory at work: lock, listeners, token, endpoint.json.

Runs in the supervisor. Owns these files from `claim` to `release`: one vsm per directory, by
flock, so that what a killed one left behind is known to be stale and is replaced. Listeners that
a service manager handed over are served and left where they are: their files are its own.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vsm import paths
from vsm.errors import ConfigurationError, VsmError
from vsm.fork_guard import die_with_parent
from vsm.run_name import start_time
from vsm.service import notify

BACKLOG: Final = 128
LAUNCHER_TIMEOUT_S: Final = 15.0
RETRY_S: Final = 0.01


@dataclass
class Endpoint:
    """What the supervisor holds of its runtime directory. Owns lock and sockets."""

    directory: Path
    directory_fd: int
    lock_fd: int
    token: str = ""
    http_url: str = ""
    control: socket.socket | None = None
    unix: socket.socket | None = None
    http: socket.socket | None = None
    files: list[Path] = field(default_factory=list)

    def listeners(self) -> dict[str, socket.socket]:
        """S1's listeners, by the names that they travel under."""
        both = {"http": self.http, "unix": self.unix}
        return {name: sock for name, sock in both.items() if sock is not None}

    def stop_accepting(self) -> None:
        """Take the client sockets away, so that nobody new comes; connections stay."""
        for sock in self.listeners().values():
            sock.close()
        path = self.directory / paths.MCP_SOCKET
        if path in self.files:
            path.unlink(missing_ok=True)

    def release(self) -> None:
        """Close everything and remove what `claim` made."""
        for sock in (self.control, self.unix, self.http):
            if sock is not None:
                sock.close()
        for path in reversed(self.files):  # the lock last: from then on all is another vsm's
            path.unlink(missing_ok=True)
        os.close(self.lock_fd)
        os.close(self.directory_fd)

    def names(self) -> list[str]:
        """Every file that may be made here; not a socket that a service manager handed over."""
        sockets = [paths.CONTROL_SOCKET, *([] if self.unix else [paths.MCP_SOCKET])]
        written = [name for file in (paths.TOKEN, paths.ENDPOINT) for name in (file, _fresh(file))]
        return [*sockets, *written, paths.LOCK]


def claim(http: str, on_locked: Callable[[Endpoint], None] = lambda _: None) -> Endpoint:
    """Lock the runtime directory and open every listener.

    Args:
        http: "HOST:PORT" of loopback, "" for none.
        on_locked: called once the directory is ours, before any file but the lock is made.

    Raises:
        VsmError: another vsm runs here, the port is taken, or a service manager handed over a
            socket that belongs elsewhere.
    """
    directory = paths.ensure_runtime_dir()
    die_with_parent()
    try:
        return _claim(directory, http, on_locked)
    except OSError as error:
        what = f"cannot be used: {error.strerror or error}"
        remedy = "Clear it, or point $VSM_RUNTIME_DIR at another directory."
        where = str(error.filename2 or error.filename or directory)
        raise VsmError(where, what, remedy) from error


def _claim(directory: Path, http: str, on_locked: Callable[[Endpoint], None]) -> Endpoint:
    lock_fd = _lock(directory / paths.LOCK)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    endpoint = Endpoint(directory, folder, lock_fd)
    try:
        endpoint.files.append(endpoint.directory / paths.LOCK)
        _adopt(endpoint, http)
        on_locked(endpoint)
        _open(endpoint, http)
    except BaseException:
        endpoint.release()
        raise
    return endpoint


def _open(endpoint: Endpoint, http: str) -> None:
    endpoint.control = _listen_unix(endpoint, paths.CONTROL_SOCKET)
    endpoint.unix = endpoint.unix or _listen_unix(endpoint, paths.MCP_SOCKET)
    if http:
        endpoint.http = endpoint.http or _listen_tcp(http)
        host, port = endpoint.http.getsockname()[:2]
        endpoint.http_url = f"http://{f'[{host}]' if ':' in host else host}:{port}/mcp"
    endpoint.token = secrets.token_urlsafe(32)
    _write(endpoint, paths.TOKEN, endpoint.token + "\n")
    document = {"http": endpoint.http_url, "socket": str(endpoint.directory / paths.MCP_SOCKET)}
    _write(endpoint, paths.ENDPOINT, json.dumps(document) + "\n")


def _adopt(endpoint: Endpoint, http: str) -> None:
    """Take over what the service manager listens on, if it is what vsm would listen on."""
    for sock in notify.listeners():
        if _is_unix(sock, endpoint.directory / paths.MCP_SOCKET):
            endpoint.unix = sock
        elif http and _is_tcp(sock, http):
            endpoint.http = sock
        else:
            name = sock.getsockname()
            sock.close()
            what = f"the service manager listens on {name!r}, vsm.toml says {http or 'no HTTP'!r}"
            raise ConfigurationError("gateway.http", what, "Run `vsm service install` again.")


def _is_unix(sock: socket.socket, path: Path) -> bool:
    return sock.family == socket.AF_UNIX and sock.getsockname() == str(path)


def _is_tcp(sock: socket.socket, address: str) -> bool:
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return False
    host, _, port = address.rpartition(":")
    wanted = {info[4][:2] for info in socket.getaddrinfo(host.strip("[]"), int(port), sock.family)}
    return sock.getsockname()[:2] in wanted


def _lock(path: Path) -> int:
    # Another vsm may unlink the file between our open and our lock: lock, then look again.
    end_s = time.monotonic() + LAUNCHER_TIMEOUT_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            if _is_dead(owner) and time.monotonic() < end_s:
                time.sleep(RETRY_S)  # its launcher, which holds the lock too, is tidying up
                continue
            what = f"another vsm runs here (pid {owner or 'unknown'})"
            remedy = "Stop it by `vsm stop --all`, or set $VSM_RUNTIME_DIR for a second one."
            raise VsmError(str(path.parent), what, remedy) from None
        if _is_at(fd, path):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            return fd
        os.close(fd)


def _is_dead(owner: str) -> bool:
    return owner.isdigit() and start_time(int(owner)) is None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _listen_unix(endpoint: Endpoint, name: str) -> socket.socket:
    path = endpoint.directory / name
    path.unlink(missing_ok=True)  # the lock is ours: whoever bound it is gone
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        what = f"cannot listen: {error.strerror or error}"
        raise VsmError(str(path), what, "Use a shorter $VSM_RUNTIME_DIR.") from error
    finally:
        os.umask(mask)
    endpoint.files.append(path)
    listener.listen(BACKLOG)
    listener.settimeout(0)
    return listener


def _listen_tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
        remedy = 'Set another port in [gateway] http = "127.0.0.1:PORT", or "" to turn HTTP off.'
        raise VsmError(f"gateway.http {address}", f"cannot listen: {reason}", remedy) from error
    listener.settimeout(0)
    return listener


def _fresh(name: str) -> str:
    return f"{name}.new"


def _write(endpoint: Endpoint, name: str, text: str) -> None:
    """Replace the file in one step, readable by us alone."""
    path = endpoint.directory / name
    fresh = endpoint.directory / _fresh(name)
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
    endpoint.files.append(path)
