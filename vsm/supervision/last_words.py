"""How a worker ended, in words: which limit killed it, or what the kernel said.

Runs in the supervisor and the command line. Reads the worker's control group before it is removed.
"""

import signal
from typing import TYPE_CHECKING, Final

from vsm.configuration.profile import Limits
from vsm.confinement.cgroup import Usage
from vsm.linux import signals
from vsm.processes.launch import ExitReport

if TYPE_CHECKING:
    from vsm.supervision.provision import Provision
    from vsm.supervision.running_worker import RunningWorker

OUT_OF_MEMORY: Final = "out of memory"  # the journal has a kind of its own for it
_KILLED_FOR_IT: Final = f"killed: {OUT_OF_MEMORY}"
_A_PROCESS: Final = " after a process of it was "
_KILLED: Final = 128 + signal.SIGKILL


def describe(running: "RunningWorker", report: ExitReport) -> str:
    """One line for status, log and journal."""
    provided = running.provided
    return _plain(report) if provided is None else words(report, *_counted(provided))


def is_out_of_memory(reason: str) -> bool:
    """Whether a worker that ran ended so: it, or a process of it, had no memory left.

    Its end is told last, behind whatever else was known of it by then.
    """
    end = reason.rpartition("; ")[2].removeprefix("last: ")
    before, killed, _ = end.partition(_KILLED_FOR_IT)
    return bool(killed) and (not before or before.endswith(_A_PROCESS))


def describe_start(running: "RunningWorker", error: Exception) -> str:
    """Why it did not come to run."""
    provided = running.provided
    return str(error) if provided is None else start_failure(error, *_counted(provided))


def _counted(provided: "Provision") -> tuple[Usage | None, Limits]:
    usage = provided.group.usage() if provided.group is not None else None
    return usage, provided.profile.limits


def words(report: ExitReport, usage: Usage | None, limits: Limits) -> str:
    """How it ended, from what its mini-init said and what its control group counted."""
    if report.limit == "wall_time":
        return f"killed: its wall time of {limits.wall_time_s} s was over"
    if usage is not None and usage.oom_kills and report.status != 0:
        return _out_of_memory(usage, limits.memory_bytes, report)
    return _plain(report)


def start_failure(error: Exception, usage: Usage | None, limits: Limits) -> str:
    """Why it did not come to run, with what its control group counted."""
    if usage is None or not usage.oom_kills:
        return str(error)
    return f"{error}: {OUT_OF_MEMORY}{_of_limit(usage, limits.memory_bytes)}"


def _out_of_memory(usage: Usage, limit_bytes: int | None, report: ExitReport) -> str:
    cause = f"{_KILLED_FOR_IT}{_of_limit(usage, limit_bytes)}"
    if report.signal == signal.SIGKILL or report.status == _KILLED:
        return cause
    return f"{_plain(report)}{_A_PROCESS}{cause}"


def _of_limit(usage: Usage, limit_bytes: int | None) -> str:
    if usage.memory_peak_bytes is None:
        return ""
    of = f" of {limit_bytes >> 20} MiB" if limit_bytes else ""
    return f", peak {_mebibytes(usage)}{of}"


def _mebibytes(usage: Usage) -> str:
    return f"{(usage.memory_peak_bytes or 0) >> 20} MiB"


def _plain(report: ExitReport) -> str:
    if report.signal is not None:
        return f"killed by {signals.name(report.signal)}"
    if report.cause != "server":
        return f"its {report.cause} was killed"
    return f"exited with status {report.status}"
