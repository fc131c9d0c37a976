"""The exec of the template, ahead of what its supervisor imports: the two go on side by side.

Runs in the process that becomes the supervisor, which may have imported next to nothing yet: only
the standard library, and of that no event loop.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

SINGLE_THREADED: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
# Everything else of our environment stays here: a variable of ours may be a worker's secret.
_PASSED: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "PYTHONHOME")


@dataclass
class TemplateStart:
    """A template that was executed and that nobody listens to yet.

    Args:
        link: our end. output: where its output can be read. Both belong to whoever takes them.
        taken: somebody did.
    """

    process: "subprocess.Popen[bytes]"
    link: socket.socket
    output: int
    taken: bool = False

    def end(self) -> None:
        """Nobody will listen to it."""
        self.link.close()
        os.close(self.output)
        self.process.kill()
        self.process.wait()


def execute(entry: str, modules: Sequence[str]) -> TemplateStart:
    """Execute a template.

    Args:
        entry: "module:function" that a child runs.
        modules: what the template imports before it forks.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    theirs.settimeout(0)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    link_fd = theirs.fileno()
    command = [sys.executable, "-P", "-m", "vsm.processes.template", str(link_fd), str(os.getpid())]
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    try:
        process = subprocess.Popen(
            [*command, entry, *modules],
            env=environment | SINGLE_THREADED,
            pass_fds=(link_fd,),
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            cwd="/",
            start_new_session=True,
        )
    except OSError:
        ours.close()
        os.close(read_end)
        raise
    finally:
        theirs.close()
        os.close(write_end)
    return TemplateStart(process, ours, read_end)


@contextlib.contextmanager
def ahead(entry: str, modules: Sequence[str]) -> Iterator[TemplateStart]:
    """A template for whoever takes it within the block; else it is killed at the end."""
    started = execute(entry, modules)
    try:
        yield started
    finally:
        if not started.taken:
            started.end()
