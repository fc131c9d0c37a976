"""The way out of a runner's workers whose network mode is `proxy`: one egress process for all.

Runs in the runner, in its poll loop. Started with the first worker that needs it; one that dies is
replaced and serves who lives still, but one that cannot confine itself ends whom it was for.
"""

import os
import select
from contextlib import suppress
from typing import Any, Protocol

from vsm.confinement.probe import HostFacts
from vsm.core.egress import Rules
from vsm.egress.link import EgressLink, egress_plan_of_runs
from vsm.errors import ConfinementError, VsmError

_LAST_COUNTS_S = 1.0
_REMEDY = "See `vsm sandbox probe` for what this host gives."


class Served(Protocol):
    """A worker with a way out; owns its listeners."""

    key: str
    rules: Rules
    listeners: tuple[int, ...]

    def cut_off(self, error: VsmError) -> None:
        """There is no way out for it: it is not to run."""


class RunnerEgress:
    """Keeps the egress process of one runner."""

    def __init__(self, host: HostFacts, poll: select.poll) -> None:
        self._host, self._poll = host, poll
        self._link: EgressLink | None = None
        self._served: dict[str, Served] = {}

    @property
    def fds(self) -> set[int]:
        """Readable when `hear` has something to do."""
        return {self._link.fileno(), self._link.pidfd} if self._link else set()

    @property
    def pids(self) -> set[int]:
        """The process's, while there is one."""
        return {self._link.pid} if self._link else set()

    def serve(self, worker: Served) -> None:
        """From now on this worker has a way out, or is cut off."""
        self._served[worker.key] = worker
        if self._link is None:
            self._start()
        else:
            self._link.serve(worker.key, worker.rules, worker.listeners)

    def forget(self, worker: Served) -> dict[str, dict[str, Any]]:
        """The worker is gone: close what is open for it; what it asked for, by host."""
        if self._served.pop(worker.key, None) is None:
            return {}
        for fd in worker.listeners:
            os.close(fd)
        link = self._link
        if link is None:
            return {}
        if not link.layers:  # it will come to be told to serve it, and then to forget it
            link.forget(worker.key)
            return {}
        link.wait_last_counts(worker.key, _LAST_COUNTS_S)
        return link.counts.pop(worker.key, {})

    def hear(self) -> None:
        """Take in what it said, or that it died."""
        link = self._link
        if link is None or link.hear():
            return
        was_ready, reason = bool(link.layers), link.failure
        self._drop()
        if was_ready and self._served:
            self._start()
        elif not was_ready:
            self._cut_off(f"the egress process: {reason}")

    def close(self) -> None:
        """End it; its workers are gone."""
        if self._link is not None:
            link, self._link = self._link, None
            link.close()

    def _start(self) -> None:
        try:
            self._link = EgressLink(egress_plan_of_runs(self._host))
        except (VsmError, OSError) as error:
            self._cut_off(f"the egress process: {error}")
            return
        for fd in self.fds:
            self._poll.register(fd, select.POLLIN)
        for worker in self._served.values():
            self._link.serve(worker.key, worker.rules, worker.listeners)

    def _drop(self) -> None:
        for fd in self.fds:
            with suppress(KeyError):
                self._poll.unregister(fd)
        link, self._link = self._link, None
        if link is not None:
            link.close(linger=False)

    def _cut_off(self, what: str) -> None:
        for worker in self._served.values():
            worker.cut_off(ConfinementError("egress", what, _REMEDY, layer="network"))
