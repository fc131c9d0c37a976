"""Counts over a restart of the supervisor; the service manager is this test."""

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vsm.board.demand import HEADER_BYTES, MAX_SEGMENTS, ROW_BYTES, VERSION, DemandBoard
from vsm.board.relay import DemandRelay
from vsm.board.store import DemandStore
from vsm.core.demand import OK
from vsm.service import notify
from vsm.service import unit_files as service

EPOCH = 7


class Manager:
    """Keeps what it is told to, and hands it over to the next."""

    def __init__(self, heard: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard = heard
        self.monkeypatch = monkeypatch
        self.kept: list[tuple[str, int]] = []
        self.did: list[str] = []

    def hear(self) -> None:
        """Do what was asked for until now, in order."""
        while True:
            try:
                said, fds, _, _ = socket.recv_fds(self.heard, 4096, 64)
            except BlockingIOError:
                return
            what, name = said.decode().split("\n")
            name = name.removeprefix("FDNAME=")
            self.did.append(what)
            if what == "FDSTORE=1":
                self.kept += [(name, fd) for fd in fds]
            else:
                self._remove(name)

    def _remove(self, name: str) -> None:
        for one in [one for one in self.kept if one[0] == name]:
            self.kept.remove(one)
            os.close(one[1])

    def names(self) -> set[str]:
        self.hear()
        return {name for name, _ in self.kept}

    def restart(self) -> DemandRelay:
        """What the next supervisor begins with."""
        self.hear()
        self.did.clear()
        self.monkeypatch.setattr(notify, "_given", [(n, os.dup(fd)) for n, fd in self.kept])
        return DemandRelay()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "n"))
        heard.setblocking(False)
        monkeypatch.setattr(notify, "_kept", {"NOTIFY_SOCKET": str(tmp_path / "n")})
        monkeypatch.setattr(notify, "_given", [])
        made = Manager(heard, monkeypatch)
        yield made
        made.hear()
        for _, fd in made.kept:
            os.close(fd)


@pytest.fixture
def board() -> Iterator[DemandBoard]:
    it = DemandBoard(EPOCH, ["git"])
    it.rows["git"].count("log", OK, time.perf_counter_ns())
    yield it
    it.close()


def announce(relay: DemandRelay, board: DemandBoard) -> None:
    assert relay.announced([os.dup(fd) for fd in board.filenos()], epoch=EPOCH, pid=os.getpid())


def events(relay: DemandRelay) -> int:
    row = relay.dump()["integrations"].get("git")
    return row["events"] if row else 0


def test_counts_of_a_dead_supervisor_come_back(manager: Manager, board: DemandBoard) -> None:
    before = DemandRelay()
    announce(before, board)
    board.rows["git"].count("log", OK, time.perf_counter_ns())  # what is stored is the live board
    before.close()
    after = manager.restart()
    assert (events(after), after.store.refused) == (2, [])
    message, fds = after.message()
    assert (message.epoch, len(fds)) == (EPOCH, 1)
    assert before.age_s <= after.age_s, "counting began with the first of them"
    assert manager.names() == {manager.kept[0][0]}, "it stays stored until a new board is"
    after.close()


def test_a_new_board_is_stored_before_the_old_one_goes(
    manager: Manager, board: DemandBoard
) -> None:
    relay = DemandRelay()
    announce(relay, board)
    first = manager.names()
    manager.did.clear()
    board.add(["time"])  # the first segment is in both boards
    announce(relay, board)
    second = manager.names()
    assert manager.did == ["FDSTORE=1", "FDSTOREREMOVE=1"]
    assert not first & second
    assert len(manager.kept) == 2
    relay.close()


