"""The resource board: samples in, the same samples out, never half of one, and how large it is."""

import asyncio
import mmap
import os
import signal
import time
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.board import heartbeat, resources
from vsm.board.demand import DemandBoard
from vsm.board.memory import BoardError, create
from vsm.board.resources import (
    CPU_UNIT,
    LIMITS,
    MEMORY_UNIT,
    ResourceBoard,
    ResourceReader,
    Sample,
    pack,
    unpack,
)
from vsm.core.channels import CHANNELS
from vsm.governance import pressure, resource_samples
from vsm.governance.resource_samples import Look, ResourceSamples, together

MIB = 1 << 20
samples = st.builds(
    Sample,
    st.none() | st.integers(0, 1 << 41),
    st.none() | st.floats(0, 1000),
    st.none() | st.integers(0, 100_000),
    st.sets(st.sampled_from(LIMITS)).map(lambda met: tuple(one for one in LIMITS if one in met)),
)


@given(samples)
def test_a_word_holds_a_sample_to_its_units_and_at_most_what_fits(sample: Sample) -> None:
    word = pack(sample)
    assert 0 < word < 1 << 64
    found = unpack(word)
    assert found is not None
    assert found.met == sample.met
    for value, kept, unit, most in (
        (sample.memory_bytes, found.memory_bytes, MEMORY_UNIT, (1 << 24) - 2),
        (sample.cpu, found.cpu, CPU_UNIT, (1 << 16) - 2),
        (sample.processes, found.processes, 1, (1 << 16) - 2),
    ):
        if value is None or kept is None:
            assert kept is value
        else:
            assert abs(kept - min(value, most * unit)) <= unit


def test_reader_sees_the_newest_sample_of_those_that_have_one() -> None:
    board = ResourceBoard(["git", "time", "idle"])
    reader = ResourceReader(board.fileno(), pid=os.getpid())
    assert reader.read(board.names) == {}
    assert reader.stamp_ns == 0
    git = Sample(64 * MIB, 0.5, 7, ("memory",))
    board.put("git", Sample(1 * MIB, None, None))
    board.put("git", git)
    board.put("time", Sample(None, None, None))
    board.put("nobody", git)
    board.stamp(5)
    assert reader.read(["git", "time", "idle", "nobody"]) == {
        "git": git, "time": Sample(None, None, None),
    }  # fmt: skip
    assert reader.stamp_ns == 5
    rows = reader.as_array()
    (row,) = rows[rows["key"] == zlib.crc32(b"git")]
    assert (row["memory_bytes"], row["cpu"], row["processes"]) == (64 * MIB, 0.5, 7)
    assert (row["met_memory"], row["met_cpu"]) == (True, False)
    assert np.isnan(rows["memory_bytes"]).sum() == 2
    board.put("git", None)
    assert set(reader.read(board.names)) == {"time"}
    reader.close()
    board.close()


@pytest.mark.parametrize(
    "attack",
    [
        lambda fd: os.ftruncate(fd, 8),
        lambda fd: os.ftruncate(fd, 1 << 20),
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: mmap.mmap(fd, 64),
    ],
)
def test_nobody_else_can_write_or_resize_it(attack: Callable[[int], object]) -> None:
    board = ResourceBoard(["git"])
    with pytest.raises(OSError, match="Operation not permitted"):
        attack(board.fileno())
    board.close()


def test_what_is_no_board_or_another_writers_is_refused() -> None:
    board = ResourceBoard(["git"])
    with pytest.raises(BoardError, match="pid"):
        ResourceReader(board.fileno(), pid=1)
    board.close()
    fd, mapping = create("x", resources.size_bytes(1))
    with pytest.raises(BoardError, match="version 0"):
        ResourceReader(fd)
    mapping.close()
    os.close(fd)


def test_variety_state_stays_within_what_is_promised() -> None:
    def whole(size: int) -> int:
        names = [f"integration{number}" for number in range(size)]
        demand, used = DemandBoard(1, names), ResourceBoard(names)
        found = demand.row_bytes + used.bytes + heartbeat.CHANNEL_BYTES * len(CHANNELS)
        demand.close()
        used.close()
        return found

    empty = whole(0)
    assert empty <= 5000
    assert [whole(size) - empty for size in (1, 10, 100)] == [2300, 23_000, 230_000]
    assert whole(100) <= 235_000


