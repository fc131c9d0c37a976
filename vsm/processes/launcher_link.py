"""The supervisor's side of the launcher: start it, order, hear, notice its death.

Runs in the supervisor's event loop; nothing here blocks. A launcher that died takes its workers
with it: their mini-inits kill what they have, are handed to this process (a subreaper) and are
reaped here. A bit long: each order, its answer and its loss are one table of workers.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import vsm
from vsm.confinement import scratch
from vsm.confinement.execution import Plan
from vsm.errors import ConfinementError, sound
from vsm.link import duplicate
from vsm.linux import pidfd, prctl
from vsm.processes.launcher import MOST_MESSAGE_BYTES, receive, send
from vsm.processes.pulse import Pulse

_READY_TIMEOUT_S = 10.0
_SPAWN_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 5.0
_ATTACK_TIMEOUT_S = 20.0  # a sibling ends itself before
_CLOSE_TIMEOUT_S = 10.0
_REMOVAL_SLICE_S, _REMOVAL_PAUSE_S = 0.02, 0.05
_ABANDON_TIMEOUT_S = 2.0
_MOST_SILENT_S = 10  # it may be reaping many workers
_LINK_FD = 3
Order: TypeAlias = tuple[dict[str, Any], Sequence[int]]  # and the descriptors that go with it
_START = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from vsm.processes import launcher; launcher.main({}, {})"
)


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker whose server has been exec'ed: every layer below is in force.

    Args:
        pid: the mini-init's pid, in our pid namespace.
        pidfd: owned by the caller.
        layers: one `{"name", "state", "detail"}` each: what really happened.
        listeners: sockets inside the worker's network namespace, for the egress process, in the
            plan's order; owned by the caller.
    """

    pid: int
    pidfd: int
    layers: list[dict[str, str]]
    listeners: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a worker's server ended.

    Args:
        status: its exit status, or None when a signal ended it (or nobody knows).
        signal: that signal, or None.
        cause: "server", "mini-init" (which was killed itself) or "launcher" (which was lost).
        cpu_s: user and system time of the server and its reaped descendants.
        peak_bytes: the largest resident set of one process among them.
        limit: "wall_time" if its mini-init killed it for that.
    """

    status: int | None
    signal: int | None
    cause: str = "server"
    cpu_s: float = 0.0
    peak_bytes: int = 0
    limit: str = ""

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]], cause: str = "mini-init") -> "ExitReport":
        """The report in a mini-init's status lines; without one, `cause` was killed."""
        for event in events:
            if event.get("event") == "exited":
                return cls(
                    status=event["status"],
                    signal=event["signal"],
                    cpu_s=event["cpu_s"],
                    peak_bytes=event["peak_bytes"],
                    limit=event.get("limit", ""),
                )
        return cls(status=None, signal=signal.SIGKILL, cause=cause)


class LaunchError(RuntimeError):
    """The server could not be exec'ed; see also ConfinementError.

    Args:
        what: why.
        hopeless: nor could it be by trying again.
    """

    def __init__(self, what: str, *, hopeless: bool = False) -> None:
        super().__init__(what)
        self.hopeless = hopeless


def failure(name: str, event: dict[str, Any] | None) -> ConfinementError | LaunchError:
    """The error that a mini-init's "failed" line, or none at all, means."""
    if event is None:
        return LaunchError(f"{name}: it was killed, or did not start in time")
    if not event.get("layer"):
        return LaunchError(
            sound(f"{name}: {event['what']}"), hopeless=event.get("hopeless") is True
        )
    remedy = "See `vsm sandbox probe` for what this host gives."
    return ConfinementError(name, event["what"], remedy, layer=event["layer"])


def is_confined(pid: int) -> bool:
    """Whether a child of ours has a system call filter more than we do, as only workers have.

    Not simply one: a container runtime may have given a filter to everything in it.
    """
    return _filters(str(pid)) > _filters("self")


def _filters(process: str) -> int:
    with suppress(OSError):
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n"):  # its name may hold other line breaks
            if line.startswith("Seccomp_filters:"):
                return int(line.split()[1])
    return 0


@dataclass(slots=True)
class _Worker:
    plan: Plan
    started: "asyncio.Future[Spawned]"
    pidfd: int = -1


