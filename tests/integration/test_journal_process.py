"""The journal process and its client: durable when acknowledged, whatever happens to either.

`VSM_JOURNAL_KILLS=100 pytest tests/integration/test_journal_process.py` kills it a hundred times.
"""

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from vsm.journal import calls, client, records
from vsm.journal.calls import CallJournal
from vsm.journal.client import JournalClient
from vsm.journal.queue import JournalQueue
from vsm.journal.reader import Filter, JournalReader
from vsm.journal.records import Event, Retention

KILLS = int(os.environ.get("VSM_JOURNAL_KILLS", "25"))
BOUND_S = 30.0
MS_RDONLY, MS_REMOUNT = 1, 32  # linux/mount.h
MNT_DETACH = 2


def rows(path: Path, table: Any = "events") -> list[dict[str, Any]]:
    with JournalReader(path) as reader:
        return reader.newest(table, Filter(), 10**6)


class Raw:
    """A journal process on a bare socket, driven without an event loop."""

    def __init__(self, path: Path) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(BOUND_S)
        retention = Retention()
        numbers = (
            theirs.fileno(),
            path,
            retention.age_ns // 10**9,
            retention.size_bytes,
            "unconfined",
        )
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "vsm.journal.process", *map(str, numbers)],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.PIPE,
        )
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.process.kill()
        self.process.communicate()

    def hello(self, sender: str = "me", acknowledged: int = 0) -> int:
        """Greet; returns how far this sender is on disk."""
        self.sock.send(records.hello_message(sender, acknowledged))
        return int(self.expect(records.Ready).sequence)

    def send(self, first: int, count: int = 1) -> None:
        events = (event(number) for number in range(first, first + count))
        self.sock.send(records.records_message(first, map(records.encode, events)))

    def receive(self) -> Any:
        return records.parse_from_journal(self.sock.recv(65536))

    def expect(self, kind: type) -> Any:
        while True:
            answer = self.receive()
            if type(answer) is kind:
                return answer

    def wait_committed(self, sequence: int) -> None:
        while self.expect(records.Committed).sequence < sequence:
            pass

    def wait(self) -> tuple[int, str]:
        """Wait for its end: the status and what it wrote."""
        _, stderr = self.process.communicate(timeout=BOUND_S)
        return self.process.returncode, stderr.decode()


def event(number: int) -> Event:
    detail = records.event_fields({"n": number, "padding": "x" * 150})
    return Event(time.time_ns(), time.monotonic_ns(), "test", "k", "w", "i", 1, detail)


def written(path: Path) -> list[int]:
    return [row["detail"]["n"] for row in rows(path) if row["source"] == "test"]


def test_nothing_acknowledged_is_lost_by_random_kills(tmp_path: Path) -> None:
    path, rng = tmp_path / "journal.db", random.Random(7)
    acknowledged = sent = 0
    for _ in range(KILLS):
        with Raw(path) as raw:
            resumed = raw.hello()
            assert resumed >= acknowledged, "an acknowledged record is not on disk"
            sent = acknowledged = resumed
            deadline_s = time.monotonic() + rng.uniform(0.0, 0.06)
            while time.monotonic() < deadline_s:
                count = rng.randint(1, 40)
                raw.send(sent + 1, count)
                sent += count
                while select.select([raw.sock], [], [], 0)[0]:
                    answer = raw.receive()
                    assert isinstance(answer, records.Committed)
                    acknowledged = answer.sequence
            raw.process.kill()
    assert acknowledged > KILLS
    with Raw(path) as raw:
        on_disk = raw.hello()
    assert on_disk >= acknowledged
    assert written(path) == list(range(1, on_disk + 1))  # each once, in order


