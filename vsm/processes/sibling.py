"""S3*'s sibling: a process under a running worker's own plan, inside its namespaces, that attacks.

Runs in a child of the launcher, as whoever the launcher is, until the plan takes that away. Two
processes: a guard, which enters the worker's namespaces but not its pid namespace, so that the
worker cannot reach it, and below it the sibling, which does what is left of the plan (control
group, limits, uid, Landlock, filter) and then tries attacks of `vsm.attempts` that harm nothing
where they succeed: wrong pointers, null signals, files opened and closed. In the landlocked tier
there is nothing to enter: the sibling stands beside the worker, under the same rules. Standard
library only.
"""

import gc
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from vsm.confinement.execution import OperationError, Plan, execute_steps
from vsm.confinement.operations import (
    DropPrivileges,
    EnterCgroupNamespace,
    FilterSystemCalls,
    JoinCgroups,
    Operation,
    Restrict,
    SetLimits,
    Site,
)
from vsm.linux import namespaces, pidfd, prctl

if TYPE_CHECKING:
    from vsm.attempts.base import World

GUARD_S: Final = 12
"""So long the whole may take; then it is killed, and that it gave no answer is the answer."""
_SIBLING_S: Final = 10
_ATTEMPT_S: Final = 2
_MOST_ANSWER_BYTES: Final = 65536
_TELL_FD: Final = 3
_SACRIFICE: Final = "1000"  # oom_score_adj: an audit takes nobody's memory
_OWN = (SetLimits, DropPrivileges, Restrict, FilterSystemCalls)


class Sibling:
    """The launcher's side of one audit from within.

    Args:
        plan: the worker's. worker: the pid of its mini-init. names: of attempts.

    Attributes:
        pid: the guard's. pidfd: the guard's, readable when all is over; owned by this object.
    """

    def __init__(self, plan: Plan, worker: int, names: Sequence[str]) -> None:
        """Start; raises OSError."""
        self._told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.pid, self.pidfd = namespaces.fork_into(0)
            if self.pid == 0:
                _be_guard(plan, worker, names, tell)
        except OSError:
            os.close(self._told)
            raise
        finally:
            os.close(tell)

    def finish(self) -> dict[str, Any]:
        """After the guard ended: reap it, close all, and say what was told."""
        pidfd.reap(self.pidfd)
        answer = b""
        with suppress(BlockingIOError):
            answer = os.read(self._told, _MOST_ANSWER_BYTES)
        self.close()
        try:
            found = json.loads(answer) if answer else None
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {"error": "the sibling gave no answer"}

    def kill(self) -> None:
        """Kill the guard, and by that the sibling."""
        pidfd.send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the descriptors."""
        os.close(self._told)
        os.close(self.pidfd)


# -- the guard -------------------------------------------------------------------------------------


def _be_guard(plan: Plan, worker: int, names: Sequence[str], tell: int) -> NoReturn:
    """A forked child never returns into its parent's code."""
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        for signo in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(signo, signal.SIG_DFL)
        prctl.set_death_signal(signal.SIGKILL)
        signal.alarm(GUARD_S)
        os.setsid()
        _keep_only(tell)
        _guard(plan, worker, names)
    except BaseException as error:  # noqa: BLE001 - the boundary
        _tell({"error": _text(error)})
    finally:
        os._exit(0)


def _guard(plan: Plan, worker: int, names: Sequence[str]) -> None:
    from vsm import attempts  # here: the launcher has no use for it

    with suppress(OSError):
        _write("/proc/self/oom_score_adj", _SACRIFICE)
    listener = socket.create_server(("127.0.0.1", 0))  # of the host's network
    paths = [path for s in plan.operations if isinstance(s, JoinCgroups) for path in s.paths]
    groups = [os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for path in paths]
    world = _world(plan, worker, listener.getsockname()[1], paths)
    flags = _flags(plan)
    if flags:
        _enter(worker, flags)
        prctl.set_death_signal(signal.SIGKILL)  # a change of credentials clears it
    pid = os.fork()
    if pid == 0:
        listener.close()
        _be_sibling(plan, groups, lambda: _try_all(attempts, names, world))
    os.waitpid(pid, 0)


