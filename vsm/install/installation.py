"""Installing a server from npm or PyPI: confined, pinned, all or nothing.

Runs in the command line. Owns the order: fetch, compare the hashes with those ever seen, unpack,
make read-only, record. Nothing of a package is run, and nothing is there before all of it is.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from vsm import __version__
from vsm.core.egress import compile_rules
from vsm.core.packages import Package, is_server_name, parse_package, server_name
from vsm.errors import ConfigurationError, NotFoundError, VsmError
from vsm.install.node import NodeInstaller
from vsm.install.python import WHEELS, PythonInstaller
from vsm.install.store import CURRENT, HASHES_FILE, PinnedFile, Server, ServerStore
from vsm.install.tree import freeze, remove

_TEMPORARY: Final = ("tmp", WHEELS)
_WITHOUT_SCRIPT: Final = "if the server does not work without it, look for another version."
Installer = PythonInstaller | NodeInstaller
Say = Callable[[str], None]


def _silent(_line: str) -> None:
    """Nobody watches."""


def install(
    text: str, *, name: str = "", allow: tuple[str, ...] = (), say: Say = _silent
) -> tuple[Server, bool]:
    """Install one exact version; (the server, whether anything was done).

    Args:
        text: "npm:NAME@VERSION" or "pypi:NAME==VERSION"; without a version, the newest now.
        name: of the server; "" derives it from the package.
        allow: further hosts that files may come from.
        say: told of each step.

    Raises:
        VsmError: it could not be; everything is as before.
    """
    package = _parse(text)
    name = name or server_name(package)
    if not is_server_name(name):
        remedy = "Give one with --name: [a-z0-9][a-z0-9_-]*, at most 32 characters."
        raise ConfigurationError("--name", f"{name[:60]!r} is no name for a server", remedy)
    if not package.version:
        found = package._replace(version=newest(package.kind, package.name, allow))
        package = _parse(str(found))  # the registry's word
    store = ServerStore()
    with store.locked():
        before = store.server(name)
        if before and (before.kind, before.package) != (package.kind, package.name):
            what = f"{name} is {before.kind}:{before.package} already"
            raise ConfigurationError(str(package), what, "Give another --name, or uninstall it.")
        if before and before.version == package.version:
            return before, False
        return _install(store, package, name, before=before, allow=allow, say=say), True


def _install(
    store: ServerStore,
    package: Package,
    name: str,
    *,
    before: Server | None,
    allow: tuple[str, ...],
    say: Say,
) -> Server:
    with store.build(name, package.version) as build:
        installer = _installer(package, build, allow)
        say(f"fetching {package} from {installer.registry.label}")
        files = installer.fetch()
        hashes = _compare(package, files, store.hashes())
        for one in files:
            if one.install_script:
                say(f"{one.file} brings an install script, which is not run: {_WITHOUT_SCRIPT}")
        say(f"unpacking {len(files)} packages, offline" if package.kind == "pypi" else "unpacking")
        installer.unpack(files)
        command, commands = installer.commands()
        current = store.folder / name / CURRENT
        server = Server(
            name=name,
            kind=package.kind,
            package=package.name,
            version=package.version,
            registry=installer.registry.label,
            runtime=installer.runtime,
            installed_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            vsm=__version__,
            directory=build.name,
            previous=before.directory if before else "",
            command=installer.argv(current, command) if command else (),
            commands=commands,
            files=files,
        )
        for temporary in _TEMPORARY:
            remove(build / temporary)
        freeze(build, installer.links_out)
        store.commit(server, hashes)
    return server


def uninstall(names: Iterable[str]) -> list[Server]:
    """Remove servers and all their versions; what they were, of kind "" if a record is damaged.

    Raises:
        VsmError: one of them is not there; nothing is removed.
    """
    store = ServerStore()
    with store.locked():
        servers = [_present(store, name) for name in dict.fromkeys(names)]
        for server in servers:
            store.remove(server.name)
    return servers


def _present(store: ServerStore, name: str) -> Server:
    try:
        server = store.server(name) if is_server_name(name) else None
    except VsmError:
        return _unknown(name)
    if server is None:
        known = ", ".join(one.name for one in store.servers()) or "none"
        raise NotFoundError(name[:60], "no such server is installed", f"Installed: {known}.")
    return server


def _unknown(name: str) -> Server:
    """What stands for a server whose record cannot be read."""
    return Server(
        name=name,
        kind="",
        package="",
        version="",
        registry="",
        runtime="",
        installed_at="",
        vsm="",
        directory="",
    )


def installed() -> list[Server]:
    """Every installed server, by name."""
    return ServerStore().servers()


def latest(server: Server, allow: tuple[str, ...] = ()) -> str:
    """The newest version that the registry has; "" if it does not say.

    Raises:
        VsmError: it could not be asked.
    """
    return _ask(Package(server.kind, server.package, server.version), allow)


def newest(kind: str, name: str, allow: tuple[str, ...] = ()) -> str:
    """The newest version of a package.

    Raises:
        VsmError: the registry names none.
    """
    version = _ask(Package(kind, name, ""), allow)
    if not version:
        raise VsmError(f"{kind}:{name}", "the registry names no version of it", "Correct its name.")
    return version


def _ask(package: Package, allow: tuple[str, ...]) -> str:
    store = ServerStore()
    with store.locked(), store.scratch() as build:
        return _installer(package, build, allow).latest()


def _parse(text: str) -> Package:
    try:
        return parse_package(text)
    except ValueError as error:
        what, _, remedy = str(error).partition(". ")
        raise ConfigurationError("install", what, remedy) from error


def _installer(package: Package, build: Path, allow: tuple[str, ...]) -> Installer:
    try:
        compile_rules(allow)
    except ValueError as error:
        raise ConfigurationError("--allow", str(error), "Write HOST:PORT.") from error
    kind = PythonInstaller if package.kind == "pypi" else NodeInstaller
    return kind(package, build, allow)


def _compare(
    package: Package, files: tuple[PinnedFile, ...], known: dict[str, str]
) -> dict[str, str]:
    """The hashes to remember; a file that once had another one is refused."""
    fetched: dict[str, str] = {}
    for one in files:
        key, value = f"{package.kind}:{one.file}", one.hash
        if fetched.setdefault(key, value) != value:
            remedy = "Do not trust this registry."
            raise VsmError(str(package), f"{key} comes with two different hashes", remedy)
        if known.get(key, value) != value:
            raise VsmError(
                str(package),
                f"{key} has another hash than when it was installed before: "
                f"{value}, not {known[key]}",
                f"Find out why; only then remove its line from servers/{HASHES_FILE}.",
            )
    return fetched
