import os
from pathlib import Path

import pytest

from vsm import paths
from vsm.errors import ConfigurationError

VARIABLES = (
    *("VSM_RUNTIME_DIR", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "VSM_STATE_DIR"),
    *("STATE_DIRECTORY", "XDG_STATE_HOME", "VSM_PROFILE_PATH"),
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_nearest_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert paths.runtime_dir() == Path("/run/user/1/vsm")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/vsm-a:/run/vsm-b")
    assert paths.runtime_dir() == Path("/run/vsm-a")
    monkeypatch.setenv("VSM_RUNTIME_DIR", "/x")
    assert paths.runtime_dir() == Path("/x")


def test_root_and_users_have_different_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")  # a login session: the service's is ours
    assert paths.runtime_dir() == Path("/run/vsm")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert paths.state_dir() == Path("/var/lib/vsm")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert paths.runtime_dir() == Path("/tmp/vsm-4711")
    assert paths.state_dir() == Path.home() / ".local/state/vsm"


def test_the_runtime_directory_is_made_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_RUNTIME_DIR", str(tmp_path / "a" / "run"))
    assert paths.ensure_runtime_dir().stat().st_mode & 0o777 == 0o700
    paths.ensure_runtime_dir()


def test_a_directory_that_others_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o770)
    monkeypatch.setenv("VSM_RUNTIME_DIR", str(run))
    with pytest.raises(ConfigurationError, match="0770"):
        paths.ensure_runtime_dir()


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_what_is_no_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = tmp_path / "run"
    if kind == "symlink":
        run.symlink_to(tmp_path)
    else:
        run.touch()
    monkeypatch.setenv("VSM_RUNTIME_DIR", str(run))
    with pytest.raises(ConfigurationError):
        paths.ensure_runtime_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    os.chown(run, 65534, 65534)
    monkeypatch.setenv("VSM_STATE_DIR", str(run))
    with pytest.raises(ConfigurationError, match="65534"):
        paths.ensure_state_dir()


def test_own_profiles_come_before_the_hosts_and_the_shipped_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VSM_PROFILE_PATH", "/a::/b")
    found = paths.profile_search_path()
    assert found[:3] == (Path("/a"), Path("/b"), Path("/etc/vsm/profiles"))
    assert (found[3] / "integration.toml").is_file()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is run by a uid of its own."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(ConfigurationError, match=r"uid 4711 has no home directory.*VSM_STATE_DIR"):
        paths.state_dir()
    monkeypatch.setenv("VSM_STATE_DIR", "/x")
    assert paths.state_dir() == Path("/x")