def _flags(plan: Plan) -> int:
    """The namespaces that the worker has and the launcher has not."""
    own = any(isinstance(step, EnterCgroupNamespace) for step in plan.operations)
    return plan.clone_flags | (namespaces.NEWCGROUP if own else 0)


def _enter(worker: int, flags: int) -> None:
    """By the mini-init, or where only root may look at it, by what it started."""
    error: OSError | None = None
    for pid in (worker, *_children(worker)):
        try:
            fd = pidfd.open_pidfd(pid)
        except ProcessLookupError:
            continue
        try:
            # It may have ended, and its pid be another's, before the fd was there.
            if pid == worker or pid in _children(worker):
                namespaces.join(fd, flags)
                return
        except OSError as reason:
            error = error or reason
        finally:
            os.close(fd)
    raise error or ProcessLookupError(3, "the worker has ended")


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as listed:
            return [int(word) for word in listed.read().split()]
    except OSError:
        return []


def _world(plan: Plan, worker: int, port: int, groups: list[str]) -> "World":
    """What the attempts aim at: the worker's first process, the host's loopback and files."""
    first = 1 if plan.clone_flags & namespaces.NEWPID else worker
    with open("/etc/passwd", encoding="utf-8", errors="replace") as users:
        count = len(users.readlines())
    return {
        "victim": first,
        "starter": first,
        "parent": first,
        "tcp": port,
        "network_namespace": os.readlink("/proc/self/ns/net"),
        "host_name": os.uname().nodename,
        "users": count,
        "cgroup_procs": f"{groups[0]}/cgroup.procs" if groups else "",
        "block_device": "",
        "can_raise": False,
    }


# -- the sibling -----------------------------------------------------------------------------------


def _be_sibling(
    plan: Plan, groups: list[int], attack: Callable[[], dict[str, dict[str, str]]]
) -> NoReturn:
    try:
        prctl.set_death_signal(signal.SIGKILL)
        signal.alarm(_SIBLING_S)
        for fd in groups:
            os.write(fd, b"0")
            os.close(fd)
        os.environ.clear()
        os.umask(0o077)
        execute_steps(tuple(_own_steps(plan)), Site())
        os.chdir(plan.cwd)
        _tell({"outcomes": attack()})
    except BaseException as error:  # noqa: BLE001 - the boundary
        _tell({"error": _text(error)})
    finally:
        os._exit(0)


def _own_steps(plan: Plan) -> list[Operation]:
    """What each process of the worker has of its own; namespaces and root it shares.

    Without a listener the kernel answers ENOSYS itself to what a reported filter refuses.
    """
    steps = [step for step in plan.operations if isinstance(step, _OWN)]
    return [
        step._replace(reported=False) if isinstance(step, FilterSystemCalls) else step
        for step in steps
    ]


def _try_all(attempts: Any, names: Sequence[str], world: "World") -> dict[str, dict[str, str]]:  # noqa: ANN401 - the module
    return {
        name: attempts.outcome_of(_bounded(attempts.ATTEMPTS[name].action), world) for name in names
    }


def _bounded(action: Callable[["World"], None]) -> Callable[["World"], None]:
    def run(world: "World") -> None:
        signal.alarm(_ATTEMPT_S)
        action(world)

    return run


# -- both ------------------------------------------------------------------------------------------


def _keep_only(tell: int) -> None:
    """Nothing of the launcher's is held on to."""
    os.dup2(tell, _TELL_FD, inheritable=False)
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.closerange(_TELL_FD + 1, 1 << 30)


def _tell(answer: dict[str, Any]) -> None:
    with suppress(OSError):
        os.write(_TELL_FD, json.dumps(answer).encode()[:_MOST_ANSWER_BYTES])


def _text(error: BaseException) -> str:
    if isinstance(error, OperationError):
        return f"{error.layer or 'plan'}: {error.step}: {error.reason}"[:1000]
    return f"{type(error).__name__}: {error}"[:1000]


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
