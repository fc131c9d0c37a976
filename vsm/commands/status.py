"""`vsm status`: every worker, its state, and the layers that are really in force for it."""

import argparse
from typing import Any

from vsm.commands import regulation_text
from vsm.commands.control_client import request
from vsm.commands.limit import print_limits
from vsm.commands.terminal import (
    BOLD,
    RED,
    bytes_text,
    clean,
    coloured,
    print_json,
    print_table,
    seconds_text,
)
from vsm.errors import NotFoundError

# Of an integration with `zygote = true`.
WEAKNESS = (
    "its sessions' servers are forks of one process and share its address layout, what it did "
    "before it read, its uid, process namespace, limits and private directories"
)
HEADINGS = ("NAME", "KIND", "STATE", "PID", "TIER", "LACKS", "UP", "MEMORY", "CPU", "RESTARTS")
_SERVES = {
    "claimed": "belongs to a session",
    "spare": "waits for a session",
    "ready": "serves whoever calls",
}
EGRESS_HEADINGS = ("EGRESS TO", "ASKED", "ALLOWED", "REFUSED", "SENT", "RECEIVED", "LAST REFUSAL")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `status`."""
    parser = subparsers.add_parser("status", help="show every worker and the layers in force")
    parser.add_argument("name", nargs="?", help="one worker, with all its layers")
    parser.add_argument("--json", action="store_true", help="the schema: `vsm docs cli`")


def run(args: argparse.Namespace) -> int:
    """Print the table, one worker, or JSON."""
    status = request("status")
    if args.name:
        status["workers"] = [w for w in status["workers"] if args.name in _names(w)]
        if not status["workers"]:
            raise NotFoundError(args.name, "no such worker", "See `vsm status`.")
    if args.json:
        print_json(status)
    elif args.name:
        for worker in status["workers"]:
            _print_worker(worker)
    else:
        _print_all(status)
    return 0


def _names(worker: dict[str, Any]) -> tuple[str | None, ...]:
    return worker["name"], worker.get("integration")


def _print_all(status: dict[str, Any]) -> None:
    endpoint = status["endpoint"]
    ready = "ready" if status["ready"] else "starting"
    print(
        f"vsm {status['version']} {coloured(ready, BOLD)}, pid {status['pid']}, "
        f"up {seconds_text(status['uptime_s'])}, "
        f"{endpoint.get('http') or 'no HTTP'}, {endpoint['socket']}"
    )
    _print_identity(status["identity"])
    if status["panic"]:
        print(coloured("PANIC: every integration is stopped. `vsm resume` ends it.", RED))
    for pain in status["pains"]:
        cause = f" ({pain['cause']})" if pain["cause"] else ""
        text = f"hurts: {pain['subject']}{cause}: {pain['detail']}"
        print(coloured(clean(f"{text}, for {seconds_text(pain['for_s'])}"), RED))
    print_table(HEADINGS, [_row(worker) for worker in status["workers"]])
    for worker in status["workers"]:
        if worker["state"] not in {"ready", "starting"} and worker.get("detail"):
            print_table(("", ""), [(worker["name"], worker["detail"])])
        _print_quarantine(worker)
        _print_breaker(worker)
        _print_behind(worker)
    for worker in status["workers"]:
        _print_shared(worker)
    for line in regulation_text.lines(status["systems"]):
        print(line)


def _print_identity(identity: dict[str, Any]) -> None:
    """What it is for and how its goals stand."""
    if identity["purpose"]:
        print(clean(f"for: {identity['purpose']}"))
    for goal in identity["goals"]:
        print(clean(f"goal: {goal['words']}"))


def _print_quarantine(worker: dict[str, Any]) -> None:
    """Say what to do about a worker that is not started again by itself."""
    if worker["state"] == "quarantined":
        name = clean(worker["name"])
        text = f"`vsm logs {name}` shows what it printed, `vsm start {name}` tries again"
        print(coloured(f"{name}: quarantined: {text}", RED))


def _print_breaker(worker: dict[str, Any]) -> None:
    """Say so where calls are refused or tried."""
    seen = worker.get("resilience") or {}
    if seen.get("breaker") == "open":
        text = f"calls are refused, tried again in {seconds_text(seen.get('retry_in_s'))}"
    elif seen.get("breaker") == "half_open":
        text = "calls are tried one at a time"
    else:
        return
    print(coloured(f"{worker['name']}: breaker {seen['breaker']}: {text}", RED))


def _print_behind(worker: dict[str, Any]) -> None:
    """Say so where clients are shown a list that its server did not give when asked again."""
    if worker.get("lists_behind"):
        lists = ", ".join(worker["lists_behind"])
        text = f"{lists} did not come when asked for again; what was listed before still counts"
        print(coloured(clean(f"{worker['name']}: behind: {text}"), RED))


def _print_shared(worker: dict[str, Any]) -> None:
    """Say so where sessions are kept apart by less than a sandbox of their own."""
    if worker.get("zygote") and worker["kind"] == "integration":
        print(coloured(f"{worker['name']}: weaker: {WEAKNESS}", RED))


def _row(worker: dict[str, Any]) -> tuple[str, ...]:
    absent = [layer["name"] for layer in worker.get("layers") or () if layer["state"] == "absent"]
    cpu_s = worker.get("cpu_s")
    return (
        worker["name"],
        worker["kind"],
        worker["state"],
        str(worker.get("pid") or "-"),
        worker.get("tier") or "-",
        ",".join(absent) or "-",
        seconds_text(worker.get("uptime_s")),
        bytes_text(worker.get("memory_bytes")),
        "-" if cpu_s is None else f"{cpu_s:.1f}s",
        str(worker.get("restarts", 0)),
    )


def _print_worker(worker: dict[str, Any]) -> None:
    print_table(HEADINGS, [_row(worker)])
    for told in (worker.get("detail"), _SERVES.get(worker.get("serves", ""))):
        if told:
            print_table(("", ""), [("", told)])
    _print_quarantine(worker)
    _print_breaker(worker)
    _print_behind(worker)
    _print_shared(worker)
    layers = worker.get("layers") or []
    if layers:
        print()
        rows = [(layer["name"], layer["state"], layer.get("detail") or "") for layer in layers]
        print_table(("LAYER", "STATE", "DETAIL"), rows)
    if worker.get("limits"):
        print()
        print_limits(worker["limits"])
    if worker.get("refused_calls"):
        print()
        calls = [(name, str(count)) for name, count in worker["refused_calls"].items()]
        print_table(("REFUSED SYSTEM CALL", "COUNT"), calls)
    if worker.get("egress"):
        print()
        print_table(EGRESS_HEADINGS, [_egress_row(*item) for item in worker["egress"].items()])


def _egress_row(host: str, row: dict[str, Any]) -> tuple[str, ...]:
    moved = (bytes_text(row[key]) for key in ("sent_bytes", "received_bytes"))
    return host, *(str(row[key]) for key in ("asked", "allowed", "refused")), *moved, row["reason"]
