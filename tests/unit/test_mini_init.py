"""What a mini-init says of a layer that it could not apply."""

import errno
import os

import pytest

from vsm.confinement.execution import OperationError
from vsm.processes import mini_init


@pytest.mark.parametrize(
    ("number", "layer"),
    [(errno.EPERM, "namespaces"), (errno.ENOMEM, ""), (errno.EAGAIN, "")],
)
def test_a_layer_that_fails_for_want_of_memory_is_not_missing_for_ever(
    number: int, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose layer is missing is given up at once."""
    said: list[dict[str, str]] = []
    monkeypatch.setattr(mini_init, "_report", lambda _event, content: said.append(content))
    error = OperationError("namespaces", "mount /tmp", os.strerror(number))
    error.__cause__ = OSError(number, os.strerror(number))
    assert mini_init._refuse(error) == mini_init.EXIT_FAILED
    assert said == [{"layer": layer, "what": f"mount /tmp: {os.strerror(number)}"}]
