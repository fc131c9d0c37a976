"""What an integration offered when it last ran: one file for each, S1's own words.

Runs in the supervisor, which keeps the bytes and never looks into them: S1 checks what it gets
back. An entry of the configuration that was changed has nothing known of it.
"""

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from vsm.board.memory import BoardError
from vsm.configuration.config import Integration
from vsm.pins import from_memory, to_memory

MAX_BYTES: Final = 4 * 1024 * 1024
_DIGEST_BYTES: Final = 32


class SurfaceStore:
    """The surfaces of all integrations.

    Args:
        directory: private, made at the first one. Names are the configuration's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, integration: Integration, fd: int) -> None:
        """Write what S1 learnt; where that cannot be done, nothing is known at the next start."""
        try:
            content = from_memory(fd)
        except BoardError:
            return
        whole = _digest(integration) + content
        file = self._file(integration.name)
        if len(content) > MAX_BYTES or self._read(file) == whole:
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_bytes(whole)
            partial.replace(file)
        except OSError:
            return

    def recall(self, integration: Integration) -> int | None:
        """A memfd for S1, the caller's to close; None where nothing is known."""
        whole = self._read(self._file(integration.name))
        if whole[:_DIGEST_BYTES] != _digest(integration) or len(whole) <= _DIGEST_BYTES:
            return None
        return to_memory(whole[_DIGEST_BYTES:])

    def forget(self, name: str) -> None:
        """The integration is gone on purpose."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    @staticmethod
    def _read(file: Path) -> bytes:
        try:
            return file.read_bytes()
        except OSError:
            return b""


def _digest(integration: Integration) -> bytes:
    """Of the entry as it is configured; a secret's value is no part of it."""
    return hashlib.sha256(msgspec.json.encode(integration)).digest()
