"""The journal's file: opened, locked, mended, appended to and trimmed by one process.

Owns the one writing connection, the rule that a damaged file is moved aside and never deleted,
exactly-once appending by sender and sequence number, and retention in bounded steps. Standard
library only; runs in the journal process (and in tests). Readers are `vsm.journal.reader`.
"""

import contextlib
import fcntl
import math
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vsm.journal.records import (
    DAY_NS,
    Decision,
    Event,
    Outcome,
    Record,
    Retention,
    event_fields,
    severity_index,
)
from vsm.journal.schema import SchemaError, check_owner, migrate

TRIM_ROWS: Final = 1000  # a step of retention: about 2 ms
_VACUUM_PAGES: Final = 256
_SURPLUS_MARGIN: Final = 16  # rows: so that the next record does not start another step
_SENDER_KEPT_NS: Final = 7 * DAY_NS
_SIDE_FILES: Final = ("-wal", "-shm")  # names that SQLite gives
_BUSY_TIMEOUT_S: Final = 5.0

# One connection writes and checkpoints, so SQLite's WAL-reset race (before 3.51.3) has no partner.
_PRAGMAS: Final = (
    "PRAGMA auto_vacuum = INCREMENTAL",  # has effect only before the first table
    "PRAGMA synchronous = FULL",  # a commit returns when the disk says that it is there
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA journal_size_limit = 8388608",
    "PRAGMA cache_size = -1024",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cell_size_check = ON",
    "PRAGMA foreign_keys = ON",
)
_INSERT_EVENT: Final = (
    "INSERT INTO events (boot, at_ns, monotonic_ns, source, kind, worker, integration, severity,"
    " detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_DECISION: Final = (
    "INSERT INTO decisions (boot, at_ns, monotonic_ns, source, key, subject, rule,"
    " inputs, alternatives, choice) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (key) DO NOTHING"
)
_ATTACH_OUTCOME: Final = "UPDATE decisions SET outcome = ?, outcome_at_ns = ? WHERE key = ?"
_UPSERT_SENDER: Final = (
    "INSERT INTO senders VALUES (?, ?, ?)"
    " ON CONFLICT (sender) DO UPDATE SET sequence = excluded.sequence, at_ns = excluded.at_ns"
)
_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class JournalRefusedError(RuntimeError):
    """The journal must not be written by this process; trying again soon changes nothing."""


class DamageError(RuntimeError):
    """The file does not hold what SQLite wrote."""


