"""Request ids towards a server: unique per incarnation of S1, every answer a typed outcome.

Sans-io. An id is `epoch << 40 | counter`, so an answer to a dead predecessor's request can
never be taken for one of ours. Epochs wrap after 12 bits: an id stays below 2**52, which
servers that keep numbers as doubles repeat without loss.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Final, Generic, TypeVar

COUNTER_BITS: Final = 40
EPOCH_BITS: Final = 12
_COUNTER_MASK: Final = (1 << COUNTER_BITS) - 1

T = TypeVar("T")


class Stray(Enum):
    """Why an answer belongs to no request that waits."""

    LATE = "an answer to a request that was answered, cancelled or timed out"
    PREDECESSOR = "an answer to a request of an earlier gateway process"
    UNKNOWN = "an answer to a request that was never sent"


class InFlight(Generic[T]):
    """The requests that wait for an answer, by the id that the server sees."""

    __slots__ = ("_epoch", "_next", "waiting")

    def __init__(self, epoch: int) -> None:
        self._epoch = (epoch & ((1 << EPOCH_BITS) - 1)) << COUNTER_BITS
        self._next = 1
        self.waiting: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, item: T) -> int:
        """Register `item` and return its id."""
        number = self._next
        self._next = number + 1 & _COUNTER_MASK
        request_id = self._epoch | number
        self.waiting[request_id] = item
        return request_id

    @property
    def issued(self) -> int:
        """How many ids were given out."""
        return self._next - 1

    def take(self, request_id: object) -> T | None:
        """Remove and return what waits for `request_id`; None: nothing does, see `stray`."""
        return self.waiting.pop(request_id, None) if type(request_id) is int else None

    def discard(self, request_id: int) -> None:
        """Stop waiting for `request_id`; its answer will be late."""
        self.waiting.pop(request_id, None)

    def drain(self) -> Iterator[T]:
        """Remove and yield everything that waits, oldest first."""
        items = list(self.waiting.values())
        self.waiting.clear()
        yield from items

    def stray(self, request_id: object) -> Stray:
        """Why nothing waits for `request_id`."""
        if type(request_id) is not int:
            return Stray.UNKNOWN
        if request_id < 0 or request_id >> (COUNTER_BITS + EPOCH_BITS):
            return Stray.UNKNOWN
        if request_id & ~_COUNTER_MASK != self._epoch:
            return Stray.PREDECESSOR
        return Stray.LATE if 0 < request_id & _COUNTER_MASK < self._next else Stray.UNKNOWN
