"""What each integration was approved to offer, and what it offers: two files a name.

Runs in the supervisor. `NAME.approved.json` and `NAME.offered.json` in the state directory's
`pins` folder hold key → item as the server wrote it; only a person's approval, or a first use
where the integration allows that, moves an item from the second into the first. The items are
foreign: they are hashed, compared and handed on, never acted upon.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from msgspec import Raw

from vsm.board.memory import create, map_verified
from vsm.core import trust
from vsm.core.trust import Mode
from vsm.errors import VsmError

MAX_DOCUMENT_BYTES: Final = 20 * 1024 * 1024
MAX_KEPT_BYTES: Final = 2 * MAX_DOCUMENT_BYTES
Items: TypeAlias = dict[str, dict[str, Raw]]

_items: Final = msgspec.json.Decoder(Items)


@dataclass(frozen=True)
class Difference:
    """One item that is not as it was approved.

    Args:
        state: "new", "changed" or "gone".
        before, after: the item as JSON; "" where there is none.
    """

    key: str
    state: str
    before: str
    after: str


class PinStore:
    """The pins of all integrations.

    Args:
        directory: private, made at the first pin. Names are the configuration's, never a server's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def approved(self, name: str) -> Items | None:
        """What was approved; None where nothing ever was.

        Raises:
            VsmError: the file cannot be read or is damaged.
        """
        return self._load(self._file(name, "approved"))

    def offered(self, name: str) -> Items:
        """What was offered last, where it was not all approved.

        Raises:
            VsmError: the file cannot be read or is damaged.
        """
        return self._load(self._file(name, "offered")) or {}

    def hashes(self, name: str) -> dict[str, str] | None:
        """The pins as the gateway needs them.

        Raises:
            VsmError: the file cannot be read or is damaged.
        """
        items = self.approved(name)
        return None if items is None else _hashes(items)

    def take(self, name: str, document: bytes, mode: Mode) -> trust.Judgement:
        """Keep what is offered now; with `first-use` pin what is new.

        Raises:
            VsmError: it is no such document, or it cannot be written.
        """
        try:
            offered = _items.decode(document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise VsmError(f"pins of {name}", f"what is offered is not valid: {error}") from None
        approved = self.approved(name)
        pins = None if approved is None else _hashes(approved)
        judgement = trust.judge(_hashes(offered), pins, mode)
        self._write(self._file(name, "offered"), offered)
        if judgement.fresh or (approved is None and mode == "first-use"):
            fresh = {key: offered[key] for key in judgement.fresh}
            self._write(self._file(name, "approved"), (approved or {}) | fresh)
        return judgement

    def differences(self, name: str) -> list[Difference]:
        """How what is offered differs from what was approved, in the order of the keys.

        Raises:
            VsmError: a file cannot be read or is damaged.
        """
        before, after = self.approved(name) or {}, self.offered(name)
        if not after:
            return []
        return [
            Difference(key, _state(key, before, after), _text(before, key), _text(after, key))
            for key in sorted(before.keys() | after.keys())
            if _hash(before, key) != _hash(after, key)
        ]

    def approve(self, name: str, keys: Iterable[str] | None = None) -> list[str]:
        """Pin what is offered now: all of it, or the items under `keys`. What is gone is unpinned.

        Returns:
            The keys that differed and are approved now.

        Raises:
            VsmError: a key does not differ, or a file cannot be read or written.
        """
        differing = {one.key: one for one in self.differences(name)}
        wanted = list(differing) if keys is None else list(dict.fromkeys(keys))
        for key in wanted:
            if key not in differing:
                known = ", ".join(differing) or "nothing"
                raise VsmError(f"pins of {name}", f"{key!r} needs no approval", f"Open: {known}.")
        approved, offered = self.approved(name) or {}, self.offered(name)
        for key in wanted:
            if key in offered:
                approved[key] = offered[key]
            else:
                approved.pop(key, None)
        if wanted:
            self._write(self._file(name, "approved"), approved)
        return wanted

    def forget(self, name: str) -> None:
        """The integration is gone on purpose."""
        for what in ("approved", "offered"):
            self._file(name, what).unlink(missing_ok=True)

    def _file(self, name: str, what: str) -> Path:
        return self._directory / f"{name}.{what}.json"

    def _load(self, file: Path) -> Items | None:
        try:
            return _items.decode(file.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise VsmError(str(file), f"cannot be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            remedy = (
                "Remove it: what the server offers is then compared with nothing, and with "
                'trust = "first-use" pinned as it is.'
            )
            raise VsmError(str(file), "is damaged", remedy) from None

    def _write(self, file: Path, items: Items) -> None:
        partial = file.with_suffix(".partial")
        content = msgspec.json.encode(items)
        if len(content) > MAX_KEPT_BYTES:
            raise VsmError(str(file), f"{len(content)} bytes are more than is kept")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with partial.open("wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            partial.replace(file)
        except OSError as error:
            raise VsmError(str(file), f"cannot be written: {error.strerror}") from error


def to_memory(document: bytes) -> int:
    """A sealed memfd that holds the document; the caller's to close."""
    fd, mapping = create("pins", max(1, len(document)))
    mapping[: len(document)] = document
    mapping.close()
    return fd


def from_memory(fd: int) -> bytes:
    """What a sealed memfd holds.

    Raises:
        BoardError: it is none, or too large.
    """
    mapping = map_verified(fd, least_bytes=1, most_bytes=MAX_DOCUMENT_BYTES)
    try:
        return bytes(mapping).rstrip(b"\0")
    finally:
        mapping.close()


def _hashes(items: Items) -> dict[str, str]:
    return {key: trust.fingerprint(item) for key, item in items.items()}


def _hash(items: Items, key: str) -> str:
    return trust.fingerprint(items[key]) if key in items else ""


def _state(key: str, before: Mapping[str, object], after: Mapping[str, object]) -> str:
    if key not in before:
        return "new"
    return "changed" if key in after else "gone"


def _text(items: Items, key: str) -> str:
    return msgspec.json.encode(items[key]).decode() if key in items else ""
