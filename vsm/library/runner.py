"""The runner: a small process beside a program that uses `vsm.run`; forks its confined workers.

Started once per program by `vsm.library.runner_link`, single-threaded, with an environment of
its own. What a run does, its arguments and its environment never come here (they go from the
program to the worker), so that one worker finds nothing of another in the memory it was forked
with. Ends with the program, its workers first, and removes their groups and directories.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from typing import Any, NoReturn

import msgspec

from vsm import cgroup, scratch, uids
from vsm.cgroup import CgroupLimits, Cgroups
from vsm.errors import ConfigurationError, ConfinementError, VsmError
from vsm.forked_worker import ForkedWorker
from vsm.launcher import receive
from vsm.library import child
from vsm.linux import pidfd, prctl
from vsm.plan import WorkerRequest, compile_plan
from vsm.probe import probe_host
from vsm.profile import Profile

_MOST_AT_ONCE = uids.RUN_SLOTS - 1
_END_TIMEOUT_S = 5.0
_FDS = 4  # control, channel, stdout, stderr
_KINDS = {ConfigurationError: "configuration", ConfinementError: "confinement"}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as the program asks for it: how it is confined, not what it does."""

    profile: Profile
    executable: str
    cwd: str | None
    read: tuple[str, ...]
    write: tuple[str, ...]
    tier: str | None
    warm: tuple[str, ...] = ()


class _Run:
    """One worker and what belongs to it; owns the control socket and the group."""

    def __init__(self, runner: "Runner", slot: int, order: Order, fds: list[int]) -> None:
        self.control = socket.socket(fileno=os.dup(fds[0]))
        self.slot = slot
        self.layers: list[dict[str, str]] = []
        self.group = runner.make_group(f"run{slot}", order.profile)
        try:
            plan = compile_plan(order.profile, runner.request(self, order), runner.host)
            stdio = (fds[1], fds[2], fds[3])
            self.worker = ForkedWorker(plan, stdio, program=child.run)
        except BaseException:
            self.remove_group()
            self.control.close()
            raise

    def remove_group(self) -> None:
        if self.group is not None:
            self.group.remove()

    def tell(self, event: dict[str, Any]) -> None:
        with suppress(OSError):  # the program has given this run up
            self.control.send(json.dumps(event).encode())


