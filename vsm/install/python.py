"""Installing from PyPI or whatever pip is configured for: fetch, pin, unpack offline.

Three confined steps, none of which runs anything of a package: `pip download` of wheels only,
with the registry in reach; an empty virtual environment; `pip install` from the fetched wheels,
each pinned by its hash, with no network at all. Runs in the command line.

"Wheels only" is pip's word for what an index lists; a dependency that a wheel gives as a URL it
would build all the same, and so run the package's code beside the registry's credentials. So the
pip that fetches may start no program at all.
"""

import hashlib
import os
import re
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from vsm import paths
from vsm.core.packages import (
    Package,
    choose_command,
    normalize,
    parse_console_scripts,
    parse_fetch_trouble,
    parse_latest,
    parse_wheel_name,
)
from vsm.errors import VsmError
from vsm.install.registry import Registry, base_python, pip_registry, python_with_pip
from vsm.install.sandbox import Done, InstallSandbox
from vsm.install.store import PinnedFile
from vsm.install.tree import folder, open_file, read_file, write_file

WHEELS: Final = "wheels"
LOCK: Final = "lock.txt"
ENVIRONMENT: Final = "env"
_MOST_TEXT_BYTES: Final = 1 << 20
_CHATTER: Final = ("Removed ", "Remote version", "Cleaning up")  # what pip -vv says at its end
_NOT_FOUND: Final = "404 Client Error"
_NO_SPACE: Final = re.compile(r"\[Errno 28\]|ENOSPC")
_NPM_SAYS: Final = re.compile(r"npm (error|ERR!) (?!(code|errno|syscall|type) )")
_EXEC: Final = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
REFUSED_PROGRAM: Final = "vsm lets no program start here"
# Runs as pip. pip itself is no attacker, it only has to be kept from building: a hook of the
# interpreter sees every way to start a program. What pip asks programs for its own sake
# (`rustc --version`) it does without where that fails.
_PIP: Final = f"""
import runpy, sys
def refuse(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty",
                 "os.posix_spawn", "os.spawn", "pty.spawn"):
        raise PermissionError("{REFUSED_PROGRAM}")
sys.addaudithook(refuse)
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_ONLY_WHEELS: Final = ("--only-binary", ":all:")
_NO_ANSWER: Final = (
    *("NewConnectionError", "Connection refused", "Connection reset", "Read timed out"),
    *("Temporary failure in name resolution", "Name or service not known", "ConnectTimeoutError"),
    *(
        "connection error",
        "RemoteDisconnected",
        "Connection aborted",
        "Max retries exceeded",
        "SSLError",
    ),
)


class PythonInstaller:
    """One package from PyPI.

    Args:
        package: what.
        build: where its tree is made, by absolute name: scripts in it say so.
        extra: further hosts that it may fetch from.
    """

    def __init__(self, package: Package, build: Path, extra: tuple[str, ...] = ()) -> None:
        self._package = package
        self._build = build
        self._python, self._pip_folder = python_with_pip()
        self.registry: Registry = pip_registry(self._python)
        self._allow = (*self.registry.allow, *extra)
        self._sandbox = InstallSandbox(build, (*self.registry.read, self._pip_folder))
        self.links_out: frozenset[str] = frozenset()

    @property
    def runtime(self) -> str:
        """The interpreter's version."""
        return f"python {sys.version.split()[0]}"

    def fetch(self) -> tuple[PinnedFile, ...]:
        """Download every wheel that it needs; what was downloaded, with hashes.

        Raises:
            VsmError: there is no such package, no such version, no wheel, or no registry.
        """
        (self._build / WHEELS).mkdir()
        package = f"{self._package.name}=={self._package.version}"
        words = ["download", "-vv", *_ONLY_WHEELS, "--dest", str(self._build / WHEELS), package]
        done = self._pip(words)
        if REFUSED_PROGRAM in done.output and done.status != 0:
            what = "it needs something that is no wheel; building it would run its code"
            raise VsmError(str(self._package), what, "Do not trust it, or choose another version.")
        if done.status != 0:
            raise disk_is_full(done, self._package) or self._explain(done)
        with folder(self._build, WHEELS) as fd:
            names = sorted(os.listdir(fd))
        files = tuple(self._pin(name) for name in names)
        if not any(one.name == normalize(self._package.name) for one in files):
            raise VsmError(str(self._package), "the registry answered with other packages", "")
        return files

    def unpack(self, files: tuple[PinnedFile, ...]) -> None:
        """Make the environment from exactly these files, offline."""
        environment = self._build / ENVIRONMENT
        done = self._sandbox.run(
            [base_python(), "-I", "-m", "venv", "--without-pip", str(environment)], env=self._env()
        )
        self._check(done, "no virtual environment could be made")
        lock = "".join(f"{one.name}=={one.version} --hash={one.hash}\n" for one in files)
        write_file(self._build, LOCK, lock)
        interpreter = self._interpreter()
        # What `pip --python` does, without starting pip twice. Through another program, because the
        # folder of the program that is started is read-only.
        words = [base_python(), "-I", "-S", "-c", _EXEC, str(environment / "bin" / "python")]
        words.append(f"{self._pip_folder}/__pip-runner__.py")
        words += ["install", "--no-index", "--find-links", str(self._build / WHEELS)]
        words += ["--require-hashes", "--no-deps", *_ONLY_WHEELS, "-r", str(self._build / LOCK)]
        done = self._sandbox.run(words, env=self._env() | {"PIP_CONFIG_FILE": os.devnull})
        self._check(done, "pip refuses what it fetched")
        if self._interpreter() != interpreter:
            what = "it replaces the interpreter of its environment, or what says where that is"
            raise VsmError(str(self._package), what, "Do not trust this package.")
        self.links_out = frozenset(f"{ENVIRONMENT}/bin/{name}" for name, _ in interpreter[1])

    def commands(self) -> tuple[str, tuple[str, ...]]:
        """(the server's command, all commands); the first is "" where it is unclear."""
        name = normalize(self._package.name)
        packages = f"{ENVIRONMENT}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
        packages += "/site-packages"
        with folder(self._build, packages) as fd:
            infos = sorted(one for one in os.listdir(fd) if one.endswith(".dist-info"))
        scripts: list[str] = []
        for info in infos:
            if normalize(info.partition("-")[0]) == name:
                with suppress(FileNotFoundError):
                    path = f"{packages}/{info}/entry_points.txt"
                    text = read_file(self._build, path, _MOST_TEXT_BYTES)
                    scripts = parse_console_scripts(text.decode("utf-8", "replace"))
        present = [one for one in scripts if (self._build / ENVIRONMENT / "bin" / one).is_file()]
        return choose_command(present, self._package), tuple(present)

    @staticmethod
    def argv(current: Path, command: str) -> tuple[str, ...]:
        """The argv of a command, for vsm.toml."""
        return (str(current / ENVIRONMENT / "bin" / command),)

    def latest(self) -> str:
        """The newest version that the registry has; "" if it does not say.

        Raises:
            VsmError: it has no such package, or could not be asked.
        """
        done = self._versions()
        if done.status != 0:
            raise self._explain(done)
        return parse_latest(done.output)

    def _versions(self) -> Done:
        """The registry's list; as for `pip install`, pre-releases where there is nothing else."""
        words = ["index", "versions", "-vv", self._package.name]
        done = self._pip(words)
        if "No matching distribution found" in done.output:
            done = self._pip([*words, "--pre"])
        return done

    # -- steps -------------------------------------------------------------------------------------

    def _interpreter(self) -> tuple[bytes, tuple[tuple[str, str], ...]]:
        """What says which interpreter the environment has: its configuration, and its links."""
        config = read_file(self._build, f"{ENVIRONMENT}/pyvenv.cfg", _MOST_TEXT_BYTES)
        with folder(self._build, f"{ENVIRONMENT}/bin") as fd:
            names = [name for name in sorted(os.listdir(fd)) if name.startswith("python")]
            links = [(name, os.readlink(name, dir_fd=fd)) for name in names if _is_link(name, fd)]
        return config, tuple(links)

    def _pin(self, name: str) -> PinnedFile:
        """Name, version and hash of a fetched file; anything but a wheel is refused."""
        try:
            wheel = parse_wheel_name(name)
        except ValueError as error:
            raise VsmError("install", str(error), "Do not trust this registry.") from error
        with open_file(self._build, f"{WHEELS}/{name}") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return PinnedFile(
            name=wheel.name, version=wheel.version, file=name, hash=f"sha256:{digest}"
        )

    def _env(self) -> dict[str, str]:
        temporary = self._build / "tmp"
        temporary.mkdir(exist_ok=True)
        return {"TMPDIR": str(temporary), "HOME": str(temporary)}

    def _pip(self, words: list[str]) -> Done:
        """Run pip with the registry in reach."""
        argv = [self._python, "-I", "-c", _PIP, *words]
        return self._sandbox.run(argv, env=self._env() | self.registry.env, allow=self._allow)

    def _check(self, done: Done, what: str) -> None:
        if done.status != 0:
            raise disk_is_full(done, self._package) or VsmError(
                str(self._package), f"{what}: {last_words(done)}", ""
            )

    def _explain(self, done: Done) -> VsmError:
        package, where = self._package, str(self._package)
        if done.timed_out:
            return VsmError(where, "the registry is too slow", "Try again later.")
        trouble = parse_fetch_trouble(done.output)
        if trouble and not done.unreached:
            what = f"the registry ({_hosts(self.registry)}) cannot be used: {trouble}"
            return VsmError(where, what, "See `pip config list`, or try again later.")
        missing = re.search(r"No matching distribution found for ([A-Za-z0-9._-]+)", done.output)
        if missing and normalize(missing.group(1)) != normalize(package.name):
            what = f"it needs {missing.group(1)}, which has no wheel here or does not exist"
            return VsmError(where, what, "Choose another version, or another Python.")
        if done.unreached or any(text in done.output for text in _NO_ANSWER):
            remedy = "See `pip config list`, and --allow for further hosts."
            return VsmError(where, describe_unreached(done, self.registry), remedy)
        if missing:
            return self._explain_missing()
        remedy = "Ask whoever runs the registry, or try again later."
        return VsmError(where, f"cannot be fetched: {last_words(done)}", remedy)

    def _explain_missing(self) -> VsmError:
        """No wheel, no version or no package? The registry's list of versions tells."""
        where = str(self._package)
        done = self._versions()
        if done.status != 0:
            return self._explain_unknown(done)
        listed = re.search(r"(?m)^Available versions: (.*)$", done.output)
        if listed and self._package.version in listed.group(1).split(", "):
            what = "has no wheel for this Python; building it would run its code"
            return VsmError(where, what, "Choose another version, or another Python.")
        newest = parse_latest(done.output)
        return VsmError(where, "there is no such version", f"The newest is {newest}.")

    def _explain_unknown(self, done: Done) -> VsmError:
        """A registry that has no such package says so; a page without a file may be anything's."""
        where = str(self._package)
        if _NOT_FOUND in done.output or not self.registry.hosts:
            return VsmError(where, "there is no such package", "Correct its name.")
        what = f"the registry ({_hosts(self.registry)}) answers, and lists no file of it"
        return VsmError(where, what, "Correct its name, or that address: see `pip config list`.")


