"""Answers the system calls that workers' filters refuse: always EPERM, counted by number.

Runs in the launcher, which holds the listeners and hands them to nobody. Nothing is decided
here: the kernel refused already, and if this process dies the kernel answers ENOSYS itself.
Nothing of a worker's memory is read. A worker has an equal share of the answers
(`vsm.core.refusals`); one that asks for more waits for it, and nobody else does. Standard
library only.
"""

import os
import select
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from vsm.core import refusals
from vsm.linux import seccomp

_SOON_S: Final = 0.02  # after the first one, so that a burst is one message
_AGAIN_S: Final = 1.0

Tell = Callable[[str, dict[int, int]], None]


class _Watched:
    """One worker's listener and what is counted of it."""

    def __init__(self, worker: str, now_s: float) -> None:
        self.worker = worker
        self.allowance = refusals.Allowance(refusals.MOST_A_SECOND, now_s)
        self.counts: Counter[int] = Counter()
        self.tell_at_s = 0.0
        self.told_at_s = now_s - _AGAIN_S
        self.resume_at_s = 0.0


class Responder:
    """Holds the listeners of all workers.

    Args:
        poll: the process's; a readable listener is to be given to `answer`.
        tell: called with a worker and its counts (number → refused calls), not more than once a
            second for each.
    """

    def __init__(self, poll: "select.poll", tell: Tell) -> None:
        self._poll = poll
        self._tell = tell
        self._watched: dict[int, _Watched] = {}
        self._rate = refusals.rate(0)
        self.due_s: float | None = None

    def watch(self, worker: str, listener: int) -> None:
        """Answer for a worker from now on; takes the descriptor over."""
        self._watched[listener] = _Watched(worker, time.monotonic())
        self._rate = refusals.rate(len(self._watched))
        self._poll.register(listener, select.POLLIN)

    def forget(self, worker: str) -> None:
        """It has ended: tell what is untold, close its listener."""
        for fd in [fd for fd, one in self._watched.items() if one.worker == worker]:
            watched = self._watched.pop(fd)
            self._flush(watched, time.monotonic())
            with suppress(KeyError):  # it was paused
                self._poll.unregister(fd)
            os.close(fd)
        self._rate = refusals.rate(len(self._watched))

    def answer_ready(self, ready: list[tuple[int, int]]) -> None:
        """Answer those of ours that poll named.

        Before its other fds are served: that may close a listener, and one that is read in vain
        blocks.
        """
        for fd, events in ready:
            if fd in self._watched:
                self.answer(fd, events)

    def answer(self, fd: int, events: int) -> None:
        """Answer one call of a listener that poll named."""
        watched, now_s = self._watched[fd], time.monotonic()
        if not events & select.POLLIN:
            # An error alone is a look that a signal cut short: unregistered, its callers would wait
            # for ever.
            if events & select.POLLHUP:  # nobody is left who could ask
                self._poll.unregister(fd)
            return
        watched.allowance, may = refusals.take(watched.allowance, now_s, self._rate)
        if not may:
            self._poll.unregister(fd)
            watched.resume_at_s = now_s + refusals.PAUSE_S
            self._plan(watched.resume_at_s)
            return
        asked = seccomp.receive(fd)
        if asked is None:
            return
        seccomp.refuse(fd, asked.ident)
        if not watched.counts:
            watched.tell_at_s = max(now_s + _SOON_S, watched.told_at_s + _AGAIN_S)
            self._plan(watched.tell_at_s)
        watched.counts[asked.nr] += 1

    def tick(self) -> None:
        """What is due: go on with those that were paused, tell what was counted."""
        now_s = time.monotonic()
        if self.due_s is None or now_s < self.due_s:
            return
        self.due_s = None
        for fd, watched in self._watched.items():
            if watched.resume_at_s:
                if watched.resume_at_s <= now_s:
                    watched.resume_at_s = 0.0
                    self._poll.register(fd, select.POLLIN)
                else:
                    self._plan(watched.resume_at_s)
            if watched.counts:
                if watched.tell_at_s <= now_s:
                    self._flush(watched, now_s)
                else:
                    self._plan(watched.tell_at_s)

    def _flush(self, watched: _Watched, now_s: float) -> None:
        if watched.counts:
            self._tell(watched.worker, dict(watched.counts))
            watched.counts.clear()
            watched.told_at_s = now_s

    def _plan(self, at_s: float) -> None:
        self.due_s = at_s if self.due_s is None else min(self.due_s, at_s)
