"""S4, intelligence: outside-and-then. It measures the variety of what is asked.

Runs in its own confined process. Reads S1's demand board, keeps what was asked lately in a window
that fades, forecasts each demand class for the next step and keeps the score of its forecasts,
tells S3 its outlook, and S5 when a goal is missed by more than chance or when what nobody
serves is going to be asked on. It acquires nothing yet, and says so. It has no channel to S1.
"""

import asyncio
import itertools
import time
from collections import deque
from typing import Any, Final, cast

from vsm.board.reader import Demand, DemandReader
from vsm.board.relay import take_segments
from vsm.core.demand import NOBODY, OK, OVERFLOW
from vsm.core.demand_series import DemandSeries, Forewarning, Told, recorded, words
from vsm.core.demand_window import DemandWindow, Key
from vsm.core.forecast import Score
from vsm.core.policy_weighing import RESOURCES
from vsm.core.variety_report import latency_quantile_s, report, summary
from vsm.core.what_if import at_stake, what_if
from vsm.messages import (
    Body,
    Budgets,
    Configure,
    Noted,
    Outlook,
    Policy,
    Proposal,
    Segments,
    Start,
)
from vsm.systems.base import SystemContext
from vsm.systems.goals import Goals
from vsm.systems.sought import Sought, answered_well

SAMPLE_INTERVAL_S: Final = 1.0
OUTLOOK_EVERY: Final = 5  # samples
HALF_LIFE_S: Final = 600.0
MOST_INTEGRATIONS: Final = 200
MOST_CLASSES: Final = 8192
"""A turn looks at each of them, and a beat is due; of more, the rest of an integration is one."""
MOST_FORECASTS: Final = 20  # in a record or a report
MOST_WARNINGS: Final = 8
MOST_RECORDED: Final = 64  # classes of a step in its record
PROPOSE_EVERY_S: Final = 600.0
MOST_GROWTH: Final = 2.0
MOST_OPEN: Final = 256
KEPT: Final = 16
SERVE: Final = "serve"

Totals = dict[Key, list[int]]


