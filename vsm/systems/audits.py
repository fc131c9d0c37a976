"""S3*: unannounced audits of running workers, at random times.

Runs in system 3. Asks the supervisor to compare a worker with its plan by kernel facts, to attack
it from within and to call its contract; what fails is pain, past everything else, and goes into
the journal.
"""

import asyncio
import itertools
import random
import time
from collections import deque
from typing import Final

from vsm.core import audit_schedule
from vsm.messages import Algedonic, Audit, Audited, Body, Noted
from vsm.systems.base import SystemContext

KEPT: Final = 16
CAUSE: Final = "audit failed"
_MOST_KEPT: Final = 8  # facts of a result; the journal has all


class Audits:
    """What S3* knows.

    Args:
        context: the links of system 3.
        dice: random numbers from 0 to 1.

    Attributes:
        names: who may be looked at. interval_s: the mean time between two; 0 is never.
    """

    def __init__(self, context: SystemContext, dice: random.Random) -> None:
        self.names: tuple[str, ...] = ()
        self.interval_s = 0.0
        self.results: deque[Body] = deque(maxlen=KEPT)
        self._context = context
        self._dice = dice
        self._numbers = itertools.count(1)
        self._last_s: dict[str, float] = {}
        self._hurting: set[str] = set()

    def relearn(self, name: str) -> None:
        """It failed an audit of a predecessor's."""
        self._hurting.add(name)

    def forget(self) -> None:
        """Who is no more."""
        self._last_s = {name: at_s for name, at_s in self._last_s.items() if name in self.names}
        self._hurting.intersection_update(self.names)

    async def run(self) -> None:
        """Look at somebody, at times that nobody can foretell."""
        while self.interval_s > 0:
            await asyncio.sleep(audit_schedule.pause_s(self.interval_s, self._dice.random()))
            self.ask()

    def ask(self) -> None:
        """Ask for one audit now."""
        now_s = time.monotonic()
        name = audit_schedule.choose(self.names, self._last_s, now_s, self._dice.random())
        if name is not None:
            self._last_s[name] = now_s
            self._context.report(Audit(id=next(self._numbers), integration=name))

    def on_audited(self, message: Audited, fds: list[int]) -> None:
        """Keep the result and tell it."""
        del fds
        name = message.integration
        result: Body = {
            "integration": name,
            "checked": message.checked,
            "attacks": message.attacks,
            "contract": message.contract,
            "failed": dict(message.failed),
            "detail": message.detail,
        }
        few = list(message.failed.items())[:_MOST_KEPT]  # an answer holds all that are kept
        self.results.append({**result, "failed": {fact[:100]: text[:100] for fact, text in few}})
        if message.failed:
            self._hurt(name, message, result)
        elif message.checked:
            self._context.report(Noted(event="audit.passed", integration=name, detail=result))
            if name in self._hurting:
                self._hurting.discard(name)
                text = f"{name} passed an audit again"
                self._feel("relief", name, text)

    def _hurt(self, name: str, message: Audited, result: Body) -> None:
        found = "; ".join(f"{fact}: {text}" for fact, text in message.failed.items())[:1000]
        what = f"{name} failed an audit: {found}"
        self._hurting.add(name)
        self._feel("pain", name, what)
        detail: Body = {**result, "what": what}
        self._context.report(
            Noted(event="audit.failed", severity="error", integration=name, detail=detail)
        )

    def _feel(self, severity: str, name: str, text: str) -> None:
        signal = Algedonic.model_validate(
            {"severity": severity, "subject": name, "cause": CAUSE, "detail": text}
        )
        self._context.send("system5", signal)
