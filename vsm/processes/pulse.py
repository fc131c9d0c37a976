"""Asks a process again and again whether it still answers.

Runs in the supervisor, towards the template and the launcher: single-threaded processes that
wait for orders and would be missed only when the next order comes. The five systems, which
never wait for long, have their heartbeat in shared memory instead.
"""

import asyncio
from collections.abc import Callable
from typing import Final

INTERVAL_S: Final = 1.0


class Pulse:
    """One process's pulse.

    Args:
        ask: sends the question.
        silent: called once when `most` questions in a row had no answer.
        most: so many seconds it may be busy, too.
    """

    def __init__(self, ask: Callable[[], None], silent: Callable[[], None], *, most: int) -> None:
        self._ask = ask
        self._silent = silent
        self._most = most
        self._unanswered = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Ask from now on."""
        self._wait(asyncio.get_running_loop())

    def answered(self) -> None:
        """It lives."""
        self._unanswered = 0

    def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + INTERVAL_S
        self._timer = loop.call_at(due, self._beat, due)

    def _beat(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        punctual = loop.time() < due + INTERVAL_S  # were we late, the answer may wait to be read
        if punctual and self._unanswered >= self._most:
            self._silent()
            return
        self._unanswered += 1
        self._ask()
        self._wait(loop)
