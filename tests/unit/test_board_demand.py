"""The demand board: counts in, the same counts out, in another process and after a death."""

import errno
import itertools
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from operations import lines_run

from vsm.board.demand import (
    HEADER_BYTES,
    LABELS_BYTES,
    MASK,
    MAX_ROWS,
    MAX_SEGMENTS,
    ROW_BYTES,
    USED,
    DemandBoard,
    Segment,
    row_dtype,
)
from vsm.board.memory import BoardError
from vsm.board.reader import Demand, DemandReader, Row, SegmentReader, as_array
from vsm.core.demand import (
    CLASSES,
    LATENCY_BUCKETS,
    LATENCY_SHIFT,
    NOBODY,
    OK,
    OUTCOMES,
    OVERFLOW,
    TIMEOUT,
    TOOL_ERROR,
    UNSERVED,
    bucket_limit_s,
    latency_bucket,
    short_label,
)


@pytest.fixture
def board() -> Iterator[DemandBoard]:
    it = DemandBoard(7, ["git", "time"])
    yield it
    it.close()


def totals(board: DemandBoard) -> dict[str, Demand]:
    reader = DemandReader([os.dup(fd) for fd in board.filenos()], epoch=7, pid=os.getpid())
    try:
        return reader.totals()
    finally:
        reader.close()


def count(board: DemandBoard, name: str, label: str, outcome: int = OK, times: int = 1) -> None:
    for _ in range(times):
        board.rows[name].count(label, outcome, time.perf_counter_ns())


def test_reader_finds_what_was_counted(board: DemandBoard) -> None:
    count(board, "git", "log", times=3)
    count(board, "git", "log", TOOL_ERROR)
    count(board, "git", "diff", TIMEOUT, times=2)
    count(board, NOBODY, "translate", UNSERVED)
    board.rows["git"].cancel()
    found = totals(board)
    assert set(found) == {"git", "time", NOBODY}
    assert found["git"].classes == {"log": [3, 1, 0, 0, 0, 0], "diff": [0, 0, 0, 2, 0, 0]}
    assert found["git"].cancelled == 1
    assert sum(found["git"].latency) == found["git"].events == 6
    assert board.rows["git"].outcomes() == dict(zip(OUTCOMES, [3, 1, 0, 2, 0, 0], strict=True))
    assert found["time"].classes == {}
    assert found[NOBODY].classes == {"translate": [0, 0, 0, 0, 0, 1]}


def test_one_integration_costs_what_the_documentation_says() -> None:
    assert row_dtype().itemsize == ROW_BYTES <= 2300
    boards = [DemandBoard(1, [f"i{n}" for n in range(size)]) for size in (0, 1, 10, 100)]
    assert [b.row_bytes - boards[0].row_bytes for b in boards] == [
        0, ROW_BYTES, 10 * ROW_BYTES, 100 * ROW_BYTES
    ]  # fmt: skip
    assert boards[0].row_bytes == HEADER_BYTES + ROW_BYTES
    for board in boards:
        board.close()


def test_structured_array_shows_the_same_counts(board: DemandBoard) -> None:
    count(board, "git", "log", times=5)
    mapping, rows = as_array(board.filenos()[0])
    array = np.asarray(rows)
    git = array[array["name"] == b"git"][0]
    slot = git["slots"][int(git["latest"]) & 1]
    assert (git["claimed"], slot["events"], slot["counts"][1, OK]) == (git["latest"], 5, 5)
    with pytest.raises(ValueError, match="read-only"):
        array["claimed"] = 0
    del array, git, slot, rows
    mapping.close()


def test_classes_beyond_a_rows_room_share_one(board: DemandBoard) -> None:
    for number in range(CLASSES + 10):
        count(board, "git", f"t{number}")
    found = totals(board)["git"].classes
    assert len(found) == CLASSES
    assert found[OVERFLOW] == [11, 0, 0, 0, 0, 0]  # it is one of the classes itself
    for number in range(CLASSES):
        count(board, "time", f"{number:03}" * 9)
    found = totals(board)["time"].classes
    assert sum(len(label) + 1 for label in found) <= LABELS_BYTES
    assert sum(map(sum, found.values())) == CLASSES


def test_long_labels_are_shortened_and_stay_distinct(board: DemandBoard) -> None:
    first, second = "résumé of the whole long document", "résumé of the whole long documents"
    count(board, "git", first)
    count(board, "git", second, times=2)
    found = totals(board)["git"].classes
    assert sorted(row[OK] for row in found.values()) == [1, 2]
    assert short_label(first).decode() in found


