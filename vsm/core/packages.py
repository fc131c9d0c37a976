"""Packages by name: how they are written, what a lock must say, what registries print. Pure.

Everything here parses text of others: a user's, a configuration's, a registry's answer.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

_SPEC: Final = 'Write "npm:NAME@VERSION" or "pypi:NAME==VERSION", or leave out the version.'
_PYPI: Final = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)(?:==([0-9][A-Za-z0-9.!+_-]{0,63}))?"
)
_NPM: Final = re.compile(
    r"((?:@[a-z0-9~-][a-z0-9._~-]{0,98}/)?[a-z0-9~][a-z0-9._~-]{0,98})"
    r"(?:@(\d+\.\d+\.\d+[0-9A-Za-z.+-]{0,63}))?"
)
_WHEEL: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._]*)-(?P<version>[0-9][A-Za-z0-9_.!+]*)"
    r"(-\d[A-Za-z0-9_.]*)?-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+\.whl"
)
_SETTING: Final = re.compile(r"(?P<section>[\w:-]+)\.(?P<key>[\w.-]+)='(?P<value>.*)'", re.DOTALL)
_INTEGRITY: Final = re.compile(r"sha(512|384|256)-[A-Za-z0-9+/]+={0,2}")
_SERVER: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_PORTS: Final = {"https": 443, "http": 80}


class Package(NamedTuple):
    """One exact version of a package.

    Args:
        kind: "npm" or "pypi".
        version: "" where none was named.
    """

    kind: str
    name: str
    version: str

    def __str__(self) -> str:
        separator = ("==" if self.kind == "pypi" else "@") if self.version else ""
        return f"{self.kind}:{self.name}{separator}{self.version}"


def parse_package(text: str) -> Package:
    """A package, and the exact version if one is named, as the command line names it.

    Raises:
        ValueError: what is wrong, and how it is written.
    """
    kind, colon, rest = text.partition(":")
    pattern = {"pypi": _PYPI, "npm": _NPM}.get(kind) if colon else None
    if pattern is None:
        raise ValueError(f"{text[:80]!r} names no registry. {_SPEC}")
    found = pattern.fullmatch(rest)
    if found is None:
        raise ValueError(f"{text[:80]!r} is not one exact version. {_SPEC}")
    return Package(kind, found.group(1), found.group(2) or "")


def server_name(package: Package) -> str:
    """The name that a server gets from its package: that of @scope/name is name."""
    short = package.name.rpartition("/")[2].lower()
    plain = re.sub(r"[^a-z0-9_-]+", "-", short).strip("-_")
    return re.sub(r"__+", "_", plain)[:32].rstrip("-_")


def is_server_name(text: str) -> bool:
    """Whether an integration, and a directory, could be called that."""
    return _SERVER.fullmatch(text) is not None and "__" not in text


def normalize(name: str) -> str:
    """A Python project's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Wheel(NamedTuple):
    """What a wheel's file name says."""

    name: str
    version: str


def parse_wheel_name(file: str) -> Wheel:
    """The project and version of a wheel; ValueError for any other file."""
    found = _WHEEL.fullmatch(file)
    if found is None:
        raise ValueError(f"{file[:120]!r} is no wheel")
    return Wheel(normalize(found["name"]), found["version"].replace("_", "-"))


def parse_pip_settings(text: str) -> dict[str, str]:
    """What `pip config list` prints, the environment's settings over the files'.

    A setting of a section for one command (`download.…`, `install.…`) counts over `global`.
    """
    found: dict[str, tuple[int, str]] = {}
    ranks = {"global": 0, "install": 1, "download": 2, ":env:": 3}
    for line in text.splitlines():
        setting = _SETTING.fullmatch(line.strip())
        rank = ranks.get(setting["section"]) if setting else None
        if setting is None or rank is None:
            continue
        key = setting["key"].lstrip(".").replace("_", "-")
        if rank >= found.get(key, (-1, ""))[0]:
            value = setting["value"].replace("\\n", " ").replace("\\'", "'")
            found[key] = (rank, " ".join(value.split()))
    return {key: value for key, (_, value) in found.items()}


class Location(NamedTuple):
    """Where a registry is: a host to reach or a path to read.

    Args:
        host: "" for a path.
    """

    host: str = ""
    port: int = 0
    path: str = ""


def parse_location(text: str) -> Location:
    """Of a URL or a path.

    Raises:
        ValueError: neither.
    """
    if text.startswith("/"):
        return Location(path=text)
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Location(path=parts.path)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(
            f"expected an http(s) URL or a path, found {without_password(text)[:120]!r}"
        )
    return Location(host=parts.hostname, port=parts.port or _PORTS[parts.scheme])


