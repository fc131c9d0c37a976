"""One worker of the runner: its order, its sockets and group, and what is told of its end.

Runs in the runner, which owns the slots and decides when.
"""

import json
import os
import signal
import socket
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from vsm.configuration.profile import Profile
from vsm.confinement import cgroup
from vsm.confinement.plan import egress_rules
from vsm.core.egress import Rules
from vsm.core.syscalls import names
from vsm.errors import ConfigurationError, ConfinementError, VsmError
from vsm.library import child
from vsm.processes.forked_worker import ForkedWorker

if TYPE_CHECKING:
    from vsm.library.runner import Runner

_KINDS = {ConfigurationError: "configuration", ConfinementError: "confinement"}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as the program asks for it: how it is confined, not what it does.

    Args:
        identity: device and inode of each path, so that no spare shows what was there before.
        warm: libraries that the program uses.
        lasting: it is a worker that stays: never a spare, and the program hears when it began.
    """

    profile: Profile
    executable: str
    cwd: str | None
    path: tuple[str, ...]
    read: tuple[str, ...]
    kept: tuple[str, ...]
    write: tuple[str, ...]
    tier: str | None
    identity: tuple[tuple[int, int], ...]
    warm: tuple[str, ...] = ()
    lasting: bool = False


class Run:
    """One worker, used once; a spare until an order adopts it. Owns its sockets and its group.

    Args:
        ahead: made before there was an order.
    """

    def __init__(self, runner: "Runner", slot: int, order: Order, *, ahead: bool = False) -> None:
        self.control: socket.socket | None = None
        self._ahead = ahead
        self._kept: list[int] = []
        self.doomed = self.given_up = False
        self.order = order
        self.slot = slot
        self.layers: list[dict[str, str]] = []
        self.listeners: tuple[int, ...] = ()
        self.asked: dict[str, dict[str, Any]] = {}
        self.refused: Counter[int] = Counter()
        self.refusal: VsmError | None = None
        self.key = runner.next_key()
        self.rules = egress_rules(order.profile) or Rules((), {}, (), 0)
        self.group = runner.make_group(f"run{slot}", order.profile)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            plan = runner.plan(self)
            stdio = (theirs.fileno(), runner.nothing, runner.nothing)
            self.worker = ForkedWorker(plan, stdio, program=child.run)
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()

    def adopt(self, fds: list[int]) -> None:
        """From now on it is this run: control socket, channel, stdout, stderr."""
        self.control = socket.socket(fileno=os.dup(fds[0]))
        if self._ahead and not self.layers:  # what it was to see may have gone meanwhile
            self._kept = [os.dup(fd) for fd in fds]
        with suppress(OSError):  # it died: its burial says so
            socket.send_fds(self._channel, [b"run"], fds[1:])

    def take_order(self) -> list[int]:
        """The fds of an order for which it was made ahead and did not begin; the caller's."""
        if self.layers or self.given_up or self.refusal is not None:
            return []
        kept, self._kept = self._kept, []
        return kept

    def began(self) -> None:
        """Every layer is in force: tell of a lasting one."""
        self.drop_order()
        if self.order.lasting:
            told = {"event": "began", "pid": self.worker.pid, "layers": self.layers}
            self.tell({**told, "tier": self.worker.plan.tier})

    def cut_off(self, error: VsmError) -> None:
        """There is no way out for it: it is not to run."""
        self.refusal = error
        self.discard()

    @property
    def is_spare(self) -> bool:
        """Whether an order may adopt it."""
        return self.control is None and not self.doomed

    def discard(self) -> None:
        """Nobody will adopt it."""
        self.doomed = True
        self.worker.kill()

    def fds(self) -> list[int]:
        """What to wait for."""
        control = [self.control.fileno()] if self.control else []
        return [*control, self.worker.status_fd, self.worker.pidfd]

    def tell(self, event: dict[str, Any]) -> None:
        """Tell the program, if it listens."""
        if self.control is not None:
            with suppress(OSError):  # the program has given this run up
                self.control.send(json.dumps(event).encode())

    def close(self) -> None:
        """After its end, or when it never began."""
        if self.group is not None:
            self.group.remove()
        self._channel.close()
        self.drop_order()

    def drop_order(self) -> None:
        """It is not to be taken again."""
        kept, self._kept = self._kept, []
        for fd in kept:
            os.close(fd)


def report(run: Run, usage: cgroup.Usage | None) -> dict[str, Any]:
    """How it ended, or why it never began."""
    heard = run.worker.heard[-1] if run.worker.heard else {}
    if run.refusal is not None:
        return refusal(run.refusal)
    if not run.layers and not run.given_up:
        what = heard.get("what", "it was killed while it started")
        if what.startswith("cannot enter"):  # its `cwd`, or a folder on the way there
            return refusal(ConfigurationError("run", what, "Name a path that it sees."))
        return {"event": "refused", "kind": "confinement", "where": "run", "what": what,
                "remedy": "See `vsm sandbox probe`.", "layer": heard.get("layer", "")}  # fmt: skip
    ended = heard if heard.get("event") == "exited" else {}
    return {
        "event": "ended",
        "status": ended.get("status"),
        "signal": ended.get("signal", signal.SIGKILL),
        "cpu_s": ended.get("cpu_s", 0.0) if usage is None or usage.cpu_s is None else usage.cpu_s,
        "peak_bytes": (usage and usage.memory_peak_bytes) or ended.get("peak_bytes", 0),
        "oom_kills": (usage and usage.oom_kills) or 0,
        "tier": run.worker.plan.tier,
        "layers": run.layers,
        "egress": run.asked,
        "refused": _named(run.refused),
        "limit": ended.get("limit", ""),
    }


def _named(calls: Counter[int]) -> dict[str, int]:
    if not calls:
        return {}
    known = names(os.uname().machine)
    return {known.get(number, f"number {number}"): n for number, n in calls.most_common()}


def withdrawn(signo: int) -> dict[str, Any]:
    """How one ended that had not begun."""
    return {
        "event": "ended",
        "status": None,
        "signal": signo,
        "cpu_s": 0.0,
        "peak_bytes": 0,
        "oom_kills": 0,
        "tier": "",
        "layers": [],
        "egress": {},
        "refused": {},
        "limit": "",
    }


def refusal(error: VsmError | OSError) -> dict[str, Any]:
    """Why a run does not begin."""
    if isinstance(error, OSError):
        error = VsmError("run", str(error))
    return {
        "event": "refused",
        "kind": _KINDS.get(type(error), ""),
        "where": error.where,
        "what": error.what,
        "remedy": error.remedy,
        "layer": getattr(error, "layer", ""),
    }
