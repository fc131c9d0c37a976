"""What a mini-init hands out by its control socket, in whichever order the parent asks for it."""

import json
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from vsm.confinement.network_operations import HANDED_OUT
from vsm.confinement.operations import LISTENER
from vsm.processes.forked_worker import ForkedWorker


@pytest.mark.parametrize("listeners_first", [True, False])
def test_two_kinds_of_listeners_are_told_apart(
    listeners_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may wait in the socket when the parent hears of either."""
    monkeypatch.setattr("vsm.linux.seccomp.is_listener", lambda _fd: True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker: Any = ForkedWorker.__new__(ForkedWorker)
    worker.plan = SimpleNamespace(listeners=(("127.0.0.1", 80),))
    worker._process = SimpleNamespace(control=ours.fileno())
    worker._listeners, worker._awaits_listeners = (), True
    with ours, theirs, socket.socket() as listener, socket.socket() as filtered:
        socket.send_fds(theirs, [HANDED_OUT], [listener.fileno()])
        socket.send_fds(theirs, [LISTENER], [filtered.fileno()])
        if listeners_first:
            (found,) = worker.take_listeners()
            refusals = worker.take_refusals()
        else:
            refusals = worker.take_refusals()
            (found,) = worker.take_listeners()
        for fd, sent in ((found, listener), (refusals, filtered)):
            assert os.path.sameopenfile(fd, sent.fileno())
            os.close(fd)


END = {"event": "exited", "status": 0, "signal": None, "cpu_s": 0.1, "peak_bytes": 7, "limit": ""}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"7",
        b"[]",
        b"[" * 60_000,
        b'{"event": 1}',
        b'{"event": "started"}',
        b'{"event": "exited"}',
        b'{"event": "failed", "layer": [], "what": ""}',
        json.dumps({**END, "signal": "x"}).encode(),
        json.dumps({**END, "event": "risen"}).encode(),
        b"\xff",
    ],
)
def test_status_line_of_any_shape_is_passed_over(line: bytes) -> None:
    """A mini-init that a server had taken over could write what it likes."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    worker: Any = ForkedWorker.__new__(ForkedWorker)
    worker.status_fd, worker._pending, worker.heard, worker.hung_up = reader, b"", [], False
    os.write(writer, line + b"\n" + json.dumps(END).encode() + b"\n")
    os.close(writer)
    assert worker.events() == [END]
    os.close(reader)
