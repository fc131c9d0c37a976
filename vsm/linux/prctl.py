"""Process attributes: death signal, subreaper, dumpability, no_new_privs, name."""

import ctypes

from vsm.linux.syscall import prctl

# include/uapi/linux/prctl.h
_SET_PDEATHSIG = 1
_GET_PDEATHSIG = 2
_SET_DUMPABLE = 4
_SET_NAME = 15
_SET_CHILD_SUBREAPER = 36
_SET_NO_NEW_PRIVS = 38


def set_death_signal(signo: int) -> None:
    """Get `signo` when the parent (thread) dies; cleared by a change of uid."""
    prctl("PR_SET_PDEATHSIG", _SET_PDEATHSIG, signo)


def death_signal() -> int:
    """The signal set by `set_death_signal`, 0 if none."""
    value = ctypes.c_int()
    prctl("PR_GET_PDEATHSIG", _GET_PDEATHSIG, ctypes.addressof(value))
    return value.value


def become_subreaper() -> None:
    """Orphaned descendants become this process's children."""
    prctl("PR_SET_CHILD_SUBREAPER", _SET_CHILD_SUBREAPER, 1)


def forbid_dumps() -> None:
    """No core dump, and no ptrace or /proc/PID/mem by a process of the same uid."""
    prctl("PR_SET_DUMPABLE", _SET_DUMPABLE, 0)


def allow_dumps() -> None:
    """Undo `forbid_dumps` (an exec does so too)."""
    prctl("PR_SET_DUMPABLE", _SET_DUMPABLE, 1)


def set_no_new_privileges() -> None:
    """No exec gains privileges from now on; for ever, descendants included."""
    prctl("PR_SET_NO_NEW_PRIVS", _SET_NO_NEW_PRIVS, 1)


def set_name(name: str) -> None:
    """The thread's name in ps and top, 15 bytes at most."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl("PR_SET_NAME", _SET_NAME, ctypes.addressof(buffer))
