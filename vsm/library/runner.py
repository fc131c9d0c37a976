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
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import NoReturn

import msgspec

from vsm.configuration.profile import Profile
from vsm.confinement import cgroup, scratch, uids
from vsm.confinement.cgroup import Cgroups, limits_of
from vsm.confinement.execution import Plan
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.confinement.probe import probe_host
from vsm.confinement.refusals import Responder
from vsm.errors import ConfinementError, VsmError
from vsm.library import child
from vsm.library.runner_egress import RunnerEgress
from vsm.library.runner_run import Order, Run, refusal, report, withdrawn
from vsm.library.values import SIGNAL
from vsm.linux import pidfd, prctl
from vsm.processes.launcher import receive

_MOST_AT_ONCE = uids.RUN_SLOTS - 1
_MOST_LASTING = _MOST_AT_ONCE - 6  # so that `vsm.run` finds a place beside them
_END_TIMEOUT_S = 5.0
_REMOVAL_SLICE_S = 0.02  # of the loop's time at once, for what a worker filled its directory with
_SPARE_LIFE_S = 10.0
_MOST_SPARES = 2
_QUIET_S = 0.02  # a short run's end is heard before the next spare is made
_MOST_WORD_BYTES = 16
_FDS = 4  # control, channel, stdout, stderr
_SPARE_FDS = 64  # to start and end runs with, whatever waits


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
        self._runs: dict[int, Run] = {}
        self._waiting: dict[int, tuple[Order, list[int]]] = {}  # by the first of its fds
        self._leftovers: list[str] = []  # private directories that are not yet empty
        most_fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._highest_fd = max(most_fds - _SPARE_FDS, most_fds // 2)
        self._by_fd: dict[int, Run] = {}
        self._plans: dict[int, tuple[Order, Plan]] = {}
        self._spare_for: Order | None = None
        self._spare_deadline_s = self._quiet_from_s = 0.0
        self._poll = select.poll()
        self._egress = RunnerEgress(self.host, self._poll)
        self._keys = itertools.count(1)
        self._refusals = Responder(self._poll, self._count_refused)
        self._handing: dict[int, Run] = {}  # control sockets by which a filter's listener comes
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
            while self._serve_ready(self._wait()):
                pass
        finally:
            self._end()

    def _serve_ready(self, ready: list[tuple[int, int]]) -> bool:
        """Serve what is ready; False when all is to end."""
        self._refusals.answer_ready(ready)
        return all(self._serve_one(fd) for fd, _ in ready)

    def _serve_one(self, fd: int) -> bool:
        if fd == self._link.fileno():
            return self._receive()
        if fd in {self._program, self._wakeup}:
            return False
        if run := self._handing.get(fd):
            self._take_refusals(run, fd)
        elif run := self._by_fd.get(fd):
            self._hear(run, fd)
        elif fd in self._waiting:
            self._withdraw(fd)
        elif fd in self._egress.fds:
            self._egress.hear()
        return True

    def _wait(self) -> list[tuple[int, int]]:
        """Poll; make spares in quiet moments, after a long one let them go."""
        if self._leftovers:
            if not (events := self._poll_for(0.0)):
                self._remove_leftover(_REMOVAL_SLICE_S)
            return events
        spares = self._spares()
        wanted = self._spare_for if len(spares) < _MOST_SPARES else None
        if wanted is None and not spares:
            return self._poll_for(None)
        due_s = self._quiet_from_s if wanted else self._spare_deadline_s
        events = self._poll_for(due_s - time.monotonic())
        if not events and time.monotonic() >= due_s:
            if wanted:
                self._make_spare(wanted)
            else:
                self._discard_spares()
        return events

    def next_key(self) -> str:
        """What the egress process calls a worker."""
        return f"run{next(self._keys)}"

    def _poll_for(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """Poll so long, or until the answers to refused calls need something."""
        if (due_s := self._refusals.due_s) is not None:
            left_s = due_s - time.monotonic()
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        events = self._poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)
        self._refusals.tick()
        return events

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

    def plan(self, run: Run) -> Plan:
        """Compiled once for the same order in the same slot: even its paths are the same files."""
        last = self._plans.get(run.slot)
        if last is None or last[0] != run.order or last[1].scratch_dir:
            plan = compile_plan(run.order.profile, self.request(run), self.host)
            last = self._plans[run.slot] = run.order, plan
        return last[1]

    def request(self, run: Run) -> WorkerRequest:
        """How one run is to be confined."""
        order = run.order
        return WorkerRequest(
            name="run",
            argv=(order.executable,),
            cwd=order.cwd,
            path=order.path,
            read=order.read,
            kept=order.kept,
            write=order.write,
            uid=uids.run_uid(run.slot) if self.host.root else None,
            tier=order.tier,  # type: ignore[arg-type] # checked by the program's side
            cgroups=run.group.paths if run.group else (),
            cgroup_layers=run.group.layers if run.group else (),
            report=True,
        )

    def _receive(self) -> bool:
        data, fds = receive(self._link)
        if not data or len(fds) != _FDS:
            for fd in fds:
                os.close(fd)
            return bool(data)
        if max(fds) > self._highest_fd:  # the lowest that is free is taken: few are left
            what = f"{len(self._waiting)} runs wait already"
            _refuse(fds[0], VsmError("vsm.run", what, "Give fewer at a time, or `ulimit -n` more."))
            for fd in fds:
                os.close(fd)
            return True
        self._waits(msgspec.json.decode(data, type=Order), fds)
        self._start_waiting()
        return True

    def _waits(self, order: Order, fds: list[int]) -> None:
        self._waiting[fds[0]] = order, fds
        self._poll.register(fds[0], select.POLLIN)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._runs) < _MOST_AT_ONCE:
            order, fds = self._no_longer_waits(next(iter(self._waiting)))
            try:
                self._start(order, fds)
            finally:
                for fd in fds:
                    os.close(fd)
        if self._waiting:
            self._discard_spares()  # they have places

    def _withdraw(self, control_fd: int) -> None:
        """The program gave one up, or is gone, before there was a place: nothing is forked."""
        with socket.socket(fileno=os.dup(control_fd)) as control:
            word = _hear_word(control)
            if word is None:
                return
            signo = int(word.removeprefix(SIGNAL)) if word.startswith(SIGNAL) else signal.SIGKILL
            with suppress(OSError):
                control.send(json.dumps(withdrawn(signo)).encode())
        for fd in self._no_longer_waits(control_fd)[1]:
            os.close(fd)

    def _no_longer_waits(self, control_fd: int) -> tuple[Order, list[int]]:
        self._poll.unregister(control_fd)
        return self._waiting.pop(control_fd)

    def _start(self, order: Order, fds: list[int]) -> None:
        for name in order.warm:
            _warm(name)
        try:
            run = self._take(order)
        except (VsmError, OSError) as error:
            _refuse(fds[0], error)
            return
        run.adopt(fds)
        self._watch(run.control.fileno() if run.control else -1, run)
        if order.lasting or order.profile.limits.wall_time_s:  # whose time runs from the start
            return
        self._spare_for = order  # whoever runs something probably runs it again
        self._quiet_from_s = time.monotonic() + _QUIET_S
        self._spare_deadline_s = time.monotonic() + _SPARE_LIFE_S

    def _take(self, order: Order) -> Run:
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

    def _make(self, order: Order, *, ahead: bool = False) -> Run:
        slot = next(n for n in range(1, uids.RUN_SLOTS) if n not in self._runs)
        run = self._runs[slot] = Run(self, slot, order, ahead=ahead)
        for fd in run.fds():
            self._watch(fd, run)
        if run.worker.plan.reported:
            self._handing[run.worker.control_fd] = run
            self._poll.register(run.worker.control_fd, select.POLLIN)
        return run

    def _make_spare(self, order: Order) -> None:
        """A worker that is confined already when its run comes."""
        if len(self._runs) >= _MOST_AT_ONCE - 1:
            self._spare_for = None
            return
        try:
            self._make(order, ahead=True)
        except (VsmError, OSError):
            self._spare_for = None  # the next run is made when it comes, or says why not

    def _spares(self) -> list[Run]:
        return [run for run in self._runs.values() if run.is_spare]

    def _discard_spares(self) -> list[Run]:
        self._spare_for = None
        for run in self._spares():
            run.discard()
        return []

    def _watch(self, fd: int, run: Run) -> None:
        self._by_fd[fd] = run
        self._poll.register(fd, select.POLLIN)

    # -- running -----------------------------------------------------------------------------------

    def _hear(self, run: Run, fd: int) -> None:
        if run.control is not None and fd == run.control.fileno():
            self._hear_program(run, run.control)
            return
        for event in run.worker.events():
            if event["event"] == "started":
                run.layers = event["layers"]
                self._open(run)
                run.began()
        if fd == run.worker.pidfd:
            if pidfd.wait(fd, 0):  # else the event was for a predecessor of this descriptor
                self._bury(run)
        elif run.worker.hung_up:
            self._forget(fd)

    def _hear_program(self, run: Run, control: socket.socket) -> None:
        word = _hear_word(control)
        if word is None:
            return
        if word.startswith(SIGNAL):
            run.worker.signal(int(word.removeprefix(SIGNAL)))
            return
        run.given_up = True
        run.worker.kill()  # whatever it said, or its end: the program wants no more of it
        self._forget(control.fileno())

    def _take_refusals(self, run: Run, fd: int) -> None:
        """At once, not with "started": a refused call of the mini-init's own waits for it."""
        try:
            listener = run.worker.take_refusals()
        except BlockingIOError:  # the event was for a predecessor of this descriptor
            return
        except OSError:  # it ended, or said something else: then there is no run
            self._forget_handing(fd)
            run.worker.kill()
            return
        if listener >= 0:
            self._forget_handing(fd)
            self._refusals.watch(run.key, listener)

    def _forget_handing(self, fd: int) -> None:
        if self._handing.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _count_refused(self, key: str, calls: dict[int, int]) -> None:
        for run in self._runs.values():
            if run.key == key:
                run.refused.update(calls)

    def _open(self, run: Run) -> None:
        """Serve its listeners, if it has a way out."""
        try:
            run.listeners = run.worker.take_listeners()
        except OSError as error:
            run.cut_off(ConfinementError("egress", str(error), layer="network"))
            return
        if run.listeners:
            self._egress.serve(run)

    def _bury(self, run: Run) -> None:
        """Reap, clean up, then tell: when the program hears of an end, nothing is left."""
        worker = run.worker
        for fd in run.fds():
            self._forget(fd)
        self._forget_handing(worker.control_fd)
        self._refusals.forget(run.key)
        del self._runs[run.slot]
        pidfd.reap(worker.pidfd)
        if not worker.plan.clone_flags:
            known = {other.worker.pid for other in self._runs.values()} | self._egress.pids
            pidfd.kill_children(self._children, lambda pid: pid not in known)
        run.asked = self._egress.forget(run)
        usage = run.group.usage() if run.group else None
        worker.close()
        if not worker.remove_scratch(budget_s=_REMOVAL_SLICE_S):
            self._leftovers.append(worker.plan.scratch_dir)
        order = run.take_order()
        run.close()
        if order:
            self._waits(run.order, order)
        else:
            run.tell(report(run, usage))
        if run.control is not None:
            run.control.close()
            self._quiet_from_s = 0.0
        elif not run.doomed or run.refusal is not None:
            self._spare_for = None  # it died by itself: the next would, too
        self._start_waiting()

    def _remove_leftover(self, budget_s: float) -> None:
        """In slices: a worker may have filled its directory with millions of files."""
        if scratch.remove(self._leftovers[0], budget_s=budget_s):
            del self._leftovers[0]

    def _forget(self, fd: int) -> None:
        if self._by_fd.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _end(self) -> None:
        self._waiting.clear()
        for run in self._runs.values():
            run.drop_order()
            run.worker.kill()
        for run in list(self._runs.values()):
            if pidfd.wait(run.worker.pidfd, _END_TIMEOUT_S):
                self._bury(run)
        self._egress.close()
        self._cgroups.close()
        while self._leftovers:
            self._remove_leftover(_END_TIMEOUT_S)


def _hear_word(control: socket.socket) -> bytes | None:
    """What the program says, b"" at its end; unread, it would swallow our last word."""
    try:
        return control.recv(_MOST_WORD_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:  # the event was for a predecessor of this descriptor
        return None
    except OSError:  # it hung up, and left a word of ours unread
        return b""


def _refuse(control_fd: int, error: VsmError | OSError) -> None:
    with socket.socket(fileno=os.dup(control_fd)) as control, suppress(OSError):
        control.send(json.dumps(refusal(error)).encode())


def _warm(name: str) -> None:
    """Import a library that the program uses: every worker then has it without an import."""
    if name == "numpy" and name not in sys.modules:
        with suppress(ImportError):
            import numpy  # noqa: ICN001, F401
        gc.freeze()


def main(link_fd: int, parent: int) -> NoReturn:
    """Run the runner on an inherited link; whatever else was inherited is the program's."""
    os.closerange(link_fd + 1, 1 << 30)
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
