"""What an attacker tries from inside: one table, run by one stdlib-only script.

Runs inside the sandbox and, as the control, outside of it:
`python3 -SI attempts.py WORLD.json [NAME…]` prints {"NAME": {"outcome", "detail"}} where the
outcome is "possible", "refused" or "unavailable". Every attempt runs in a child of its own.

Harmless by construction: files, sockets and processes that the test made; files elsewhere are
only opened; a system call that would change the machine gets a wrong magic number or a bad
pointer, so that "permitted" shows as EFAULT or EINVAL and "blocked" as EPERM or ENOSYS; bombs
are bounded.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

World = dict[str, Any]
BAD = 1  # a pointer that no process has mapped
MINUS = -1
SELF = -(1 << 40)  # stands for the attempt's own pid
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Unavailable(Exception):  # noqa: N818
    """The attempt makes no sense on this machine."""


class Attempt:
    """One attempt.

    Args:
        guards: the layers that are each meant to stop it; the first is the one to take away.
        control: "any" if an ordinary user can do it unconfined, "root" if only root can.
        weaker: tier or tier/user → why it is possible there: expected to succeed, documented.
    """

    def __init__(
        self,
        name: str,
        group: str,
        action: Callable[[World], None],
        guards: tuple[str, ...],
        *,
        control: str = "any",
        weaker: dict[str, str] | None = None,
    ) -> None:
        self.name, self.group, self.action = name, group, action
        self.guards, self.control, self.weaker = tuple(guards), control, weaker or {}


ATTEMPTS: dict[str, Attempt] = {}


def attempt(
    group: str, *guards: str, control: str = "any", weaker: dict[str, str] | None = None
) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Register a function as an attempt; its name is the attempt's."""

    def register(action: Callable[[World], None]) -> Callable[[World], None]:
        name = action.__name__
        ATTEMPTS[name] = Attempt(name, group, action, guards, control=control, weaker=weaker)
        return action

    return register


def syscall(number: int, *args: int | bytes) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


PROC_GAP = "own /proc entries cannot be told from others by Landlock"
DISK_GAP = "the private folder is on the host's disk; only single files are bounded"
BOUNDING_GAP = "an ordinary user cannot empty it; no_new_privs makes it useless"
LANDLOCK_GAP = "Landlock does not cover it"

# -- files -----------------------------------------------------------------------------------------


@attempt("files", "root_filesystem", "landlock")
def read_a_file_outside(w: World) -> None:
    os.close(os.open(w["secret"], os.O_RDONLY))


@attempt("files", "root_filesystem", "landlock")
def read_a_file_outside_through_dots(w: World) -> None:
    os.close(os.open("../" * 40 + w["secret"].lstrip("/"), os.O_RDONLY))


@attempt("files", "root_filesystem", "landlock")
def read_a_file_outside_through_proc_root(w: World) -> None:
    os.close(os.open(f"/proc/{os.getppid()}/root{w['secret']}", os.O_RDONLY))


@attempt("files", "root_filesystem", "landlock")
def read_a_file_outside_after_chdir(w: World) -> None:
    os.chdir(w["folder"])
    os.close(os.open("secret.txt", os.O_RDONLY))


@attempt("files", "root_filesystem", "landlock")
def read_a_file_outside_through_own_symlink(w: World) -> None:
    link = f"{_scratch()}/link-{os.getpid()}"
    os.symlink(w["secret"], link)
    try:
        os.close(os.open(link, os.O_RDONLY))
    finally:
        os.unlink(link)


@attempt("files", "root_filesystem", "landlock")
def map_a_file_outside(w: World) -> None:
    fd = os.open(w["secret"], os.O_RDONLY)
    mmap.mmap(fd, 1, prot=mmap.PROT_READ).close()


@attempt("files", "root_filesystem", "landlock")
def write_a_file_outside(w: World) -> None:
    os.close(os.open(w["writable"], os.O_WRONLY))


@attempt("files", "root_filesystem", "landlock")
def append_to_a_file_outside(w: World) -> None:
    os.close(os.open(w["writable"], os.O_WRONLY | os.O_APPEND))


@attempt("files", "root_filesystem", "landlock")
def truncate_a_file_outside(w: World) -> None:
    os.truncate(w["writable"], w["writable_size"])


