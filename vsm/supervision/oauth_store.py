"""What `vsm login` left: from the operator's side of the state directory to the worker's.

Runs in the command line (writes) and the supervisor (hands over). A login is one file of mode
0600 for each identity. At the next start the tokens in it go into the worker's own directory,
where the worker alone renews them; what stays here is where they are renewed, which the worker
may reach then. Nothing that a worker wrote is read.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from vsm import paths
from vsm.configuration.config import Integration
from vsm.configuration.remote import destination
from vsm.core.addresses import judge, parse_literal
from vsm.errors import ConfigurationError, VsmError
from vsm.remote.tokens import Tokens, split_url

OWN: Final = "_own"  # no client is called so
_MOST_BYTES: Final = 64 * 1024


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """One login.

    Args:
        tokens: until they are handed to the worker.
        scope: what it was for.
    """

    token_endpoint: str
    scope: str = ""
    tokens: Tokens | None = None


def store(name: str, client: str, tokens: Tokens) -> None:
    """Keep a login for the next start of the integration's worker."""
    login = Login(token_endpoint=tokens.token_endpoint, scope=tokens.scope, tokens=tokens)
    _write(_file(name, client), login)


def scope(name: str, client: str) -> str:
    """What the last login was for; "" without one."""
    login = _read(_file(name, client))
    return login.scope if login is not None else ""


def forget(integration: Integration, client: str) -> bool:
    """Remove a login, with what its worker made of it; whether there was one."""
    own = paths.state_dir() / "integrations" / integration.name
    found = False
    for path in (_file(integration.name, client), own / _worker_file(client)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            found = True
    return found


def hosts(integration: Integration) -> tuple[str, ...]:
    """Where the tokens of an integration are renewed, as an allow-list has it."""
    logins = (_read(_file(integration.name, client)) for client in _oauth(integration))
    endpoints = {one.token_endpoint: None for one in logins if one is not None}
    return tuple(endpoint_host(integration, endpoint) for endpoint in endpoints)


def endpoint_host(integration: Integration, endpoint: str) -> str:
    """The host and port of a token endpoint.

    Raises:
        ConfigurationError: it is none that the worker may be sent to.
    """
    remote = integration.remote
    where = f"integrations.{integration.name}.oauth"
    try:
        origin, _ = split_url(endpoint)
        host = destination(origin.host, remote.addresses if remote else ())
    except ValueError as error:
        raise ConfigurationError(where, f"its token endpoint: {error}") from error
    target = f"[{host}]:{origin.port}" if ":" in host else f"{host}:{origin.port}"
    allowed = remote is not None and host in remote.addresses
    if parse_literal(host) and judge(host) and not allowed:
        what = f"its token endpoint is {host}, which is {judge(host)}"
        remedy = f'Write addresses = ["{host}"] if that is meant.'
        raise ConfigurationError(where, what, remedy)
    if origin.scheme != "https" and not allowed:
        raise ConfigurationError(where, f"its token endpoint {host} is not https")
    return target


def hand_over(integration: Integration, state_dir: str, uid: int | None) -> None:
    """Move fresh tokens into the worker's directory.

    Raises:
        VsmError: they cannot be written there.
    """
    for client in _oauth(integration):
        path = _file(integration.name, client)
        login = _read(path)
        if login is None or login.tokens is None:
            continue
        name = _worker_file(client)
        try:
            _write_for_worker(state_dir, name, msgspec.json.encode(login.tokens), uid)
        except OSError as error:
            raise VsmError(str(path), f"cannot be handed over: {error.strerror}") from error
        _write(path, Login(token_endpoint=login.token_endpoint, scope=login.scope))


def _write_for_worker(state_dir: str, name: str, content: bytes, uid: int | None) -> None:
    """Through a descriptor of the directory: whatever the worker put there is replaced."""
    folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fresh = f".{name}.vsm"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(fresh, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(content)
            if uid is not None:
                os.fchown(file.fileno(), uid, uid)
        os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _oauth(integration: Integration) -> tuple[str, ...]:
    return tuple(integration.remote.oauth) if integration.remote else ()


def _worker_file(client: str) -> str:
    return f"oauth-{client}.json" if client else "oauth.json"


def _folder(name: str) -> Path:
    return paths.state_dir() / "oauth" / name


def _file(name: str, client: str) -> Path:
    return _folder(name) / f"{client or OWN}.json"


def _read(path: Path) -> Login | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MOST_BYTES), type=Login)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise VsmError(
            str(path), f"cannot be read: {error}", "Remove it and log in again."
        ) from error


def _write(path: Path, login: Login) -> None:
    paths.ensure_state_dir()
    path.parent.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
        file.write(msgspec.json.encode(login))
        os.fsync(file.fileno())
    fresh.rename(path)
