"""The launcher: forks, confines and execs every integration worker, and leaves none behind.

A process of its own, started by `vsm.processes.launcher_link` as `python -SI`, with the privileges
of the supervisor but without its secrets, sockets and libraries; standard library only, one thread.
It is a subreaper: its only legitimate children are mini-inits, so any other child is the orphan of
a killed one and is killed at once. When the link to the supervisor closes, all workers go; when the
supervisor is dead, so does what it left (`vsm.processes.remains`).
"""

import array
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

from vsm.confinement import scratch
from vsm.confinement.execution import Plan
from vsm.confinement.refusals import Responder
from vsm.linux import pidfd, prctl
from vsm.processes.forked_worker import ForkedWorker, Spare
from vsm.processes.mini_init import SCARCE
from vsm.processes.remains import FILES, GROUPS, Remains
from vsm.processes.sibling import Sibling

MOST_MESSAGE_BYTES = 131072
MOST_FDS = 16
_END_TIMEOUT_S = 5.0
_REMOVAL_SLICE_S = 0.02  # of the loop's time at once, for what a worker filled its directory with
_DEATH_TIMEOUT_S = 2.0  # a dying process's descriptors are closed a moment before it is dead
_MOST_LAST_ORDERS = 100
_SPARE_LIFE_S = 30.0
_MOST_SPARES = 2
_MOST_SIBLINGS = 4
_HANDING_S = 0.05  # for a start to end; then what it hands out is waited for
_QUIET_S = 0.01  # after a start, so that a spare is never made while somebody waits


