import os
import subprocess

from vsm.processes.launcher import Launcher


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
