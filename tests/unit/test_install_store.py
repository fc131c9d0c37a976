"""The store of installed servers: what is there is what the record says, whatever ended when."""

from pathlib import Path

import pytest

from vsm.install import store
from vsm.install.store import CURRENT, SERVER_FILE, Server, ServerStore


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerStore:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path))
    found = ServerStore()
    install(found, "1.0")
    return found


def install(servers: ServerStore, version: str, *, then: type[BaseException] | None = None) -> None:
    """Commit a tree that tells its version; `then` is raised after that."""
    with servers.build("a", version) as build:
        (build / "version").write_text(version)
        before = servers.server("a")
        servers.commit(
            Server(
                name="a", kind="npm", package="a", version=version, registry="", runtime="",
                installed_at="", vsm="", directory=build.name,
                previous=before.directory if before else "",
            ),
            {},
        )  # fmt: skip
        if then is not None:
            raise then


def running(servers: ServerStore) -> tuple[str, str]:
    """The version that the record says, and the one that an entry would run."""
    server = servers.server("a")
    assert server is not None
    return server.version, (servers.folder / "a" / CURRENT / "version").read_text()


def test_interrupt_after_the_commit_leaves_the_new_server(servers: ServerStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        install(servers, "2.0", then=KeyboardInterrupt)
    assert running(servers) == ("2.0", "2.0")


def test_interrupt_within_the_commit_leaves_one_or_the_other(
    servers: ServerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moments = store._write, iter((True, False))

    def write(path: Path, content: object) -> None:
        if path.name != SERVER_FILE:
            return
        if next(moments):
            raise KeyboardInterrupt
        real(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_write", write)
    for left in ("1.0", "2.0"):
        with pytest.raises(KeyboardInterrupt):
            install(servers, "2.0")
        assert running(servers) == (left, left)


def test_interrupted_first_installation_leaves_nothing(servers: ServerStore) -> None:
    with pytest.raises(KeyboardInterrupt), servers.build("b", "1.0"):
        raise KeyboardInterrupt
    assert not (servers.folder / "b").exists()


def test_what_a_killed_commit_left_undone_is_done_by_the_next_command(
    servers: ServerStore,
) -> None:
    link = servers.folder / "a" / CURRENT
    link.unlink()
    link.symlink_to("of-a-commit-that-was-killed")
    with servers.locked():
        assert running(servers) == ("1.0", "1.0")
