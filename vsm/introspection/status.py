"""What `status` answers: every worker with the layers really in force, the systems' own answers.

Runs in the supervisor. Reads and reports; changes nothing. A system that was taken over may answer
anything: what is taken out of an answer is looked at first, so that the rest is shown all the same.
"""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vsm import __version__
from vsm.core import channels, restart
from vsm.governance import limits, limits_in_force
from vsm.governance.detection import measure
from vsm.supervision.egress_actor import EGRESS
from vsm.supervision.instance_set import integration_of, number_of
from vsm.supervision.launcher_actor import LAUNCHER
from vsm.supervision.template_actor import TEMPLATE

if TYPE_CHECKING:
    from vsm.confinement.cgroup import Group
    from vsm.supervision.supervisor import Supervisor

_JOURNAL_STATES: Final = {
    "trouble": "backing_off", "down": "backing_off", "refused": "quarantined", "closed": "stopped",
}  # fmt: skip
_RESILIENCE: Final[dict[str, tuple[type, ...]]] = {
    "breaker": (str,),
    "failures_in_a_row": (int,),
    "retry_in_s": (int, float),
    "retries": (int,),
    "held": (int,),
    "dead_letters": (int,),
}
_GOAL: Final = ("state", "words")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


async def collect(supervisor: "Supervisor") -> dict[str, Any]:
    """The whole answer, per the schema in docs/architecture.md."""
    answers = await _system_answers(supervisor)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "ready": supervisor.ready,
        "panic": supervisor.integrations.workers.group.panic,
        "uptime_s": round(supervisor.uptime_s, 3),
        "endpoint": {
            "http": supervisor.endpoint.http_url,
            "socket": str(supervisor.endpoint.directory / "mcp.sock"),
        },
        "identity": {
            "purpose": supervisor.config.policy.purpose,
            "goals": _goals(answers["system4"]),
        },
        "pains": supervisor.policing.overview(),
        "workers": [
            *_own(supervisor),
            *_systems(supervisor),
            *(_with_words_of_s1(row, answers) for row in _integrations(supervisor)),
        ],
        "systems": answers,
        "channels": [_channel(supervisor, channel, answers) for channel in channels.CHANNELS],
    }


