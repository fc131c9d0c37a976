import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration import config as configuration
from vsm.configuration.config import MOST_INTEGRATIONS, Config, load_config
from vsm.configuration.secrets import SecretSource, read_secret
from vsm.errors import ConfigurationError
from vsm.supervision.provision import profile_of

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str) -> Path:
        path = tmp_path / "vsm.toml"
        path.write_text(content)
        return path

    return write


def refusal(path: Path) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load_config(path)
    return caught.value


def one(extra: str = "", name: str = "time") -> str:
    return f'[integrations.{name}]\ncommand = ["server"]\n{extra}\n'


def test_without_a_file_there_is_a_gateway_and_no_integration() -> None:
    config = load_config(None)
    assert config.path is None
    assert config.gateway.http == "127.0.0.1:8765"
    assert config.gateway.auth == "token"
    assert not config.integrations


def test_an_integration_has_the_documented_defaults(write: Write) -> None:
    integration = load_config(write(one())).integrations["time"]
    assert integration.name == "time"
    assert integration.profile == "integration"
    assert integration.prefix is None
    assert integration.enabled
    assert integration.max_frame_bytes == 8 * 2**20
    assert integration.restart.intensity == 3


def test_relative_paths_start_at_the_files_folder(write: Write, tmp_path: Path) -> None:
    extra = 'read = ["papers"]\nwrite = ["../out"]\ncwd = "."\nprofile = "./strict.toml"'
    path = write(one(extra).replace('"server"', '"venv/bin/python", "./kept"'))
    integration = load_config(path).integrations["time"]
    assert integration.command == (f"{tmp_path}/venv/bin/python", "./kept")
    assert integration.read == (f"{tmp_path}/papers",)
    assert integration.write == (f"{tmp_path.parent}/out",)
    assert integration.cwd == str(tmp_path)
    assert integration.profile == f"{tmp_path}/strict.toml"


def test_a_bare_command_stays_a_name(write: Write) -> None:
    assert load_config(write(one())).integrations["time"].command == ("server",)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("[integrations.time]\n", "integrations.time.command"),
        ("[integrations.time]\ncommand = []", "integrations.time.command"),
        ('[integrations.time]\ncommand = "server"', "integrations.time.command"),
        ('[integrations.time]\ncommand = ["npx -y x"]', "integrations.time.command"),
        (one(name="Time"), "integrations.Time"),
        (one(name="a__b"), "integrations.a__b"),
        (one(name='"a/b"'), "integrations.a/b"),
        (one(name="x" * 33), f"integrations.{'x' * 33}"),
        (one('instances = "each"'), "integrations.time.instances"),
        (one("pool_min = 5"), "integrations.time.pool_min"),
        (one("spares = 1"), "integrations.time.spares"),
        (one("zygote = true"), "integrations.time.zygote"),
        (one('instances = "session"\nstart = "lazy"\nzygote = true'), "integrations.time.zygote"),
        (one('instances = "session"\nstate = true'), "integrations.time.state"),
        (one('instances = "session"\nspares = 17'), "integrations.time.spares"),
        (one("max_instances = 65"), "integrations.time.max_instances"),
        (one("idle_stop_s = -1"), "integrations.time.idle_stop_s"),
        (one('prefix = "a b"'), "integrations.time.prefix"),
        (one('prefix = "a__b"'), "integrations.time.prefix"),
        (one("concurrency = 0"), "integrations.time.concurrency"),
        (one("call_timeout_s = 0"), "integrations.time.call_timeout_s"),
        (one("call_timeout_s = true"), "integrations.time.call_timeout_s"),
        (one('max_frame = "1"'), "integrations.time.max_frame"),
        (one("restart = { intensity = -1 }"), "integrations.time.restart.intensity"),
        (one("secrets = { K = {} }"), "integrations.time.secrets.K"),
        (
            one('secrets = { K = { file = "a", variable = "b" } }'),
            "integrations.time.secrets.K",
        ),
        (one('secrets = { K = { credential = "../x" } }'), "integrations.time.secrets.K"),
        (one(r'secrets = { K = { file = "\u0000" } }'), "integrations.time.secrets.K"),
        (one("range.cpu = [1, inf]"), "integrations.time.range.cpu"),
        (one(f"range.cpu = [1, 1{'0' * 400}]"), "integrations.time.range.cpu"),
        (one("range.processes = [nan, 2]"), "integrations.time.range.processes"),
        (r"[clients.a]" + "\n" + r'token_file = "\u0000"', "clients.a.token_file"),
        (one('env = { K = "1" }\nsecrets = { K = { file = "a" } }'), "integrations.time"),
        ('[gateway]\nhttp = "0.0.0.0:1"', "gateway.http"),
        ('[gateway]\nhttp = "127.0.0.1"', "gateway.http"),
        ('[gateway]\nhttp = "127.0.0.1:99999"', "gateway.http"),
        ('[gateway]\nauth = "nobody"', "gateway.auth"),
    ],
)
def test_a_wrong_value_names_its_key(write: Write, content: str, where: str) -> None:
    path = write(content)
    assert refusal(path).where == f"{path}: {where}"