def _is_link(name: str, folder_fd: int) -> bool:
    return stat.S_ISLNK(os.lstat(name, dir_fd=folder_fd).st_mode)


def describe_unreached(done: Done, registry: Registry) -> str:
    """Which host did not answer, and why."""
    if done.unreached:
        rows = [f"{host}: {reason}" for host, reason in done.unreached.items()]
        return f"the registry cannot be reached: {'; '.join(rows)}"
    return f"the registry ({_hosts(registry)}) cannot be reached: {last_words(done)}"


def _hosts(registry: Registry) -> str:
    return ", ".join(dict.fromkeys(host for host, _ in registry.hosts))


def disk_is_full(done: Done, package: Package) -> VsmError | None:
    """The error for a full disk, which has nothing to do with the registry; None for others."""
    if not _NO_SPACE.search(done.output):
        return None
    return VsmError(str(package), "no space left", f"Make room in {paths.state_dir()}.")


def last_words(done: Done) -> str:
    """The most telling line of a step's output, for an error."""
    lines = [line.strip() for line in done.output.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(_CHATTER)]
    pip = [line for line in lines if line.startswith("ERROR") and line != "ERROR: Exception:"]
    # npm says first what happened, and then at length what to do about it.
    npm = [line for line in lines if _NPM_SAYS.match(line)]
    text = pip[-1] if pip else npm[0] if npm else lines[-1] if lines else f"status {done.status}"
    return "".join(character for character in text if character.isprintable())[:300]
