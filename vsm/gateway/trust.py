"""An integration's pins at the gateway: what its server offers is compared before anyone sees it.

Owns the pins that the supervisor sent and the judgement of the last surface; the surface itself
is the integration's. Runs in S1's event loop, when lists come and when pins do, never for a call.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from vsm.core import trust
from vsm.core.trust import INSTRUCTIONS, Judgement, Mode
from vsm.protocol import jsonrpc
from vsm.protocol.catalogue import Surface, suspension_key
from vsm.protocol.jsonrpc import Object

MAX_DOCUMENT_BYTES: Final = 20 * 1024 * 1024
TOO_MUCH: Final = "its server offers more than can be pinned"
OFFER_PAUSE_S: Final = 2.0
WAITING: Final = "not compared with what was approved yet"

_NAMED_BY: Final = {
    "tools/list": "name",
    "prompts/list": "name",
    "resources/list": "uri",
    "resources/templates/list": "uriTemplate",
}
_HARMLESS: Final = ("idempotentHint", "readOnlyHint")
_pins: Final = msgspec.json.Decoder(dict[str, str])


class Vetting:
    """What of a server's surface may be shown.

    Args:
        mode: of the integration. With "off" everything may.
        offer: takes the document (JSON: key → item) whenever something in it is not pinned.
    """

    def __init__(
        self, mode: Mode = "off", offer: Callable[[bytes], None] = lambda _document: None
    ) -> None:
        self.mode = mode
        self.judgement = Judgement()
        self._offer = offer
        self._pins: dict[str, str] | None = None
        self._told = False
        self._offered = b""
        self._waiting: bytes | None = None
        self._next_at = 0.0

    def pinned(self, document: bytes) -> None:
        """Take the pins (JSON: key → hash); b"" where nothing was ever pinned.

        Raises:
            msgspec.DecodeError: it is no such thing; nothing changes.
        """
        self._pins = _pins.decode(document) if document else None
        self._told = True

    @property
    def pins(self) -> Mapping[str, str] | None:
        """What was approved, by key; None where nothing was, or nothing is compared."""
        return self._pins if self.mode != "off" else None

    def permits(self, key: str) -> bool:
        """Whether an item may be shown."""
        return key not in self.judgement.suspended

    def approves_again(self, surface: Surface, tool: str) -> bool:
        """Whether a person approved a tool that says it is idempotent or only reads.

        What was pinned at first use was approved by nobody.
        """
        if self.mode != "approve" or not self._told:
            return False
        if not self.permits(suspension_key("tools/list", tool)):
            return False
        named = (i for i in surface.lists.get("tools/list", ()) if jsonrpc.text(i, "name") == tool)
        hints = jsonrpc.nested(next(named, {}), "annotations")
        return any(bytes(hints.get(hint, b"")) == b"true" for hint in _HARMLESS)

    def judge(self, surface: Surface, instructions: str) -> None:
        """Suspend what is not as it was approved, and report what is new."""
        items = dict(items_of(surface, instructions))
        if self.mode == "off":
            self.judgement = Judgement()
        elif not self._told:
            self.judgement = Judgement(dict.fromkeys(items, WAITING))
        else:
            offered = {key: trust.fingerprint(item) for key, item in items.items()}
            self.judgement = trust.judge(offered, self._pins, self.mode)
            if self._report(items):
                fresh = {key: offered[key] for key in self.judgement.fresh}
                self._pins = (self._pins or {}) | fresh
            else:
                self.judgement = Judgement(dict.fromkeys(items, TOO_MUCH))
        surface.suspended = self.judgement.suspended

    def _report(self, items: Mapping[str, Object]) -> bool:
        """Say what is not pinned; False where it is more than anybody could keep and approve."""
        judgement = self.judgement
        if not (judgement.suspended or judgement.fresh or judgement.gone):
            self._offered = b""
            return True
        document = msgspec.json.encode(items)
        digest = hashlib.sha256(document).digest()
        if digest != self._offered:
            self._offered = digest
            self._offer_soon(document)
        return len(document) <= MAX_DOCUMENT_BYTES

    def _offer_soon(self, document: bytes) -> None:
        """At once, or once the pause after the last one is over; the newest counts.

        Each offer is parsed and written to the disk, and a server may change as often as it likes.
        """
        waits, self._waiting = self._waiting is not None, document
        if not waits:
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._next_at), self._offer_waiting)

    def _offer_waiting(self) -> None:
        document, self._waiting = self._waiting, None
        self._next_at = asyncio.get_running_loop().time() + OFFER_PAUSE_S
        if document is not None:
            self._offer(document)


def items_of(surface: Surface, instructions: str) -> Iterator[tuple[str, Object]]:
    """Every item under its key; of two with one name the first counts, as in the merged lists."""
    seen: set[str] = set()
    for method, member in _NAMED_BY.items():
        for item in surface.lists.get(method, ()):
            key = suspension_key(method, jsonrpc.text(item, member) or "")
            if key not in seen:
                seen.add(key)
                yield key, item
    if instructions:
        yield INSTRUCTIONS, {"text": jsonrpc.raw_of(instructions)}