@attempt("files", "root_filesystem", "landlock")
def create_a_file_outside(w: World) -> None:
    path = f"{w['open_folder']}/file-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    os.unlink(path)


@attempt("files", "root_filesystem", "landlock")
def create_an_unnamed_file_outside(w: World) -> None:
    os.close(os.open(w["open_folder"], os.O_TMPFILE | os.O_WRONLY, 0o600))


@attempt("files", "root_filesystem", "landlock")
def make_a_folder_outside(w: World) -> None:
    path = f"{w['open_folder']}/folder-{os.getpid()}"
    os.mkdir(path)
    os.rmdir(path)


@attempt("files", "root_filesystem", "landlock")
def make_a_symlink_outside(w: World) -> None:
    path = f"{w['open_folder']}/symlink-{os.getpid()}"
    os.symlink("/", path)
    os.unlink(path)


@attempt("files", "root_filesystem", "landlock")
def make_a_fifo_outside(w: World) -> None:
    path = f"{w['open_folder']}/fifo-{os.getpid()}"
    os.mkfifo(path)
    os.unlink(path)


@attempt("files", "root_filesystem", "landlock")
def link_a_file_outside(w: World) -> None:
    path = f"{w['open_folder']}/hard-{os.getpid()}"
    os.link(w["writable"], path)
    os.unlink(path)


@attempt("files", "root_filesystem", "landlock")
def rename_a_file_outside(w: World) -> None:
    moved = f"{w['open_folder']}/moved-{os.getpid()}"
    os.rename(w["renamed"], moved)
    os.rename(moved, w["renamed"])


@attempt("files", "root_filesystem", "landlock")
def remove_a_file_outside(w: World) -> None:
    os.unlink(w["removed"])
    os.close(os.open(w["removed"], os.O_CREAT | os.O_WRONLY, 0o666))


@attempt("files", "root_filesystem", "landlock")
def list_a_folder_outside(w: World) -> None:
    if "secret.txt" not in os.listdir(w["folder"]):
        raise FileNotFoundError(errno.ENOENT, "not listed")


@attempt("files", "root_filesystem", weaker={"landlocked": LANDLOCK_GAP})
def stat_a_file_outside(w: World) -> None:
    os.stat(w["secret"])


@attempt("files", "root_filesystem", "user", weaker={"landlocked/user": LANDLOCK_GAP})
def change_the_mode_of_a_file_outside(w: World) -> None:
    os.chmod(w["owned"], 0o644)


@attempt("files", "root_filesystem", "user", weaker={"landlocked/user": LANDLOCK_GAP})
def change_the_times_of_a_file_outside(w: World) -> None:
    os.utime(w["owned"], (1, 1))


@attempt("files", "root_filesystem", weaker={"landlocked": LANDLOCK_GAP})
def watch_a_folder_outside(w: World) -> None:
    fd = _libc.inotify_init1(0)
    if _libc.inotify_add_watch(fd, os.fsencode(w["open_folder"]), 0x100) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@attempt("files", "root_filesystem", "landlock")
def run_a_program_outside(w: World) -> None:
    _run([w["tool"]])


@attempt("files", "root_filesystem", "landlock")
def open_a_fifo_outside(w: World) -> None:
    os.close(os.open(w["fifo"], os.O_RDWR | os.O_NONBLOCK))


@attempt("files", "root_filesystem", "landlock")
def write_to_a_read_path(w: World) -> None:
    os.close(os.open(w["readable"], os.O_WRONLY))


@attempt("files", "root_filesystem", "landlock")
def reopen_a_read_path_for_writing(w: World) -> None:
    fd = os.open(w["readable"], os.O_RDONLY)
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))


@attempt("files", "root_filesystem", "landlock")
def create_in_a_read_path(w: World) -> None:
    path = f"{w['read_folder']}/file-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    os.unlink(path)


@attempt("files", "root_filesystem", "landlock", control="root")
def create_in_a_system_folder(_w: World) -> None:
    os.close(os.open("/usr/lib", os.O_TMPFILE | os.O_WRONLY, 0o600))


@attempt("files", "root_filesystem", "landlock", control="root")
def list_the_home_of_root(_w: World) -> None:
    os.listdir("/root")


@attempt("files", "privileges", "seccomp", control="root")
def make_a_device(_w: World) -> None:
    path = f"{_scratch()}/device-{os.getpid()}"
    os.mknod(path, 0o060600, os.makedev(7, 250))
    os.unlink(path)


