"""The supervisor's side of the journal: starts it, feeds it, starts it again when it dies.

Owns the journal process and the records that are not on disk yet. Runs in the supervisor's event
loop; nothing here waits for a disk. Recording never fails and never blocks: a record that finds
no room is counted, and the count is recorded.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

import vsm
from vsm.journal.queue import JournalQueue
from vsm.journal.records import (
    Committed,
    Confined,
    Decision,
    Event,
    FromJournal,
    Outcome,
    Ready,
    Refused,
    Resend,
    Retention,
    Trouble,
    event_fields,
    hello_message,
    json_text,
    parse_from_journal,
    severity_index,
    short,
)
from vsm.link import Link, socketpair

WINDOW: Final = 8  # messages under way: the disk works on one group while the next ones wait
RESTART_S: Final = 0.1
RESTART_MAX_S: Final = 5.0
STABLE_S: Final = 30.0
HUNG_S: Final = 60.0  # silence while records are under way; checking a large file takes seconds
REFUSED_RETRY_S: Final = 30.0

State = Literal["starting", "ready", "trouble", "down", "refused", "closed"]


@dataclass(frozen=True)
class JournalStatistics:
    """What became of the records so far. `queued` counts those that are not on disk yet."""

    state: State
    reason: str
    pid: int | None
    restarts: int
    recorded: int
    acknowledged: int
    queued: int
    dropped: int
    uptime_s: float
    layers: list[dict[str, str]]


@dataclass(frozen=True)
class _Wire:
    """A message of the journal's link, as `vsm.link` wants it."""

    is_urgent: ClassVar[bool] = False

    payload: bytes = b""
    answer: FromJournal | None = None
    fds: tuple[str, ...] = ()

    def to_wire(self) -> bytes:
        return self.payload


def _parse(payload: bytes) -> _Wire:
    return _Wire(answer=parse_from_journal(payload))


_ROOT: Final = str(Path(vsm.__file__).resolve().parent.parent)
# Isolated: nothing of the environment or the working directory decides what is imported.
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from vsm.journal.process import main; sys.exit(main(sys.argv[1:]))"
)


def spawn_journal(
    path: Path, retention: Retention, plan: str, theirs: socket.socket, hidden: int | None = None
) -> "subprocess.Popen[bytes]":
    """Start a journal process that writes `path` and reads `theirs`, which stays the caller's.

    Args:
        path: the database.
        retention: how much of it is kept.
        plan: JSON of its confinement; "" for none.
        theirs: its end of the link.
        hidden: for `vsm.journal.contents`; stays the caller's, too.

    Raises:
        OSError: it cannot be started.
    """
    age_s, size_bytes = retention.age_ns // 10**9, retention.size_bytes
    mode = "confined" if plan else "unconfined"
    more = () if hidden is None else (hidden,)
    arguments = [theirs.fileno(), path, age_s, size_bytes, mode, *more]
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, _ROOT, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), *more),
        cwd="/",
        env={},  # nothing of the supervisor's environment, which may hold secrets
        start_new_session=True,  # a terminal's ^C is for the supervisor, which ends it in order
        umask=0o077,
    )
    if process.stdin is not None:
        # A plan of some KiB fits into the pipe: this neither waits nor meets a closed end.
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(plan.encode())
    return process


