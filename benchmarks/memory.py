"""What vsm's own processes cost while nothing happens: memory (PSS) and CPU.

Counted are the supervisor, the launcher, the template, the five systems and every mini-init; not
the MCP servers, whose memory is theirs. With the five systems alone, and with the demo's servers.
"""

import os
import time
from pathlib import Path
from typing import Any

import leaks
from running import DEMO, Running, missing_servers, running

SETTLE_S = 3.0
WINDOW_S = 10.0
MIB = 2**20


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure both variants; `rounds` multiplies the idle window."""
    without = [word for name in missing_servers() for word in ("--without", name)]
    rows = []
    for variant, config, arguments in (
        ("five systems", None, []),
        ("five systems and the demo", DEMO / "vsm.toml", without),
    ):
        with running(config, *arguments) as vsm:
            vsm.vsm("tools")  # waits until every server has started
            time.sleep(SETTLE_S)
            rows += _measure(vsm, variant, WINDOW_S * rounds)
            vsm.stop()
    return rows


def _measure(vsm: Running, variant: str, window_s: float) -> list[dict[str, Any]]:
    own = _own_processes(vsm)
    pids = [pid for group in own.values() for pid in group]
    before_s = sum(map(_cpu_s, pids))
    time.sleep(window_s)
    idle = (sum(map(_cpu_s, pids)) - before_s) / window_s * 100
    sizes = {name: sum(map(_pss_bytes, group)) / MIB for name, group in own.items()}
    rows = [_row(variant, f"PSS {name}", size, "MiB") for name, size in sizes.items()]
    total = _row(variant, "PSS of all", sum(sizes.values()), "MiB")
    return [*rows, total, _row(variant, "CPU while idle", idle, "% core")]


def _own_processes(vsm: Running) -> dict[str, list[int]]:
    """The supervisor and what it started, by name, without what runs below a mini-init."""
    workers = vsm.status()["workers"]
    inits = [worker["pid"] for worker in workers if worker["kind"] == "integration"]
    servers = {pid for init in inits for pid, _ in leaks.descendants(init)}
    found = {"supervisor": [vsm.process.pid]}
    found |= {w["name"]: [w["pid"]] for w in workers if w["kind"] != "integration"}
    found["mini-inits"] = inits
    known = {pid for group in found.values() for pid in group} | servers
    below = {pid for pid, _ in leaks.descendants(vsm.process.pid)}
    found["spares"] = sorted(below - known)
    return found


def _pss_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return (
        next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
    )


def _cpu_s(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _row(variant: str, metric: str, value: float, unit: str) -> dict[str, Any]:
    return {
        "benchmark": "memory",
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": unit,
        "ratio": None,
        "ratio_to": None,
        "runs": 1,
    }
