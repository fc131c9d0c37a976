"""The job of a namespaced plan as bubblewrap does it, to measure beside vsm where it is installed.

The same namespaces, binds and links, a private /tmp, /dev and /proc, no capability, and the same
system call filter. Not the same: bubblewrap has no Landlock domain, no resource limit, no bound
on /tmp, and its /proc is writable.
"""

import base64
import os
import shutil
from typing import Any

from vsm.confinement.execution import Plan
from vsm.confinement.operations import FilterSystemCalls
from vsm.confinement.root_operations import Bind, Link

BUBBLEWRAP = "bubblewrap"
SKIPPED = "skipped: bubblewrap is not installed"
FILTER = "FILTER"  # whoever runs it puts a descriptor's number here
_NAMESPACES = ("user", "pid", "ipc", "uts", "net", "cgroup")


def bubblewrap_job(plan: Plan | None) -> dict[str, Any] | None:
    """{"argv", "filter"} that confines as much of `plan` as bubblewrap can, None without it."""
    program = shutil.which("bwrap")
    if plan is None or program is None:
        return None
    programs = [step.program for step in plan.operations if isinstance(step, FilterSystemCalls)]
    argv = [
        program,
        *(f"--unshare-{kind}" for kind in _NAMESPACES),
        *("--uid", str(plan.uid), "--gid", str(plan.uid), "--hostname", "sandbox"),
        *_root(plan),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--chdir", plan.cwd, "--clearenv"),
        *("--seccomp", FILTER, "--remount-ro", "/", "--"),
        *plan.argv,
    ]
    return {"argv": argv, "filter": programs[0]}


def run_bubblewrap(job: dict[str, Any], out: int) -> int:
    """Start it with `out` as stdout and wait; its exit code."""
    fd = os.memfd_create("filter", 0)
    try:
        os.write(fd, base64.b64decode(job["filter"]))
        os.lseek(fd, 0, os.SEEK_SET)
        argv = [str(fd) if word == FILTER else word for word in job["argv"]]
        actions = [(os.POSIX_SPAWN_DUP2, out, 1)]
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(fd)


def _root(plan: Plan) -> list[str]:
    words = ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    for step in plan.operations:
        if isinstance(step, Bind) and not step.device:
            words += ["--bind" if step.write else "--ro-bind", step.path, step.path]
        elif isinstance(step, Link) and not step.path.startswith("/dev/"):
            words += ["--symlink", step.target, step.path]
    return words