def test_stored_memory_is_another_open_file_and_read_only(
    manager: Manager, board: DemandBoard
) -> None:
    """A manager keeps one open file once: the same one under a new name would be dropped."""
    relay = DemandRelay()
    announce(relay, board)
    manager.hear()
    ((_, fd),) = manager.kept
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert fcntl.fcntl(board.filenos()[0], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    relay.close()


def test_the_newest_of_several_is_taken_and_the_rest_goes(
    manager: Manager, board: DemandBoard
) -> None:
    relay, slow = DemandRelay(), DemandStore()
    announce(relay, board)
    other = DemandBoard(EPOCH + 1, ["git"])
    slow.keep(other.filenos(), epoch=EPOCH + 1, began_s=0)  # killed before it took the first out
    assert len(manager.names()) == 2
    after = manager.restart()
    assert (events(after), after.message()[0].epoch) == (0, EPOCH + 1)
    assert len(manager.names()) == 1
    for one in (relay, after, other):
        one.close()


def unsealed() -> list[int]:
    fd = os.memfd_create("false", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, HEADER_BYTES + ROW_BYTES)
    return [fd]


def another_epoch() -> list[int]:
    board = DemandBoard(EPOCH + 1, ["git"])
    fds = [os.dup(fd) for fd in board.filenos()]
    board.close()
    return fds


def too_many() -> list[int]:
    board = DemandBoard(EPOCH, ["git"])
    fds = [os.dup(board.filenos()[0]) for _ in range(MAX_SEGMENTS + 1)]
    board.close()
    return fds


def several_writers() -> list[int]:
    """Two boards of the epoch, of which one says that another process wrote it."""
    first = DemandBoard(EPOCH, ["git"])
    second = DemandBoard(EPOCH, ["git"])
    struct.pack_into("<Q", second.segments[0]._map, 16, os.getpid() + 1)
    fds = [os.dup(board.filenos()[0]) for board in (first, second)]
    first.close()
    second.close()
    return fds


def of_another_version() -> list[int]:
    board = DemandBoard(EPOCH, ["git"])
    struct.pack_into("<I", board.segments[0]._map, 4, VERSION + 1)
    fds = [os.dup(board.filenos()[0])]
    board.close()
    return fds


def a_pipe() -> list[int]:
    return list(os.pipe())


@pytest.mark.parametrize(
    "false",
    [unsealed, another_epoch, of_another_version, too_many, several_writers, a_pipe],
    ids=lambda make: make.__name__,
)
def test_what_cannot_be_believed_is_refused_and_the_older_one_is_taken(
    manager: Manager, board: DemandBoard, false: Callable[[], list[int]]
) -> None:
    relay = DemandRelay()
    announce(relay, board)
    fds = false()
    assert notify.store(f"demand-{EPOCH}-0-{time.monotonic_ns()}", fds)
    for fd in fds:
        os.close(fd)
    after = manager.restart()
    assert events(after) == 1
    assert len(after.store.refused) == 1
    assert len(manager.names()) == 1
    for one in (relay, after):
        one.close()


@pytest.mark.parametrize(
    "name", ["demand-7-0", "demand-7-0-0-0", "demand--1-0-0", "x", "demand-²-0-0"]
)
def test_names_of_another_version_are_refused(
    manager: Manager, board: DemandBoard, name: str
) -> None:
    assert notify.store(name, board.filenos())
    after = manager.restart()
    assert (events(after), len(after.store.refused), manager.names()) == (0, 1, set())
    after.close()


def test_no_s1_keeps_the_manager_busy(manager: Manager, board: DemandBoard) -> None:
    relay = DemandRelay()
    for _ in range(600):
        announce(relay, board)
        manager.hear()
    assert 256 <= manager.did.count("FDSTORE=1") < 400
    assert len(manager.names()) == 1
    relay.close()


def test_without_a_manager_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, board: DemandBoard
) -> None:
    monkeypatch.setattr(notify, "_kept", {})
    relay = DemandRelay()
    announce(relay, board)
    assert events(relay) == 1
    relay.close()


def test_the_unit_has_room_for_two_boards() -> None:
    assert service.MAX_STORED >= 2 * MAX_SEGMENTS


def test_counting_did_not_begin_in_the_future(manager: Manager, board: DemandBoard) -> None:
    """S4 dates what it finds by it, and an age below nothing is no message."""
    ahead_ns = time.monotonic_ns() + 10**15
    assert notify.store(f"demand-{EPOCH}-{ahead_ns}-{time.monotonic_ns()}", board.filenos())
    after = manager.restart()
    assert after.age_s >= 0
    assert after.message()[0].age_s >= 0
    after.close()


def test_board_of_another_process_than_the_s1_that_runs_is_refused(board: DemandBoard) -> None:
    relay = DemandRelay()
    fds = [os.dup(fd) for fd in board.filenos()]
    assert not relay.announced(fds, epoch=EPOCH, pid=os.getpid() + 1)
    assert (relay.refused, events(relay)) == (1, 0)
    relay.close()
