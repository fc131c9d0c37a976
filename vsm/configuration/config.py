"""vsm.toml: the gateway and its integrations, validated before anything starts.

Runs in the command line and the supervisor. Whether a command exists is not decided here but when
its worker starts, so that one missing server does not stop the others. One file, a bit long: a key
as it is written, checked and compiled stands together.
"""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vsm.configuration.clients import MAX_CLIENTS, Client, ClientDocument, check_client
from vsm.configuration.policy import Policy, compile_policy
from vsm.configuration.regulation import (
    Control,
    ControlDocument,
    Coordination,
    Intelligence,
    Priority,
    Range,
    RangeDocument,
    check_coordination,
    compile_control,
    compile_range,
)
from vsm.configuration.remote import (
    PROFILE,
    CredentialsDocument,
    Entry,
    OAuth,
    Remote,
    RemoteKeys,
    compile_remote,
)
from vsm.configuration.resilience import Resilience, check_resilience
from vsm.configuration.secrets import SecretSource, absolute, check_source
from vsm.configuration.toml_file import build, check_trust, read_toml
from vsm.configuration.units import parse_bytes
from vsm.errors import ConfigurationError

SYSTEMS = ("system1", "system2", "system3", "system4", "system5")

MOST_INTEGRATIONS = 200
"""Each system is told of all of them in one message (vsm.link)."""
MOST_INSTANCES = 64
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
IdleSeconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Concurrency = Annotated[int, msgspec.Meta(ge=1, le=65_536)]

_PORT_MAX = 65_535
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{0,32}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST_CONTENTS_BYTES = 8 * 2**10  # what a record holds, escaped as JSON within JSON
_LOCAL_KEYS = ("command", "env", "secrets", "read", "write", "cwd", "state", "zygote")
_REMOTE_KEYS = ("addresses", "ca_file", "bearer", "headers", "oauth", "clients")


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """More than `intensity` restarts within `period_s` are quarantine; back-off doubles."""

    intensity: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 3
    period_s: Seconds = 60.0
    backoff_initial_s: Seconds = 0.5
    backoff_max_s: Seconds = 60.0
    stable_s: Seconds = 30.0


Era = Literal["auto", "legacy", "modern"]
Trust = Literal["first-use", "approve", "off"]
Instances = Literal["shared", "session", "pool"]
Order = Literal["auto", "start-first", "stop-first"]


class Integration(msgspec.Struct, frozen=True, kw_only=True):
    """One MCP server: an argv, its profile and what it is given.

    Args:
        command: an argv, never a shell line; the first word is a bare name or absolute. Of a
            remote server vsm's own worker, which `env` and `secrets` are for then.
        start: "lazy" is at the first request that needs it.
        zygote: each session's instance is a fork of one started server.
        prefix: goes before tool names ("" leaves them bare); None is the name.
        era: which of the two the server is spoken to in, where it knows both.
        read: host paths that the server may see, read-only, absolute.
        replace: whether a new server is started before the one that it replaces is stopped; "auto"
            is so where neither may write what lasts.
        remote: what there is instead of a program on this host.
    """

    name: str
    command: tuple[str, ...]
    remote: Remote | None = None
    profile: str = "integration"
    env: dict[str, str] = {}
    secrets: dict[str, SecretSource] = {}
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    state: bool = False
    instances: Instances = "shared"
    start: Literal["eager", "lazy"] = "eager"
    idle_stop_s: float = 0.0
    pool_min: int = 1
    pool_max: int = 4
    max_instances: int = 16
    spares: int = 0
    zygote: bool = False
    prefix: str | None = None
    era: Era = "auto"
    cwd: str | None = None
    enabled: bool = True
    start_timeout_s: float = 30.0
    call_timeout_s: float = 60.0
    stop_timeout_s: float = 5.0
    concurrency: int = 64
    max_frame_bytes: int = 8 * 2**20
    restart: RestartPolicy = RestartPolicy()
    replace: Order = "auto"
    priority: int = 1
    range: Range = {}
    resilience: Resilience = Resilience()
    trust: Trust = "first-use"
    most_argument_bytes: int = 0
    most_argument_depth: int = 0
    strict_arguments: bool = False
    audit_contents_bytes: int = 0

    @property
    def has_instances(self) -> bool:
        """Whether its servers come and go as they are needed, rather than one that stays."""
        return self.instances != "shared" or self.start == "lazy" or bool(self.idle_stop_s)


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoint; `http` is a loopback address and port, "" turns HTTP off."""

    http: str = "127.0.0.1:8765"
    auth: Literal["token", "none"] = "token"
    introspection: bool = True
    audit: Literal["all", "counted", "off"] = "counted"
    audit_rate: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    list_wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)] | None = None


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the record is kept: what is older or more goes, the oldest first."""

    keep_days: int = 30
    size_bytes: int = 256 * 2**20
    calls_size_bytes: int = 256 * 2**20


