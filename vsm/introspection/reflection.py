"""What vsm says of its own past: decisions and why, what was learned, what is unusual, events.

Runs in the supervisor. Everything is read from the journal and the counts; what the evidence does
not carry is None, and says why. A question reads a bounded part of the journal, and the same
question is not read twice in a few seconds: whoever asks cannot keep the supervisor busy.
"""

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from vsm.core.anomaly import LEAST_HISTORY, unusual
from vsm.core.proportion import wilson
from vsm.journal.reader import Filter, JournalReader, Row, Table
from vsm.journal.records import severity_index

if TYPE_CHECKING:
    from vsm.supervision.supervisor import Supervisor

LEAST_TRIALS: Final = 10
LEAST_CALLS: Final = 30
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
_GOOD: Final = {"state": "ready", "verdict": "approved", "relieved": True}
_NS: Final = 10**9

Body = dict[str, Any]


class Reflection:
    """One supervisor's view of its past."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._kept: dict[tuple[str, str], tuple[float, Any]] = {}

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
        """For each rule that decided anything: how often what it chose turned out well."""
        found: list[Body] = self._once("learned", "", self._learned)
        return found

    def anomalies(self) -> Body:
        """What happened in the last minutes more often than before."""
        found: Body = self._once("anomalies", "", self._anomalies)
        return found

    def capabilities(self) -> list[Body]:
        """What was asked for: the share of each answered well, and its interval; busiest first."""
        integrations: Any = self._supervisor.systems.demand.dump().get("integrations", {})
        rows = [
            {"integration": name, "demand": label, "calls": sum(counts), "well": counts[0]}
            for name, row in integrations.items()
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
        rows = self._read("decisions", Filter(), MOST_DECISIONS)
        made: Counter[tuple[str, str]] = Counter()
        known: Counter[tuple[str, str]] = Counter()
        well: Counter[tuple[str, str]] = Counter()
        for row in rows:
            key = (row["rule"], row["choice"])
            made[key] += 1
            good = _turned_out_well(row["outcome"])
            if good is not None:
                known[key] += 1
                well[key] += good
        return [
            {
                "rule": rule,
                "choice": choice,
                "decisions": count,
                "outcomes_known": known[rule, choice],
                "turned_out_well": share(well[rule, choice], known[rule, choice], LEAST_TRIALS),
            }
            for (rule, choice), count in made.most_common()
        ]

    def _anomalies(self, _about: str) -> Body:
        now_ns = time.time_ns()
        with JournalReader(self._supervisor.recorder.path) as reader:
            counts = reader.kinds(since_ns=now_ns - int(RECENT_S * _NS))
        earlier_s = (now_ns - counts.since_ns) / _NS - RECENT_S if counts.since_ns else 0.0
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


def share(well: int, trials: int, least: int) -> Body | None:
    """A share with its 95 % interval; None below `least` trials."""
    if trials < least:
        return None
    low, high = wilson(well, trials)
    return {"share": well / trials, "low": low, "high": high}


def _turned_out_well(outcome: Any) -> bool | None:  # noqa: ANN401 - JSON
    """Whether an outcome says that the choice was a good one; None where it says neither."""
    if not isinstance(outcome, dict):
        return None
    for key, good in _GOOD.items():
        if key in outcome:
            return bool(outcome[key] == good)
    return None
