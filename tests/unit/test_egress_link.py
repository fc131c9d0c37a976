"""Nothing of a worker that is gone stays, on either side of the egress process's link."""

import asyncio
import fcntl
import json
import os
import resource
import select
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from vsm.core.egress import Rules
from vsm.egress import link
from vsm.egress.counts import MOST_NAMES, Counts
from vsm.egress.link import EgressLink
from vsm.egress.process import WorkerEgress
from vsm.library import runner_egress
from vsm.library.runner_egress import RunnerEgress

NOTHING = Rules((), {}, (), 0)


def rows(*names: str) -> dict[str, dict[str, Any]]:
    """Counts of these names, as the process has them."""
    counts = Counts()
    for name in names:
        counts.refused(name, "not allowed")
    return counts.table


class Ends(NamedTuple):
    """A link, and what the egress process has of it."""

    link: EgressLink
    theirs: socket.socket

    def count(self, worker: str, *, last: bool) -> None:
        """Say what a worker asked for."""
        message = {"kind": "counts", "worker": worker, "counts": rows("h:1"), "last": last}
        self.theirs.send(json.dumps(message).encode())


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    theirs: list[socket.socket] = []

    def start(link_fd: int, plan: object) -> subprocess.Popen[bytes]:
        del plan
        theirs.append(socket.socket(fileno=os.dup(link_fd)))
        theirs[0].settimeout(30)
        return subprocess.Popen(["/bin/sleep", "600"])

    monkeypatch.setattr(link, "_start_process", start)
    made = EgressLink(cast("Any", None))
    yield Ends(made, theirs[0])
    made.close(linger=False)
    theirs[0].close()


def test_counts_that_come_after_a_worker_was_forgotten_are_not_kept(ends: Ends) -> None:
    ends.link.serve("a", NOTHING, [])
    ends.count("a", last=False)
    assert ends.link.hear()
    assert ends.link.counts.keys() == {"a"}
    ends.link.forget("a")
    ends.count("a", last=True)
    assert ends.link.hear()
    assert ends.link.counts == {}


@pytest.mark.parametrize("by_us", [True, False])
def test_last_counts_are_there_whoever_had_the_worker_served(ends: Ends, *, by_us: bool) -> None:
    if by_us:
        ends.link.serve("a", NOTHING, [])
    ends.count("a", last=True)
    ends.link.wait_last_counts("a")
    assert ends.link.counts.keys() == {"a"}


@pytest.mark.parametrize(
    "said",
    [
        b"no JSON",
        b"[" * 100_000,
        b'{"kind": "other"}',
        b'{"kind": "ready", "layers": 1}',
        b'{"kind": "counts", "worker": "a", "counts": {"h:1": {"asked": 1}}, "last": false}',
        b'{"kind": "counts", "worker": "a", "counts": {"h:1": 1}, "last": true}',
        b" " * 150_000,
    ],
)
def test_process_that_says_what_it_never_says_is_killed(ends: Ends, said: bytes) -> None:
    ends.link.serve("a", NOTHING, [])
    ends.theirs.send(said)
    assert not ends.link.hear()
    assert "never says" in ends.link.failure
    assert select.select([ends.link.pidfd], [], [], 30)[0]
    assert ends.link.counts == {}


def test_process_that_tells_of_ever_new_names_is_killed(ends: Ends) -> None:
    ends.link.serve("a", NOTHING, [])
    ends.count("a", last=False)
    assert ends.link.hear()
    message = {"kind": "counts", "worker": "a", "counts": rows("other:1"), "last": False}
    ends.theirs.send(json.dumps(message).encode())
    assert not ends.link.hear()
    row = rows("h:1")["h:1"]
    many = {f"h{number}:1": row for number in range(MOST_NAMES + 2)}
    ends.link.serve("b", NOTHING, [])
    ends.theirs.send(json.dumps({**message, "worker": "b", "counts": many}).encode())
    assert not ends.link.hear()


def test_descriptors_that_the_process_sends_are_closed(ends: Ends) -> None:
    before = os.listdir("/proc/self/fd")
    message = json.dumps({"kind": "counts", "worker": "b", "counts": {}, "last": False}).encode()
    socket.send_fds(ends.theirs, [message], [0, 1, 2])
    assert ends.link.hear()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_worker_that_is_forgotten_before_it_is_served_has_no_listener_left() -> None:
    async def main() -> None:
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        with ThreadPoolExecutor(1) as pool:
            worker = WorkerEgress(NOTHING, pool, lambda: None)
            starting = asyncio.ensure_future(worker.listen(listeners))
            await asyncio.sleep(0)
            worker.close()
            await starting
        assert [one.fileno() for one in listeners] == [-1, -1]

    asyncio.run(main())


def test_run_that_ends_before_the_egress_process_is_ready_is_forgotten_by_it(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_egress, "EgressLink", lambda _: ends.link)
    monkeypatch.setattr(runner_egress, "egress_plan_of_runs", lambda _: None)
    way_out = RunnerEgress(cast("Any", None), select.poll())
    run = SimpleNamespace(key="run1", rules=NOTHING, listeners=(), cut_off=pytest.fail)
    way_out.serve(cast("Any", run))
    assert way_out.forget(cast("Any", run)) == {}
    said = [json.loads(ends.theirs.recv(65536))["kind"] for _ in range(2)]
    assert said == ["serve", "forget"]


def test_a_descriptor_above_those_of_select_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1100:
        pytest.skip(f"only {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    high = fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1050)
    try:
        assert not link._is_readable(high, 0.0)
        theirs.send(b"x")
        assert link._is_readable(high, 1.0)
    finally:
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        ours.close()
        theirs.close()
