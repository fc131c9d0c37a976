"""What counting refused system calls costs: nanoseconds a call that is refused, or allowed.

Beside it what a start costs with and without, until the server is exec'ed. All through the
launcher, as under `vsm up`; the variants are interleaved.
"""

import asyncio
import json
import os
import time
from typing import Any

from confined import row

from vsm.commands.sandbox import FIRST_RUN_UID
from vsm.configuration.profile import load_profile
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.confinement.probe import probe_host
from vsm.core.syscalls import numbers
from vsm.processes.launch import ExitReport, LauncherLink

PYTHON = os.path.realpath("/usr/bin/python3")
PROBE = """
import ctypes, json, statistics, sys, time
call = ctypes.CDLL(None).syscall
def median(number, *arguments):
    costs = []
    for _ in range(300):
        began = time.perf_counter_ns()
        call(number, *arguments)
        costs.append(time.perf_counter_ns() - began)
    return statistics.median(costs)
bpf, getppid = map(int, sys.argv[1:])
print(json.dumps({"refused call": median(bpf, -1, 0, 0), "allowed call": median(getppid)}))
"""


class _Starts:
    """A launcher, and the ends of what it started."""

    def __init__(self) -> None:
        self._host = probe_host()
        self._profile = load_profile("integration")
        self._ends: dict[str, asyncio.Future[ExitReport]] = {}
        self.link = LauncherLink(lambda name, report: self._ends[name].set_result(report))

    async def measure(self, *, report: bool) -> dict[str, float]:
        """One start, to its end; the costs inside and until the exec."""
        name = f"w{len(self._ends)}"
        self._ends[name] = asyncio.get_running_loop().create_future()
        table = numbers(os.uname().machine)
        words = map(str, (table["bpf"], table["getppid"]))
        request = WorkerRequest(
            name=name,
            argv=(PYTHON, "-SIc", PROBE, *words),
            uid=FIRST_RUN_UID + os.getpid() if self._host.root else None,
            report=report,
        )
        plan = compile_plan(self._profile, request, self._host)
        null, (read, write) = os.open("/dev/null", os.O_RDONLY), os.pipe2(os.O_CLOEXEC)
        began = time.perf_counter_ns()
        spawned = await self.link.spawn(name, plan, null, write, 2)
        started_ns = time.perf_counter_ns() - began
        for fd in (null, write, spawned.pidfd):
            os.close(fd)
        await self._ends[name]
        with os.fdopen(read, "rb") as output:
            return {**json.loads(output.read()), "start": float(started_ns)}


def run(rounds: int) -> list[dict[str, Any]]:
    """Medians of the three, with and without."""
    found: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}

    async def measure() -> None:
        starts = _Starts()
        await starts.link.start()
        for _ in range(4 * rounds):
            for report, costs in found.items():
                for metric, value in (await starts.measure(report=report)).items():
                    costs.setdefault(metric, []).append(value)
        await starts.link.close()

    asyncio.run(measure())
    named = {"bare": found[False], "counted": found[True]}
    return [
        row("refused", variant, metric, values=values, unit="ns", bare=found[False][metric])
        for variant, costs in named.items()
        for metric, values in costs.items()
    ]
