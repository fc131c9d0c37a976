"""What a template does when the kernel gives it no other process, or no descriptor for one."""

import errno
import os
from typing import Any

import pytest

from vsm.messages import Exited, Fork
from vsm.processes.template import Template, _open_fds


class Link:
    """Has one order; keeps what is sent."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.sent: list[Any] = []

    def receive(self, _timeout_s: float) -> tuple[Fork, list[int]]:
        return Fork(system="system3", epoch=7, plan="", fds=("control",)), [self.fd]

    def send(self, message: object, _fds: object = ()) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("lacking", ["fork", "pidfd_open"])
def test_a_system_that_cannot_be_forked_ends_no_other(
    lacking: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    link: Any = Link(os.open("/dev/null", os.O_RDONLY))
    template = Template(link, lambda *_: None)
    monkeypatch.setattr("vsm.processes.template._refuse_threads", lambda: None)
    before = _open_fds()
    monkeypatch.setattr(os, lacking, refuse)
    template.requests(None)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert link.sent == [Exited(system="system3", epoch=7, status=os.EX_OSERR)]
    assert template.children == {}
    assert _open_fds() == before - {link.fd}
    assert "cannot fork system3" in capfd.readouterr().err