def open_pidfd(process: "subprocess.Popen[bytes]") -> int:
    """Its pidfd; where there is none to be had it is ended, for nobody would see its end."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


class JournalClient:
    """The one sender of records. Everything must be called from its event loop.

    Args:
        path: the database; its folder exists.
        on_trouble: told once per change what is wrong, or "" when it is over; for the log.
    """

    def __init__(
        self,
        path: Path,
        *,
        retention: Retention = Retention(),  # noqa: B008 - an immutable tuple
        on_trouble: Callable[[str], None] = lambda _: None,
        queue: JournalQueue | None = None,
    ) -> None:
        self._path = path
        self._retention = retention
        self._on_trouble = on_trouble
        self._queue = JournalQueue() if queue is None else queue
        # Unique for ever: the journal remembers how far each sender is on disk.
        self._sender = f"{os.getpid()}-{time.time_ns():x}-{os.urandom(4).hex()}"
        self._plan = ""
        self._layers: list[dict[str, str]] = []
        self._decisions = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._link: Link[_Wire] | None = None
        self._socket: socket.socket | None = None  # the link's own
        self._greeted = False  # the journal has said where this sender stands
        self._state: State = "down"
        self._reason = ""
        self._restarts = 0
        self._failures = 0  # starts since it was last stable
        self._started_s = 0.0
        self._heard_s = 0.0  # when it last owed nothing, or answered
        self._watch: asyncio.TimerHandle | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._gone = asyncio.Event()
        self._gone.set()

    # ---- recording --------------------------------------------------------------------------

    def event(
        self,
        kind: str,
        *,
        source: str = "supervisor",
        worker: str | None = None,
        integration: str | None = None,
        severity: str = "info",
        detail: Mapping[str, object] | None = None,
    ) -> int:
        """Record that something happened; returns its number, 0 when it was dropped."""
        event = Event(
            time.time_ns(),
            time.monotonic_ns(),
            short(source),
            short(kind),
            None if worker is None else short(worker),
            None if integration is None else short(integration),
            severity_index(severity),
            event_fields(detail),
        )
        return self._record(event)

    def decide(
        self,
        subject: str,
        *,
        rule: str,
        inputs: object,
        alternatives: object,
        choice: str,
        source: str = "supervisor",
    ) -> str:
        """Record a decision; returns the key by which `outcome` adds what came of it."""
        self._decisions += 1
        key = f"{self._sender}/{self._decisions}"
        now = (time.time_ns(), time.monotonic_ns())
        made_of = (json_text(inputs), json_text(alternatives), short(choice))
        self._record(Decision(*now, short(source), key, short(subject), short(rule), *made_of))
        return key

    def outcome(self, key: str, outcome: object) -> int:
        """Record what came of a decision."""
        return self._record(Outcome(time.time_ns(), short(key), json_text(outcome)))

    def _record(self, record: Event | Decision | Outcome) -> int:
        if self._state == "closed":
            return 0
        sequence = self._queue.add(record)
        self._pump()
        return sequence

    async def wait_durable(self, sequence: int) -> bool:
        """Wait until the record with this number, and all before it, are on disk.

        Args:
            sequence: what `event` returned; 0, a record that was dropped, is False at once.
        """
        if sequence > self._queue.acknowledged:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((sequence, future))
            await future
        return sequence > 0

    def statistics(self) -> JournalStatistics:
        """Totals so far, frozen."""
        queue = self._queue
        return JournalStatistics(
            state=self._state,
            reason=self._reason,
            pid=None if self._process is None else self._process.pid,
            restarts=self._restarts,
            recorded=queue.last,
            acknowledged=queue.acknowledged,
            queued=len(queue),
            dropped=queue.dropped,
            uptime_s=0.0 if self._process is None else time.monotonic() - self._started_s,
            layers=self._layers,
        )

    # ---- the process ------------------------------------------------------------------------

    def start(self, plan: str = "") -> None:
        """Start the journal process; it is started again whenever it ends.

        Args:
            plan: JSON of the plan by which it confines itself; "" for none.
        """
        self._plan = plan
        self._start()

    def _start(self) -> None:
        self._restart = None
        try:
            ours, theirs = socketpair()
        except OSError as error:
            self._cannot_start(error)
            return
        try:
            process = spawn_journal(self._path, self._retention, self._plan, theirs)
            self._pidfd = open_pidfd(process)
        except OSError as error:
            ours.close()
            self._cannot_start(error)
            return
        finally:
            theirs.close()
        self._process = process
        self._gone.clear()
        self._watch_process(ours)

    def _cannot_start(self, error: OSError) -> None:
        self._change("down", f"cannot start the journal: {error.strerror}")
        self._start_later(RESTART_MAX_S)

    def _watch_process(self, ours: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)
        self._greeted = False
        self._socket = ours
        self._link = Link(ours, _parse)
        self._link.start(self._heard, lambda: None)
        self._started_s = self._heard_s = time.monotonic()
        self._change("starting", self._reason)
        self._link.send(_Wire(hello_message(self._sender, self._queue.acknowledged)))
        self._watch_silence()

    def _ended(self) -> None:
        """The process is gone: reap it, keep what is not acknowledged, start another."""
        if self._process is None:
            return
        status = self._process.wait()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._read_last_answers()
        self._process = None
        self._gone.set()
        if self._state != "closed":
            detail = {"status": status, "not_on_disk": len(self._queue)}
            self.event("journal.ended", source="journal", severity="error", detail=detail)
            self._plan_restart(status)

    def _plan_restart(self, status: int) -> None:
        """Start again: at once after a stable time, later each time it dies soon."""
        if time.monotonic() - self._started_s > STABLE_S:
            self._failures = 0
        refused = self._state == "refused"
        if not refused:
            self._change("down", f"the journal process ended with status {status}")
        # A predecessor's journal may still be writing what it was sent: that takes milliseconds.
        longest_s = REFUSED_RETRY_S if refused else RESTART_MAX_S
        delay_s = min(longest_s, RESTART_S * 2 ** min(max(self._failures - 1, 0), 10))
        self._start_later(delay_s if self._failures or refused else 0.0)
        self._failures += 1
        self._restarts += 1

    def _read_last_answers(self) -> None:
        """Take what the process still said; what it did not acknowledge is sent again."""
        link, self._link, self._socket = self._link, None, None
        if link is not None and not link.closed:
            while (received := link.receive(0)) is not None:
                self._heard(*received)
            link.close()
        self._queue.rewind(self._queue.acknowledged)

    def _start_later(self, delay_s: float) -> None:
        self._restart = asyncio.get_running_loop().call_later(delay_s, self._start)

    def _watch_silence(self) -> None:
        """Kill a process that says nothing while it owes an answer."""
        self._watch = None
        owes = self._state == "starting" or self._queue.under_way > 0
        if self._process is None or not owes:
            return
        left_s = self._heard_s + HUNG_S - time.monotonic()
        if left_s <= 0:
            self._process.send_signal(signal.SIGKILL)
        else:
            self._watch = asyncio.get_running_loop().call_later(left_s, self._watch_silence)

    # ---- the link ---------------------------------------------------------------------------

    def _heard(self, message: _Wire, _fds: list[int]) -> None:
        self._heard_s = time.monotonic()
        answer = message.answer
        if isinstance(answer, Trouble):
            self._change("trouble", answer.reason)
        elif isinstance(answer, Refused):
            self._change("refused", answer.reason)
        elif isinstance(answer, Resend):
            self._queue.rewind(answer.sequence)
        elif isinstance(answer, Confined):
            self._layers = json.loads(answer.layers)
        elif isinstance(answer, Ready | Committed):
            self._greeted = True
            self._acknowledge(answer.sequence)
        self._pump()

    def _acknowledge(self, sequence: int) -> None:
        self._queue.acknowledge(sequence)
        self._change("ready", "")
        on_disk = self._queue.acknowledged
        for waited, future in self._waiting:
            if waited <= on_disk and not future.done():
                future.set_result(None)
        self._waiting = [entry for entry in self._waiting if entry[0] > on_disk]

    def _pump(self) -> None:
        """Put under way what the window allows; the rest gathers into larger messages."""
        if self._link is None or not self._greeted:
            return
        if self._queue.under_way == 0:
            self._heard_s = time.monotonic()
        while self._queue.under_way < WINDOW and (message := self._queue.next_message()):
            self._link.send(_Wire(message))
        if self._queue.under_way and self._watch is None:
            self._watch_silence()

    def _change(self, state: State, reason: str) -> None:
        if self._state == "closed":
            return
        changed = reason != self._reason
        self._state, self._reason = state, reason
        if changed:
            self._on_trouble(reason)

    # ---- the end ----------------------------------------------------------------------------

    async def close(self, timeout_s: float = 2.0) -> int:
        """Write what is left, end the process and reap it; returns how many records were lost.

        Args:
            timeout_s: for the disk; a journal in trouble is not waited for.
        """
        with contextlib.suppress(TimeoutError):
            if self._state in {"ready", "starting"}:
                await asyncio.wait_for(self.wait_durable(self._queue.last), timeout_s)
        self._state = "closed"
        for timer in (self._restart, self._watch):
            if timer is not None:
                timer.cancel()
        await self._end_process(timeout_s)
        for _, future in self._waiting:
            future.cancel()
        return len(self._queue)

    async def _end_process(self, timeout_s: float) -> None:
        process = self._process
        if process is None:
            return
        if self._socket is not None and self._link is not None and not self._link.closed:
            self._socket.shutdown(socket.SHUT_WR)  # it still answers for what it has received
        try:
            await asyncio.wait_for(self._gone.wait(), timeout_s)
        except TimeoutError:
            process.kill()
            await self._gone.wait()