def _sample_for_ever(board: ResourceBoard) -> None:
    """Whole words obey: memory, processors and tasks are all the same number."""
    number = 0
    while True:
        number = number % 60_000 + 1
        board.put("git", Sample(number * MEMORY_UNIT, number * CPU_UNIT, number))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_sample_is_torn_under_a_hot_writer_nor_after_it_was_killed() -> None:
    board = ResourceBoard(["another", "git", "odd"])
    reader = ResourceReader(board.fileno())
    writer = os.fork()
    if not writer:
        try:
            _sample_for_ever(board)
        finally:
            os._exit(1)
    seen: set[int] = set()
    end = time.monotonic() + 60
    try:
        while len(seen) < 300:
            assert time.monotonic() < end
            for sample in reader.read(["git"]).values():
                seen.add(_number_of(sample))
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    _number_of(reader.read(["git"])["git"])
    reader.close()
    board.close()


def _number_of(sample: Sample) -> int:
    assert sample.memory_bytes is not None
    assert sample.cpu is not None
    number = sample.memory_bytes // MEMORY_UNIT
    assert (round(sample.cpu / CPU_UNIT), sample.processes) == (number, number)
    return number


def look(at_s: float, met: float = 0.0, **used: float) -> Look:
    return Look(at_s, pressure.Sample(used, {"memory": met}))


def test_instances_add_up_and_processors_are_those_since_the_look_before() -> None:
    first = look(10.0, memory=3 * MIB, cpu=5.0, processes=2.0)
    pairs = [
        (look(8.0, memory=9 * MIB, cpu=4.0), first),
        (None, look(10.0, met=3.0, memory=1 * MIB, cpu=70.0, processes=1.0)),  # new: no rate yet
    ]
    assert together(pairs) == Sample(4 * MIB, 0.5, 3, ())
    later = look(12.0, met=1.0, memory=0.0)
    assert together([(first, later)]) == Sample(0, None, None, ("memory",))
    assert together([(first, look(11.0, cpu=1.0))]).cpu == 0.0, "a new group counts anew"


def test_rows_come_and_go_with_integrations_by_another_board(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource_samples.pressure, "sample", lambda group: group.sample)
    groups = [SimpleNamespace(sample=pressure.Sample({"memory": MIB}, {})) for _ in range(2)]

    def worker(name: str, group: Any) -> Any:
        return SimpleNamespace(worker_id=name, provided=SimpleNamespace(group=group))

    names = {"git": None, "time": None}
    serving: dict[str, list[Any]] = {
        "git": [worker("git-1", groups[0]), worker("git-2", groups[0]), worker("g", None)],
        "gone": [worker("gone-1", groups[1])],
    }
    it = ResourceSamples(lambda: names, lambda: serving, 10.0)
    before = it.board()
    assert it.dump()["integrations"] == {}
    assert it.dump()["sampled_s_ago"] is None
    it.look(100.0)
    assert it.board() is before
    assert it.dump()["integrations"]["git"]["memory_bytes"] == MIB, "forks are in one group"
    held = os.dup(before.fileno())
    names["late"] = None
    serving["late"] = serving["gone"]
    it.look(110.0)
    assert it.board() is not before, "none changes its size"
    assert set(it.dump()["integrations"]) == {"git", "late"}
    reader = ResourceReader(held)
    assert set(reader.read(["git", "late"])) == {"git"}, "who reads the last one still can"
    reader.close()
    os.close(held)
    del names["late"]
    assert it.dump()["bytes"] == before.bytes
    it.stop()


def test_look_that_finds_no_memory_for_a_board_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        names = {"git": None}
        it = ResourceSamples(lambda: names, dict, 10.0)
        it.start()
        names["late"] = None

        def none(_names: object) -> None:
            raise OSError("too many open files")

        monkeypatch.setattr(resource_samples, "ResourceBoard", none)
        before = it._timer
        with pytest.raises(OSError, match="too many"):
            it._look_again()
        assert it._timer is not before
        monkeypatch.undo()
        it._look_again()
        assert it.board().names == {"git", "late"}
        it.stop()

    asyncio.run(main())
