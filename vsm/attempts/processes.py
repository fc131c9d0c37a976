"""Seeing, signalling, tracing and changing processes that are not the worker's."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable

from .base import (
    ATTEMPTS,
    PROC_GAP,
    Attempt,
    Unavailable,
    World,
    attempt,
    number,
    syscall,
)


@attempt("processes", "namespaces", "landlock")
def signal_a_process_outside(w: World) -> None:
    os.kill(w["victim"], 0)


@attempt("processes", "namespaces", "landlock")
def signal_the_process_that_started_us(w: World) -> None:
    os.kill(w["starter"], 0)


SHOWN_TO_EVERYBODY = ("cmdline", "status", "mountinfo", "net/tcp", "timers")  # timers: by 6.12


@attempt("processes", "namespaces", weaker={"landlocked": PROC_GAP})
def see_processes_outside(w: World) -> None:
    """Their numbers, command lines, mounts, connections: what /proc shows to everybody."""
    if str(w["victim"]) in os.listdir("/proc"):
        return
    refusals = []
    for file in SHOWN_TO_EVERYBODY:
        try:
            os.close(os.open(f"/proc/{w['victim']}/{file}", os.O_RDONLY))
        except OSError as error:
            refusals.append(error)
    if len(refusals) == len(SHOWN_TO_EVERYBODY):
        raise refusals[0]


# what of /proc/PID → how it is opened: its owner may, so only the sandbox is in the way
OF_A_PROCESS = {
    "maps": os.O_RDONLY,
    "auxv": os.O_RDONLY,
    "io": os.O_RDONLY,
    "pagemap": os.O_RDONLY,
    "smaps": os.O_RDONLY,
    "syscall": os.O_RDONLY,
    "personality": os.O_RDONLY,
    "root": os.O_RDONLY,
    "cwd": os.O_RDONLY,
    "exe": os.O_RDONLY,
    "fd": os.O_RDONLY,
    "map_files": os.O_RDONLY,
    "fdinfo": os.O_RDONLY,
    "smaps_rollup": os.O_RDONLY,
    "numa_maps": os.O_RDONLY,
    "stack": os.O_RDONLY,
    "comm": os.O_WRONLY,
    "oom_score_adj": os.O_WRONLY,
    "coredump_filter": os.O_WRONLY,
    "clear_refs": os.O_WRONLY,
    "timerslack_ns": os.O_WRONLY,
    "sched": os.O_WRONLY,
}


def _opening(file: str, flags: int) -> Callable[[World], None]:
    def action(w: World) -> None:
        try:
            fd = os.open(f"/proc/{w['victim']}/{file}", flags)
        except FileNotFoundError:
            if w.get("is_control"):
                raise Unavailable("this kernel has no such file") from None
            raise
        if flags == os.O_RDONLY and os.path.isdir(f"/proc/self/fd/{fd}"):
            os.stat(os.listdir(fd)[0], dir_fd=fd)  # names alone are no access
        elif flags == os.O_RDONLY:
            os.read(fd, 8)
        os.close(fd)

    return action


for _file, _flags in OF_A_PROCESS.items():
    _name = f"open_{_file}_of_a_process_outside"
    ATTEMPTS[_name] = Attempt(
        _name,
        "processes",
        _opening(_file, _flags),
        ("namespaces", "landlock"),
        control="root" if _file in {"map_files", "stack"} else "any",
    )


@attempt("processes", "namespaces", "landlock")
def signal_a_process_outside_by_its_handle(w: World) -> None:
    signal.pidfd_send_signal(os.pidfd_open(w["victim"]), 0)


F_SETSIG = 10  # linux/fcntl.h


@attempt("processes", "namespaces", "landlock")
def signal_a_process_outside_by_a_descriptor(w: World) -> None:
    """F_SETOWN names who is signalled when data comes; the victim's own state tells whether."""
    # What came to the victim stays pending: an earlier attempt's must not be taken for this one's.
    before = _pending(w["victim"])
    asked = next((signo for signo in w["asked_signals"] if not before >> signo - 1 & 1), None)
    if asked is None:
        raise Unavailable("every signal that the victim would keep has come already")
    one, other = socket.socketpair()
    fcntl.fcntl(one, F_SETSIG, asked)
    fcntl.fcntl(one, fcntl.F_SETOWN, w["victim"])
    fcntl.fcntl(one, fcntl.F_SETFL, fcntl.fcntl(one, fcntl.F_GETFL) | os.O_ASYNC)
    other.send(b"x")
    if not _pending(w["victim"]) >> asked - 1 & 1:
        raise PermissionError(errno.EPERM, "it did not come")


