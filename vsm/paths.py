"""Directories: runtime, state and the profile search path.

Runs in the command line and the supervisor. The runtime directory holds sockets and the token,
so it is refused unless it is ours alone to write.
"""

import os
import stat
from pathlib import Path

from vsm.errors import ConfigurationError

CONTROL_SOCKET = "control.sock"
MCP_SOCKET = "mcp.sock"
TOKEN = "token"  # noqa: S105 - a file's name
LOCK = "lock"
ENDPOINT = "endpoint.json"
SYSTEM_CONFIG = Path("/etc/vsm/vsm.toml")
USER_CONFIG = Path(".config/vsm/vsm.toml")  # below the home

_SYSTEM_PROFILES = Path("/etc/vsm/profiles")


def runtime_dir() -> Path:
    """Where sockets, lock and token live; not created, not checked."""
    directory = _from_environment("VSM_RUNTIME_DIR", "RUNTIME_DIRECTORY")
    if directory is not None:
        return directory
    if os.geteuid() == 0:  # in a login session too: there is one place for root's
        return Path("/run/vsm")
    session = _from_environment("XDG_RUNTIME_DIR")
    return session / "vsm" if session is not None else _fallback_runtime_dir()


def state_dir() -> Path:
    """What survives restarts; not created, not checked."""
    directory = _from_environment("VSM_STATE_DIR", "STATE_DIRECTORY")
    if directory is not None:
        return directory
    states = _from_environment("XDG_STATE_HOME")
    if states is not None:
        return states / "vsm"
    return Path("/var/lib/vsm") if os.geteuid() == 0 else home() / ".local/state/vsm"


def home() -> Path:
    """The home directory.

    Raises:
        ConfigurationError: there is neither $HOME nor such a user.
    """
    try:
        return Path.home()
    except RuntimeError:
        what = f"uid {os.geteuid()} has no home directory"
        raise ConfigurationError(
            "", what, "Set $HOME, for vsm's state also $VSM_STATE_DIR."
        ) from None


def ensure_runtime_dir() -> Path:
    """Create the runtime directory (0700) if need be, and refuse one that others may write."""
    directory = runtime_dir()
    return _ensure_private(
        directory, "VSM_RUNTIME_DIR", closed=directory == _fallback_runtime_dir()
    )


def ensure_state_dir() -> Path:
    """Create the state directory (0700) if need be, and refuse one that others may write."""
    return _ensure_private(state_dir(), "VSM_STATE_DIR", closed=False)


def profile_search_path() -> tuple[Path, ...]:
    """Folders of profiles, the first one that has a name wins."""
    configured = os.environ.get("VSM_PROFILE_PATH", "")
    own = tuple(Path(part).absolute() for part in configured.split(":") if part)
    return (*own, _SYSTEM_PROFILES, shipped_profiles())


def shipped_profiles() -> Path:
    """The profiles that came with vsm."""
    return _shipped("sandbox_profiles")


def shipped_docs() -> Path:
    """The documentation that came with vsm."""
    return _shipped("docs")


def _shipped(name: str) -> Path:
    """Inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def _fallback_runtime_dir() -> Path:
    return Path(f"/tmp/vsm-{os.geteuid()}")  # noqa: S108 - checked before use: own, 0700, no symlink


def _from_environment(*names: str) -> Path | None:
    for name in names:
        # systemd separates several directories by a colon; the first is the unit's main one.
        value = os.environ.get(name, "").split(":")[0]
        if value:
            return Path(value).absolute()
    return None


def _ensure_private(directory: Path, variable: str, *, closed: bool) -> Path:
    remedy = f"Remove it, or point ${variable} at a directory of your own."
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise ConfigurationError(
            str(directory), f"cannot be created: {error.strerror}", remedy
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(
            str(directory), "expected a directory, found something else", remedy
        )
    if status.st_uid != os.geteuid():
        raise ConfigurationError(str(directory), f"belongs to uid {status.st_uid}", remedy)
    if status.st_mode & (0o077 if closed else 0o022):
        mode = stat.S_IMODE(status.st_mode)
        remedy = f"See whether all in it is yours, then `chmod 700` it, or set ${variable}."
        raise ConfigurationError(str(directory), f"others may use it (mode {mode:04o})", remedy)
    return directory
