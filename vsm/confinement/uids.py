"""Stable uids of workers, for a supervisor that runs as root.

Owns the reserved range: its first sixteen are the systems' of the vsm in the usual place, the rest
is hashed from the integration's name, so that files of a worker stay its own over restarts, and
from where vsm keeps its state, so that neither integrations of the same name of two vsm nor their
systems share one. Nothing is kept: who keeps its state there has these. Pure but for reading
/proc/self/uid_map.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from vsm.errors import ConfinementError

BASE: Final = 0x7000_0000
_SYSTEM_UIDS: Final = 16
_RANGE: Final = 2**27
_PIDS: Final = 0x40_0000  # PID_MAX_LIMIT
RUN_SLOTS: Final = 31  # above the range: one uid for each pid and slot
EGRESS_SLOT: Final = RUN_SLOTS  # and one for the egress process of that pid's runs
_RUNS: Final = (RUN_SLOTS + 1) * _PIDS
_LAST: Final = BASE + _RANGE + _RUNS - 1
_SYSTEMS: Final = {f"system{n}": BASE + n for n in range(1, 6)} | {"egress": BASE + 15}


def system_uids(*, place: str = "", taken: Iterable[int] = ()) -> dict[str, int]:
    """The uid of each of "system1" … "system5" and "egress".

    Args:
        place: where this vsm keeps its state; "" where that is the usual place of root's.
        taken: its integrations', which they keep.
    """
    if not place:
        return dict(_SYSTEMS)
    found: dict[str, int] = {}
    for name in _SYSTEMS:  # no integration has a # in its name, nor an instance that one alone
        found[name] = _free_uid(f"{place}#{name}", {*taken, *found.values()})
    return found


def integration_uids(
    names: list[str], *, place: str = "", kept: Mapping[str, int] | None = None
) -> dict[str, int]:
    """One uid for each name; a name that is hashed to a taken one gets the next.

    Args:
        names: of the integrations.
        place: where this vsm keeps its state; "" where that is the usual place of root's.
        kept: name → the uid that it had before, which its files have. It keeps it, if that is
            one of an integration and nobody else's.
    """
    found: dict[str, int] = {}
    for name in sorted(set(names) & (kept or {}).keys()):
        uid = (kept or {})[name]
        if BASE + _SYSTEM_UIDS <= uid < BASE + _RANGE and uid not in found.values():
            found[name] = uid
    for name in sorted(set(names) - found.keys()):
        found[name] = _free_uid(place + name, set(found.values()))
    return found


def _free_uid(name: str, taken: set[int]) -> int:
    """The name's; where that is taken, the next."""
    digest = hashlib.sha256(name.encode()).digest()
    slot = int.from_bytes(digest[:8], "big") % (_RANGE - _SYSTEM_UIDS)
    while BASE + _SYSTEM_UIDS + slot in taken:
        slot = (slot + 1) % (_RANGE - _SYSTEM_UIDS)
    return BASE + _SYSTEM_UIDS + slot


def instance_uid(name: str, number: int, taken: Iterable[int], *, place: str = "") -> int:
    """The uid of one instance of an integration; none of `taken`, and hardly another instance's."""
    return _free_uid(f"{place}{name}#{number}", set(taken))


def run_uid(slot: int) -> int:
    """The uid of one run without a stable identity: of no other process or slot that lives.

    Args:
        slot: 0 is `vsm sandbox run`; a process that has several runs at once counts up, below
            RUN_SLOTS. EGRESS_SLOT is for their egress process.
    """
    return BASE + _RANGE + slot * _PIDS + os.getpid()


def may_be_workers(uid: int) -> bool:
    """Whether a worker that this user's vsm started can have had this uid."""
    own = os.geteuid()
    return BASE <= uid < BASE + _RANGE + _RUNS if own == 0 else uid == own


def check_mapped(uid: int, *, where: str, uid_map: Path = Path("/proc/self/uid_map")) -> None:
    """Refuse a uid that this user namespace cannot use.

    Raises:
        ConfinementError: it is outside every mapped range.
    """
    for line in uid_map.read_text(encoding="ascii").splitlines():
        first, _, count = (int(word) for word in line.split())
        if first <= uid < first + count:
            return
    raise ConfinementError(
        where,
        f"uid {uid} is not mapped in this user namespace",
        f"Map {BASE} to {_LAST} into the container, or run vsm as an ordinary user.",
        layer="user",
    )
