"""The first process of every worker: confines itself, starts the server, reaps, and kills.

Runs in the child of the launcher (or of `vsm sandbox run`), forked, never exec'ed. As pid 1 of
a pid namespace the kernel kills the rest when it ends; without one it is a subreaper and does
that itself. It runs under the same Landlock domain and seccomp filter as the server, not
dumpable, and holds two fds: the control socket (its end means: kill everything) and the status
pipe (one JSON line each for "started", "failed", "exited"). Standard library only.
"""

import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn

from vsm.confinement.execution import OperationError, Plan, execute, execute_steps
from vsm.confinement.operations import DropPrivileges, Restrict, ShieldMiniInit, Site
from vsm.confinement.root_operations import id_map_keys
from vsm.confinement.spawner import run_in_thread
from vsm.linux import capabilities, namespaces, pidfd, prctl, signals

CONTROL_FD = 3
STATUS_FD = 4
SCARCE = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETXTBSY}  # for now
EXIT_FAILED = 125  # the server was never started
EXIT_KILLED = 137  # the control socket closed
_MOST_PLAN_BYTES = 131072
_MOST_FDS = 16
_MOST_ORDERS = 512
_MOST_WAIT_S = 86400.0  # poll(2) counts milliseconds in an int
_FIRST_FREE_FD = 5
_PARKING = 64  # above every fd that is given its final number below
_FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)
_HEARD = frozenset(map(int, (*_FORWARDED, signal.SIGCHLD)))
_RESET = tuple(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
Program = Callable[[Plan], object]  # never returns into the mini-init
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


def run(
    plan: Plan,
    site: Site,
    *,
    stdio: tuple[int, int, int],
    control: int,
    status: int,
    tty: bool,
    program: Program | None = None,
) -> NoReturn:
    """Confine, start the server, and stay until it ends.

    Args:
        plan: what to do.
        site: with the id maps that the parent opened.
        stdio: the server's three fds.
        control: a message holds signal numbers for the server, the end of file kills.
        status: write end for the JSON lines.
        tty: stay in the session and process group of the terminal.
        program: what the server is instead of `plan.argv`, run in a fork.
    """

    def work() -> int:
        _arrange_fds(control, status, stdio, site)
        namespaced = bool(plan.clone_flags & namespaces.NEWPID)
        init = _Init(site, namespaced=namespaced, tty=tty, program=program)
        init.prepare()
        return init.run(plan)

    _contain(work)


def run_ahead(base: Plan, *, control: int, status: int) -> NoReturn:
    """The same for a worker that is not known yet: its plan comes by `control` later.

    Args:
        base: the plan to come begins like it.
        control: the first message is how the plan differs, with stdio and id maps as fds.
        status: as for `run`.
    """

    def work() -> int:
        site = Site()
        _arrange_fds(control, status, (), site)
        init = _Init(site, namespaced=bool(base.clone_flags & namespaces.NEWPID), tty=False)
        init.prepare()
        failed = None
        try:
            execute_steps(base.operations[: base.shared], site)
        except OperationError as error:
            failed = error  # said when somebody asks
        init.rehearse(base)
        plan = _receive_plan(base, site)
        if plan is None:
            return 0
        return _refuse(failed) if failed else init.run(plan)

    _contain(work)


def send_plan(control: int, plan: Plan, base: Plan, fds: list[int]) -> None:
    """The parent's side of `run_ahead`."""
    with socket.socket(fileno=os.dup(control)) as link:
        socket.send_fds(link, [json.dumps(plan.changes_from(base)).encode()], fds)


def _receive_plan(base: Plan, site: Site) -> Plan | None:
    with socket.socket(fileno=os.dup(CONTROL_FD)) as link:
        data, fds, _, _ = socket.recv_fds(link, _MOST_PLAN_BYTES, _MOST_FDS)
    if not data:
        return None
    plan = base.changed(json.loads(data))
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
        os.close(fd)
    site.id_maps = dict(zip(id_map_keys(plan.operations), fds[3:], strict=True))
    for fd in fds[3:]:
        os.set_inheritable(fd, False)  # noqa: FBT003 - the function takes no keyword
    return plan


def _contain(work: Callable[[], int]) -> NoReturn:
    """A forked child never returns into its parent's code."""
    code = EXIT_FAILED
    gc.disable()  # it would touch, and so copy, what the fork shares; there is little to collect
    signal.set_wakeup_fd(-1)  # the parent's
    try:
        code = work()
    except BaseException as error:  # noqa: BLE001 - the boundary
        with suppress(OSError):
            _report("failed", {"layer": "", "what": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(code)


def _refuse(error: OperationError) -> int:
    """Say which layer it was; none where the kernel lacked something that it may have soon."""
    cause = error.__cause__
    layer = "" if isinstance(cause, OSError) and cause.errno in SCARCE else error.layer
    _report("failed", {"layer": layer, "what": f"{error.step}: {error.reason}"})
    return EXIT_FAILED


class _Init:
    """One worker's first process."""

    def __init__(
        self, site: Site, *, namespaced: bool, tty: bool, program: Program | None = None
    ) -> None:
        self._site = site
        self._program = program
        self._tty = tty
        self._namespaced = namespaced
        self._server = 0
        self._children = -1
        self._nothing = -1
        self._deadline_s = 0.0  # 0 is none
        self._limit = ""  # what it was killed for by us
        self._signals = -1

    def prepare(self) -> None:
        """All that does not depend on the plan."""
        prctl.set_death_signal(signal.SIGKILL)
        os.umask(0o022)
        self._listen()
        if not self._tty:
            os.setsid()
        if not self._namespaced:
            prctl.become_subreaper()
            self._children = pidfd.children_file()
        self._nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def rehearse(self, plan: Plan) -> None:
        """Do ahead what `run` will do, as far as it has no effect on what comes before.

        A page that the fork shares is copied when it is first touched. That is most of what a
        fresh first process spends, see docs/decisions/spawn-cost.md.
        """
        own = plan._replace(operations=plan.operations[plan.shared :])
        plan.changed(json.loads(json.dumps(own.changes_from(plan))))
        Plan.from_json(json.loads(json.dumps(own.to_json())))
        for step in own.operations:
            if isinstance(step, Restrict):
                step.rehearse()
            elif isinstance(step, DropPrivileges):
                step.bound(self._site)
                prctl.death_signal()
                os.getgroups()
            elif isinstance(step, ShieldMiniInit):
                run_in_thread(capabilities.effective)
        json.dumps({"layers": plan.layers})
        signals.read(self._signals)
        self._reap()

    def run(self, plan: Plan) -> int:
        try:
            return self._start_and_serve(plan)
        finally:
            # However this ends, also because whoever listened is gone (a killed parent, before it
            # heard that the server runs): without a pid namespace only we find the server.
            self._sweep()

    def _start_and_serve(self, plan: Plan) -> int:
        if not self._namespaced:
            # Before there is a server. The launcher's death is seen by the control socket; dying
            # with it would leave the server to nobody.
            prctl.set_death_signal(0)
        try:
            layers = self._start_shielded(plan)
        except OperationError as error:
            return _refuse(error)
        except OSError as error:
            hopeless = error.errno not in SCARCE
            _report(
                "failed", {"layer": "", "what": _exec_failure(error, plan), "hopeless": hopeless}
            )
            return EXIT_FAILED
        _report("started", {"layers": layers})
        if plan.wall_time_s:
            self._deadline_s = time.monotonic() + plan.wall_time_s
        for fd in (0, 1, 2):
            os.dup2(self._nothing, fd)
        return self._serve()

    def _start_shielded(self, plan: Plan) -> list[dict[str, str]]:
        """In a second thread where the plan shields this process from the server."""
        kinds = [type(step) for step in plan.operations]
        if ShieldMiniInit not in kinds:
            return self._start(plan)
        before = plan.operations[: kinds.index(ShieldMiniInit)]
        execute_steps(before[len(self._site.executed) :], self._site)
        self._site.threaded = True
        return run_in_thread(lambda: self._start(plan))

    def _start(self, plan: Plan) -> list[dict[str, str]]:
        """Do what is left of the plan and start the server; the layers in force."""
        layers = execute(plan, self._site)
        os.umask(0o077)
        os.chdir(plan.cwd)
        if self._program is None:
            self._server = _spawn(plan, setsid=not self._tty)
        else:
            self._server = _fork(plan, self._program)
        return layers

    def _listen(self) -> None:
        """Signals are blocked and read from a descriptor; none interrupts anything."""
        heard = set(_HEARD)
        if self._tty:
            heard -= set(_FROM_TERMINAL)  # the server gets them from the terminal itself
            for signo in _FROM_TERMINAL:
                signal.signal(signo, signal.SIG_IGN)
        self._signals = signals.listen(heard)

    def _serve(self) -> int:
        poll = select.poll()
        poll.register(CONTROL_FD, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        while True:
            ended = self._reap()
            if ended is not None:
                self._sweep()
                _report("exited", {**ended, "limit": self._limit})
                return _exit_code(ended)
            for fd, _ in poll.poll(self._left_ms()):
                if fd == self._signals:
                    self._forward(signals.read(fd))
                elif orders := os.read(fd, _MOST_ORDERS):
                    self._forward(orders)
                else:
                    self._sweep()
                    return EXIT_KILLED

    def _left_ms(self) -> float | None:
        """Until the wall time is over; then the server is killed, and its end awaited."""
        if not self._deadline_s:
            return None
        left_s = self._deadline_s - time.monotonic()
        if left_s > 0:
            return min(left_s, _MOST_WAIT_S) * 1000 + 1
        self._deadline_s, self._limit = 0.0, "wall_time"
        with suppress(ProcessLookupError):
            os.kill(self._server, signal.SIGKILL)
        return None

    def _forward(self, signos: Iterable[int]) -> None:
        for signo in signos:
            if signo != signal.SIGCHLD:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(self._server, signo)

    def _reap(self) -> dict[str, Any] | None:
        """Collect the dead; the server's end, if it is among them."""
        ended = None
        while True:
            try:
                # An init reaps whoever is handed to it, so it cannot wait for known pids only.
                pid, status, usage = os.wait3(os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if pid == self._server:
                self._server = 0
                ended = _describe_end(status, usage)

    def _sweep(self) -> None:
        """Kill every descendant: orphans become children of this process, one layer at a time."""
        if self._namespaced:
            return  # the kernel does it when pid 1 ends
        while True:
            for pid in {*pidfd.read_children(self._children), self._server} - {0}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                # Whoever this collects was killed above, or its orphans are in the next list.
                pid, _, _ = os.wait3(0)
            except ChildProcessError:
                return
            if pid == self._server:
                self._server = 0


def _arrange_fds(control: int, status: int, stdio: tuple[int, ...], site: Site) -> None:
    """Give each fd its number and close all others but the id maps."""
    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PARKING) for fd in (control, status, *stdio)]
    maps = {
        key: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _PARKING) for key, fd in site.id_maps.items()
    }
    for number, fd in zip((CONTROL_FD, STATUS_FD), parked[:2], strict=True):
        os.dup2(fd, number, inheritable=False)
    for number, fd in enumerate(parked[2:]):
        os.dup2(fd, number)
    for index, key in enumerate(maps):
        os.dup2(maps[key], _FIRST_FREE_FD + index, inheritable=False)
        site.id_maps[key] = _FIRST_FREE_FD + index
    site.control_fd = CONTROL_FD
    os.closerange(_FIRST_FREE_FD + len(maps), 1 << 30)


def _spawn(plan: Plan, *, setsid: bool) -> int:
    """Start the server by posix_spawn, which shares the address space until the exec."""
    return os.posix_spawn(
        plan.argv[0],
        list(plan.argv),
        plan.env,
        setsid=setsid,
        setsigmask=(),
        setsigdef=_RESET,
    )


def _fork(plan: Plan, program: Program) -> int:
    """Run a program that is in memory already; as `_spawn`, but nothing is exec'ed."""
    pid, fd = namespaces.fork_into(0)
    if pid:
        os.close(fd)
        return pid
    try:
        signals.forget(_HEARD)
        gc.enable()
        os.setsid()
        os.closerange(CONTROL_FD, 1 << 30)
        program(plan)
    finally:
        os._exit(EXIT_FAILED)


def _exec_failure(error: OSError, plan: Plan) -> str:
    reason = error.strerror or str(error)
    if error.filename == plan.cwd:
        what = "which has to exist, and to be among what it sees"
        return f"cannot enter {plan.cwd}, {what}: {reason}"
    if error.errno == errno.ENOENT:
        reason += " (the file itself, or the interpreter that it names)"
    if error.errno == errno.ENOEXEC:
        reason += " (no program of this machine, nor a script with a `#!` line)"
    return f"cannot exec {plan.argv[0]}: {reason}"


def _describe_end(status: int, usage: Any) -> dict[str, Any]:  # noqa: ANN401 - struct_rusage
    code = os.waitstatus_to_exitcode(status)
    return {
        "status": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def _exit_code(ended: dict[str, Any]) -> int:
    status: int | None = ended["status"]
    return 128 + int(ended["signal"]) if status is None else status


def _report(event: str, content: dict[str, Any]) -> None:
    os.write(STATUS_FD, json.dumps({"event": event, **content}).encode() + b"\n")