def _pending(pid: int) -> int:
    """The signals that wait for a process, as a mask."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        lines = [line for line in status if line.startswith(("SigPnd", "ShdPnd"))]
    return int(lines[0].split()[1], 16) | int(lines[1].split()[1], 16)


@attempt("processes", "namespaces", "landlock", "seccomp")
def queue_a_signal_for_a_process_outside(w: World) -> None:
    information = ctypes.create_string_buffer(128)
    struct.pack_into("=iii", information, 0, 0, 0, -1)  # signal 0, SI_QUEUE
    syscall(129, w["victim"], 0, ctypes.addressof(information))


@attempt("processes", "namespaces", "seccomp")
def write_the_memory_of_a_process_outside(w: World) -> None:
    syscall(number("process_vm_writev"), w["victim"], 0, 0, 0, 0, 0)


@attempt("processes", "namespaces", "seccomp")
def change_the_io_priority_of_a_process_outside(w: World) -> None:
    syscall(251, 1, w["victim"], syscall(252, 1, w["victim"]))  # ioprio_set, ioprio_get


@attempt("processes", "root_filesystem", "landlock", control="root")
def write_to_the_program_that_runs(_w: World) -> None:
    """Through /proc/self/exe, which a container's runtime shares with the host."""
    try:
        os.close(os.open("/proc/self/exe", os.O_WRONLY))
    except OSError as error:
        if error.errno != errno.ETXTBSY:  # permitted, once it has ended
            raise


@attempt("processes", "landlock")
def write_to_own_memory_through_proc(_w: World) -> None:
    """By this way read-only pages can be written."""
    os.close(os.open("/proc/self/mem", os.O_RDWR))


@attempt("processes", "namespaces", "landlock")
def read_the_environment_of_a_process_outside(w: World) -> None:
    os.close(os.open(f"/proc/{w['victim']}/environ", os.O_RDONLY))


@attempt("processes", "namespaces", "landlock")
def open_the_memory_of_a_process_outside(w: World) -> None:
    os.close(os.open(f"/proc/{w['victim']}/mem", os.O_RDWR))


@attempt("processes", "privileges", "landlock", control="root")
def list_the_descriptors_of_the_first_process(_w: World) -> None:
    os.listdir("/proc/1/fd")


@attempt("processes", "privileges", "landlock", control="root")
def open_the_memory_of_the_parent(w: World) -> None:
    os.close(os.open(f"/proc/{w['parent']}/mem", os.O_RDONLY))


@attempt("processes", "namespaces", "landlock")
def read_the_memory_of_a_process_outside(w: World) -> None:
    syscall(number("process_vm_readv"), w["victim"], 0, 0, 0, 0, 0)


@attempt("processes", "namespaces", "landlock")
def trace_a_process_outside(w: World) -> None:
    syscall(number("ptrace"), 0x4206, w["victim"], 0, 0)  # PTRACE_SEIZE; ends with this child


@attempt("processes", "namespaces", "seccomp")
def open_a_handle_on_a_process_outside(w: World) -> None:
    os.close(os.pidfd_open(w["victim"]))


@attempt("processes", "namespaces", "seccomp")
def change_the_priority_of_a_process_outside(w: World) -> None:
    os.setpriority(os.PRIO_PROCESS, w["victim"], os.getpriority(os.PRIO_PROCESS, w["victim"]))


@attempt("processes", "namespaces", "seccomp")
def move_a_process_outside_between_cpus(w: World) -> None:
    os.sched_setaffinity(w["victim"], os.sched_getaffinity(w["victim"]))


@attempt("processes", "namespaces", "seccomp")
def change_the_limits_of_a_process_outside(w: World) -> None:
    old = resource.prlimit(w["victim"], resource.RLIMIT_CORE)
    resource.prlimit(w["victim"], resource.RLIMIT_CORE, old)


@attempt("processes", "namespaces", "seccomp")
def change_the_scheduling_of_a_process_outside(w: World) -> None:
    os.sched_setscheduler(
        w["victim"], os.sched_getscheduler(w["victim"]), os.sched_getparam(w["victim"])
    )


@attempt("processes", "privileges", "seccomp", control="root")
def become_a_realtime_process(_w: World) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@attempt("processes", "privileges", "seccomp", control="root")
def raise_own_priority(_w: World) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, -5)
