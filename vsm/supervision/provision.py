"""What a worker needs before it can be started: profile, closure, uid, directories, cgroup, plan.

Runs in the supervisor, once per start, so that an edited profile or a repaired command counts
from the next start on. Secrets are read here, into the plan's environment, and nowhere else.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from vsm import paths
from vsm.configuration.config import Config, Integration
from vsm.configuration.profile import (
    Limits,
    Profile,
    check_foreign,
    extend_profile,
    load_profile,
)
from vsm.configuration.remote import check_secret
from vsm.configuration.secrets import SecretSource, read_secret
from vsm.confinement import cgroup, scratch, uids
from vsm.confinement.closure import Closure, closure
from vsm.confinement.execution import Plan
from vsm.confinement.plan import WorkerRequest, compile_plan, egress_rules
from vsm.confinement.probe import HostFacts
from vsm.core.egress import Rules
from vsm.egress import link as egress_link
from vsm.errors import ConfigurationError, VsmError
from vsm.messages import ClientRow
from vsm.processes.zygote import zygote_argv
from vsm.supervision import oauth_store

LEAST_TOKEN_CHARS = 16
_STATES = "integrations"
_USUAL_STATE = "/var/lib/vsm"
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass
class Host:
    """What the trials found, and the cgroups of this run.

    `uids` (of integrations) and `system_uids` (of systems and egress) are empty for an ordinary
    user, whose workers run under the user's own. `written` is what some integration may write:
    what lies there decides nothing about anybody's confinement.
    """

    facts: HostFacts
    cgroups: cgroup.Cgroups
    uids: dict[str, int] = field(default_factory=dict)
    system_uids: dict[str, int] = field(default_factory=dict)
    written: tuple[str, ...] = ()


def survey(config: Config) -> Host:
    """Try what this host gives, remove what dead runs left, give each integration its uid."""
    groups = cgroup.detect(claim=True)
    host = Host(facts=_probe(groups), cgroups=cgroup.Cgroups(groups))
    host.cgroups.sweep()
    scratch.sweep(uids.may_be_workers)
    if host.facts.root:
        host.uids = integration_uids(config)
        host.system_uids = system_uids(host.uids)
    host.written = written_paths(config)
    return host


def integration_uids(config: Config) -> dict[str, int]:
    """A uid for each integration of a vsm of root's; whoever has a state directory keeps its."""
    kept = {}
    for name in config.integrations:
        with suppress(OSError):
            status = (paths.state_dir() / _STATES / name).lstat()
            if stat.S_ISDIR(status.st_mode):
                kept[name] = status.st_uid
    return uids.integration_uids(list(config.integrations), place=_place(), kept=kept)


def system_uids(taken: Mapping[str, int]) -> dict[str, int]:
    """A uid for each system and the egress process of a vsm of root's; none of `taken`."""
    return uids.system_uids(place=_place(), taken=taken.values())


def _place() -> str:
    folder = os.path.realpath(paths.state_dir())
    return "" if folder == _USUAL_STATE else f"{folder}/"


def client_rows(config: Config) -> tuple[ClientRow, ...]:
    """What S1 must know of the configured clients, with their tokens.

    Raises:
        ConfigurationError: a token cannot be read, is too short, or is another client's too.
    """
    rows, owners = [], dict[str, str]()
    for one in config.clients.values():
        where, token = f"{config.path}: clients.{one.name}.token_file", ""
        if one.token_file:
            token = read_secret(SecretSource(file=one.token_file), where=where)
            if len(token) < LEAST_TOKEN_CHARS or not token.isascii() or " " in token:
                what = f"expected at least {LEAST_TOKEN_CHARS} ASCII characters without spaces"
                raise ConfigurationError(where, what, "Make one: `openssl rand -hex 32`.")
            if owners.setdefault(token, one.name) != one.name:
                raise ConfigurationError(where, f"{owners[token]} has the same token")
        rows.append(
            ClientRow(
                name=one.name,
                integrations=one.integrations,
                tools=one.tools,
                search=one.search,
                token=token,
            )
        )
    return tuple(rows)


def written_paths(config: Config) -> tuple[str, ...]:
    """The paths that some integration may write: by its entry, its profile, or as its state."""
    return tuple(path for one in config.integrations.values() for path in _written_by(one))


def _written_by(integration: Integration) -> Iterator[str]:
    yield from integration.write
    if integration.state:
        with suppress(ConfigurationError):  # no $HOME: then it cannot be started either
            yield str(paths.state_dir() / _STATES / integration.name)
    with suppress(VsmError):  # a wrong profile starts nothing
        yield from load_profile(integration.profile).files.write


def _probe(groups: cgroup.CgroupFacts) -> HostFacts:
    from vsm.confinement.probe import probe_host

    return probe_host(groups=groups)