class Intelligence:
    """What S4 knows.

    Args:
        context: its links.
        now_s: the monotonic clock's reading.
    """

    def __init__(self, context: SystemContext, now_s: float) -> None:
        self.context = context
        self.recent = DemandWindow(half_life_s=HALF_LIFE_S, now_s=now_s)
        self.recent_since_s = now_s
        self._now_s = now_s
        self._reader: DemandReader | None = None
        self._changes = -1
        self._demand: dict[str, Demand] = {}
        self._seen: Totals | None = None
        self.goals = Goals()
        self._told: Body | None = None
        self.series = DemandSeries(step_s=60.0, season=60, now_s=now_s)
        self.series_since_s = now_s
        self.relearnt = 0
        self.warnings: list[Forewarning] = []
        self.surprises: list[Any] = []
        self.policy: deque[Body] = deque(maxlen=KEPT)
        self.budgets: Body = {}
        self._warned: set[tuple[str, Key]] = set()
        self.sought: dict[Key, Sought] = {}
        self._serving: dict[int, Key] = {}  # proposals that S5 has not answered
        self._room: dict[int, tuple[str, str]] = {}  # proposals about limits, without an outcome
        self._proposed: dict[Key, float] = {}
        self._numbers = itertools.count(1)

    def configure(self, start: Start, now_s: float) -> None:
        """Take the goals, the length of a step and of a season."""
        self.goals.configure(start.policy)
        own: Any = start.settings
        self.goals.relearn(own.get("missed", []))
        if own:
            step_s, season = float(own["step_s"]), int(own["season_steps"])
            score = Score(*own["score"]) if own.get("score") else None
            self.series = DemandSeries(step_s=step_s, season=season, now_s=now_s, score=score)
            self.series_since_s = now_s
            steps = recorded(own.get("steps", []), step_s)
            self.relearnt = self.series.relearn(steps, now_s)
            if self.relearnt:
                self.series_since_s = now_s - steps[-self.relearnt][0] - step_s

    def reconfigure(self, message: Configure, fds: list[int]) -> None:
        """Take the goals again: vsm.toml was reloaded."""
        del fds
        self.goals.configure(message.policy)
        self.tell()

    def on_policy(self, message: Policy, fds: list[int]) -> None:
        """S5 decided: what it approved to be served is sought; limits are S3's to move."""
        del fds
        self.policy.append(message.model_dump(mode="json", exclude={"fds", "kind"}))
        key = self._serving.pop(message.proposal, None)
        if key is None:
            return
        if message.verdict == "approved":
            self._seek(key, message.proposal)
        else:
            self._settle(message.proposal, message.subject, SERVE, {"state": "not sought"})

    def on_budgets(self, message: Budgets, fds: list[int]) -> None:
        """Keep what S3 gives everybody now, and tell S5 what came of what was proposed."""
        del fds
        self.budgets = message.body
        outcomes: Any = message.body.get("outcomes", [])
        for one in outcomes if isinstance(outcomes, list) else []:
            self._on_outcome(one if isinstance(one, dict) else {})

    def _on_outcome(self, told: Body) -> None:
        number, outcome = cast("int", told.get("proposal")), told.get("outcome")
        where = self._room.pop(number, None) if type(number) is int else None
        if where is not None and isinstance(outcome, dict):
            self._settle(number, *where, outcome)

    def _settle(self, proposal: int, subject: str, change: str, outcome: Body) -> None:
        """The decision of S5 gets its outcome."""
        answer = Proposal(
            id=proposal, sender="system4", subject=subject[:128], change=change, outcome=outcome
        )
        self.context.send("system5", answer)

    # ---- what is sought --------------------------------------------------------------------

    def _seek(self, key: Key, proposal: int) -> None:
        """Somebody should serve this: the operator hears what; nothing installs itself."""
        until_s = self._now_s + PROPOSE_EVERY_S
        self.sought[key] = Sought(proposal, until_s, answered_well(self._seen or {}, [key])[key])
        name = " ".join(filter(None, key))
        what = f"{name} is asked for and nobody serves it: `vsm install` something that does"
        detail: Body = {"integration": key[0], "demand": key[1], "what": what}
        self.context.report(Noted(event="intelligence.sought", severity="notice", detail=detail))

    def _look_for_sought(self, now_s: float) -> None:
        """Is it served now, or has nobody come to serve it?"""
        served = answered_well(self._seen or {}, self.sought)
        for key, sought in list(self.sought.items()):
            answered = served[key] - sought.answered
            if answered > 0:
                outcome: Body = {"state": "served", "answered_well": answered}
            elif now_s >= sought.until_s:
                outcome = {"state": "not served", "for_s": PROPOSE_EVERY_S}
            else:
                continue
            del self.sought[key]
            self._settle(sought.proposal, key[1], SERVE, outcome)

    # ---- the board -------------------------------------------------------------------------

    def on_segments(self, message: Segments, fds: list[int]) -> None:
        """S1 has a new board, or the same in other memory; it holds all that the last one did."""
        now_s = time.monotonic()
        self.sample(now_s)
        reader = take_segments(message, fds)
        if reader is None:
            return
        if self._reader is not None:
            self._reader.close()
        self._reader, self._changes = reader, -1
        if self._seen is None and message.age_s >= HALF_LIFE_S:
            # Our predecessor's window died with it, and what is older than this cannot be dated.
            self._seen = _by_class(reader.totals())
        elif self._seen is None:
            self.recent_since_s = now_s - message.age_s
        self.sample(now_s)

    def sample(self, now_s: float) -> None:
        """Take over what was counted since the last time."""
        self._now_s = max(self._now_s, now_s)
        self.recent.fade(now_s)
        if self._reader is None:
            return
        self._take(self._reader)
        if self._seen is not None:
            self._step(now_s)
            self._look_for_sought(now_s)

    def _take(self, reader: DemandReader) -> None:
        changes = reader.changes()
        if changes == self._changes:
            return
        self._changes = changes
        self._demand = reader.totals()
        totals, before = _by_class(self._demand), self._seen or {}
        for key, row in totals.items():
            last = before.get(key)
            new = row if last is None else [a - b for a, b in zip(row, last, strict=True)]
            if any(new):
                self.recent.add(key, new)
        self._seen = totals

    # ---- forecasts -------------------------------------------------------------------------

    def _step(self, now_s: float) -> None:
        """Where a step is over: hold forecasts against what came, and look ahead."""
        closed = self.series.closed
        told = self.series.look(self._seen or {}, now_s)
        if self.series.closed == closed:
            return
        self._record_step()
        if told:
            self._record(told)
        self.surprises = self.series.surprises(told, self._seen or {})
        for row in self.surprises:
            note = Noted(event="intelligence.surprise", severity="notice", detail=row)
            self.context.report(note)
        self.warnings = self.series.warnings()[:MOST_WARNINGS]
        self._proposed = {key: until for key, until in self._proposed.items() if now_s < until}
        known = {(one.kind, one.key) for one in self.warnings}
        for warning in self.warnings:
            if (warning.kind, warning.key) not in self._warned:
                self._warn(warning)
            if now_s < self._proposed.get(warning.key, now_s):
                continue
            if warning.kind == "unserved":
                self._propose_serving(warning, now_s)
            else:
                self._propose_room(warning, now_s)
        if known != self._warned:
            self.tell()  # who is about to need more is nothing to wait with
        self._warned = known

    def _record_step(self) -> None:
        """What came in the step that is over: from this a successor learns."""
        if self.series.latest is None:
            return
        most = sorted(self.series.latest.items(), key=lambda one: -one[1][0])[:MOST_RECORDED]
        counts: list[Any] = [[*key, *row] for key, row in most]
        detail: Body = {"step_s": self.series.step_s, "counts": counts}
        self.context.report(Noted(event="intelligence.step", detail=detail))

    def _record(self, told: list[Told]) -> None:
        """What was expected of the step that is over, beside what came."""
        most = sorted(told, key=lambda one: -max(one.came, one.forecast.expected))
        rows: list[Any] = [
            {
                "integration": one.key[0],
                "demand": one.key[1],
                "expected": round(one.forecast.expected, 3),
                "low": round(one.forecast.low, 3),
                "high": round(one.forecast.high, 3),
                "probability": round(one.forecast.probability, 4),
                "came": one.came,
                "model": one.forecast.model,
            }
            for one in most[:MOST_FORECASTS]
            if one.came or one.forecast.high >= 1
        ]
        if rows:
            score: list[Any] = [round(one, 6) for one in self.series.whole_score()]
            detail: Body = {"step_s": self.series.step_s, "forecasts": rows, "score": score}
            self.context.report(Noted(event="intelligence.forecast", detail=detail))

    def _warn(self, warning: Forewarning) -> None:
        detail: Body = {**self._warning_row(warning), "what": words(warning, self.series.step_s)}
        self.context.report(Noted(event="intelligence.warning", severity="notice", detail=detail))

    def _propose_room(self, warning: Forewarning, now_s: float) -> None:
        """Who is about to be asked for more should have more: against S3, S5 weighs it."""
        gain = at_stake(self.recent.table, warning.key)
        self._proposed[warning.key] = now_s + PROPOSE_EVERY_S
        growth = min(MOST_GROWTH, warning.forecast.expected / max(warning.usual, 1e-9))
        for resource, amount in self._held(warning.key[0]).items():
            number = next(self._numbers)
            self._room[number] = warning.key[0], resource
            _keep_newest(self._room)
            proposal = Proposal(
                id=number,
                sender="system4",
                subject=warning.key[0],
                change=resource,
                from_value=amount,
                to_value=amount * growth,
                evidence=self._warning_row(warning),
                expected_gain_bits=gain,
            )
            self.context.send("system5", proposal)

    def _held(self, name: str) -> dict[str, float]:
        """What S3 says that an integration is given."""
        held: Any = self.budgets.get("held")
        row = held.get(name) if isinstance(held, dict) else None
        found = row.items() if isinstance(row, dict) else ()
        return {
            resource: float(amount)
            for resource, amount in found
            if resource in RESOURCES and isinstance(amount, int | float)
        }

    def _propose_serving(self, warning: Forewarning, now_s: float) -> None:
        """Somebody should serve this: S5 weighs it."""
        found = what_if(self.recent.table, " ".join(warning.key))
        gain = found.get("gain_bits")
        if gain is None:
            return
        self._proposed[warning.key] = now_s + PROPOSE_EVERY_S
        number = next(self._numbers)
        self._serving[number] = warning.key
        _keep_newest(self._serving)
        self.context.send(
            "system5",
            Proposal(
                id=number,
                sender="system4",
                subject=warning.key[1][:128],
                change=SERVE,
                evidence=self._warning_row(warning),
                expected_gain_bits=gain,
            ),
        )

    def _warning_row(self, warning: Forewarning) -> Body:
        return {
            "kind": warning.kind,
            "integration": warning.key[0],
            "demand": warning.key[1],
            "expected": round(warning.forecast.expected, 3),
            "low": round(warning.forecast.low, 3),
            "high": round(warning.forecast.high, 3),
            "usual": round(warning.usual, 3),
            "step_s": self.series.step_s,
        }

    def predictions(self) -> Body:
        """What is expected of the next step, and how good such forecasts were."""
        now_s = time.monotonic()
        self.sample(now_s)
        forecasts = sorted(self.series.forecasts().items(), key=lambda one: -one[1].expected)
        rows: list[Any] = [
            {"integration": key[0], "demand": key[1], **found._asdict()}
            for key, found in forecasts[:MOST_FORECASTS]
        ]
        calibration = self.series.calibration()
        body: Body = {
            "step_s": self.series.step_s,
            "steps": self.series.closed,
            "relearnt_steps": self.relearnt,
            "since_s": round(now_s - self.series_since_s, 3),
            "forecasts": rows,
            "warnings": [self._warning_row(one) for one in self.warnings],
            "surprises": list(self.surprises),
            "calibration": calibration,
        }
        if not rows:
            body["not_enough_evidence"] = (
                "no demand class was seen over enough steps for a forecast"
            )
        return body

    def what_if(self, about: str) -> Body:
        """The ratio if one demand class were answered well, over what was asked lately."""
        self.sample(time.monotonic())
        return what_if(self.recent.table, about)

    # ---- what it knows ---------------------------------------------------------------------

    def variety(self) -> Body:
        """The variety of what was asked lately and since vsm started, at this moment."""
        now_s = time.monotonic()
        self.sample(now_s)
        return {
            "half_life_s": HALF_LIFE_S,
            "recent_s": round(now_s - self.recent_since_s, 3),
            "recent": report(self.recent.table),
            "since_start": report(self._seen or {}),
            "integrations": self._integrations(),
            "board": self._reader is not None,
        }

    def _integrations(self) -> list[Any]:
        """Answered share and latency of each, the busiest first."""
        rows = [
            {
                "integration": name,
                "events": demand.events,
                "answered_well": sum(row[OK] for row in demand.classes.values()),
                "cancelled": demand.cancelled,
                "p50_s": latency_quantile_s(demand.latency, 0.5),
                "p95_s": latency_quantile_s(demand.latency, 0.95),
            }
            for name, demand in self._demand.items()
            if name != NOBODY
        ]
        return sorted(rows, key=lambda row: -int(str(row["events"])))[:MOST_INTEGRATIONS]

    def state(self) -> Body:
        """What it has and what it lacks."""
        self.sample(time.monotonic())
        lacks = ["no registry configured", "nothing is acquired yet"]
        if not self.series.forecasts():
            lacks.insert(0, "no forecast: no demand class was seen over enough steps")
        if self._reader is None:
            lacks.insert(0, "no demand board of system 1")
        elif not self._seen:
            lacks.insert(0, "no demand observed")
        outlook = summary(report(self.recent.table))
        return {
            "role": "intelligence",
            "snapshot": None,
            "variety": outlook,
            "goals": self.goals.rows(self.recent.table, outlook),
            "warnings": [self._warning_row(one) for one in self.warnings],
            "steps": self.series.closed,
            "sought": [{"integration": key[0], "demand": key[1]} for key in self.sought],
            "calibration": self.series.calibration(),
            "policy": list(self.policy),
            "lacks": list(lacks),
            **self.context.channel_state(),
        }

    # ---- what it tells ---------------------------------------------------------------------

    def tell(self) -> None:
        """Tell S3 the outlook where it changed, and S5 where it hurts or no longer does."""
        outlook = summary(report(self.recent.table))
        felt = self.goals.feel(self.recent.table, outlook, self._now_s)
        for signal in felt:
            self.context.send("system5", signal)
        if felt:
            self.context.report(self.goals.record())
        rising: list[Any] = [one.key[0] for one in self.warnings if one.kind == "surge"]
        body: Body = {"variety": outlook, "rising": sorted(set(rising))}
        if body == self._told:
            return
        self._told = body
        self.context.send("system3", Outlook(body=body))

    async def watch(self) -> None:
        """Sample at intervals, tell less often."""
        count = 0
        while True:
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            self.sample(time.monotonic())
            count += 1
            if count % OUTLOOK_EVERY == 0:
                self.tell()

    def close(self) -> None:
        """Unmap the board."""
        if self._reader is not None:
            self._reader.close()


