"""What a worker sends through a channel, as the supervisor takes it."""

import array
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from vsm.linux import senders

MOST_BYTES = 64


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        senders.ask_for_senders(ours)
        yield ours, theirs


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size_bytes", [1, MOST_BYTES + 1])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 253])
def test_descriptors_that_a_message_brings_do_not_stay(
    ends: tuple[socket.socket, socket.socket], count: int, size_bytes: int
) -> None:
    ours, theirs = ends
    before = open_fds()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * count))]
    theirs.sendmsg([b"x" * size_bytes], rights if count else [])
    with suppress(ValueError):
        letter = senders.receive(ours, MOST_BYTES)
        assert (letter.pid, len(letter.data)) == (os.getpid(), size_bytes)
        if letter.pidfd >= 0:
            os.close(letter.pidfd)
    assert open_fds() == before


def test_a_message_longer_than_the_limit_is_not_taken(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    theirs.send(b"x" * (MOST_BYTES + 1))
    with pytest.raises(ValueError, match="more than 64 bytes"):
        senders.receive(ours, MOST_BYTES)
