"""The thread that starts a server one Landlock domain below its mini-init.

Where there is no pid namespace, a server has its mini-init's uid and could stop or kill it, and
so outlive whoever would end it. Landlock domains belong to threads: this one enters a domain of
its own, out of which no signal goes, before the system call filter forbids to make any. Runs in
the mini-init, with its privilege; it ends with the one spawn. Standard library only.
"""

import _thread
from collections.abc import Callable

from vsm.linux import landlock

_STACK_BYTES = 256 << 10


class Spawner:
    """The thread, waiting for what it is to run.

    Raises:
        OSError: it could not enter the domain.
    """

    def __init__(self) -> None:
        self._go, self._done = _thread.allocate_lock(), _thread.allocate_lock()
        self._work: Callable[[], int] = int
        self._result = 0
        self._error: OSError | None = None
        for lock in (self._go, self._done):
            lock.acquire()
        before = _thread.stack_size(_STACK_BYTES)
        _thread.start_new_thread(self._main, ())
        _thread.stack_size(before)
        self._wait()

    def run(self, work: Callable[[], int]) -> int:
        """Run `work` in the thread, once; its result or its OSError."""
        self._work = work
        self._go.release()
        self._wait()
        return self._result

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _main(self) -> None:
        try:
            landlock.restrict_signals()
            self._done.release()
            self._go.acquire()
            self._result = self._work()
        except OSError as error:
            self._error = error
        finally:
            self._done.release()