def is_damage(error: BaseException) -> bool:
    """Whether an error of SQLite means that the file itself is broken."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, DamageError) or (code is not None and code & 0xFF in _DAMAGE)


def lock(path: Path) -> int:
    """Become the one writer of `path`: a flock beside it, released by close or death.

    Beside it, because closing any descriptor of the database itself drops SQLite's own locks.

    Raises:
        JournalRefusedError: another process writes it.
        OSError: the lock file cannot be made.
    """
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        what = "another process writes it; each vsm needs a $VSM_STATE_DIR of its own"
        raise JournalRefusedError(f"{path}: {what}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def own_event(kind: str, severity: str, **detail: object) -> Event:
    """An event of the journal about itself, stamped now."""
    return Event(
        time.time_ns(),
        time.monotonic_ns(),
        "journal",
        kind,
        None,
        None,
        severity_index(severity),
        event_fields(detail),
    )


def open_store(
    path: Path, boot_id: str, retention: Retention
) -> "tuple[JournalStore, list[Event]]":
    """Open or create the file; a damaged one is moved aside first.

    Returns:
        The store, and what has to be recorded about opening it.

    Raises:
        JournalRefusedError: another program's file, or a newer vsm's.
        OSError, sqlite3.Error: it cannot be opened now.
    """
    try:
        return JournalStore(path, boot_id, retention), []
    except (DamageError, sqlite3.DatabaseError) as error:
        if not is_damage(error):
            raise
        kept = move_aside(path)
        notes = [own_event("journal.moved_aside", "error", reason=str(error), kept=str(kept))]
        return JournalStore(path, boot_id, retention), notes


def move_aside(path: Path) -> Path:
    """Rename a damaged file with its side files, so that it can still be salvaged."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept = Path(f"{path}.damaged-{stamp}")
    number = 1
    while kept.exists():
        number += 1
        kept = Path(f"{path}.damaged-{stamp}-{number}")
    for suffix in ("", *_SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{kept}{suffix}")
    _sync_folder(path.parent)
    return kept


class JournalStore:
    """The one writing connection. The caller holds the lock.

    Raises:
        JournalRefusedError, DamageError, OSError, sqlite3.Error: as `open_store`.
    """

    def __init__(self, path: Path, boot_id: str, retention: Retention) -> None:
        self.path = path
        self._retention = retention
        # A -wal file that is left over means that the last writer did not end by itself.
        unclean = _size(f"{path}-wal") > 0
        self._connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        try:
            self._prepare(unclean=unclean)
            self._boot = self._boot_number(boot_id)
        except BaseException:
            self._connection.close()
            raise
        self._identity = _identity(path)

    def _prepare(self, *, unclean: bool) -> None:
        execute = self._connection.execute
        try:
            check_owner(self._connection)
        except SchemaError as error:
            raise JournalRefusedError(f"{self.path}: {error}") from None
        for pragma in _PRAGMAS:
            execute(pragma)
        (mode,) = execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise JournalRefusedError(f"{self.path}: its file system cannot hold a WAL ({mode})")
        self._check(whole=unclean)
        migrate(self._connection)

    def _check(self, *, whole: bool) -> None:
        """Look at everything after a crash, else at what costs nothing."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        if not whole and pages * self._page_bytes() > _size(self.path) > 0:
            raise DamageError(f"{self.path} is shorter than its {pages} pages")
        if whole:
            (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise DamageError(str(verdict))

    def _page_bytes(self) -> int:
        (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int(page_bytes)

    def _boot_number(self, boot_id: str) -> int:
        self._connection.execute("INSERT OR IGNORE INTO boots (boot_id) VALUES (?)", (boot_id,))
        row = self._connection.execute("SELECT id FROM boots WHERE boot_id = ?", (boot_id,))
        return int(row.fetchone()[0])

    def anchors(self) -> list[tuple[int, int]]:
        """Wall and monotonic time of this boot's first record, and of the last before this boot.

        Of the latter's clock only the wall is comparable: it was no later than this boot's zero.
        """
        found = []
        for table in ("events", "decisions"):
            first = f"SELECT at_ns, monotonic_ns FROM {table} WHERE boot = ? ORDER BY id LIMIT 1"  # noqa: S608 - a literal of this module
            last = f"SELECT at_ns, 0 FROM {table} WHERE boot < ? ORDER BY id DESC LIMIT 1"  # noqa: S608 - as above
            for statement in (first, last):
                found += self._connection.execute(statement, (self._boot,)).fetchall()
        return [(int(wall_ns), int(steady_ns)) for wall_ns, steady_ns in found]

    def is_current(self) -> bool:
        """Whether the path still names the open file: nobody deleted or replaced it."""
        return _identity(self.path) == self._identity

    def last_sequence(self, sender: str) -> int:
        """How far the sender's records are on disk; 0 for a new sender."""
        row = self._connection.execute("SELECT sequence FROM senders WHERE sender = ?", (sender,))
        found = row.fetchone()
        return int(found[0]) if found else 0

    def append(self, sender: str, sequence: int, records: Sequence[Record]) -> None:
        """Write `records`, the last of which is the sender's `sequence`; durable on return.

        Raises:
            sqlite3.Error: nothing of it is written; the same call may be made again.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._insert(records)
            if sender:
                self._connection.execute(_UPSERT_SENDER, (sender, sequence, time.time_ns()))
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def sift(self, records: Sequence[Record]) -> list[Record]:
        """Replace each record that the tables refuse by an event that says so; writes nothing.

        One such record must not keep all the others from the disk for ever.
        """
        sifted: list[Record] = []
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for record in records:
                try:
                    self._insert([record])
                except sqlite3.IntegrityError as error:
                    sifted.append(own_event("journal.refused_record", "error", reason=str(error)))
                else:
                    sifted.append(record)
        finally:
            self._roll_back()
        return sifted

    def _insert(self, records: Sequence[Record]) -> None:
        boot, many = self._boot, self._connection.executemany
        many(_INSERT_EVENT, [(boot, *record) for record in records if type(record) is Event])
        decisions = [(boot, *record) for record in records if type(record) is Decision]
        if decisions:
            many(_INSERT_DECISION, decisions)
        for record in records:
            if type(record) is Outcome:
                self._attach(record)

    def _attach(self, outcome: Outcome) -> None:
        values = (outcome.outcome, outcome.at_ns, outcome.key)
        if self._connection.execute(_ATTACH_OUTCOME, values).rowcount == 0:
            note = own_event("journal.outcome_without_decision", "notice", key=outcome.key)
            self._connection.execute(_INSERT_EVENT, (self._boot, *note))

    def _roll_back(self) -> None:
        # A full disk may have rolled back already; a broken file may refuse: close mends both.
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def used_bytes(self) -> int:
        """Bytes of pages in use: what size retention counts (the -wal file is bounded apart)."""
        execute = self._connection.execute
        (pages,) = execute("PRAGMA page_count").fetchone()
        (free,) = execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * self._page_bytes()

    def is_oversized(self) -> bool:
        """Whether size retention has something to do."""
        return self.used_bytes() > self._retention.size_bytes

    def trim(self, now_ns: int, rows: int = TRIM_ROWS) -> bool:
        """Delete at most `rows` records that are too old or too much, and free some pages.

        Returns:
            Whether another step has something to do.
        """
        more = self._trim_rows(now_ns, rows)
        # Fetched, because SQLite frees one page a row.
        self._connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return more or free > 0

    def _trim_rows(self, now_ns: int, rows: int) -> bool:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            deleted = self._delete_old(now_ns, rows)
            if deleted < rows and self.is_oversized():
                deleted += self._delete_oldest(min(rows - deleted, self._surplus_rows()))
            self._connection.execute(
                "DELETE FROM senders WHERE at_ns < ?", (now_ns - _SENDER_KEPT_NS,)
            )
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        return deleted >= rows or self.is_oversized()

    def _surplus_rows(self) -> int:
        """About how many of the oldest are too much: a step never empties a small journal."""
        held = 1
        for table in ("events", "decisions"):
            span = f"SELECT max(id) - min(id) + 1 FROM {table}"  # noqa: S608 - as above
            held += self._connection.execute(span).fetchone()[0] or 0
        used = self.used_bytes()
        return math.ceil((used - self._retention.size_bytes) / used * held) + _SURPLUS_MARGIN

    def _delete_old(self, now_ns: int, rows: int) -> int:
        deleted = 0
        for table in ("events", "decisions"):
            statement = (
                f"DELETE FROM {table} WHERE id IN"  # noqa: S608 - a literal of this module
                f" (SELECT id FROM {table} WHERE at_ns < ? ORDER BY at_ns LIMIT ?)"
            )
            values = (now_ns - self._retention.age_ns, rows - deleted)
            deleted += self._connection.execute(statement, values).rowcount
        return deleted

    def _delete_oldest(self, rows: int) -> int:
        oldest = {
            table: self._connection.execute(
                f"SELECT at_ns FROM {table} ORDER BY id LIMIT 1"  # noqa: S608 - as above
            ).fetchone()
            for table in ("events", "decisions")
        }
        held = {table: row[0] for table, row in oldest.items() if row is not None}
        if not held:
            return 0
        table = min(held, key=held.__getitem__)
        statement = (
            f"DELETE FROM {table} WHERE id IN"  # noqa: S608 - as above
            f" (SELECT id FROM {table} ORDER BY id LIMIT ?)"
        )
        return self._connection.execute(statement, (rows,)).rowcount

    def close(self) -> None:
        """Checkpoint and close; without a -wal file the next writer knows that all is well."""
        with contextlib.suppress(sqlite3.Error):  # a full disk: the -wal file stays and holds it
            self._connection.close()


def _size(path: str | Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
