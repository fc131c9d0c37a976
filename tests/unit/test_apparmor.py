import errno
import os
from pathlib import Path

import pytest

from vsm.confinement import probe
from vsm.confinement.probe import HostFacts, layer_table
from vsm.errors import ConfigurationError
from vsm.service import apparmor


def test_a_profile_is_for_one_command_and_allows_user_namespaces() -> None:
    text = apparmor.profile("/opt/my tools/vsm")
    assert text.startswith(apparmor.MARK)
    assert 'profile vsm "/opt/my tools/vsm" flags=(unconfined) {\n  userns,\n' in text


@pytest.mark.parametrize(
    "path", ["vsm", "/opt/*/vsm", "/a\n{ /** rwx, }", '/a" {', "/@{HOME}/vsm", ""]
)
def test_a_path_that_means_more_than_itself_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError):
        apparmor.profile(path)


@pytest.mark.parametrize(("text", "restricted"), [("1\n", True), ("0\n", False), (None, False)])
def test_the_restriction_is_read_from_the_kernel(
    tmp_path: Path, text: str | None, *, restricted: bool
) -> None:
    setting = tmp_path / "setting"
    if text is not None:
        setting.write_text(text, encoding="ascii")
    assert apparmor.is_restricted(setting) is restricted


@pytest.mark.parametrize(
    ("text", "mediated", "useful"),
    [
        ("1", True, True),
        ("0", True, False),
        (None, True, True),
        (None, False, False),
    ],
)
def test_a_profile_is_of_use_where_ubuntus_switch_is_on_or_is_not_there(
    tmp_path: Path, text: str | None, *, mediated: bool, useful: bool
) -> None:
    setting, mediation = tmp_path / "setting", tmp_path / "mediation"
    if text is not None:
        setting.write_text(text, encoding="ascii")
    if mediated:
        mediation.write_text("userns_create", encoding="ascii")
    assert apparmor.may_restrict(setting, mediation) is useful


@pytest.mark.parametrize(("setting", "named"), [("1", True), ("0", False)])
def test_the_probe_names_the_command_where_it_helps(setting: str, *, named: bool) -> None:
    facts = HostFacts(
        uid=1000,
        tier="landlocked",
        landlock_abi=4,
        settings={"apparmor_restrict_unprivileged_userns": setting},
    )
    remedies = {row.layer: row.remedy for row in layer_table(facts)}
    assert ("vsm service apparmor" in remedies["namespaces"]) is named


@pytest.mark.parametrize(
    ("profile", "reason", "named"),
    [
        ("session (enforce)", os.strerror(errno.EACCES), True),
        ("session (enforce)", os.strerror(errno.EPERM), False),
        ("session (complain)", os.strerror(errno.EACCES), False),
        ("unconfined", os.strerror(errno.EACCES), False),
    ],
)
def test_the_probe_names_the_command_where_a_profile_forbids(
    profile: str, reason: str, *, named: bool
) -> None:
    facts = HostFacts(
        uid=1000,
        tier="landlocked",
        landlock_abi=4,
        settings={"apparmor_profile": profile},
        reasons={"user_namespaces": f"unshare user: {reason}"},
    )
    remedies = {row.layer: row.remedy for row in layer_table(facts)}
    assert ("vsm service apparmor" in remedies["namespaces"]) is named


def test_a_profile_is_named_as_anybody_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is often a path; a probe that failed at it would keep vsm from starting."""
    current = tmp_path / "current"
    current.write_bytes("/usr/bin/café (enforce)\n".encode())
    monkeypatch.setitem(probe.SETTINGS, "apparmor_profile", str(current))
    assert probe._settings()["apparmor_profile"].endswith(" (enforce)")
