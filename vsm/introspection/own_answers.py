"""What vsm says of itself to models and to people: now, and of its past.

Runs in the supervisor. Everything is read from the running whole at that moment or from the
record; nothing is guessed, and what the evidence does not carry is None. Words of servers and
clients are stripped of what a terminal or a reader of text would obey, cut, and marked.
"""

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from vsm.core import channels
from vsm.core.lessons import share
from vsm.errors import VsmError
from vsm.introspection import measures, status
from vsm.introspection.lessons import CLIENT_ROUTE, LEAST_CALLS, LEAST_TRIALS
from vsm.journal.reader import JournalError

if TYPE_CHECKING:
    from vsm.supervision.supervisor import Supervisor

MARK: Final = "> "
_MOST_CHARS: Final = 300
_MOST_INTEGRATIONS: Final = 200
_MOST_ITEMS: Final = 50
_MOST_KEY: Final = 64
_MOST_BYTES: Final = 64 * 1024

Body = dict[str, Any]


async def answer(supervisor: "Supervisor", what: str, about: str = "") -> Body | None:
    """Answer one question; None where those who know do not answer."""
    now = {
        "status": _status,
        "variety": _variety,
        "capabilities": _capabilities,
        "limitations": _limitations,
        "reflect": reflect,
        "predictions": predictions,
    }
    past = {"explain_decision": _decisions, "events": _events}
    try:
        found = past[what](supervisor, about) if what in past else await now[what](supervisor)
        return _plain(found)
    except JournalError as error:
        return {"not_enough_evidence": f"the journal cannot be read: {error.what}"}
    except VsmError:
        return None
    except (LookupError, TypeError, AttributeError, ValueError):
        return None  # a system was asked, and said what makes no sense


def foreign(text: str) -> str:
    """Somebody else's words on one line: printable, cut, marked."""
    kept = _printable(text[:_MOST_CHARS])
    return f"{MARK}{kept}" if kept else ""


def marked(value: Any) -> Any:  # noqa: ANN401 - JSON
    """JSON of a record, with every text and every key in it taken for somebody else's words."""
    if isinstance(value, str):
        return foreign(value)
    if isinstance(value, list):
        return [marked(one) for one in value[:_MOST_ITEMS]]
    if isinstance(value, dict):
        items = list(value.items())[:_MOST_ITEMS]
        return {_printable(key)[:_MOST_KEY]: marked(one) for key, one in items}
    return value


def _plain(found: Body) -> Body:
    """Whoever wrote a text, and whether it is marked or not: no control character leaves."""
    return {_printable(key): _plain_value(value) for key, value in found.items()}


def _plain_value(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, list | tuple):
        return [_plain_value(one) for one in value]
    return _plain(value) if isinstance(value, dict) else value


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


async def _status(supervisor: "Supervisor") -> Body:
    found = await status.collect(supervisor)
    return {
        "version": found["version"],
        "ready": found["ready"],
        "panic": found["panic"],
        "uptime_s": found["uptime_s"],
        "identity": found["identity"],
        "workers": [_worker(row) for row in found["workers"][:_MOST_INTEGRATIONS]],
    }


def _worker(row: Body) -> Body:
    return {
        "name": row["name"],
        "kind": row["kind"],
        "state": row["state"],
        "reason": foreign(row["detail"]),
        "restarts": row["restarts"],
        "uptime_s": row["uptime_s"],
        "tier": row["tier"],
        "layers_absent": [one["name"] for one in row["layers"] if one["state"] == "absent"],
    }


async def _variety(supervisor: "Supervisor") -> Body:
    found = await measures.variety(supervisor)
    for window in ("recent", "since_start"):
        _mark_demand(found[window])
    return found


def _mark_demand(report: Body) -> None:
    shares = report["figures"]["gap_by_class"] if report["figures"] else []
    for row in (*report["unmet"], *shares):
        row["demand"] = foreign(row["demand"])


async def _capabilities(supervisor: "Supervisor") -> Body:
    found = await measures.variety(supervisor)
    catalogue = await supervisor.systems.query("system1", "catalogue") or {}
    offered: Any = catalogue.get("integrations", {})
    return {
        "integrations": [
            {
                "name": row["integration"],
                "state": offered.get(row["integration"], {}).get("state"),
                "tools": offered.get(row["integration"], {}).get("tools"),
                "calls": row["events"],
                "answered_well": share(row["answered_well"], row["events"], LEAST_CALLS),
                "p50_below_s": row["p50_s"],
                "p95_below_s": row["p95_s"],
            }
            for row in found["integrations"]
        ],
        "evidence": f"shares are since vsm started, from {LEAST_CALLS} calls on",
    }


