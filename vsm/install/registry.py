"""Where packages come from: read from pip's and npm's own configuration of this host.

Runs in the command line, unconfined: asks `pip config list` and `npm config get`, which run
nothing of a package. What an install sandbox gets of it is the registry, its hosts, its
certificate and its credentials, and nothing else of the configuration.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from vsm.confinement.closure import SHARED
from vsm.core.addresses import judge, parse_literal
from vsm.core.packages import Location, parse_location, parse_pip_settings, without_password
from vsm.errors import VsmError

_ASK_TIMEOUT_S: Final = 60.0
_NPM_PATIENCE: Final = "300000"  # npm's own default, in ms; it tries twice
_PATIENCE: Final = "120000"
_DEFAULT_NPM: Final = "https://registry.npmjs.org/"
_DEFAULT_INDEX: Final = "https://pypi.org/simple"
# The one index that keeps its files elsewhere by design.
_COMPANIONS: Final = {"pypi.org": ("files.pythonhosted.org", 443)}
_PASSED_ON: Final = (
    "no-index",
    "cert",
    "client-cert",
    "trusted-host",
    "timeout",
    "default-timeout",
)
_FILES: Final = ("cert", "client-cert")
_VARIABLE: Final = re.compile(r"(?<!\\)\$\{([^${}?]+)\??\}")  # as npm writes one in its files
_AUTHENTICATION: Final = re.compile(r"//[^\s=]+:(_authToken|_auth|username|_password|email)\s*=.*")

_SCOPE: Final = re.compile(r"@[a-z0-9~-][a-z0-9._~-]*:registry")
_FIND_PIP: Final = (
    "from importlib.util import find_spec; print(find_spec('pip').submodule_search_locations[0])"
)


class Registry(NamedTuple):
    """What a step of an installation needs to reach packages.

    Args:
        label: for records and errors; no password in it.
        hosts: (host, port) of what it may be fetched from.
        allow: the same for `network.allow`, exceptions for private addresses included.
        read: host paths: local folders, certificates.
        env: variables of the tool.
        npmrc: lines of npm's user configuration: scopes' registries, and what authenticates.
        default: (host, port) of npm's registry for what has no scope, or one without its own.
        scopes: "@scope" → (host, port) of its registry.
    """

    label: str
    hosts: tuple[tuple[str, int], ...]
    allow: tuple[str, ...]
    read: tuple[str, ...]
    env: dict[str, str]
    npmrc: str = ""
    default: tuple[str, int] = ("", 0)
    scopes: Mapping[str, tuple[str, int]] = MappingProxyType({})


def pip_registry(python: str) -> Registry:
    """The indexes and folders that this host's pip uses.

    Raises:
        VsmError: pip cannot be asked, or names something that no registry is.
    """
    settings = parse_pip_settings(_ask([python, "-m", "pip", "config", "list"]))
    offline = settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}
    index = settings.get("index-url", _DEFAULT_INDEX)
    urls = [] if offline else [index, *settings.get("extra-index-url", "").split()]
    folders = settings.get("find-links", "").split()
    locations = [_location(text, "pip's configuration") for text in (*urls, *folders)]
    locations += [Location(*_COMPANIONS[one.host]) for one in locations if one.host in _COMPANIONS]
    env = {
        f"PIP_{key.replace('-', '_').upper()}": settings[key]
        for key in _PASSED_ON
        if key in settings
    }
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INPUT": "1", "PIP_NO_CACHE_DIR": "1"}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_RETRIES": settings.get("retries", "1")}
    if not offline:
        env["PIP_INDEX_URL"] = index
        env["PIP_EXTRA_INDEX_URL"] = settings.get("extra-index-url", "")
    env["PIP_FIND_LINKS"] = " ".join(folders)
    certificates = [settings[key] for key in _FILES if key in settings]
    return _registry(
        [*urls, *folders], locations, certificates, {k: v for k, v in env.items() if v}
    )


def npm_registry(scope: str = "") -> Registry:
    """The registries that this host's npm uses: its own, and those of scopes.

    Args:
        scope: of the package that is installed ("@scope" or ""), for what is said.

    Raises:
        VsmError: npm is missing or cannot be asked.
    """
    settings = _npm_settings()
    url = settings.get("registry", _DEFAULT_NPM)
    own = {
        key.partition(":")[0]: value
        for key, value in settings.items()
        if _SCOPE.fullmatch(key) and value.isprintable()
    }
    urls = [url, *own.values()]
    locations = [_location(one, "npm's configuration") for one in urls]
    certificate = settings.get("cafile", "")
    patience = settings.get("fetch-timeout", _NPM_PATIENCE)
    env = {
        "npm_config_registry": url,
        "npm_config_fetch_timeout": _PATIENCE if patience == _NPM_PATIENCE else patience,
    }
    if certificate:
        env["npm_config_cafile"] = certificate
    if settings.get("strict-ssl") == "False":
        env["npm_config_strict_ssl"] = "false"
    said = list(dict.fromkeys((own.get(scope, url), url)))
    made = _registry(said, locations, [certificate] if certificate else [], env)
    places = [(one.host, one.port) for one in locations]
    npmrc = "".join(f"{name}:registry={value}\n" for name, value in own.items())
    npmrc += "".join(_npm_credentials(one, settings) for one in dict.fromkeys(urls))
    scopes = dict(zip(own, places[1:], strict=True))
    return made._replace(npmrc=npmrc, default=places[0], scopes=scopes)


def _registry(
    sources: list[str], locations: list[Location], files: list[str], env: dict[str, str]
) -> Registry:
    hosts = tuple(dict.fromkeys((one.host, one.port) for one in locations if one.host))
    paths = [one.path for one in locations if one.path] + files
    return Registry(
        label=", ".join(without_password(text) for text in sources),
        hosts=hosts,
        allow=tuple(entry for host, port in hosts for entry in _allow(host, port)),
        read=tuple(dict.fromkeys(_existing(path) for path in paths if Path(path).exists())),
        env=env,
    )


def _allow(host: str, port: int) -> Iterator[str]:
    """The host, and, as the operator chose it, the private addresses that it has by now.

    Never a link-local one: no registry is there, but a cloud's metadata, and a name's owner
    chooses what it leads to.
    """
    literal = parse_literal(host)
    if literal:
        yield f"[{literal}]:{port}" if ":" in literal else f"{literal}:{port}"
        return
    if host != "localhost":
        yield f"{host}:{port}"
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return
    for address in dict.fromkeys(str(answer[4][0]) for answer in answers):
        reason = judge(address)
        if reason and not reason.startswith("link-local") and "%" not in address:
            yield f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _existing(path: str) -> str:
    """A local path; of an index called "simple" the folder above, where its files usually are."""
    real = Path(path).resolve()
    if real.name != "simple":
        return str(real)
    above = real.parent
    home = Path(os.path.expanduser("~"))  # unlike Path.home() also where there is none
    wide = str(above) in SHARED or above == home or above in home.parents
    return str(real if wide else above)


def _location(text: str, where: str) -> Location:
    try:
        return parse_location(text)
    except ValueError as error:
        raise VsmError(where, str(error), "Correct it.") from error


def _npm_settings() -> dict[str, str]:
    """Every setting of npm's, its defaults among them."""
    answer = _ask(["npm", "config", "list", "--json", "--loglevel=silent"])
    try:
        settings = json.loads(answer)
    except ValueError as error:
        raise VsmError("install", f"`npm config list` is no JSON: {error}") from error
    return {str(key): str(value) for key, value in settings.items() if value is not None}


