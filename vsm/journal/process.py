"""The journal process: takes records from its link, commits them in groups, acknowledges.

`python -I -m vsm.journal.process FD PATH KEEP_AGE_S KEEP_BYTES confined|unconfined [HIDDEN_FD]`,
started by `vsm.journal.client`, which gives the plan of the confinement on stdin; HIDDEN_FD is
what `vsm.journal.contents` reads, in the process that writes calls down. Owns when to commit, what
to do while nothing can be written, and when to end; the file is `vsm.journal.store`'s.
Single-threaded, blocking on the disk, standard library only, with the supervisor's user: it
confines itself before it opens or reads anything else, and never opens a path that came over the
link. It ends when its link does, after committing what the link still held; signals that a
terminal or a service manager sends to everybody are ignored for that.
"""

import contextlib
import select
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final

from vsm.core.age_clock import AgeClock
from vsm.journal.contents import Contents
from vsm.journal.records import (
    Committed,
    Confined,
    Event,
    FromJournal,
    Hello,
    Ready,
    Record,
    Records,
    Refused,
    Resend,
    Retention,
    Trouble,
    answer_message,
    parse_to_journal,
)
from vsm.journal.schema import VERSION
from vsm.journal.store import (
    TRIM_ROWS,
    JournalRefusedError,
    JournalStore,
    is_damage,
    lock,
    move_aside,
    open_store,
    own_event,
)

EXIT_LOST: Final = 1
EXIT_UNCONFINED: Final = 3
EXIT_REFUSED: Final = 4
GROUP_S: Final = 0.005  # a record waits no longer for company
GROUP_RECORDS: Final = 1000  # a slow disk takes more at a time
_MESSAGE_BYTES: Final = 128 * 1024  # the link's bound
_RETRY_S: Final = 0.25
_RETRY_MAX_S: Final = 5.0
_TRIM_EVERY_S: Final = 60.0
_TRIM_STEP_S: Final = 0.05  # between steps while there is more to trim
_NOTES_KEPT: Final = 16
_ARGUMENTS: Final = (5, 6)
_MODES: Final = ("confined", "unconfined")
_POLLRDHUP: Final = 0x2000  # linux/eventpoll.h; the select module has it on most builds only