async def _limitations(supervisor: "Supervisor") -> Body:
    told = await asyncio.gather(
        *(supervisor.systems.query(name, "state") for name in channels.SYSTEMS)
    )
    found = await _variety(supervisor)
    workers = (await _status(supervisor))["workers"]
    away = [row for row in workers if row["kind"] == "integration" and row["state"] != "ready"]
    return {
        "not_serving": [{key: row[key] for key in ("name", "state", "reason")} for row in away],
        "less_confined": {
            row["name"]: row["layers_absent"] for row in workers if row["layers_absent"]
        },
        "asked_for_and_not_served": found["since_start"]["unmet"],
        "variety_unknown_because": found["since_start"]["not_enough_evidence"],
        "systems_lack": {
            name: state.get("lacks", []) if state else ["no answer"]
            for name, state in zip(channels.SYSTEMS, told, strict=True)
        },
        "not_built": ["no new capability is looked for or installed by itself"],
    }


# ---- of its past ---------------------------------------------------------------------------


def _decisions(supervisor: "Supervisor", about: str) -> Body:
    """Why it chose what it chose."""
    rows = supervisor.reflection.decisions(about)
    found = [
        {
            "number": row["id"],
            "at": _at(row),
            "decided_by": _printable(row["source"]),
            "subject": foreign(row["subject"]),
            "rule": _printable(row["rule"]),
            "choice": _printable(row["choice"]),
            "instead_of": marked(row["alternatives"]),
            "inputs": marked(row["inputs"]),
            "outcome": marked(row["outcome"]),
        }
        for row in rows
    ]
    nothing = None if found else "no such decision is in the newest part of the journal"
    return _bounded({"decisions": found, "not_enough_evidence": nothing}, "decisions")


def _events(supervisor: "Supervisor", about: str) -> Body:
    """What happened."""
    rows = supervisor.reflection.events(about)
    found = [
        {
            "at": _at(row),
            "severity": row["severity"],
            "kind": _printable(row["kind"]),
            "said_by": _printable(row["source"]),
            "worker": foreign(row["worker"] or row["integration"] or ""),
            "detail": marked(row["detail"]),
        }
        for row in rows
    ]
    nothing = None if found else "no such event is in the newest part of the journal"
    return _bounded({"events": found, "not_enough_evidence": nothing}, "events")


def _bounded(body: Body, key: str) -> Body:
    """Leave the oldest out until it fits into a message; says how many."""
    left_out = 0
    while len(json.dumps(body)) > _MOST_BYTES and body[key]:
        body[key].pop(0)
        left_out += 1
    return body | ({"left_out": left_out} if left_out else {})


def _at(row: Body) -> str:
    return datetime.fromtimestamp(row["at_ns"] / 1e9, UTC).isoformat(timespec="milliseconds")


async def reflect(supervisor: "Supervisor") -> Body:
    """How well it does what it does, what is unusual now, and what its decisions came to."""
    await asyncio.sleep(0)
    past = supervisor.reflection
    capabilities = past.capabilities()
    for row in capabilities:
        row["demand"] = foreign(row["demand"])
    learned = [
        {**row, "choice": foreign(row["choice"])} if row["rule"] == CLIENT_ROUTE else row
        for row in past.learned()
    ]
    return {
        "capabilities": capabilities,
        "capabilities_evidence": f"shares since counting began, from {LEAST_CALLS} calls on",
        "hurts": [
            {**row, "subject": foreign(row["subject"]), "detail": foreign(row["detail"])}
            for row in supervisor.policing.overview()
        ],
        "unusual": past.anomalies(),
        "learned": learned,
        "learned_evidence": f"shares from {LEAST_TRIALS} known outcomes on"
        if learned
        else "not enough evidence: nothing was decided yet",
    }


async def predictions(supervisor: "Supervisor") -> Body:
    """What is expected, and how well such forecasts came true."""
    found = await supervisor.systems.query("system4", "predictions")
    if found is None:
        return {"not_enough_evidence": "system 4 does not answer"}
    try:
        for name in ("forecasts", "warnings", "surprises"):
            rows: Any = found.get(name) or []
            for row in rows:
                row["demand"] = foreign(str(row.get("demand", "")))
    except (TypeError, AttributeError):
        return {"not_enough_evidence": "system 4 answers what makes no sense"}
    return found
