"""`vsm profile learn`: run a command under a profile, and write down how little of it it needed.

The command is confined as ever, but for one thing: every system call is reported to this process
by seccomp's user notification, and this process answers as the profile's filter would, which it
simulates: "go on", or EPERM. A call is judged by its number and registers, as the kernel's filter
judges it; nothing of the command's memory counts for the answer. So refused calls are seen, too.
What answers ENOSYS, and foreign entries, stay the kernel's own affair. If this process dies, the
kernel answers ENOSYS to everything. Hosts are seen at the egress process, which refuses whatever
the profile does not allow. What is learnt is a subset of the profile, always. Forks;
single-threaded; any privilege. Sources: seccomp_unotify(2), linux/seccomp.h.
"""

import base64
import os
import select
import signal
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from vsm.configuration.profile import Profile
from vsm.confinement.execution import Plan
from vsm.confinement.operations import FilterSystemCalls, Site
from vsm.core.egress import Rules, parse_target
from vsm.core.seccomp import Action, replace_answer, rules_for, simulate
from vsm.core.syscalls import names
from vsm.egress.link import EgressLink
from vsm.errors import VsmError
from vsm.linux import prctl, seccomp
from vsm.processes.launch import LaunchError, spawn_confined, wait_confined

_NOTIFY_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, Action.NOTIFY)  # BPF_RET
_FORBID_DUMPS: Final = (4, 0)  # PR_SET_DUMPABLE
_FIND_S: Final = 20.0
_LONGEST_PATH: Final = 4096
MOST_PATHS: Final = 5_000
OTHERS: Final = "(others)"
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
_WORKER: Final = "sandbox"


class _Observed(NamedTuple):
    """Stands for the plan's filter: one that reports all, and what of the plan's is no EPERM."""

    inner: FilterSystemCalls
    layer: str = "seccomp"

    def execute(self, site: Site) -> str:
        """Install both; closing the listener waits until the observer has taken it.

        Then this process is as closed to its server as ever: it holds what its parent held.
        """
        prctl.allow_dumps()  # so that an observer of the same user may take it; exec does so too
        rest = replace_answer(base64.b64decode(self.inner.program), Action.EPERM, Action.ALLOW)
        encoded = base64.b64encode(rest).decode()
        said = self.inner._replace(program=encoded, reported=False).execute(site)
        listener = seccomp.install_reported(_NOTIFY_ALL, every_thread=site.threaded)
        os.close(listener)
        prctl.forbid_dumps()
        return said

    def describe(self) -> str:
        """As the inner one."""
        return f"{self.inner.describe()}, observed"


@dataclass
class Learned:
    """What a run did.

    Args:
        calls: by name, those that passed.
        refused: by name, those that did not.
        paths: opened or run.
        hosts: "name:port" → what the egress process counted; None where none was there.
        status: how it ended.
    """

    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    hosts: dict[str, dict[str, Any]] | None = None
    status: int = 0

    def note_path(self, path: str) -> None:
        """Count a path; the command chooses them, so there is a bound to how many are kept."""
        known = path in self.paths or len(self.paths) < MOST_PATHS
        self.paths[path if known else OTHERS] += 1


def learn(plan: Plan, egress: tuple[EgressLink, Rules] | None = None) -> Learned:
    """Run a plan observed, on this process's stdin, stdout and stderr.

    Args:
        plan: of the command.
        egress: the process that answers for its network, and by which rules.

    Raises:
        VsmError: the command did not start, or cannot be observed here.
    """
    filters = [step for step in plan.operations if isinstance(step, FilterSystemCalls)]
    steps = tuple(_Observed(s) if isinstance(s, FilterSystemCalls) else s for s in plan.operations)
    plan = plan._replace(operations=steps)
    pid = os.fork()
    if pid == 0:
        _be_parent(plan, egress)
    learned = Learned()
    pidfd = os.pidfd_open(pid)
    try:
        listener = _find_listener(pid, pidfd)
        program = base64.b64decode(filters[0].program) if filters else b""
        _Observer(listener, program, learned).observe(pidfd)
        os.close(listener)
        # Its first execve is the mini-init's, whose memory an ordinary user may not read.
        learned.paths[plan.argv[0]] = max(1, learned.paths[plan.argv[0]])
    except BaseException:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        raise
    finally:
        learned.status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pidfd)
    if egress is not None:
        link = egress[0]
        link.wait_last_counts(_WORKER)
        learned.hosts = link.counts.get(_WORKER, {})
    return learned


