"""Runs one command bare or confined, for the benchmarks: the same fork, exec and wait."""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

from bubblewrap import BUBBLEWRAP, bubblewrap_job, run_bubblewrap
from compare import spread

from vsm.commands.sandbox import FIRST_RUN_UID
from vsm.configuration.profile import load_profile
from vsm.confinement.execution import Plan
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.confinement.probe import HostFacts, probe_host
from vsm.processes.launch import spawn_confined, wait_confined

# What is measured is confinement: the CPU limit would measure itself.
PROFILE = """
extends = "integration"
[limits]
cpu = "unlimited"
memory = "unlimited"
"""


class Bench:
    """One command under each variant that this host gives."""

    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.plans = dict(_plans(argv))
        self.bubblewrap = bubblewrap_job(self.plans.get("namespaced"))

    @property
    def variants(self) -> list[str]:
        """Bare first, then bubblewrap where it is installed, then the tiers."""
        return ["bare", *([BUBBLEWRAP] if self.bubblewrap else []), *self.plans]

    def run(self, variant: str, out: int) -> None:
        """Start, wait, insist on success."""
        if variant == "bare":
            code = _bare(self.argv, out)
        elif variant == BUBBLEWRAP and self.bubblewrap:
            code = run_bubblewrap(self.bubblewrap, out)
        else:
            code = wait_confined(spawn_confined(self.plans[variant], 0, out, 2)).status or 0
        if code != 0:
            raise RuntimeError(f"{variant}: {self.argv} ended with {code}")

    def output(self, variant: str) -> str:
        """Run it and return what it printed."""
        with tempfile.TemporaryFile() as file:
            self.run(variant, file.fileno())
            file.seek(0)
            return file.read().decode()


def row(
    benchmark: str, variant: str, metric: str, *, values: list[float], unit: str, bare: list[float]
) -> dict[str, Any]:
    """A result row: medians, as a ratio to the bare variant."""
    value = statistics.median(values)
    return {
        "benchmark": benchmark,
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": unit,
        "ratio": None if variant == "bare" else value / statistics.median(bare),
        "ratio_to": None if variant == "bare" else "bare",
        "spread": spread(values, bare),
        "runs": len(values),
    }


def skipped(benchmark: str, variant: str, metric: str, why: str) -> dict[str, Any]:
    """A row for what this host cannot measure."""
    empty = {"value": None, "unit": "", "ratio": None, "ratio_to": None, "runs": 0}
    return {
        "benchmark": benchmark,
        "variant": variant,
        "metric": metric,
        **empty,
        "skipped": why,
    }


def _plans(argv: list[str]) -> list[tuple[str, Plan]]:
    host = probe_host()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bench.toml")
        path.write_text(PROFILE, encoding="utf-8")
        profile = load_profile(str(path))
    tiers: tuple[Literal["namespaced", "landlocked"], ...]
    tiers = ("landlocked", "namespaced") if host.tier == "namespaced" else ("landlocked",)
    return [(tier, compile_plan(profile, _request(argv, tier, host), host)) for tier in tiers]


def _request(
    argv: list[str], tier: Literal["namespaced", "landlocked"], host: HostFacts
) -> WorkerRequest:
    uid = FIRST_RUN_UID + os.getpid() if host.root else None
    return WorkerRequest(name="bench", argv=tuple(argv), tier=tier, uid=uid)


def _bare(argv: list[str], out: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(out, 1)
            os.execv(argv[0], argv)
        finally:
            os._exit(127)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
