"""Checks of this host and this installation, each with what to do about it.

Read-only, apart from the trials of `vsm.confinement.probe`, which run in children. Runs as the
person at the terminal: what it reports is what `vsm up` would get if that person typed it.
"""

import importlib.metadata
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from vsm.commands.control_client import NotRunningError, connect
from vsm.commands.status import WEAKNESS
from vsm.configuration.config import Config, Integration, load_config
from vsm.errors import VsmError
from vsm.paths import CONTROL_SOCKET, LOCK, MCP_SOCKET, runtime_dir, shipped_profiles, state_dir

if TYPE_CHECKING:
    from vsm.confinement.execution import Plan
    from vsm.confinement.probe import HostFacts

Result = Literal["ok", "warn", "fail"]

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
OLDEST_NODE = 18
PRIVATE_TO_OWNER = 0o022
_SELDOM_NEEDED: Final = {"io"}  # by profiles with limits.io_read or io_write alone


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    check: str
    result: Result
    detail: str
    remedy: str = ""


def examine(config_path: Path | None) -> Iterator[Finding]:
    """Run every check, one after the other, and yield each finding as it is made."""
    yield _python()
    yield _packages()
    from vsm.confinement.probe import probe_host

    facts = probe_host()
    yield from _layers(facts)
    yield _profiles()
    yield from _directories()
    yield from _sockets()
    yield _node()
    yield from _configuration(config_path, facts)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    detail = f"{version} at {sys.executable}"
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        remedy = "Use Python 3.11, 3.12 or 3.13."
        return Finding(check="python", result="fail", detail=detail, remedy=remedy)
    return Finding(check="python", result="ok", detail=detail)


def _packages() -> Finding:
    """Compare what vsm needs with what is installed, by metadata: nothing is imported."""
    try:
        needed = importlib.metadata.requires("vsm") or []
    except importlib.metadata.PackageNotFoundError:
        remedy = "Run `pip install -e .` in the checkout."
        return Finding(check="packages", result="fail", detail="not installed", remedy=remedy)
    names = [_requirement_name(line) for line in needed if "extra ==" not in line]
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        remedy = "Run `pip install --force-reinstall vsm`."
        detail = f"missing: {', '.join(missing)}"
        return Finding(check="packages", result="fail", detail=detail, remedy=remedy)
    return Finding(check="packages", result="ok", detail=f"{len(names)} dependencies are there")


def _requirement_name(line: str) -> str:
    end = next((i for i, char in enumerate(line) if not (char.isalnum() or char in "-_.")), None)
    return line[:end]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _layers(facts: "HostFacts") -> Iterator[Finding]:
    """What confinement this host gives, each layer by a trial.

    Whether an integration's profile can do without one that is absent, its own finding says.
    """
    from vsm.confinement.probe import layer_table

    results: dict[str, Result] = {"works": "ok", "weaker": "warn", "absent": "fail"}
    detail = f"{facts.tier} for uid {facts.uid}, kernel {facts.kernel}, {facts.architecture}"
    tier_result: Result = "ok" if facts.tier == "namespaced" else "warn"
    yield Finding(check="tier", result=tier_result, detail=detail)
    for row in layer_table(facts):
        bearable = row.state == "absent" and row.layer in _SELDOM_NEEDED
        yield Finding(
            check=f"layer {row.layer}",
            result="warn" if bearable else results[row.state],
            detail=row.detail,
            remedy=row.remedy,
        )


def _profiles() -> Finding:
    from vsm.configuration.profile import list_profiles

    try:
        names = [profile.name for profile in list_profiles()]
    except VsmError as error:
        return Finding(check="profiles", result="fail", detail=str(error))
    detail = f"{len(names)} profiles; shipped ones in {shipped_profiles()}"
    return Finding(check="profiles", result="ok" if names else "fail", detail=detail)


def _directories() -> Iterator[Finding]:
    yield _directory("runtime directory", runtime_dir(), "VSM_RUNTIME_DIR")
    try:
        state = state_dir()
    except VsmError as error:
        yield _from_error("state directory", error)
    else:
        yield _directory("state directory", state, "VSM_STATE_DIR")


def _directory(check: str, path: Path, variable: str) -> Finding:
    remedy = f"Remove it, or point {variable} at a directory of your own."
    try:
        status = path.lstat()
    except FileNotFoundError:
        return _absent_directory(check, path, variable)
    except OSError as error:
        detail = f"{path}: {error.strerror}"
        return Finding(check=check, result="fail", detail=detail, remedy=remedy)
    if not stat.S_ISDIR(status.st_mode):
        return Finding(check=check, result="fail", detail=f"{path} is no folder", remedy=remedy)
    if status.st_uid != os.geteuid() or status.st_mode & PRIVATE_TO_OWNER:
        detail = f"{path} belongs to uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
        return Finding(check=check, result="fail", detail=detail, remedy=remedy)
    return Finding(check=check, result="ok", detail=str(path))


def _absent_directory(check: str, path: Path, variable: str) -> Finding:
    above = next(folder for folder in path.parents if folder.exists())
    if os.access(above, os.W_OK | os.X_OK):
        return Finding(check=check, result="ok", detail=f"{path} will be made by `vsm up`")
    remedy = f"Point {variable} at a directory of your own."
    detail = f"{path} cannot be made: {above} is not writable"
    return Finding(check=check, result="fail", detail=detail, remedy=remedy)