def test_latency_falls_into_the_bucket_that_its_limits_say(board: DemandBoard) -> None:
    for bucket in range(LATENCY_BUCKETS - 1):
        limit_s = bucket_limit_s(bucket)
        assert limit_s is not None
        limit_ns = round(limit_s * 1e9)
        assert (latency_bucket(limit_ns - 1), latency_bucket(limit_ns)) == (bucket, bucket + 1)
    assert bucket_limit_s(LATENCY_BUCKETS - 1) is None
    board.rows["git"].count("slow", OK, time.perf_counter_ns() - (3 << LATENCY_SHIFT))
    board.rows["git"].count("ages", OK, time.perf_counter_ns() - 10**12)
    latency = totals(board)["git"].latency
    assert (latency[2], latency[LATENCY_BUCKETS - 1]) == (1, 1)


def test_growth_is_by_new_segments_and_leaves_with_its_integrations(board: DemandBoard) -> None:
    before, pages = board.row_bytes, board.page_bytes
    first = board.filenos()
    assert board.add(["late"])
    assert board.filenos()[: len(first)] == first
    count(board, "late", "x")
    assert totals(board)["late"].events == 1
    assert board.remove("late")
    assert (board.row_bytes, board.page_bytes, board.filenos()) == (before, pages, first)
    assert not board.add(["git"])


def test_many_segments_become_one_and_no_count_is_lost(board: DemandBoard) -> None:
    count(board, "git", "log", times=3)
    for number in range(3 * MAX_SEGMENTS):
        board.add([f"extra{number}"])
        count(board, f"extra{number}", "x", times=number + 1)
        assert len(board.filenos()) < MAX_SEGMENTS
    count(board, "git", "log")
    found = totals(board)
    assert found["git"].classes == {"log": [4, 0, 0, 0, 0, 0]}
    assert all(found[f"extra{n}"].events == n + 1 for n in range(3 * MAX_SEGMENTS))


def test_memory_is_given_back_when_many_integrations_leave(board: DemandBoard) -> None:
    count(board, "git", "log", times=3)
    rows, pages = board.row_bytes, board.page_bytes
    for number in range(60):
        board.add([f"extra{number}"])
    moved = [board.remove(f"extra{number}") for number in range(60)]
    assert any(moved), "readers must hear of it"
    assert (board.row_bytes, board.page_bytes) == (rows, pages)
    assert totals(board)["git"].classes == {"log": [3, 0, 0, 0, 0, 0]}


def _log_row(events: int, slower: int = 0) -> Row:
    latency = [events, slower] + [0] * (LATENCY_BUCKETS - 2)
    return Row("git", 1, events, 0, ("log",), [events, 0, 0, 0, 0, 0], latency)


def test_counts_that_cannot_be_are_not_inherited(board: DemandBoard) -> None:
    assert not board.rows["git"].add(_log_row(MASK + 1))
    assert not board.rows["git"].add(_log_row(5, slower=1))
    assert totals(board)["git"].events == 0


def test_full_counters_go_on_in_another_place(board: DemandBoard) -> None:
    row = board.rows["git"]
    assert row.add(_log_row(MASK - 1))
    count(board, "git", "log", times=3)
    assert totals(board)["git"].classes == {"log": [MASK + 2, 0, 0, 0, 0, 0]}
    assert row.add(_log_row(MASK))
    assert totals(board)["git"].classes["log"][OK] == 2 * MASK + 2
    for number in range(2 * MAX_SEGMENTS):
        board.add([f"extra{number}"])
    assert totals(board)["git"].classes["log"][OK] == 2 * MASK + 2
    board.remove("git")
    assert "git" not in totals(board)


def test_successor_begins_with_its_predecessors_counts(board: DemandBoard) -> None:
    count(board, "git", "log", times=3)
    count(board, NOBODY, "translate", UNSERVED)
    board.rows["git"].cancel()
    successor = DemandBoard(8, ["git", "new"])
    count(successor, "git", "log")
    count(successor, "git", "diff")
    old = DemandReader([os.dup(fd) for fd in board.filenos()], epoch=7, pid=os.getpid())
    successor.inherit(old.rows())
    old.close()
    reader = DemandReader([os.dup(fd) for fd in successor.filenos()], epoch=8, pid=os.getpid())
    found = reader.totals()
    reader.close()
    assert found["git"].classes == {"log": [4, 0, 0, 0, 0, 0], "diff": [1, 0, 0, 0, 0, 0]}
    assert found["git"].cancelled == 1
    assert found[NOBODY].classes == {"translate": [0, 0, 0, 0, 0, 1]}
    assert sum(found["git"].latency) == 5
    successor.close()