def test_the_end_of_the_link_loses_nothing_that_was_sent(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Raw(path) as raw:
        raw.hello()
        for first in range(1, 2001, 20):
            raw.send(first, 20)
        raw.sock.close()  # with answers unread, as when the supervisor is killed
        assert raw.wait() == (0, "")
    assert written(path) == list(range(1, 2001))
    assert sorted(p.name for p in tmp_path.iterdir() if "wal" in p.name) in ([], ["journal.db-wal"])


def test_signals_to_everybody_do_not_end_it_before_its_link(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Raw(path) as raw:
        raw.hello()
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            raw.process.send_signal(signo)
        raw.send(1)
        raw.wait_committed(1)
        raw.sock.close()
        assert raw.wait()[0] == 0


def test_what_is_sent_twice_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Raw(path) as raw:
        raw.hello()
        raw.send(1, 5)
        raw.send(3, 5)
        raw.wait_committed(7)
    with Raw(path) as raw:
        assert raw.hello() == 7
        assert raw.hello("another") == 0
    assert written(path) == [1, 2, 3, 4, 5, 6, 7]


def test_a_missed_message_is_asked_for_again(tmp_path: Path) -> None:
    with Raw(tmp_path / "journal.db") as raw:
        raw.hello()
        raw.send(1, 2)
        raw.send(5, 2)
        assert raw.expect(records.Resend).sequence == 2
        raw.send(3, 4)
        raw.wait_committed(6)
    assert written(tmp_path / "journal.db") == [1, 2, 3, 4, 5, 6]


def test_garbage_is_recorded_and_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Raw(path) as raw:
        raw.hello()
        raw.sock.send(b"\xff{")
        row = ["e", 1, 1, "test", "k", None, None, 1, "no json"]
        raw.sock.send(records.records_message(1, ['["e",1]', records.json_text(row)]))
        raw.send(3)
        raw.wait_committed(3)
    kinds = [row["kind"] for row in rows(path)]
    assert sorted(set(kinds)) == [
        "journal.invalid_message",
        "journal.invalid_record",
        "journal.refused_record",
        "k",
    ]


def test_empty_messages_and_numbers_beyond_all_bounds_stop_nothing(tmp_path: Path) -> None:
    """The calls' journal hears a gateway that has parsed foreign bytes."""
    with Raw(tmp_path / "j.db") as it:
        it.hello(acknowledged=2**63 - 1)
        it.sock.send(b"")
        it.send(2**63 - 1, 2)
        it.expect(records.Committed)  # that it was invalid
        it.hello("another")
        it.sock.send(b"")
        it.send(1)
        assert it.expect(records.Committed).sequence == 1
        assert it.process.poll() is None


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Raw(path) as first:
        first.hello()
        with Raw(path) as second:
            assert "another process" in second.expect(records.Refused).reason
            status, stderr = second.wait()
            assert status == 4
            assert "another process" in stderr
        first.send(1)
        first.wait_committed(1)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "journal.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with Raw(path) as raw:
        assert "newer than this vsm" in raw.expect(records.Refused).reason
        assert raw.wait()[0] == 4


def test_a_damaged_file_is_moved_aside_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"damaged " * 1000)
    with Raw(path) as raw:
        assert "moved aside" in raw.expect(records.Trouble).reason
        assert raw.hello("me", 41) == 41  # what the old file acknowledged is not asked for again
        raw.send(42)
        raw.wait_committed(42)
    assert written(path) == [42]
    assert rows(path)[0]["kind"] == "journal.moved_aside"
    assert len(list(tmp_path.glob("journal.db.damaged-*"))) == 1


def test_a_deleted_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Raw(path) as raw:
        raw.hello()
        raw.send(1)
        raw.wait_committed(1)
        path.unlink()
        raw.send(2)
        raw.wait_committed(2)
    assert written(path) == [2]
    assert "journal.replaced" in [row["kind"] for row in rows(path)]


def test_it_stays_small(tmp_path: Path) -> None:
    with Raw(tmp_path / "journal.db") as raw:
        raw.hello()
        raw.send(1, 100)
        raw.wait_committed(100)
        text = Path(f"/proc/{raw.process.pid}/smaps_rollup").read_text(encoding="ascii")
    pss_kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    assert pss_kib < 15 * 1024


# ---- full and read-only file systems --------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path, require: Callable[[str, bool, str], None]) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = tmp_path / "disk"
    folder.mkdir()
    made = libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=1m,mode=700") == 0
    require("mounting a tmpfs", made, os.strerror(ctypes.get_errno()))
    yield folder
    libc.umount2(str(folder).encode(), MNT_DETACH)


def test_a_full_disk_is_reported_survived_and_recorded(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    ballast = small_disk / "ballast"
    with Raw(path) as raw:
        raw.hello()
        raw.send(1, 10)
        raw.wait_committed(10)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        raw.send(11, 100)
        assert "full" in raw.expect(records.Trouble).reason
        ballast.unlink()
        raw.wait_committed(110)
    assert written(path) == list(range(1, 111))
    (over,) = [row for row in rows(path) if row["kind"] == "journal.trouble_over"]
    assert "full" in over["detail"]["reason"]


def test_records_that_a_full_disk_swallows_at_the_end_are_counted(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    with Raw(path) as raw:
        raw.hello()
        raw.send(1, 10)
        raw.wait_committed(10)
        with contextlib.suppress(OSError), (small_disk / "b").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        raw.send(11, 100)
        raw.expect(records.Trouble)
        raw.send(111, 50)
        raw.sock.close()
        status, stderr = raw.wait()
    assert status == 1
    assert "150 records lost" in stderr
    assert "full" in stderr


def test_a_read_only_disk_is_waited_out(small_disk: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    target = str(small_disk).encode()
    assert libc.mount(None, target, None, MS_REMOUNT | MS_RDONLY, None) == 0
    with Raw(small_disk / "journal.db") as raw:
        assert "ead-only" in raw.expect(records.Trouble).reason
        assert libc.mount(None, target, None, MS_REMOUNT, None) == 0
        raw.hello()
        raw.send(1)
        raw.wait_committed(1)
    assert written(small_disk / "journal.db") == [1]


# ---- the client -----------------------------------------------------------------------------


def run_client(
    path: Path, body: Callable[[JournalClient], Any], *, plan: str = "", **options: Any
) -> Any:
    """Run `body` with a started client in an event loop of its own, then close it."""

    async def main() -> Any:
        client = JournalClient(path, **options)
        client.start(plan)
        try:
            return await asyncio.wait_for(body(client), BOUND_S)
        finally:
            await client.close()

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event announces; the caller is bounded."""
    while not condition():  # noqa: ASYNC110 - a client announces nothing to outsiders
        await asyncio.sleep(0.005)


def test_what_the_client_waited_for_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"

    async def body(client: JournalClient) -> None:
        assert await client.wait_durable(client.event("one", worker="w", detail={"a": 1}))
        assert [row["kind"] for row in rows(path)] == ["one"]
        key = client.decide("w", rule="r", inputs={}, alternatives=["b"], choice="a")
        await client.wait_durable(client.outcome(key, {"state": "ready"}))
        (decided,) = rows(path, "decisions")
        assert (decided["choice"], decided["outcome"]) == ("a", {"state": "ready"})

    run_client(path, body)


def test_the_client_restarts_a_killed_journal_and_loses_nothing(tmp_path: Path) -> None:
    path, rng = tmp_path / "journal.db", random.Random(11)

    async def body(client: JournalClient) -> int:
        last = 0
        for _ in range(6):
            for _ in range(rng.randint(1, 300)):
                last += 1
                assert client.event("k", source="test", detail={"n": last})
            await until(lambda: client.statistics().state == "ready")
            pid = client.statistics().pid
            assert pid is not None
            restarts = client.statistics().restarts
            os.kill(pid, signal.SIGKILL)
            await until(lambda: client.statistics().restarts > restarts)  # noqa: B023 - awaited here
        assert await client.wait_durable(client.event("last"))
        assert client.statistics().dropped == 0
        return last

    last = run_client(path, body)
    assert written(path) == list(range(1, last + 1))
    assert [row["kind"] for row in rows(path)].count("journal.ended") == 6


@pytest.mark.parametrize("lacking", ["socketpair", "pidfd_open"])
def test_journals_that_found_no_descriptor_to_start_with_are_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    where: Any = client if lacking == "socketpair" else os
    real, refused = getattr(where, lacking), [OSError(errno.EMFILE, "Too many open files")]

    def refuse_once(*words: Any) -> Any:
        if refused:
            raise refused.pop()
        return real(*words)

    monkeypatch.setattr(client, "RESTART_MAX_S", 0.01)
    monkeypatch.setattr(calls, "_RESTART_S", 0.01)

    async def main() -> None:
        troubles: list[str] = []
        journal = JournalClient(tmp_path / "journal.db", on_trouble=troubles.append)
        monkeypatch.setattr(where, lacking, refuse_once)
        journal.start()
        assert troubles == ["cannot start the journal: Too many open files"]
        assert await asyncio.wait_for(journal.wait_durable(journal.event("k")), BOUND_S)
        assert await journal.close() == 0

        made = CallJournal(tmp_path / "calls.db", Retention(), troubles.append, enabled=True)
        refused.append(OSError(errno.EMFILE, "Too many open files"))
        made.start("")
        if lacking == "pidfd_open":
            assert troubles[-1] == "cannot start: Too many open files"
        await until(lambda: made.pid is not None)
        refused.clear()
        await made.close()

    asyncio.run(main())


def test_recording_goes_on_while_the_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    troubles: list[str] = []

    async def body(client: JournalClient) -> None:
        await until(lambda: client.statistics().state == "refused")
        for _ in range(50):
            client.event("k")
        kept = 50 - client.statistics().dropped
        assert 0 < kept <= 15  # the client's own notes of each refusal take room as well

    with Raw(path) as first:
        first.hello()
        queue = JournalQueue(capacity_records=20)
        run_client(path, body, on_trouble=troubles.append, queue=queue)
    assert "another process" in troubles[0]


def test_a_stopped_journal_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"

    async def body(client: JournalClient) -> None:
        await client.wait_durable(client.event("k"))
        pid = client.statistics().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        began_s = time.monotonic()
        for _ in range(20_000):
            client.event("k", detail={"padding": "x" * 100})
        assert time.monotonic() - began_s < 5.0
        assert client.statistics().dropped > 10_000
        os.kill(pid, signal.SIGCONT)
        await until(lambda: client.statistics().queued == 0)
        await client.wait_durable(client.event("k"))

    run_client(path, body)
    (note,) = [row for row in rows(path) if row["kind"] == "journal.dropped"]
    assert note["detail"]["count"] > 10_000


def test_a_hung_journal_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.db"

    async def body(journal: JournalClient) -> None:
        await journal.wait_durable(journal.event("one"))
        pid = journal.statistics().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as soon:  # its successor has time to start
            soon.setattr(client, "HUNG_S", 0.5)
            last = journal.event("two")
            journal._watch_silence()  # before the sixty seconds of its start are over
            await until(lambda: journal.statistics().restarts == 1)
        await journal.wait_durable(last)
        assert journal.statistics().pid != pid
        assert journal.statistics().restarts == 1

    run_client(path, body)
    assert [row["kind"] for row in rows(path)] == ["one", "two", "journal.ended"]


def test_a_busy_lock_is_tried_again_soon(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"

    async def body(client: JournalClient) -> None:
        await until(lambda: client.statistics().state == "refused")
        first.sock.close()
        first.wait()
        began_s = time.monotonic()
        assert await client.wait_durable(client.event("k"))
        assert time.monotonic() - began_s < 10.0

    with Raw(path) as first:
        first.hello()
        run_client(path, body)


def test_closing_writes_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"

    async def body(client: JournalClient) -> None:
        for number in range(1000):
            client.event("k", source="test", detail={"n": number})

    run_client(path, body)
    assert written(path) == list(range(1000))


def _plan(folder: Path) -> str:
    """As the supervisor makes it."""
    from vsm.configuration.profile import load_profile
    from vsm.confinement.plan import WorkerRequest, compile_plan
    from vsm.confinement.probe import probe_host

    request = WorkerRequest(name="journal", argv=(), write=(str(folder),))
    return json.dumps(compile_plan(load_profile("journal"), request, probe_host()).to_json())


def _status(pid: int | None) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_the_confined_journal_does_all_its_work(tmp_path: Path) -> None:
    """Creating, growing past a checkpoint, trimming, noticing damage and moving it aside."""
    path = tmp_path / "journal.db"
    path.write_bytes(b"damaged " * 1000)

    async def body(client: JournalClient) -> None:
        await client.wait_durable(client.event("one"))
        status = _status(client.statistics().pid)
        layers = {row["name"]: row["state"] for row in client.statistics().layers}
        assert layers["landlock"] == layers["seccomp"] == layers["privileges"] == "in force"
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        last = 0
        for number in range(6000):  # some MiB: checkpoints, and size retention at work
            last = client.event("k", severity="error", detail={"n": number, "pad": "x" * 1000})
            if number % 1000 == 0:
                await client.wait_durable(last)
        await client.wait_durable(last)
        assert client.statistics().restarts == 0
        assert client.statistics().dropped == 0

    retention = Retention(size_bytes=2 * 2**20)
    run_client(path, body, plan=_plan(tmp_path), retention=retention)
    kept = [row["detail"]["n"] for row in rows(path) if row["kind"] == "k"]
    assert kept[-1] == 5999
    assert 500 < len(kept) < 3000
    assert len(list(tmp_path.glob("journal.db.damaged-*"))) == 1


def test_a_journal_that_cannot_be_confined_does_not_run(tmp_path: Path) -> None:
    async def body(client: JournalClient) -> None:
        await until(lambda: client.statistics().state == "refused")
        assert "cannot confine itself" in client.statistics().reason

    plan = _plan(tmp_path).replace('"Restrict"', '"Unknown"')
    run_client(tmp_path / "journal.db", body, plan=plan)
    assert not (tmp_path / "journal.db").exists()


def test_the_confined_journal_writes_nowhere_else(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()

    async def refused(client: JournalClient) -> None:
        client.event("k")
        await until(lambda: client.statistics().state == "trouble")
        assert "Permission denied" in client.statistics().reason

    async def written_there(client: JournalClient) -> None:
        assert await client.wait_durable(client.event("k"))

    run_client(outside / "journal.db", refused, plan=_plan(inside))
    assert list(outside.iterdir()) == []
    run_client(outside / "journal.db", written_there)  # the control: unconfined, it can
    run_client(inside / "journal.db", written_there, plan=_plan(inside))


def test_a_process_that_nobody_greets_asks_for_what_its_predecessor_took_along(
    tmp_path: Path,
) -> None:
    with Raw(tmp_path / "journal.db") as raw:
        raw.send(1, 2)  # the first batch, of a sender that has greeted another process
        assert raw.expect(records.Resend).sequence == 0
        raw.hello()
        raw.send(1, 2)
        raw.wait_committed(2)
    assert written(tmp_path / "journal.db") == [1, 2]