def _ask(argv: list[str]) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True, cwd="/"
        )
    except FileNotFoundError:
        raise VsmError("install", f"there is no {argv[0]}", f"Install {argv[0]}.") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise VsmError("install", f"`{' '.join(argv)}` failed: {said[0][:200]}", "") from None
    except subprocess.TimeoutExpired:
        raise VsmError("install", f"`{' '.join(argv)}` does not end", "") from None
    return done.stdout


def _npm_credentials(url: str, settings: dict[str, str]) -> str:
    """The lines of npm's user and global configuration that are for this registry's host.

    With the values of variables that they name: where npm runs there are none of the host's.
    """
    prefix = "//" + without_password(url).partition("://")[2].partition("/")[0]
    lines = []
    for key in ("userconfig", "globalconfig"):
        path = Path(settings.get(key, os.devnull))
        if path.is_file() and os.access(path, os.R_OK):
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line.strip() for line in lines if _AUTHENTICATION.fullmatch(line.strip())]
    own = [line for line in kept if line.startswith((f"{prefix}/", f"{prefix}:"))]
    return "".join(f"{_VARIABLE.sub(_value, line)}\n" for line in own)


def _value(found: "re.Match[str]") -> str:
    """Of a variable; one that is not set, or that a line cannot hold, stays as it is written."""
    value = os.environ.get(found[1], "")
    return value if value and value.isprintable() else found[0]


def python_with_pip() -> tuple[str, str]:
    """A Python like this one that has pip, and the folder of that pip.

    Raises:
        VsmError: there is none.
    """
    own = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in dict.fromkeys((sys.executable, base_python(), own)):
        if Path(python).exists():
            command = [python, "-c", _FIND_PIP]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
            if done.returncode == 0:
                return python, done.stdout.strip()
    raise VsmError("install", f"no pip for {sys.executable}", "Run `python -m ensurepip` for it.")


def base_python() -> str:
    """The interpreter that a virtual environment of this Python stands on."""
    return str(getattr(sys, "_base_executable", sys.executable))