class JournalProcess:
    """One link, one file. Owns the lock and the file, not the socket.

    Args:
        sock: the SEQPACKET end of the journal.
        contents: what records may hold of calls; without it they come as they are to be written.
    """

    def __init__(
        self,
        sock: socket.socket,
        path: Path,
        retention: Retention,
        boot_id: str,
        contents: Contents | None = None,
    ) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._path = path
        self._retention = retention
        self._boot_id = boot_id
        self._contents = contents
        self._lock: int | None = None  # held until the process ends
        self._store: JournalStore | None = None
        self._hello: Hello | None = None
        self._received = 0  # the sender's last sequence number in the batch or on disk
        self._batch: list[Record] = []
        self._notes: list[Event] = []
        self._answer: FromJournal | None = None  # owed to the sender; a later one replaces it
        self._damage = ""
        self._trouble = ""
        self._trouble_since_s = 0.0
        self._attempts = 0
        self._retry_at_s = 0.0
        self._trim_at_s = 0.0
        self._clock: AgeClock | None = None
        self._hung_up = False  # the sender is gone, but the link may still hold records
        self._ended = False  # the link is read to its end

    def run(self) -> int:
        """Serve until the link ends; returns the exit status."""
        try:
            while not (self._ended or (self._hung_up and self._trouble)):
                self._wait()
                self._gather()
                self._write()
            return self._finish()
        except JournalRefusedError as error:
            self._say(Refused(str(error)))
            _complain(str(error))
            return EXIT_REFUSED
        finally:
            if self._store is not None:
                self._store.close()

    # ---- the link ---------------------------------------------------------------------------

    def _wait(self) -> None:
        poll = select.poll()
        # While nothing can be written nothing is read: the sender's queue is where records wait.
        wanted = _POLLRDHUP if self._trouble else select.POLLIN
        poll.register(self._sock, wanted | (select.POLLOUT if self._answer else 0))
        due_s = self._retry_at_s if self._trouble else self._trim_at_s
        pending = self._store is None and not self._trouble
        wait_s = 0.0 if pending else max(0.0, due_s - time.monotonic())
        for _, happened in poll.poll(int(wait_s * 1000) + (wait_s > 0)):
            if self._trouble and happened & (_POLLRDHUP | select.POLLHUP | select.POLLERR):
                self._hung_up = True
        if self._answer is not None:
            self._say(self._answer)

    def _gather(self) -> None:
        """Read until there is a group, or nothing more to read."""
        deadline_s = time.monotonic() + GROUP_S
        while not self._trouble and len(self._batch) < GROUP_RECORDS:
            payload = self._receive()
            if payload is None:
                return
            try:
                message = parse_to_journal(payload)
            except ValueError as error:
                self._note(own_event("journal.invalid_message", "warning", reason=str(error)))
            else:
                self._take(message)
            if time.monotonic() > deadline_s:
                return

    def _receive(self) -> bytes | None:
        for _ in range(2):
            try:
                payload = self._sock.recv(_MESSAGE_BYTES)
            except (BlockingIOError, InterruptedError):
                return None
            except ConnectionResetError:
                continue  # the sender died with answers unread; what it sent is still here
            if not payload and not self._has_ended():
                continue  # an empty message is no end
            self._ended = not payload
            return payload or None
        return None

    def _has_ended(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, _POLLRDHUP)
        return bool(poll.poll(0))

    def _take(self, message: Hello | Records) -> None:
        if isinstance(message, Hello):
            self._hello = message
            self._greet()
        elif message.first > self._received + 1:
            self._say(Resend(self._received))
        elif self._hello is not None:
            fresh = message.records[self._received + 1 - message.first :]
            if self._contents is not None:
                fresh = [self._contents.fit(record) for record in fresh]
            self._batch += fresh
            self._received += len(fresh)

    def _greet(self) -> None:
        """Tell the sender where it stands, once the file is open.

        A sender that has greeted a predecessor may have nothing more to say, and waits.
        """
        if self._store is None:
            return
        if self._hello is None:
            self._say(Resend(0))
            return
        on_disk = self._store.last_sequence(self._hello.sender)
        self._received = max(on_disk, self._hello.acknowledged)
        self._say(Ready(self._received, VERSION))

    def _say(self, answer: FromJournal) -> None:
        """Send, or owe it: a sequence number covers every earlier one."""
        try:
            self._sock.send(answer_message(answer), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._answer = answer
        except OSError:  # the sender is gone: its end of file follows
            self._answer = None
        else:
            self._answer = None

    def _note(self, event: Event) -> None:
        if len(self._notes) < _NOTES_KEPT:
            self._notes.append(event)

    # ---- the file ---------------------------------------------------------------------------

    def _write(self) -> None:
        """Commit what there is and trim what is due; a failure is trouble, not the end."""
        now_s = time.monotonic()
        if self._trouble and now_s < self._retry_at_s and not self._hung_up:
            return
        try:
            store = self._current_store()
            self._commit(store)
            self._trim(store, now_s)
        except (sqlite3.Error, OSError) as error:
            self._fail(error)

    def _current_store(self) -> JournalStore:
        if self._store is not None and not self._store.is_current():
            self._close_store()
            self._note(own_event("journal.replaced", "error", path=str(self._path)))
        if self._store is None:
            self._open()
        if self._store is None:  # pragma: no cover - _open sets it or raises
            raise OSError("the journal is not open")
        return self._store

    def _open(self) -> None:
        if self._lock is None:
            self._lock = lock(self._path)
        if self._damage:
            kept = move_aside(self._path)
            self._note(
                own_event("journal.moved_aside", "error", reason=self._damage, kept=str(kept))
            )
            self._damage = ""
        self._store, notes = open_store(self._path, self._boot_id, self._retention)
        for note in notes:
            self._note(note)
        for note in self._notes:
            if note.kind == "journal.moved_aside":
                self._say(Trouble(f"{self._path} was damaged; moved aside: {note.detail}"))
        if self._received == 0:
            self._greet()

    def _commit(self, store: JournalStore) -> None:
        if self._trouble:
            self._note(self._recovered())
        if not self._batch and not self._notes:
            return
        written = len(self._batch)
        sender = "" if self._hello is None else self._hello.sender
        try:
            store.append(sender, self._received, [*self._batch, *self._notes])
        except sqlite3.IntegrityError:
            self._batch = store.sift(self._batch)
            store.append(sender, self._received, [*self._batch, *self._notes])
        self._batch.clear()
        self._notes.clear()
        self._trouble = ""
        self._attempts = 0
        self._say(Committed(self._received))
        if store.is_oversized():
            store.trim(self._now_ns(store), TRIM_ROWS + 2 * written)

    def _recovered(self) -> Event:
        for_s = round(time.monotonic() - self._trouble_since_s, 3)
        attempts, reason = self._attempts, self._trouble
        return own_event(
            "journal.trouble_over", "warning", reason=reason, for_s=for_s, attempts=attempts
        )

    def _trim(self, store: JournalStore, now_s: float) -> None:
        if now_s >= self._trim_at_s:
            more = store.trim(self._now_ns(store))
            self._trim_at_s = now_s + (_TRIM_STEP_S if more else _TRIM_EVERY_S)

    def _now_ns(self, store: JournalStore) -> int:
        """What age is counted from: a wall clock that has just leapt ages nothing."""
        if self._clock is None:
            self._clock = AgeClock(store.anchors())
        return self._clock.now_ns(time.time_ns(), time.monotonic_ns())

    def _fail(self, error: Exception) -> None:
        """Keep the batch, let go of the file, try again later; the sender hears of each try."""
        now_s = time.monotonic()
        if not self._trouble:
            self._trouble_since_s = now_s
        if is_damage(error):
            self._damage = str(error)
        self._notes = [note for note in self._notes if note.kind != "journal.trouble_over"]
        self._trouble = f"{self._path}: {error}"
        self._retry_at_s = now_s + min(_RETRY_MAX_S, _RETRY_S * 2 ** min(self._attempts, 10))
        self._attempts += 1
        self._close_store()
        self._say(Trouble(self._trouble))

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _finish(self) -> int:
        """The link has ended: what it held is on disk, or is lost and said so."""
        while (payload := self._receive()) is not None:
            with contextlib.suppress(ValueError):
                self._take(parse_to_journal(payload))
        if not self._batch:
            return 0
        _complain(f"{len(self._batch)} records lost: {self._trouble}")
        return EXIT_LOST


def _confine(plan: str, sock: socket.socket) -> bool:
    """Whether it is confined now; what cannot be confined as planned must not run."""
    import json

    from vsm.confinement.execution import Plan, confine_self

    try:
        layers = confine_self(Plan.from_json(json.loads(plan)))
    except Exception as error:  # noqa: BLE001 - whatever went wrong, it must not run unconfined
        _complain(f"cannot confine itself: {error}")
        sock.send(answer_message(Refused(f"cannot confine itself: {error}")))
        return False
    sock.send(answer_message(Confined(json.dumps(layers))))
    return True


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _complain(text: str) -> None:
    sys.stderr.write(f"vsm journal: {text}\n")


def main(arguments: list[str]) -> int:
    """Run on the inherited descriptor until the other end closes."""
    if len(arguments) not in _ARGUMENTS or arguments[4] not in _MODES:
        usage = "FD PATH KEEP_AGE_S KEEP_BYTES confined|unconfined [HIDDEN_FD]"
        _complain(f"started by vsm itself: {usage}")
        return 2
    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signo, signal.SIG_IGN)
    fd, path, age_s, size_bytes, mode, *hidden = arguments
    retention = Retention(int(age_s) * 10**9, int(size_bytes))
    boot_id = _boot_id()  # /proc is out of reach afterwards
    with socket.socket(fileno=int(fd)) as sock:
        if mode == "confined" and not _confine(sys.stdin.read(), sock):
            return EXIT_UNCONFINED
        contents = Contents(int(hidden[0])) if hidden else None
        return JournalProcess(sock, Path(path), retention, boot_id, contents).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
