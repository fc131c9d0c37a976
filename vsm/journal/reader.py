"""Reading the journal: filters, queries, following; whether or not vsm runs.

Owns the read-only connection and the translation of a filter into SQL. Never writes, checkpoints
or mends the file. Standard library only; runs in the command line and in whatever introspects.
"""

import json
import os
import re
import sqlite3
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias
from urllib.parse import quote

from vsm.errors import ConfigurationError, VsmError
from vsm.journal.records import MAX_INTEGER, SEVERITIES, severity_index
from vsm.journal.schema import VERSION, SchemaError, check_owner

FOLLOW_S: Final = 0.02  # SQLite has no notification across processes: a follower looks this often
MAX_LIMIT: Final = 2**31 - 1
BOUND: Final = 20_000  # records that a bounded question looks at: some 20 ms
_BATCH: Final = 1000  # rows of one short read transaction, so that a follower never holds the WAL
_BUSY_TIMEOUT_S: Final = 5.0
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

Table: TypeAlias = Literal["events", "decisions"]
Row: TypeAlias = dict[str, Any]

_COLUMNS: Final[dict[Table, str]] = {
    "events": "id, at_ns, monotonic_ns, source, kind, worker, integration, severity, detail",
    "decisions": "id, at_ns, monotonic_ns, source, key, subject, rule, inputs,"
    " alternatives, choice, outcome, outcome_at_ns",
}
_JSON_COLUMNS: Final = frozenset({"detail", "inputs", "alternatives", "outcome"})


class JournalError(VsmError):
    """The journal cannot be read."""


class NotBegunError(JournalError):
    """There is none, or whoever makes it has not made its tables yet."""


class Now(NamedTuple):
    """This moment by every clock that a record may be held against.

    Args:
        steady_ns: CLOCK_MONOTONIC. asleep_ns: how long this boot was suspended so far.
        boot_id: the kernel's, "" where it does not say.
    """

    wall_ns: int
    steady_ns: int
    asleep_ns: int
    boot_id: str

    @classmethod
    def read(cls) -> Self:
        """Look at the clocks."""
        steady_ns = time.monotonic_ns()
        asleep_ns = max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns())
        try:
            boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            boot_id = ""
        return cls(time.time_ns(), steady_ns, asleep_ns, boot_id)

    def age_ns(self, row: Row) -> int:
        """How old a record is, whatever has become of the wall clock meanwhile.

        A record of this boot is as old as the steady clock says, and no older than that and all
        sleep; within these bounds the wall clock decides. One of another boot is older than this.
        """
        age_ns = self.wall_ns - int(row["at_ns"])
        if not self.boot_id or row["boot_id"] != self.boot_id:
            return max(age_ns, self.steady_ns + self.asleep_ns)
        least_ns = self.steady_ns - int(row["monotonic_ns"])
        return min(max(age_ns, least_ns), least_ns + self.asleep_ns)

    def age_sql(self) -> tuple[str, list[object]]:
        """`age_ns` as an SQL expression and its values."""
        text = (
            "CASE WHEN boot = (SELECT id FROM boots WHERE boot_id = ?)"
            " THEN min(max(? - at_ns, ? - monotonic_ns), ? - monotonic_ns)"
            " ELSE max(? - at_ns, ?) END"
        )
        awake_ns, up_ns = self.steady_ns, self.steady_ns + self.asleep_ns
        return text, [self.boot_id or None, self.wall_ns, awake_ns, up_ns, self.wall_ns, up_ns]


class Within(NamedTuple):
    """Records that are no older than this at a moment."""

    age_ns: int
    now: Now


class Filter(NamedTuple):
    """What to show. None does not restrict.

    Args:
        since: what a record's wall clock says at least, in ns, or how old it is.
        kind: an event's kind or a decision's rule; a "*" at the end matches any ending.
        worker: an event's worker or integration, or a decision's subject.
        severity: the least one, an index into SEVERITIES; decisions have none.
        source: which process said so.
    """

    since: int | Within | None = None
    kind: str | None = None
    worker: str | None = None
    severity: int | None = None
    source: str | None = None


class Kinds(NamedTuple):
    """Counts of events by kind: older than an age, or not; and how old the oldest is."""

    oldest_ns: int
    early: dict[str, int]
    late: dict[str, int]


