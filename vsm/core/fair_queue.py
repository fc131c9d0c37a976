"""What waits for one server, shared fairly among those who ask.

Deficit round robin: each client in turn is granted a unit, or as many as it weighs, and sends what
they pay for, so that a flood of one client costs the others one of its calls, not all. When there
is no room, the newest of the client that holds most makes it. Pure data, no clock, no I/O.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, NamedTuple, TypeVar

UNIT_BYTES: Final = 65_536  # what a call may bring along for the price of one unit

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """What waits, and its size."""

    item: T
    size: int

    @property
    def price(self) -> int:
        """In units."""
        return 1 + self.size // UNIT_BYTES


class FairQueue(Generic[K, T]):
    """A queue with a lane for each client.

    Args:
        limit: most entries. limit_bytes: most bytes of all of them.
        weigh: how many units a client is granted in each of its turns, 1 or more.
    """

    def __init__(
        self, limit: int, limit_bytes: int, weigh: Callable[[K], int] = lambda _: 1
    ) -> None:
        self._weigh = weigh
        self.limit = limit
        self.limit_bytes = limit_bytes
        self._lanes: dict[K, deque[Entry[T]]] = {}
        self._bytes: dict[K, int] = {}
        self._turns: deque[K] = deque()
        self._credit: dict[K, int] = {}
        self._granted = False  # whether the first in turn got its unit of this turn
        self._length = 0
        self._total_bytes = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        """Everything that waits, client by client, each oldest first."""
        for lane in self._lanes.values():
            for entry in lane:
                yield entry.item

    def add(self, key: K, item: T, size: int) -> list[T]:
        """Let `item` wait; returns what has to leave for it, which may be the item itself."""
        evicted: list[T] = []
        while (crowded := self._length >= self.limit) or (
            self._total_bytes + size > self.limit_bytes
        ):
            victim = self._most(self._counts() if crowded else self._bytes, key, crowded, size)
            if victim is None:
                return [*evicted, item]
            evicted.append(self._evict(victim))
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = deque()
            self._turns.append(key)
            self._credit[key] = self._bytes[key] = 0
        lane.append(Entry(item, size))
        self._count(key, 1, size)
        return evicted

    def pop(self, may: Callable[[K], bool] = lambda _: True) -> T | None:
        """The next in turn among the clients that `may` send; None where none waits."""
        turns, passed = self._turns, 0
        while turns and passed < len(turns):
            key = turns[0]
            if not may(key):
                passed += 1
                self._next_turn()
                continue
            passed = 0
            if not self._granted:
                self._granted = True
                self._credit[key] += self._weigh(key)
            price = self._lanes[key][0].price
            if price <= self._credit[key]:
                self._credit[key] -= price
                return self._take(key)
            self._next_turn()
        return None

    def remove(self, key: K, item: T) -> bool:
        """Forget an entry; whether it was there."""
        for entry in self._lanes.get(key, ()):
            if entry.item is item:
                self._lanes[key].remove(entry)
                self._count(key, -1, -entry.size)
                self._close_lane(key)
                return True
        return False

    def drain(self) -> list[T]:
        """Remove and return everything, in the order in which it would have been sent."""
        items: list[T] = []
        while (item := self.pop()) is not None:
            items.append(item)
        return items

    def waiting(self, key: K) -> int:
        """How many entries of a client wait."""
        return len(self._lanes.get(key, ()))

    def _counts(self) -> dict[K, int]:
        return {key: len(lane) for key, lane in self._lanes.items()}

    def _most(self, held: dict[K, int], key: K, crowded: bool, size: int) -> K | None:  # noqa: FBT001 - private
        """Who holds so much more than `key` will that it has to give way."""
        if not held:
            return None
        victim = max(held, key=lambda one: held[one])
        own = held.get(key, 0) + (1 if crowded else size)
        return victim if victim != key and held[victim] > own else None

    def _evict(self, key: K) -> T:
        entry = self._lanes[key].pop()
        self._count(key, -1, -entry.size)
        self._close_lane(key)
        return entry.item

    def _take(self, key: K) -> T:
        entry = self._lanes[key].popleft()
        self._count(key, -1, -entry.size)
        self._close_lane(key)
        return entry.item

    def _count(self, key: K, number: int, size: int) -> None:
        self._length += number
        self._total_bytes += size
        self._bytes[key] += size

    def _close_lane(self, key: K) -> None:
        if self._lanes[key]:
            return
        if self._turns[0] == key:
            self._turns.popleft()
            self._granted = False
        else:
            self._turns.remove(key)
        del self._lanes[key], self._credit[key], self._bytes[key]

    def _next_turn(self) -> None:
        self._turns.rotate(-1)
        self._granted = False
