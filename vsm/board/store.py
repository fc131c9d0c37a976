"""Counts that outlive the supervisor: the demand board in the service manager's fd store.

Runs in the supervisor. Owns what is stored there and under which name, and what of it to believe
after a restart. The memory was sealed by an S1 that is dead by then and had parsed foreign bytes,
so every check of a reader is made again, and the epoch must be the one that the supervisor wrote
into the name. Without a service manager nothing is kept.
"""

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vsm.board.demand import MAX_SEGMENTS
from vsm.board.memory import BoardError
from vsm.board.reader import DemandReader
from vsm.core.rates import Bucket, Rate
from vsm.link import close_fds
from vsm.service.notify import is_managed, store, stored, unstore

_NAME: Final = re.compile(
    r"demand-(?P<epoch>[0-9]{1,15})-(?P<began>[0-9]{1,19})-(?P<stored>[0-9]{1,19})"
)

# An S1 announces a board for each integration that comes or goes; no S1 may keep pid 1 busy.
_RATE: Final = Rate(per_second=4.0, burst=256)


@dataclass(frozen=True)
class Kept:
    """What a dead supervisor's S1 had counted.

    Args:
        reader: the board, the receiver's.
        began_s: by the monotonic clock, when counting began.
    """

    reader: DemandReader
    epoch: int
    began_s: float


class DemandStore:
    """Keeps one board at a time.

    Attributes:
        refused: what was in the store and was not believed, each with the reason.
    """

    def __init__(self) -> None:
        self.refused: list[str] = []
        self._name = ""
        self._bucket = Bucket(_RATE)

    def take(self) -> Kept | None:
        """The newest board that can be believed; everything else goes out of the store."""
        found, kept = stored(), None
        for name in sorted(found, key=_age_order, reverse=True):
            if kept is None:
                kept = self._believed(name, found[name])
            else:
                close_fds(found[name])
            if name != self._name:
                unstore(name)
        return kept

    def _believed(self, name: str, fds: list[int]) -> Kept | None:
        try:
            kept = _verified(name, fds)
        except BoardError as error:
            self.refused.append(f"{name}: {error}")
            return None
        self._name = name
        return kept

    def keep(self, fds: Iterable[int], *, epoch: int, began_s: float) -> None:
        """Store a board instead of the one before; that goes when the new one is there."""
        if not is_managed() or self._bucket.take(time.monotonic()) != 0:
            return
        name = f"demand-{epoch}-{int(began_s * 1e9)}-{time.monotonic_ns()}"
        # The manager keeps an open file once, by whatever name: these are opened anew.
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401 - closed below, whichever fails
            if store(name, copies):
                before, self._name = self._name, name
                if before:
                    unstore(before)
        except OSError:
            return  # no /proc: then there is no history
        finally:
            close_fds(copies)


def _age_order(name: str) -> int:
    match = _NAME.fullmatch(name)
    return int(match["stored"]) if match else -1


def _verified(name: str, fds: list[int]) -> Kept:
    """A board that is what its name says.

    Raises:
        BoardError: it is not; its descriptors are closed.
    """
    match = _NAME.fullmatch(name)
    if match is None or len(fds) > MAX_SEGMENTS:
        close_fds(fds)
        raise BoardError("not a demand board of this version")
    epoch = int(match["epoch"])
    reader = DemandReader(fds, epoch=epoch, pid=None)
    if len({segment.pid for segment in reader.segments}) != 1:
        reader.close()
        raise BoardError("segments of several writers")
    return Kept(reader, epoch, min(int(match["began"]) / 1e9, time.monotonic()))