def _group(host: Host, worker: str, limits: Limits) -> cgroup.Group | None:
    if host.cgroups.facts.kind == "none":
        return None
    return host.cgroups.create(
        worker,
        cgroup.limits_of(limits),
    )


def system_plan(host: Host, config: Config, system: str) -> Plan:
    """The plan by which a system confines itself.

    Raises:
        VsmError: its profile is wrong, or needs what this host lacks.
    """
    profile = load_profile(getattr(config.systems, system))
    group = _group(host, system, profile.limits)
    uid = host.system_uids.get(system)
    if uid is not None:
        uids.check_mapped(uid, where=system)
    request = WorkerRequest(
        name=system,
        argv=(),
        uid=uid,
        cgroups=group.paths if group else (),
        cgroup_layers=group.layers if group else (),
    )
    return compile_plan(profile, request, host.facts)


def journal_plan(host: Host) -> str:
    """The plan by which the journal process confines itself, as JSON.

    Raises:
        VsmError: no state directory, or a profile that is wrong or needs what this host lacks.
    """
    folder = paths.ensure_state_dir()
    request = WorkerRequest(name="journal", argv=(), write=(str(folder),))
    return json.dumps(compile_plan(load_profile("journal"), request, host.facts).to_json())


def egress_plan(host: Host) -> Plan:
    """The plan by which the egress process confines itself.

    Raises:
        VsmError: its profile is wrong, or needs what this host lacks.
    """
    group = _group(host, "egress", load_profile("egress").limits)
    return egress_link.egress_plan(
        host.facts,
        host.system_uids.get("egress"),
        group.paths if group else (),
        group.layers if group else (),
    )


@dataclass
class Provision:
    """One start of one integration; `written` are the limits as its profile has them."""

    plan: Plan
    group: cgroup.Group | None
    memory_bytes: int | None
    profile: Profile
    egress: Rules | None
    written: Limits
    private: tuple[str, ...] = ()  # its directories on the disk, which nobody else writes
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)  # of the plan's `env`


def provide(
    host: Host,
    integration: Integration,
    worker: str,
    limits: Mapping[str, Any] | None = None,
    *,
    instance: int = 0,
) -> Provision:
    """Everything that one start needs.

    Args:
        host: what is there.
        integration: what to start.
        worker: its name for the control group.
        limits: fields of Limits that go before those of the profile.
        instance: its number, where the integration has several.

    Raises:
        VsmError: the command, the profile, a path or a secret is wrong, or a layer is missing.
    """
    written = profile_of(integration)
    profile = with_limits(written, limits)
    uid = _uid(host, integration, profile, instance)
    request = _request(host, integration, profile, uid)
    group = _group(host, worker, profile.limits)
    try:
        request = msgspec.structs.replace(
            request,
            state_dir=_state_dir(integration, uid) if integration.state else None,
            cgroups=group.paths if group else (),
            cgroup_layers=group.layers if group else (),
        )
        plan = compile_plan(profile, request, host.facts)
    except BaseException:
        if group is not None:
            group.remove()
        raise
    memory_bytes, rules = profile.limits.memory_bytes, egress_rules(profile)
    private = tuple(path for path in (request.state_dir, plan.scratch_dir) if path)
    hidden = {name: plan.env[name] for name in integration.secrets if name in plan.env}
    return Provision(plan, group, memory_bytes, profile, rules, written.limits, private, hidden)


def _uid(host: Host, integration: Integration, profile: Profile, instance: int) -> int | None:
    """The worker's; each session's instance has one of its own, unless paths are written to."""
    uid = host.uids.get(integration.name)
    written = integration.write or profile.files.write
    if uid is None or integration.instances != "session" or not instance or written:
        return uid
    taken = (*host.uids.values(), *host.system_uids.values())
    return uids.instance_uid(integration.name, instance, taken, place=_place())


def profile_of(integration: Integration) -> Profile:
    """Its profile; a remote server's allows the hosts that the entry names, and those alone.

    Raises:
        VsmError: it is wrong, or lets a remote server's worker reach more than that.
    """
    where = f"integrations.{integration.name}.profile"
    profile = check_foreign(load_profile(integration.profile), where)
    if integration.remote is None:
        return profile
    if profile.network.mode != "proxy" or profile.network.allow:
        what = f'{profile.name} has no network of mode "proxy" with an empty allow-list'
        raise ConfigurationError(where, what, 'Extend "remote" and name no hosts.')
    hosts = [*integration.remote.hosts, *oauth_store.hosts(integration)]
    return extend_profile(profile, {"network": {"allow": hosts}}, profile.name)


def with_limits(profile: Profile, limits: Mapping[str, Any] | None) -> Profile:
    """The profile with the limits that a command set."""
    if not limits:
        return profile
    changed = msgspec.structs.replace(profile.limits, **limits)
    return msgspec.structs.replace(profile, limits=changed)


