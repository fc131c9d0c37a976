"""Sockets of every family, and inter-process communication."""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable

from .base import (
    ATTEMPTS,
    Attempt,
    Unavailable,
    World,
    attempt,
    last_error,
    libc,
    number,
    syscall,
)

# -- network --------------------------------------------------------------------------------------


def _connect(family: int, kind: int, address: str | tuple[str, int]) -> None:
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


# -- inter-process communication ------------------------------------------------------------------


def _sysv(name: str, key: int) -> None:
    if getattr(libc, name)(key, 0, 0) < 0:
        raise last_error()


@attempt("ipc", "namespaces", "seccomp")
def attach_shared_memory_of_a_process_outside(w: World) -> None:
    _sysv("shmget", w["sysv_key"])


@attempt("ipc", "namespaces", "seccomp")
def open_a_message_queue_outside(w: World) -> None:
    if libc.msgget(w["sysv_key"], 0) < 0:
        raise last_error()


@attempt("ipc", "namespaces", "seccomp")
def open_semaphores_outside(w: World) -> None:
    _sysv("semget", w["sysv_key"])


@attempt("ipc", "namespaces", "landlock", "seccomp")
def open_a_posix_queue_outside(w: World) -> None:
    if not w["posix_queue"]:
        raise Unavailable("no POSIX message queues")
    name = ctypes.create_string_buffer(w["posix_queue"].encode())
    syscall(number("mq_open"), ctypes.addressof(name), os.O_RDWR, 0, 0)


@attempt("ipc", "root_filesystem", "landlock")
def open_a_shared_memory_file_outside(w: World) -> None:
    os.close(os.open(w["shm_file"], os.O_RDWR))


# name → (family, type, protocol): linux/socket.h, linux/in.h, linux/netlink.h
FAMILIES = {
    "key": (15, 3, 2),
    "rds": (21, 5, 0),
    "pppox": (24, 2, 0),
    "llc": (26, 1, 0),
    "can": (29, 3, 1),
    "tipc": (30, 5, 0),
    "bluetooth": (31, 3, 1),
    "phonet": (35, 2, 0),
    "nfc": (39, 5, 0),
    "kcm": (41, 5, 0),
    "qualcomm": (42, 2, 0),
    "smc": (43, 1, 0),
    "xdp": (44, 3, 0),
    "ax25": (3, 2, 0),
    "x25": (9, 5, 0),
    "sctp": (2, 5, 132),
    "mptcp": (2, 1, 262),
    "dccp": (2, 6, 33),
    "udplite": (2, 2, 136),
    "l2tp": (2, 2, 115),
    "netlink_route": (16, 3, 0),
    "netlink_user": (16, 3, 2),
    "netlink_diagnosis": (16, 3, 4),
    "netlink_xfrm": (16, 3, 6),
    "netlink_uevent": (16, 3, 15),
    "netlink_generic": (16, 3, 16),
    "netlink_crypto": (16, 3, 21),
    "netlink_connector": (16, 3, 11),
}
ABSENT = (
    *(errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTOTYPE),
    *(errno.EINVAL, errno.ENOPROTOOPT, errno.ENODEV),
)


def _socket(family: int, kind: int, protocol: int) -> Callable[[World], None]:
    def action(_w: World) -> None:
        try:
            socket.socket(family, kind, protocol).close()
        except OSError as error:
            if error.errno in ABSENT:
                raise Unavailable("the kernel has no such family") from error
            raise

    return action


for _name, _arguments in FAMILIES.items():
    _name = f"open_a_socket_of_{_name}"
    ATTEMPTS[_name] = Attempt(_name, "network", _socket(*_arguments), ("seccomp",), control="root")

SERVICES = {
    "docker": "/run/docker.sock",
    "containerd": "/run/containerd/containerd.sock",
    "systemd": "/run/systemd/private",
    "dbus": "/run/dbus/system_bus_socket",
    "snapd": "/run/snapd.socket",
    "journald": "/run/systemd/journal/stdout",
}


def _service(path: str) -> Callable[[World], None]:
    def action(w: World) -> None:
        try:
            _connect(socket.AF_UNIX, socket.SOCK_STREAM, path)
        except FileNotFoundError:
            if w.get("is_control"):
                raise Unavailable(f"this host has no {path}") from None
            raise

    return action


for _name, _path in SERVICES.items():
    _name = f"connect_to_{_name}"
    ATTEMPTS[_name] = Attempt(
        _name, "network", _service(_path), ("root_filesystem", "seccomp"), control="root"
    )


@attempt("network", "network")
def listen_without_binding_where_the_host_can_connect(w: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.listen(1)  # the kernel chooses an address: no bind for Landlock to see
        if os.readlink("/proc/self/ns/net") != w["network_namespace"]:
            raise PermissionError(errno.EPERM, "another network namespace")


@attempt("network", "network")
def bind_udp_where_the_host_can_send(w: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        if os.readlink("/proc/self/ns/net") != w["network_namespace"]:
            raise PermissionError(errno.EPERM, "another network namespace")


@attempt("network", "root_filesystem", "seccomp")
def send_to_a_unix_socket_outside_from_a_pair(w: World) -> None:
    one, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"x", w["unix_datagram"])


@attempt("network", "root_filesystem", "seccomp")
def pass_a_descriptor_to_a_unix_socket_outside(w: World) -> None:
    one, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
    one.sendmsg([b"x"], rights, 0, w["unix_datagram"])


@attempt("network", "network", "seccomp")
def listen_on_an_abstract_socket_outside(w: World) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0{w['abstract']}-{os.getpid()}")
        if os.readlink("/proc/self/ns/net") != w["network_namespace"]:
            raise PermissionError(errno.EPERM, "another network namespace")
