import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsm import notify


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_kept", {})
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


def test_sockets_are_handed_over_once_and_only_to_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as given:
        monkeypatch.setattr(notify, "_FIRST_FD", given.detach())
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    notify.take_over()
    assert notify.listeners() == []
    notify._kept.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
    (taken,) = notify.listeners()
    assert (taken.family, taken.get_inheritable(), taken.gettimeout()) == (socket.AF_UNIX, False, 0)
    taken.close()
    assert notify.listeners() == []


def test_a_program_that_only_uses_vsm_keeps_its_own_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert notify.notify("READY=1") is False
    assert notify.listeners() == []
    assert os.environ["LISTEN_FDS"] == "1"
