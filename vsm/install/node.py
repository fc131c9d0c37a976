"""Installing from npm's registry: lock with every hash, check the lock, unpack without scripts.

Two confined steps, none of which runs anything of a package: `npm install --package-lock-only`
and `npm ci --ignore-scripts`, both with the registry in reach and nothing else. Between them the
lock is read: every package has to be of that registry and pinned by its hash. Runs in the command
line.

There is no git for npm: a dependency from a git repository has no hash, and npm would run git, and
another npm inside what git fetched.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from vsm.core.egress import compile_rules
from vsm.core.packages import Package, Sources, choose_command, parse_bins, parse_npm_lock
from vsm.errors import VsmError
from vsm.install.python import describe_unreached, disk_is_full, last_words
from vsm.install.registry import Registry, npm_registry
from vsm.install.sandbox import Done, InstallSandbox
from vsm.install.store import PinnedFile
from vsm.install.tree import read_file, write_file

LOCK: Final = "package-lock.json"
_NPMRC: Final = "npmrc"
_GLOBAL: Final = "globalrc"
_QUIET: Final = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
_MOST_JSON_BYTES: Final = 32 << 20  # the lock of a thousand packages has one
NO_GIT: Final = "/vsm-gives-npm-no-git"
_KNOWN_WORDS: Final = (
    (
        NO_GIT,
        "it needs something from a git repository, which nothing pins",
        "Do not trust it, or choose another version.",
    ),
    ("E404", "there is no such package", "Correct its name."),
)
_NO_ANSWER: Final = (
    *("ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENOTFOUND", "EAI_AGAIN", "ERR_SOCKET_TIMEOUT"),
    *("UNABLE_TO_", "CERT_", "self-signed", "EIDLETIMEOUT", "network"),
)


class NodeInstaller:
    """One package from npm.

    Args:
        package: what.
        build: where its tree is made.
        extra: further hosts that it may fetch from.
    """

    def __init__(self, package: Package, build: Path, extra: tuple[str, ...] = ()) -> None:
        self._package = package
        self._build = build
        scope = package.name.partition("/")[0] if package.name.startswith("@") else ""
        self.registry: Registry = npm_registry(scope)
        self._extra = extra
        self._allow = (*self.registry.allow, *extra)
        self._sandbox = InstallSandbox(build, self.registry.read)
        self.links_out: frozenset[str] = frozenset()

    @property
    def runtime(self) -> str:
        """The interpreter's version."""
        node = shutil.which("node")
        if node is None:
            raise VsmError("install", "there is no node", "Install node.")
        done = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
        return f"node {done.stdout.strip().lstrip('v')}"

    def fetch(self) -> tuple[PinnedFile, ...]:
        """Have npm write the lock, and check it.

        Raises:
            VsmError: there is no such package or version, no registry, or the lock is not safe.
        """
        wanted = {"private": True, "dependencies": {self._package.name: self._package.version}}
        write_file(self._build, "package.json", json.dumps(wanted))
        done = self._npm(["install", "--package-lock-only"])
        if done.status != 0:
            raise disk_is_full(done, self._package) or self._explain(done)
        lock = self._read(LOCK)
        try:
            locked = list(parse_npm_lock(lock, self._sources()))
        except ValueError as error:
            remedy = "It cannot be installed safely; see --allow for a second registry."
            raise VsmError(str(self._package), str(error), remedy) from error
        return tuple(
            PinnedFile(
                name=one.name,
                version=one.version,
                file=f"{one.name}@{one.version}",
                hash=one.integrity,
                install_script=one.script,
            )
            for one in locked
        )

    def unpack(self, files: tuple[PinnedFile, ...]) -> None:
        """Fetch and unpack exactly what the lock says."""
        del files  # they are the lock's
        done = self._npm(["ci"])
        if done.status != 0:
            raise disk_is_full(done, self._package) or VsmError(
                str(self._package), f"npm refuses it: {last_words(done)}", ""
            )

    def commands(self) -> tuple[str, tuple[str, ...]]:
        """(the server's command, all commands); the first is "" where it is unclear."""
        bins = self._bins()
        return choose_command(sorted(bins), self._package), tuple(sorted(bins))

    def argv(self, current: Path, command: str) -> tuple[str, ...]:
        """The argv of a command, for vsm.toml."""
        script = current / "node_modules" / self._package.name / self._bins()[command]
        return ("node", str(script))

    def latest(self) -> str:
        """The newest version that the registry has; "" if it does not say.

        Raises:
            VsmError: it has no such package, or could not be asked.
        """
        done = self._view()
        if done.status != 0:
            raise self._explain(done)
        return _version(done)

    def _view(self) -> Done:
        return self._npm(["view", self._package.name, "version"])

    # -- steps -------------------------------------------------------------------------------------

    def _sources(self) -> Sources:
        by_hand = compile_rules(self._extra)
        return Sources(self.registry.default, self.registry.scopes, by_hand.allows)

    def _bins(self) -> dict[str, str]:
        root = f"node_modules/{self._package.name}"
        bins = parse_bins(self._read(f"{root}/package.json"), self._package.name)
        return {name: path for name, path in bins.items() if (self._build / root / path).is_file()}

    def _read(self, path: str) -> Any:  # noqa: ANN401 - JSON
        try:
            return json.loads(read_file(self._build, path, _MOST_JSON_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise VsmError(str(self._package), f"{path}: {error}", "") from error

    def _npm(self, words: list[str]) -> Done:
        home = self._build / "tmp"
        home.mkdir(exist_ok=True)
        write_file(self._build, f"{home.name}/{_NPMRC}", self.registry.npmrc, 0o600)
        write_file(self._build, f"{home.name}/{_GLOBAL}", "")
        env = {
            **self.registry.env,
            "HOME": str(home),
            "TMPDIR": str(home),
            "npm_config_cache": str(home / "cache"),
            "npm_config_userconfig": str(home / _NPMRC),
            "npm_config_globalconfig": str(home / _GLOBAL),
            "npm_config_update_notifier": "false",
            "npm_config_git": NO_GIT,  # the environment counts over any .npmrc of a folder
            "npm_config_fetch_retries": "1",
            "npm_config_fetch_retry_mintimeout": "1000",
            "NODE_OPTIONS": "--dns-result-order=ipv4first",
        }
        return self._sandbox.run(["npm", *words, *_QUIET], env=env, allow=self._allow)

    def _explain(self, done: Done) -> VsmError:
        where = str(self._package)
        if done.timed_out:
            return VsmError(where, "the registry is too slow", "Try again later.")
        if "ETARGET" in done.output:
            newest = _version(self._view()) or "unknown"  # whatever is wrong there is not told
            return VsmError(where, "there is no such version", f"The newest is {newest}.")
        known = next((row for row in _KNOWN_WORDS if row[0] in done.output), None)
        if known is not None:
            return VsmError(where, *known[1:])
        if done.unreached or any(text in done.output for text in _NO_ANSWER):
            remedy = "See `npm config get registry`, and --allow for further hosts."
            return VsmError(where, describe_unreached(done, self.registry), remedy)
        remedy = "Ask whoever runs the registry, or try again later."
        return VsmError(where, f"cannot be fetched: {last_words(done)}", remedy)


def _version(done: Done) -> str:
    """What `npm view` printed; "" where it told of no version."""
    found = re.search(r"(?m)^'?(\d+\.\d+\.\d+[0-9A-Za-z.+-]*)'?\s*$", done.output)
    return found.group(1) if done.status == 0 and found else ""
