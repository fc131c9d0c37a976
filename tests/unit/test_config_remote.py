"""Entries with a url: what they become, and what is refused with the key named."""

import json
from pathlib import Path
from typing import Any

import pytest

from vsm.configuration.config import Integration, load_config
from vsm.errors import ConfigurationError
from vsm.remote.tokens import Tokens
from vsm.supervision import oauth_store
from vsm.supervision.provision import _secrets, profile_of


def load(folder: Path, text: str, more: str = "") -> Integration:
    folder.chmod(0o755)
    (folder / "vsm.toml").write_text(f"[integrations.far]\n{text}\n{more}")
    return load_config(folder / "vsm.toml").integrations["far"]


def settings_of(integration: Integration) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(integration.env["VSM_REMOTE"])
    return found


def test_a_url_becomes_a_worker_that_may_reach_its_host_alone(tmp_path: Path) -> None:
    far = load(tmp_path, 'url = "https://mcp.example.com/a/b?c=d"')
    assert far.remote is not None
    assert far.remote.hosts == ("mcp.example.com:443",)
    assert not far.remote.in_clear
    assert far.profile == "remote"
    profile = profile_of(far)
    assert (profile.network.mode, profile.network.allow) == ("proxy", ("mcp.example.com:443",))
    assert settings_of(far)["target"] == "/a/b?c=d"
    assert "mcp.example.com" not in " ".join(far.command)


def test_secrets_stay_sources_and_are_in_no_setting(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2")
    far = load(
        tmp_path,
        'url = "https://x.example/mcp"\nbearer = { file = "key" }\n'
        'headers = { X-Team = "acme", X-Api-Key = { variable = "KEY" } }\n'
        'clients.alice.bearer = { credential = "hers" }',
        "[clients.alice]\n",
    )
    assert set(far.secrets) == {
        "HEADER_AUTHORIZATION",
        "HEADER_X_API_KEY",
        "CLIENT_ALICE_HEADER_AUTHORIZATION",
    }
    assert far.secrets["HEADER_AUTHORIZATION"].file == str(tmp_path / "key")
    assert "hunter2" not in far.env["VSM_REMOTE"]
    own = settings_of(far)["own"]
    assert own["headers"] == {"x-team": "acme"}
    assert own["secret_headers"]["authorization"] == ["HEADER_AUTHORIZATION", "Bearer "]
    assert far.remote is not None
    assert far.remote.clients == ("alice",)


@pytest.mark.parametrize(
    "kept", ["hunter2\nx-admin: yes\n", "hunter2\n\n", "hunter2\r\r\n", "håndtak"]
)
def test_a_secret_that_no_header_can_be_is_refused_and_not_shown(tmp_path: Path, kept: str) -> None:
    (tmp_path / "key").write_text(kept, newline="")
    far = load(tmp_path, 'url = "https://x.example/mcp"\nbearer = { file = "key" }')
    with pytest.raises(ConfigurationError, match="one line of printable ASCII") as caught:
        _secrets(far)
    assert "HEADER_AUTHORIZATION" in caught.value.where
    assert "hunter2" not in str(caught.value)
    assert "håndtak" not in str(caught.value)
    (tmp_path / "key").write_text("hunter2\r\n", newline="")
    assert _secrets(far) == {"HEADER_AUTHORIZATION": "hunter2"}


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ('url = "http://x.example/mcp"', "url", "expected https"),
        ('url = "http://10.0.0.5/mcp"\naddresses = ["10.0.0.5"]', "url", "expected https"),
        ('url = "http://127.0.0.1:1/mcp"', "url", "addresses ="),
        ('url = "https://169.254.169.254/"', "url", "metadata"),
        ('url = "https://localhost/mcp"', "url", 'write addresses = ["127.0.0.1"]'),
        ('url = "http://localhost/mcp"\naddresses = ["10.0.0.5"]', "url", "localhost"),
        ('url = "http://x.localhost/mcp"\naddresses = ["127.0.0.1"]', "url", "localhost"),
        ('url = "https://2130706433/mcp"', "url", "spelling"),
        ('url = "https://me:pw@x.example/"', "url", "name and password"),
        ('url = "https://x.example/a b"', "url", "ASCII"),
        ('url = "ftp://x.example/"', "url", "https"),
        ('url = "https://x.example:99999/"', "url", "ort"),
        ('url = "https://x.example/"\ncommand = ["x"]', "command", "does not go with url"),
        ('url = "https://x.example/"\nstate = true', "state", "does not go with url"),
        ('url = "https://x.example/"\nsecrets.A = { file = "x" }', "secrets", "not go with url"),
        ('command = ["x"]\nbearer = { file = "x" }', "bearer", "does not go with command"),
        ('url = "https://x.example/"\nheaders.Authorization = "Bearer x"', "headers", "no place"),
        ('url = "https://x.example/"\nheaders.X-Api-Key = "x"', "headers", "no place"),
        ('url = "https://x.example/"\nheaders.Host = "y"', "headers", "no header"),
        ('url = "https://x.example/"\nheaders.X_A = "y"', "headers", "no header"),
        ('url = "https://x.example/"\nheaders.X-A = "a\\r\\nB: c"', "headers", "printable"),
        ('url = "https://x.example/"\nbearer = {}', "bearer", "exactly one source"),
        ('url = "https://x.example/"\nbearer = { file = "x" }\noauth = {}', "far", "both oauth"),
        ('url = "https://x.example/"\noauth = {}\ninstances = "session"', "oauth", "same tokens"),
        ('url = "https://x.example/"\noauth = {}\ninstances = "pool"', "oauth", "same tokens"),
        ('url = "https://x.example/"\nclients.bob.bearer.file = "x"', "clients.bob", "no such"),
        ('url = "https://x.example/"\naddresses = ["x"]', "addresses", "expected"),
        ("", "command", "url"),
    ],
)
def test_what_is_wrong_is_refused_with_its_key(
    tmp_path: Path, text: str, key: str, what: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, text)
    assert key in refused.value.where
    assert what in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_localhost_keeps_its_name_and_leads_to_the_loopback_address_that_is_allowed(
    tmp_path: Path, address: str
) -> None:
    far = load(
        tmp_path, f'url = "http://localhost:81/mcp"\naddresses = ["{address}"]\noauth = {{}}'
    )
    assert settings_of(far)["host"] == "localhost"
    assert far.remote is not None
    there = f"[{address}]:81" if ":" in address else f"{address}:81"
    assert far.remote.hosts == (there,)
    assert oauth_store.endpoint_host(far, "http://localhost:81/token") == there


