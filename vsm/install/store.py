"""Installed servers: a directory each below $VSM_STATE_DIR/servers, and what is known of them.

Runs in the command line; one change at a time, by a lock. A server's tree is built under a name
that nothing refers to, made read-only, and counts from the moment at which `server.json` names it
(a rename); whatever no `server.json` names is removed by the next change.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from vsm import paths
from vsm.errors import VsmError
from vsm.install.tree import remove

SERVER_FILE: Final = "server.json"
HASHES_FILE: Final = "hashes.json"
CURRENT: Final = "current"
_LOCK_FILE: Final = ".lock"


class PinnedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that was fetched: its hash as pip (`sha256:…`) or npm (`sha512-…`) writes it."""

    name: str
    version: str
    file: str
    hash: str
    install_script: bool = False


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One installed server: `server.json`.

    Args:
        registry: where it came from, without passwords.
        runtime: the interpreter's version.
        directory: of the tree, inside the server's own; `current` links to it.
        previous: the one before it, still there.
        command: the argv for vsm.toml; empty where it is unclear which command is the server.
        commands: all that the package offers.
    """

    name: str
    kind: str
    package: str
    version: str
    registry: str
    runtime: str
    installed_at: str
    vsm: str
    directory: str
    previous: str = ""
    command: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    files: tuple[PinnedFile, ...] = ()


class ServerStore:
    """The folder of all servers."""

    def __init__(self) -> None:
        self.folder = paths.ensure_state_dir() / "servers"
        self.folder.mkdir(mode=0o755, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes anything meanwhile; what an interrupted change left is removed.

        Raises:
            VsmError: another installation is under way.
        """
        fd = os.open(self.folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = "another installation is under way"
                raise VsmError("install", what, "Wait for it to end.") from None
            self._sweep()
            yield
        finally:
            os.close(fd)

    def servers(self) -> list[Server]:
        """Every installed server, by name."""
        found = (self.server(path.parent.name) for path in self.folder.glob(f"*/{SERVER_FILE}"))
        return sorted((one for one in found if one), key=lambda one: one.name)

    def server(self, name: str) -> Server | None:
        """One of them; None if there is none.

        Raises:
            VsmError: its record is damaged.
        """
        path = self.folder / name / SERVER_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=Server)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise VsmError(str(path), f"cannot be read: {error}", "Uninstall it.") from error

    @contextmanager
    def build(self, name: str, version: str) -> Iterator[Path]:
        """A new directory for a server's tree; removed if the block fails before it is committed.

        Everything in it is closed to others until `freeze`.
        """
        home = self.folder / name
        home.mkdir(mode=0o755, exist_ok=True)
        build = home / f"{version}-{secrets.token_hex(4)}"
        build.mkdir(mode=0o700)
        try:
            yield build
        except BaseException:
            self._sweep_one(home)
            raise

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory that is gone afterwards, for asking."""
        folder = self.folder / f".ask-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            remove(folder)

    def commit(self, server: Server, hashes: Mapping[str, str]) -> None:
        """From now on this is the server; remember the hashes first."""
        home = self.folder / server.name
        _write(self.folder / HASHES_FILE, {**self.hashes(), **hashes})
        _write(home / SERVER_FILE, msgspec.to_builtins(server))
        self._sweep_one(home)

    def hashes(self) -> dict[str, str]:
        """The hash of every file that was ever installed, by kind and file name."""
        try:
            found = json.loads((self.folder / HASHES_FILE).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            where = str(self.folder / HASHES_FILE)
            raise VsmError(where, f"cannot be read: {error}", "Restore it.") from error
        return {str(key): str(value) for key, value in found.items()}

    def remove(self, name: str) -> None:
        """Remove a server; its hashes stay known."""
        (self.folder / name / SERVER_FILE).unlink(missing_ok=True)
        remove(self.folder / name)

    def _sweep(self) -> None:
        for home in self.folder.iterdir():
            if home.is_dir() and not home.is_symlink():
                self._sweep_one(home)

    def _sweep_one(self, home: Path) -> None:
        """Have what is there be what the record says; all stays where that is damaged."""
        try:
            server = self.server(home.name)
        except VsmError:
            return
        if server is None:
            remove(home)
            return
        link = home / CURRENT
        if not link.is_symlink() or os.readlink(link) != server.directory:
            fresh = home / f".{CURRENT}"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(server.directory)
            fresh.rename(link)
        kept = {SERVER_FILE, CURRENT, server.directory, server.previous}
        for path in home.iterdir():
            if path.name not in kept:
                remove(path)


def _write(path: Path, content: object) -> None:
    """Replace a file as a whole, durably."""
    fresh = path.with_name(f".{path.name}")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
