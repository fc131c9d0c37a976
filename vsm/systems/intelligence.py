"""S4, intelligence: outside-and-then. It measures the variety of what is asked.

Runs in its own confined process. Reads S1's demand board, keeps what was asked lately in a window
that fades, tells S3 its outlook and S5 when the requisite ratio is too low for chance. It
forecasts and acquires nothing yet, and says so. It has no channel to S1.
"""

import asyncio
import time
from typing import Any, Final

from vsm.board_reader import Demand, DemandReader
from vsm.core.demand import NOBODY, OK, OUTCOMES
from vsm.core.demand_window import DemandWindow, Key
from vsm.core.variety_report import latency_quantile_s, report, summary
from vsm.demand_relay import take_segments
from vsm.messages import Algedonic, Body, Outlook, Segments
from vsm.systems.base import SystemContext

SAMPLE_INTERVAL_S: Final = 1.0
OUTLOOK_EVERY: Final = 5  # samples
HALF_LIFE_S: Final = 600.0
LEAST_RATIO: Final = 0.7  # pain below it, relief above RELIEF_RATIO: no flapping in between
RELIEF_RATIO: Final = 0.75
MOST_INTEGRATIONS: Final = 200

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
        self._reader: DemandReader | None = None
        self._changes = -1
        self._demand: dict[str, Demand] = {}
        self._seen: Totals | None = None
        self._in_pain = False
        self._told: Body | None = None

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
        self.recent.fade(now_s)
        if self._reader is None:
            return
        changes = self._reader.changes()
        if changes == self._changes:
            return
        self._changes = changes
        self._demand = self._reader.totals()
        totals, before = _by_class(self._demand), self._seen or {}
        for key, row in totals.items():
            last = before.get(key)
            new = row if last is None else [a - b for a, b in zip(row, last, strict=True)]
            if any(new):
                self.recent.add(key, new)
        self._seen = totals

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
        lacks = ["no forecast yet", "no registry configured", "nothing is acquired yet"]
        if self._reader is None:
            lacks.insert(0, "no demand board of system 1")
        elif not self._seen:
            lacks.insert(0, "no demand observed")
        return {
            "role": "intelligence",
            "snapshot": None,
            "variety": summary(report(self.recent.table)),
            "lacks": list(lacks),
            **self.context.channel_state(),
        }

    # ---- what it tells ---------------------------------------------------------------------

    def tell(self) -> None:
        """Tell S3 the outlook where it changed, and S5 where it hurts or no longer does."""
        outlook = summary(report(self.recent.table))
        if outlook == self._told:
            return
        self._told = outlook
        self.context.send("system3", Outlook(body={"variety": outlook}))
        ratio = outlook.get("requisite_ratio")
        if ratio is not None:
            self._feel(ratio["low"], ratio["high"])

    def _feel(self, low: float, high: float) -> None:
        """Raise pain when the whole interval is too low, relief when it is high enough again."""
        if not self._in_pain and high < LEAST_RATIO:
            self._in_pain = True
            text = f"the requisite ratio is at most {high:.2f}, below {LEAST_RATIO:g}"
            self.context.send("system5", _signal("pain", text))
        elif self._in_pain and low > RELIEF_RATIO:
            self._in_pain = False
            text = f"the requisite ratio is at least {low:.2f} again"
            self.context.send("system5", _signal("relief", text))

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


def _signal(severity: Any, text: str) -> Algedonic:  # noqa: ANN401 - a literal of the model's
    return Algedonic(severity=severity, subject="requisite ratio", detail=text)


def _by_class(demand: dict[str, Demand]) -> Totals:
    width = len(OUTCOMES)
    return {
        (name, label): row
        for name, one in demand.items()
        for label, row in one.classes.items()
        if len(row) == width
    }


async def main(context: SystemContext) -> None:
    """Measure demand and answer truthfully until told to stop."""
    intelligence = Intelligence(context, time.monotonic())
    context.handle("segments", intelligence.on_segments)
    context.answer("state", intelligence.state)
    context.answer("variety", intelligence.variety)
    await context.started()
    context.ready()
    watching = asyncio.create_task(intelligence.watch())
    try:
        await context.stopping.wait()
    finally:
        watching.cancel()
        intelligence.close()
