"""Reading, writing, running and merely seeing files that the profile does not give."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import struct
from collections.abc import Callable

from .base import (
    LANDLOCK_GAP,
    OWN_CODE,
    Unavailable,
    World,
    attempt,
    last_error,
    libc,
    run_program,
    scratch,
    syscall,
)


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
    link = f"{scratch()}/link-{os.getpid()}"
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


@attempt("files", "root_filesystem", "landlock")
def see_what_others_have_in_the_folder_for_temporary_files(w: World) -> None:
    above, _, name = w["beside"].rpartition("/")
    if name not in os.listdir(above):
        raise FileNotFoundError(errno.ENOENT, "a folder of its own")


@attempt("files", "root_filesystem", "landlock")
def read_a_file_outside_below_a_path_descriptor(w: World) -> None:
    fd = os.open(w["folder"], os.O_PATH | os.O_DIRECTORY)
    os.close(os.open("secret.txt", os.O_RDONLY, dir_fd=fd))


@attempt("files", "root_filesystem", weaker={"landlocked": LANDLOCK_GAP})
def stat_a_file_outside(w: World) -> None:
    """One gap by any of its names."""
    _first_that_works(
        lambda: os.stat(w["secret"]),
        lambda: None if os.access(w["secret"], os.F_OK) else _refuse(errno.EACCES),
        lambda: os.statvfs(w["secret"]),
        lambda: os.listxattr(w["secret"]),
        lambda: os.close(os.open(w["secret"], os.O_PATH)),
    )


@attempt("files", "root_filesystem", "user", weaker={"landlocked/user": LANDLOCK_GAP})
def change_the_mode_of_a_file_outside(w: World) -> None:
    """Or its owner, or the mode of one that may be read."""
    _first_that_works(
        lambda: os.chmod(w["readable_owned"], 0o644),
        lambda: os.chmod(w["owned"], 0o644),
        lambda: os.chown(w["owned"], os.getuid(), os.getgid()),
    )


@attempt("files", "root_filesystem", "user", weaker={"landlocked/user": LANDLOCK_GAP})
def change_the_times_of_a_file_outside(w: World) -> None:
    """Or its extended attributes."""
    _first_that_works(
        lambda: os.utime(w["owned"], (1, 1)),
        lambda: os.setxattr(w["owned"], "user.vsm", b"x"),
    )


@attempt("files", "root_filesystem", weaker={"landlocked": LANDLOCK_GAP})
def watch_a_folder_outside(w: World) -> None:
    fd = libc.inotify_init1(0)
    if libc.inotify_add_watch(fd, os.fsencode(w["open_folder"]), 0x100) < 0:
        raise last_error()


@attempt("files", "root_filesystem", "landlock")
def run_a_program_outside(w: World) -> None:
    run_program([w["tool"]])


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
    path = f"{scratch()}/device-{os.getpid()}"
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
    if run_program([w["setuid_tool"], "-u"]).strip() != b"0":
        raise PermissionError(errno.EPERM, "it ran as the caller")


@attempt("files", "root_filesystem", "landlock")
def exchange_a_file_outside(w: World) -> None:
    one, other = os.fsencode(w["writable"]), os.fsencode(w["renamed"])
    for _ in range(2):  # there and back
        if libc.renameat2(-100, one, -100, other, 2) < 0:  # RENAME_EXCHANGE
            raise last_error()


@attempt("files", "root_filesystem", "landlock")
def open_a_file_outside_by_openat2(w: World) -> None:
    how = ctypes.create_string_buffer(struct.pack("=QQQ", os.O_RDONLY, 0, 0), 24)
    path = ctypes.create_string_buffer(os.fsencode(w["secret"]))
    os.close(syscall(437, -100, ctypes.addressof(path), ctypes.addressof(how), 24))


@attempt("files", "root_filesystem", "landlock")
def reopen_a_file_outside_through_a_path_descriptor(w: World) -> None:
    fd = os.open(w["secret"], os.O_PATH)
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))


@attempt("files", "root_filesystem", "landlock")
def map_a_read_path_for_writing(w: World) -> None:
    fd = os.open(w["readable"], os.O_RDWR)
    mmap.mmap(fd, 1).close()


@attempt("files", "root_filesystem", "landlock", "user")
def remove_a_read_path(w: World) -> None:
    os.unlink(w["readable_removed"])
    os.close(os.open(w["readable_removed"], os.O_CREAT | os.O_WRONLY, 0o666))


@attempt("files", "seccomp")
def make_a_setuid_program(_w: World) -> None:
    path = f"{scratch()}/set-id-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o700))
    try:
        os.chmod(path, 0o4755)
        if not os.stat(path).st_mode & 0o4000:
            _refuse(errno.EPERM)
    finally:
        os.unlink(path)


@attempt("files", "none", weaker=dict.fromkeys(("namespaced", "landlocked"), OWN_CODE))
def run_a_program_of_its_own(_w: World) -> None:
    """From a folder that it may write, or from memory."""
    _first_that_works(_run_a_copy, _run_from_memory)


def _run_a_copy() -> None:
    path = f"{scratch()}/program-{os.getpid()}"
    shutil.copy("/usr/bin/true", path)
    os.chmod(path, 0o700)
    try:
        run_program([path])
    finally:
        os.unlink(path)


def _run_from_memory() -> None:
    fd = os.memfd_create("program", 0)
    with open("/usr/bin/true", "rb") as program:
        os.write(fd, program.read())
    run_program([f"/proc/self/fd/{fd}"])


@attempt(
    "files", "root_filesystem", weaker={"landlocked": "names of users, which libraries ask for"}
)
def read_the_users_of_the_host(w: World) -> None:
    with open("/etc/passwd", encoding="utf-8", errors="replace") as users:
        if len(users.readlines()) != w["users"]:
            raise PermissionError(errno.EPERM, "a list of its own")


def _first_that_works(*actions: Callable[[], object]) -> None:
    errors = []
    for action in actions:
        try:
            action()
        except OSError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _refuse(code: int) -> None:
    raise OSError(code, os.strerror(code))
