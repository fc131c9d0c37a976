"""`vsm profile learn`: run a command under a profile, and write down how little of it it needed.

The command is confined as ever, and the kernel refuses what the profile refuses. Beneath that
filter lies a second one that reports every call to this process by seccomp's user notification;
the answer is always "go on": the observer sees and never decides. So what is learnt is a subset
of the profile, and calls that it refuses are not seen. Forks; single-threaded; any privilege.
Sources: seccomp_unotify(2), linux/seccomp.h.
"""

import fcntl
import os
import select
import signal
import struct
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from vsm.core.seccomp import Action, rules_for
from vsm.core.syscalls import names
from vsm.errors import VsmError
from vsm.execution import Plan
from vsm.launch import LaunchError, spawn_confined, wait_confined
from vsm.linux import prctl, seccomp
from vsm.operations import FilterSystemCalls, Site
from vsm.profile import Profile

_NEW_LISTENER, _TSYNC_ESRCH = 1 << 3, 1 << 4
_NOTIFY_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0x7FC0_0000)  # BPF_RET, RET_USER_NOTIF
_RECEIVE, _SEND = 0xC050_2100, 0xC018_2101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, nr, arch, ip, args
_ANSWER = struct.Struct("=QqiI")  # id, val, error, flags
_CONTINUE = 1
_FIND_S: Final = 20.0
_LONGEST_PATH: Final = 4096
# which argument of which call is a path that is opened or run
_PATHS: Final = {"open": 0, "openat": 1, "openat2": 1, "execve": 0}
# The kernel opens a program's interpreter by itself: programs' and libraries' folders stay.
_PROGRAMS: Final = frozenset({"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"})
# What the mini-init may come to need, and what no run shows: being stopped, being interrupted.
_ALWAYS: Final = frozenset(
    {
        *("execve", "exit", "exit_group", "rt_sigreturn", "restart_syscall", "rt_sigprocmask"),
        *("kill", "tgkill", "wait4", "waitid", "poll", "read", "write", "close", "recvfrom"),
        *("recvmsg", "sendmsg", "pidfd_send_signal", "openat", "getdents64", "futex", "munmap"),
    }
)
EXIT_NOT_STARTED: Final = 127


class _Observed(NamedTuple):
    """Stands for the plan's filter: the reporting one first, the plan's own on top of it."""

    inner: FilterSystemCalls
    layer: str = "seccomp"

    def execute(self, site: Site) -> str:
        """Install both; the listener stays open here for the observer to take."""
        prctl.allow_dumps()  # so that an observer of the same user may take it; exec does so too
        flags = seccomp.TSYNC | _TSYNC_ESRCH if site.threaded else 0
        seccomp.install(_NOTIFY_ALL, _NEW_LISTENER | flags)
        return self.inner.execute(site)

    def describe(self) -> str:
        """As the inner one."""
        return f"{self.inner.describe()}, observed"


@dataclass
class Learned:
    """What a run did: calls by name, opened paths, and how it ended."""

    calls: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    status: int = 0


def learn(plan: Plan) -> Learned:
    """Run a plan observed, on this process's stdin, stdout and stderr.

    Raises:
        VsmError: the command did not start, or cannot be observed here.
    """
    steps = tuple(_Observed(s) if isinstance(s, FilterSystemCalls) else s for s in plan.operations)
    plan = plan._replace(operations=steps)
    pid = os.fork()
    if pid == 0:
        _be_parent(plan)
    learned = Learned()
    pidfd = os.pidfd_open(pid)
    try:
        listener = _find_listener(pid, pidfd)
        _observe(listener, pidfd, learned)
        os.close(listener)
    except BaseException:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        raise
    finally:
        learned.status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
    return learned


def _be_parent(plan: Plan) -> None:
    """Runs in the child; never returns. It waits, so that the observer does not have to."""
    status = EXIT_NOT_STARTED
    try:
        prctl.set_death_signal(signal.SIGKILL)  # unobserved calls would wait for ever
        spawned = spawn_confined(plan, 0, 1, 2)
        report = wait_confined(spawned)
        status = 128 + (report.signal or 0) if report.status is None else report.status
    except (VsmError, LaunchError) as error:
        os.write(2, f"vsm: {error}\n".encode())
    finally:
        os._exit(status)


# -- observing -------------------------------------------------------------------------------------