def _table(value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return value if isinstance(value, dict) else {}


def _rows(value: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _goals(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """S4's word on how each goal stands."""
    rows = _rows(answer.get("goals"))
    return [row for row in rows if all(isinstance(row.get(key), str) for key in _GOAL)]


def _with_words_of_s1(row: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """The row with S1's word on how calls of the integration fare, and whose an instance is."""
    seen = _table(_table(answers["system1"].get("integrations")).get(row["integration"]))
    for instance in _rows(seen.get("instances")):
        if instance.get("name") == row["name"]:
            row = row | {
                "serves": str(instance.get("state")),
                "in_flight": instance.get("in_flight"),
            }
    if row["kind"] != "integration":
        return row
    told = {
        key: seen[key] for key, kinds in _RESILIENCE.items() if isinstance(seen.get(key), kinds)
    }
    behind = seen.get("lists_behind")
    lists = [one for one in behind if isinstance(one, str)] if isinstance(behind, list) else []
    return row | {"resilience": told, "lists_behind": lists}


async def _system_answers(supervisor: "Supervisor") -> dict[str, Any]:
    names = channels.SYSTEMS
    answers = await asyncio.gather(*(supervisor.systems.query(name, "state") for name in names))
    return {
        name: answer if answer is not None else {"error": "no answer"}
        for name, answer in zip(names, answers, strict=True)
    }


def _row(kind: str, worker: restart.Worker, pid: int | None, started_at: float) -> dict[str, Any]:
    now = asyncio.get_running_loop().time()
    memory_bytes, cpu_s = _usage(pid)
    return {
        "name": worker.spec.name,
        "kind": kind,
        "integration": None,
        "state": worker.phase,
        "pid": pid,
        "restarts": worker.restarts,
        "uptime_s": round(now - started_at, 3) if pid is not None else 0.0,
        "tier": None,
        "layers": [],
        "memory_bytes": memory_bytes,
        "cpu_s": cpu_s,
        "detail": worker.reason,
    }


def _own(supervisor: "Supervisor") -> list[dict[str, Any]]:
    launcher = supervisor.integrations.launcher_actor
    template = supervisor.systems.template_actor
    template_pid = template.process.pid if template.process else None
    return [
        _row(
            "launcher",
            supervisor.integrations.launcher.worker(LAUNCHER),
            launcher.pid,
            launcher.started_at,
        ),
        _row(
            "template", supervisor.systems.template.worker(TEMPLATE), template_pid,
            template.started_at,
        ),
        _journal(supervisor),
        *_call_journal(supervisor),
        *_egress(supervisor),
    ]  # fmt: skip


def _egress(supervisor: "Supervisor") -> list[dict[str, Any]]:
    """The egress process's row, once a worker needed it."""
    egress = supervisor.integrations.egress
    worker = egress.runner.worker(EGRESS)
    if not worker.incarnation:
        return []
    row = _row("egress", worker, egress.link.pid if egress.link else None, egress.started_at)
    row["tier"] = "landlocked"
    row["layers"] = egress.link.layers if egress.link else []
    return [row]


def _journal(supervisor: "Supervisor") -> dict[str, Any]:
    journal = supervisor.recorder.journal.statistics()
    memory_bytes, cpu_s = _usage(journal.pid)
    lost = f"{journal.dropped} records dropped" if journal.dropped else ""
    return {
        "name": "journal",
        "kind": "journal",
        "integration": None,
        "state": _JOURNAL_STATES.get(journal.state, journal.state),
        "pid": journal.pid,
        "restarts": journal.restarts,
        "uptime_s": round(journal.uptime_s, 3),
        "tier": "landlocked",
        "layers": journal.layers,
        "memory_bytes": memory_bytes,
        "cpu_s": cpu_s,
        "detail": "; ".join(part for part in (journal.reason, lost) if part),
    }


def _call_journal(supervisor: "Supervisor") -> list[dict[str, Any]]:
    """The row of the process that records calls, where they are recorded."""
    calls, journal = supervisor.recorder.calls, supervisor.recorder.journal.statistics()
    if calls.fileno() is None:
        return []
    memory_bytes, cpu_s = _usage(calls.pid)
    return [
        {
            "name": "calls",
            "kind": "journal",
            "integration": None,
            "state": "starting" if calls.pid is None else "ready",
            "pid": calls.pid,
            "restarts": calls.restarts,
            "uptime_s": round(calls.uptime_s, 3),
            "tier": "landlocked",
            "layers": journal.layers,  # by the same plan
            "memory_bytes": memory_bytes,
            "cpu_s": cpu_s,
            "detail": "",
        }
    ]


def _systems(supervisor: "Supervisor") -> list[dict[str, Any]]:
    rows = []
    for name, worker in supervisor.systems.systems.group.workers.items():
        running = supervisor.systems.running.get(name)
        pid, started_at = (running.pid, running.started_at) if running else (None, 0.0)
        row = _row("system", worker, pid, started_at)
        row["tier"] = "landlocked"
        row["spare"] = supervisor.systems.has_spare(name)
        row["layers"] = [layer.model_dump() for layer in running.layers] if running else []
        rows.append(row)
    return rows


def _integrations(supervisor: "Supervisor") -> list[dict[str, Any]]:
    rows = []
    for key, worker in supervisor.integrations.workers.group.workers.items():
        name, number = integration_of(key), number_of(key)
        running = supervisor.integrations.running.get(key)
        spawned = running.spawned if running else None
        pid = spawned.pid if spawned else None
        kind = "instance" if number else "integration"
        row = _row(kind, worker, pid, running.started_at if running else 0.0)
        row["integration"] = name
        row["egress"] = supervisor.integrations.egress.counts(running.worker_id) if running else {}
        row["refused_calls"] = supervisor.integrations.refused.counts(name)
        row["prefix"] = supervisor.integrations.integrations[name].prefix
        row["zygote"] = supervisor.integrations.integrations[name].zygote
        if not number:
            row["replacement"] = found = supervisor.integrations.replacements.row(name)
            if found is not None and not row["detail"]:
                row["detail"] = f"replacement {found['state']}: {found['reason']}"
        if running is not None and spawned is not None:
            row["tier"] = running.tier
            row["layers"] = spawned.layers
            by = limits.set_by(supervisor.integrations, running)
            row["limits"] = limits_in_force.table(running, by)
            group = running.provided.group if running.provided else None
            row["memory_bytes"], row["cpu_s"] = _usage_of_all(spawned.pid, group)
        rows.append(row)
    return rows


def _usage_of_all(pid: int, group: "Group | None") -> tuple[int | None, float | None]:
    """What a whole worker uses: by its control group, else by a look at its processes."""
    counted = group.usage() if group is not None else None
    memory_bytes, cpu_s = (counted.memory_bytes, counted.cpu_s) if counted else (None, None)
    if memory_bytes is not None and cpu_s is not None:
        return memory_bytes, cpu_s
    seen = measure(pid)
    if not seen.tasks:
        return None, None  # it has ended
    return memory_bytes or seen.memory_bytes, seen.cpu_s if cpu_s is None else cpu_s


def _usage(pid: int | None) -> tuple[int | None, float | None]:
    """Resident bytes and CPU seconds of one process."""
    if pid is None:
        return None, None
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None, None
    return pages * _PAGE_BYTES, (int(stat[11]) + int(stat[12])) / _TICKS


def _channel(
    supervisor: "Supervisor", channel: channels.Channel, answers: dict[str, Any]
) -> dict[str, Any]:
    seen = _table(_table(answers.get(channel.sender, {}).get("channels")).get(channel.name))
    return {
        "sender": channel.sender,
        "receiver": channel.receiver,
        "carries": channel.carries,
        "capacity_bytes": supervisor.systems.capacity_bytes(channel),
        "queued_bytes": supervisor.systems.queued_bytes(channel),
        "sent": seen.get("sent", 0),
        "dropped": seen.get("dropped", 0),
    }
