"""What vsm says of its own past: decisions and why, what was learned, what is unusual, events.

Runs in the supervisor. Everything is read from the journal and the counts; what the evidence does
not carry is None, and says why. A question reads a bounded part of the journal; the same one is
not read twice in a few seconds, nor are more than four read in a second for long: whoever asks
cannot keep the supervisor busy.
"""

import time
from typing import TYPE_CHECKING, Any, Final

from vsm.core.anomaly import LEAST_HISTORY, unusual
from vsm.core.lessons import share
from vsm.core.rates import Bucket, Rate
from vsm.core.retry import RETRIED, ROUTED
from vsm.errors import VsmError
from vsm.introspection import lessons
from vsm.introspection.lessons import LEAST_CALLS
from vsm.journal.reader import Filter, JournalReader, Now, Row, Table, Within
from vsm.journal.records import severity_index

if TYPE_CHECKING:
    from vsm.supervision.supervisor import Supervisor

GATEWAY: Final = "system1"
MOST_EXPLAINED: Final = 10
MOST_EVENTS: Final = 50
MOST_DECISIONS: Final = 500
MOST_CAPABILITIES: Final = 50
RECENT_S: Final = 600.0
KEPT_S: Final = 3.0
WATCHED: Final = (
    "worker.exited",
    "worker.hung",
    "worker.unfit",
    "worker.out_of_memory",
    "worker.quarantined",
    "worker.calls_refused",
    "breaker.open",
    "algedonic.pain",
    "egress.refused",
)
_NS: Final = 10**9
_READS: Final = Rate(per_second=4.0, burst=32)  # of some 20 ms each, whatever is asked

Body = dict[str, Any]


class Reflection:
    """One supervisor's view of its past."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._kept: dict[tuple[str, str], tuple[float, Any]] = {}
        self._reads = Bucket(_READS)

    # ---- questions -------------------------------------------------------------------------

    def decisions(self, about: str) -> list[Row]:
        """The newest decisions; `about` is one's number, a rule, or whom it concerned."""
        found: list[Row] = self._once("decisions", about, self._decisions)
        return found

    def events(self, about: str) -> list[Row]:
        """The newest events from notice on; `about` is a kind such as "worker.*", or a worker."""
        found: list[Row] = self._once("events", about, self._events)
        return found

    def learned(self) -> list[Body]:
        """Which choices, retries, limits and routes helped: see vsm.introspection.lessons."""
        found: list[Body] = self._once("learned", "", self._learned)
        return found

    def anomalies(self) -> Body:
        """What happened in the last minutes more often than before."""
        found: Body = self._once("anomalies", "", self._anomalies)
        return found

    def capabilities(self) -> list[Body]:
        """What was asked for: the share of each answered well, and its interval; busiest first."""
        rows = [
            {"integration": name, "demand": label, "calls": sum(counts), "well": counts[0]}
            for name, row in self._counts().items()
            for label, counts in row["classes"].items()
            if sum(counts)
        ]
        rows.sort(key=lambda row: -int(row["calls"]))
        return [
            {
                "integration": row["integration"],
                "demand": row["demand"],
                "calls": row["calls"],
                "answered_well": share(row["well"], row["calls"], LEAST_CALLS),
            }
            for row in rows[:MOST_CAPABILITIES]
        ]

    # ---- reading ---------------------------------------------------------------------------

    def _once(self, question: str, about: str, read: Any) -> Any:  # noqa: ANN401 - each its own
        now_s = time.monotonic()
        kept = self._kept.get((question, about))
        if kept is not None and now_s - kept[0] < KEPT_S:
            return kept[1]
        if len(self._kept) >= 64:  # noqa: PLR2004 - questions of the last seconds
            self._kept.clear()
        if self._reads.take(now_s) != 0:
            raise VsmError(
                "journal", "more is asked than can be read now", "Ask again in a second."
            )
        found = read(about)
        self._kept[question, about] = (now_s, found)
        return found

    def _read(self, table: Table, chosen: Filter, limit: int) -> list[Row]:
        with JournalReader(self._supervisor.recorder.path) as reader:
            return reader.newest(table, chosen, limit, bounded=True)

    def _decisions(self, about: str) -> list[Row]:
        if about.isascii() and about.isdigit():
            rows = self._read("decisions", Filter(), MOST_DECISIONS)
            return [row for row in rows if row["id"] == int(about)]
        if not about:
            return self._read("decisions", Filter(), MOST_EXPLAINED)
        found = self._read("decisions", Filter(kind=about), MOST_EXPLAINED)
        return found or self._read("decisions", Filter(worker=about), MOST_EXPLAINED)

    def _events(self, about: str) -> list[Row]:
        notable = severity_index("notice")
        if not about:
            return self._read("events", Filter(severity=notable), MOST_EVENTS)
        if "." in about:
            return self._read("events", Filter(kind=about), MOST_EVENTS)
        return self._read("events", Filter(worker=about), MOST_EVENTS)

    def _learned(self, _about: str) -> list[Body]:
        retries = self._read("events", Filter(kind=RETRIED, source=GATEWAY), MOST_DECISIONS)
        routes = self._read("events", Filter(kind=ROUTED, source=GATEWAY), MOST_DECISIONS)
        return [
            *lessons.of_decisions(self._read("decisions", Filter(), MOST_DECISIONS)),
            *lessons.of_retries(retries),
            *lessons.of_instances(routes),
            *lessons.of_capabilities(self._counts()),
        ]

    def _counts(self) -> Body:
        """What was asked for, by integration."""
        found: Body = self._once("counts", "", self._read_counts)
        return found

    def _read_counts(self, _about: str) -> Body:
        found: Body = self._supervisor.systems.demand.dump().get("integrations", {})
        return found

    def _anomalies(self, _about: str) -> Body:
        recent = Within(int(RECENT_S * _NS), Now.read())
        with JournalReader(self._supervisor.recorder.path) as reader:
            counts = reader.kinds(recent)
        earlier_s = counts.oldest_ns / _NS - RECENT_S
        if earlier_s < LEAST_HISTORY * RECENT_S:
            need_s = LEAST_HISTORY * RECENT_S
            text = f"{max(0.0, earlier_s):.0f} s of history, {need_s:.0f} s are needed"
            return {"more_than_usual": [], "not_enough_evidence": text}
        found = []
        for kind in WATCHED:
            late, early = counts.late.get(kind, 0), counts.early.get(kind, 0)
            more = unusual(late, RECENT_S, early, earlier_s)
            if more is not None:
                found.append({"kind": kind, "looked_at_s": RECENT_S, **more._asdict()})
        return {
            "more_than_usual": found,
            "not_enough_evidence": None,
            "history_s": round(earlier_s),
            "looked_at": list(WATCHED),
        }
