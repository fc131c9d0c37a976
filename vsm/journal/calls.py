"""The supervisor's side of the call journal: a second journal process, which S1 writes to.

Owns the process and both ends of its link: S1 gets a duplicate of one end, so that neither a new
S1 nor a new process makes anybody else's calls wait. A flood of calls cannot push anything out of
the main journal, which is another file. Runs in the supervisor.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from vsm.journal.client import open_pidfd, spawn_journal
from vsm.journal.contents import hidden_line
from vsm.journal.records import Retention
from vsm.link import socketpair

CALLS_FILE: Final = "calls.db"
_RESTART_S: Final = 0.25
_RESTART_MAX_S: Final = 30.0
_STABLE_S: Final = 10.0
_END_S: Final = 2.0


class CallJournal:
    """The process that writes calls down, started again whenever it ends.

    Args:
        path: the database; its folder exists.
        on_trouble: told what is wrong, once each time that it ends unasked.
        enabled: without it there is neither process nor file.
    """

    def __init__(
        self,
        path: Path,
        retention: Retention,
        on_trouble: Callable[[str], None],
        *,
        enabled: bool,
    ) -> None:
        self._path = path
        self._retention = retention
        self._on_trouble = on_trouble
        self._plan = ""
        # From the beginning: S1 may start first, and what it sends waits in the socket.
        ends = socketpair() if enabled else (None, None)
        self._ours: socket.socket | None = ends[0]
        self._theirs: socket.socket | None = ends[1]
        self._hidden: set[tuple[str, str]] = set()
        self._hidden_fd = os.memfd_create("vsm-hidden") if enabled else -1
        self._keeps_contents = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._started_s = 0.0
        self._failures = 0
        self._gone = asyncio.Event()
        self._gone.set()
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The process's, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def uptime_s(self) -> float:
        """Since the process started; 0 where none runs."""
        return 0.0 if self._process is None else time.monotonic() - self._started_s

    def fileno(self) -> int | None:
        """S1's end, to be sent to it; None where calls are not recorded."""
        return None if self._ours is None else self._ours.fileno()

    def keep_contents(self, secrets: Iterable[tuple[str, str]]) -> None:
        """Contents are kept from now on, without these values; it was given none before."""
        self._keeps_contents = self._hidden_fd >= 0
        self.hide([("", ""), *secrets])

    def hide(self, secrets: Iterable[tuple[str, str]]) -> None:
        """Let these values get into no record; said before anybody gets one of them."""
        if self._keeps_contents:
            for pair in secrets:
                if pair not in self._hidden:
                    self._hidden.add(pair)
                    os.write(self._hidden_fd, hidden_line(*pair))

    def start(self, plan: str) -> None:
        """Start it, where calls are recorded.

        Args:
            plan: JSON of the plan by which it confines itself.
        """
        self._plan = plan
        self._start()

    def _start(self) -> None:
        self._timer = None
        if self._theirs is None:
            return
        try:
            process = self._spawn(self._theirs)
            self._pidfd = open_pidfd(process)
        except OSError as error:
            self._on_trouble(f"cannot start: {error.strerror}")
            self._start_later()
            return
        self._process = process
        self._gone.clear()
        self._started_s = time.monotonic()
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        hidden = os.open(f"/proc/self/fd/{self._hidden_fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return spawn_journal(self._path, self._retention, self._plan, theirs, hidden)
        finally:
            os.close(hidden)

    def _ended(self) -> None:
        """Reap it, and start another: what it had not committed is sent again by S1."""
        if self._process is None:
            return
        status = self._process.wait()
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process = None
        self._gone.set()
        if self._theirs is not None:
            self.restarts += 1
            if time.monotonic() - self._started_s > _STABLE_S:
                self._failures = 0
            self._on_trouble(f"the process ended with status {status}")
            self._start_later()

    def _start_later(self) -> None:
        delay_s = min(_RESTART_MAX_S, _RESTART_S * 2 ** min(self._failures, 10))
        self._failures += 1
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._start)

    async def close(self) -> None:
        """Let it write what S1 has sent, and end it; S1 has ended before."""
        if self._timer is not None:
            self._timer.cancel()
        for end in (self._ours, self._theirs):
            if end is not None:
                end.close()
        self._ours = self._theirs = None
        if self._hidden_fd >= 0:
            os.close(self._hidden_fd)
            self._hidden_fd = -1
            self._keeps_contents = False
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), _END_S)
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await self._gone.wait()
