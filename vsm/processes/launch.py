"""Starting confined workers: in this process for one command, or through the launcher.

Owns `spawn_confined` (`vsm sandbox run`, tests); the supervisor's side of the launcher process
is `LauncherLink` in `vsm.processes.launcher_link`, offered here too. Runs in the supervisor or the
command line.
"""

import atexit
import os
import select
import threading

from vsm.confinement.execution import Plan
from vsm.errors import ConfinementError
from vsm.linux import pidfd, prctl
from vsm.processes.forked_worker import ForkedWorker
from vsm.processes.launcher_link import (
    ExitReport,
    LauncherLink,
    LaunchError,
    Spawned,
    failure,
    kill_confined_orphans,
)

__all__ = [
    "ExitReport",
    "LaunchError",
    "LauncherLink",
    "Spawned",
    "spawn_confined",
    "wait_confined",
]

_START_TIMEOUT_S = 30.0
_workers: dict[int, ForkedWorker] = {}


def spawn_confined(
    plan: Plan, stdin: int, stdout: int, stderr: int, *, tty: bool = False
) -> Spawned:
    """Fork, confine and exec in this process; single-threaded callers only.

    The mini-init exits with the server's status, or 128 + n after signal n; signals sent to
    it are forwarded. It dies when the calling process does. Collect it by `wait_confined`, or
    by waitpid: then what is left (fds, a private directory) goes at the exit of this process.

    Args:
        plan: from `compile_plan`.
        stdin: fd, kept by the caller.
        stdout: fd, kept by the caller.
        stderr: fd, kept by the caller.
        tty: stay in the caller's session and process group, so that the terminal works.

    Raises:
        ConfinementError: a layer could not be applied.
        LaunchError: the program could not be exec'ed.
    """
    if threading.active_count() > 1:
        raise RuntimeError("spawn_confined forks: it needs a single-threaded process")
    if plan.reported:  # its first refused call would wait for ever
        raise RuntimeError("nobody here would answer what this plan's filter reports")
    if not plan.clone_flags:
        prctl.become_subreaper()  # where the descendants of a killed mini-init end up
    try:
        worker = ForkedWorker(plan, (stdin, stdout, stderr), tty=tty)
    except OSError as error:
        raise ConfinementError(plan.name, f"cannot fork: {error}", layer="namespaces") from error
    layers = _wait_started(worker)
    _workers[worker.pid] = worker
    return Spawned(worker.pid, os.dup(worker.pidfd), layers, worker.take_listeners())


def wait_confined(spawned: Spawned, timeout_s: float | None = None) -> ExitReport:
    """Wait for the end of a worker of `spawn_confined`, and clean up after it.

    Args:
        spawned: its pidfd is closed.
        timeout_s: None waits for ever.

    Raises:
        TimeoutError: it runs still; nothing has changed.
    """
    if not pidfd.wait(spawned.pidfd, timeout_s):
        raise TimeoutError(f"worker {spawned.pid} runs still")
    worker = _workers.pop(spawned.pid)
    os.close(spawned.pidfd)
    return _finish(worker)


def _wait_started(worker: ForkedWorker) -> list[dict[str, str]]:
    poll = select.poll()
    poll.register(worker.status_fd, select.POLLIN)
    poll.poll(_START_TIMEOUT_S * 1000)
    worker.events()
    event = next(iter(worker.heard), None)
    if event and event["event"] == "started":
        layers: list[dict[str, str]] = event["layers"]
        return layers
    worker.kill()
    pidfd.wait(worker.pidfd)
    plan = worker.plan
    _finish(worker)
    raise failure(plan.name, event)


def _finish(worker: ForkedWorker) -> ExitReport:
    """Reap the mini-init and what it left, close its fds, remove its directory."""
    worker.events()
    pidfd.reap(worker.pidfd)
    if not worker.plan.clone_flags:
        kill_confined_orphans(frozenset(other.pid for other in _workers.values()))
    worker.close()
    worker.remove_scratch()
    return ExitReport.of(worker.heard)


@atexit.register
def _clean_up() -> None:
    for worker in _workers.values():
        worker.kill()
        pidfd.wait(worker.pidfd, 5.0)
        worker.remove_scratch()
