"""The journal's file: migrations, damage, retention, the one writer, readers beside it."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsm.journal import reader as journal_reader
from vsm.journal import schema as journal_schema
from vsm.journal import store as journal_store
from vsm.journal.reader import (
    Filter,
    JournalError,
    JournalReader,
    Now,
    Within,
    follow,
    parse_since,
    where,
)
from vsm.journal.records import DAY_NS, MAX_INTEGER, Decision, Event, Outcome, Retention
from vsm.journal.store import JournalRefusedError, JournalStore, open_store

Open = Callable[..., JournalStore]
ALL, KEEP = Filter(), Retention()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """Opens stores that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_it(retention: Retention = KEEP) -> JournalStore:
            store = JournalStore(path, "boot", retention)
            stack.callback(store.close)
            return store

        yield open_it


def event(number: int, **fields: Any) -> Event:
    plain = Event(number, number, "supervisor", "worker.exited", "w", "i", 1, '{"n":1}')
    return plain._replace(**fields)


def decision(key: str, at_ns: int = 1) -> Decision:
    return Decision(at_ns, 1, "supervisor", key, "time", "restart", "{}", "[]", "restart")


def numbers(path: Path, chosen: Filter = ALL, limit: int = 10**6) -> list[int]:
    with JournalReader(path) as reader:
        return [row["at_ns"] for row in reader.newest("events", chosen, limit)]


def test_records_are_there_after_append(opened: Open, path: Path) -> None:
    store = opened()
    store.append("me", 3, [event(1), decision("k"), Outcome(9, "k", '{"ok":true}')])
    with JournalReader(path) as reader:
        (kept,) = reader.newest("events", Filter(), 10)
        (chosen,) = reader.newest("decisions", Filter(), 10)
    assert kept["kind"] == "worker.exited"
    assert kept["severity"] == "info"
    assert kept["detail"] == {"n": 1}
    assert kept["boot_id"] == "boot"
    assert (chosen["outcome"], chosen["outcome_at_ns"]) == ({"ok": True}, 9)
    assert store.last_sequence("me") == 3
    assert store.last_sequence("another") == 0


def test_a_commit_waits_for_the_disk(opened: Open) -> None:
    """What no kill of a process can show: by these SQLite syncs the -wal file at each commit."""
    ask = opened()._connection.execute
    assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ask("PRAGMA synchronous").fetchone() == (2,), "FULL"


def test_an_outcome_without_its_decision_is_said(opened: Open, path: Path) -> None:
    opened().append("me", 1, [Outcome(9, "unknown", "{}")])
    with JournalReader(path) as reader:
        (note,) = reader.newest("events", Filter(), 10)
    assert note["kind"] == "journal.outcome_without_decision"


def test_a_failed_append_leaves_nothing_of_itself(opened: Open, path: Path) -> None:
    store = opened()
    with pytest.raises(sqlite3.IntegrityError):
        store.append("me", 2, [event(1), event(2, detail="no json")])
    assert store.last_sequence("me") == 0
    store.append("me", 1, [event(3)])
    assert numbers(path) == [3]


def test_a_record_that_the_tables_refuse_does_not_keep_the_others(opened: Open, path: Path) -> None:
    store = opened()
    sifted = store.sift([event(1), event(2, detail="no json"), event(3)])
    store.append("me", 3, sifted)
    with JournalReader(path) as reader:
        kinds = [row["kind"] for row in reader.newest("events", Filter(), 10)]
    assert kinds == ["worker.exited", "journal.refused_record", "worker.exited"]


def test_a_reader_sees_commits_while_the_writer_goes_on(opened: Open, path: Path) -> None:
    store = opened()
    store.append("me", 1, [event(1)])
    with JournalReader(path) as reader:
        for number in range(2, 200):
            store.append("me", number, [event(number)])
            assert reader.last_id("events") == number
        assert len(reader.newest("events", Filter(), 1000)) == 199


def test_a_follower_gets_each_record_once_and_survives_a_new_file(opened: Open, path: Path) -> None:
    store = opened()
    store.append("me", 1, [event(1)])
    batches = follow(path, "events", Filter(), 0)
    assert [row["at_ns"] for row in next(batches)] == [1]
    store.append("me", 2, [event(2)])
    found = next(batch for batch in batches if batch)
    assert [row["at_ns"] for row in found] == [2]
    store.close()
    journal_store.move_aside(path)
    opened().append("me", 3, [event(3)])
    found = next(batch for batch in batches if batch)
    assert [row["at_ns"] for row in found] == [3]
    batches.close()


