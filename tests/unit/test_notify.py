import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vsm.service import notify


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_kept", {})
    monkeypatch.setattr(notify, "_given", [])
    for name in notify._VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "n"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        notify.take_over()
        yield listener


def test_lines_arrive_in_one_datagram(manager: socket.socket) -> None:
    assert notify.notify("READY=1", "STATUS=5 of 5 systems")
    assert manager.recv(4096) == b"READY=1\nSTATUS=5 of 5 systems"


def test_abstract_addresses_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = f"vsm-test-{os.getpid()}"
        listener.bind(f"\0{name}")
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify.take_over()
        assert notify.notify("READY=1")
        assert listener.recv(64) == b"READY=1"


def test_reloading_carries_the_monotonic_time(manager: socket.socket) -> None:
    assert notify.notify_reloading()
    first, second = manager.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdigit()


def test_without_a_manager_nobody_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notify.notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    notify.take_over()
    assert notify.notify("READY=1") is False


def test_the_watchdog_is_fed_twice_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert notify.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    notify.take_over()
    assert notify.watchdog_interval_s() == 15
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    notify.take_over()
    assert notify.watchdog_interval_s() is None


def test_children_see_nothing_of_it(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    notify.take_over()
    assert not set(notify._VARIABLES) & set(os.environ)
    assert notify.watchdog_interval_s() == 1
    assert notify.notify("READY=1")
    assert manager.recv(64) == b"READY=1"


def given(monkeypatch: pytest.MonkeyPatch, *fds: int, names: str = "", pid: int = 0) -> None:
    """Descriptors in a row, as from 3 on; the test must have opened them in a row."""
    assert list(fds) == list(range(fds[0], fds[0] + len(fds)))
    monkeypatch.setattr(notify, "_FIRST_FD", fds[0])
    monkeypatch.setenv("LISTEN_FDS", str(len(fds)))
    monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
    if names:
        monkeypatch.setenv("LISTEN_FDNAMES", names)
    notify.take_over()


def in_a_row(*makers: Callable[[], int]) -> list[int]:
    """Inheritable descriptors with numbers in a row, far from the others."""
    row = []
    for number, make in enumerate(makers):
        fd = make()
        os.dup2(fd, 200 + number)
        os.close(fd)
        row.append(200 + number)
    return row


def a_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()


def a_memory() -> int:
    return os.memfd_create("test")


def test_sockets_are_handed_over_once_and_only_to_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (fd,) = in_a_row(a_socket)
    given(monkeypatch, fd, pid=os.getpid() + 1)
    assert notify.listeners() == []
    given(monkeypatch, fd)
    assert not os.get_inheritable(fd), "no child may have it, from the first moment on"
    (taken,) = notify.listeners()
    assert (taken.fileno(), taken.family, taken.gettimeout()) == (fd, socket.AF_UNIX, 0)
    taken.close()
    assert notify.listeners() == []


def test_names_tell_listeners_from_what_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    row = in_a_row(a_socket, a_memory, a_memory, a_memory)
    given(monkeypatch, *row, names="vsm.socket:stored-a:stored-b:stored-a")
    (listener,) = notify.listeners()
    assert listener.fileno() == row[0]
    assert notify.stored() == {"a": [row[1], row[3]], "b": [row[2]]}
    assert notify.stored() == {}
    listener.close()
    for fd in row[1:]:
        os.close(fd)


def test_what_is_not_open_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    (fd,) = in_a_row(a_socket)
    os.close(fd)
    given(monkeypatch, fd)
    assert notify.listeners() == []


def test_what_is_neither_is_let_go(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    (fd,) = in_a_row(a_memory)
    given(monkeypatch, fd, names="of-another-version")
    assert notify.listeners() == []
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=of-another-version"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_what_is_stored_arrives_with_its_name(manager: socket.socket) -> None:
    memory = os.memfd_create("test")
    os.write(memory, b"counts")
    assert notify.store("a", [memory])
    said, fds, _, _ = socket.recv_fds(manager, 4096, 4)
    assert said == b"FDSTORE=1\nFDNAME=stored-a"
    assert os.pread(fds[0], 16, 0) == b"counts"
    assert notify.unstore("a")
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=stored-a"
    for fd in (memory, *fds):
        os.close(fd)


def test_a_program_that_only_uses_vsm_keeps_its_own_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert notify.notify("READY=1") is False
    assert notify.listeners() == []
    assert os.environ["LISTEN_FDS"] == "1"