def test_a_profile_that_lets_it_reach_more_is_refused(tmp_path: Path) -> None:
    for text in ("[network]\nmode = 'host'", "[network]\nallow = ['y.example:443']"):
        (tmp_path / "own.toml").write_text(f'extends = "remote"\n{text}\n')
        far = load(tmp_path, 'url = "https://x.example/"\nprofile = "own.toml"')
        with pytest.raises(ConfigurationError, match="empty allow-list"):
            profile_of(far)


@pytest.mark.parametrize(
    ("endpoint", "refused"),
    [
        ("https://login.example/token", ""),
        ("http://login.example/token", "not https"),
        ("https://127.0.0.1:22/token", "loopback"),
        ("https://169.254.169.254/token", "metadata"),
        ("https://localhost/token", "localhost"),
    ],
)
def test_tokens_are_renewed_where_the_worker_may_be_sent_alone(
    tmp_path: Path, endpoint: str, refused: str
) -> None:
    far = load(tmp_path, 'url = "https://x.example/"\noauth = {}')
    if refused:
        with pytest.raises(ConfigurationError, match=refused):
            oauth_store.endpoint_host(far, endpoint)
    else:
        assert oauth_store.endpoint_host(far, endpoint) == "login.example:443"


def test_a_login_is_handed_to_the_worker_once_and_forgotten_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    far = load(tmp_path, 'url = "https://x.example/"\noauth = {}')
    own = tmp_path / "state/integrations/far"
    own.mkdir(parents=True)
    (own / "oauth.json").symlink_to(tmp_path / "elsewhere")  # a worker's trap
    tokens = Tokens(access_token="a1", token_endpoint="https://login.example/token", client_id="c")
    oauth_store.store("far", "", tokens)
    assert oauth_store.hosts(far) == ("login.example:443",)
    assert profile_of(far).network.allow == ("x.example:443", "login.example:443")
    oauth_store.hand_over(far, str(own), None)
    assert not (tmp_path / "elsewhere").exists()
    assert json.loads((own / "oauth.json").read_text())["access_token"] == "a1"
    assert (own / "oauth.json").stat().st_mode & 0o777 == 0o600
    kept = tmp_path / "state/oauth/far/_own.json"
    assert "a1" not in kept.read_text()
    (own / "oauth.json").write_text("renewed by the worker")
    oauth_store.hand_over(far, str(own), None)
    assert (own / "oauth.json").read_text() == "renewed by the worker"
    assert oauth_store.forget(far, "")
    assert not kept.exists()
    assert not (own / "oauth.json").exists()
    assert not oauth_store.forget(far, "")