def without_password(url: str) -> str:
    """The URL without user and password, for records and errors."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class Sources(NamedTuple):
    """Where the packages of an npm lock may come from; a place is (host, port).

    Args:
        default: the registry of every package that `scopes` does not name.
        scopes: "@scope" → its registry, and then no other.
        allowed: asked of every other place: whether the operator allowed it by hand.
    """

    default: tuple[str, int]
    scopes: Mapping[str, tuple[str, int]] = MappingProxyType({})
    allowed: Callable[[str, int], bool] = lambda _host, _port: False


class Locked(NamedTuple):
    """One package of an npm lock.

    Args:
        place: its key in the lock: where it is put.
        script: whether it brings an install script (which is not run).
    """

    place: str
    name: str
    version: str
    integrity: str
    script: bool


def parse_npm_lock(lock: Any, sources: Sources) -> Iterator[Locked]:  # noqa: ANN401 - JSON
    """Every package of a package-lock.json.

    Args:
        lock: the document.
        sources: where they may come from.

    Raises:
        ValueError: a package is not pinned by hash, or comes from elsewhere; says which.
    """
    packages = lock.get("packages") if isinstance(lock, dict) else None
    if not isinstance(packages, dict):
        raise ValueError("the lock has no packages")  # noqa: TRY004 - it is what was read
    for place, entry in packages.items():
        if place:
            yield _locked(str(place), entry, sources)


def _locked(place: str, entry: Any, sources: Sources) -> Locked:  # noqa: ANN401 - JSON
    if not isinstance(entry, dict) or entry.get("link") or ".." in place.split("/"):
        raise ValueError(f"{place[:120]}: not a package of a registry")
    integrity, source = entry.get("integrity"), entry.get("resolved")
    # One hash: of several npm takes whichever fits, and so whichever file.
    if not isinstance(integrity, str) or not _INTEGRITY.fullmatch(integrity):
        raise ValueError(f"{place[:120]}: the registry gives no hash of it, or several")
    # An alias is put under another name than it has: the hash is that of what it is.
    name = str(entry.get("name") or place.rpartition("node_modules/")[2])
    if source is not None:
        _check_source(place, name, str(source), sources)
    script = bool(entry.get("hasInstallScript"))
    return Locked(place, name, str(entry.get("version")), integrity, script)


def _check_source(place: str, name: str, source: str, sources: Sources) -> None:
    location = parse_location(source)
    scope = name.partition("/")[0] if name.startswith("@") else ""
    registry = sources.scopes.get(scope, sources.default)
    found = (location.host, location.port)
    if not location.host or (found != registry and not sources.allowed(*found)):
        raise ValueError(
            f"{place[:120]}: comes from {without_password(source)[:120]}, not the registry"
        )


def parse_console_scripts(text: str) -> list[str]:
    """The commands of an entry_points.txt."""
    section = re.search(r"(?ms)^\[console_scripts\]\s*$(.*?)(?=^\[|\Z)", text)
    names = re.findall(r"(?m)^([A-Za-z0-9_.-]+)\s*=", section.group(1)) if section else []
    return sorted(set(names))


def parse_bins(manifest: Any, name: str) -> dict[str, str]:  # noqa: ANN401 - JSON
    """The commands of a package.json: name → path inside the package; odd ones are left out."""
    declared = manifest.get("bin") if isinstance(manifest, dict) else None
    if isinstance(declared, str):
        declared = {name.rpartition("/")[2]: declared}
    if not isinstance(declared, dict):
        return {}
    return {
        key: path.removeprefix("./")
        for key, path in declared.items()
        if isinstance(path, str) and re.fullmatch(r"[\w.@-]{1,64}", str(key), re.ASCII)
        if re.fullmatch(r"(\./)?[\w.@-]+(/[\w.@-]+)*", path, re.ASCII)
        and ".." not in path.split("/")
    }


def choose_command(names: list[str], package: Package) -> str:
    """The command that is the server: the package's own name, or the only one; "" if unclear."""
    short = package.name.rpartition("/")[2]
    wanted = {normalize(short), normalize(package.name)}
    same = [name for name in names if normalize(name) in wanted]
    return same[0] if same else names[0] if len(names) == 1 else ""


def parse_fetch_trouble(output: str) -> str:
    """Why pip got no page of a package, by its words at `-vv`; "" if it got one, or a plain 404."""
    for reason in re.findall(r"(?m)^[ \t]*Could not fetch URL \S+: (.*)$", output):
        status = re.search(r"^(\d{3}) (?:Client|Server) Error|too many (\d{3}) error", reason)
        if status is None:
            return "no answer in time" if "timed out" in reason else "no connection"
        code = status.group(1) or status.group(2)
        if code in {"401", "403"}:
            return f"it wants other credentials (status {code})"
        if code != "404":
            return f"it fails (status {code})"
    return ""


def parse_latest(output: str) -> str:
    """The newest version in what `pip index versions` prints; "" if it prints none."""
    found = re.search(r"(?m)^[A-Za-z0-9._-]+ \(([0-9][A-Za-z0-9.!+_-]*)\)\s*$", output)
    return found.group(1) if found else ""
