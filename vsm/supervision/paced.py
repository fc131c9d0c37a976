"""Keeps the supervisor free for others, however much a system hands it to work through.

Runs in the supervisor. What S1 offers and learns is parsed and written to the disk in one go;
a gateway that was taken over could hand over the most that fits, without a pause.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Final

from vsm.link import close_fds

BURST_S: Final = 2.0
SHARE: Final = 0.2  # of the time, beyond the burst
MOST_WAITING: Final = 256  # more than there are integrations


class Paced:
    """Work that is done at once while it takes little time, else later; of one name the newest.

    Args:
        work: takes a name and a descriptor, which stays the caller's.
        clock: seconds.
    """

    def __init__(
        self, work: Callable[[str, int], None], clock: Callable[[], float] | None = None
    ) -> None:
        self._work = work
        self._clock = clock
        self._spent_s = 0.0
        self._at_s = 0.0
        self._waiting: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self, name: str, fd: int) -> None:
        """Do it now or later; beyond MOST_WAITING never."""
        if self._timer is None and self._spent() < BURST_S:
            self._do(name, fd)
            return
        if name in self._waiting:
            os.close(self._waiting.pop(name))
        if len(self._waiting) < MOST_WAITING:
            self._waiting[name] = os.dup(fd)
        self._plan()

    def _spent(self) -> float:
        now_s = self._now_s()
        self._spent_s = max(0.0, self._spent_s - SHARE * (now_s - self._at_s))
        self._at_s = now_s
        return self._spent_s

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def _do(self, name: str, fd: int) -> None:
        began_s = self._now_s()
        try:
            self._work(name, fd)
        finally:
            self._spent_s += self._now_s() - began_s

    def _plan(self) -> None:
        if self._timer is None:
            pause_s = max(0.0, self._spent() - BURST_S) / SHARE
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._next)

    def _next(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        name = next(iter(self._waiting))
        fd = self._waiting.pop(name)
        try:
            self._do(name, fd)
        finally:
            os.close(fd)
            if self._waiting:
                self._plan()

    def close(self) -> None:
        """Forget what waits."""
        if self._timer is not None:
            self._timer.cancel()
        close_fds(list(self._waiting.values()))
        self._waiting.clear()
