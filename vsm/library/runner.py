"""The runner: a small process beside a program that uses `vsm.run`; forks its confined workers.

Started once per program by `vsm.library.runner_link`, single-threaded, with an environment of
its own. What a run does, its arguments and its environment never come here (they go from the
program to the worker), so that one worker finds nothing of another in the memory it was forked
with. Ends with the program, its workers first, and removes their groups and directories.
"""

import gc
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any, NoReturn

import msgspec

from vsm import cgroup, scratch, uids
from vsm.cgroup import Cgroups, limits_of
from vsm.core.egress import Rules
from vsm.errors import ConfigurationError, ConfinementError, VsmError
from vsm.execution import Plan
from vsm.forked_worker import ForkedWorker
from vsm.launcher import receive
from vsm.library import child
from vsm.library.runner_egress import RunnerEgress
from vsm.library.values import SIGNAL
from vsm.linux import pidfd, prctl
from vsm.plan import WorkerRequest, compile_plan, egress_rules
from vsm.probe import probe_host
from vsm.profile import Profile

_MOST_AT_ONCE = uids.RUN_SLOTS - 1
_MOST_LASTING = _MOST_AT_ONCE - 6  # so that `vsm.run` finds a place beside them
_END_TIMEOUT_S = 5.0
_SPARE_LIFE_S = 10.0
_MOST_SPARES = 2
_QUIET_S = 0.02  # a short run's end is heard before the next spare is made
_MOST_WORD_BYTES = 16
_FDS = 4  # control, channel, stdout, stderr
_KINDS = {ConfigurationError: "configuration", ConfinementError: "confinement"}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as the program asks for it: how it is confined, not what it does.

    Args:
        identity: device and inode of each path, so that no spare shows what was there before.
        warm: libraries that the program uses.
        lasting: it is a worker that stays: never a spare, and the program hears when it began.
    """

    profile: Profile
    executable: str
    cwd: str | None
    read: tuple[str, ...]
    write: tuple[str, ...]
    tier: str | None
    identity: tuple[tuple[int, int], ...]
    warm: tuple[str, ...] = ()
    lasting: bool = False


class _Run:
    """One worker, used once; a spare until an order adopts it. Owns its sockets and its group."""

    def __init__(self, runner: "Runner", slot: int, order: Order) -> None:
        self.control: socket.socket | None = None
        self.doomed = self.given_up = False
        self.order = order
        self.slot = slot
        self.layers: list[dict[str, str]] = []
        self.listeners: tuple[int, ...] = ()
        self.asked: dict[str, dict[str, Any]] = {}
        self.refusal: VsmError | None = None
        self.key = runner.next_key()
        self.rules = egress_rules(order.profile) or Rules((), {}, (), 0)
        self.group = runner.make_group(f"run{slot}", order.profile)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            plan = runner.plan(self)
            stdio = (theirs.fileno(), runner.nothing, runner.nothing)
            self.worker = ForkedWorker(plan, stdio, program=child.run)
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()

    def adopt(self, fds: list[int]) -> None:
        """From now on it is this run: control socket, channel, stdout, stderr."""
        self.control = socket.socket(fileno=os.dup(fds[0]))
        with suppress(OSError):  # it died: its burial says so
            socket.send_fds(self._channel, [b"run"], fds[1:])

    def began(self) -> None:
        """Every layer is in force: tell of a lasting one."""
        if self.order.lasting:
            told = {"event": "began", "pid": self.worker.pid, "layers": self.layers}
            self.tell({**told, "tier": self.worker.plan.tier})

    def cut_off(self, error: VsmError) -> None:
        """There is no way out for it: it is not to run."""
        self.refusal = error
        self.discard()

    @property
    def is_spare(self) -> bool:
        """Whether an order may adopt it."""
        return self.control is None and not self.doomed

    def discard(self) -> None:
        """Nobody will adopt it."""
        self.doomed = True
        self.worker.kill()

    def fds(self) -> list[int]:
        """What to wait for."""
        control = [self.control.fileno()] if self.control else []
        return [*control, self.worker.status_fd, self.worker.pidfd]

    def tell(self, event: dict[str, Any]) -> None:
        if self.control is not None:
            with suppress(OSError):  # the program has given this run up
                self.control.send(json.dumps(event).encode())

    def close(self) -> None:
        """After its end, or when it never began."""
        if self.group is not None:
            self.group.remove()
        self._channel.close()


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
        self.nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._runs: dict[int, _Run] = {}
        self._waiting: deque[tuple[Order, list[int]]] = deque()
        self._by_fd: dict[int, _Run] = {}
        self._plans: dict[int, tuple[Order, Plan]] = {}
        self._spare_for: Order | None = None
        self._spare_deadline_s = self._quiet_from_s = 0.0
        self._poll = select.poll()
        self._egress = RunnerEgress(self.host, self._poll)
        self._keys = itertools.count(1)
        self._children = pidfd.children_file()
        self._wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for signo in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signo, lambda _signo, _frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for fd in (link.fileno(), program, self._wakeup):
            self._poll.register(fd, select.POLLIN)
        gc.collect()
        gc.freeze()  # what is here stays here: no fork is to touch these pages

    def serve(self) -> None:
        """Until the program or a signal says so, or the program is gone."""
        try:
            while True:
                for fd, _ in self._wait():
                    if fd == self._link.fileno():
                        if not self._receive():
                            return
                    elif fd in {self._program, self._wakeup}:
                        return
                    elif run := self._by_fd.get(fd):
                        self._hear(run, fd)
                    elif fd in self._egress.fds:
                        self._egress.hear()
        finally:
            self._end()

    def _wait(self) -> list[tuple[int, int]]:
        """Poll; make spares in quiet moments, after a long one let them go."""
        spares = self._spares()
        wanted = self._spare_for if len(spares) < _MOST_SPARES else None
        if wanted is None and not spares:
            return self._poll.poll()
        due_s = self._quiet_from_s if wanted else self._spare_deadline_s
        events = self._poll.poll(max(0.0, due_s - time.monotonic()) * 1000)
        if not events and time.monotonic() >= due_s:
            if wanted:
                self._make_spare(wanted)
            else:
                self._discard_spares()
        return events

    def next_key(self) -> str:
        """What the egress process calls a worker."""
        return f"run{next(self._keys)}"

    # -- starting ----------------------------------------------------------------------------------

    def make_group(self, name: str, profile: Profile) -> cgroup.Group | None:
        """The group of one run, where one works."""
        if self._cgroups.facts.kind == "none":
            return None
        limits = profile.limits
        return self._cgroups.create(
            name,
            limits_of(limits),
        )

    def plan(self, run: _Run) -> Plan:
        """Compiled once for the same order in the same slot: even its paths are the same files."""
        last = self._plans.get(run.slot)
        if last is None or last[0] != run.order or last[1].scratch_dir:
            plan = compile_plan(run.order.profile, self.request(run), self.host)
            last = self._plans[run.slot] = run.order, plan
        return last[1]

    def request(self, run: _Run) -> WorkerRequest:
        """How one run is to be confined."""
        order = run.order
        return WorkerRequest(
            name="run",
            argv=(order.executable,),
            cwd=order.cwd,
            read=order.read,
            write=order.write,
            uid=uids.run_uid(run.slot) if self.host.root else None,
            tier=order.tier,  # type: ignore[arg-type] # checked by the program's side
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
        try:
            run = self._take(order)
        except (VsmError, OSError) as error:
            with socket.socket(fileno=os.dup(fds[0])) as control, suppress(OSError):
                control.send(json.dumps(_refusal(error)).encode())
            return
        run.adopt(fds)
        self._watch(run.control.fileno() if run.control else -1, run)
        if order.lasting:
            return
        self._spare_for = order  # whoever runs something probably runs it again
        self._quiet_from_s = time.monotonic() + _QUIET_S
        self._spare_deadline_s = time.monotonic() + _SPARE_LIFE_S

    def _take(self, order: Order) -> _Run:
        """A spare, or a new one."""
        if order.lasting:
            if sum(run.order.lasting for run in self._runs.values()) >= _MOST_LASTING:
                what = f"{_MOST_LASTING} workers run already"
                raise VsmError("vsm.Supervisor", what, "End some, or use several programs.")
            return self._make(order)
        spares = self._spares()
        if spares and spares[0].order != order:
            spares = self._discard_spares()
        return spares[0] if spares else self._make(order)

    def _make(self, order: Order) -> _Run:
        slot = next(n for n in range(1, uids.RUN_SLOTS) if n not in self._runs)
        run = self._runs[slot] = _Run(self, slot, order)
        for fd in run.fds():
            self._watch(fd, run)
        return run

    def _make_spare(self, order: Order) -> None:
        """A worker that is confined already when its run comes."""
        if len(self._runs) >= _MOST_AT_ONCE - 1:
            self._spare_for = None
            return
        try:
            self._make(order)
        except (VsmError, OSError):
            self._spare_for = None  # the next run is made when it comes, or says why not

    def _spares(self) -> list[_Run]:
        return [run for run in self._runs.values() if run.is_spare]

    def _discard_spares(self) -> list[_Run]:
        self._spare_for = None
        for run in self._spares():
            run.discard()
        return []

    def _watch(self, fd: int, run: _Run) -> None:
        self._by_fd[fd] = run
        self._poll.register(fd, select.POLLIN)

    # -- running -----------------------------------------------------------------------------------

    def _hear(self, run: _Run, fd: int) -> None:
        if run.control is not None and fd == run.control.fileno():
            word = run.control.recv(_MOST_WORD_BYTES)  # unread, it would swallow our last word
            if word.startswith(SIGNAL):
                run.worker.signal(int(word.removeprefix(SIGNAL)))
                return
            run.given_up = True
            run.worker.kill()  # whatever it said, or its end: the program wants no more of it
            self._forget(fd)
            return
        for event in run.worker.events():
            if event["event"] == "started":
                run.layers = event["layers"]
                self._open(run)
                run.began()
        if fd == run.worker.pidfd:
            self._bury(run)
        elif run.worker.hung_up:
            self._forget(fd)

    def _open(self, run: _Run) -> None:
        """Serve its listeners, if it has a way out."""
        try:
            run.listeners = run.worker.take_listeners()
        except OSError as error:
            run.cut_off(ConfinementError("egress", str(error), layer="network"))
            return
        if run.listeners:
            self._egress.serve(run)

    def _bury(self, run: _Run) -> None:
        """Reap, clean up, then tell: when the program hears of an end, nothing is left."""
        worker = run.worker
        for fd in run.fds():
            self._forget(fd)
        del self._runs[run.slot]
        pidfd.reap(worker.pidfd)
        if not worker.plan.clone_flags:
            known = {other.worker.pid for other in self._runs.values()} | self._egress.pids
            pidfd.kill_children(self._children, lambda pid: pid not in known)
        run.asked = self._egress.forget(run)
        usage = run.group.usage() if run.group else None
        worker.close()
        worker.remove_scratch()
        run.close()
        run.tell(_report(run, usage))
        if run.control is not None:
            run.control.close()
            self._quiet_from_s = 0.0
        elif not run.doomed or run.refusal is not None:
            self._spare_for = None  # it died by itself: the next would, too
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
        self._egress.close()
        self._cgroups.close()


def _report(run: _Run, usage: cgroup.Usage | None) -> dict[str, Any]:
    heard = run.worker.heard[-1] if run.worker.heard else {}
    if run.refusal is not None:
        return _refusal(run.refusal)
    if not run.layers and not run.given_up:
        what = heard.get("what", "it was killed while it started")
        if what.startswith("cannot enter"):  # its `cwd`, or a folder on the way there
            return _refusal(ConfigurationError("run", what, "Name a path that it sees."))
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
        "egress": run.asked,
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
    child.load_ahead()
    with suppress(ProcessLookupError):
        program = pidfd.open_pidfd(parent)
        if os.getppid() == parent:
            Runner(socket.socket(fileno=link_fd), program).serve()
    sys.stderr.flush()
    os._exit(0)
