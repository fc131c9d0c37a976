"""An integration with a `url`: what vsm.toml says of a remote server, made into a worker of ours.

Runs in the command line and the supervisor. The entry becomes an argv of vsm's own worker
(`vsm.remote.worker`), the hosts that its profile has to allow, and secrets like any other's; what
starts, confines, restarts and pins it need not know that it is remote.
"""

import ipaddress
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Final

import httptools
import msgspec

import vsm
from vsm.configuration.secrets import SecretSource
from vsm.core.addresses import judge, parse_host, parse_literal
from vsm.core.client_entries import OWN_HEADERS, is_header_value, is_secret_header
from vsm.errors import ConfigurationError
from vsm.remote.http_client import Origin
from vsm.remote.settings import Credentials, WorkerSettings
from vsm.remote.tokens import split_url

PROFILE: Final = "remote"
LOCAL: Final = "localhost"
MOST_ADDRESSES: Final = 16
_START: Final = (
    "import json, sys; sys.path += json.loads(sys.argv[1]); "
    "from vsm.remote.worker import main; sys.exit(main())"
)
_HEADER: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]{0,4096}")


class OAuth(msgspec.Struct, frozen=True, kw_only=True):
    """[integrations.NAME.oauth]: what `vsm login` asks for; {} registers a client by itself."""

    scope: str = ""
    client_id: str = ""
    client_secret: SecretSource | None = None
    redirect_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0


class CredentialsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials as written: those of an integration, or of one client."""

    bearer: SecretSource | None = None
    headers: dict[str, str | SecretSource] = {}
    oauth: OAuth | None = None


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """A remote server, checked.

    Args:
        hosts: what the profile has to allow: the URL's own host, and addresses.
        addresses: that may be connected to although nobody's public ones.
        oauth: client ("" is the integration's own) → what its login asks for.
    """

    url: str
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]
    in_clear: bool
    ca_file: str = ""
    read: tuple[str, ...]
    oauth: dict[str, OAuth] = {}
    clients: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        """Scheme, host and port, which hold no secret."""
        return str(split_url(self.url)[0])


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What an entry with a url becomes in an Integration."""

    remote: Remote
    command: tuple[str, ...]
    env: dict[str, str]
    secrets: dict[str, SecretSource]


class RemoteKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of an integration that belong to a remote server alone."""

    url: str
    addresses: tuple[str, ...]
    ca_file: str
    own: CredentialsDocument
    clients: dict[str, CredentialsDocument]
    most_frame_bytes: int


SourceCheck = Callable[[SecretSource, str], SecretSource]


def compile_remote(name: str, keys: RemoteKeys, where: str, check: SourceCheck) -> Entry:
    """Judge an entry with a url.

    Args:
        name: the integration's.
        keys: as written, paths absolute.
        where: the file and the table, for errors.
        check: judges a source of a secret and makes its path absolute.

    Raises:
        ConfigurationError: a key is wrong.
    """
    secrets: dict[str, SecretSource] = {}
    own = _credentials(keys.own, "", where, secrets, check)
    clients = {
        client: _credentials(table, client, f"{where}.clients.{client[:64]}", secrets, check)
        for client, table in keys.clients.items()
    }
    hosts, settings = _settings(name, keys, where)
    settings = msgspec.structs.replace(settings, own=own, clients=clients)
    tables = {"": keys.own, **keys.clients}
    remote = Remote(
        url=keys.url,
        hosts=hosts,
        addresses=_addresses(keys.addresses, where),
        ca_file=keys.ca_file,
        in_clear=settings.scheme == "http",
        read=(*_packages(), *((keys.ca_file,) if keys.ca_file else ())),
        oauth={client: table.oauth for client, table in tables.items() if table.oauth is not None},
        clients=tuple(keys.clients),
    )
    return Entry(
        remote=remote,
        command=(sys.executable, "-SI", "-c", _START, json.dumps(_search_path())),
        env=settings.to_environment(),
        secrets=secrets,
    )


def _settings(name: str, keys: RemoteKeys, where: str) -> tuple[tuple[str, ...], WorkerSettings]:
    origin, target = _url(keys.url, where)
    addresses = _addresses(keys.addresses, where)
    try:
        host = destination(origin.host, addresses)
    except ValueError as error:
        raise ConfigurationError(f"{where}.url", str(error), "Write the host's name.") from error
    literal = parse_literal(host)
    if literal and judge(literal) and literal not in addresses:
        what = f"{literal} is {judge(literal)}, which no server is looked for at by itself"
        remedy = f'Write addresses = ["{literal}"] as well, if that is meant.'
        raise ConfigurationError(f"{where}.url", what, remedy)
    if origin.scheme == "http" and not (literal and ipaddress.ip_address(literal).is_loopback):
        what = "expected https: everybody on the way could read and change what is said"
        remedy = "Write https://…; http:// is for a loopback address alone."
        raise ConfigurationError(f"{where}.url", what, remedy)
    hosts = tuple(dict.fromkeys(_host_port(one, origin.port) for one in (host, *addresses)))
    settings = WorkerSettings(
        name=name,
        scheme=origin.scheme,
        host=LOCAL if origin.host == LOCAL else host,
        port=origin.port,
        target=target,
        most_frame_bytes=keys.most_frame_bytes,
        ca_file=keys.ca_file,
    )
    return hosts, settings


def destination(host: str, addresses: Iterable[str]) -> str:
    """Where a URL's host leads: its canonical form; for localhost the address that stands for it.

    Args:
        host: as a URL has it.
        addresses: that the entry allows, canonical.

    Raises:
        ValueError: it is no host, or this machine, and no address of that is allowed.
    """
    if host != LOCAL:
        return parse_host(host)
    for address in addresses:
        if judge(address) == "loopback":
            return address
    raise ValueError('localhost is this machine: write addresses = ["127.0.0.1"] if that is meant')


def _url(url: str, where: str) -> tuple[Origin, str]:
    try:
        return split_url(url)
    except ValueError as error:
        remedy = 'Write "https://mcp.example.com/mcp"; credentials belong in bearer or headers.'
        raise ConfigurationError(f"{where}.url", str(error), remedy) from error


def _addresses(written: tuple[str, ...], where: str) -> tuple[str, ...]:
    found = tuple(parse_literal(one) for one in written)
    if not all(found) or len(found) > MOST_ADDRESSES:
        what = f"expected at most {MOST_ADDRESSES} addresses without a port"
        raise ConfigurationError(f"{where}.addresses", what, 'Write ["10.0.0.5"].')
    return found


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _credentials(
    table: CredentialsDocument,
    client: str,
    where: str,
    secrets: dict[str, SecretSource],
    check: SourceCheck,
) -> Credentials:
    """One identity's; its secrets are added to `secrets`, by the variables that hold them."""
    prefix = f"CLIENT_{client.upper().replace('-', '_')}_" if client else ""
    plain: dict[str, str] = {}
    secret: dict[str, tuple[str, str]] = {}
    sources: dict[str, tuple[SecretSource, str]] = {}
    if table.bearer is not None:
        sources["authorization"] = (table.bearer, "Bearer ")
    for written, value in table.headers.items():
        header = _header(written, where)
        if header in plain or header in sources:
            raise ConfigurationError(f"{where}.headers", f"{header} is there twice", "Keep one.")
        if isinstance(value, str):
            plain[header] = _plain(header, value, f"{where}.headers.{written[:64]}")
        else:
            sources[header] = (value, "")
    if table.oauth is not None and "authorization" in sources:
        what = "both oauth and another Authorization"
        raise ConfigurationError(where, what, "Keep one.")
    for header, (source, before) in sources.items():
        variable = f"{prefix}HEADER_{header.upper().replace('-', '_')}"
        if variable in secrets:
            what = f"two clients' names are alike: {client}"
            raise ConfigurationError(where, what, "Rename one of them.")
        key = "bearer" if before else f"headers.{header}"
        secrets[variable] = check(source, f"{where}.{key}")
        secret[header] = (variable, before)
    tokens = f"oauth-{client}.json" if client else "oauth.json"
    return Credentials(
        headers=plain,
        secret_headers=secret,
        tokens=tokens if table.oauth is not None else "",
    )


def _header(written: str, where: str) -> str:
    header = written.lower()
    if not _HEADER.fullmatch(written) or header in OWN_HEADERS:
        what = f"{written[:64]!r} is no header that can be set"
        raise ConfigurationError(f"{where}.headers", what, "Leave it out.")
    return header


def _plain(header: str, value: str, where: str) -> str:
    if is_secret_header(header):
        what = "expected a source, found the value itself: vsm.toml is no place for a secret"
        remedy = "Write { file = … }, { variable = … } or { credential = … }."
        raise ConfigurationError(where, what, remedy)
    if not _PRINTABLE.fullmatch(value) or value != value.strip():
        raise ConfigurationError(where, "expected printable ASCII without spaces around it")
    return value


def check_secret(value: str, where: str) -> str:
    """The value of a secret header, which goes into requests as it is.

    Raises:
        ConfigurationError: it would end the header, or has no bytes that all servers agree on.
    """
    if is_header_value(value):
        return value
    what = "expected one line of printable ASCII, as a header is"
    raise ConfigurationError(where, what, "Leave nothing else where it is kept, no second line.")


def _search_path() -> list[str]:
    """Where the worker finds what it imports; nothing else of this process's path."""
    return list(dict.fromkeys(os.path.dirname(path) for path in _packages()))


def _packages() -> tuple[str, ...]:
    return tuple(str(Path(str(module.__file__)).parent) for module in (vsm, msgspec, httptools))