def parse_since(text: str, now: Now) -> int | Within:
    """No older than "90s", "10m", "1h", "2d", "1w", or from an ISO 8601 time of the wall clock on.

    Raises:
        ConfigurationError: neither.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is not None:
        return Within(min(int(match[1]) * _UNITS_S[match[2]] * 10**9, MAX_INTEGER), now)
    from datetime import datetime

    try:
        at_ns = int(datetime.fromisoformat(text.strip()).timestamp() * 10**9)
        return min(max(0, at_ns), MAX_INTEGER)
    except (ValueError, OverflowError, OSError):
        remedy = "Write 90s, 10m, 1h, 2d, 1w or a time such as 2026-11-22T10:00."
        raise ConfigurationError("--since", f"{text[:40]!r} is no time", remedy) from None


def parse_severity(text: str) -> int:
    """The index of a severity's name; ConfigurationError names the known ones."""
    try:
        return severity_index(text)
    except ValueError as error:
        raise ConfigurationError("--severity", str(error)) from None


def where(table: Table, chosen: Filter) -> tuple[str, list[object]]:
    """The filter as an SQL condition and its values; nothing of the filter is in the text."""
    conditions: list[str] = []
    values: list[object] = []
    if isinstance(chosen.since, Within):
        age, clocks = chosen.since.now.age_sql()
        conditions.append(f"{age} <= ?")
        values += [*clocks, chosen.since.age_ns]
    elif chosen.since is not None:
        conditions.append("at_ns >= ?")
        values.append(chosen.since)
    if chosen.kind is not None:
        _add_kind("kind" if table == "events" else "rule", chosen.kind, conditions, values)
    if chosen.worker is not None:
        names = ("worker", "integration") if table == "events" else ("subject",)
        conditions.append("(" + " OR ".join(f"{name} = ?" for name in names) + ")")
        values += [chosen.worker] * len(names)
    if chosen.severity is not None and table == "events":
        conditions.append("severity >= ?")
        values.append(chosen.severity)
    if chosen.source is not None:
        conditions.append("source = ?")
        values.append(chosen.source)
    return " AND ".join(conditions) or "1", values


def _add_kind(column: str, kind: str, conditions: list[str], values: list[object]) -> None:
    if kind.endswith("*"):
        conditions.append(f"substr({column}, 1, ?) = ?")
        values += [len(kind) - 1, kind[:-1]]
    else:
        conditions.append(f"{column} = ?")
        values.append(kind)


class JournalReader:
    """A read-only view of a journal. Close it, or use it in a `with`.

    Raises:
        JournalError: there is none, it is damaged, or it is not one that this vsm reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity(path)  # before: what takes its place meanwhile is noticed
        self._connection = _connect(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def newest(
        self, table: Table, chosen: Filter, limit: int, *, bounded: bool = False
    ) -> list[Row]:
        """The newest `limit` records, oldest first.

        Whoever must not be kept waiting asks `bounded`: among the newest BOUND records only.
        """
        condition, values = where(table, chosen)
        if bounded:
            condition, values = f"id > ? AND {condition}", [self.last_id(table) - BOUND, *values]
        return self._select(table, condition, values, "DESC", limit)[::-1]

    def kinds(self, recent: Within) -> "Kinds":
        """How often each kind of event happened, among the newest BOUND of them."""
        age, clocks = recent.now.age_sql()
        aged = f"(SELECT kind, {age} AS age_ns FROM events WHERE id > ?)"  # noqa: S608 - text of this module
        rows = self._execute(
            f"SELECT kind, age_ns <= ?, count(*), max(age_ns) FROM {aged} GROUP BY 1, 2",  # noqa: S608 - as above
            [recent.age_ns, *clocks, self.last_id("events") - BOUND],
        )
        early = {kind: count for kind, late, count, _ in rows if not late}
        late = {kind: count for kind, late, count, _ in rows if late}
        return Kinds(max((age_ns for *_, age_ns in rows), default=0), early, late)

    def after(self, table: Table, chosen: Filter, last_id: int) -> list[Row]:
        """The next records after `last_id`, oldest first; a bounded number of them."""
        condition, values = where(table, chosen)
        return self._select(table, f"id > ? AND {condition}", [last_id, *values], "ASC", _BATCH)

    def one(self, table: Table, number: int) -> Row | None:
        """The record with this number, if it is still there."""
        if abs(number) > MAX_INTEGER:
            return None
        return next(iter(self._select(table, "id = ?", [number], "ASC", 1)), None)

    def last_id(self, table: Table) -> int:
        """The newest record's number; 0 for none."""
        statement = f"SELECT max(id) FROM {table}"  # noqa: S608 - a literal type
        return int(self._execute(statement, [])[0][0] or 0)

    def version(self) -> int:
        """Changes when another process has committed."""
        return int(self._execute("PRAGMA data_version", [])[0][0])

    def is_current(self) -> bool:
        """Whether the path still names this file."""
        return _identity(self.path) == self._identity

    def _select(
        self, table: Table, condition: str, values: list[object], order: str, limit: int
    ) -> list[Row]:
        boot = f"(SELECT boot_id FROM boots WHERE boots.id = {table}.boot) AS boot_id"  # noqa: S608
        statement = (
            f"SELECT {_COLUMNS[table]}, {boot} FROM {table}"  # noqa: S608 - literals of this module
            f" WHERE {condition} ORDER BY id {order} LIMIT ?"
        )
        rows = self._execute(statement, [*values, limit])
        try:
            return [_row(row) for row in rows]
        except (ValueError, LookupError) as error:  # of what the tables checked once
            raise _unreadable(self.path, error) from error

    def _execute(self, statement: str, values: list[object]) -> list[sqlite3.Row]:
        try:
            # All of it: a page that is damaged is met by the row that is on it.
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _unreadable(self.path, error) from error


