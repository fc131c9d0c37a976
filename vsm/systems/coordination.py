"""S2, coordination: rates between clients and integrations, and damping of what goes to and fro.

Runs in its own confined process. Publishes the configured rates for S1 to enforce. Hears from the
supervisor of restarts, moved limits, and pools that grow and shrink; what oscillates is left alone
by S3, restarted more slowly by the supervisor, or keeps its instances in S1, until it has rested.
"""

import asyncio
import itertools
from collections import deque
from typing import Any, Final, Literal

from vsm.core import oscillation
from vsm.core.figures import figure
from vsm.core.oscillation import Damped, Released, Swing, Terms, Watch
from vsm.messages import (
    Algedonic,
    Body,
    Budgets,
    Damp,
    Decided,
    Happened,
    Noted,
    Rates,
    Settled,
    SnapshotOut,
    Start,
    Summary,
)
from vsm.systems.base import SystemContext

TICK_S: Final = 1.0
KEPT: Final = 16
RESTARTS: Final = "restart"
SCALING: Final = "scaling"
ACQUISITION: Final = "acquisition"
SLOWER: Final = 8.0
"""A restart loop waits so much longer, and must serve so much longer to be forgiven."""
_CHOICES: Final = {
    RESTARTS: "restart more slowly",
    SCALING: "let no instance go",
    ACQUISITION: "tell the operator and wait",
}


class Coordination:
    """What S2 knows."""

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.snapshot: Body = {"rates": [], "configured": False, "steady": []}
        self.terms = Terms()
        self.watch: Watch = {}
        self.found: deque[Body] = deque(maxlen=KEPT)
        self.last_summary: Summary | None = None
        self.last_move: Body | None = None
        self.happened = 0
        self._keys: dict[oscillation.Key, str] = {}
        self._hurting: set[oscillation.Key] = set()
        self._numbers = itertools.count(1)

    def configure(self, start: Start) -> None:
        """Take the operator's rates, and what counts as oscillation."""
        own: Any = start.settings
        rates = own.get("rates", [])
        self.snapshot = {"rates": rates, "configured": bool(rates), "steady": []}
        known = {name: own[name] for name in Terms._fields if name in own}
        self.terms = Terms(**known)

    def on_summary(self, message: Summary, fds: list[int]) -> None:
        """Keep the newest load summary of S1."""
        del fds
        self.last_summary = message

    def on_budgets(self, message: Budgets, fds: list[int]) -> None:
        """Keep what S3 moved last; whether it oscillates is seen in what really happened."""
        del fds
        self.last_move = message.body

    def on_happened(self, message: Happened, fds: list[int]) -> None:
        """Something moved: is it going to and fro?"""
        del fds
        self.happened += 1
        swing = Swing(message.integration, message.series, message.change, message.at_s)
        self.watch, actions = oscillation.step(self.watch, swing, self.terms)
        self._act(actions)

    def tick(self, now_s: float) -> None:
        """Release what has rested."""
        self.watch, actions = oscillation.tick(self.watch, now_s, self.terms)
        self._act(actions)

    def _act(self, actions: list[oscillation.Action]) -> None:
        for action in actions:
            if isinstance(action, Damped):
                self._damp(action)
            else:
                self._release(action)
        if actions:
            self.tell()
        if any(action.series == SCALING for action in actions):
            self.publish()

    def publish(self) -> None:
        """Tell S1 the rates, and which pools are to let no instance go."""
        steady: list[Any] = [
            name
            for (name, series), track in self.watch.items()
            if series == SCALING and track.damped_until_s is not None
        ]
        self.snapshot = {**self.snapshot, "steady": steady}
        self.context.report(SnapshotOut(body=self.snapshot))

    def tell(self) -> None:
        """Tell S3 what to leave alone."""
        self.context.send("system3", Rates(body={"damped": self.damped()}))

    def _damp(self, action: Damped) -> None:
        name, series = action.integration, action.series
        what = (
            f"{series} went to and fro {action.reversals} times, about every "
            f"{figure(action.period_s)} s: damped for {figure(action.cool_down_s)} s"
        )
        row: Body = {**action._asdict(), "what": what}
        self.found.append(row)
        if series == RESTARTS:
            self.context.report(Damp(integration=name, factor=SLOWER * action.times))
        self.context.report(
            Noted(
                event="coordination.oscillation", severity="warning", integration=name, detail=row
            )
        )
        key = self._keys[name, series] = f"damp-{next(self._numbers)}"
        choice = _CHOICES.get(series, "leave the limit alone")
        self.context.report(
            Decided(
                key=key,
                subject=name,
                rule="coordination.oscillation",
                inputs={**action._asdict(), **self.terms._asdict()},
                alternatives=("let it go on",),
                choice=f"{choice} for {figure(action.cool_down_s)} s",
            )
        )
        if action.times > 1:  # damping alone does not help
            self._hurting.add((name, series))
            self._feel("pain", name, f"{name}: {what}, for the {action.times}th time")

    def _feel(self, severity: Literal["pain", "relief"], name: str, text: str) -> None:
        signal = Algedonic(severity=severity, subject=name, cause="oscillation", detail=text)
        self.context.send("system5", signal)

    def _release(self, action: Released) -> None:
        name, series = action.integration, action.series
        if series == RESTARTS:
            self.context.report(Damp(integration=name, factor=1.0))
        self.context.report(
            Noted(
                event="coordination.released",
                severity="notice",
                integration=name,
                detail={"series": series},
            )
        )
        key = self._keys.pop((name, series), None)
        if key is not None:
            self.context.report(Settled(key=key, outcome={"state": "rested"}))
        if (name, series) in self._hurting:
            self._hurting.discard((name, series))
            if not any(other == name for other, _ in self._hurting):
                self._feel("relief", name, f"{name}: {series} has rested")

    def damped(self) -> Body:
        """Integration → what of it is to be left alone."""
        found: dict[str, Any] = {}
        for (name, series), track in self.watch.items():
            if track.damped_until_s is not None:
                found.setdefault(name, []).append(series)
        return found

    def state(self) -> Body:
        """What it has, what it damps, and what it lacks."""
        lacks = [] if self.snapshot["configured"] else ["no rates configured"]
        if not self.happened:
            lacks.append("nothing has restarted or moved yet: no oscillation can be seen")
        if self.last_summary is None:
            lacks.append("no load observed")
        summary = self.last_summary
        return {
            "role": "coordination",
            "snapshot": self.snapshot,
            "damped": self.damped(),
            "oscillations": list(self.found),
            "happened": self.happened,
            "terms": self.terms._asdict(),
            "last_move": self.last_move,
            "last_summary": None if summary is None else summary.model_dump(mode="json"),
            "lacks": list(lacks),
            **self.context.channel_state(),
        }

    async def rest(self) -> None:
        """Release at intervals what has rested."""
        while True:
            await asyncio.sleep(TICK_S)
            self.tick(asyncio.get_running_loop().time())
            if self.damped():
                self.tell()  # S3 may be a new one


async def main(context: SystemContext) -> None:
    """Publish the rates, then watch until told to stop."""
    coordination = Coordination(context)
    context.handle("system1>system2:summary", coordination.on_summary)
    context.handle("system3>system2:budgets", coordination.on_budgets)
    context.handle("happened", coordination.on_happened)
    context.answer("state", coordination.state)
    start, _ = await context.started()
    coordination.configure(start)
    coordination.publish()
    context.ready()
    coordination.tell()  # a predecessor's word holds no longer
    resting = context.run_beside(coordination.rest())
    try:
        await context.stopping.wait()
    finally:
        resting.cancel()