@attempt("files", "root_filesystem", "landlock", control="root")
def open_the_kernel_log_device(_w: World) -> None:
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))


@attempt("files", "root_filesystem", "landlock", control="root")
def open_a_kernel_setting_for_writing(_w: World) -> None:
    os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))


@attempt("files", "root_filesystem", "landlock", control="root")
def open_the_host_name_setting_for_writing(_w: World) -> None:
    os.close(os.open("/proc/sys/kernel/hostname", os.O_WRONLY))


@attempt("files", "root_filesystem", "landlock", control="root")
def open_sysrq_for_writing(_w: World) -> None:
    os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY))


@attempt("files", "root_filesystem", "landlock", control="root")
def open_a_control_group_for_writing(w: World) -> None:
    if not w["cgroup_procs"]:
        raise Unavailable("no control group is mounted")
    os.close(os.open(w["cgroup_procs"], os.O_WRONLY))


@attempt("files", "privileges")
def gain_root_by_a_setuid_program(w: World) -> None:
    if _run([w["setuid_tool"], "-u"]).strip() != b"0":
        raise PermissionError(errno.EPERM, "it ran as the caller")


# -- processes -------------------------------------------------------------------------------------


@attempt("processes", "namespaces", "landlock")
def signal_a_process_outside(w: World) -> None:
    os.kill(w["victim"], 0)


@attempt("processes", "namespaces", "landlock")
def signal_the_process_that_started_us(w: World) -> None:
    os.kill(w["starter"], 0)


@attempt("processes", "namespaces", weaker={"landlocked": PROC_GAP})
def see_processes_outside(w: World) -> None:
    if str(w["victim"]) not in os.listdir("/proc"):
        raise FileNotFoundError(errno.ENOENT, "not listed")


@attempt("processes", "namespaces", weaker={"landlocked": PROC_GAP})
def read_the_command_line_of_a_process_outside(w: World) -> None:
    os.close(os.open(f"/proc/{w['victim']}/cmdline", os.O_RDONLY))


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
    syscall(_number("process_vm_readv"), w["victim"], 0, 0, 0, 0, 0)


@attempt("processes", "namespaces", "landlock")
def trace_a_process_outside(w: World) -> None:
    syscall(_number("ptrace"), 0x4206, w["victim"], 0, 0)  # PTRACE_SEIZE; ends with this child


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


# -- namespaces and mounts -------------------------------------------------------------------------


def _unshare(flags: int) -> None:
    if _libc.unshare(flags) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@attempt("namespaces", "seccomp")
def make_a_user_namespace(_w: World) -> None:
    _unshare(0x10000000)


@attempt("namespaces", "seccomp")
def make_a_user_namespace_by_clone(_w: World) -> None:
    try:
        syscall(_number("clone"), 0x10000000 | 0x200, 0, 0, 0, 0)
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


@attempt("namespaces", "seccomp", control="root")
def change_the_root(_w: World) -> None:
    os.chroot("/")


@attempt("namespaces", "namespaces", "landlock")
def enter_the_namespaces_of_a_process_outside(w: World) -> None:
    os.close(os.open(f"/proc/{w['victim']}/ns/net", os.O_RDONLY))


@attempt("namespaces", "seccomp", control="root")
def mount_a_file_system(_w: World) -> None:
    _unshare(0x00020000)
    if _libc.mount(b"none", b"/", None, ctypes.c_ulong(1 << 18 | 1 << 14), None) < 0:
        raise OSError(ctypes.get_errno(), "private")
    if _libc.mount(b"tmpfs", b"/mnt", b"tmpfs", ctypes.c_ulong(0), None) < 0:
        raise OSError(ctypes.get_errno(), "mount")


# -- system calls ----------------------------------------------------------------------------------

# name → (x86_64 number, arguments): wrong on purpose, see above
NUMBERS: dict[str, int] = {
    "clone": 56,
    "ptrace": 101,
    "process_vm_readv": 310,
    "mq_open": 240,
    "keyctl": 250,
    "capget": 125,
}
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
    "nice_other": (141, (0, 1, 0)),
}


def _number(name: str) -> int:
    if platform.machine() != "x86_64":
        raise Unavailable("the table has x86_64 numbers")
    return NUMBERS[name] if name in NUMBERS else CALLS[name][0]


