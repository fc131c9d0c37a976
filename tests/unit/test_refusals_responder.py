"""A listener is kept as long as somebody could ask, and an answer is sent until it has arrived."""

import errno
import fcntl
import os
import select

import pytest

from vsm.confinement import refusals
from vsm.linux import seccomp


def test_only_the_end_of_all_who_could_ask_ends_the_watch() -> None:
    poll = select.poll()
    responder = refusals.Responder(poll, lambda _worker, _calls: None)
    fd, writer = os.pipe2(os.O_CLOEXEC)
    try:
        responder.watch("a", fd)
        # The kernel's look at a listener says so when a signal came while others held its lock.
        responder.answer(fd, select.POLLERR)
        os.write(writer, b"x")
        assert poll.poll(0) == [(fd, select.POLLIN)]
        responder.answer(fd, select.POLLHUP)
        assert poll.poll(0) == []
    finally:
        responder.forget("a")
        os.close(writer)


@pytest.mark.parametrize("last", [0, errno.ENOENT])
def test_an_answer_that_a_signal_cut_short_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    sent: list[bytes] = []

    def ioctl(_fd: int, _request: int, answer: bytes) -> int:
        sent.append(answer)
        code = errno.EINTR if len(sent) < 3 else last
        if code:
            raise OSError(code, os.strerror(code))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    seccomp.refuse(-1, 7)
    assert len(sent) == 3
    assert len(set(sent)) == 1
