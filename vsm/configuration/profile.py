"""Profiles: what a worker may see and use, read from TOML with `extends`.

Owns the file format (`ProfileDocument`), its inheritance and the resolved `Profile`. How a
profile is enforced is not known here. Runs in the command line and the supervisor. A bit
long: the keys, what they inherit and what is refused of them are read together.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from vsm.configuration.toml_file import build, check_trust, nearest, read_toml
from vsm.configuration.units import parse_bytes
from vsm.core.egress import compile_rules
from vsm.core.syscalls import groups, known, unknown
from vsm.errors import ConfigurationError
from vsm.paths import profile_search_path, shipped_profiles

LAYERS = (
    "user",
    "root_filesystem",
    "namespaces",
    "network",
    "privileges",
    "landlock",
    "seccomp",
    "memory",
    "processes",
    "cpu",
    "io",
)

Tier = Literal["namespaced", "landlocked"]
Layer = Literal[
    "user",
    "root_filesystem",
    "namespaces",
    "network",
    "privileges",
    "landlock",
    "seccomp",
    "memory",
    "processes",
    "cpu",
    "io",
]
Size = str | int
Unlimited = Literal["unlimited"]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Cores = Annotated[float, msgspec.Meta(gt=0, le=4096)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TOO_MUCH = ("/", "/dev", "/sys")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """What of the host's files a worker sees.

    Args:
        system: host paths always visible, read-only and executable; absent ones are skipped.
        read: host paths, read-only; an absent one is an error.
        write: host paths; an absent one is an error.
        devices: absolute paths such as "/dev/null".
    """

    system: tuple[str, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]
    tmp_bytes: int
    shm_bytes: int
    devices: tuple[str, ...]
    proc: bool


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """none: no network at all; proxy: the hosts in `allow`; host: the host's own network."""

    mode: Literal["none", "proxy", "host"]
    allow: tuple[str, ...]


class Syscalls(msgspec.Struct, frozen=True, kw_only=True):
    """Names and systemd's @groups; whatever is not allowed is denied.

    Args:
        report: count what is refused, by name; under a supervisor only.
    """

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    unix_sockets: bool
    report: bool


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Resource limits; None is no limit."""

    memory_bytes: int | None
    swap_bytes: int | None
    processes: int | None
    cpu_cores: float | None
    cpu_time_s: int | None
    open_files: int | None
    file_size_bytes: int | None
    disk_bytes: int | None
    disk_files: int | None
    wall_time_s: int | None
    io_read_bytes_s: int | None
    io_write_bytes_s: int | None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved profile.

    Args:
        tier: the least tier accepted.
        may_lack: layers that may be absent without stopping the worker.
        confine: "exec" for a foreign program; "self" for the five systems, which confine
            themselves after the fork, in the landlocked tier, never with namespaces.
    """

    name: str
    path: str
    description: str
    tier: Tier
    may_lack: frozenset[str]
    files: Files
    network: Network
    syscalls: Syscalls
    limits: Limits
    environment: dict[str, str]
    confine: Literal["exec", "self"]


class FilesDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[files] as written."""

    system: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    tmp: Size = "64M"
    shm: Size = "16M"
    devices: tuple[str, ...] = ()
    proc: bool = False


class NetworkDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[network] as written."""

    mode: Literal["none", "proxy", "host"] = "none"
    allow: tuple[str, ...] = ()


class SyscallsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[syscalls] as written."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    unix_sockets: bool = False
    report: bool = True


class LimitsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[limits] as written; the word "unlimited" lifts one."""

    memory: Size = "512M"
    swap: Size = 0
    processes: Count | Unlimited = 64
    cpu: Cores | Unlimited = 0.5
    cpu_time_s: Count | Unlimited = "unlimited"
    open_files: Count | Unlimited = 256
    file_size: Size = "100M"
    disk: Size = "1G"
    disk_files: Count | Unlimited = 100_000
    wall_time_s: Count | Unlimited = "unlimited"
    io_read: Size = "unlimited"
    io_write: Size = "unlimited"


class ProfileDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A profile file as written, after inheritance."""

    description: str = ""
    extends: str = ""
    tier: Tier = "namespaced"
    may_lack: tuple[Layer, ...] = ()
    confine: Literal["exec", "self"] = "exec"
    files: FilesDocument = FilesDocument()
    network: NetworkDocument = NetworkDocument()
    syscalls: SyscallsDocument = SyscallsDocument()
    limits: LimitsDocument = LimitsDocument()
    environment: dict[str, str] = {}


