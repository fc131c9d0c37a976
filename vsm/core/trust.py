"""Whether what a server offers is what was approved: every item pinned by a hash.

Pure. An item is a tool, a prompt, a resource, a template, or the server's instructions, with all
that a model would read of it; its pin is the hash of exactly that. What differs from its pin is
suspended until a person has approved the difference.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

Mode: TypeAlias = Literal["first-use", "approve", "off"]
CHANGED: Final = "changed since it was approved"
UNAPPROVED: Final = "not approved yet"
INSTRUCTIONS: Final = "instructions"
MOST_PINNED: Final = 20_000
"""Without a person, of one integration: a server that invents names without end fills nothing."""


@dataclass(frozen=True)
class Judgement:
    """What may be offered.

    Args:
        suspended: why, by key. fresh: allowed, and to be pinned. gone: pinned, not offered.
    """

    suspended: Mapping[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def fingerprint(item: Mapping[str, bytes]) -> str:
    """The hash of an item's members, each as the server wrote it; their order does not matter.

    A server that writes the same thing in another way has changed it: there is no reading of
    JSON here that could differ from a client's.
    """
    whole = hashlib.sha256()
    for name in sorted(item):
        for part in (name.encode(errors="surrogatepass"), bytes(item[name])):
            whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def judge(offered: Mapping[str, str], pins: Mapping[str, str] | None, mode: Mode) -> Judgement:
    """Compare what is offered (key → hash) with what is pinned (None: nothing ever was).

    On first use an unknown item is pinned as it is, up to MOST_PINNED; by approval it waits. A
    changed one waits in both.
    """
    if mode == "off":
        return Judgement()
    known = pins or {}
    changed = {key: CHANGED for key, pin in offered.items() if known.get(key, pin) != pin}
    unknown = tuple(key for key in offered if key not in known)
    gone = tuple(key for key in known if key not in offered)
    if mode == "first-use" and len(known) + len(unknown) <= MOST_PINNED:
        return Judgement(changed, unknown, gone)
    return Judgement(changed | dict.fromkeys(unknown, UNAPPROVED), (), gone)
