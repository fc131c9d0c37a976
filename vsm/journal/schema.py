"""The journal's tables, version by version.

Owns what is in the file and how an older file becomes a newer one: each migration runs in one
transaction together with its `user_version`. Standard library only; runs in the journal process.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

APPLICATION_ID: Final = 0x56534D4A  # "VSMJ" in the file's header: whose file it is

_VERSION_1: Final = (
    "CREATE TABLE boots (id INTEGER PRIMARY KEY, boot_id TEXT NOT NULL UNIQUE) STRICT",
    # How far each sender is on disk: a record that is sent again is not written again.
    """CREATE TABLE senders (
        sender TEXT PRIMARY KEY, sequence INTEGER NOT NULL, at_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    # AUTOINCREMENT: a number is never used again, so a reader can go on from the last one it saw.
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ns INTEGER NOT NULL,
        monotonic_ns INTEGER NOT NULL,
        boot INTEGER NOT NULL REFERENCES boots,
        source TEXT NOT NULL,
        kind TEXT NOT NULL,
        worker TEXT,
        integration TEXT,
        severity INTEGER NOT NULL CHECK (severity BETWEEN 0 AND 5),
        detail TEXT NOT NULL CHECK (json_valid(detail))
    ) STRICT""",
    "CREATE INDEX events_at ON events (at_ns)",
    """CREATE TABLE decisions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ns INTEGER NOT NULL,
        monotonic_ns INTEGER NOT NULL,
        boot INTEGER NOT NULL REFERENCES boots,
        source TEXT NOT NULL,
        key TEXT NOT NULL UNIQUE,
        subject TEXT NOT NULL,
        rule TEXT NOT NULL,
        inputs TEXT NOT NULL CHECK (json_valid(inputs)),
        alternatives TEXT NOT NULL CHECK (json_valid(alternatives)),
        choice TEXT NOT NULL,
        outcome TEXT CHECK (outcome IS NULL OR json_valid(outcome)),
        outcome_at_ns INTEGER
    ) STRICT""",
    "CREATE INDEX decisions_at ON decisions (at_ns)",
)

# Append only: the number of a version is its position, and files of every version exist.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (_VERSION_1,)
VERSION: Final = len(MIGRATIONS)


class SchemaError(RuntimeError):
    """The file is not one that this vsm may write."""


def check_owner(connection: sqlite3.Connection, newest: int = VERSION) -> int:
    """The file's version; 0 when it is empty.

    Raises:
        SchemaError: another program's database, or one of a newer vsm.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and owner != APPLICATION_ID:
        raise SchemaError("it is another program's database")
    if version > newest:
        raise SchemaError(f"its version {version} is newer than this vsm's {newest}")
    return int(version)


def migrate(
    connection: sqlite3.Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS
) -> int:
    """Bring the file to the newest version, one transaction a step; returns where it began.

    Args:
        connection: in autocommit mode (isolation_level None).
        migrations: the statements of each version.
    """
    begin = check_owner(connection, len(migrations))
    for version in range(begin, len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for statement in migrations[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return begin