def load_profile(name_or_path: str, *, search: tuple[Path, ...] | None = None) -> Profile:
    """Find, inherit, validate.

    Args:
        name_or_path: a name in the search path, or a path (it has a "/" or ends in ".toml").
        search: folders instead of `vsm.paths.profile_search_path()`.

    Raises:
        ConfigurationError: not found, malformed, untrusted, or a cycle of `extends`.
    """
    folders = profile_search_path() if search is None else search
    path = find_profile(name_or_path, folders)
    table = _inherit(path, folders, ())
    document = build(table, ProfileDocument, file=str(path))
    return _resolve(document, path)


def extend_profile(profile: Profile, table: dict[str, Any], name: str) -> Profile:
    """The profile as a file would have it that extends it: lists add up, the rest replaces.

    Args:
        profile: what is extended.
        table: as such a file's, without `extends`.
        name: of the new one, and of errors.

    Raises:
        ConfigurationError: the table is wrong.
    """
    plain = build(_without_removals(table), ProfileDocument, file=name)
    _check(plain, name)
    merged = _merge(_document_table(profile), table, name, "")
    _check_reach(table, merged, name)
    document = build(merged, ProfileDocument, file=name)
    return msgspec.structs.replace(_resolve(document, Path(profile.path)), name=name)


def check_foreign(profile: Profile, where: str) -> Profile:
    """The profile, for a program that is not vsm's own.

    Raises:
        ConfigurationError: it is for vsm's own processes, which confine themselves; names `where`.
    """
    if profile.confine != "exec":
        what = f"the profile {profile.name} is for vsm's own processes, which confine themselves"
        remedy = 'Take "integration", or one that extends it; `vsm profile list` has them.'
        raise ConfigurationError(where, what, remedy)
    return profile


def file_key(field: str) -> str:
    """What a field of a `Profile`'s sections is called in a file."""
    plain = field.removesuffix("_bytes_s").removesuffix("_bytes")
    return "cpu" if field == "cpu_cores" else plain


def _document_table(profile: Profile) -> dict[str, Any]:
    """A profile as a file without `extends` would have it."""
    table: dict[str, Any] = {
        "description": profile.description,
        "tier": profile.tier,
        "may_lack": sorted(profile.may_lack),
        "confine": profile.confine,
        "environment": dict(profile.environment),
    }
    for section in ("files", "network", "syscalls", "limits"):
        fields = msgspec.structs.asdict(getattr(profile, section))
        table[section] = {file_key(name): _as_written(value) for name, value in fields.items()}
    return table


def _as_written(value: Any) -> Any:  # noqa: ANN401 - of any field
    if value is None:
        return "unlimited"
    return list(value) if isinstance(value, tuple) else value


def profile_files(name_or_path: str, folders: tuple[Path, ...]) -> list[Path]:
    """The file of a profile, of what that extends, and so on; as far as they can be read."""
    files: list[Path] = []
    path = find_profile(name_or_path, folders)
    while path not in files:
        files.append(path)
        parent = read_toml(path).get("extends")
        if not isinstance(parent, str) or not parent:
            break
        path = _find_parent(parent, path, folders)
    return files


def list_profiles(search: tuple[Path, ...] | None = None) -> list[Profile]:
    """Every profile of the search path, by name; a shadowed one is left out."""
    folders = profile_search_path() if search is None else search
    return [load_profile(name, search=folders) for name in profile_names(folders)]


