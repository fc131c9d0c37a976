"""What it costs the gateway that all five systems act: throughput and latency against a quiet vsm.

Two real vsm run side by side with the same confined server. The quiet one has neither budget nor
rates nor rules; in the other S1 checks a rate and a rule for each call, S3 measures and divides a
budget five times a second, S2 watches, S4 forecasts every second, S5 has rules and a budget of
calls to count. Their turns alternate within each round. `scripts/bench acting`.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare import spread
from neighbours import Client
from running import running

SERVER = Path(__file__).resolve().parents[1] / "tests/servers/echo_legacy.py"
INTEGRATION = """
[integrations.it]
command = ["/usr/bin/python3", "-SI", "{server}"]
profile = "fast.toml"
read = ["{folder}"]
"""
ACTING = """
[control]
memory = "2G"
cpu = 64
processes = 500
interval_s = 0.2
audit_interval_s = 1.0
[intelligence]
step_s = 1.0
[[coordination.rates]]
per_second = 1000000
burst = 1000000
[[policy.rules]]
name = "everything"
action = "allow"
"""
PROFILE = 'extends = "python-server"\n[limits]\ncpu = "unlimited"\n'
CALLS, BURST, IN_FLIGHT = 400, 3000, 32


class Turns:
    """A client of a vsm, and the processor time of the vsm's gateway."""

    def __init__(self, client: Client, gateway: int) -> None:
        self._client = client
        self._schedstat = Path(f"/proc/{gateway}/schedstat")

    def cpu_s(self) -> float:
        """What the gateway has used; it has one thread."""
        return int(self._schedstat.read_text(encoding="ascii").split()[0]) / 1e9

    def measure(self) -> dict[str, float]:
        """One turn: calls one after another, then many in flight."""
        it, times = self._client, []
        for _ in range(CALLS):
            began = time.perf_counter()
            it.request("tools/call", {"name": "it__echo"})
            times.append(time.perf_counter() - began)
        began, cpu_s, waiting = time.perf_counter(), self.cpu_s(), []
        for _ in range(BURST):
            waiting.append(it.ask("tools/call", {"name": "it__echo"}))
            if len(waiting) >= IN_FLIGHT:
                it.answer(waiting.pop(0))
        for number in waiting:
            it.answer(number)
        took, used = time.perf_counter() - began, self.cpu_s() - cpu_s
        p50 = statistics.median(times)
        return {"p50": p50 * 1e6, "calls/s": BURST / took, "CPU/call": used / BURST * 1e6}


@contextlib.contextmanager
def client(*, acting: bool) -> Iterator[Turns]:
    """A vsm of its own, and its client."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "fast.toml").write_text(PROFILE, encoding="utf-8")
        text = INTEGRATION.format(server=SERVER, folder=SERVER.parent)
        config = folder / "vsm.toml"
        config.write_text((ACTING if acting else "") + text, encoding="utf-8")
        with running(config) as vsm:
            with contextlib.closing(Client(vsm.folder / "run/mcp.sock")) as it:
                answer = it.request("tools/call", {"name": "it__echo"})
                if "result" not in answer:
                    raise RuntimeError(f"{answer}\n{vsm.log()}")
                rows = {row["name"]: row["pid"] for row in vsm.status()["workers"]}
                yield Turns(it, rows["system1"])
            vsm.stop()


def run(rounds: int) -> list[dict[str, Any]]:
    """Alternate both, and report medians."""
    found: dict[str, list[dict[str, float]]] = {"quiet": [], "acting": []}
    with client(acting=False) as quiet, client(acting=True) as acting:
        for it in (quiet, acting):
            it.measure()
        for number in range(rounds):
            turns = [("quiet", quiet), ("acting", acting)]
            for name, it in turns if number % 2 else turns[::-1]:
                found[name].append(it.measure())
    return [
        _row(name, metric, unit, found)
        for metric, unit in (("p50", "us"), ("calls/s", "1/s"), ("CPU/call", "us"))
        for name in found
    ]


def _row(
    name: str, metric: str, unit: str, found: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    values = [turn[metric] for turn in found[name]]
    base = [turn[metric] for turn in found["quiet"]]
    related = name != "quiet"
    return {
        "benchmark": "acting",
        "variant": name,
        "metric": metric,
        "value": statistics.median(values),
        "unit": unit,
        "ratio": statistics.median(values) / statistics.median(base) if related else None,
        "ratio_to": "quiet" if related else None,
        "spread": spread(values, base) if related else None,
        "runs": len(values),
    }


if __name__ == "__main__":
    sys.exit("run it by scripts/bench acting")
