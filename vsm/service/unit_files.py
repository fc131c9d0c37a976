"""vsm as a systemd service: the text of its units, and what to do to install and remove them.

Pure: nothing is written or run here, so that `--dry-run` shows exactly what would be done. Who
acts is `vsm.commands.service`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vsm.configuration.config import Config
from vsm.errors import ConfigurationError
from vsm.service.hardening import USED

SERVICE: Final = "vsm.service"
SOCKET: Final = "vsm.socket"
WATCHDOG_S: Final = 30
MAX_STORED: Final = 32  # descriptors: an old and a new demand board, with room for slips
# What systemd's managers give where nobody set another (systemd.exec(5)).
MANAGER_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
MARK: Final = "# Written by `vsm service install`; `vsm service uninstall` removes it."


@dataclass(frozen=True)
class Place:
    """Where units go.

    Args:
        user: the user's own manager instead of the system's.
        root: an image's root, None for this host.
        directory: of the unit files.
    """

    user: bool
    root: Path | None
    directory: Path

    @property
    def systemctl(self) -> tuple[str, ...]:
        """The command that speaks to the manager, or edits the image."""
        return (
            "systemctl",
            *(("--user",) if self.user else ()),
            *((f"--root={self.root}",) if self.root is not None else ()),
        )


@dataclass(frozen=True)
class Units:
    """The two unit files' texts, by name."""

    service: str
    socket: str

    def files(self, directory: Path) -> dict[Path, str]:
        """Path and text of each."""
        return {directory / SERVICE: self.service, directory / SOCKET: self.socket}


def place(*, user: bool, root: Path | None, home: Path) -> Place:
    """Where an administrator's units live; systemd.unit(5)."""
    if user and root is not None:
        what = "--root goes with the system's units only"
        raise ConfigurationError("vsm service", what, "Leave out --root or --user.")
    if user:
        return Place(user, None, home / ".config/systemd/user")
    return Place(user, root, (root or Path("/")) / "etc/systemd/system")


def units(config: Config, *, command: str, user: bool) -> Units:
    """The units for a configuration that was read and found valid; `command` is absolute."""
    if config.path is None:
        raise ConfigurationError("vsm service", "needs a configuration", "Give --config FILE.")
    return Units(_service(config, config.path, command, user=user), _socket(config, user=user))


def _service(config: Config, path: str, command: str, *, user: bool) -> str:
    run = f"{_word(command)} up --config {_word(path)}"
    hardening = [directive.line for directive in USED if directive.user or not user]
    directories = (
        ["RuntimeDirectory=vsm", "Environment=VSM_STATE_DIR=%h/.local/state/vsm"]
        if user
        else [
            "RuntimeDirectory=vsm",
            "StateDirectory=vsm",
            "ConfigurationDirectory=vsm",
            "RuntimeDirectoryMode=0700",
            "StateDirectoryMode=0700",
        ]
    )
    lines = [
        MARK,
        "[Unit]",
        "Description=vsm: MCP servers, each confined, behind one endpoint",
        f"Requires={SOCKET}",
        f"After={SOCKET}",
        "StartLimitIntervalSec=120",
        "StartLimitBurst=10",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={run}",
        f"ExecReload={_word(command)} reload",
        f"WatchdogSec={WATCHDOG_S}",
        "Restart=on-failure",
        "RestartSec=1",
        # A wrong vsm.toml does not heal by waiting.
        "RestartPreventExitStatus=2",
        "TimeoutStartSec=90",
        "TimeoutStopSec=60",
        "KillMode=mixed",
        "Delegate=yes",
        "OOMPolicy=continue",
        *directories,
        f"FileDescriptorStoreMax={MAX_STORED}",
        # The socket unit's file lies in it.
        "RuntimeDirectoryPreserve=yes",
        *(f"LoadCredential={_percent(name)}" for name in credentials(config)),
        "",
        "# Every line of this part, and what is left out, and why: `vsm docs operations`.",
        *hardening,
        "",
        "[Install]",
        f"WantedBy={'default.target' if user else 'multi-user.target'}",
        f"Also={SOCKET}",
    ]
    return "\n".join(lines) + "\n"


def _socket(config: Config, *, user: bool) -> str:
    del user  # %t is the runtime directory of either manager
    address = listen_address(config.gateway.http)
    lines = [
        MARK,
        "[Unit]",
        "Description=vsm's listeners: they outlive a restart, clients wait instead of failing",
        "",
        "[Socket]",
        *([f"ListenStream={address}"] if address else []),
        "ListenStream=%t/vsm/mcp.sock",
        "SocketMode=0600",
        "DirectoryMode=0700",
        "RemoveOnStop=yes",
        "Backlog=128",
        "",
        "[Install]",
        "WantedBy=sockets.target",
    ]
    return "\n".join(lines) + "\n"


def listen_address(http: str) -> str:
    """The address as systemd.socket(5) takes it; "" where vsm has to listen itself."""
    host, _, port = http.rpartition(":")
    if not http or int(port) == 0:  # the kernel's choice cannot be handed over by number
        return ""
    return f"{'127.0.0.1' if host == 'localhost' else host}:{port}"


def credentials(config: Config) -> list[str]:
    """Names of the systemd credentials that secrets of enabled integrations come from."""
    return sorted(
        {
            source.credential
            for integration in config.integrations.values()
            if integration.enabled
            for source in integration.secrets.values()
            if source.credential is not None
        }
    )


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """One word of a command line, systemd.service(5): no specifier, no variable, no splitting."""
    if any(not char.isprintable() for char in text):
        raise ConfigurationError("vsm service", f"{text!r} cannot be written into a unit")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{_percent(escaped)}"'
