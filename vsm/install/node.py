"""Installing from npm's registry: lock with every hash, check the lock, unpack without scripts.

Two confined steps, none of which runs anything of a package: `npm install --package-lock-only`
and `npm ci --ignore-scripts`, both with the registry in reach and nothing else. Between them the
lock is read: every package has to be of that registry and pinned by its hash. Runs in the command
line.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from vsm.core.packages import Package, choose_command, parse_bins, parse_npm_lock
from vsm.errors import VsmError
from vsm.install.python import describe_unreached, disk_is_full, last_words
from vsm.install.registry import Registry, npm_registry
from vsm.install.sandbox import Done, InstallSandbox
from vsm.install.store import PinnedFile

LOCK: Final = "package-lock.json"
_QUIET: Final = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
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
        self._allow = (*self.registry.allow, *extra)
        self._sandbox = InstallSandbox(build, self.registry.read)

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
        (self._build / "package.json").write_text(json.dumps(wanted), encoding="utf-8")
        done = self._npm(["install", "--package-lock-only"])
        if done.status != 0:
            raise disk_is_full(done, self._package) or self._explain(done)
        lock = self._read(LOCK)
        try:
            locked = list(parse_npm_lock(lock, self.registry.hosts))
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
        """The newest version that the registry has; "" if it does not say."""
        done = self._npm(["view", self._package.name, "version"])
        found = re.search(r"(?m)^'?(\d+\.\d+\.\d+[0-9A-Za-z.+-]*)'?\s*$", done.output)
        return found.group(1) if done.status == 0 and found else ""

    # -- steps -------------------------------------------------------------------------------------

    def _bins(self) -> dict[str, str]:
        root = f"node_modules/{self._package.name}"
        bins = parse_bins(self._read(f"{root}/package.json"), self._package.name)
        return {name: path for name, path in bins.items() if (self._build / root / path).is_file()}

    def _read(self, path: str) -> Any:  # noqa: ANN401 - JSON
        try:
            return json.loads((self._build / path).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise VsmError(str(self._package), f"{path}: {error}", "") from error

    def _npm(self, words: list[str]) -> Done:
        home = self._build / "tmp"
        home.mkdir(exist_ok=True)
        npmrc, nothing = home / "npmrc", home / "globalrc"
        npmrc.write_text(self.registry.npmrc, encoding="utf-8")
        npmrc.chmod(0o600)
        nothing.touch()
        env = {
            **self.registry.env,
            "HOME": str(home),
            "TMPDIR": str(home),
            "npm_config_cache": str(home / "cache"),
            "npm_config_userconfig": str(npmrc),
            "npm_config_globalconfig": str(nothing),
            "npm_config_update_notifier": "false",
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
            newest = self.latest() or "unknown"
            return VsmError(where, "there is no such version", f"The newest is {newest}.")
        if "E404" in done.output:
            return VsmError(where, "there is no such package", "Correct its name.")
        if done.unreached or any(text in done.output for text in _NO_ANSWER):
            remedy = "See `npm config get registry`, and --allow for further hosts."
            return VsmError(where, describe_unreached(done, self.registry), remedy)
        remedy = "Ask whoever runs the registry, or try again later."
        return VsmError(where, f"cannot be fetched: {last_words(done)}", remedy)
