import os
import select
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest

from vsm.confinement import uids
from vsm.errors import ConfigurationError
from vsm.library.order import _paths
from vsm.library.runner import Runner


class Untouched(Runner):
    """One that must not take its run for ended or given up."""

    def __init__(self) -> None:
        """It starts nothing."""

    def _bury(self, run: Any) -> None:
        raise AssertionError(f"{run} runs still, and to reap it would block the runner")


def test_run_that_got_the_numbers_of_what_was_closed_is_not_heard_before_it_says_something() -> (
    None
):
    child = subprocess.Popen(["/bin/sleep", "600"])
    sentinel = os.pidfd_open(child.pid)
    control, program = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setblocking(False)  # where it is read in vain this tells, and a blocking one waits
    killed: list[bool] = []
    worker = SimpleNamespace(
        pidfd=sentinel, events=list, hung_up=False, kill=lambda: killed.append(True)
    )
    run = cast("Any", SimpleNamespace(control=control, worker=worker, given_up=False))
    try:
        for fd in (control.fileno(), sentinel):
            Untouched()._hear(run, fd)
        assert (killed, run.given_up) == ([], False)
    finally:
        control.close()
        program.close()
        os.close(sentinel)
        child.kill()
        child.wait()


def test_links_in_a_circle_are_a_path_that_does_not_exist(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigurationError, match="loop does not exist"):
        _paths([loop], "read")
    (tmp_path / "link").symlink_to(tmp_path)
    assert _paths([tmp_path / "link"], "read") == [str(tmp_path)]


class Full(Runner):
    """One that has no place left."""

    def __init__(self, runs: dict[int, Any]) -> None:
        self._runs = runs
        self._waiting = cast("Any", {1: (MagicMock(), [])})
        self._spare_for = MagicMock()


def test_whoever_waits_for_a_place_gets_that_of_a_worker_made_ahead() -> None:
    spare, busy = MagicMock(is_spare=True), MagicMock(is_spare=False)
    Full({n: spare if n == 7 else busy for n in range(uids.RUN_SLOTS - 1)})._start_waiting()
    spare.discard.assert_called_once_with()
    busy.discard.assert_not_called()


class Tidying(Runner):
    """One that has nothing to do but to remove."""

    def __init__(self, events: list[list[tuple[int, int]]]) -> None:
        self._leftovers: list[str] = []
        self._runs, self._refusals, self._egress = {}, MagicMock(), MagicMock()
        self._handing, self._by_fd, self._waiting = {}, {}, {}
        self.events = events

    def _poll_for(self, timeout_s: float | None) -> list[tuple[int, int]]:
        assert timeout_s == 0.0
        return self.events.pop(0)


def test_what_a_run_filled_its_directory_with_holds_no_other_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budgets: list[float] = []

    def remove(path: str, *, budget_s: float) -> bool:
        assert path == "/tmp/private"
        budgets.append(budget_s)
        return len(budgets) > 2

    monkeypatch.setattr("vsm.confinement.scratch.remove", remove)
    monkeypatch.setattr("vsm.library.runner.report", lambda *_: {})
    monkeypatch.setattr("vsm.linux.pidfd.reap", lambda _fd: None)
    run = MagicMock(slot=1, group=None)
    run.fds.return_value, run.take_order.return_value = [], []
    run.worker.plan.scratch_dir = "/tmp/private"
    run.worker.remove_scratch = lambda *, budget_s=30.0: remove("/tmp/private", budget_s=budget_s)
    busy = [(7, select.POLLIN)]
    one = Tidying([[], busy, []])
    one._runs[1] = run
    one._bury(run)
    run.tell.assert_called_once()
    assert [one._wait() for _ in range(3)] == [[], busy, []]
    assert one._leftovers == []
    assert len(budgets) == 3
    assert max(budgets) < 0.1