def profile_names(folders: tuple[Path, ...]) -> list[str]:
    """The names that `folders` offer, sorted."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.toml")})


def find_profile(name_or_path: str, folders: tuple[Path, ...]) -> Path:
    """The file of a name or path; ConfigurationError names the nearest known one."""
    if "\0" in name_or_path:
        raise ConfigurationError("profile", f"{name_or_path!r} holds a NUL byte")
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path).absolute()
        if not path.is_file():
            raise ConfigurationError(str(path), "no such profile file", "Check the path.")
        return path
    if not _NAME.fullmatch(name_or_path):
        raise ConfigurationError("profile", f"expected a name, found {name_or_path[:64]!r}")
    for folder in folders:
        path = folder / f"{name_or_path}.toml"
        if path.is_file():
            return path
    raise ConfigurationError(
        f"profile {name_or_path}",
        f"not found in {', '.join(map(str, folders))}",
        nearest(name_or_path, profile_names(folders)),
    )


def _inherit(path: Path, folders: tuple[Path, ...], chain: tuple[Path, ...]) -> dict[str, Any]:
    if path in chain:
        names = " → ".join(str(step) for step in (*chain, path))
        raise ConfigurationError(str(chain[0]), f"extends itself: {names}", "Break the circle.")
    # The shipped ones are as trusted as the code beside them.
    if path.parent != shipped_profiles():
        check_trust(path)
    table = read_toml(path)
    document = build(_without_removals(table), ProfileDocument, file=str(path))
    _check(document, str(path))
    inherited = {}
    if document.extends:
        try:
            parent = _find_parent(document.extends, path, folders)
        except ConfigurationError as error:
            what = f"{document.extends[:64]!r}: {error.what}"
            raise ConfigurationError(f"{path}: extends", what, error.remedy) from error
        inherited = _inherit(parent, folders, (*chain, path))
    merged = _merge(inherited, table, str(path), "")
    _check_reach(table, merged, str(path))
    return merged


def _check_reach(table: dict[str, Any], merged: dict[str, Any], file: str) -> None:
    """Refuse hosts that would be named in vain: only the proxy reads them."""
    named = [host for host in table.get("network", {}).get("allow", ()) if not host.startswith("-")]
    mode = merged.get("network", {}).get("mode", "none")
    if named and mode != "proxy":
        what = f'{named[0][:80]!r} is allowed, but network.mode is "{mode}"'
        remedy = 'Write mode = "proxy" beside it, or extend "networked".'
        raise ConfigurationError(f"{file}: network.allow", what, remedy)


def _find_parent(name: str, child: Path, folders: tuple[Path, ...]) -> Path:
    if "/" in name or name.endswith(".toml"):
        return find_profile(os.path.normpath(child.parent / name), folders)
    return find_profile(name, folders)


def _merge(parent: dict[str, Any], child: dict[str, Any], file: str, key: str) -> dict[str, Any]:
    """Tables merge key by key, lists add up ("-entry" takes one away), the rest replaces."""
    merged = dict(parent)
    for name, value in child.items():
        full_key = f"{key}.{name}" if key else name
        if isinstance(value, dict):
            merged[name] = _merge(parent.get(name, {}), value, file, full_key)
        elif isinstance(value, list):
            merged[name] = _merge_list(parent.get(name, []), value, f"{file}: {full_key}")
        else:
            merged[name] = value
    return merged


def _merge_list(parent: list[str], child: list[str], where: str) -> list[str]:
    merged = list(parent)
    for entry in child:
        if entry.startswith("-"):
            if entry[1:] not in merged:
                raise ConfigurationError(
                    where, f"{entry!r} takes away what is not inherited", nearest(entry[1:], merged)
                )
            merged.remove(entry[1:])
        elif entry not in merged:
            merged.append(entry)
    return merged


def _without_removals(table: dict[str, Any]) -> dict[str, Any]:
    """The table with "-entry" items read as "entry", to validate one file by itself."""
    plain: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            plain[name] = _without_removals(value)
        elif isinstance(value, list):
            plain[name] = [v[1:] if isinstance(v, str) and v[:1] == "-" else v for v in value]
        else:
            plain[name] = value
    return plain


def _check(document: ProfileDocument, file: str) -> None:
    for key in ("system", "read", "write", "devices"):
        for path in getattr(document.files, key):
            _check_path(path, f"{file}: files.{key}", device=key == "devices")
    for key in ("allow", "deny"):
        for entry in unknown(getattr(document.syscalls, key)):
            where = f"{file}: syscalls.{key}"
            everything = groups() if entry.startswith("@") else known()
            what = f"no such system call or @group: {entry[:60]!r}"
            raise ConfigurationError(where, what, _closest(entry, everything))
    _check_allow(document.network.allow, f"{file}: network.allow")
    for name, value in document.environment.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise ConfigurationError(f"{file}: environment", f"{name[:60]!r} is no variable")
    _resolve(document, Path(file))


def _check_allow(allow: tuple[str, ...], where: str) -> None:
    try:
        compile_rules(allow)
    except ValueError as error:
        remedy = 'Write "api.example.com:443", "*.example.com:443" or "127.0.0.1:8000".'
        raise ConfigurationError(where, str(error), remedy) from error


def _closest(entry: str, everything: Iterable[str]) -> str:
    close = difflib.get_close_matches(entry[:60], sorted(everything), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "`vsm docs profiles` has the groups."


def _check_path(path: str, where: str, *, device: bool) -> None:
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or ".." in parts or "\0" in path:
        what = f"expected an absolute path without '..', found {path[:200]!r}"
        raise ConfigurationError(where, what)
    plain = "/" + os.path.normpath(path).lstrip("/")
    is_proc, is_device = (plain.split("/")[1] == name for name in ("proc", "dev"))
    if plain in _TOO_MUCH or is_proc or device != is_device:
        what = f"{path[:200]!r} would open the kernel's or everybody's files"
        remedy = (
            "Devices belong in files.devices, /proc comes with files.proc; name what is needed."
        )
        raise ConfigurationError(where, what, remedy)


def _resolve(document: ProfileDocument, path: Path) -> Profile:
    files, limits, file = document.files, document.limits, str(path)
    return Profile(
        name=path.stem,
        path=file,
        description=document.description,
        tier=document.tier,
        may_lack=frozenset(document.may_lack),
        files=Files(
            system=files.system,
            read=files.read,
            write=files.write,
            tmp_bytes=_bytes(files.tmp, file, "files.tmp"),
            shm_bytes=_bytes(files.shm, file, "files.shm"),
            devices=files.devices,
            proc=files.proc,
        ),
        network=Network(mode=document.network.mode, allow=document.network.allow),
        syscalls=Syscalls(
            allow=document.syscalls.allow,
            deny=document.syscalls.deny,
            unix_sockets=document.syscalls.unix_sockets,
            report=document.syscalls.report,
        ),
        limits=compile_limits(limits, file),
        environment=dict(document.environment),
        confine=document.confine,
    )


def compile_limits(limits: LimitsDocument, where: str) -> Limits:
    """[limits] as numbers.

    Raises:
        ConfigurationError: a size is wrong; names `where`.
    """
    return Limits(
        memory_bytes=_limit(limits.memory, where, "limits.memory"),
        swap_bytes=_limit(limits.swap, where, "limits.swap"),
        processes=_number(limits.processes),
        cpu_cores=None if isinstance(limits.cpu, str) else float(limits.cpu),
        cpu_time_s=_number(limits.cpu_time_s),
        open_files=_number(limits.open_files),
        file_size_bytes=_limit(limits.file_size, where, "limits.file_size"),
        disk_bytes=_limit(limits.disk, where, "limits.disk"),
        disk_files=_number(limits.disk_files),
        wall_time_s=_number(limits.wall_time_s),
        io_read_bytes_s=_rate(limits.io_read, where, "limits.io_read"),
        io_write_bytes_s=_rate(limits.io_write, where, "limits.io_write"),
    )


def _number(value: int | str) -> int | None:
    return None if isinstance(value, str) else value


def _limit(value: Size, file: str, key: str) -> int | None:
    return None if value == "unlimited" else _bytes(value, file, key)


def _rate(value: Size, file: str, key: str) -> int | None:
    rate = _limit(value, file, key)
    if rate == 0:  # what the kernel would take for "no limit"
        raise ConfigurationError(f"{file}: {key}", "expected a rate above 0", 'Write "10M".')
    return rate


def _bytes(value: Size, file: str, key: str) -> int:
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise ConfigurationError(f"{file}: {key}", str(error), 'Write "512M".') from error
