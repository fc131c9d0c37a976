import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

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