@pytest.mark.parametrize(
    "attack",
    [
        lambda fd: os.ftruncate(fd, HEADER_BYTES),
        lambda fd: os.ftruncate(fd, 1 << 20),
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: mmap.mmap(fd, HEADER_BYTES),
    ],
)
def test_nobody_else_can_write_or_resize_a_segment(
    board: DemandBoard, attack: Callable[[int], object]
) -> None:
    with pytest.raises(OSError, match="Operation not permitted"):
        attack(board.filenos()[0])


@pytest.mark.parametrize(("epoch", "pid"), [(8, None), (7, 1)])
def test_board_of_another_incarnation_is_refused(
    board: DemandBoard, epoch: int, pid: int | None
) -> None:
    with pytest.raises(BoardError, match="epoch 7"):
        DemandReader([os.dup(board.filenos()[0])], epoch=epoch, pid=pid)


def test_memory_that_is_no_demand_board_is_refused() -> None:
    from vsm.board.memory import create

    fd, mapping = create("x", HEADER_BYTES + ROW_BYTES)
    with pytest.raises(BoardError, match="version 0"):
        DemandReader([fd], epoch=1, pid=None)
    mapping.close()
    fd = os.memfd_create("x")
    os.ftruncate(fd, HEADER_BYTES)
    with pytest.raises(BoardError, match="seals"):
        DemandReader([fd], epoch=1, pid=None)


def _count_for_ever(board: DemandBoard) -> None:
    """Whole rows obey: every class of a round was counted as often, but for those still to come."""
    row = board.rows["git"]
    labels = [f"tool{number}" for number in range(8)]
    while True:
        for label in labels:
            row.count(label, OK, time.perf_counter_ns())


def _is_whole(demand: Demand) -> bool:
    counts = [demand.classes.get(f"tool{number}", [0] * len(OUTCOMES))[OK] for number in range(8)]
    in_order = all(a >= b for a, b in itertools.pairwise(counts))
    return in_order and counts[0] - counts[-1] <= 1 and sum(demand.latency) == sum(counts)


def _fork(board: DemandBoard) -> int:
    pid = os.fork()
    if not pid:
        try:
            _count_for_ever(board)
        finally:
            os._exit(1)
    return pid


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_rows_are_whole_while_a_hot_writer_counts_and_after_it_was_killed() -> None:
    killed_at = set()
    for round_number in range(12):
        board = DemandBoard(7, ["git"])
        reader = DemandReader([os.dup(fd) for fd in board.filenos()], epoch=7, pid=os.getpid())
        writer = _fork(board)
        try:
            seen = 0
            for _ in range(400):
                demand = reader.totals()["git"]
                assert _is_whole(demand), demand.classes
                assert demand.events >= seen, "counts never run back"
                seen = demand.events
            while not seen:
                seen = reader.totals()["git"].events
            time.sleep(0.0005 * round_number)  # not to wait for anything: to kill anywhere
        finally:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
        left = reader.totals()["git"]
        assert _is_whole(left)
        assert left.events >= seen
        killed_at.add(left.events)
        successor = DemandBoard(8, ["git"])
        successor.inherit(reader.rows())
        assert successor.rows["git"].events == left.events
        successor.close()
        reader.close()
        board.close()
    assert len(killed_at) > 1


def test_without_the_protocol_rows_would_be_torn() -> None:
    """The control: a reader that looks at both slots' words one by one sees half-written rows."""
    board = DemandBoard(7, ["git"])
    count(board, "git", "log")
    place = board.rows["git"].place
    sequence = place.heads[1]
    place.heads[0] = sequence + 1
    half = len(place.slots[0]) // 2
    place.slots[(sequence + 1) & 1][:half] = b"\xff" * half  # dies here
    found = totals(board)["git"]
    assert found.classes == {"log": [1, 0, 0, 0, 0, 0]}
    place.heads[1] = sequence + 1  # a writer that published it torn is not believed
    assert totals(board).get("git") is None
    board.close()


