"""What vsm says of itself to models: status, variety, capabilities, limitations.

Runs in the supervisor. Everything is read from the running whole at that moment; nothing is
guessed, and what the evidence does not carry is None. Words of servers and clients are stripped
of what a terminal or a reader of text would obey, cut, and marked.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from vsm import measures, status
from vsm.core import channels
from vsm.core.proportion import wilson
from vsm.errors import VsmError

if TYPE_CHECKING:
    from vsm.supervisor import Supervisor

LEAST_CALLS: Final = 30
MARK: Final = "> "
_MOST_CHARS: Final = 300
_MOST_INTEGRATIONS: Final = 200

Body = dict[str, Any]


async def answer(supervisor: "Supervisor", what: str) -> Body | None:
    """Answer one question; None where those who know do not answer."""
    questions = {
        "status": _status,
        "variety": _variety,
        "capabilities": _capabilities,
        "limitations": _limitations,
    }
    try:
        return await questions[what](supervisor)
    except VsmError:
        return None


def foreign(text: str) -> str:
    """Somebody else's words on one line: printable, cut, marked."""
    kept = "".join(char if char.isprintable() else " " for char in text[:_MOST_CHARS])
    return f"{MARK}{kept}" if kept else ""


async def _status(supervisor: "Supervisor") -> Body:
    found = await status.collect(supervisor)
    return {
        "version": found["version"],
        "ready": found["ready"],
        "panic": found["panic"],
        "uptime_s": found["uptime_s"],
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
                "answered_well": _share(row["answered_well"], row["events"]),
                "p50_below_s": row["p50_s"],
                "p95_below_s": row["p95_s"],
            }
            for row in found["integrations"]
        ],
        "evidence": f"shares are since vsm started, from {LEAST_CALLS} calls on",
    }


def _share(well: int, calls: int) -> Body | None:
    if calls < LEAST_CALLS:
        return None
    low, high = wilson(well, calls)
    return {"share": well / calls, "low": low, "high": high}


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
        "not_built": ["no record of why decisions were made is offered here: see `vsm decisions`"],
    }