def _sockets() -> Iterator[Finding]:
    folder = runtime_dir()
    for name in (CONTROL_SOCKET, MCP_SOCKET):
        yield _socket(folder, name)


def _socket(folder: Path, name: str) -> Finding:
    try:
        connect(name).close()
    except NotRunningError:
        if not os.path.lexists(folder / name):
            return Finding(check=name, result="ok", detail="no vsm is running")
        remedy = f"`vsm up` replaces it; check {folder / LOCK} if it does not."
        detail = f"stale: {folder / name}"
        return Finding(check=name, result="warn", detail=detail, remedy=remedy)
    except VsmError as error:
        return _from_error(name, error)
    return Finding(check=name, result="ok", detail="a vsm is running and answers")


def _node() -> Finding:
    path = shutil.which("node")
    if path is None:
        remedy = "Run: apt-get install -y nodejs npm"
        return Finding(check="node", result="warn", detail="absent (npm servers)", remedy=remedy)
    version = _node_version(path)
    detail = f"{version or 'does not run'} at {path}"
    major = version.removeprefix("v").split(".")[0]
    if not major.isdigit() or int(major) < OLDEST_NODE:
        remedy = f"Install node {OLDEST_NODE} or later; most npm servers need it."
        return Finding(check="node", result="warn", detail=detail, remedy=remedy)
    return Finding(check="node", result="ok", detail=detail)


def _node_version(path: str) -> str:
    import subprocess

    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _configuration(path: Path | None, facts: "HostFacts") -> Iterator[Finding]:
    if path is None:
        yield Finding(check="configuration", result="ok", detail="none given: no integrations")
        return
    try:
        config = load_config(path)
    except VsmError as error:
        yield _from_error("configuration", error)
        return
    detail = f"{path}: {len(config.integrations)} integrations"
    yield Finding(check="configuration", result="ok", detail=detail)
    yield from _integrations(config, facts)


def _integrations(config: Config, facts: "HostFacts") -> Iterator[Finding]:
    from vsm.confinement import cgroup
    from vsm.supervision.provision import Host, check, integration_uids, visible, written_paths

    host = Host(facts, cgroup.Cgroups(facts.cgroup), written=written_paths(config))
    if facts.root:
        host.uids = integration_uids(config)
    for name, integration in config.integrations.items():
        try:
            plan = check(host, integration, host.uids.get(name))
        except VsmError as error:
            yield _from_error(f"integration {name}", error)
        else:
            yield _confined(integration, plan)
            yield from _unseen(integration, visible(host, integration))
        yield from _own_folders(integration)
        if integration.zygote:
            remedy = "Leave zygote out, and set spares, where sessions must not trust each other."
            yield Finding(check=f"zygote {name}", result="warn", detail=WEAKNESS, remedy=remedy)


def _own_folders(integration: Integration) -> Iterator[Finding]:
    """What it is granted and vsm's own folders lie in: it sees what file permissions leave open."""
    folders = [runtime_dir()]
    with suppress(VsmError):  # said already
        folders.insert(0, state_dir())
    for path in (*integration.read, *integration.write):
        real = os.path.realpath(path)
        for own in folders:
            if os.path.commonpath([real, os.path.realpath(own)]) == real:
                what = f"{path} includes {own}: secrets of other integrations, tokens, records"
                remedy = "Name the folders that it needs, or move vsm's: $VSM_STATE_DIR."
                check = f"grants {integration.name}"
                yield Finding(check=check, result="warn", detail=what, remedy=remedy)


def _confined(integration: Integration, plan: "Plan") -> Finding:
    """By which profile it would be confined here, and how well; nothing is started or made."""
    from vsm.confinement.execution import ABSENT

    lacks = ", ".join(layer["name"] for layer in plan.layers if layer["state"] == ABSENT)
    detail = f"{plan.argv[0]}, profile {integration.profile}, {plan.tier}, "
    detail += f"lacks {lacks or 'nothing'}"
    return Finding(check=f"integration {integration.name}", result="ok", detail=detail)


def _unseen(integration: Integration, seen: tuple[str, ...]) -> Iterator[Finding]:
    """Host paths in its command and variables that it would not find: most servers then end."""
    words = [word.rpartition("=")[2] for word in integration.command[1:]]
    for path in dict.fromkeys((*words, *integration.env.values())):
        there = path if os.path.exists(path) else os.path.dirname(path)  # of what it would make
        if not path.startswith("/") or there == "/" or not os.path.exists(there):
            continue
        if path.startswith(("/dev/", "/proc/")):  # a worker has its own
            continue
        real = os.path.realpath(path)
        if not any(os.path.commonpath([one, name]) == one for one in seen for name in (path, real)):
            what = f"{path} is in its command or env, and not visible to it"
            remedy = f"Add {there} to read or write of [integrations.{integration.name}]."
            check = f"paths {integration.name}"
            yield Finding(check=check, result="warn", detail=what, remedy=remedy)


def _from_error(check: str, error: VsmError) -> Finding:
    detail = f"{error.where}: {error.what}" if error.where else error.what
    return Finding(check=check, result="fail", detail=detail, remedy=error.remedy)