def _find_listener(root: int, pidfd: int) -> int:
    """Take the listener out of the process that installed it, which waits for its first answer."""
    end = time.monotonic() + _FIND_S
    while time.monotonic() < end and not _has_ended(pidfd, 0.002):
        for pid in _descendants(root):
            for fd in _fds(pid):
                if fd.read_link() == "anon_inode:seccomp notify":
                    return _take(pid, int(fd.path.name))
    raise VsmError("profile learn", "the command did not start, or cannot be observed here",
                   "Run it by `vsm sandbox run` first.")  # fmt: skip


class _Fd(NamedTuple):
    path: Path

    def read_link(self) -> str:
        try:
            return os.readlink(self.path)
        except OSError:
            return ""


def _fds(pid: int) -> list[_Fd]:
    try:
        return [_Fd(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def _take(pid: int, fd: int) -> int:
    owner = os.pidfd_open(pid)
    try:
        return seccomp.take_descriptor(owner, fd)
    finally:
        os.close(owner)


def _descendants(root: int) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        for path in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with suppress(OSError):
                waiting += (
                    below := [int(word) for word in path.read_text(encoding="ascii").split()]
                )
                found += below
    return found


def _has_ended(pidfd: int, timeout_s: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def _observe(listener: int, pidfd: int, learned: Learned) -> None:
    """Answer every notification until all that are observed, or their parent, have ended."""
    table = names(os.uname().machine)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if ready.get(listener, 0) & select.POLLIN:
            _answer_one(listener, table, learned)
        elif pidfd in ready:
            return
        elif ready.get(listener, 0) & select.POLLHUP:
            poll.unregister(listener)


def _answer_one(listener: int, table: Mapping[int, str], learned: Learned) -> None:
    buffer = bytearray(_NOTIFICATION.size)
    with suppress(FileNotFoundError):  # it died, or was interrupted, meanwhile
        fcntl.ioctl(listener, _RECEIVE, buffer)
        ident, pid, _flags, nr, _arch, _ip, *arguments = _NOTIFICATION.unpack(buffer)
        name = table.get(nr, "")
        if name:
            learned.calls[name] += 1
        if name in _PATHS and (path := _read_path(pid, arguments[_PATHS[name]])):
            learned.paths[path] += 1
        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(ident, 0, 0, _CONTINUE)))


def _read_path(pid: int, address: int) -> str:
    """An absolute path that a call names, "" for others; it is data of the observed process."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            raw = memory.read(_LONGEST_PATH)
    except (OSError, OverflowError, ValueError):
        return ""
    text = raw.partition(b"\0")[0].decode(errors="replace")
    return text if text.startswith("/") and text.isprintable() else ""


# -- the profile -----------------------------------------------------------------------------------


def profile_text(profile: Profile, tier: str, learned: Learned, argv: list[str]) -> str:
    """A profile that extends `profile` by taking away what the run did not use."""
    unused = [
        path for path in profile.files.system if path not in _PROGRAMS and not _used(path, learned)
    ]
    allowed = _allowed(profile, tier)
    calls = {name: learned.calls[name] for name in allowed & {*learned.calls, *_ALWAYS}}
    lines = [
        f"description = {_quoted('Learnt from: ' + ' '.join(argv))}",
        f"extends = {_quoted(profile.path)}",
        "",
        "[syscalls]",
        "allow = [",
        *(f"    {_quoted('-' + entry)}," for entry in profile.syscalls.allow),
        *(f"    {_quoted(name)},  # {count}" for name, count in sorted(calls.items())),
        "]",
        "",
        "[files]",
        "system = [",
        *(f"    {_quoted('-' + path)}," for path in unused),
        "]",
    ]
    opened = [f"#   {count:>6}  {path}" for path, count in sorted(learned.paths.items())]
    return "\n".join([*lines, "", "# What it opened or ran, and how often:", *opened, ""])


def _allowed(profile: Profile, tier: str) -> set[str]:
    """The calls that the profile's own filter lets pass, if only with some arguments."""
    rules = rules_for(
        profile.syscalls.allow,
        profile.syscalls.deny,
        unix_sockets=profile.syscalls.unix_sockets,
        inet=True,
        tier=tier,
    )
    refused = (Action.EPERM, Action.ENOSYS, Action.KILL_PROCESS)
    return {name for name, decision in rules.decisions.items() if decision not in refused}


def _used(folder: str, learned: Learned) -> bool:
    real = os.path.realpath(folder)
    return any(
        path == place or path.startswith(place + "/")
        for path in (each for one in learned.paths for each in (one, os.path.realpath(one)))
        for place in (folder, real)
    )


def _quoted(text: str) -> str:
    plain = "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)
    return f'"{plain}"'