@pytest.mark.parametrize("address", ["", "127.0.0.1:0", "[::1]:8765", "localhost:1", "127.9.9.9:1"])
def test_loopback_addresses_are_accepted(write: Write, address: str) -> None:
    assert load_config(write(f'[gateway]\nhttp = "{address}"')).gateway.http == address


def test_two_integrations_with_one_prefix_are_refused_by_both_names(write: Write) -> None:
    error = refusal(write(one(name="a") + one('prefix = "a"', name="b")))
    assert "integrations.b.prefix" in error.where
    assert "prefix of a" in error.what


def test_bare_prefixes_may_repeat(write: Write) -> None:
    bare = 'prefix = ""'
    config = load_config(write(one(bare, name="a") + one(bare, name="b")))
    assert [item.prefix for item in config.integrations.values()] == ["", ""]


def test_more_integrations_than_a_message_tells_of_are_refused(write: Write) -> None:
    every = [one(name=f"i{number}") for number in range(MOST_INTEGRATIONS + 1)]
    assert len(load_config(write("".join(every[1:]))).integrations) == MOST_INTEGRATIONS
    error = refusal(write("".join(every)))
    assert error.where.endswith("vsm.toml: integrations")
    assert "201 integrations; one vsm has 200 at most" in error.what


def test_a_misspelt_key_is_answered_with_the_nearest(write: Write) -> None:
    assert "'command'" in refusal(write('[integrations.time]\ncomand = ["x"]')).remedy


def test_a_secret_is_read_from_each_source_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("hunter2\n")
    monkeypatch.setenv("KEY", "hunter2")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    sources = [
        SecretSource(file=str(tmp_path / "key")),
        SecretSource(variable="KEY"),
        SecretSource(credential="key"),
    ]
    for source in sources:
        assert read_secret(source, where="x") == "hunter2"
        assert "hunter2" not in repr(source)


@pytest.mark.parametrize("content", [b"", b"\n", b"a\0b", b"\xff", b"x" * 70_000])
def test_a_wrong_secret_is_refused_without_its_value(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_secret(SecretSource(file=str(tmp_path / "key")), where="x")
    assert "a\0b" not in str(caught.value)
    assert "xxxx" not in str(caught.value)


def test_a_file_that_everybody_may_write_is_refused(write: Write) -> None:
    path = write("")
    path.chmod(0o646)
    assert "everybody may write it" in refusal(path).what


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "vsm.toml").what


def test_a_secret_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ConfigurationError, match="is no plain file"):
            read_secret(SecretSource(file=str(tmp_path / name)), where="x")


def test_a_missing_secret_says_where_it_should_be(tmp_path: Path) -> None:
    for source in (SecretSource(file=str(tmp_path / "none")), SecretSource(variable="NOT_SET_9")):
        with pytest.raises(ConfigurationError):
            read_secret(source, where="x")


tables = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*configuration.IntegrationDocument.__struct_fields__, "file", "time"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["gateway", "integrations", "systems", "x"]), tables))
def test_any_table_is_a_configuration_or_a_configuration_error(table: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "read_toml", lambda _: table)
        patch.setattr(configuration, "check_trust", lambda _: None)
        with contextlib.suppress(ConfigurationError):
            assert isinstance(load_config(Path(folder) / "vsm.toml"), Config)


def test_contents_of_calls_are_recorded_where_calls_are_and_within_a_bound(write: Write) -> None:
    kept = load_config(write(one('audit_contents = "4K"') + one(name="bare")))
    bounds = {name: each.audit_contents_bytes for name, each in kept.integrations.items()}
    assert bounds == {"time": 4096, "bare": 0}
    off = refusal(write(one('audit_contents = "4K"') + '[gateway]\naudit = "off"\n'))
    assert "integrations.time.audit_contents" in str(off)
    assert "at most 8K" in str(refusal(write(one('audit_contents = "9K"'))))


def test_an_integration_gets_no_profile_of_vsms_own_processes(write: Write) -> None:
    config = load_config(write(one('profile = "journal"')))
    with pytest.raises(ConfigurationError, match="for vsm's own processes") as caught:
        profile_of(config.integrations["time"])
    assert caught.value.where == "integrations.time.profile"
    assert "integration" in caught.value.remedy


@pytest.mark.parametrize(
    ("extra", "where"),
    [
        ('oauth = { scop = "read" }', "integrations.time.oauth"),
        ('bearer = { file = "x", fil = "y" }', "integrations.time.bearer"),
        ('headers = { X = { fil = "x" } }', "integrations.time.headers.X"),
        ('secrets = { X = { file = "x", fil = "y" } }', "integrations.time.secrets.X"),
        ("clients.a.oauth = { scop = 1 }", "integrations.time.clients.a.oauth"),
        ('[[policy.rules]]\nactoin = "deny"', "policy.rules.1"),
        ("[[coordination.rates]]\nper_secnd = 1", "coordination.rates.1"),
    ],
)
def test_an_unknown_key_is_refused_in_every_table(write: Write, extra: str, where: str) -> None:
    path = write(one(extra))
    error = refusal(path)
    assert error.where == f"{path}: {where}"
    assert error.what.startswith("unknown key ")
