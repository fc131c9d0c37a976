import ast
import re
from pathlib import Path

import pytest

from vsm.configuration.config import Config, Gateway, Integration
from vsm.configuration.secrets import SecretSource
from vsm.errors import ConfigurationError
from vsm.service import unit_files as service
from vsm.service.hardening import NOT_USED, USED

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")


def config(path: str = "/etc/vsm/vsm.toml", **integrations: Integration) -> Config:
    return Config(path=path, integrations=integrations)


def with_secret(name: str, *, enabled: bool = True) -> Integration:
    secrets = {"KEY": SecretSource(credential=name)}
    return Integration(name="a", command=("x",), secrets=secrets, enabled=enabled)


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_the_system_unit_holds_every_directive_that_is_used_and_none_that_is_not() -> None:
    unit = lines(service.units(config(), command="/opt/vsm/bin/vsm", user=False).service)
    assert [one.line for one in USED if one.line not in unit] == []
    assert [one.line for one in NOT_USED if one.line in unit] == []


def test_a_user_unit_holds_only_what_a_user_manager_can_do() -> None:
    unit = service.units(config(), command="/opt/vsm/bin/vsm", user=True).service
    wrong = [one.name for one in USED if (one.line in lines(unit)) != one.user]
    assert wrong == []
    assert "StateDirectory" not in unit
    assert "WantedBy=default.target" in lines(unit)


@pytest.mark.parametrize("directive", [*USED, *NOT_USED], ids=lambda one: one.line[:40])
def test_the_documentation_has_a_row_for_each_directive(directive: object) -> None:
    assert f"| `{directive.line}` |" in OPERATIONS  # type: ignore[attr-defined]


def test_what_supervision_needs_is_there() -> None:
    unit = lines(service.units(config(), command="/opt/vsm/bin/vsm", user=False).service)
    for line in (
        "Type=notify", "NotifyAccess=main", "Delegate=yes", "OOMPolicy=continue", "KillMode=mixed",
        "RuntimeDirectoryPreserve=yes", "Restart=on-failure", f"WatchdogSec={service.WATCHDOG_S}",
        'ExecStart="/opt/vsm/bin/vsm" up --config "/etc/vsm/vsm.toml"',
    ):  # fmt: skip
        assert line in unit


def test_paths_are_one_word_and_nothing_in_them_is_expanded() -> None:
    unit = service.units(config('/a b/%h/$HOME/"q"'), command="/x y/vsm", user=False).service
    assert 'ExecStart="/x y/vsm" up --config "/a b/%%h/$$HOME/\\"q\\""' in lines(unit)


def test_a_line_break_in_a_path_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        service.units(config("/a\nExecStartPre=/bin/evil"), command="/vsm", user=False)


def test_credentials_of_enabled_integrations_are_loaded() -> None:
    both = config(a=with_secret("one"), b=with_secret("two", enabled=False))
    unit = lines(service.units(both, command="/vsm", user=False).service)
    assert [line for line in unit if line.startswith("LoadCredential")] == ["LoadCredential=one"]


@pytest.mark.parametrize(
    ("http", "address"),
    [
        ("127.0.0.1:8765", "127.0.0.1:8765"),
        ("localhost:80", "127.0.0.1:80"),
        ("[::1]:8765", "[::1]:8765"),
        ("127.0.0.1:0", ""),
        ("", ""),
    ],
)
def test_the_socket_unit_listens_where_the_configuration_says(http: str, address: str) -> None:
    assert service.listen_address(http) == address
    with_address = Config(path="/x", gateway=Gateway(http=http))
    socket = lines(service.units(with_address, command="/vsm", user=False).socket)
    assert (f"ListenStream={address}" in socket) == bool(address)
    assert "ListenStream=%t/vsm/mcp.sock" in socket


def test_no_unit_without_a_configuration() -> None:
    with pytest.raises(ConfigurationError):
        service.units(Config(), command="/vsm", user=False)


DECIDES = (
    "core/*.py", "systems/*.py", "supervision/*group.py", "supervision/*_actor.py",
    "supervision/supervisor.py", "supervision/reload.py", "processes/*.py", "output.py",
    "board/heartbeat.py", "service/notify.py",
)  # fmt: skip


@pytest.mark.parametrize("pattern", DECIDES)
def test_no_decision_of_supervision_depends_on_the_wall_clock(pattern: str) -> None:
    """A clock that jumps must not restart, quarantine or time anything out."""
    paths = list((ROOT / "vsm").glob(pattern))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert not re.fullmatch(r"time\.time(_ns)?|(datetime\.)?datetime\.\w*now", called)