def follow(
    path: Path, table: Table, chosen: Filter, last_id: int
) -> Generator[list[Row], None, None]:
    """Yield new records as they are committed, for ever; [] when it has looked in vain.

    A journal that was moved aside or deleted is followed into its successor.
    """
    reader, successor = JournalReader(path), None
    try:
        while True:
            if successor is not None:
                reader.close()
                reader, successor, last_id = successor, None, 0
            version = reader.version()
            while found := reader.after(table, chosen, last_id):
                last_id = found[-1]["id"]
                yield found
            while reader.version() == version and (successor := _successor(reader)) is None:
                yield []
                time.sleep(FOLLOW_S)
    finally:
        reader.close()


def _successor(reader: JournalReader) -> JournalReader | None:
    """The journal that took this one's place, as soon as it can be read."""
    if reader.is_current():
        return None
    try:
        return JournalReader(reader.path)
    except NotBegunError:
        return None


def _row(row: sqlite3.Row) -> Row:
    fields: Row = dict(row)
    for name in _JSON_COLUMNS & fields.keys():
        if fields[name] is not None:
            fields[name] = json.loads(fields[name])
    if "severity" in fields:
        fields["severity"] = SEVERITIES[fields["severity"]]
    return fields


def is_absent(path: Path) -> bool:
    """Whether there is surely none: where nobody may look, there may be one."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _connect(path: Path) -> sqlite3.Connection:
    if is_absent(path):
        remedy = "Start vsm once, or point VSM_STATE_DIR at the state of the one that ran."
        raise NotBegunError(str(path), "there is no journal here", remedy)
    if not os.access(path, os.R_OK, effective_ids=True):
        remedy = "Be the user who runs vsm, or give that one the state directory back."
        raise JournalError(str(path), "may not be read", remedy)
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        try:
            connection = _open(uri)
        except sqlite3.OperationalError:
            # A read-only folder: SQLite cannot make its shared index there, nor can a writer.
            if os.access(path.parent, os.W_OK):
                raise
            connection = _open(f"{uri}&immutable=1")
    except (sqlite3.Error, SchemaError) as error:
        raise _unreadable(path, error) from error
    if connection is None:
        raise NotBegunError(str(path), "nothing is in it yet", "Try again; `vsm up` makes it.")
    return connection


def _open(uri: str) -> sqlite3.Connection | None:
    """None where it has no tables yet."""
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA trusted_schema = OFF")
        if not check_owner(connection):
            connection.close()
            return None
        connection.execute("SELECT count(*) FROM boots").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _unreadable(path: Path, error: Exception) -> JournalError:
    if isinstance(error, SchemaError):
        return JournalError(str(path), str(error), f"This vsm reads version {VERSION}.")
    remedy = "`vsm up` moves a damaged journal aside and begins a new one."
    return JournalError(str(path), f"cannot be read: {error}", remedy)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
