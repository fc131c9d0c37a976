"""What `vsm doctor` says of a host and of integrations, for hosts that are made up."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from made_hosts import USER

from vsm import doctor
from vsm.confinement.cgroup import CgroupFacts
from vsm.confinement.probe import HostFacts, layer_table
from vsm.errors import ConfigurationError, VsmError


def found(facts: HostFacts, config: Path) -> dict[str, doctor.Finding]:
    findings = (*doctor._layers(facts), *doctor._configuration(config, facts))
    return {finding.check: finding for finding in findings}


def written(folder: Path, rest: str = "") -> Path:
    config = folder / "vsm.toml"
    config.write_text(f'[integrations.a]\ncommand = ["/bin/true"]\n{rest}', encoding="utf-8")
    return config


def test_an_ordinary_users_host_that_serves_has_no_failure(tmp_path: Path) -> None:
    findings = found(USER, written(tmp_path))
    assert [name for name, one in findings.items() if one.result == "fail"] == []
    said = findings["integration a"].detail
    assert said.endswith("profile integration, namespaced, lacks user, memory, cpu")


def test_a_layer_that_a_profile_requires_fails_that_integration_with_the_remedy(
    tmp_path: Path,
) -> None:
    without = msgspec.structs.replace(USER, landlock_abi=0)
    failed = found(without, written(tmp_path))["integration a"]
    assert (failed.result, "landlock" in failed.detail) == ("fail", True)
    assert failed.remedy
    rates = tmp_path / "rates.toml"
    rates.write_text('extends = "integration"\n[limits]\nio_read = "1M"\n', encoding="utf-8")
    failed = found(USER, written(tmp_path, 'profile = "./rates.toml"\n'))["integration a"]
    assert (failed.result, "io" in failed.detail) == ("fail", True)


def test_a_path_or_a_secret_that_a_start_would_miss_is_found(tmp_path: Path) -> None:
    for rest in ('read = ["/no/such"]\n', 'secrets = { K = { file = "/no/such" } }\n'):
        failed = found(USER, written(tmp_path, rest))["integration a"]
        assert (failed.result, "/no/such" in failed.detail) == ("fail", True)
        assert failed.remedy


def test_no_remedy_is_given_that_changes_nothing() -> None:
    """Subordinate uids are probed and not used: who has them has the same layers."""
    for has in (False, True):
        rows = layer_table(msgspec.structs.replace(USER, subordinate_ids=has))
        (user,) = [row for row in rows if row.layer == "user"]
        assert user.state == "weaker"
        assert "subuid" not in user.remedy


def test_a_path_that_a_server_is_told_of_and_does_not_see_is_a_warning(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    config = tmp_path / "vsm.toml"
    text = f'[integrations.a]\ncommand = ["/bin/cat", "--at={notes}", "/no/such"]\n'
    config.write_text(text, encoding="utf-8")
    warned = found(USER, config)["paths a"]
    assert (warned.result, str(notes) in warned.detail) == ("warn", True)
    assert warned.remedy == f"Add {notes} to read or write of [integrations.a]."
    for seen in (f'read = ["{tmp_path}"]\n', f'write = ["{notes}"]\n'):
        config.write_text(text + seen, encoding="utf-8")
        assert "paths a" not in found(USER, config)
    config.write_text(f'{text}env = {{ STORE = "{tmp_path}/new", WAY = "/mcp" }}\n{seen}')
    assert found(USER, config)["paths a"].remedy.startswith(f"Add {tmp_path} to read or write")


def test_what_every_worker_has_of_its_own_is_no_path_of_the_host(tmp_path: Path) -> None:
    config = tmp_path / "vsm.toml"
    own = 'command = ["/bin/cat", "--log=/dev/stderr"]\nenv = { STORE = "/proc/self/cwd/x" }\n'
    config.write_text(f"[integrations.a]\n{own}", encoding="utf-8")
    assert "paths a" not in found(USER, config)


def test_a_layer_that_works_is_no_warning() -> None:
    for io, result in ((False, "warn"), (True, "ok")):
        facts = msgspec.structs.replace(USER, cgroup=CgroupFacts(kind="v1", io=io))
        results = {one.check: one.result for one in doctor._layers(facts)}
        assert results["layer io"] == result


def test_a_bare_command_is_looked_up_in_our_own_path_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools that keep several versions of node have them in no folder of the system's."""
    versions = tmp_path / "versions"
    versions.mkdir()
    shutil.copy("/bin/true", versions / "true")
    config = tmp_path / "vsm.toml"
    config.write_text('[integrations.a]\ncommand = ["true"]\n', encoding="utf-8")
    monkeypatch.setenv("PATH", str(versions))
    assert found(USER, config)["integration a"].detail.startswith(f"{versions}/true, ")
    monkeypatch.setenv("PATH", "/nowhere")  # then that of the profile
    assert found(USER, config)["integration a"].detail.startswith("/usr/bin/true, ")


def test_a_relative_script_fails_that_the_server_would_not_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts in a folder of its own, wherever vsm is started."""
    (tmp_path / "server.py").touch()
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "vsm.toml"
    text = '[integrations.a]\ncommand = ["/usr/bin/python3", "server.py"]\n'
    config.write_text(text, encoding="utf-8")
    failed = found(USER, config)["integration a"]
    assert (failed.result, "look for server.py" in failed.detail) == ("fail", True)
    assert failed.remedy == "Write the full path, or set cwd."
    config.write_text(f'{text}cwd = "."\nread = ["."]\n', encoding="utf-8")
    assert found(USER, config)["integration a"].result == "ok"


def test_folders_that_cannot_be_found_or_looked_at_end_no_other_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()  # below it nobody may look
    monkeypatch.setattr(doctor, "runtime_dir", lambda: tmp_path / "file")

    def nowhere() -> Path:
        raise ConfigurationError("", "uid 1 has no home directory", "Set $HOME.")

    monkeypatch.setattr(doctor, "state_dir", nowhere)
    findings = {one.check: one for one in (*doctor._directories(), *doctor._sockets())}
    state = findings["state directory"]
    assert (state.result, state.detail, state.remedy) == (
        "fail", "uid 1 has no home directory", "Set $HOME."
    )  # fmt: skip
    integration = SimpleNamespace(name="a", read=(str(tmp_path),), write=())
    assert [one.check for one in doctor._own_folders(integration)] == ["grants a"]  # type: ignore[arg-type]


def test_sockets_that_nobody_may_look_at_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> None:
        raise VsmError(f"/root/x/{name}", "cannot be looked at: Permission denied")

    monkeypatch.setattr(doctor, "connect", refused)
    assert [(one.result, one.detail) for one in doctor._sockets()] == [
        ("fail", f"/root/x/{name}: cannot be looked at: Permission denied")
        for name in ("control.sock", "mcp.sock")
    ]
