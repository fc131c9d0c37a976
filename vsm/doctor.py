"""Checks of this host and this installation, each with what to do about it.

Read-only, apart from the trials of `vsm.confinement.probe`, which run in children. Runs as the
person at the terminal: what it reports is what `vsm up` would get if that person typed it.
"""

import importlib.metadata
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vsm.commands.control_client import NotRunningError, connect
from vsm.commands.status import WEAKNESS
from vsm.configuration.config import Config, Integration, load_config
from vsm.errors import VsmError
from vsm.paths import CONTROL_SOCKET, LOCK, MCP_SOCKET, runtime_dir, shipped_profiles, state_dir

Result = Literal["ok", "warn", "fail"]

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
OLDEST_NODE = 18
PRIVATE_TO_OWNER = 0o022


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
    yield from _layers()
    yield _profiles()
    yield from _directories()
    yield from _sockets()
    yield _node()
    yield from _configuration(config_path)


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


def _layers() -> Iterator[Finding]:
    """What confinement this host gives, each layer by a trial."""
    from vsm.confinement.probe import layer_table, probe_host

    results: dict[str, Result] = {"works": "ok", "weaker": "warn", "absent": "fail"}
    facts = probe_host()
    detail = f"{facts.tier} for uid {facts.uid}, kernel {facts.kernel}, {facts.architecture}"
    tier_result: Result = "ok" if facts.tier == "namespaced" else "warn"
    yield Finding(check="tier", result=tier_result, detail=detail)
    for row in layer_table(facts):
        yield Finding(
            check=f"layer {row.layer}",
            result=results[row.state],
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
    yield _directory("state directory", state_dir(), "VSM_STATE_DIR")


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
    if not (folder / name).exists():
        return Finding(check=name, result="ok", detail="no vsm is running")
    try:
        connect(name).close()
    except NotRunningError:
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


def _configuration(path: Path | None) -> Iterator[Finding]:
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
    yield from _integrations(config)


def _integrations(config: Config) -> Iterator[Finding]:
    for name, integration in config.integrations.items():
        yield _attempt(f"integration {name}", partial(_examined, integration))
        if integration.zygote:
            remedy = "Leave zygote out, and set spares, where sessions must not trust each other."
            yield Finding(check=f"zygote {name}", result="warn", detail=WEAKNESS, remedy=remedy)


def _attempt(check: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding(check=check, result="ok", detail=action())
    except VsmError as error:
        return _from_error(check, error)


def _examined(integration: Integration) -> str:
    """Look for the command and the profile as a start would; nothing is started."""
    from vsm.confinement.closure import closure
    from vsm.processes.zygote import zygote_argv
    from vsm.supervision.provision import profile_of

    profile = profile_of(integration)
    environment = {**profile.environment, **integration.env}
    found = closure(integration.command, env=environment, cwd=integration.cwd)
    if integration.zygote:
        argv = (found.executable, *integration.command[1:])
        zygote_argv(argv, where=f"integrations.{integration.name}.command")
    return f"{found.executable}, profile {profile.name}"


def _from_error(check: str, error: VsmError) -> Finding:
    detail = f"{error.where}: {error.what}" if error.where else error.what
    return Finding(check=check, result="fail", detail=detail, remedy=error.remedy)