def test_reader_that_was_overtaken_while_it_copied_reads_again(
    board: DemandBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is in the middle of the slot that the reader took: its first word is still old."""
    count(board, "git", "log")
    place = board.rows["git"].place
    taken = place.heads[1]
    count(board, "git", "log")
    half = len(place.slots[0]) // 2
    reader = SegmentReader(board.filenos()[0])
    truth = SegmentReader._heads
    looks = itertools.count()

    def heads(self: SegmentReader, start: int) -> tuple[int, int]:
        if next(looks):
            return truth(self, start)
        place.heads[0] = taken + 2  # between this look and the next
        place.slots[taken & 1][half:] = b"\xff" * (len(place.slots[0]) - half)
        return taken, taken

    monkeypatch.setattr(SegmentReader, "_heads", heads)
    index = next(i for i in range(reader.rows) if reader._name(_start(i)) == "git")
    looks = itertools.count()
    row = reader.read_row(index)
    assert row is not None
    assert (row.seq, row.events, sum(row.counts)) == (taken + 1, 2, 2)
    reader.close()


def _start(index: int) -> int:
    return HEADER_BYTES + index * ROW_BYTES


class Recorded:
    """Memory that remembers in which order its parts were written."""

    def __init__(self, name: str, order: list[str]) -> None:
        self._name, self._order = name, order

    def __setitem__(self, key: object, value: object) -> None:
        del value
        self._order.append(f"{self._name}[{key}]" if isinstance(key, int) else self._name)


def test_row_is_claimed_then_copied_then_shown() -> None:
    board = DemandBoard(7, ["git"])
    place: Any = board.rows["git"].place
    heads, slots = place.heads, place.slots
    order: list[str] = []
    place.heads = Recorded("heads", order)
    place.slots = (Recorded("slot", order), Recorded("slot", order))
    count(board, "git", "log")
    assert order == ["heads[0]", "slot", "heads[1]"]
    place.heads, place.slots = heads, slots
    board.close()


def test_counting_after_the_end_disturbs_nobody() -> None:
    board = DemandBoard(7, ["git"])
    board.close()
    count(board, "git", "log")
    board.nobody.count("x", UNSERVED, time.perf_counter_ns())
    assert board.filenos() == []


def test_rows_that_are_torn_on_purpose_hold_no_reader_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its readers are the supervisor and S4, which have to beat: looks are few whatever it does."""
    board = DemandBoard(7, [f"i{number}" for number in range(400)])
    count(board, "i399", "log")
    for name, row in board.rows.items():
        if name != "i399":
            row.place.heads[0] = row.place.heads[1] + 9  # for ever in the middle of the slot
    looks, truth = itertools.count(1), SegmentReader._attempt

    def counted(self: SegmentReader, start: int, name: str) -> Row | None:
        next(looks)
        return truth(self, start, name)

    monkeypatch.setattr(SegmentReader, "_attempt", counted)
    assert [row.name for row in SegmentReader(board.filenos()[0]).read()] == ["i399"]
    assert next(looks) < 1000
    board.close()


@pytest.mark.parametrize("sizes", [[MAX_ROWS + 1], [MAX_ROWS, 1], [1] * (MAX_SEGMENTS + 1)])
def test_board_that_is_larger_than_any_real_one_is_refused(sizes: list[int]) -> None:
    segments = [Segment(7, rows) for rows in sizes]
    try:
        fds = [os.dup(segment.fd) for segment in segments]
        with pytest.raises(BoardError):
            DemandReader(fds, epoch=7, pid=os.getpid())
        for fd in fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)
    finally:
        for segment in segments:
            segment.close()


def test_board_that_nothing_is_left_to_map_with_is_given_back(
    board: DemandBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_words: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    fds = [os.dup(fd) for fd in board.filenos()]
    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        DemandReader(fds, epoch=7, pid=os.getpid())
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_row_that_says_it_has_more_classes_than_fit_costs_no_more(board: DemandBoard) -> None:
    count(board, "git", "log")
    place = board.rows["git"].place
    slot = place.slots[place.heads[1] & 1].cast("I")
    slot[USED] = MASK
    reader = SegmentReader(board.filenos()[0])
    rows: list[Row] = []
    assert lines_run(lambda: rows.extend(reader.read())) < 5000
    row = next(row for row in rows if row.name == "git")
    assert len(row.labels) == CLASSES
    assert row.counts[len(OUTCOMES)] == 1


def test_board_whose_header_speaks_of_other_rows_than_there_are_is_refused() -> None:
    segment = Segment(7, 2)
    struct.pack_into("<I", segment._map, 24, 5)
    with pytest.raises(BoardError, match="5 rows"):
        SegmentReader(segment.fd)
    segment.close()