def _call_attempt(name: str) -> Callable[[World], None]:
    def action(_w: World) -> None:
        try:
            arguments = (os.getpid() if a == SELF else a for a in CALLS[name][1])
            syscall(_number(name), *arguments)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                raise

    return action


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
    controller, terminal = _pty()
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
def use_the_console_ioctl(_w: World) -> None:
    _ioctl_of_a_terminal(0x541C, b"\x0f")  # TIOCLINUX


def _ioctl_of_a_terminal(request: int, argument: bytes) -> None:
    try:
        fcntl.ioctl(0, request, argument)
    except OSError as error:  # our descriptor 0 is no terminal: ENOTTY if permitted
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise


# -- privileges ------------------------------------------------------------------------------------


@attempt("privileges", "privileges", control="root")
def become_root(_w: World) -> None:
    os.setresuid(0, 0, 0)


@attempt("privileges", "privileges", control="root")
def join_the_group_of_root(_w: World) -> None:
    os.setresgid(0, 0, 0)


@attempt("privileges", "privileges", control="root")
def change_the_groups(_w: World) -> None:
    os.setgroups([0])


@attempt("privileges", "privileges", control="root")
def have_a_capability(_w: World) -> None:
    header, data = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    buffer = ctypes.create_string_buffer(header, 8)
    syscall(_number("capget"), ctypes.addressof(buffer), ctypes.addressof(data))
    if not any(struct.unpack("=6I", data.raw)):
        raise PermissionError(errno.EPERM, "no capability")


@attempt("privileges", "privileges", control="root", weaker={"landlocked/user": BOUNDING_GAP})
def have_a_bounding_set(_w: World) -> None:
    if not any(_libc.prctl(23, bit, 0, 0, 0) == 1 for bit in range(41)):  # PR_CAPBSET_READ
        raise PermissionError(errno.EPERM, "empty")


@attempt("privileges", "privileges")
def gain_privileges_by_exec(_w: World) -> None:
    if _libc.prctl(39, 0, 0, 0, 0) == 1:  # PR_GET_NO_NEW_PRIVS
        raise PermissionError(errno.EPERM, "no_new_privs is set")