class Launcher:
    """The process's state: the link and the workers.

    Args:
        link: to the supervisor.
        supervisor: its pid.
    """

    def __init__(self, link: socket.socket, supervisor: int) -> None:
        self._link = link
        self._supervisor = supervisor
        self._supervisor_fd = _open_parent(supervisor)
        self._ending = self._released = False
        self._remains = Remains()
        self._workers: dict[str, ForkedWorker] = {}
        self._started: set[str] = set()
        self._leftovers: list[str] = []  # private directories that are not yet empty
        self._spares: list[Spare] = []
        self._spare_for: Plan | None = None
        self._last_start_s = self._spare_deadline_s = 0.0
        self._by_fd: dict[int, str] = {}
        self._siblings: dict[int, tuple[str, int, Sibling]] = {}  # by pidfd
        # Control sockets by which a filter's listener comes, and when to look without being told.
        self._handing: dict[int, tuple[str, float]] = {}
        self._poll = select.poll()
        self._refusals = Responder(self._poll, self._tell_refused)
        self._wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for signo in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signo, lambda _signo, _frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._children = pidfd.children_file()
        for fd in (link.fileno(), self._wakeup):
            self._poll.register(fd, select.POLLIN)

    def serve(self) -> None:
        """Until the supervisor closes the link, or is gone."""
        try:
            self._send({"kind": "ready", "pid": os.getpid()})
            while self._serve_ready(self._wait()):
                pass
        except (BrokenPipeError, ConnectionResetError):
            self._hear_last_orders()
        finally:
            self._end()
            if self._is_alone():
                self._remains.remove()

    def _serve_ready(self, ready: list[tuple[int, int]]) -> bool:
        """Serve what is ready; False when all is to end."""
        self._refusals.answer_ready(ready)
        return all(self._serve_one(fd) for fd, _ in ready)

    def _serve_one(self, fd: int) -> bool:
        if fd == self._link.fileno():
            return self._receive()
        if fd == self._wakeup:
            if signal.SIGTERM in os.read(fd, 4096):
                self._hear_last_orders()
                # A supervisor that lives was not meant: it removes its own things.
                self._released |= os.getppid() == self._supervisor
                return False
            self._kill_orphans()
        elif fd in self._handing:
            self._take_refusals(fd)
        elif fd in self._by_fd:
            self._hear(self._by_fd[fd], fd)
        elif fd in self._siblings:
            self._hear_sibling(fd)
        return True

    def _hear_last_orders(self) -> None:
        """Of what waits in the link, where the remains are still counts."""
        self._ending = True
        self._link.setblocking(False)  # noqa: FBT003 - the method takes no keyword
        for _ in range(_MOST_LAST_ORDERS):
            try:
                if not self._receive():
                    return
            except ConnectionResetError:
                continue  # said once, before what it sent while it lived
            except OSError:
                return

    def _is_alone(self) -> bool:
        """The supervisor did not part from us in order: it is dead."""
        if self._released or self._supervisor_fd < 0:
            return not self._released
        return pidfd.wait(self._supervisor_fd, _DEATH_TIMEOUT_S)

    # -- spares ------------------------------------------------------------------------------------

    def _wait(self) -> list[tuple[int, int]]:
        """Poll; in a quiet moment make the spare, after a long one let the spares go."""
        if self._leftovers:
            if not (events := self._poll_for(0.0)):
                self._remove_leftovers()
            return events
        if self._spare_for is None and not self._spares:
            return self._poll_for(None)
        due_s = self._spare_deadline_s if self._spare_for is None else self._last_start_s + _QUIET_S
        events = self._poll_for(due_s - time.monotonic())
        if not events and time.monotonic() > due_s:
            if self._spare_for is None:
                self._discard_spares(0)
            else:
                self._make_spare(self._spare_for)
        return events

    def _poll_for(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """Poll so long, or until the answers to refused calls need something."""
        for due_s in (self._refusals.due_s, self._watch_handing()):
            if due_s is None:
                continue
            left_s = due_s - time.monotonic()
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        events = self._poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000 + 1)
        self._refusals.tick()
        return events

    def _take_spare(self, plan: Plan) -> Spare | None:
        for spare in self._spares:
            if spare.serves(plan):
                self._spares.remove(spare)
                if not pidfd.wait(spare.process.pidfd, 0):
                    return spare
                spare.discard()
                return None
        return None

    def _want_spare(self, plan: Plan) -> None:
        """Whoever started one worker probably starts another: a restart, or the next one."""
        self._last_start_s = time.monotonic()
        self._spare_deadline_s = self._last_start_s + _SPARE_LIFE_S
        self._spare_for = plan

    def _make_spare(self, plan: Plan) -> None:
        self._spare_for = None
        if not any(spare.serves(plan) for spare in self._spares):
            self._discard_spares(_MOST_SPARES - 1)
            with suppress(OSError):  # the next worker is forked when it comes, and says why not
                self._spares.append(Spare(plan))

    def _discard_spares(self, kept: int) -> None:
        while len(self._spares) > kept:
            self._spares.pop(0).discard()

    # -- orders ------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        data, fds = receive(self._link)
        if not data:
            return False
        try:
            order = json.loads(data)
            self._obey(order, fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _obey(self, order: dict[str, Any], fds: list[int]) -> None:
        name, kind = order.get("worker", ""), order["kind"]
        if kind in {FILES, GROUPS}:
            self._remains.note(order, fds)
        elif kind == "release":
            self._released = True
        elif kind == "ping":
            self._send({"kind": "pong"})
        elif self._ending:
            return
        elif kind == "spawn":
            self._spawn(name, order["plan"], fds)
        elif worker := self._workers.get(name):
            if kind == "kill":
                worker.kill()
            elif kind == "attack":
                self._attack(name, order)
            elif kind == "signal" and name in self._started:
                worker.signal(order["signo"])

    def _spawn(self, name: str, table: dict[str, Any], fds: list[int]) -> None:
        if len(fds) != 3:  # noqa: PLR2004 - stdin, stdout, stderr
            self._refuse(name, "", "the launcher has no descriptor left for it: see `ulimit -n`")
            return
        if name in self._workers:
            self._refuse(name, "", "a worker of this name runs already")
            return
        try:
            plan = Plan.from_json(table)
            worker = self._fork(plan, (fds[0], fds[1], fds[2]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            scarce = isinstance(error, OSError) and error.errno in SCARCE
            self._refuse(name, "" if scarce else "namespaces", f"cannot fork: {error}")
            return
        self._workers[name] = worker
        for fd in (worker.status_fd, worker.pidfd):
            self._by_fd[fd] = name
            self._poll.register(fd, select.POLLIN)
        if plan.reported:
            self._handing[worker.control_fd] = (name, time.monotonic() + _HANDING_S)

    def _fork(self, plan: Plan, stdio: tuple[int, int, int]) -> ForkedWorker:
        spare = self._take_spare(plan)
        if spare is not None:
            try:
                return ForkedWorker(plan, stdio, spare=spare)
            except OSError:  # it is dying: another one is not
                spare.discard()
        return ForkedWorker(plan, stdio)

    # -- reports -----------------------------------------------------------------------------------

    def _hear(self, name: str, fd: int) -> None:
        worker = self._workers[name]
        dead = fd == worker.pidfd
        for event in worker.events():
            if event["event"] == "started":
                self._started.add(name)
                self._tell_started(name, worker, event["layers"])
                if worker.control_fd in self._handing:
                    self._take_refusals(worker.control_fd)
                self._want_spare(worker.plan)
        if dead:
            self._bury(name, worker)
        elif worker.hung_up:
            self._forget(worker.status_fd)

    def _tell_started(self, name: str, worker: ForkedWorker, layers: list[Any]) -> None:
        told = {"kind": "spawned", "worker": name, "pid": worker.pid, "layers": layers}
        try:
            listeners = worker.take_listeners()
        except OSError:
            self._started.discard(name)
            worker.kill()  # its burial is the refusal
            return
        try:
            self._send(told, [worker.pidfd, *listeners])
        finally:
            for fd in listeners:
                os.close(fd)

    def _watch_handing(self) -> float | None:
        """Wait for listeners that did not come with a start; when the next one is due for that.

        A listener is taken when its worker says that it has started, and wakes nobody up before.
        A start that takes long may be waiting itself, for the answer to a refused call.
        """
        waiting = [due_s for _, due_s in self._handing.values() if due_s]
        if not waiting or (first_s := min(waiting)) > time.monotonic():
            return min(waiting, default=None)
        for fd, (name, due_s) in self._handing.items():
            if due_s and due_s <= time.monotonic():
                self._handing[fd] = (name, 0.0)
                self._poll.register(fd, select.POLLIN)
        return first_s

    def _take_refusals(self, fd: int) -> None:
        name, _ = self._handing[fd]
        try:
            listener = self._workers[name].take_refusals()
        except BlockingIOError:  # not yet
            return
        except OSError:  # it ended, or said something else: then its server does not start
            self._forget_handing(fd)
            self._workers[name].kill()
            return
        self._forget_handing(fd)
        self._refusals.watch(name, listener)

    def _forget_handing(self, fd: int) -> None:
        if self._handing.pop(fd, ("", 1.0))[1] == 0.0:
            self._poll.unregister(fd)

    def _tell_refused(self, name: str, calls: dict[int, int]) -> None:
        self._send({"kind": "denied", "worker": name, "calls": list(calls.items())})

    def _attack(self, name: str, order: dict[str, Any]) -> None:
        """Put a sibling beside a worker; `attacked` says what it could do."""
        number, worker = order["id"], self._workers[name]
        if len(self._siblings) >= _MOST_SIBLINGS or name not in self._started:
            self._tell_attacked(
                name, number, {"error": "not now: it starts, or others are audited"}
            )
            return
        try:
            sibling = Sibling(worker.plan, worker.pid, order["names"])
        except OSError as error:
            self._tell_attacked(name, number, {"error": f"cannot fork: {error}"})
            return
        self._siblings[sibling.pidfd] = (name, number, sibling)
        self._poll.register(sibling.pidfd, select.POLLIN)

    def _hear_sibling(self, fd: int) -> None:
        if not pidfd.wait(fd, 0):
            return  # a number that was closed in this round, and is this sibling's since
        name, number, sibling = self._siblings.pop(fd)
        self._poll.unregister(fd)
        self._tell_attacked(name, number, sibling.finish())
        self._kill_orphans()  # without a pid namespace, what it left is handed to us

    def _tell_attacked(self, name: str, number: int, found: dict[str, Any]) -> None:
        self._send({"kind": "attacked", "worker": name, "id": number, "found": found})

    def _bury(self, name: str, worker: ForkedWorker) -> None:
        """Reap a mini-init and what it left; tell the supervisor once nothing is there."""
        self._forget(worker.status_fd)
        self._forget(worker.pidfd)
        self._forget_handing(worker.control_fd)
        del self._workers[name]
        pidfd.reap(worker.pidfd)
        self._kill_orphans()
        self._refusals.forget(name)
        self._close(worker)
        last = worker.heard[-1] if worker.heard else {}
        if name not in self._started:
            what = last.get("what", "it was killed while it started")
            hopeless = last.get("hopeless") is True
            self._refuse(name, last.get("layer", ""), what, hopeless=hopeless)
            return
        self._started.discard(name)
        cause = "server" if last.get("event") == "exited" else "mini-init"
        self._send({**last, "kind": "exited", "worker": name, "cause": cause})

    def _forget(self, fd: int) -> None:
        if self._by_fd.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _refuse(self, name: str, layer: str, what: str, *, hopeless: bool = False) -> None:
        told = {"kind": "refused", "worker": name, "layer": layer, "what": what}
        self._send({**told, "hopeless": hopeless})

    def _send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        send(self._link, json.dumps(message).encode(), fds or [])

    # -- ends --------------------------------------------------------------------------------------

    def _kill_orphans(self) -> bool:
        """Kill and reap every child that is no mini-init, and what their deaths hand over.

        All are killed before one is waited for: a tree that forks as fast as it can would outrun
        anything slower.

        Returns:
            False if some are dying still; their SIGCHLD calls again.
        """
        known = {worker.pid for worker in self._workers.values()}
        known |= {spare.process.pid for spare in self._spares}
        known |= {sibling.pid for _, _, sibling in self._siblings.values()}
        return pidfd.kill_children(self._children, lambda pid: pid not in known)

    def _remove_leftovers(self, budget_s: float = _REMOVAL_SLICE_S) -> None:
        """In slices: a worker may have filled its directory with millions of files."""
        self._leftovers = [
            path for path in self._leftovers if not scratch.remove(path, budget_s=budget_s)
        ]

    def _end(self) -> None:
        """Kill everything; nothing here waits for the supervisor."""
        self._discard_spares(0)
        for _, _, sibling in self._siblings.values():
            sibling.kill()
            sibling.finish()
        self._siblings.clear()
        for worker in self._workers.values():
            worker.kill()
        for worker in self._workers.values():
            if pidfd.wait(worker.pidfd, _END_TIMEOUT_S):
                pidfd.reap(worker.pidfd)
        workers, self._workers = list(self._workers.values()), {}
        self._kill_orphans()
        for worker in workers:
            self._close(worker)
        self._remove_leftovers(_END_TIMEOUT_S)

    def _close(self, worker: ForkedWorker) -> None:
        worker.close()
        if not worker.remove_scratch(budget_s=_REMOVAL_SLICE_S):
            self._leftovers.append(worker.plan.scratch_dir)


def _open_parent(pid: int) -> int:
    """A pidfd of the supervisor, -1 when it has died already."""
    with suppress(ProcessLookupError):
        fd = pidfd.open_pidfd(pid)
        if os.getppid() == pid:
            return fd
        os.close(fd)
    return -1


def send(link: socket.socket, data: bytes, fds: list[int]) -> None:
    """One message, with fds."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    link.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(link: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its fds (close-on-exec, the caller's); b"" at the end of the link.

    Without fds where there was no room for all of them: whoever needs them has to look.
    """
    size = socket.CMSG_SPACE(MOST_FDS * array.array("i").itemsize)
    data, ancillary, flags, _ = link.recvmsg(MOST_MESSAGE_BYTES, size, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        del fds[:]
    if flags & socket.MSG_TRUNC:
        raise ValueError("a message was too long for the link")
    return data, list(fds)


def main(link_fd: int, parent: int) -> NoReturn:
    """Run the launcher on an inherited link and nothing else; SIGTERM ends it, workers first."""
    os.closerange(link_fd + 1, 1 << 30)
    prctl.set_name("vsm-launcher")
    gc.collect()
    gc.freeze()  # what is here already is not looked at again, by whoever is forked neither
    prctl.become_subreaper()
    prctl.forbid_dumps()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(link_fd, False)  # noqa: FBT003 - the function takes no keyword
    launcher = Launcher(socket.socket(fileno=link_fd), parent)
    # Not SIGKILL: the private directories of workers have to be removed. Not before it is heard:
    # a parent that has died already is seen at the link, after what it said.
    prctl.set_death_signal(signal.SIGTERM)
    launcher.serve()
    sys.stderr.flush()
    os._exit(0)