def _be_parent(plan: Plan, egress: tuple[EgressLink, Rules] | None) -> None:
    """Runs in the child; never returns. It waits, so that the observer does not have to."""
    status = EXIT_NOT_STARTED
    try:
        prctl.set_death_signal(signal.SIGKILL)  # unobserved calls would wait for ever
        spawned = spawn_confined(plan, 0, 1, 2)
        if egress is not None:
            egress[0].serve(_WORKER, egress[1], spawned.listeners)
        for fd in spawned.listeners:
            os.close(fd)
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
                    with suppress(OSError):  # it ended meanwhile; or the kernel does not give it
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
        folder = Path(f"/proc/{waiting.pop()}/task")
        with suppress(OSError):  # one that ends meanwhile has none
            for thread in os.listdir(folder):
                words = (folder / thread / "children").read_text(encoding="ascii").split()
                waiting += (below := [int(word) for word in words])
                found += below
    return found


def _has_ended(pidfd: int, timeout_s: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout_s)[0])


class _Observer:
    """Answers as `program` would, and counts."""

    def __init__(self, listener: int, program: bytes, learned: Learned) -> None:
        self._listener, self._program, self._learned = listener, program, learned
        self._machine = os.uname().machine
        self._names = names(self._machine)
        self._shielded = False

    def observe(self, pidfd: int) -> None:
        """Until all that are observed, or their parent, have ended."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if ready.get(self._listener, 0) & select.POLLIN:
                self._answer_one()
            elif pidfd in ready:
                return
            elif ready.get(self._listener, 0) & select.POLLHUP:
                poll.unregister(self._listener)

    def _answer_one(self) -> None:
        asked = seccomp.receive(self._listener)
        if asked is None:
            return
        name = self._names.get(asked.nr, "")
        if not self._shielded and (name, asked.arguments[:2]) == ("prctl", _FORBID_DUMPS):
            self._shielded = True  # the mini-init's, which the command does not need
            seccomp.let_pass(self._listener, asked.ident)
            return
        answer = simulate(self._program, self._machine, asked.nr, asked.arguments)
        if answer is not Action.ALLOW:
            if name:
                self._learned.refused[name] += 1
            seccomp.refuse(self._listener, asked.ident)
            return
        self._learned.calls[name] += 1
        if name in _PATHS and (path := _read_path(asked.pid, asked.arguments[_PATHS[name]])):
            self._learned.note_path(path)
        seccomp.let_pass(self._listener, asked.ident)


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
    lines += _network_lines(profile, learned)
    lines += _listed("What it opened or ran", learned.paths)
    lines += _listed(f"System calls that {profile.name} refused", learned.refused)
    if learned.hosts:
        lines += ["", "# Hosts that it asked for: asked, allowed, refused:"]
        for host, row in sorted(learned.hosts.items()):
            counts = "".join(f"{row[key]:>7}" for key in ("asked", "allowed", "refused"))
            lines.append(f"# {counts}  {_plain(host)}")
    return "\n".join([*lines, ""])


def _network_lines(profile: Profile, learned: Learned) -> list[str]:
    """Take away the hosts that were not asked for."""
    if profile.network.mode != "proxy" or learned.hosts is None:
        return []
    hosts = learned.hosts
    unused = [e for e in profile.network.allow if not any(_means(e, host) for host in hosts)]
    return [
        "",
        "[network]",
        "allow = [",
        *(f"    {_quoted('-' + entry)}," for entry in unused),
        "]",
    ]


def _means(entry: str, asked: str) -> bool:
    """Whether an entry of network.allow is what was asked for, as NAME:PORT."""
    target = parse_target(entry)
    if not target.wildcard:
        return str(target) == asked
    host, _, port = asked.rpartition(":")
    return host.endswith(f".{target.host}") and port == str(target.port)


def _listed(title: str, counts: Counter[str]) -> list[str]:
    rows = [f"# {count:>7}  {_plain(name)}" for name, count in sorted(counts.items())]
    return ["", f"# {title}, and how often:", *rows] if rows else []


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
        for path in (each for one in learned.paths for each in (one, _real(one)))
        for place in (folder, real)
    )


def _real(path: str) -> str:
    """A path that the command chose: here it may lead where not even this process may look."""
    try:
        return os.path.realpath(path)
    except OSError:
        return path


def _quoted(text: str) -> str:
    return f'"{_plain(text)}"'


def _plain(text: str) -> str:
    """What a command chose cannot end a comment or a string of the file."""
    return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)
