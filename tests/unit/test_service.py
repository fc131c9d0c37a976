import ast
import re
import socket
from pathlib import Path

import pytest
from hardened import PROBES

from vsm.cli import main
from vsm.commands.service_reach import unreached
from vsm.configuration.config import Config, Gateway, Integration, load_config
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


def test_each_directive_has_an_attempt_that_it_refuses() -> None:
    """`scripts/service-proof --hardening` makes them without it, under it alone and under all."""
    assert set(PROBES) == {directive.name for directive in USED}


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
    unit = lines(service.units(with_address, command="/vsm", user=False).socket)
    assert (f"ListenStream={address}" in unit) == bool(address)
    assert "ListenStream=%t/vsm/mcp.sock" in unit


def test_no_unit_without_a_configuration() -> None:
    with pytest.raises(ConfigurationError):
        service.units(Config(), command="/vsm", user=False)


DECIDES = (
    "core/*.py", "systems/*.py", "supervision/*group.py", "supervision/*_actor.py",
    "supervision/supervisor.py", "supervision/reload.py", "processes/*.py", "output.py",
    "board/heartbeat.py", "service/notify.py", "governance/*.py", "gateway/*.py",
    "introspection/*.py", "library/*.py", "egress/*.py",
)  # fmt: skip
STAMPS = {"approvals.py": 1, "call_log.py": 3, "profile_cache.py": 1}
"""How often a module says when something is, to people and records, or asks how old a file is."""


@pytest.mark.parametrize("pattern", DECIDES)
def test_no_decision_depends_on_the_wall_clock(pattern: str) -> None:
    """A clock that jumps must not restart, quarantine, time out or approve anything."""
    paths = list((ROOT / "vsm").glob(pattern))
    assert paths
    for path in paths:
        calls = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        found = [
            c for c in calls if re.fullmatch(r"time\.time(_ns)?|(datetime\.)?datetime\.\w*now", c)
        ]
        assert len(found) <= STAMPS.get(path.name, 0), path


def test_what_the_service_would_not_reach_is_said_when_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The managers' PATH has no folder of a tool that keeps several versions of node."""
    (tmp_path / "only-here").write_text("#!/bin/sh\n")
    (tmp_path / "only-here").chmod(0o755)
    (tmp_path / "vsm").symlink_to(tmp_path / "only-here")
    file = tmp_path / "vsm.toml"
    file.write_text(
        '[integrations.a]\ncommand = ["only-here"]\n[integrations.b]\ncommand = ["true"]\n'
        '[integrations.c]\ncommand = ["/opt/gone/server"]\n'
        '[integrations.d]\ncommand = ["./vsm.toml"]\n'
        '[integrations.e]\ncommand = ["python3", "server.py"]\n'
        f'[integrations.f]\ncommand = ["only-here"]\nenv = {{ PATH = "{tmp_path}" }}\n'
        '[integrations.g]\ncommand = ["/opt/gone/too"]\nenabled = false\n'
        '[integrations.h]\nurl = "https://example.com/mcp"\n'
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    assert main(["service", "install", "--user", "--dry-run", "--config", str(file)]) == 0
    said = capsys.readouterr().err
    assert f"write {tmp_path}/only-here in its command" in said
    assert "c: the service cannot start it: /opt/gone/server: the executable" in said
    assert f"d: the service cannot start it: {file}: {file} is not executable" in said
    assert "e: the service cannot start it: python3: it would look for server.py" in said
    assert not re.search(r"(?m)^[bfgh]: ", said), said


def test_what_hardening_takes_from_an_integration_is_said_of_the_systems_unit_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "gpu.toml").write_text(
        'extends = "integration"\n[files]\ndevices = ["/dev/null", "/dev/nvidia0"]\n'
        'write = ["/usr/share/x"]\n'
    )
    file = tmp_path / "vsm.toml"
    file.write_text(
        '[integrations.a]\ncommand = ["true"]\nprofile = "./gpu.toml"\n'
        f'write = ["/etc/x", "{tmp_path}", "/etcetera"]\n'
    )
    config = load_config(file)
    said = "\n".join(unreached(config, user=False))
    for path in ("/etc/x", "/usr/share/x"):
        assert f"a: {path} is read-only for the service" in said
        assert f"add ReadWritePaths={path} by" in said
    assert "  DeviceAllow=/dev/nvidia0 by" in said
    assert (str(tmp_path) in said, "etcetera" in said, "/dev/null" in said) == (False,) * 3
    assert list(unreached(config, user=True)) == []


def test_configuration_of_an_image_is_the_images_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    (image / "etc/vsm").mkdir(parents=True)
    (tmp_path / "vsm.toml").touch()
    (tmp_path / "vsm").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["service", "install", "--dry-run", "--root", str(image)]
    assert main(words) == 2
    assert f"{image}/etc/vsm/vsm.toml: there is no such file" in capsys.readouterr().err
    assert main([*words, "--config", str(tmp_path / "vsm.toml")]) == 2
    assert f"vsm.toml: it is not in the image. Put it into {image}" in capsys.readouterr().err
    (image / "etc/vsm/vsm.toml").touch()
    assert main(words) == 0
    assert 'up --config "/etc/vsm/vsm.toml"' in capsys.readouterr().out


@pytest.mark.parametrize("units", [False, True])
def test_state_that_was_kept_is_removed_as_it_was_said(
    units: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vsm service uninstall` says that --purge removes it: then the units are gone."""
    for name in ("HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    state = tmp_path / ".local/state/vsm"
    state.mkdir(parents=True)
    (tmp_path / "vsm").mkdir()
    unit = tmp_path / ".config/systemd/user/vsm.service"
    words = ["service", "uninstall", "--user"]
    assert main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    if units:  # and no manager runs, as in a container
        unit.parent.mkdir(parents=True)
        unit.write_text(service.MARK)
        monkeypatch.setenv("PATH", str(tmp_path))
        (tmp_path / "systemctl").symlink_to("/bin/true")
    with socket.socket(socket.AF_UNIX) as vsm:
        vsm.bind(str(tmp_path / "vsm/control.sock"))
        vsm.listen()
        assert main([*words, "--purge"]) == 1
    assert "a vsm runs in" in capsys.readouterr().err
    assert state.is_dir()
    assert unit.exists() == units
    assert main([*words, "--purge"]) == 0
    assert not state.exists()
    assert (tmp_path / "vsm").is_dir() == (not units)


def test_install_that_could_not_enable_the_service_does_so_when_it_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, told = tmp_path / "vsm.toml", tmp_path / "told"
    file.write_text("")
    (tmp_path / "vsm").symlink_to("/bin/true")
    for name in ("HOME", "XDG_RUNTIME_DIR", "PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    words = ["service", "install", "--user", "--config", str(file)]
    assert main(words) == 1
    assert "systemctl: there is none" in capsys.readouterr().err
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$*" >>{told}\n')
    (tmp_path / "systemctl").chmod(0o755)
    assert main(words) == 0
    assert told.read_text() == "--user enable vsm.service\n"
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("nothing to do\n")
    assert told.read_text() == "--user enable vsm.service\n"  # once
