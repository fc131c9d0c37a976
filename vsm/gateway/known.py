"""What a server offered when it last ran, as bytes that are kept while it does not run.

Pure. What comes back was written by an earlier S1 from a server's words: it is checked as those
are, and anything doubtful counts as nothing known.
"""

from typing import Final

import msgspec

from vsm.protocol import catalogue, era
from vsm.protocol.jsonrpc import Object
from vsm.protocol.tables import LISTS

MAX_BYTES: Final = 4 * 1024 * 1024


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    session: era.PeerSession
    lists: dict[str, list[Object]]


def pack(session: era.PeerSession, lists: dict[str, list[Object]]) -> bytes | None:
    """The bytes; None where there is too much to keep."""
    content = msgspec.json.encode(_Kept(session, lists))
    return content if len(content) <= MAX_BYTES else None


def unpack(content: bytes) -> tuple[era.PeerSession, dict[str, list[Object]]] | None:
    """The session and the lists; None where it is not what `pack` makes."""
    try:
        kept = msgspec.json.decode(content, type=_Kept)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    lists = {key: items[: catalogue.MAX_ITEMS] for key, items in kept.lists.items() if key in LISTS}
    return kept.session, lists
