"""Taking over the servers of a desktop client: installs, secrets, vsm.toml, in this order.

Runs in the command line. `describe` only says what would be done; `apply` does it. A secret goes
into a file of its own, readable by its owner only, before vsm.toml names it; vsm.toml is
replaced as a whole at the end, after everything that it names is there.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from vsm import paths
from vsm.configuration.config import compile_config, load_config
from vsm.core.client_entries import (
    Entry,
    Wanted,
    before_secret,
    is_secret,
    is_secret_header,
    parse_entries,
)
from vsm.errors import ConfigurationError, VsmError
from vsm.install.installation import install, newest
from vsm.install.store import Server

HIDDEN: Final = "(as it is)"
INSTALLED: Final = "(the installed command)"
_MOST_BYTES: Final = 64 << 20  # clients keep whole histories beside their servers
# What a URL tells of who asks: its name and password, its parameters.
_IN_URLS: Final = re.compile(r"(?<=://)[^/\s]*(?=@)|(?<=[?&])([^=&#\s]+)=[^&#\s]*")
_PROFILES: Final = {"npm": "node-server", "pypi": "python-server"}
Say = Callable[[str], None]


class Taken(NamedTuple):
    """An entry as it goes into vsm.toml.

    Args:
        command: the argv.
        secrets: variable → file.
    """

    entry: Entry
    command: tuple[str, ...]
    profile: str
    secrets: dict[str, str]


def read_client_file(path: Path) -> list[Entry]:
    """The entries of a client's configuration.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(str(path), str(error.strerror), "Check the path.") from error
    if len(content) > _MOST_BYTES:
        remedy = "Copy its mcpServers into a file of their own."
        raise ConfigurationError(str(path), f"has more than {_MOST_BYTES >> 20} MiB", remedy)
    try:
        return parse_entries(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(str(path), f"cannot be read: {error}", "Correct it.") from error


def describe(entry: Entry) -> Iterator[str]:
    """What becomes of an entry, with the exact commands; no value of a secret."""
    if entry.refused:
        yield f"cannot be taken over: {entry.refused}"
        return
    if entry.package:
        yield f"vsm install {_spec(entry.package, entry.package.version)} --name {entry.name}"
        if not entry.package.version:
            yield "  without a version: the registry is asked once, and the newest is pinned"
    for variable in entry.secrets:
        yield f"{variable} moves to {secret_file(entry.name, variable)}"
    yield from entry.remarks
    yield "goes into vsm.toml:"
    for line in _table(_foreseen(entry)).strip().splitlines():
        yield f"  {line}"


def _spec(package: Wanted, version: str) -> str:
    """The package as `vsm install` takes it."""
    separator = "==" if package.kind == "pypi" else "@"
    return f"{package.kind}:{package.name}" + (f"{separator}{version}" if version else "")


def _foreseen(entry: Entry) -> Taken:
    """The entry as it may be shown before anything is installed."""
    argv = tuple(_without_secrets(map(_without_password, entry.argv)))
    env = {variable: _without_password(value) for variable, value in entry.env.items()}
    shown = entry._replace(argv=argv, env=env, url=_without_password(entry.url))
    return _planned(shown, INSTALLED)


def _planned(entry: Entry, installed: str) -> Taken:
    """The entry, with this in the place of the command that is not installed yet."""
    secrets = {variable: str(secret_file(entry.name, variable)) for variable in entry.secrets}
    if entry.package is None:
        return Taken(entry, entry.argv, "integration", secrets)
    return Taken(entry, (installed, *entry.argv), _PROFILES[entry.package.kind], secrets)


def _without_secrets(argv: Iterable[str]) -> Iterator[str]:
    """The words, but for values of options that sound secret: they are not for a terminal."""
    hide = False
    for word in argv:
        option, has_value, _ = word.partition("=")
        secret = option.startswith("-") and is_secret(option.strip("-").replace("-", "_"))
        if hide:
            yield HIDDEN
        else:
            yield f"{option}={HIDDEN}" if secret and has_value else _without_header(word)
        hide = secret and not has_value  # what follows a flag that only sounds so is hidden too


def _without_header(word: str) -> str:
    """A word, but for the value of a header that holds a secret."""
    name, colon, _ = word.partition(":")
    if colon and is_secret_header(name.rpartition("=")[2].strip()):
        return f"{name}: {HIDDEN}"
    shown = before_secret(word)
    return word if shown is None else shown + HIDDEN


def _without_password(text: str) -> str:
    """A text, but for what lets its holder in at a URL in it."""

    def hidden(found: "re.Match[str]") -> str:
        key = found[1]
        if key is None:
            return HIDDEN
        return f"{key}={HIDDEN}" if is_secret(key.replace("-", "_")) else found[0]

    return _IN_URLS.sub(hidden, text)


def secret_file(name: str, variable: str) -> Path:
    """Where a secret of an integration is kept."""
    return paths.state_dir() / "secrets" / f"{name}.{variable}"


def apply(entries: list[Entry], config: Path, say: Say) -> tuple[list[Taken], dict[str, VsmError]]:
    """Install, store the secrets, add to the configuration; what was added, and what failed.

    One that cannot be installed, or is there already, does not keep the others back.

    Raises:
        VsmError, OSError: something else failed; vsm.toml is as before, and no secret was copied.
            What was installed stays installed.
        BaseException: interrupted; either that, or everything is done.
    """
    wanted = [entry for entry in entries if not entry.refused]
    known = load_config(config).integrations if config.exists() else {}
    if wanted:
        _replace(config, "", keep=False)  # before minutes of installing, not after
    failed = _unfit(wanted, config, known, say)
    wanted = [entry for entry in wanted if entry.name not in failed]
    new = {
        path
        for entry in wanted
        for path in (secret_file(entry.name, variable) for variable in entry.secrets)
        if not path.exists()
    }
    try:
        taken = []
        for entry in wanted:
            try:
                command, profile = _installed(entry, say)
            except VsmError as error:
                failed[entry.name] = error
                say(f"{entry.name} is left out: {error}")
            else:
                taken.append(Taken(entry, command, profile, _stored(entry)))
        if taken:
            _replace(config, "".join(_table(one) for one in taken))
    except BaseException:
        named = _text(config)
        for path in new:
            if _toml(str(path)) not in named:  # else interrupted when it was there already
                path.unlink(missing_ok=True)
        raise
    return taken, failed


def _unfit(
    entries: Iterable[Entry], config: Path, known: Container[str], say: Say
) -> dict[str, VsmError]:
    """Those that the configuration has already, or would not be read with, by name."""
    before = _text(config)
    failed: dict[str, VsmError] = {}
    for entry in entries:
        if entry.name in known:
            what = f"{config} has an integration of that name already"
            failed[entry.name] = VsmError(entry.name, what, "Rename or remove it.")
            continue
        try:
            table = tomllib.loads(before + _table(_planned(entry, "installed")))
            compile_config(table, config.absolute())
            "".join(entry.secrets.values()).encode()  # as they are stored
        except (ConfigurationError, ValueError) as error:
            odd = VsmError(entry.name, "has a text that no configuration can have", "Correct it.")
            failed[entry.name] = error if isinstance(error, VsmError) else odd
            say(f"{entry.name} is left out: {failed[entry.name]}")
    return failed


def _installed(entry: Entry, say: Say) -> tuple[tuple[str, ...], str]:
    """The argv of an entry and its profile; what it needs is installed."""
    package = entry.package
    if package is None:
        return entry.argv, "integration"
    version = package.version or newest(package.kind, package.name)
    server, _ = install(_spec(package, version), name=entry.name, say=say)
    return (*_server_command(server, package.command), *entry.argv), _PROFILES[package.kind]


def _stored(entry: Entry) -> dict[str, str]:
    """Variable → the file that now has its value."""
    return {
        variable: _store_secret(secret_file(entry.name, variable), value)
        for variable, value in entry.secrets.items()
    }


def _server_command(server: Server, wanted: str) -> tuple[str, ...]:
    """The argv of an installed server."""
    known = ", ".join(server.commands) or "none"
    if not server.command or (wanted and Path(server.command[-1]).name != wanted):
        if wanted in server.commands and server.kind == "pypi":
            folder = paths.state_dir() / "servers" / server.name / "current" / "env" / "bin"
            return (str(folder / wanted),)
        if not server.command or wanted not in server.commands:
            what = f"it is not clear which of its commands is the server: {known}"
            raise VsmError(server.name, what, "Write its entry in vsm.toml by hand.")
    return server.command


def _store_secret(path: Path, value: str) -> str:
    paths.ensure_state_dir()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = path.with_name(f".{path.name}")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(value)
        fresh.rename(path)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise VsmError(str(path), what, f"Mend that in {path.parent}; nothing changed.") from error
    finally:
        fresh.unlink(missing_ok=True)
    return str(path)


def _table(taken: Taken) -> str:
    """The entry for vsm.toml; JSON texts and lists are TOML's as well."""
    entry = taken.entry
    lines = [f"\n[integrations.{entry.name}]", *_what(taken)]
    if entry.cwd:
        lines.append(f"cwd = {_toml(entry.cwd)}")
    if entry.unseen:  # for a person to decide, so it stays a comment
        lines.append(f"# read = {_toml(list(entry.unseen))}   # or write")
    if not entry.enabled:
        lines.append("enabled = false")
    if entry.env:
        rows = ", ".join(f"{key} = {_toml(value)}" for key, value in entry.env.items())
        lines.append(f"env = {{ {rows} }}")
    sources = [f"{_toml(k)} = {{ file = {_toml(v)} }}" for k, v in taken.secrets.items()]
    if entry.url:
        sources += [f"{_toml(key)} = {_toml(value)}" for key, value in entry.headers.items()]
    if sources:
        lines.append(f"{'headers' if entry.url else 'secrets'} = {{ {', '.join(sources)} }}")
    return "\n".join(lines) + "\n"


def _what(taken: Taken) -> list[str]:
    """The lines that say what it is."""
    entry = taken.entry
    if not entry.url:
        return [f"command = {_toml(list(taken.command))}", f"profile = {_toml(taken.profile)}"]
    addresses = [f"addresses = {_toml(list(entry.addresses))}"] if entry.addresses else []
    return [f"url = {_toml(entry.url)}", *addresses]


def _toml(value: Any) -> str:  # noqa: ANN401 - texts and lists of them
    # JSON leaves U+007F as it is, which TOML forbids in a text.
    return json.dumps(value).replace("\x7f", "\\u007f")


def _text(config: Path) -> str:
    """What a configuration says; "" where there is none."""
    return config.read_text(encoding="utf-8") if config.exists() else ""


def _replace(config: Path, added: str, *, keep: bool = True) -> None:
    """Add to a configuration, replaced as a whole once it was checked; or only find out if it can.

    Raises:
        ConfigurationError: its folder cannot be written, or vsm would not read it there.
    """
    before = _text(config)
    fresh = config.with_name(f".{config.name}.import.toml")
    try:
        fresh.unlink(missing_ok=True)
        with fresh.open("x", encoding="utf-8") as file:  # through no link of somebody else's
            file.write((before + added).lstrip("\n"))
            if config.exists():
                os.fchmod(file.fileno(), config.stat().st_mode & 0o755)
        load_config(fresh)
        if keep:
            fresh.rename(config)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise ConfigurationError(str(config), what, "Name another file with --config.") from error
    finally:
        fresh.unlink(missing_ok=True)
