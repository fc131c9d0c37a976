"""What system calls each integration was refused: the counts, and when they are said.

Runs in the supervisor. The launcher answers and counts (`vsm.confinement.refusals`); names, sums
and the moment to speak are here.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from vsm.core import refusals
from vsm.core.syscalls import names

Said = Callable[[str, Mapping[str, int]], None]
MOST_UNNAMED: Final = 16
OTHERS: Final = "other numbers"


class RefusedCalls:
    """The counts of all integrations since vsm started.

    Args:
        said: called with an integration and what is new since the last time, rate-limited.
    """

    def __init__(self, said: Said) -> None:
        self._said = said
        self._names = names(os.uname().machine)
        self._totals: dict[str, Counter[str]] = {}
        self._unnamed: dict[str, set[int]] = {}
        self._tallies: dict[str, refusals.Tally] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def counts(self, integration: str) -> dict[str, int]:
        """Call → how often, the most frequent first; over all restarts."""
        return dict(self._totals.get(integration, Counter()).most_common())

    def add(self, integration: str, calls: Mapping[int, int]) -> None:
        """Count; say it when it is due."""
        named: Counter[str] = Counter()
        for nr, count in calls.items():
            named[self._name_of(integration, nr)] += count
        self._totals.setdefault(integration, Counter()).update(named)
        tally = self._tallies.get(integration, refusals.Tally())
        self._tallies[integration] = refusals.add(tally, named)
        self._tell(integration)

    def _name_of(self, integration: str, nr: int) -> str:
        """A server may try any of four thousand million numbers: so many are told apart."""
        if nr in self._names:
            return self._names[nr]
        unnamed = self._unnamed.setdefault(integration, set())
        if len(unnamed) < MOST_UNNAMED:
            unnamed.add(nr)
        return f"number {nr}" if nr in unnamed else OTHERS

    def ended(self, integration: str) -> None:
        """Its process has ended: say what waits."""
        self._tell(integration, last=True)

    def forget(self, integration: str) -> None:
        """There is no such integration any more."""
        self._cancel(integration)
        self._totals.pop(integration, None)
        self._tallies.pop(integration, None)
        self._unnamed.pop(integration, None)

    def close(self) -> None:
        """Say no more."""
        for integration in list(self._timers):
            self._cancel(integration)

    def _tell(self, integration: str, *, last: bool = False) -> None:
        self._cancel(integration)
        loop = asyncio.get_running_loop()
        tally, told = refusals.tell(
            self._tallies.get(integration, refusals.Tally()), loop.time(), last=last
        )
        self._tallies[integration] = tally
        if told:
            self._said(integration, told)
        due_s = refusals.due_s(tally, loop.time())
        if due_s is not None:
            self._timers[integration] = loop.call_at(due_s, self._tell, integration)

    def _cancel(self, integration: str) -> None:
        if timer := self._timers.pop(integration, None):
            timer.cancel()
