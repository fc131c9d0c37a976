"""What a hostile worker sends as its value is unfit, and nothing worse."""

import fcntl
import json
import os
import socket
import sys

import pytest

from vsm.library.values import UnfitError, receive_value

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def receive(shape: list[int]) -> object:
    """What becomes of an empty array of that shape."""
    worker, program = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.memfd_create("result", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    head = {"kind": "value", "form": "array", "size": 0, "dtype": "<f8", "shape": shape}
    with worker, program:
        socket.send_fds(worker, [json.dumps(head).encode()], [fd])
        os.close(fd)
        return receive_value(program, 1 << 20)


def test_a_shape_that_numpy_refuses_is_unfit() -> None:
    pytest.importorskip("numpy")
    with pytest.raises(UnfitError):
        receive([0, 2**31, 2**31, 2**31])


def test_an_array_where_numpy_is_not_is_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(UnfitError):
        receive([0])
