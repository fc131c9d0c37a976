import os
import subprocess
from pathlib import Path

import pytest

from vsm.confinement.execution import Plan
from vsm.processes.launcher import Launcher
from vsm.processes.sibling import Sibling


class Unheard:
    def finish(self) -> None:
        raise AssertionError("it runs still, and to reap it would block the launcher")


def test_a_sibling_that_got_the_number_of_what_was_closed_is_not_heard_before_it_ends() -> None:
    child = subprocess.Popen(["sleep", "60"])
    fd = os.pidfd_open(child.pid)
    try:
        launcher = Launcher.__new__(Launcher)
        launcher._siblings = {fd: ("worker", 1, Unheard())}  # type: ignore[dict-item]
        launcher._hear_sibling(fd)
        assert fd in launcher._siblings
    finally:
        os.close(fd)
        child.kill()
        child.wait()


def test_an_answer_of_a_sibling_that_is_nested_without_end_is_none() -> None:
    """Who confines every worker must not end of it."""
    child = subprocess.Popen(["true"])
    sibling = Sibling.__new__(Sibling)
    sibling.pidfd = os.pidfd_open(child.pid)
    sibling._told, tell = os.pipe()
    os.write(tell, b"[" * 60_000)
    os.close(tell)
    assert sibling.finish() == {"error": "the sibling gave no answer"}
    child.wait()


class Spare:
    is_discarded = False

    def discard(self) -> None:
        self.is_discarded = True


def test_a_start_that_fails_lets_go_of_the_spare_that_it_took(tmp_path: Path) -> None:
    refused: list[str] = []
    spare = Spare()
    launcher = Launcher.__new__(Launcher)
    launcher._workers = {}
    launcher._take_spare = lambda _plan: spare  # type: ignore[method-assign, assignment, return-value]
    launcher._refuse = lambda name, *_words: refused.append(name)  # type: ignore[method-assign]
    plan = Plan("it", "landlocked", 0, (), ("/bin/true",), {}, "/", os.getuid(), ())
    launcher._spawn("it", plan._replace(scratch_dir=str(tmp_path)).to_json(), [0, 1, 2])
    assert refused == ["it"], "its private directory is there already"
    assert spare.is_discarded


def test_a_spare_that_dies_as_it_is_taken_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no layer that cannot be applied, which would be hopeless for the server."""
    spare, asked = Spare(), []

    def start(_plan: object, _stdio: object, *, spare: object = None) -> str:
        asked.append(spare)
        if spare is not None:
            raise BrokenPipeError(32, "Broken pipe")
        return "another"

    monkeypatch.setattr("vsm.processes.launcher.ForkedWorker", start)
    launcher = Launcher.__new__(Launcher)
    launcher._take_spare = lambda _plan: spare  # type: ignore[method-assign, assignment, return-value]
    plan = Plan("it", "landlocked", 0, (), ("/bin/true",), {}, "/", os.getuid(), ())
    assert launcher._fork(plan, (0, 1, 2)) == "another"  # type: ignore[comparison-overlap]
    assert asked == [spare, None]
    assert spare.is_discarded
