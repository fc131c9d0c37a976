"""What it costs the gateway that all five systems act: throughput and latency against a quiet vsm.

Real vsm run side by side with the same confined server. The quiet one has neither budget nor
rates nor rules. In the "acting" one S1 checks a rate and a rule for each call, and S2 to S5 act as
often as they do unless somebody says otherwise: S3 measures and divides a budget every ten seconds
and audits about once an hour, S4 forecasts every minute. In the "hurried" one S3 measures and
divides five times a second and audits once a second (a sibling inside the worker, its lists asked
for), S4 forecasts every second: 50, 3600 and 60 times as often. `scripts/bench acting`.

The machine is noisier than what is asked about, so turns are short (tens of milliseconds) and come
in rounds, one of each vsm right after the other, in an order drawn by lot and each after some calls
that count for nothing: so none comes to its turn warmer than another. Noise that is longer than a
round is in all. Each round gives a ratio to the quiet one; printed is the median of the ratios with
its bootstrap interval, and whether all of it is within BOUND. The second measure is the gateway's
own CPU time for a call, which waiting for a processor is no part of. A last vsm, quiet like the
first, is measured in the same way: its ratio is 1 but for chance, so its interval is what this
machine can tell apart.
"""

import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

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
CONTROL = """
[control]
memory = "2G"
cpu = 64
processes = 500
"""
HURRIED = """interval_s = 0.2
audit_interval_s = 1.0
[intelligence]
step_s = 1.0
"""
GATE = """
[[coordination.rates]]
per_second = 1000000
burst = 1000000
[[policy.rules]]
name = "no-refusals"
action = "deny"
tool = "refuse*"
"""
QUIET: Final = "quiet"
VARIANTS = {
    QUIET: "",
    "acting": CONTROL + GATE,
    "hurried": CONTROL + HURRIED + GATE,
    "quiet again": "",
}
PROFILE = 'extends = "python-server"\n[limits]\ncpu = "unlimited"\n'
WARM, CALLS, BURST, IN_FLIGHT = 100, 60, 400, 32
TURNS = 20  # of each vsm, for one round that is asked for
BOUND = 0.05
RESAMPLES = 2000
METRICS = (("p50", "us"), ("calls/s", "1/s"), ("CPU/call", "us"))
Turn = dict[str, float]


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
        self._many(WARM)
        for _ in range(CALLS):
            began = time.perf_counter()
            it.request("tools/call", {"name": "it__echo"})
            times.append(time.perf_counter() - began)
        began, cpu_s = time.perf_counter(), self.cpu_s()
        self._many(BURST)
        took, used = time.perf_counter() - began, self.cpu_s() - cpu_s
        p50 = statistics.median(times)
        return {"p50": p50 * 1e6, "calls/s": BURST / took, "CPU/call": used / BURST * 1e6}

    def _many(self, calls: int) -> None:
        waiting: deque[int] = deque()
        for _ in range(calls):
            waiting.append(self._client.ask("tools/call", {"name": "it__echo"}))
            if len(waiting) >= IN_FLIGHT:
                self._client.answer(waiting.popleft())
        for number in waiting:
            self._client.answer(number)


@contextlib.contextmanager
def client(systems: str) -> Iterator[Turns]:
    """A vsm of its own, with this text of what its systems do, and its client."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "fast.toml").write_text(PROFILE, encoding="utf-8")
        text = INTEGRATION.format(server=SERVER, folder=SERVER.parent)
        config = folder / "vsm.toml"
        config.write_text(systems + text, encoding="utf-8")
        with running(config) as vsm:
            with contextlib.closing(Client(vsm.folder / "run/mcp.sock")) as it:
                answer = it.request("tools/call", {"name": "it__echo"})
                if "result" not in answer:
                    raise RuntimeError(f"{answer}\n{vsm.log()}")
                rows = {row["name"]: row["pid"] for row in vsm.status()["workers"]}
                yield Turns(it, rows["system1"])
            vsm.stop()


def run(rounds: int) -> list[dict[str, Any]]:
    """Turns of every vsm, and their ratios to the quiet one's with intervals."""
    dice = random.Random(rounds)
    with contextlib.ExitStack() as stack:
        every = {name: stack.enter_context(client(text)) for name, text in VARIANTS.items()}
        turns: list[dict[str, Turn]] = []
        for _ in range(rounds * TURNS):
            order = dice.sample(list(every), len(every))
            turns.append({name: every[name].measure() for name in order})
    return [row for name in VARIANTS for row in _rows(name, turns, dice)]


def interval(ratios: list[float], dice: random.Random) -> tuple[float, float]:
    """The 95 % interval of the median, by resampling the pairs."""
    medians = sorted(
        statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)
    )
    return medians[RESAMPLES // 40], medians[-RESAMPLES // 40]


def _rows(name: str, turns: list[dict[str, Turn]], dice: random.Random) -> Iterator[dict[str, Any]]:
    for metric, unit in METRICS:
        base = [turn[QUIET][metric] for turn in turns]
        values = [turn[name][metric] for turn in turns]
        row = _row(name, metric, unit, values)
        if name != QUIET:
            ratios = [value / other for value, other in zip(values, base, strict=True)]
            low, high = interval(ratios, dice)
            row |= {"ratio": statistics.median(ratios), "ratio_to": QUIET}
            note = f"95 % interval {low:.3f} to {high:.3f}{_verdict(name, metric, low, high)}"
            row |= {"spread": spread(values, base), "interval": [low, high], "note": note}
        yield row


def _verdict(name: str, metric: str, low: float, high: float) -> str:
    """What the whole interval says of the bound; of the control it says nothing."""
    if not VARIANTS[name]:
        return ""
    worst, best = (1 / low, 1 / high) if metric == "calls/s" else (high, low)
    if worst <= 1 + BOUND:
        return f": within {BOUND:.0%}"
    return f": beyond {BOUND:.0%}" if best > 1 + BOUND else f": {BOUND:.0%} is not decided"


def _row(name: str, metric: str, unit: str, values: list[float]) -> dict[str, Any]:
    return {
        "benchmark": "acting",
        "variant": name,
        "metric": metric,
        "value": statistics.median(values),
        "unit": unit,
        "ratio": None,
        "ratio_to": None,
        "runs": len(values),
    }


if __name__ == "__main__":
    sys.exit("run it by scripts/bench acting")