class Runner:
    """The process's state.

    Args:
        link: orders come here, each with the fds of its run.
        program: a pidfd of the program, whose end is the runner's.
    """

    def __init__(self, link: socket.socket, program: int) -> None:
        groups = cgroup.detect()
        self.host = probe_host(groups=groups)
        self._cgroups = Cgroups(groups)
        self._cgroups.sweep()
        scratch.sweep(uids.may_be_workers)
        self._link, self._program = link, program
        self._runs: dict[int, _Run] = {}
        self._waiting: deque[tuple[Order, list[int]]] = deque()
        self._by_fd: dict[int, _Run] = {}
        self._poll = select.poll()
        self._children = pidfd.children_file()
        for fd in (link.fileno(), program):
            self._poll.register(fd, select.POLLIN)
        gc.collect()
        gc.freeze()  # what is here stays here: no fork is to touch these pages

    def serve(self) -> None:
        """Until the program says so, or is gone."""
        try:
            while True:
                for fd, _ in self._poll.poll():
                    if fd == self._link.fileno():
                        if not self._receive():
                            return
                    elif fd == self._program:
                        return
                    elif run := self._by_fd.get(fd):
                        self._hear(run, fd)
        finally:
            self._end()

    # -- starting ----------------------------------------------------------------------------------

    def make_group(self, name: str, profile: Profile) -> cgroup.Group | None:
        """The group of one run, where one works."""
        if self._cgroups.facts.kind == "none":
            return None
        limits = profile.limits
        return self._cgroups.create(
            name,
            CgroupLimits(
                memory_bytes=limits.memory_bytes,
                swap_bytes=limits.swap_bytes,
                processes=limits.processes,
                cpu_cores=limits.cpu_cores,
            ),
        )

    def request(self, run: _Run, order: Order) -> WorkerRequest:
        """How one run is to be confined."""
        return WorkerRequest(
            name="run",
            argv=(order.executable,),
            cwd=order.cwd,
            read=order.read,
            write=order.write,
            uid=uids.run_uid(run.slot) if self.host.root else None,
            tier=order.tier,  # type: ignore[arg-type] # checked by compile_plan
            cgroups=run.group.paths if run.group else (),
            cgroup_layers=run.group.layers if run.group else (),
        )

    def _receive(self) -> bool:
        data, fds = receive(self._link)
        if not data or len(fds) != _FDS:
            for fd in fds:
                os.close(fd)
            return bool(data)
        self._waiting.append((msgspec.json.decode(data, type=Order), fds))
        self._start_waiting()
        return True

    def _start_waiting(self) -> None:
        while self._waiting and len(self._runs) < _MOST_AT_ONCE:
            order, fds = self._waiting.popleft()
            try:
                self._start(order, fds)
            finally:
                for fd in fds:
                    os.close(fd)

    def _start(self, order: Order, fds: list[int]) -> None:
        for name in order.warm:
            _warm(name)
        slot = next(n for n in range(1, uids.RUN_SLOTS) if n not in self._runs)
        try:
            run = _Run(self, slot, order, fds)
        except (VsmError, OSError) as error:
            with socket.socket(fileno=os.dup(fds[0])) as control, suppress(OSError):
                control.send(json.dumps(_refusal(error)).encode())
            return
        self._runs[slot] = run
        for fd in (run.control.fileno(), run.worker.status_fd, run.worker.pidfd):
            self._by_fd[fd] = run
            self._poll.register(fd, select.POLLIN)

    # -- running -----------------------------------------------------------------------------------

    def _hear(self, run: _Run, fd: int) -> None:
        if fd == run.control.fileno():
            run.worker.kill()  # whatever it said, or its end: the program wants no more of it
            self._forget(fd)
            return
        for event in run.worker.events():
            if event["event"] == "started":
                run.layers = event["layers"]
        if fd == run.worker.pidfd:
            self._bury(run)
        elif run.worker.hung_up:
            self._forget(fd)

    def _bury(self, run: _Run) -> None:
        """Reap, clean up, then tell: when the program hears of an end, nothing is left."""
        worker = run.worker
        for fd in (run.control.fileno(), worker.status_fd, worker.pidfd):
            self._forget(fd)
        del self._runs[run.slot]
        pidfd.reap(worker.pidfd)
        if not worker.plan.clone_flags:
            known = {other.worker.pid for other in self._runs.values()}
            pidfd.kill_children(self._children, lambda pid: pid not in known)
        usage = run.group.usage() if run.group else None
        worker.close()
        worker.remove_scratch()
        run.remove_group()
        run.tell(_report(run, usage))
        run.control.close()
        self._start_waiting()

    def _forget(self, fd: int) -> None:
        if self._by_fd.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _end(self) -> None:
        self._waiting.clear()
        for run in self._runs.values():
            run.worker.kill()
        for run in list(self._runs.values()):
            if pidfd.wait(run.worker.pidfd, _END_TIMEOUT_S):
                self._bury(run)
        self._cgroups.close()


def _report(run: _Run, usage: cgroup.Usage | None) -> dict[str, Any]:
    heard = run.worker.heard[-1] if run.worker.heard else {}
    if not run.layers:
        what = heard.get("what", "it was killed while it started")
        return {"event": "refused", "kind": "confinement", "where": "run", "what": what,
                "remedy": "See `vsm sandbox probe`.", "layer": heard.get("layer", "")}  # fmt: skip
    ended = heard if heard.get("event") == "exited" else {}
    return {
        "event": "ended",
        "status": ended.get("status"),
        "signal": ended.get("signal", signal.SIGKILL),
        "cpu_s": ended.get("cpu_s", 0.0) if usage is None or usage.cpu_s is None else usage.cpu_s,
        "peak_bytes": (usage and usage.memory_peak_bytes) or ended.get("peak_bytes", 0),
        "oom_kills": (usage and usage.oom_kills) or 0,
        "tier": run.worker.plan.tier,
        "layers": run.layers,
    }


def _refusal(error: VsmError | OSError) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {"event": "refused", "kind": "", "where": "run", "what": str(error), "remedy": "",
                "layer": ""}  # fmt: skip
    return {
        "event": "refused",
        "kind": _KINDS.get(type(error), ""),
        "where": error.where,
        "what": error.what,
        "remedy": error.remedy,
        "layer": getattr(error, "layer", ""),
    }


def _warm(name: str) -> None:
    """Import a library that the program uses: every worker then has it without an import."""
    if name == "numpy" and name not in sys.modules:
        with suppress(ImportError):
            import numpy  # noqa: ICN001, F401
        gc.freeze()


def main(link_fd: int, parent: int) -> NoReturn:
    """Run the runner on an inherited link."""
    prctl.set_name("vsm-runner")
    prctl.become_subreaper()
    prctl.forbid_dumps()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(link_fd, False)  # noqa: FBT003 - the function takes no keyword
    with suppress(ImportError):
        import dill  # noqa: F401
    with suppress(ProcessLookupError):
        program = pidfd.open_pidfd(parent)
        if os.getppid() == parent:
            Runner(socket.socket(fileno=link_fd), program).serve()
    sys.stderr.flush()
    os._exit(0)
