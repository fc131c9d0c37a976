"""A runtime directory in any state: taken over, or refused with its path and what to do."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from vsm import endpoint
from vsm.errors import VsmError
from vsm.service import notify

SOCKETS = ("control.sock", "mcp.sock")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("VSM_RUNTIME_DIR", str(run))
    monkeypatch.setattr(endpoint, "die_with_parent", lambda: None)  # it would stay in this process
    monkeypatch.setattr(notify, "_given", [])
    return run


def test_what_a_killed_one_left_is_replaced(folder: Path) -> None:
    for name in SOCKETS:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(folder / name))  # and nobody listens
    for name in ("lock", "token", "endpoint.json", "token.new"):
        (folder / name).write_text("4194305\n", encoding="ascii")
    claimed = endpoint.claim("")
    for name in SOCKETS:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / name))
    assert (folder / "token").read_text(encoding="ascii").strip() == claimed.token
    with pytest.raises(VsmError, match=f"another vsm runs here .pid {os.getpid()}"):
        endpoint.claim("")
    claimed.release()
    assert list(folder.iterdir()) == []


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").touch()


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        *((name, a_folder) for name in (*SOCKETS, "lock", "token", "endpoint.json")),
        ("lock", a_link),
    ],
)
def test_what_cannot_be_replaced_is_named_and_nothing_else_is_touched(
    folder: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(folder / name)
    with pytest.raises(VsmError) as caught:
        endpoint.claim("")
    assert caught.value.where == str(folder / name)
    assert "VSM_RUNTIME_DIR" in caught.value.remedy
    assert os.path.lexists(folder / name)
    assert {path.name for path in folder.iterdir()} <= {name, f"{name}.new"}


def test_lock_goes_when_nothing_else_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed, unlink, left = endpoint.claim(""), Path.unlink, []

    def watched(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path.name == "lock":
            left.extend(entry.name for entry in folder.iterdir())

    monkeypatch.setattr(Path, "unlink", watched)
    claimed.release()
    assert left == []