class LauncherLink:
    """The supervisor's end of the launcher.

    Args:
        on_exit: called with worker id and report, once per spawned worker, after `spawn` has
            returned.
        on_lost: called once when the launcher died without being asked to, after its workers'
            `on_exit`.
        spared: confined children of this process that the launcher never started.
        on_denied: called with worker id and how many system calls it was refused, by number,
            once a second at most.
        first: what the launcher has to know before all else, with descriptors that stay the
            giver's: where this process keeps what a killed one leaves (`vsm.processes.remains`).

    Attributes:
        pid: the launcher's.
        pidfd: the launcher's; owned by this object, closed by `close`.
    """

    def __init__(
        self,
        on_exit: Callable[[str, ExitReport], None],
        on_lost: Callable[[], None] = lambda: None,
        spared: Callable[[], frozenset[int]] = frozenset,
        first: Callable[[], Iterable[Order]] = tuple,
        on_denied: Callable[[str, dict[int, int]], None] = lambda _worker, _calls: None,
    ) -> None:
        self.pid = 0
        self.pidfd = -1
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._spared = spared
        self._first = first
        self._on_denied = on_denied
        self._pulse = Pulse(self._ask, self._kill_launcher, most=_MOST_SILENT_S)
        self._link = socket.socket()
        self._workers: dict[str, _Worker] = {}
        self._attacks: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._attacks_last = 0
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._writing = False
        self._closing = False
        self._ended: asyncio.Future[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Start the launcher process and wait for its READY.

        Raises:
            LaunchError: it did not come up.
        """
        loop = asyncio.get_running_loop()
        prctl.become_subreaper()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.close()
        self._link = ours
        ours.setblocking(False)  # noqa: FBT003 - the method takes no keyword
        self._ready, self._ended = loop.create_future(), loop.create_future()
        with theirs:
            self.pid = _start_process(theirs.fileno())
        self.pidfd = pidfd.open_pidfd(self.pid)
        loop.add_reader(self.pidfd, self._launcher_ended)
        loop.add_reader(ours, self._readable)
        for order, fds in self._first():
            self.tell(order, fds)
        timer = loop.call_later(_READY_TIMEOUT_S, self._kill_launcher)
        try:
            await self._ready
        finally:
            timer.cancel()

    async def spawn(
        self, worker_id: str, plan: Plan, stdin: int, stdout: int, stderr: int
    ) -> Spawned:
        """Start a worker.

        Args:
            worker_id: unique among the living.
            plan: from `compile_plan`.
            stdin: fd, kept by the caller.
            stdout: fd, kept by the caller.
            stderr: fd, kept by the caller.

        Raises:
            ConfinementError: a layer could not be applied.
            LaunchError: the program could not be exec'ed, or the launcher is gone.
        """
        if worker_id in self._workers:
            raise LaunchError(f"{worker_id}: a worker of this name runs already")
        loop = asyncio.get_running_loop()
        message = {"kind": "spawn", "worker": worker_id, "plan": plan.to_json()}
        data = json.dumps(message).encode()
        if len(data) > MOST_MESSAGE_BYTES:
            raise LaunchError(
                f"{worker_id}: its arguments, environment and network.allow exceed 128 KiB"
            )
        if self.pidfd < 0 or self._closing:
            raise LaunchError(f"{worker_id}: the launcher does not run")
        worker = _Worker(plan, loop.create_future())
        self._send(data, [stdin, stdout, stderr])
        self._workers[worker_id] = worker
        timer = loop.call_later(_SPAWN_TIMEOUT_S, self._give_up, worker_id)
        try:
            return await worker.started
        except asyncio.CancelledError:
            self._order("kill", worker_id)
            raise
        finally:
            timer.cancel()

    def _give_up(self, worker_id: str) -> None:
        """Have it killed; a launcher that does not even do that is stopped or hung."""
        worker = self._workers.get(worker_id)
        if worker is not None and not worker.started.done():
            self._order("kill", worker_id)
            loop = asyncio.get_running_loop()
            loop.call_later(_ANSWER_TIMEOUT_S, self._expect_answer, worker)

    def _expect_answer(self, worker: _Worker) -> None:
        if not worker.started.done():
            self._kill_launcher()

    async def signal(self, worker_id: str, signo: int) -> None:
        """Send a signal to the server (not to its whole tree)."""
        self._order("signal", worker_id, signo=int(signo))

    async def kill(self, worker_id: str) -> None:
        """Kill the worker's whole process tree; `on_exit` tells when it is gone."""
        self._order("kill", worker_id)

    async def attack(self, worker_id: str, names: Sequence[str]) -> dict[str, Any]:
        """Have a sibling of a running worker try attacks (`vsm.processes.sibling`), by name.

        Returns:
            {"outcomes": {name: {"outcome", "detail"}}}, or {"error": why there is none}.
        """
        if worker_id not in self._workers:
            return {"error": "it does not run"}
        self._attacks_last += 1
        number = self._attacks_last
        future = self._attacks[number] = asyncio.get_running_loop().create_future()
        order = {"kind": "attack", "worker": worker_id, "id": number, "names": list(names)}
        self._send(json.dumps(order).encode(), [])
        try:
            return await asyncio.wait_for(future, _ATTACK_TIMEOUT_S)
        except TimeoutError:
            return {"error": "the launcher did not answer"}
        finally:
            del self._attacks[number]

    async def close(self) -> None:
        """Kill every worker, end the launcher and wait for it."""
        if self._ended is None:
            return
        self._closing = True
        self.tell({"kind": "release"}, [])
        self._disconnect()
        timer = asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT_S, self._kill_launcher)
        await self._ended
        timer.cancel()

    def tell(self, order: dict[str, Any], fds: Sequence[int]) -> None:
        """Send an order that is about no worker; nothing where no launcher runs."""
        if self.pidfd >= 0:
            self._send(json.dumps(order).encode(), fds)

    def describe(self) -> dict[str, Any]:
        """For status."""
        return {"pid": self.pid, "workers": sorted(self._workers), "queued": len(self._queue)}

    # -- sending -----------------------------------------------------------------------------------

    def _order(self, kind: str, worker_id: str, **content: int) -> None:
        if worker_id in self._workers:
            self._send(json.dumps({"kind": kind, "worker": worker_id, **content}).encode(), [])

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        """Queue copies of the fds: the caller may close his before the launcher reads."""
        self._queue.append((data, duplicate(fds)))
        self._flush()

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                send(self._link, data, fds)
            except BlockingIOError:
                self._watch_writable(wanted=True)
                return
            except OSError:
                pass  # the launcher is gone; its pidfd says so
            self._queue.popleft()
            for fd in fds:
                os.close(fd)
        self._watch_writable(wanted=False)

    def _watch_writable(self, *, wanted: bool) -> None:
        loop = asyncio.get_running_loop()
        if wanted and not self._writing:
            loop.add_writer(self._link, self._flush)
        elif self._writing and not wanted:
            loop.remove_writer(self._link)
        self._writing = wanted

    # -- hearing -----------------------------------------------------------------------------------

    def _readable(self) -> None:
        while True:
            try:
                data, fds = receive(self._link)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                asyncio.get_running_loop().remove_reader(self._link)
                return
            self._hear(json.loads(data), fds)

    def _hear(self, message: dict[str, Any], fds: list[int]) -> None:
        kind = message["kind"]
        if kind == "ready" and self._ready and not self._ready.done():
            self._ready.set_result(None)
            self._pulse.start()
        elif kind == "pong":
            self._pulse.answered()
        elif kind == "spawned":
            self._spawned(message, fds)
        elif kind == "refused":
            worker = self._workers.pop(message["worker"])
            if not worker.started.done():
                worker.started.set_exception(failure(worker.plan.name, message))
        elif kind == "attacked":
            attack = self._attacks.get(message["id"])
            if attack is not None and not attack.done():
                attack.set_result(message["found"])
        elif kind == "denied":
            self._on_denied(message["worker"], dict(message["calls"]))
        elif kind == "exited":
            self._exited(message["worker"], ExitReport.of([message], cause=message["cause"]))

    def _spawned(self, message: dict[str, Any], fds: list[int]) -> None:
        if not fds:  # there was no room for them: nobody could serve it
            self._order("kill", message["worker"])
            return
        worker, (fd, *listeners) = self._workers[message["worker"]], fds
        worker.pidfd = fd
        if worker.started.done():  # cancelled: the kill is on its way
            for listener in listeners:
                os.close(listener)
            return
        pid, layers = message["pid"], message["layers"]
        worker.started.set_result(Spawned(pid, os.dup(fd), layers, tuple(listeners)))

    def _exited(self, worker_id: str, report: ExitReport) -> None:
        worker = self._workers.pop(worker_id)
        if worker.pidfd >= 0:
            os.close(worker.pidfd)
        if not worker.started.done():  # the word that it started was lost: no fd was free for it
            worker.started.set_exception(LaunchError(f"{worker.plan.name}: it ended as it began"))
        elif not worker.started.cancelled():
            # Not called directly: whoever awaits the spawn of a short-lived server runs first.
            asyncio.get_running_loop().call_soon(self._on_exit, worker_id, report)

    # -- the launcher's own end --------------------------------------------------------------------

    def _ask(self) -> None:
        self.tell({"kind": "ping"}, [])

    def _disconnect(self) -> None:
        self._pulse.stop()
        if self._link.fileno() >= 0:
            self._watch_writable(wanted=False)
            asyncio.get_running_loop().remove_reader(self._link)
            self._link.close()

    def _kill_launcher(self) -> None:
        if self.pidfd >= 0:
            pidfd.send_signal(self.pidfd, signal.SIGKILL)

    def _launcher_ended(self) -> None:
        """Whatever it said last is heard; then its workers, which are ending, are reaped here."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.pidfd)
        if not self._closing:
            self._readable()
            self._disconnect()
        pidfd.reap(self.pidfd)
        os.close(self.pidfd)
        self.pidfd = -1
        while self._queue:
            for fd in self._queue.popleft()[1]:
                os.close(fd)
        for attack in self._attacks.values():
            if not attack.done():
                attack.set_result({"error": "the launcher died"})
        for worker_id, worker in list(self._workers.items()):
            self._abandon(worker_id, worker)
        self._maybe_lost()

    def _abandon(self, worker_id: str, worker: _Worker) -> None:
        if worker.pidfd < 0:  # nobody heard that it started, or nobody waited for that any more
            if not worker.started.done():
                error = LaunchError(f"{worker.plan.name}: the launcher died while it started")
                worker.started.set_exception(error)
            del self._workers[worker_id]
            _remove_scratch(worker.plan.scratch_dir)
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(
            worker.pidfd, self._orphan_ended, worker_id, worker.pidfd, worker.plan.scratch_dir
        )
        loop.call_later(_ABANDON_TIMEOUT_S, self._kill_abandoned, worker_id, worker)

    def _kill_abandoned(self, worker_id: str, worker: _Worker) -> None:
        """Its mini-init should have ended by itself; one that was stopped does not."""
        if self._workers.get(worker_id) is worker:
            pidfd.send_signal(worker.pidfd, signal.SIGKILL)

    def _orphan_ended(self, worker_id: str, fd: int, scratch_dir: str) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        pidfd.reap(fd, block=False)
        _remove_scratch(scratch_dir)
        self._exited(worker_id, ExitReport.of([], cause="launcher"))
        self._maybe_lost()

    def _maybe_lost(self) -> None:
        if self._workers or self._ended is None or self._ended.done():
            return
        kill_confined_orphans(self._spared())
        loop = asyncio.get_running_loop()
        if self._ready and not self._ready.done():
            self._ready.set_exception(LaunchError("the launcher did not become ready"))
        elif not self._closing:
            loop.call_soon(self._on_lost)
        self._ended.set_result(None)


def _remove_scratch(path: str) -> None:
    """In slices, on the running loop: a worker may have put millions of files there."""
    if not scratch.remove(path, budget_s=_REMOVAL_SLICE_S):
        asyncio.get_running_loop().call_later(_REMOVAL_PAUSE_S, _remove_scratch, path)


def kill_confined_orphans(spare: frozenset[int] = frozenset()) -> None:
    """Kill and reap confined processes that were handed to this one when their parents died."""
    listing = pidfd.children_file()
    try:
        pidfd.kill_children(listing, lambda pid: pid not in spare and is_confined(pid))
    finally:
        os.close(listing)


def _start_process(link_fd: int) -> int:
    """`python -SI`: no site-packages, no environment, nothing inherited but the link."""
    code = _START.format(_LINK_FD, os.getpid())
    package_root = str(Path(vsm.__file__).resolve().parent.parent)
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-SI", "-c", code, package_root],
        {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, link_fd, _LINK_FD),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=[signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD],
    )
