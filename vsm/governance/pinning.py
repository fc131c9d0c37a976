"""The supervisor's side of trust: keeps the pins, tells S1, and says what a person should look at.

Runs in the supervisor. S1 compares and suspends; here the record of what was approved is kept,
what is suspicious is flagged once, and approvals are made, always by a person.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from vsm.board.memory import BoardError
from vsm.core import suspicion
from vsm.core.trust import CHANGED, UNAPPROVED
from vsm.errors import VsmError
from vsm.link import close_fds
from vsm.messages import Message, Pins
from vsm.pins import Difference, PinStore, from_memory, to_memory

MAX_TOLD: Final = 20
MAX_ITEM_CHARS: Final = 20_000
MAX_FLAGGED: Final = 1000  # told of one integration; `vsm trust diff` shows all
_CONTEXT_CHARS: Final = 200
_DIGEST_CHARS: Final = 16
Note = Callable[[str, str, str, dict[str, Any]], None]


class Pinning:
    """What every integration may offer.

    Args:
        store: the pins.
        modes: the mode of each integration, by name, as configured now.
        tell: sends S1 a message with descriptors, which stay the caller's.
        note: takes kind, integration, severity and detail for log and journal.
    """

    def __init__(
        self,
        store: PinStore,
        *,
        modes: Callable[[], dict[str, Any]],
        tell: Callable[[Message, list[int]], bool],
        note: Note,
    ) -> None:
        self._store = store
        self._modes = modes
        self._tell = tell
        self._note = note
        self._flagged: dict[str, set[tuple[str, str]]] = {}

    def tell(self, name: str) -> None:
        """Tell S1 what was approved; without it S1 shows nothing of the integration."""
        if self._modes().get(name, "off") == "off":
            return
        try:
            hashes = self._store.hashes(name)
        except VsmError as error:
            self._note("trust.unreadable", name, "error", {"what": str(error)})
            return
        fds = [] if hashes is None else [to_memory(msgspec.json.encode(hashes))]
        self._tell(Pins(integration=name, fds=("pins",) * len(fds)), fds)
        close_fds(fds)

    def offered(self, name: str, fd: int) -> None:
        """A server offers what is not pinned; `fd` stays the caller's."""
        mode = self._modes().get(name, "off")
        if mode == "off":
            return
        try:
            document = from_memory(fd)
            judgement = self._store.take(name, document, mode)
        except (BoardError, VsmError) as error:
            self._note("trust.not_kept", name, "error", {"what": str(error)})
            return
        for kind, reason in (("trust.changed", CHANGED), ("trust.unapproved", UNAPPROVED)):
            keys = [key for key, why in judgement.suspended.items() if why == reason]
            if keys:
                severity = "error" if reason == CHANGED else "warning"
                detail = {"items": keys[:MAX_TOLD], "count": len(keys), "reason": reason}
                self._note(kind, name, severity, detail)
        if judgement.fresh:
            detail = {"items": list(judgement.fresh[:MAX_TOLD]), "count": len(judgement.fresh)}
            self._note("trust.pinned", name, "info", detail)
        self._flag(name)

    def _flag(self, name: str) -> None:
        flagged = self._flagged.setdefault(name, set())
        for flag in self.flags(name):
            seen = (flag.key, flag.why)
            if seen not in flagged and len(flagged) < MAX_FLAGGED:
                flagged.add(seen)
                detail = {"item": flag.key, "where": flag.where, "excerpt": flag.excerpt}
                self._note("trust.suspicious", name, "warning", detail | {"why": flag.why})

    def flags(self, name: str) -> list[suspicion.Flag]:
        """What is suspicious in all that an integration offers or was approved to offer.

        Raises:
            VsmError: its pins cannot be read.
        """
        items = {**(self._store.approved(name) or {}), **self._store.offered(name)}
        decoded = {key: _decoded(item) for key, item in items.items()}
        others = [
            f"{other}__{key.removeprefix('tool ')}"
            for other in self._modes()
            if other != name
            for key in self._approved_of_another(other)
            if key.startswith("tool ")
        ]
        return suspicion.flags(decoded, others=others)

    def _approved_of_another(self, name: str) -> Iterable[str]:
        """That its pins cannot be read is said of it, and hides nothing of the others."""
        try:
            return self._store.approved(name) or ()
        except VsmError:
            return ()

    def overview(self) -> list[dict[str, Any]]:
        """One row for each integration: its mode, how much is approved, open and flagged.

        Raises:
            VsmError: pins cannot be read.
        """
        return [
            {
                "name": name,
                "trust": mode,
                "approved": len(self._store.approved(name) or ()),
                "open": len(self._open(name, mode)),
                "flags": len(self.flags(name)),
            }
            for name, mode in self._modes().items()
        ]

    def differences(self, name: str) -> dict[str, Any]:
        """What waits for approval, and what is suspicious.

        Raises:
            VsmError: pins cannot be read.
        """
        return {
            "name": name,
            "digest": self._digest(name),
            "open": [
                {"item": one.key, "state": one.state, **_shown(one.before, one.after)}
                for one in self._open(name, self._modes().get(name, "off"))
            ],
            "flags": [
                {"item": f.key, "where": f.where, "why": f.why, "excerpt": f.excerpt}
                for f in self.flags(name)
            ],
        }

    def _open(self, name: str, mode: str) -> list[Difference]:
        return [] if mode == "off" else self._store.differences(name)

    def _digest(self, name: str) -> str:
        """Names exactly what waits for approval now."""
        waits = [(one.key, one.after) for one in self._open(name, self._modes().get(name, "off"))]
        return hashlib.sha256(msgspec.json.encode(waits)).hexdigest()[:_DIGEST_CHARS]

    def approve(self, name: str, keys: list[str] | None, seen: str = "") -> list[str]:
        """Pin what a person has looked at, and tell S1.

        Args:
            name: the integration's.
            keys: of items; None is all that is open.
            seen: the digest of the differences that the person saw; "" where they do not say.

        Raises:
            VsmError: a key needs no approval, the server has changed something since, or the pins
                cannot be kept.
        """
        if seen and seen != self._digest(name):
            remedy = f"Look again: `vsm trust diff {name}`."
            raise VsmError(f"pins of {name}", "what is offered is not what you saw", remedy)
        approved = self._store.approve(name, keys)
        if approved:
            detail = {"items": approved[:MAX_TOLD], "count": len(approved)}
            self._note("trust.approved", name, "notice", detail)
            self.tell(name)
        return approved


def _shown(before: str, after: str) -> dict[str, Any]:
    """Both texts; of long ones what follows the first difference, and that they are cut."""
    if max(len(before), len(after)) <= MAX_ITEM_CHARS:
        return {"before": before, "after": after, "cut": False}
    pairs = enumerate(zip(before, after, strict=False))
    differ_at = next((n for n, (a, b) in pairs if a != b), min(len(before), len(after)))
    begin = max(0, differ_at - _CONTEXT_CHARS)
    end = begin + MAX_ITEM_CHARS
    return {"before": before[begin:end], "after": after[begin:end], "cut": True}


def _decoded(item: dict[str, msgspec.Raw]) -> Any:  # noqa: ANN401 - JSON
    try:
        return {name: msgspec.json.decode(raw) for name, raw in item.items()}
    except (msgspec.DecodeError, RecursionError):
        return {}