def test_a_follower_of_a_deleted_file_waits_for_the_next_one(opened: Open, path: Path) -> None:
    opened().append("me", 1, [event(1)])
    batches = follow(path, "events", Filter(), 0)
    assert next(batches)
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    assert [next(batches) for _ in range(3)] == [[], [], []]
    opened().append("me", 2, [event(2)])
    found = next(batch for batch in batches if batch)
    assert [row["at_ns"] for row in found] == [2]
    batches.close()


def test_a_reader_knows_of_a_file_that_was_replaced_while_it_was_opened(
    opened: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would follow the one that was moved aside for ever."""
    opened().close()

    def connect(found: Path) -> sqlite3.Connection:
        connection = real(found)
        journal_store.move_aside(path)
        opened().close()
        return connection

    real = journal_reader._connect
    monkeypatch.setattr(journal_reader, "_connect", connect)
    with JournalReader(path) as reader:
        assert not reader.is_current()


def test_a_follower_waits_for_a_new_file_whose_tables_are_not_made_yet(
    opened: Open, path: Path
) -> None:
    """Its last record before is not passed over either: it came as the file was moved aside."""
    store = opened()
    store.append("me", 1, [event(1)])
    batches = follow(path, "events", Filter(), 0)
    assert next(batches)
    store.append("me", 2, [event(2)])
    store.close()
    journal_store.move_aside(path)
    path.touch()
    found = [next(batches) for _ in range(3)]
    assert [[row["at_ns"] for row in batch] for batch in found] == [[2], [], []]
    opened().append("me", 3, [event(3)])
    found = [next(batch for batch in batches if batch)]
    assert [row["at_ns"] for row in found[0]] == [3]
    batches.close()


def test_an_old_file_is_migrated_with_what_it_holds(opened: Open, path: Path) -> None:
    store = opened()
    store.append("me", 1, [event(1)])
    store.close()
    later = (*journal_schema.MIGRATIONS, ("CREATE TABLE pins (name TEXT PRIMARY KEY) STRICT",))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert journal_schema.migrate(connection, later) == 1
        assert journal_schema.migrate(connection, later) == 2  # a second time changes nothing
        assert connection.execute("SELECT count(*) FROM pins").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)


def test_a_migration_that_fails_changes_nothing(opened: Open, path: Path) -> None:
    opened().close()
    broken = (*journal_schema.MIGRATIONS, ("CREATE TABLE pins (a INTEGER) STRICT", "nonsense"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            journal_schema.migrate(connection, broken)
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    assert ("pins",) not in tables


def test_a_newer_file_is_refused_and_left_alone(opened: Open, path: Path) -> None:
    opened().close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {journal_schema.VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(JournalRefusedError, match="newer than this vsm"):
        open_store(path, "boot", Retention())
    with pytest.raises(JournalError, match="newer"):
        JournalReader(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(JournalRefusedError, match="another program"):
        open_store(path, "boot", Retention())
    with pytest.raises(JournalError, match="another program"):
        JournalReader(path)


def _scribble(path: Path, offset: int, payload: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(payload)


def test_a_file_that_is_no_database_is_moved_aside_with_its_bytes(path: Path) -> None:
    path.write_bytes(b"not a database, but somebody's bytes " * 100)
    before = path.read_bytes()
    store, notes = open_store(path, "boot", Retention())
    store.append("", 0, notes)
    store.close()
    (kept,) = path.parent.glob("journal.db.damaged-*")
    assert kept.read_bytes() == before
    with JournalReader(path) as reader:
        (note,) = reader.newest("events", Filter(), 10)
    assert note["kind"] == "journal.moved_aside"
    assert note["detail"]["kept"] == str(kept)


def test_a_shortened_file_is_moved_aside(opened: Open, path: Path) -> None:
    store = opened()
    store.append("me", 500, [event(n) for n in range(500)])
    store.close()
    os.truncate(path, path.stat().st_size // 2)
    store, notes = open_store(path, "boot", Retention())
    store.close()
    assert [note.kind for note in notes] == ["journal.moved_aside"]


def test_damage_inside_is_found_after_a_crash(opened: Open, path: Path) -> None:
    store = opened()
    store.append("me", 2000, [event(n) for n in range(2000)])
    store.close()
    size = path.stat().st_size
    _scribble(path, size // 2, b"\xa5" * 8192)
    Path(f"{path}-wal").write_bytes(b"left by a crash")
    store, notes = open_store(path, "boot", Retention())
    store.close()
    assert [note.kind for note in notes] == ["journal.moved_aside"]
    (kept,) = (p for p in path.parent.glob("journal.db.damaged-*") if "wal" not in p.name)
    assert kept.stat().st_size == size


def test_two_damaged_files_of_one_second_are_both_kept(path: Path) -> None:
    for _ in range(3):
        path.write_bytes(b"x" * 4096)
        journal_store.move_aside(path)
    assert len(list(path.parent.glob("journal.db.damaged-*"))) == 3


def test_age_retention_deletes_in_bounded_steps(opened: Open, path: Path) -> None:
    now_ns = time.time_ns()
    store = opened(Retention(age_ns=DAY_NS))
    old = [event(now_ns - 2 * DAY_NS + n) for n in range(250)]
    store.append("me", 351, [*old, *(event(now_ns - n) for n in range(100)), decision("k")])
    assert store.trim(now_ns, 100)
    assert len(numbers(path)) == 250
    while store.trim(now_ns, 100):
        pass
    assert len(numbers(path)) == 100
    with JournalReader(path) as reader:
        assert reader.newest("decisions", Filter(), 10) == []


def test_size_retention_deletes_the_oldest_and_gives_the_space_back(
    opened: Open, path: Path
) -> None:
    limit_bytes = 400_000
    store = opened(Retention(size_bytes=limit_bytes))
    text = '"' + "x" * 500 + '"'
    now_ns = time.time_ns()
    for first in range(0, 3000, 100):
        batch = [event(now_ns + n, detail=text) for n in range(first, first + 100)]
        store.append("me", first + 100, batch)
    assert path.stat().st_size + Path(f"{path}-wal").stat().st_size > limit_bytes
    steps = 0
    while store.trim(now_ns, 100):
        steps += 1
    assert steps > 10
    kept = numbers(path)
    assert kept == list(range(now_ns + 3000 - len(kept), now_ns + 3000))
    assert store.used_bytes() <= limit_bytes
    store.close()
    assert path.stat().st_size <= limit_bytes + 8192


def test_numbers_are_never_used_again(opened: Open, path: Path) -> None:
    store = opened(Retention(age_ns=1))
    store.append("me", 5, [event(n) for n in range(5)])
    store.trim(time.time_ns())
    assert numbers(path) == []
    store.append("me", 6, [event(9)])
    with JournalReader(path) as reader:
        assert reader.last_id("events") == 6


def test_two_writers_are_refused(path: Path) -> None:
    first = journal_store.lock(path)
    try:
        with pytest.raises(JournalRefusedError, match="another process"):
            journal_store.lock(path)
    finally:
        os.close(first)
    os.close(journal_store.lock(path))  # free again


def test_a_lock_that_is_a_symlink_is_refused(path: Path) -> None:
    Path(f"{path}.lock").symlink_to(path.parent / "elsewhere")
    with pytest.raises(OSError, match=r"[Ss]ymbolic"):
        journal_store.lock(path)


def test_no_journal_is_an_error_that_says_what_to_do(path: Path) -> None:
    with pytest.raises(JournalError, match="Start vsm once"):
        JournalReader(path)


YEAR_S = 365 * 86_400
KINDS = ("worker.exited", "worker.ready", "worker", "vsm.started", "x%_'; DROP TABLE events")
NAMES = (None, "a", "b", "a' OR 1=1 --")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with every combination of what filters look at."""
    path = tmp_path_factory.mktemp("filters") / "journal.db"
    store = JournalStore(path, "boot", Retention())
    combined = [
        Event(at, at, source, kind, worker, integration, severity, "{}")
        for at, (source, kind, worker, integration, severity) in enumerate(
            (s, k, w, i, v)
            for s in ("supervisor", "journal")
            for k in KINDS
            for w in NAMES
            for i in NAMES
            for v in range(6)
        )
    ]
    store.append("me", len(combined), combined)
    store.close()
    return path


NOWS = st.builds(
    Now,
    st.integers(0, 1500),
    st.integers(0, 1500),
    st.integers(0, 50),
    st.sampled_from(["boot", "other", ""]),
)
FILTERS = st.builds(
    Filter,
    since=st.none() | st.integers(0, 1000) | st.builds(Within, st.integers(0, 1000), NOWS),
    kind=st.none() | st.sampled_from([*KINDS, "worker.*", "*", "x%*", "none"]),
    worker=st.none() | st.sampled_from([n for n in NAMES if n] + ["none"]),
    severity=st.none() | st.integers(0, 5),
    source=st.none() | st.sampled_from(["supervisor", "journal", "none"]),
)


def _matches(row: dict[str, object], chosen: Filter) -> bool:
    """What the documentation says a filter means, in Python."""
    kind, severities = str(row["kind"]), ("debug", "info", "notice", "warning", "error", "critical")
    since = chosen.since
    return (
        (
            since.now.age_ns(row) <= since.age_ns
            if isinstance(since, Within)
            else since is None or int(str(row["at_ns"])) >= since
        )
        and (
            chosen.kind is None
            or kind == chosen.kind
            or (chosen.kind.endswith("*") and kind.startswith(chosen.kind[:-1]))
        )
        and (chosen.worker is None or chosen.worker in (row["worker"], row["integration"]))
        and (chosen.severity is None or severities.index(str(row["severity"])) >= chosen.severity)
        and (chosen.source is None or row["source"] == chosen.source)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chosen=FILTERS, limit=st.integers(1, 2000))
def test_filters_select_what_they_say(many: Path, chosen: Filter, limit: int) -> None:
    with JournalReader(many) as reader:
        everything = reader.newest("events", Filter(), 10**6)
        found = reader.newest("events", chosen, limit)
    assert found == [row for row in everything if _matches(row, chosen)][-limit:]


@given(FILTERS)
def test_nothing_of_a_filter_is_in_the_statement(chosen: Filter) -> None:
    for table in ("events", "decisions"):
        condition, values = where(table, chosen)
        assert condition.count("?") == len(values)
        assert "'" not in condition


@given(st.integers(0, 10**6), st.sampled_from("smhdw"))
def test_since_counts_back_from_now(count: int, unit: str) -> None:
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[unit]
    now = Now.read()
    age_ns = min(count * seconds * 10**9, MAX_INTEGER)
    assert parse_since(f"{count}{unit}", now) == Within(age_ns, now)


@pytest.mark.parametrize(
    ("wall_s", "steady_s", "asleep_s", "boot", "age_s"),
    [
        (1060, 160, 0, "boot", 60),
        (1060 + YEAR_S, 160, 0, "boot", 60),  # the wall clock was set
        (1060 - YEAR_S, 160, 0, "boot", 60),
        (1960, 160, 900, "boot", 960),  # asleep for a quarter of an hour
        (1060, 160, 900, "boot", 60),  # asleep before the record
        (1060 + YEAR_S, 160, 900, "boot", 960),
        (1060, 50, 0, "other", 60),
        (1060 - YEAR_S, 50, 0, "other", 50),  # no later than this boot
    ],
)
def test_age_is_what_has_passed_whatever_the_wall_clock_says(
    wall_s: int, steady_s: int, asleep_s: int, boot: str, age_s: int
) -> None:
    row = {"at_ns": 1000 * 10**9, "monotonic_ns": 100 * 10**9, "boot_id": "boot"}
    now = Now(wall_s * 10**9, steady_s * 10**9, asleep_s * 10**9, boot)
    assert now.age_ns(row) == age_s * 10**9


def test_senders_of_long_ago_are_forgotten(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gateway and each vsm is a sender of its own, for months."""
    store, now_ns = opened(), time.time_ns()
    with monkeypatch.context() as then:
        then.setattr(time, "time_ns", lambda: now_ns - 8 * DAY_NS)
        store.append("old", 3, [event(now_ns)])
    store.append("new", 5, [event(now_ns)])
    store.trim(now_ns, 100)
    assert (store.last_sequence("old"), store.last_sequence("new")) == (0, 5)
