"""New namespaces and mounts, and system calls that no server needs: wrong arguments on purpose."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
from collections.abc import Callable

from .base import (
    ATTEMPTS,
    BAD,
    MINUS,
    NUMBERS,
    SELF,
    Attempt,
    Unavailable,
    World,
    attempt,
    last_error,
    libc,
    number,
    pty,
    syscall,
)

# -- namespaces and mounts ------------------------------------------------------------------------


def _unshare(flags: int) -> None:
    if libc.unshare(flags) < 0:
        raise last_error()


@attempt("namespaces", "seccomp")
def make_a_user_namespace(_w: World) -> None:
    _unshare(0x10000000)


@attempt("namespaces", "seccomp")
def make_a_user_namespace_by_clone(_w: World) -> None:
    try:
        syscall(number("clone"), 0x10000000 | 0x200, 0, 0, 0, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # with CLONE_FS: EINVAL if permitted
            raise


@attempt("namespaces", "seccomp", control="root")
def make_a_mount_namespace(_w: World) -> None:
    _unshare(0x00020000)


@attempt("namespaces", "seccomp", control="root")
def make_a_network_namespace(_w: World) -> None:
    _unshare(0x40000000)


@attempt("namespaces", "seccomp", control="root")
def make_a_pid_namespace(_w: World) -> None:
    _unshare(0x20000000)


# linux/sched.h; cgroup, uts, ipc and time beside those above
NAMESPACES = {"cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000, "time": 0x80}
CLONED = {
    "mount": 0x00020000,
    "pid": 0x20000000,
    "network": 0x40000000,
    **{kind: flag for kind, flag in NAMESPACES.items() if kind != "time"},
}
JOINED = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def _unsharing(flag: int) -> Callable[[World], None]:
    return lambda _w: _unshare(flag)


def _cloning(flag: int) -> Callable[[World], None]:
    def action(_w: World) -> None:
        pid = syscall(number("clone"), flag | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    return action


def _joining(kind: str) -> Callable[[World], None]:
    def action(_w: World) -> None:
        fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
        try:
            syscall(number("setns"), fd, 0)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EUSERS):  # our own user namespace
                raise

    return action


for _kind, _flag in NAMESPACES.items():
    _name = f"make_a_namespace_of_kind_{_kind}"
    ATTEMPTS[_name] = Attempt(_name, "namespaces", _unsharing(_flag), ("seccomp",), control="root")
for _kind, _flag in CLONED.items():
    _name = f"clone_into_a_namespace_of_kind_{_kind}"
    ATTEMPTS[_name] = Attempt(_name, "namespaces", _cloning(_flag), ("seccomp",), control="root")
for _kind in JOINED:
    _name = f"join_the_namespace_of_kind_{_kind}"
    ATTEMPTS[_name] = Attempt(_name, "namespaces", _joining(_kind), ("seccomp",), control="root")


@attempt("namespaces", "seccomp", control="root")
def change_the_root(_w: World) -> None:
    os.chroot("/")


@attempt("namespaces", "namespaces", "landlock")
def enter_the_namespaces_of_a_process_outside(w: World) -> None:
    os.close(os.open(f"/proc/{w['victim']}/ns/net", os.O_RDONLY))


@attempt("namespaces", "seccomp", control="root")
def mount_a_file_system(_w: World) -> None:
    _unshare(0x00020000)
    if libc.mount(b"none", b"/", None, ctypes.c_ulong(1 << 18 | 1 << 14), None) < 0:
        raise OSError(ctypes.get_errno(), "private")
    if libc.mount(b"tmpfs", b"/mnt", b"tmpfs", ctypes.c_ulong(0), None) < 0:
        raise OSError(ctypes.get_errno(), "mount")


# -- system calls ---------------------------------------------------------------------------------

# name → (x86_64 number, arguments): wrong on purpose, see above
CALLS: dict[str, tuple[int, tuple[int, ...]]] = {
    "mount": (165, (BAD, BAD, BAD, 0, 0)),
    "umount2": (166, (BAD, 0)),
    "pivot_root": (155, (BAD, BAD)),
    "open_tree": (428, (MINUS, BAD, 0xFFFF)),
    "move_mount": (429, (MINUS, BAD, MINUS, BAD, 0xFFFF)),
    "fsopen": (430, (BAD, 0)),
    "fsconfig": (431, (MINUS, 99, 0, 0, 0)),
    "fsmount": (432, (MINUS, 0, 0)),
    "fspick": (433, (MINUS, BAD, 0xFFFF)),
    "mount_setattr": (442, (MINUS, BAD, 0, 0, 0)),
    "setns": (308, (MINUS, 0)),
    "clone3": (435, (BAD, 0)),
    "bpf": (321, (99, 0, 0)),
    "perf_event_open": (298, (BAD, 0, 0, MINUS, 0)),
    "userfaultfd": (323, (0xFFFF,)),
    "io_uring_setup": (425, (0, BAD)),
    "io_uring_enter": (426, (MINUS, 0, 0, 0, 0, 0)),
    "io_uring_register": (427, (MINUS, 99, 0, 0)),
    "add_key": (248, (BAD, BAD, 0, 0, 0)),
    "request_key": (249, (BAD, BAD, 0, 0)),
    "keyctl": (250, (99, 0, 0, 0, 0)),
    "init_module": (175, (BAD, 0, BAD)),
    "finit_module": (313, (MINUS, BAD, 0xFFFF)),
    "delete_module": (176, (BAD, 0)),
    "kexec_load": (246, (0, 0, 0, 0xFF00FF00)),
    "kexec_file_load": (320, (MINUS, MINUS, 0, 0, 0xFF00)),
    "reboot": (169, (0, 0, 0, 0)),
    "swapon": (167, (BAD, 0)),
    "swapoff": (168, (BAD,)),
    "acct": (163, (BAD,)),
    "quotactl": (179, (0x7FFFFFFF, BAD, 0, 0)),
    "sethostname": (170, (BAD, MINUS)),
    "setdomainname": (171, (BAD, MINUS)),
    "settimeofday": (164, (BAD, 0)),
    "clock_settime": (227, (1, BAD)),
    "adjtimex": (159, (BAD,)),
    "clock_adjtime": (305, (99, BAD)),
    "iopl": (172, (0,)),
    "ioperm": (173, (0, 0, 0)),
    "modify_ldt": (154, (0, 0, 0)),
    "syslog": (103, (99, 0, 0)),
    "fanotify_init": (300, (0xFFFFFFFF, 0)),
    "fanotify_mark": (301, (MINUS, 0, 0, MINUS, 0)),
    "open_by_handle_at": (304, (MINUS, BAD, 0)),
    "name_to_handle_at": (303, (MINUS, BAD, BAD, BAD, 0)),
    "kcmp": (312, (SELF, SELF, 99, 0, 0)),
    "pidfd_getfd": (438, (MINUS, 0, 0)),
    "process_madvise": (440, (MINUS, 0, 0, 0, 0)),
    "process_mrelease": (448, (MINUS, 0)),
    "process_vm_writev": (311, (SELF, 0, 0, 0, 0, 99)),
    "migrate_pages": (256, (SELF, 0, 0, 0)),
    "move_pages": (279, (SELF, 0, 0, 0, 0, 0xFF00)),
    "memfd_secret": (447, (0xFF00,)),
    "lsm_set_self_attr": (460, (0, BAD, 0, 0)),
    "vmsplice": (278, (MINUS, BAD, 1, 0xFFFF)),
    "personality": (135, (0x0040000,)),
    "ptrace_traceme": (101, (0, 0, 0, 0)),
    "ustat": (136, (0, BAD)),
    "sysfs": (139, (99, 0, 0)),
    "chroot": (161, (BAD,)),
    "quotactl_fd": (443, (MINUS, BAD, 0, 0)),
    "open_tree_attr": (467, (MINUS, BAD, 0xFFFF, BAD, 0)),
    "statmount": (457, (BAD, BAD, 0, 0)),
    "listmount": (458, (BAD, BAD, 0, 0)),
    "process_vm_readv": (310, (SELF, 0, 0, 0, 0, 99)),
    "capset": (126, (BAD, BAD)),
    "remap_file_pages": (216, (1, 1, 1, 1, 1)),
    "lsm_get_self_attr": (459, (99, BAD, BAD, 0)),
    "lsm_list_modules": (461, (BAD, BAD, 1)),
    "lease": (72, (MINUS, 1024, 1)),
    "nice_other": (141, (0, 1, 0)),
    "io_setup": (206, (0, BAD)),
    "seccomp_with_a_listener": (317, (1, 8, BAD)),
    "set_mempolicy_home_node": (450, (1, 1, 0, 99)),
    "mbind": (237, (1, 1, 99, 0, 0, 0xFFFF)),
    "set_mempolicy": (238, (99, 0, 0)),
}


def _call_attempt(name: str) -> Callable[[World], None]:
    def action(_w: World) -> None:
        try:
            arguments = (os.getpid() if a == SELF else a for a in CALLS[name][1])
            syscall(number(name), *arguments)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                raise

    return action


NUMBERS.update((name, call[0]) for name, call in CALLS.items() if name not in NUMBERS)
for _name in CALLS:
    ATTEMPTS[f"call_{_name}"] = Attempt(
        f"call_{_name}", "system calls", _call_attempt(_name), ("seccomp",), control="root"
    )


@attempt("system calls", "seccomp")
def call_through_the_32_bit_entry(_w: World) -> None:
    if platform.machine() != "x86_64":
        raise Unavailable("x86_64 only")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() != os.getpid():
        raise PermissionError(errno.EPERM, "no answer")


@attempt("system calls", "seccomp")
def push_input_into_a_terminal(_w: World) -> None:
    controller, terminal = pty()
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # comes when the controller closes
    fcntl.ioctl(terminal, 0x540E, 0)  # TIOCSCTTY
    try:
        fcntl.ioctl(terminal, 0x5412, b"x")  # TIOCSTI
    except OSError as error:
        if error.errno == errno.EIO:  # dev.tty.legacy_tiocsti=0: permitted by the sandbox
            return
        raise
    finally:
        os.close(controller)


@attempt("system calls", "seccomp")
def push_input_through_an_inherited_descriptor(_w: World) -> None:
    _ioctl_of_a_terminal(0x5412, b"x")  # TIOCSTI


@attempt("system calls", "seccomp")
def push_input_with_a_high_bit(_w: World) -> None:
    """The kernel looks at 32 bits of the request only."""
    byte = ctypes.create_string_buffer(b"x")
    try:
        syscall(16, 0, 1 << 32 | 0x5412, ctypes.addressof(byte))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise


@attempt("system calls", "seccomp")
def use_the_console_ioctl(_w: World) -> None:
    _ioctl_of_a_terminal(0x541C, b"\x0f")  # TIOCLINUX


def _ioctl_of_a_terminal(request: int, argument: bytes) -> None:
    try:
        fcntl.ioctl(0, request, argument)
    except OSError as error:  # our descriptor 0 is no terminal: ENOTTY if permitted
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise


CHUNK = 64
# linux/prctl.h: options that no server needs, with a wrong argument
OPTIONS = {
    "set_seccomp": (22, 99),
    "set_tracer": (0x59616D61, 0x7FFFFFFE),
    "raise_ambient_capability": (47, 99),
    "disable_counters": (31, 99),
    "set_machine_check_policy": (33, 99),
    "share_a_core": (62, 99),
    "set_timing": (14, 99),
    "set_memory_map": (35, 15),  # PR_SET_MM_MAP_SIZE to a null pointer
}


def _option(option: int, argument: int) -> Callable[[World], None]:
    def action(_w: World) -> None:
        if libc.prctl(option, argument, 0, 0, 0) < 0:
            code = ctypes.get_errno()
            if code in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                raise OSError(code, os.strerror(code))

    return action


for _name, (_number, _argument) in OPTIONS.items():
    _name = f"option_{_name}"
    ATTEMPTS[_name] = Attempt(
        _name, "system calls", _option(_number, _argument), ("seccomp",), control="root"
    )


@attempt("system calls", "seccomp")
def call_through_the_x32_entry(_w: World) -> None:
    if platform.machine() != "x86_64":
        raise Unavailable("x86_64 only")
    syscall(0x40000000 | 39)  # getpid


@attempt("system calls", "seccomp")
def make_every_call_that_the_filter_refuses(w: World) -> None:
    """The compiled filter, asked number by number, against what the kernel then answers."""
    if not w.get("refused_calls"):
        raise Unavailable("no compiled filter of this profile")
    refused = w["refused_calls"]
    chunks = [refused[at : at + CHUNK] for at in range(0, len(refused), CHUNK)]
    answered = [
        str(nr) for chunk in chunks if not _refuses(chunk) for nr in chunk if not _refuses([nr])
    ]
    if not answered:
        raise PermissionError(errno.EPERM, f"{len(refused)} numbers")
    os.write(2, f"answered: {' '.join(answered)}\n".encode())


def _refuses(numbers: list[int]) -> bool:
    """In a child, since a call that is permitted may end or stop its caller."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(2)
        for nr in numbers:
            try:
                syscall(nr, *(MINUS,) * 6)
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                    continue
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
