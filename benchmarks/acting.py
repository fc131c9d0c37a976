"""What it costs the gateway that all five systems act: throughput and latency against a quiet vsm.

Two real vsm run side by side with the same confined server. The quiet one has neither budget nor
rates nor rules; in the other S1 checks a rate and a rule for each call, S3 measures and divides a
budget five times a second and audits once a second (a sibling inside the worker, its lists asked
for), S2 watches, S4 forecasts every second. `scripts/bench acting`.

The machine is noisier than what is asked about, so turns are short (tens of milliseconds) and come
in pairs, one of each vsm right after the other, in an order drawn by lot; noise that is longer than
a pair is in both. Each pair gives a ratio; printed is the median of the ratios with its bootstrap
interval, and whether all of it is within BOUND. The second measure is the gateway's own CPU time
for a call, which waiting for a processor is no part of. A third vsm, quiet like the first, is
measured in the same way against it: its ratio is 1 but for chance, so its interval is what this
machine can tell apart.
"""

import contextlib
import random
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
name = "no-refusals"
action = "deny"
tool = "refuse*"
"""
PROFILE = 'extends = "python-server"\n[limits]\ncpu = "unlimited"\n'
CALLS, BURST, IN_FLIGHT = 60, 400, 32
PAIRS = 20  # in a round
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
    """Pairs of turns against the quiet vsm, and their ratios with intervals."""
    dice = random.Random(rounds)
    with contextlib.ExitStack() as stack:
        quiet = stack.enter_context(client(acting=False))
        others = {
            "acting": stack.enter_context(client(acting=True)),
            "quiet again": stack.enter_context(client(acting=False)),
        }
        for it in (quiet, *others.values()):
            it.measure()
        pairs: dict[str, list[tuple[Turn, Turn]]] = {name: [] for name in others}
        for _ in range(rounds * PAIRS):
            for name, other in dice.sample(list(others.items()), len(others)):
                pairs[name].append(_pair(quiet, other, first=dice.random() < 0.5))
    return [row for name, found in pairs.items() for row in _rows(name, found, dice)]


def _pair(quiet: Turns, other: Turns, *, first: bool) -> tuple[Turn, Turn]:
    """A turn of each, right after one another."""
    if first:
        before = quiet.measure()
        return before, other.measure()
    after = other.measure()
    return quiet.measure(), after


def interval(ratios: list[float], dice: random.Random) -> tuple[float, float]:
    """The 95 % interval of the median, by resampling the pairs."""
    medians = sorted(
        statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)
    )
    return medians[RESAMPLES // 40], medians[-RESAMPLES // 40]


def _rows(
    name: str, pairs: list[tuple[Turn, Turn]], dice: random.Random
) -> Iterator[dict[str, Any]]:
    for metric, unit in METRICS:
        base, values = [one[metric] for one, _ in pairs], [one[metric] for _, one in pairs]
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        low, high = interval(ratios, dice)
        if name == "acting":
            yield _row("quiet", metric, unit, base)
        row = _row(name, metric, unit, values)
        row |= {"ratio": statistics.median(ratios), "ratio_to": "quiet"}
        note = f"95 % interval {low:.3f} to {high:.3f}{_verdict(name, metric, low, high)}"
        yield row | {"spread": spread(values, base), "interval": [low, high], "note": note}


def _verdict(name: str, metric: str, low: float, high: float) -> str:
    """What the whole interval says of the bound; of the control it says nothing."""
    if name != "acting":
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