class Systems(msgspec.Struct, frozen=True, kw_only=True):
    """The profile of each of the five systems."""

    system1: str = "system1"
    system2: str = "system2"
    system3: str = "system3"
    system4: str = "system4"
    system5: str = "system5"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole vsm.toml; `path` is None for the embedded default."""

    path: str | None = None
    gateway: Gateway = Gateway()
    journal: Journal = Journal()
    integrations: dict[str, Integration] = {}
    clients: dict[str, Client] = {}
    systems: Systems = Systems()
    policy: Policy = Policy()
    coordination: Coordination = Coordination()
    control: Control = Control()
    intelligence: Intelligence = Intelligence()


class IntegrationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[integrations.NAME] as written."""

    command: tuple[str, ...] | None = None
    url: str | None = None
    addresses: tuple[str, ...] = ()
    ca_file: str = ""
    bearer: SecretSource | None = None
    headers: dict[str, str | SecretSource] = {}
    oauth: OAuth | None = None
    clients: dict[str, CredentialsDocument] = {}
    profile: str | None = None
    env: dict[str, str] = {}
    secrets: dict[str, SecretSource] = {}
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    state: bool = False
    instances: Instances = "shared"
    start: Literal["eager", "lazy"] = "eager"
    idle_stop_s: IdleSeconds = 0.0
    pool_min: Annotated[int, msgspec.Meta(ge=1, le=MOST_INSTANCES)] = 1
    pool_max: Annotated[int, msgspec.Meta(ge=1, le=MOST_INSTANCES)] = 4
    max_instances: Annotated[int, msgspec.Meta(ge=1, le=MOST_INSTANCES)] = 16
    spares: Annotated[int, msgspec.Meta(ge=0, le=MOST_INSTANCES)] = 0
    zygote: bool = False
    prefix: str | None = None
    era: Era = "auto"
    cwd: str | None = None
    enabled: bool = True
    start_timeout_s: Seconds = 30.0
    call_timeout_s: Seconds = 60.0
    stop_timeout_s: Seconds = 5.0
    concurrency: Concurrency = 64
    max_frame: str | int = "8M"
    restart: RestartPolicy = RestartPolicy()
    replace: Order = "auto"
    priority: Priority = 1
    range: RangeDocument = RangeDocument()
    resilience: Resilience = Resilience()
    trust: Trust = "first-use"
    max_arguments: str | int = 0
    max_argument_depth: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    strict_arguments: bool = False
    audit_contents: str | int = 0


class JournalDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[journal] as written."""

    keep_days: Annotated[int, msgspec.Meta(ge=1, le=36_500)] = 30
    size: str | int = "256M"
    calls_size: str | int = "256M"


class ConfigDocument(msgspec.Struct, frozen=True, kw_only=True):
    """vsm.toml as written."""

    gateway: Gateway = Gateway()
    journal: JournalDocument = JournalDocument()
    integrations: dict[str, IntegrationDocument] = {}
    clients: dict[str, ClientDocument] = {}
    systems: Systems = Systems()
    policy: Policy = Policy()
    coordination: Coordination = Coordination()
    control: ControlDocument = ControlDocument()
    intelligence: Intelligence = Intelligence()


def load_config(path: Path | None) -> Config:
    """Read and validate; None is the embedded default, which has no integrations."""
    if path is None:
        return Config()
    file = path.absolute()
    check_trust(file)
    return compile_config(read_toml(file), file)


def compile_config(table: Mapping[str, Any], file: Path) -> Config:
    """Validate what a file says, or would say.

    Args:
        table: its TOML.
        file: where it is, or would be; absolute.

    Raises:
        ConfigurationError: a key is wrong.
    """
    document = build(table, ConfigDocument, file=str(file))
    check_address(document.gateway.http, f"{file}: gateway.http")
    if len(document.integrations) > MOST_INTEGRATIONS:
        what = f"{len(document.integrations)} integrations; one vsm has {MOST_INTEGRATIONS} at most"
        raise ConfigurationError(f"{file}: integrations", what, "Run another vsm for the rest.")
    integrations = {
        name: _integration(name, table, file) for name, table in document.integrations.items()
    }
    _check_prefixes(integrations, str(file))
    _check_contents(integrations, document.gateway, str(file))
    _check_remote_clients(integrations, set(document.clients), file)
    check_coordination(document.coordination, f"{file}: coordination")
    compile_policy(document.policy, f"{file}: policy")
    _check_goals(document.policy, set(integrations), str(file))
    return Config(
        path=str(file),
        gateway=document.gateway,
        journal=_journal(document.journal, f"{file}: journal"),
        integrations=integrations,
        clients=_clients(document.clients, integrations, file),
        systems=_systems(document.systems, file.parent),
        policy=document.policy,
        coordination=document.coordination,
        control=compile_control(document.control, f"{file}: control"),
        intelligence=document.intelligence,
    )


def _check_contents(integrations: dict[str, Integration], gateway: Gateway, file: str) -> None:
    for name, one in integrations.items():
        if one.audit_contents_bytes and gateway.audit == "off":
            where = f"{file}: integrations.{name}.audit_contents"
            what = 'gateway.audit = "off" records no call, and no contents either'
            raise ConfigurationError(where, what, "Change one of the two.")


def _check_goals(policy: Policy, known: set[str], file: str) -> None:
    for number, goal in enumerate(policy.goals, 1):
        if goal.integration and goal.integration not in known:
            where = f"{file}: policy.goals.{number}.integration"
            what = f"there is no integration {goal.integration!r}"
            raise ConfigurationError(where, what, f"Known: {', '.join(sorted(known)) or 'none'}.")


def _check_remote_clients(
    integrations: dict[str, Integration], known: set[str], file: Path
) -> None:
    for name, one in integrations.items():
        for client in one.remote.clients if one.remote else ():
            if client not in known:
                where = f"{file}: integrations.{name}.clients.{client[:64]}"
                what = "there is no such client"
                raise ConfigurationError(where, what, f"Write [clients.{client[:64]}].")


def _clients(
    tables: dict[str, ClientDocument], integrations: dict[str, Integration], file: Path
) -> dict[str, Client]:
    if len(tables) > MAX_CLIENTS:
        raise ConfigurationError(f"{file}: clients", f"more than {MAX_CLIENTS}")
    clients = {}
    for name, table in tables.items():
        where = f"{file}: clients.{name[:64]}"
        if not _NAME.fullmatch(name):
            raise ConfigurationError(where, "not a name for a client", "Use [a-z0-9][a-z0-9_-]*.")
        check_client(name, table, set(integrations), where)
        path = table.token_file
        clients[name] = Client(
            name=name,
            integrations=table.integrations,
            tools=table.tools,
            search=table.search,
            token_file=_paths((path,), file.parent, f"{where}.token_file")[0] if path else "",
        )
    return clients


def _journal(journal: JournalDocument, where: str) -> Journal:
    return Journal(
        keep_days=journal.keep_days,
        size_bytes=_journal_size(journal.size, f"{where}.size"),
        calls_size_bytes=_journal_size(journal.calls_size, f"{where}.calls_size"),
    )


def _journal_size(size: str | int, where: str) -> int:
    try:
        size_bytes = parse_bytes(size)
    except ValueError as error:
        raise ConfigurationError(where, str(error), 'Write "256M".') from error
    if not 2**20 <= size_bytes <= 2**40:
        raise ConfigurationError(where, "expected 1M to 1T")
    return size_bytes


def _integration(name: str, table: IntegrationDocument, file: Path) -> Integration:
    where = f"{file}: integrations.{name[:64]}"
    if not _NAME.fullmatch(name) or "__" in name:
        remedy = "Use [a-z0-9][a-z0-9_-]*, at most 32 characters, without a double underscore."
        raise ConfigurationError(where, "not a name for an integration", remedy)
    if "vsm" in {name, table.prefix}:
        what = '"vsm" is the prefix of vsm\'s own tools'
        raise ConfigurationError(where, what, "Choose another name or prefix.")
    _check_instances(table, where)
    _check_variables(table, where)
    entry = _remote(name, table, file.parent, where)
    return Integration(
        name=name,
        command=entry.command if entry else _command(table.command, file.parent, where),
        remote=entry.remote if entry else None,
        profile=_profile(table.profile or (PROFILE if entry else "integration"), file.parent),
        env=entry.env if entry else dict(table.env),
        secrets=entry.secrets if entry else _secrets(table, file.parent, where),
        read=entry.remote.read if entry else _paths(table.read, file.parent, f"{where}.read"),
        write=_paths(table.write, file.parent, f"{where}.write"),
        state=bool(entry.remote.oauth) if entry else table.state,
        instances=table.instances,
        start=table.start,
        idle_stop_s=table.idle_stop_s,
        pool_min=table.pool_min,
        pool_max=table.pool_max,
        max_instances=table.max_instances,
        spares=table.spares,
        zygote=table.zygote,
        prefix=_checked_prefix(table.prefix, f"{where}.prefix"),
        era=table.era,
        cwd=_paths((table.cwd,), file.parent, f"{where}.cwd")[0] if table.cwd is not None else None,
        enabled=table.enabled,
        start_timeout_s=table.start_timeout_s,
        call_timeout_s=table.call_timeout_s,
        stop_timeout_s=table.stop_timeout_s,
        concurrency=table.concurrency,
        max_frame_bytes=_frame(table.max_frame, f"{where}.max_frame"),
        restart=table.restart,
        replace=table.replace,
        priority=table.priority,
        range=compile_range(table.range, f"{where}.range"),
        resilience=check_resilience(table.resilience, f"{where}.resilience"),
        trust=table.trust,
        most_argument_bytes=_bytes(table.max_arguments, f"{where}.max_arguments"),
        most_argument_depth=table.max_argument_depth,
        strict_arguments=table.strict_arguments,
        audit_contents_bytes=_contents(table.audit_contents, f"{where}.audit_contents"),
    )


def _remote(name: str, table: IntegrationDocument, folder: Path, where: str) -> Entry | None:
    """What an entry with a url becomes; None of one with a command."""
    kind, others = ("url", _LOCAL_KEYS) if table.url is not None else ("command", _REMOTE_KEYS)
    blank = IntegrationDocument()
    for key in others:
        if getattr(table, key) != getattr(blank, key):
            what = f"does not go with {kind}"
            raise ConfigurationError(f"{where}.{key}", what, "Leave one of them out.")
    if table.url is None:
        return None
    keys = RemoteKeys(
        url=table.url,
        addresses=table.addresses,
        ca_file=_paths((table.ca_file,), folder, f"{where}.ca_file")[0] if table.ca_file else "",
        own=CredentialsDocument(bearer=table.bearer, headers=table.headers, oauth=table.oauth),
        clients=table.clients,
        most_frame_bytes=_frame(table.max_frame, f"{where}.max_frame"),
    )
    entry = compile_remote(name, keys, where, lambda one, key: check_source(one, folder, key))
    if entry.remote.oauth and table.instances != "shared":
        what = "several processes would renew the same tokens, which are good once"
        remedy = 'Set instances = "shared", with clients.NAME.oauth for each client.'
        raise ConfigurationError(f"{where}.oauth", what, remedy)
    return entry


def _secrets(table: IntegrationDocument, folder: Path, where: str) -> dict[str, SecretSource]:
    return {
        key: check_source(source, folder, f"{where}.secrets.{key}")
        for key, source in table.secrets.items()
    }


def _command(command: tuple[str, ...] | None, folder: Path, where: str) -> tuple[str, ...]:
    where = f"{where}.command"
    if not command or not command[0]:
        remedy = 'Write the argv, such as ["/opt/server/bin/python", "-m", "server"], or url.'
        raise ConfigurationError(where, "expected a program and its arguments, found none", remedy)
    if any("\0" in word for word in command):
        raise ConfigurationError(where, "an argument holds a NUL byte")
    if "/" not in command[0]:
        if " " in command[0]:
            remedy = "Split it into words; no shell is involved."
            raise ConfigurationError(where, f"{command[0][:80]!r} is a shell line", remedy)
        return command
    return (absolute(command[0], folder), *command[1:])


def _paths(paths: tuple[str, ...], folder: Path, where: str) -> tuple[str, ...]:
    for path in paths:
        if not path or "\0" in path:
            raise ConfigurationError(where, f"expected a path, found {path[:80]!r}")
    return tuple(absolute(path, folder) for path in paths)


def _profile(profile: str, folder: Path) -> str:
    is_path = "/" in profile or profile.endswith(".toml")
    return absolute(profile, folder) if is_path else profile


def _systems(systems: Systems, folder: Path) -> Systems:
    return Systems(**{name: _profile(getattr(systems, name), folder) for name in SYSTEMS})


def _check_variables(table: IntegrationDocument, where: str) -> None:
    for key in (*table.env, *table.secrets):
        if not _VARIABLE.fullmatch(key):
            raise ConfigurationError(where, f"{key[:64]!r} is no name of a variable")
    both = sorted(set(table.env) & set(table.secrets))
    if both:
        raise ConfigurationError(where, f"{both[0]} is in env and in secrets", "Keep one.")
    if any("\0" in value for value in table.env.values()):
        raise ConfigurationError(f"{where}.env", "a value holds a NUL byte")


def _check_instances(table: IntegrationDocument, where: str) -> None:
    """Refuse what contradicts itself, and what would carry state from one session to another."""
    if table.pool_min > table.pool_max:
        raise ConfigurationError(f"{where}.pool_min", f"more than pool_max, {table.pool_max}")
    if table.zygote and (table.instances, table.start) != ("session", "eager"):
        what = 'goes with instances = "session" and start = "eager" only'
        raise ConfigurationError(f"{where}.zygote", what, "Set both, or leave zygote out.")
    if table.instances != "session":
        if table.spares:
            remedy = 'Set instances = "session", or leave spares out.'
            raise ConfigurationError(f"{where}.spares", "only a session takes a spare", remedy)
        return
    if table.spares > table.max_instances:
        raise ConfigurationError(f"{where}.spares", f"more than {table.max_instances} instances")
    if table.state:
        what = "one directory would carry the state of one session to another"
        remedy = 'Leave state out, or set instances = "shared".'
        raise ConfigurationError(f"{where}.state", what, remedy)


def _checked_prefix(prefix: str | None, where: str) -> str | None:
    if prefix and (not _PREFIX.fullmatch(prefix) or "__" in prefix):
        remedy = "Use A-Z a-z 0-9 _ -, at most 32 characters, without a double underscore."
        raise ConfigurationError(where, f"{prefix[:64]!r} is no prefix", remedy)
    return prefix


def _check_prefixes(integrations: dict[str, Integration], file: str) -> None:
    owners: dict[str, str] = {}
    for name, integration in integrations.items():
        prefix = name if integration.prefix is None else integration.prefix
        if prefix and prefix in owners:
            where = f"{file}: integrations.{name}.prefix"
            what = f"{prefix!r} is also the prefix of {owners[prefix]}"
            raise ConfigurationError(where, what, "Give one of them another prefix.")
        owners[prefix] = name


def _bytes(value: str | int, where: str) -> int:
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise ConfigurationError(where, str(error), 'Write "8M".') from error


def _contents(value: str | int, where: str) -> int:
    size = _bytes(value, where)
    if size > _MOST_CONTENTS_BYTES:
        raise ConfigurationError(where, "expected at most 8K", "A longer one is cut to that.")
    return size


def _frame(value: str | int, where: str) -> int:
    size = _bytes(value, where)
    if not 2**10 <= size <= 2**30:
        raise ConfigurationError(where, "expected 1K to 1G")
    return size


def check_address(address: str, where: str) -> None:
    """Refuse whatever is no loopback address with a port; "" is none at all.

    Raises:
        ConfigurationError: it is something else.
    """
    if not address:
        return
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > _PORT_MAX:
        raise ConfigurationError(where, f"{address[:80]!r} has no port", 'Write "127.0.0.1:8765".')
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        remedy = "Listen on 127.0.0.1 and put a TLS proxy in front of it."
        raise ConfigurationError(where, f"{host[:64]!r} is not a loopback address", remedy)