def check(host: Host, integration: Integration, uid: int | None) -> Plan:
    """Find out whether it could be started, without making anything, and by which plan.

    Raises:
        VsmError: as `provide`.
    """
    profile = profile_of(integration)
    held = () if host.cgroups.facts.kind == "none" else cgroup.Group(host.cgroups.facts, "x").layers
    request = _request(host, integration, profile, uid)
    return compile_plan(profile, msgspec.structs.replace(request, cgroup_layers=held), host.facts)


def visible(host: Host, integration: Integration) -> tuple[str, ...]:
    """The host paths that it would see, with all that is in them.

    Raises:
        VsmError: as `provide`.
    """
    profile = profile_of(integration)
    request = _request(host, integration, profile, None)
    files = profile.files
    return (*files.system, *files.read, *files.write, *request.read, *request.write)


def _request(
    host: Host, integration: Integration, profile: Profile, uid: int | None
) -> WorkerRequest:
    """What the configuration says of a worker; its groups and state directory are added later."""
    env = {**integration.env, **_secrets(integration)}
    _check_cwd(integration)
    needed = needed_by(integration, profile, env=env, path=os.environ.get("PATH", ""))
    written = (*host.written, *integration.write, *profile.files.write)
    _refuse_written(integration.name, (needed.executable, *needed.read), written)
    if uid is not None:
        uids.check_mapped(uid, where=integration.name)
    argv = (needed.executable, *integration.command[1:])
    if integration.zygote:
        argv = zygote_argv(argv, where=f"integrations.{integration.name}.command")
    return WorkerRequest(
        name=integration.name,
        argv=argv,
        cwd=integration.cwd,
        env=env,
        path=needed.folders,
        read=(*needed.read, *integration.read),
        kept=integration.read,
        write=integration.write,
        written=written,
        uid=uid,
        report=True,
    )


def _check_cwd(integration: Integration) -> None:
    cwd = integration.cwd
    if cwd is None or os.path.isdir(cwd) or integration.state:  # a state directory may yet be made
        return
    remedy = "Make it, or correct the path; it must be in read or write as well."
    raise ConfigurationError(f"integrations.{integration.name}.cwd", f"no folder {cwd}", remedy)


def needed_by(
    integration: Integration, profile: Profile, *, env: Mapping[str, str], path: str
) -> Closure:
    """What its command needs of the host.

    Args:
        integration: which has a command.
        profile: its own.
        env: what the integration adds to the profile's; its PATH goes before all others.
        path: vsm's own PATH, in which a program is looked for before the profile's.

    Raises:
        VsmError: something is missing or not executable.
    """
    inside = profile.environment.get("PATH", DEFAULT_PATH)
    search = {**profile.environment, **env, "PATH": env.get("PATH") or f"{path}:{inside}"}
    return closure(integration.command, env=search, cwd=integration.cwd or "")


def _refuse_written(name: str, code: tuple[str, ...], written: tuple[str, ...]) -> None:
    """What a command needs is read from its own files: whoever writes those would choose it."""
    for path in code:
        for folder in written:
            real = os.path.realpath(folder)
            if os.path.realpath(path) == real or path.startswith(real + "/"):
                raise ConfigurationError(
                    name,
                    f"its command needs {path}, which lies in {folder}, which a server may write",
                    "Move the program elsewhere, or let `write` name the folders that need it.",
                )


def _secrets(integration: Integration) -> dict[str, str]:
    values = {}
    for name, source in integration.secrets.items():
        where = f"integrations.{integration.name}.secrets.{name}"
        value = read_secret(source, where=where)
        values[name] = value if integration.remote is None else check_secret(value, where)
    return values


def secret_values(config: Config) -> Iterator[tuple[str, str]]:
    """The integrations' secrets, by name, as far as they can be read now."""
    for integration in config.integrations.values():
        for name, source in integration.secrets.items():
            with suppress(ConfigurationError):  # whoever needs it says so when it is started
                yield name, read_secret(source, where=name)


def _state_dir(integration: Integration, uid: int | None) -> str:
    """The integration's own directory, 0700 and the worker's; it survives restarts."""
    folder = paths.ensure_state_dir() / _STATES
    folder.mkdir(mode=0o711, exist_ok=True)
    own = folder / integration.name
    own.mkdir(mode=0o700, exist_ok=True)
    _give(own, uid)
    oauth_store.hand_over(integration, str(own), uid)
    return str(own)


def _give(directory: Path, uid: int | None) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(fd).st_uid
        if uid is not None and owner != uid:
            os.fchown(fd, uid, uid)
        elif uid is None and owner != os.geteuid():
            what = f"belongs to uid {owner}"
            raise VsmError(str(directory), what, "Remove it or give it to the user of vsm.")
    finally:
        os.close(fd)
