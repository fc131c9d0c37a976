"""Age is not judged by a wall clock that may be wrong."""

import contextlib
import socket
import time
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.core.age_clock import HOUR_NS, SETTLED_NS, TOLERANCE_NS, AgeClock
from vsm.journal import process as journal
from vsm.journal.reader import Filter, JournalReader
from vsm.journal.records import Event, Retention
from vsm.journal.store import JournalStore

DAY_NS = 24 * HOUR_NS
NOW_NS = 20_000 * DAY_NS
LEAPS = st.integers(min_value=-50_000 * DAY_NS, max_value=50_000 * DAY_NS)
STEPS = st.lists(st.tuples(st.integers(1, HOUR_NS), LEAPS), max_size=50)


def test_a_clock_that_goes_steadily_is_the_wall_clock() -> None:
    clock = AgeClock([(NOW_NS, 0)])
    for steady_ns in range(0, 400 * DAY_NS, DAY_NS):
        assert clock.now_ns(NOW_NS + steady_ns, steady_ns) == NOW_NS + steady_ns


def test_a_leap_counts_only_after_it_stood_for_an_hour() -> None:
    clock, leap_ns = AgeClock([(NOW_NS, 0)]), 1000 * DAY_NS
    assert clock.now_ns(NOW_NS + leap_ns, 0) == NOW_NS
    assert clock.now_ns(NOW_NS + leap_ns + SETTLED_NS - 1, SETTLED_NS - 1) == (
        NOW_NS + SETTLED_NS - 1
    )
    stood_ns = NOW_NS + leap_ns + SETTLED_NS
    assert clock.now_ns(stood_ns, SETTLED_NS) == stood_ns
    assert clock.now_ns(stood_ns + 5, SETTLED_NS + 5) == stood_ns + 5


def test_a_leap_that_goes_on_leaping_never_stands() -> None:
    clock = AgeClock([(NOW_NS, 0)])
    for minute in range(10_000):
        steady_ns = minute * HOUR_NS // 60
        assert clock.now_ns(NOW_NS + minute * 300 * DAY_NS, steady_ns) <= (
            NOW_NS + steady_ns + TOLERANCE_NS
        )


def test_a_clock_that_was_put_right_begins_anew() -> None:
    clock, leap_ns = AgeClock([(NOW_NS, 0)]), 1000 * DAY_NS
    half_ns = SETTLED_NS // 2
    for turn in range(5):
        steady_ns = turn * SETTLED_NS
        assert clock.now_ns(NOW_NS + leap_ns + steady_ns, steady_ns) == NOW_NS + steady_ns
        right_ns = NOW_NS + steady_ns + half_ns
        assert clock.now_ns(right_ns, steady_ns + half_ns) == right_ns


def test_after_time_switched_off_age_goes_on_from_the_last_record_for_an_hour() -> None:
    clock, off_ns = AgeClock([(NOW_NS, 0), (NOW_NS + 9 * DAY_NS, 3)]), 9 * DAY_NS
    assert clock.now_ns(NOW_NS + off_ns, 10) == NOW_NS + 10
    assert clock.now_ns(NOW_NS + off_ns + SETTLED_NS, 10 + SETTLED_NS) == NOW_NS + off_ns + (
        SETTLED_NS
    )


def test_without_a_record_the_first_reading_counts() -> None:
    clock = AgeClock()
    assert clock.now_ns(NOW_NS, 7) == NOW_NS
    assert clock.now_ns(NOW_NS + 100 * DAY_NS, 8) == NOW_NS + 1


@given(STEPS)
def test_it_is_never_ahead_of_the_wall_clock(steps: list[tuple[int, int]]) -> None:
    clock, steady_ns = AgeClock([(NOW_NS, 0)]), 0
    for step_ns, leap_ns in steps:
        steady_ns += step_ns
        wall_ns = NOW_NS + steady_ns + leap_ns
        assert clock.now_ns(wall_ns, steady_ns) <= wall_ns


@given(STEPS)
def test_no_leap_that_is_undone_within_the_hour_ages_anything(steps: list[tuple[int, int]]) -> None:
    clock, steady_ns = AgeClock([(NOW_NS, 0)]), 0
    for _, leap_ns in steps:
        steady_ns += SETTLED_NS // 2
        most_ns = NOW_NS + steady_ns + TOLERANCE_NS
        assert clock.now_ns(NOW_NS + steady_ns + leap_ns, steady_ns) <= most_ns
        steady_ns += SETTLED_NS // 2 - 1
        assert clock.now_ns(NOW_NS + steady_ns, steady_ns) == NOW_NS + steady_ns


# ---- the journal -------------------------------------------------------------------------------


class Clocks:
    """What the journal process reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_ns, self.steady_ns = NOW_NS, HOUR_NS
        fake = types.SimpleNamespace(
            time_ns=lambda: self.wall_ns,
            monotonic_ns=lambda: self.steady_ns,
            monotonic=time.monotonic,
        )
        monkeypatch.setattr(journal, "time", fake)

    def go(self, span_ns: int) -> None:
        self.wall_ns += span_ns
        self.steady_ns += span_ns


def trimmed(path: Path, boot: str, clocks: Clocks, *spans_ns: int) -> int:
    """Records left after a journal process of this boot trimmed, and once more after each span."""
    here, there = socket.socketpair()
    retention = Retention(age_ns=30 * DAY_NS)
    with here, there, contextlib.closing(JournalStore(path, boot, retention)) as store:
        if boot == "now":
            store.append("me", 1, [at(clocks.wall_ns, clocks.steady_ns)])
        process = journal.JournalProcess(here, path, retention, boot)
        for span_ns in (0, *spans_ns):
            clocks.go(span_ns)
            process._trim_at_s = 0
            process._trim(store, time.monotonic())
    with JournalReader(path) as reader:
        return len(reader.newest("events", Filter(), 100))


def at(wall_ns: int, steady_ns: int) -> Event:
    return Event(wall_ns, steady_ns, "supervisor", "vsm.started", None, None, 1, "{}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with two records of an earlier boot, ten days apart, and none too old."""
    path = tmp_path / "journal.db"
    with contextlib.closing(JournalStore(path, "before", Retention())) as store:
        old = [at(NOW_NS - 11 * DAY_NS, 5), at(NOW_NS - DAY_NS, 10 * DAY_NS)]
        store.append("me", 1, old)
    return path


def test_a_clock_that_leaps_and_is_put_right_deletes_no_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(monkeypatch)
    clocks.wall_ns += 400 * DAY_NS  # before the first record of this boot
    assert trimmed(path, "now", clocks, HOUR_NS // 3, HOUR_NS // 3) == 3
    clocks.wall_ns -= 400 * DAY_NS
    assert trimmed(path, "now", clocks, 2 * HOUR_NS) == 4


def test_a_restart_of_the_journal_does_not_make_a_leap_true(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(monkeypatch)
    assert trimmed(path, "now", clocks) == 3
    clocks.wall_ns += 400 * DAY_NS
    for restarts in range(1, 4):
        assert trimmed(path, "now", clocks) == 3 + restarts


def test_a_machine_that_was_off_for_long_keeps_its_history_for_an_hour_and_then_trims(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(monkeypatch)
    clocks.wall_ns += 25 * DAY_NS
    assert trimmed(path, "now", clocks, HOUR_NS // 2) == 3
    assert trimmed(path, "now", clocks, HOUR_NS) == 3, "the older one has gone, two are new"


def test_without_a_leap_age_is_age(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    assert trimmed(path, "now", clocks, *[DAY_NS] * 20) == 2
