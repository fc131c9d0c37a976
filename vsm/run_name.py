"""The name of one run of vsm: by it a later run knows what a dead one has left.

Owns the form of the name, which control groups and private directories begin with. Pure but for
reading /proc. Standard library only: the launcher's side of the package imports it.
"""

import os
import re

RUN_NAME = re.compile(r"^vsm-(\d+)-(\d+)-(\d+)(-trial)?$")


def run_name() -> str:
    """This process's name for what it makes: pid, start time, pid namespace."""
    namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"vsm-{os.getpid()}-{start_time(os.getpid())}-{namespace}"


def owner_is_dead(name: str) -> bool:
    """Whether the run of this name has ended; False where its pids mean nothing here."""
    match = RUN_NAME.match(name)
    if match is None or int(match.group(3)) != os.stat("/proc/self/ns/pid").st_ino:
        return False  # another pid namespace's run: its pids mean nothing here
    return start_time(int(match.group(1))) != int(match.group(2))


def start_time(pid: int) -> int | None:
    """When a process started, in ticks; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            raw = file.read()
    except OSError:
        return None
    state, *fields = raw.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])  # field 22 of proc_pid_stat(5)
