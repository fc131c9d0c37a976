"""Where a secret is to be found, and its value on demand; that never becomes configuration.

Runs in the command line and the supervisor.
"""

import os
import stat
from pathlib import Path

import msgspec

from vsm.errors import ConfigurationError

SECRET_LIMIT_BYTES = 64 * 2**10


class SecretSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a secret is: exactly one of a file, a variable of vsm's own, a systemd credential."""

    file: str | None = None
    variable: str | None = None
    credential: str | None = None


def read_secret(source: SecretSource, *, where: str) -> str:
    """The secret's value; no error ever holds it.

    `where` names the integration and the variable in errors.
    """
    if source.variable is not None:
        return _checked_secret(os.environ.get(source.variable), f"${source.variable}", where)
    path = Path(source.file or "")
    if source.credential is not None:
        path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / source.credential
    try:
        value = _read_plain(path, where).decode()
    except OSError as error:
        remedy = (
            "Check the path, its owner and its mode."
            if source.credential is None
            else f"Put it into /etc/credstore/{source.credential} (mode 0600) and restart vsm."
        )
        raise ConfigurationError(where, f"{path}: {error.strerror}", remedy) from error
    except UnicodeDecodeError:
        raise ConfigurationError(where, f"{path} is not UTF-8") from None
    return _checked_secret(value.removesuffix("\n").removesuffix("\r"), str(path), where)


def _read_plain(path: Path, where: str) -> bytes:
    # O_NONBLOCK: a pipe whose writer is gone, or never comes, would hold up the supervisor.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            remedy = "It is read at each start: keep it in a file."
            raise ConfigurationError(where, f"{path} is no plain file", remedy)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(SECRET_LIMIT_BYTES + 1)
    finally:
        os.close(descriptor)


def _checked_secret(value: str | None, source: str, where: str) -> str:
    if value is None or not value:
        raise ConfigurationError(where, f"{source} is not set or empty", "Set it and start again.")
    if len(value) > SECRET_LIMIT_BYTES or "\0" in value:
        raise ConfigurationError(where, f"{source} is too long or holds a NUL byte")
    return value


def check_source(source: SecretSource, folder: Path, where: str) -> SecretSource:
    """Judge a source and make its path absolute."""
    given = [getattr(source, kind) for kind in ("file", "variable", "credential")]
    if sum(value is not None for value in given) != 1 or not all(v for v in given if v is not None):
        remedy = "Write { file = … }, { variable = … } or { credential = … }."
        raise ConfigurationError(where, "expected exactly one source", remedy)
    if any("\0" in value for value in given if value is not None):
        raise ConfigurationError(where, "a source holds a NUL byte")
    if source.credential is not None and ("/" in source.credential or source.credential == ".."):
        raise ConfigurationError(where, "a credential is a name, not a path")
    return msgspec.structs.replace(
        source, file=absolute(source.file, folder) if source.file is not None else None
    )


def absolute(path: str, folder: Path) -> str:
    """A path as a configuration file in `folder` means it."""
    expanded = os.path.expanduser(path) if path.startswith("~/") else path
    return os.path.normpath(folder / expanded)
