"""Which attacks an audit tries from within a worker."""

from pathlib import Path

import pytest
from made_hosts import USER

from vsm.configuration.profile import load_profile
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.governance import attacks


def tried(*read: Path) -> set[str]:
    request = WorkerRequest(name="a", argv=("/bin/true",), read=tuple(map(str, read)))
    plan = compile_plan(load_profile("integration"), request, USER)
    return set(attacks.attacks(plan, root=False))


def test_folders_on_the_way_to_what_a_worker_was_given_are_no_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server in somebody's home: the home is there inside, and holds that server alone."""
    given = tmp_path / "home/me/server"
    given.mkdir(parents=True)
    monkeypatch.setitem(attacks._FOLDERS, "open_homes", str(tmp_path / "home"))
    assert {"open_homes", "open_logs", "list_the_home_of_root"} <= tried()
    assert tried() - tried(given) == {"open_homes"}
    beside = tmp_path / "homes"
    beside.mkdir()
    assert "open_homes" in tried(beside)


def test_each_folder_that_is_looked_for_is_an_attack() -> None:
    assert {"open_homes", "open_run_folder", "open_boot_folder"} <= set(attacks._FOLDERS)