@attempt("privileges", "privileges", control="root")
def raise_a_hard_limit(w: World) -> None:
    if not w["can_raise"]:
        raise Unavailable("not even root can raise hard limits here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1))


# -- network ---------------------------------------------------------------------------------------


def _connect(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as client:
        client.settimeout(2)
        client.connect(address)
        if kind == socket.SOCK_DGRAM:
            client.send(b"x")


@attempt("network", "network")
def connect_by_tcp(w: World) -> None:
    _connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", w["tcp"]))


@attempt("network", "network")
def connect_by_tcp_over_ipv6(w: World) -> None:
    if not w["tcp6"]:
        raise Unavailable("no IPv6 loopback")
    _connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", w["tcp6"]))


@attempt("network", "network")
def connect_by_tcp_to_an_embedded_address(w: World) -> None:
    if not w["tcp6"]:
        raise Unavailable("no IPv6 loopback")
    _connect(socket.AF_INET6, socket.SOCK_STREAM, ("::ffff:127.0.0.1", w["tcp"]))


@attempt("network", "network")
def connect_by_fast_open(w: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.sendto(b"x", 0x20000000, ("127.0.0.1", w["tcp"]))  # MSG_FASTOPEN


@attempt("network", "network")
def send_by_udp(w: World) -> None:
    _reach_udp(w, lambda: _connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", w["udp"])))


@attempt("network", "network")
def send_by_udp_without_connecting(w: World) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("127.0.0.1", w["udp"]))

    _reach_udp(w, send)


def _reach_udp(w: World, send: Callable[[], None]) -> None:
    """Whether the datagram went to the test's socket: loopback of another namespace refuses it."""
    send()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.connect(("127.0.0.1", w["udp"]))
        again.send(b"x")
        time.sleep(0.01)
        again.send(b"x")  # ECONNREFUSED if nobody listened to the first


@attempt("network", "network")
def listen_where_the_host_can_connect(w: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        if os.readlink("/proc/self/ns/net") != w["network_namespace"]:
            raise PermissionError(errno.EPERM, "another network namespace")


@attempt("network", "network", "seccomp", control="root")
def open_a_raw_socket(_w: World) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@attempt("network", "network", "seccomp", control="root")
def open_a_packet_socket(_w: World) -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


@attempt("network", "seccomp")
def open_a_kernel_crypto_socket(_w: World) -> None:
    _open_family(38)


@attempt("network", "seccomp")
def open_a_vsock(_w: World) -> None:
    _open_family(40)


@attempt("network", "seccomp")
def open_a_netlink_audit_socket(_w: World) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9).close()


@attempt("network", "seccomp")
def open_a_netfilter_socket(_w: World) -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()


def _open_family(family: int) -> None:
    try:
        kind = socket.SOCK_SEQPACKET if family == 38 else socket.SOCK_STREAM
        socket.socket(family, kind).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise Unavailable("the kernel has no such family") from error
        raise


@attempt("network", "root_filesystem", "seccomp")
def connect_to_a_unix_socket_outside(w: World) -> None:
    _connect(socket.AF_UNIX, socket.SOCK_STREAM, w["unix"])


@attempt("network", "network", "seccomp")
def connect_to_an_abstract_socket_outside(w: World) -> None:
    _connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + w["abstract"])


@attempt("network", "root_filesystem", "seccomp")
def bind_a_unix_socket_outside(w: World) -> None:
    path = f"{w['open_folder']}/bound-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
    os.unlink(path)


# -- inter-process communication -------------------------------------------------------------------


def _sysv(name: str, key: int) -> None:
    if getattr(_libc, name)(key, 0, 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@attempt("ipc", "namespaces", "seccomp")
def attach_shared_memory_of_a_process_outside(w: World) -> None:
    _sysv("shmget", w["sysv_key"])


@attempt("ipc", "namespaces", "seccomp")
def open_a_message_queue_outside(w: World) -> None:
    if _libc.msgget(w["sysv_key"], 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@attempt("ipc", "namespaces", "seccomp")
def open_semaphores_outside(w: World) -> None:
    _sysv("semget", w["sysv_key"])


@attempt("ipc", "namespaces", "landlock", "seccomp")
def open_a_posix_queue_outside(w: World) -> None:
    if not w["posix_queue"]:
        raise Unavailable("no POSIX message queues")
    name = ctypes.create_string_buffer(w["posix_queue"].encode())
    syscall(_number("mq_open"), ctypes.addressof(name), os.O_RDWR, 0, 0)


@attempt("ipc", "root_filesystem", "landlock")
def open_a_shared_memory_file_outside(w: World) -> None:
    os.close(os.open(w["shm_file"], os.O_RDWR))


# -- inheritance -----------------------------------------------------------------------------------


@attempt("inheritance", "privileges")
def use_an_inherited_descriptor(w: World) -> None:
    if os.pread(w["leaked_fd"], 6, 0) != b"secret":
        raise FileNotFoundError(errno.EBADF, "another file")


@attempt("inheritance", "privileges")
def have_more_than_the_standard_descriptors(w: World) -> None:
    if not w["open_at_start"]:
        raise FileNotFoundError(errno.EBADF, "none is open")


@attempt("inheritance", "privileges")
def read_an_inherited_secret(w: World) -> None:
    if w["secret_variable"] not in os.environ:
        raise FileNotFoundError(errno.ENOENT, "no such variable")


@attempt("inheritance", "privileges")
def reach_the_working_directory_of_the_starter(_w: World) -> None:
    os.close(os.open("secret.txt", os.O_RDONLY))


@attempt("inheritance", "namespaces", weaker={"landlocked": "no uts namespace"})
def see_the_host_name(w: World) -> None:
    if os.uname().nodename != w["host_name"]:
        raise FileNotFoundError(errno.ENOENT, "another name")


# -- exhaustion, bounded ---------------------------------------------------------------------------


@attempt("exhaustion", "memory")
def use_twice_the_memory_limit(w: World) -> None:
    _touch(mmap.MAP_PRIVATE, w["memory_bytes"] * 2)


@attempt("exhaustion", "memory")
def use_twice_the_memory_limit_shared(w: World) -> None:
    _touch(mmap.MAP_SHARED, w["memory_bytes"] * 2)


def _touch(kind: int, length: int) -> None:
    block = mmap.mmap(-1, length, flags=kind | mmap.MAP_ANONYMOUS)
    for offset in range(0, length, 4096):
        block[offset] = 1


@attempt("exhaustion", "processes")
def start_three_times_the_process_limit(w: World) -> None:
    pids: list[int] = []
    try:
        for _ in range(w["processes"] * 3):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            pids.append(pid)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@attempt("exhaustion", "privileges")
def open_more_files_than_the_limit(w: World) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for _ in range(w["open_files"]):
        os.dup(null)


@attempt("exhaustion", "root_filesystem", weaker={"landlocked": DISK_GAP})
def fill_the_private_folder(w: World) -> None:
    _fill(_scratch(), w["tmp_bytes"] * 2, w["file_size_bytes"] // 2)


@attempt("exhaustion", "root_filesystem", "landlock")
def fill_the_shared_memory_folder(w: World) -> None:
    _fill("/dev/shm", w["shm_bytes"] * 2, w["file_size_bytes"] // 2)


@attempt("exhaustion", "privileges")
def write_a_file_above_the_size_limit(w: World) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _fill(_scratch(), w["file_size_bytes"] + (1 << 20), 1 << 62)


@attempt("exhaustion", "cpu")
def use_twice_the_processor_limit(w: World) -> None:
    # The limit is small, so that an unlimited process gets more even on a crowded machine.
    for _ in range(3):
        start, cpu = time.monotonic(), time.process_time()
        while time.monotonic() - start < 1:
            pass
        if time.process_time() - cpu > 2 * w["cpu_cores"]:
            return
    raise PermissionError(errno.EAGAIN, "throttled")


def _fill(folder: str, total_bytes: int, file_bytes: int) -> None:
    chunk, written, paths = b"x" * (1 << 18), 0, []
    try:
        while written < total_bytes:
            paths.append(f"{folder}/fill-{os.getpid()}-{len(paths)}")
            fd = os.open(paths[-1], os.O_CREAT | os.O_WRONLY, 0o600)
            size = 0
            while size < file_bytes and written < total_bytes:
                count = os.write(fd, chunk)
                size, written = size + count, written + count
            os.close(fd)
    finally:
        for path in paths:
            if os.path.exists(path):
                os.unlink(path)


# -- running ---------------------------------------------------------------------------------------


def _scratch() -> str:
    for folder in (os.environ.get("TMPDIR"), "/tmp", os.environ.get("HOME")):
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK):
            return folder
    raise Unavailable("no folder to write in")


def _pty() -> tuple[int, int]:
    try:
        return os.openpty()
    except OSError as error:
        raise PermissionError(error.errno, f"no terminal: {error.strerror}") from error


def _run(argv: list[str]) -> bytes:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(tell, 1)
        try:
            os.execv(argv[0], argv)
        except OSError as error:
            os._exit(error.errno or 1)
    os.close(tell)
    output = b""
    while block := os.read(told, 4096):
        output += block
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        raise OSError(code if code > 0 else errno.EPERM, "it did not run")
    return output


def outcome_of(action: Callable[[World], None], world: World) -> dict[str, str]:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_attempt(action, world, tell)
    os.close(tell)
    answer = b""
    while block := os.read(told, 4096):
        answer += block
    os.close(told)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if answer:
        return json.loads(answer)
    return {"outcome": "refused", "detail": f"killed by {code}"}


def _be_attempt(action: Callable[[World], None], world: World, tell: int) -> None:
    """Runs in the child; never returns."""
    try:
        action(world)
        answer = {"outcome": "possible", "detail": ""}
    except Unavailable as error:
        answer = {"outcome": "unavailable", "detail": str(error)}
    except (OSError, MemoryError) as error:
        code = errno.errorcode.get(getattr(error, "errno", 0) or 0, type(error).__name__)
        answer = {"outcome": "refused", "detail": code}
    except BaseException as error:  # noqa: BLE001
        answer = {"outcome": "broken", "detail": repr(error)}
    os.write(tell, json.dumps(answer).encode())
    os._exit(0)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def main() -> None:
    world: World = json.loads(sys.argv[1])
    world["parent"] = os.getppid()
    world["open_at_start"] = [fd for fd in range(3, 256) if _is_open(fd)]
    results = {}
    for name in sys.argv[2:] or ATTEMPTS:
        results[name] = outcome_of(ATTEMPTS[name].action, world)
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
