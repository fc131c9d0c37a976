"""The template and the five systems: started, watched by heartbeat, replaced.

Behind each system that serves stands a spare, forked and confined, that has been told nothing
yet: it takes over within milliseconds.

Runs in the supervisor. Owns the channels (duplicates of both ends, so that a successor gets what
is queued), the control links, the boards, the kept snapshots and the epochs. What S1 reports
about integrations is passed on to whoever runs them. A bit long: whatever becomes of a system or
its spare changes the same few tables.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from vsm.board.heartbeat import BoardError, BoardReader
from vsm.board.relay import DemandRelay
from vsm.core import channels, restart
from vsm.link import Link, channel_pair, close_fds, socketpair
from vsm.messages import (
    Answer,
    Ask,
    Body,
    Exited,
    Forked,
    FromSystem,
    Learnt,
    Message,
    Offered,
    Policed,
    Query,
    Ready,
    Regulation,
    Segments,
    SnapshotIn,
    SnapshotOut,
    Start,
    Stop,
    Told,
    reports_of,
)
from vsm.output import OutputReader, OutputRing
from vsm.processes.template_process import describe_status
from vsm.supervision.group import GroupRunner
from vsm.supervision.paced import Paced
from vsm.supervision.running_system import RunningSystem, kill, send_signal, waited_ns
from vsm.supervision.template_actor import TEMPLATE, TemplateActor

LIVENESS_INTERVAL_S: Final = 0.5
LIVENESS_TIMEOUT_S: Final = 3.0
LATE_S: Final = 1.0  # a beat is due every half second
MOST_WAITING_S: Final = 12.0
FORK_TIMEOUT_S: Final = 5.0
STATUS_GRACE_S: Final = 0.05  # between a death and the template's word how it died
MAX_CONSULTING: Final = 16
QUERY_TIMEOUT_S: Final = 1.0  # two in turn end before S1 gives a consultation up
MOST_TOLD: Final = 4096
"""Messages that may wait for a system: a new S1 is told of every server at once, and takes none
before it has begun."""
MISSED: Final = "it missed what it was told: its queue was full"
TOO_MUCH: Final = "its start is larger than a message can be: too many integrations"
SPARE_DELAY_S: Final = 0.1  # a spare is made when the rush of a start is over


def _spec(name: str) -> restart.WorkerSpec:
    return restart.WorkerSpec(
        name=name,
        intensity=5,
        backoff_initial_s=0.1,
        backoff_max_s=10.0,
        start_timeout_s=60.0,
        stop_timeout_s=3.0,
        escalates=True,
    )


@dataclass(frozen=True)
class SystemHooks:
    """What the rest of the supervisor does for this group.

    Args:
        plan: the confinement of a system, as JSON; raises VsmError when it cannot be had.
        start: the `start` message of a system at an epoch, and its descriptors (kept by the giver).
        from_operations: a message of S1 about integrations.
        changed: a worker changed.
        operations_started: a new S1 was sent its `start`.
        operations_lost: S1 is gone.
        ring: the output ring of a worker.
        consult: what vsm says of itself.
        offered: S1 says what a server offers that is not pinned; the fd stays ours.
        learnt: S1 says what an integration offers; the fd stays ours.
        regulate: what a system decided, notes, or wishes of the supervisor.
    """

    plan: Callable[[str], str]
    start: Callable[[str, int], tuple[Start, list[int]]]
    from_operations: Callable[[Any], None]
    changed: Callable[[restart.Changed], None]
    operations_started: Callable[[], None]
    operations_lost: Callable[[], None]
    ring: Callable[[str], OutputRing]
    consult: Callable[[str, str], Awaitable[Body | None]]
    offered: Callable[[str, int], None] = lambda _name, _fd: None
    learnt: Callable[[str, int], None] = lambda _name, _fd: None
    regulate: Callable[[str, Regulation | Policed], None] = lambda _system, _message: None


class SystemGroup:
    """The template and the five systems."""

    def __init__(self, hooks: SystemHooks) -> None:
        self.hooks = hooks
        self.systems = GroupRunner([_spec(name) for name in channels.SYSTEMS], self)
        self.template_actor = TemplateActor(self)
        self.template = GroupRunner([_spec(TEMPLATE)], self.template_actor)
        self.running: dict[str, RunningSystem] = {}
        self.spares: dict[str, RunningSystem] = {}
        self.snapshots: dict[str, Body] = {}
        self.pairs = {channel.name: channel_pair() for channel in channels.CHANNELS}
        self._epoch = 0
        self._query_id = 0
        self.demand = DemandRelay()
        self._consulting: set[asyncio.Task[None]] = set()
        self._offers, self._lessons = Paced(hooks.offered), Paced(hooks.learnt)
        self._stopping = False
        self._liveness: asyncio.TimerHandle | None = None

    # ---- commands --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the template and, as soon as it can fork, the systems."""
        self.template.send(restart.Start(TEMPLATE))
        for name in channels.SYSTEMS:
            self.systems.send(restart.Start(name))
        self._watch(asyncio.get_running_loop().time())

    async def stop(self) -> None:
        """Stop the systems, then the template, and close the channels."""
        self._stopping = True
        for name in channels.SYSTEMS:
            self.systems.send(restart.Stop(name, drain=False, reason="shutting down"))
        for spare in self.spares.values():
            kill(spare)
        await self.systems.wait_all_dead()
        self.template.send(restart.Stop(TEMPLATE, drain=False, reason="shutting down"))
        await self.template.wait_all_dead()
        self.close()

    def close(self) -> None:
        """Give back what outlives the processes."""
        for spare in self.spares.values():
            spare.close()
        self.spares.clear()
        if self._liveness is not None:
            self._liveness.cancel()
        self.systems.close()
        self.template.close()
        for pair in self.pairs.values():
            for sock in pair:
                sock.close()
        self.demand.close()
        self._offers.close()
        self._lessons.close()
        for task in self._consulting:
            task.cancel()

    def tell_operations(self, message: Message, fds: list[int]) -> bool:
        """Send to S1. One that misses something goes on by what is not so: it is replaced."""
        running = self.running.get("system1")
        if running is None or running.link is None:
            return False
        sent = running.link.send(message, fds)
        if not sent and not running.link.closed:
            self.systems.send(restart.Hung(running.name, running.incarnation, MISSED))
        return sent

    def tell_all(self, message: Message) -> list[str]:
        """Send to every system that runs (others learn it by `start`); return who was not told."""
        linked = [(name, one.link) for name, one in self.running.items() if one.link is not None]
        return [name for name, link in linked if not link.send(message)]

    @property
    def operations_ready(self) -> bool:
        """S1 serves."""
        return self.systems.phase("system1") == "ready"

    @property
    def ready(self) -> bool:
        """All five serve."""
        return all(w.phase == "ready" for w in self.systems.group.workers.values())

    def has_spare(self, name: str) -> bool:
        """A process waits to take over."""
        spare = self.spares.get(name)
        return spare is not None and spare.pid is not None

    async def query(self, name: str, what: str, about: str = "") -> Body | None:
        """A system's own answer; None when it has none in time."""
        running = self.running.get(name)
        if running is None or running.link is None or self.systems.phase(name) != "ready":
            return None
        self._query_id = number = self._query_id + 1  # others ask meanwhile
        future: asyncio.Future[Body] = asyncio.get_running_loop().create_future()
        running.queries[number] = future
        running.link.send(Query(id=number, what=what, about=about))
        try:
            return await asyncio.wait_for(future, QUERY_TIMEOUT_S)
        except TimeoutError:
            return None
        finally:
            running.queries.pop(number, None)

    # ---- what the restart decisions do -----------------------------------------------------

    def spawn(self, name: str, incarnation: int) -> None:
        """Start the spare, or fork one now or when the template can."""
        spare = self.spares.pop(name, None)
        if spare is not None and spare.pid is not None and self.template_actor.can_fork:
            spare.incarnation = incarnation
            self.running[name] = spare
            self._send_start(spare)
            return
        if spare is not None:
            kill(spare)
            spare.close()
        self.running[name] = self._new(name, incarnation)
        if self.template_actor.can_fork:
            self._fork_running(self.running[name])

    def _new(self, name: str, incarnation: int) -> RunningSystem:
        self._epoch += 1
        return RunningSystem(name, incarnation, self._epoch)

    def fork_waiting(self) -> None:
        """The template can fork now."""
        for running in list(self.running.values()):
            if running.link is None:
                self._fork_running(running)

    def _fork_running(self, running: RunningSystem) -> None:
        if self._fork(running):
            self._send_start(running)

    def _make_spare(self, name: str) -> None:
        """Fork a spare for a system that serves, unless there is one."""
        serves = self.systems.phase(name) == "ready" and self.template_actor.can_fork
        if serves and name not in self.spares and not self._stopping:
            self.spares[name] = self._new(name, 0)
            self._fork(self.spares[name])

    def _fork(self, running: RunningSystem) -> bool:
        try:
            plan = self.hooks.plan(running.name)
            control, theirs = socketpair()
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
        except Exception as error:  # noqa: BLE001 - boundary: any refusal keeps it from running
            self._gone(running, str(error))
            return False
        running.output = OutputReader(read_end, self.hooks.ring(running.name))
        fds = {"control": theirs.fileno(), "stderr": write_end} | self._channel_ends(running.name)
        self.template_actor.fork(running.name, running.epoch, plan, fds)
        theirs.close()
        os.close(write_end)
        running.link = Link(control, reports_of(running.name), most_queued=MOST_TOLD)
        running.link.start(
            lambda message, given: self._on_message(running, message, given), lambda: None
        )
        asyncio.get_running_loop().call_later(FORK_TIMEOUT_S, self._check_forked, running)
        return True

    def _send_start(self, running: RunningSystem) -> None:
        message, fds = self.hooks.start(running.name, running.epoch)
        running.started_at = asyncio.get_running_loop().time()
        if running.link is not None:
            if not running.link.send(message, fds) and not running.link.closed:  # else it has died
                self._gone(running, TOO_MUCH)
                return
            if running.name in {"system1", "system4"}:
                running.link.send(*self.demand.message())
        if running.name == "system1":
            for sender, body in self.snapshots.items():  # each by itself: none crowds another out
                self._tell_snapshot(sender, body)
            self.hooks.operations_started()

    def _channel_ends(self, name: str) -> dict[str, int]:
        sending = {c.name: self.pairs[c.name][0].fileno() for c in channels.sends(name)}
        receiving = {c.name: self.pairs[c.name][1].fileno() for c in channels.receives(name)}
        return sending | receiving

    def _check_forked(self, running: RunningSystem) -> None:
        """A template that does not fork is hung itself."""
        if running.pid is None and self._find(running.name, running.epoch) is running:
            self.template_actor.hung("hung: it does not fork")

    def drain(self, name: str) -> None:
        """Systems do not drain: the integrations have been drained before."""
        self.systems.send(restart.Drained(name))

    def terminate(self, name: str) -> None:
        """Tell it to stop."""
        running = self.running[name]
        if running.link is None:
            self._gone(running, "stopped before it was forked")
        else:
            running.link.send(Stop())

    def ask_stack(self, name: str) -> None:
        """SIGABRT makes faulthandler print every stack; a stopped process must go on for that."""
        self._signal(name, signal.SIGABRT)
        self._signal(name, signal.SIGCONT)

    def kill(self, name: str) -> None:
        """Kill it, or the fork to come."""
        running = self.running[name]
        if running.link is None:
            self._gone(running, "stopped before it was forked")
        running.doomed = True
        self._signal(name, signal.SIGKILL)

    def _signal(self, name: str, signo: signal.Signals) -> None:
        running = self.running.get(name)
        if running is not None:
            send_signal(running, signo)

    def _find(self, name: str, epoch: int) -> RunningSystem | None:
        """The incarnation or spare of that epoch."""
        both = (self.running.get(name), self.spares.get(name))
        return next((one for one in both if one is not None and one.epoch == epoch), None)

    def changed(self, change: restart.Changed) -> None:
        """Pass on."""
        self.hooks.changed(change)

    # ---- what the processes report ---------------------------------------------------------

    def on_forked(self, message: Forked, pidfd: int) -> None:
        """A system exists."""
        running = self._find(message.system, message.epoch)
        if running is None:
            os.close(pidfd)
            return
        running.pid, running.pidfd = message.pid, pidfd
        loop = asyncio.get_running_loop()
        loop.add_reader(pidfd, self._on_death, running)
        if running.doomed:
            kill(running)

    def on_exited(self, message: Exited) -> None:
        """The template reaped a system and says how it ended."""
        running = self._find(message.system, message.epoch)
        if running is not None:
            self._gone(running, describe_status(message.status), clean=message.status == 0)

    def _on_death(self, running: RunningSystem) -> None:
        """Its pidfd fired; the template's word follows unless the template is gone too."""
        loop = asyncio.get_running_loop()
        if running.pidfd is not None:
            loop.remove_reader(running.pidfd)
        loop.call_later(STATUS_GRACE_S, self._gone, running, "died")

    def on_template_lost(self, reason: str) -> None:
        """Every system dies with the template; those that were not forked yet go on waiting."""
        del reason
        for running in [*self.running.values(), *self.spares.values()]:
            if running.link is not None and running.pid is None:
                self._gone(running, "the template died")

    def _gone(self, running: RunningSystem, reason: str, *, clean: bool = False) -> None:
        if self.spares.get(running.name) is running:
            del self.spares[running.name]
            running.close()
            return
        if self.running.get(running.name) is not running:
            return
        del self.running[running.name]
        running.close()
        if running.name == "system1":
            self.hooks.operations_lost()
        collateral = running.link is not None and not self.template_actor.can_fork
        self.systems.send(
            restart.Exited(
                running.name,
                running.incarnation,
                "the template died" if collateral else reason,
                clean=clean,
                collateral=collateral,
            )
        )

    def _on_message(self, running: RunningSystem, message: FromSystem, fds: list[int]) -> None:
        """Do what it says; that it may say so its link has looked at (`reports_of`)."""
        match message:
            case Ready() if len(fds) == 1:
                self._on_ready(running, message, fds[0])
                return
            case Segments() if fds:
                self._on_segments(running, fds)
                return
            case Ask() if len(self._consulting) < MAX_CONSULTING:
                task = asyncio.get_running_loop().create_task(self._consult(running, message))
                self._consulting.add(task)
                task.add_done_callback(self._consulting.discard)
            case SnapshotOut():
                self._relay(running.name, message.body)
            case Answer():
                future = running.queries.get(message.id)
                if future is not None and not future.done():
                    future.set_result(message.body)
            case Offered() | Learnt() if len(fds) == 1:
                paced = self._offers if isinstance(message, Offered) else self._lessons
                paced.take(message.integration, fds[0])
            case _ if isinstance(message, Regulation | Policed):
                self.hooks.regulate(running.name, message)
            case _:
                self.hooks.from_operations(message)
        close_fds(fds)

    def _on_ready(self, running: RunningSystem, message: Ready, board_fd: int) -> None:
        if running.pid is None:  # the two links are read in any order
            loop = asyncio.get_running_loop()
            loop.call_later(0.001, self._retry_ready, running, message, board_fd)
            return
        try:
            running.board = BoardReader(board_fd, epoch=running.epoch, pid=running.pid)
        except BoardError as error:
            self.systems.send(restart.Hung(running.name, running.incarnation, str(error)))
            return
        finally:
            os.close(board_fd)
        running.layers = message.layers
        self.systems.send(restart.Ready(running.name, running.incarnation))
        asyncio.get_running_loop().call_later(SPARE_DELAY_S, self._make_spare, running.name)

    def _on_segments(self, running: RunningSystem, fds: list[int]) -> None:
        """S1 has another demand board: S4 reads it from now on."""
        reader = self.running.get("system4")
        if not self.demand.announced(fds, epoch=running.epoch, pid=running.pid or 0):
            self.systems.send(restart.Hung(running.name, running.incarnation, "false demand board"))
        elif reader is not None and reader.link is not None:
            reader.link.send(*self.demand.message())

    async def _consult(self, running: RunningSystem, question: Ask) -> None:
        body = await self.hooks.consult(question.what, question.about)
        if running.link is not None:
            running.link.send(Told(id=question.id, body=body))

    def _retry_ready(self, running: RunningSystem, message: Ready, board_fd: int) -> None:
        if self.running.get(running.name) is running:
            self._on_ready(running, message, board_fd)
        else:
            os.close(board_fd)

    def _relay(self, sender: str, body: Body) -> None:
        self.snapshots[sender] = body
        self._tell_snapshot(sender, body)

    def _tell_snapshot(self, sender: str, body: Body) -> None:
        operations = self.running.get("system1")
        if operations is not None and operations.link is not None:
            operations.link.send(SnapshotIn(sender=sender, body=body))

    # ---- liveness --------------------------------------------------------------------------

    def _watch(self, due: float) -> None:
        """Look at every board; not when we ourselves were late, since they may have been too."""
        loop = asyncio.get_running_loop()
        next_s = (now_s := loop.time()) + LIVENESS_INTERVAL_S
        self._liveness = loop.call_at(next_s, self._watch, next_s)  # whatever is met below
        if now_s - due < LIVENESS_INTERVAL_S:
            for running in list(self.running.values()):
                self._check_beat(running)

    def _check_beat(self, running: RunningSystem) -> None:
        if running.board is None or self.systems.phase(running.name) == "stopping":
            return
        beat, now_s = running.board.read(), asyncio.get_running_loop().time()
        # A stamp of the future is a lie, which would hide a hang: as good as none.
        beat_ns = beat.beat_ns if beat and beat.beat_ns / 1e9 <= now_s + LATE_S else 0
        age_s = now_s - beat_ns / 1e9
        if age_s <= LATE_S:
            return
        # A host with too few processors starves it; to replace it would only add to the load.
        waited = waited_ns(running.pid)
        if running.late is None or running.late[0] != beat_ns:
            running.late = (beat_ns, waited)
        starved_s = min((waited - running.late[1]) / 1e9, MOST_WAITING_S)
        if age_s - starved_s > LIVENESS_TIMEOUT_S:
            reason = f"hung: no heartbeat for {LIVENESS_TIMEOUT_S:g} s"
            self.systems.send(restart.Hung(running.name, running.incarnation, reason))

    def queued_bytes(self, channel: channels.Channel) -> int:
        """What waits in a channel."""
        return _queued(self.pairs[channel.name][1])

    def capacity_bytes(self, channel: channels.Channel) -> int:
        """What a channel can hold."""
        sender = self.pairs[channel.name][0]
        return sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


def _queued(sock: socket.socket) -> int:
    import fcntl
    import struct
    import termios

    answer = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("i", answer)[0])
