"""Capabilities, ids, and what a careless parent leaves to a worker."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

from .base import (
    BOUNDING_GAP,
    Unavailable,
    World,
    attempt,
    libc,
    number,
    syscall,
)

# -- privileges -----------------------------------------------------------------------------------


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
    syscall(number("capget"), ctypes.addressof(buffer), ctypes.addressof(data))
    if not any(struct.unpack("=6I", data.raw)):
        raise PermissionError(errno.EPERM, "no capability")


@attempt("privileges", "privileges", control="root", weaker={"landlocked/user": BOUNDING_GAP})
def have_a_bounding_set(_w: World) -> None:
    if not any(libc.prctl(23, bit, 0, 0, 0) == 1 for bit in range(41)):  # PR_CAPBSET_READ
        raise PermissionError(errno.EPERM, "empty")


@attempt("privileges", "privileges")
def gain_privileges_by_exec(_w: World) -> None:
    answer = libc.prctl(39, 0, 0, 0, 0)  # PR_GET_NO_NEW_PRIVS
    if answer < 0:
        raise Unavailable("it may not even ask")
    if answer == 1:
        raise PermissionError(errno.EPERM, "no_new_privs is set")


@attempt("privileges", "privileges")
def dump_core(w: World) -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] in {0, 1}:  # 1: none by a pipe either
        if w.get("is_control"):
            raise Unavailable("this host allows no core files")
        raise PermissionError(errno.EPERM, "no core files")


@attempt("privileges", "privileges", control="root")
def gain_a_capability(_w: World) -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    data = ctypes.create_string_buffer(struct.pack("=6I", 1, 1, 0, 0, 0, 0), 24)  # CAP_CHOWN
    pid = os.fork()  # the parent keeps what it has
    if pid == 0:
        done = libc.capset(header, data)
        os._exit(done != 0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise PermissionError(errno.EPERM, "capset")


@attempt("privileges", "privileges", control="root")
def become_another_user(_w: World) -> None:
    os.setreuid(65533, 65533)


@attempt("privileges", "privileges", control="root")
def take_the_file_identity_of_root(_w: World) -> None:
    libc.setfsuid(12345)
    if libc.setfsuid(-1) != 12345:
        raise PermissionError(errno.EPERM, "unchanged")


@attempt("privileges", "privileges", control="root")
def raise_a_hard_limit(w: World) -> None:
    if not w["can_raise"]:
        raise Unavailable("not even root can raise hard limits here")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1))


# -- inheritance ----------------------------------------------------------------------------------


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
    """Or where on it its control groups are."""
    if os.uname().nodename == w["host_name"]:
        return
    with open("/proc/self/cgroup", encoding="utf-8") as groups:
        if any(line.rstrip("\n").split(":", 2)[2] != "/" for line in groups):
            return
    raise FileNotFoundError(errno.ENOENT, "names of its own")
