"""A thread of its own for what must not hold for the mini-init's first one.

Where there is no pid namespace, a server has its mini-init's uid and could stop or kill it, and
so outlive whoever would end it. Landlock domains belong to threads, and a signal to a process is
judged by its first thread's: so a second thread enters a domain of its own, out of which no
signal goes, installs the system call filter for both and starts the server. Runs in the
mini-init, with its privilege. Standard library only.
"""

import _thread
from collections.abc import Callable
from typing import Generic, TypeVar

_STACK_BYTES = 256 << 10
_Result = TypeVar("_Result")


def run_in_thread(work: Callable[[], _Result]) -> _Result:
    """Run it in a thread that ends with it; its result or its exception."""
    return _Errand(work).wait()


class _Errand(Generic[_Result]):
    def __init__(self, work: Callable[[], _Result]) -> None:
        self._work = work
        self._results: list[_Result] = []
        self._error: BaseException | None = None
        self._done = _thread.allocate_lock()
        self._done.acquire()
        before = _thread.stack_size(_STACK_BYTES)
        _thread.start_new_thread(self._main, ())
        _thread.stack_size(before)

    def wait(self) -> _Result:
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _main(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            self._error = error
        finally:
            self._done.release()
