"""What a test may leave behind: nothing. Snapshots of it, and their difference.

Attribution is by kinship, so that other work on the machine is never blamed: the test process
is a subreaper, hence whatever a test starts stays its descendant however often it forks, and
TMPDIR is a directory of the session's own. What has no kin (segments, control groups of a dead
owner, mounts and files elsewhere) is compared by name, and only while no other session runs:
whoever makes such things beside others has a folder in /tmp that is named like a session's.
"""

import ctypes
import dataclasses
import gc
import os
import re
import tempfile
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SETTLE_TIMEOUT_S = 30.0
CGROUP_ROOT = Path("/sys/fs/cgroup")
SESSION_NAME = re.compile(r"vsm-t-(\d+)-")
OTHERS_NAME = re.compile(r"vsm-[tr]-")  # sessions, and benchmarks: ours are in `scratch`
CGROUP_NAME = re.compile(r"/vsm-(\d+)-")  # the owner's pid: see vsm.confinement.cgroup

Pid = tuple[int, int]  # the number and the start time: numbers are used again


def become_subreaper() -> None:
    """Adopt every orphan below this process, so that none of them can escape the check."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traces:
    """All that is there at one moment.

    Args:
        strangers: what has no kin and may be another session's; None while one runs.
    """

    processes: frozenset[Pid]
    fds: frozenset[tuple[int, str]]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]
    strangers: frozenset[str] | None


def _stat_fields(pid: int) -> tuple[str, int, int] | None:
    """State, parent and start time of a process, None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1]), int(fields[19])


def _process_table() -> dict[int, tuple[str, int, int]]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    table = {pid: _stat_fields(pid) for pid in pids}
    return {pid: fields for pid, fields in table.items() if fields is not None}


def descendants(root: int, *, skip: frozenset[Pid] = frozenset()) -> frozenset[Pid]:
    """Every process below `root`, without those in `skip` and what is below them."""
    table = _process_table()
    children: dict[int, list[int]] = {}
    for pid, (_, parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found: set[Pid] = set()
    queue = list(children.get(root, []))
    while queue:
        pid = queue.pop()
        key = (pid, table[pid][2])
        if key not in skip:
            found.add(key)
            queue.extend(children.get(pid, []))
    return frozenset(found)


def is_gone(pid: int) -> bool:
    """Whether the process has ended: a zombie that nobody has reaped yet counts as ended."""
    fields = _stat_fields(pid)
    return fields is None or fields[0] == "Z"


def _reap_zombies(new: frozenset[Pid]) -> None:
    """Reap adopted orphans, which init would have reaped."""
    for pid, started in new:
        fields = _stat_fields(pid)
        if fields == ("Z", os.getpid(), started):
            os.waitpid(pid, os.WNOHANG)


def _open_fds() -> frozenset[tuple[int, str]]:
    """But for the standard ones: where they lead changes when pytest stops capturing."""
    found = set()
    for name in set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}:
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:  # the listing's own descriptor
            continue
    return frozenset(found)


def _mounts(scratch: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Where something is mounted: below our own directory, and elsewhere."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    places = frozenset(line.split()[4] for line in lines)
    own = frozenset(place for place in places if place.startswith(f"{scratch}/"))
    return own, frozenset(f"mount {place}" for place in places - own)


def _cgroups() -> tuple[frozenset[str], frozenset[str]]:
    """vsm's groups: those of our own processes, and those whose owner is dead."""
    ours = {os.getpid(), *(pid for pid, _ in descendants(os.getpid()))}
    own, orphaned = set(), set()
    for folder, _, _ in os.walk(CGROUP_ROOT):
        name = CGROUP_NAME.search(folder)
        if name and int(name[1]) in ours:
            own.add(f"cgroup {folder}")
        elif name and is_gone(int(name[1])):
            orphaned.add(f"cgroup {folder}")
    return frozenset(own), frozenset(orphaned)


def _elsewhere() -> frozenset[str]:
    files = {str(p) for p in Path("/tmp").glob("vsm*") if not OTHERS_NAME.match(p.name)}
    return frozenset(files | {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")})


def make_scratch() -> Path:
    """Make this session's TMPDIR; its name tells other sessions who owns it."""
    return Path(tempfile.mkdtemp(prefix=f"vsm-t-{os.getpid()}-"))


def alone() -> bool:
    """Whether no other session of these checks runs on this machine."""
    names = [SESSION_NAME.match(path.name) for path in Path("/tmp").glob("vsm-t-*")]
    owners = {int(name[1]) for name in names if name} - {os.getpid()}
    return all(is_gone(pid) for pid in owners)


def snapshot(scratch: Path, *, skip: frozenset[Pid] = frozenset()) -> Traces:
    """Record what is there now; processes in `skip` and below are somebody else's."""
    cgroups, orphaned = _cgroups()
    mounts, mounted_elsewhere = _mounts(scratch)
    return Traces(
        processes=descendants(os.getpid(), skip=skip),
        fds=_open_fds(),
        mounts=mounts,
        cgroups=cgroups,
        files=frozenset(f"file {path}" for path in scratch.iterdir()),
        strangers=orphaned | mounted_elsewhere | _elsewhere() if alone() else None,
    )


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        words = "?"
    return f"{pid} ({words.strip()})"


def _owner(cgroup: str) -> int:
    name = CGROUP_NAME.search(cgroup)
    return int(name[1]) if name else 0


def _difference(before: Traces, now: Traces) -> list[str]:
    """One line for each thing that is there now and was not before."""
    new = now.processes - before.processes
    elder = {pid for pid, _ in before.processes}  # a vsm of a wider fixture: its groups may change
    _reap_zombies(new)
    lines = [f"process {_name(pid)}" for pid, _ in new if not is_gone(pid)]
    lines += [f"descriptor {number} -> {target}" for number, target in now.fds - before.fds]
    lines += [f"mount {path}" for path in now.mounts - before.mounts]
    lines += [path for path in now.cgroups - before.cgroups if _owner(path) not in elder]
    lines += now.files - before.files
    if before.strangers is not None and now.strangers is not None:
        lines += now.strangers - before.strangers
    return sorted(lines)


def leaks_since(before: Traces, scratch: Path) -> list[str]:
    """What is still there after a bounded wait, one line each; empty when all is clean."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        lines = _difference(before, snapshot(scratch, skip=before.processes))
        if not lines or time.monotonic() > deadline:
            return lines
        gc.collect()  # what only a cycle still holds is no leak; it costs more than all the rest
        time.sleep(0.02)
