from pathlib import Path

import pytest

from vsm.cli import main
from vsm.commands.install import SEES_NOTHING
from vsm.configuration.profile import load_profile


@pytest.mark.parametrize("shipped", ["node-server", "python-server"])
def test_the_profile_that_an_installation_proposes_opens_its_host_and_changes_nothing_else(
    tmp_path: Path, shipped: str
) -> None:
    _, _, text = SEES_NOTHING.format(name="a", profile=shipped).partition("\n\n")
    file = tmp_path / "a.toml"
    file.write_text(text, encoding="utf-8")
    proposed, own, networked = (load_profile(one) for one in (str(file), shipped, "networked"))
    assert (proposed.limits, proposed.environment) == (own.limits, own.environment)
    assert (proposed.tier, proposed.network.mode) == (networked.tier, networked.network.mode)
    assert proposed.network.allow == ("api.example.com:443",)


@pytest.mark.parametrize("host", ["http://x", "x", "x:99999", "localhost:80"])
def test_a_host_that_cannot_be_allowed_is_told_as_it_was_given(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str,
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    assert main(["install", "npm:x@1.0.0", "--allow", host]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vsm: --allow: ")
    assert "fetching" not in said