def _keep_newest(proposals: dict[int, Any]) -> None:
    """S5 may be away: what it never answers is forgotten."""
    while len(proposals) > MOST_OPEN:
        del proposals[next(iter(proposals))]


def _by_class(demand: dict[str, Demand]) -> Totals:
    found: Totals = {}
    for name, one in demand.items():
        for label, row in one.classes.items():
            key = (name, label) if len(found) < MOST_CLASSES else (name, OVERFLOW)
            known = found.get(key)
            found[key] = row if known is None else [a + b for a, b in zip(known, row, strict=True)]
    return found


async def main(context: SystemContext) -> None:
    """Measure demand and answer truthfully until told to stop."""
    intelligence = Intelligence(context, time.monotonic())
    context.handle("segments", intelligence.on_segments)
    context.answer("state", intelligence.state)
    context.handle("configure", intelligence.reconfigure)
    context.handle("system5>system4:policy", intelligence.on_policy)
    context.handle("system3>system4:budgets", intelligence.on_budgets)
    context.answer("variety", intelligence.variety)
    context.answer("predictions", intelligence.predictions)
    context.answer_about("what-if", intelligence.what_if)
    start, _ = await context.started()
    intelligence.configure(start, time.monotonic())
    context.ready()
    watching = context.run_beside(intelligence.watch())
    try:
        await context.stopping.wait()
    finally:
        watching.cancel()
        intelligence.close()
