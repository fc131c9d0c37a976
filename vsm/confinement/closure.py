"""What a command needs of the host: its executable, interpreter, libraries and package.

A worker sees its profile's system paths and nothing else; the closure is what has to be added
so that an unmodified command starts, and why. Read-only look-ups in the parent, nothing runs.
It never answers with the root, a home folder or a folder above one.

The command is the operator's word, its files are not: a hostile package writes its own `#!` lines,
library names and pyvenv.cfg. What these name is given only if it is what it is named for: an ELF
program or library, a Python installation, a virtual environment's own parts. They never lead to
another file, and looking at them never blocks, fails oddly or takes long.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from vsm.core.elf import Linkage, parse_linkage
from vsm.errors import VsmError

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
LIBRARY_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
SHARED = frozenset(
    f"/{name}"
    for name in (
        *("", "boot", "dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run"),
        *("srv", "sys", "tmp", "var", "var/lib", "var/tmp"),
    )
)
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON_NAME = re.compile(r"^(python|pypy)(\d+(\.\d+)*)?t?$")
NODE_NAMES = frozenset({"node", "nodejs", "bun", "deno"})
PACKAGE_MARKS = ("pyproject.toml", "setup.py", "setup.cfg", "package.json", "requirements.txt")
# Options of the interpreters that take the next argument, and those after which no script follows.
TAKES_VALUE = frozenset({"-W", "-X", "-r", "--require", "--import", "--loader", "-C"})
NO_SCRIPT = frozenset({"-c", "-m", "-e", "-p", "--eval", "--print", "-i", "-h", "-V", "--version"})
EXEC_LINE = re.compile(rb"^'''exec' \"?([^\"\s]+)\"? \"\$0\"")
MOST_CHAIN = 5  # the kernel's own bound on nested `#!` lines is 4
MOST_LINKS = 40
MOST_LOOKUPS = 100_000  # of libraries; a large program asks for some thousands
MOST_CONFIG_BYTES = 64 * 1024
VENV_PARTS = ("bin", "lib", "lib64", "pyvenv.cfg")
ELF_START = b"\x7fELF"


class NeededPath(msgspec.Struct, frozen=True):
    """A host path that has to be visible, read-only, at its own name."""

    path: str
    reason: str


class Closure(msgspec.Struct, frozen=True, kw_only=True):
    """What `execve` gets, and what must be readable beside the profile's system paths.

    Args:
        folders: of PATH, in which a program was found: the worker's own look-ups need them too.
    """

    executable: str
    paths: tuple[NeededPath, ...]
    folders: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        """The paths alone."""
        return tuple(item.path for item in self.paths)


def closure(argv: Sequence[str], *, env: Mapping[str, str], cwd: str | None = None) -> Closure:
    """Find what a command needs.

    Args:
        argv: the command, never a shell line.
        env: the worker's environment; PATH, PYTHONPATH, NODE_PATH and LD_LIBRARY_PATH count.
        cwd: what relative names are relative to; the current directory if None. "" is a folder
            of the worker's own, in which nothing can be found yet.

    Raises:
        VsmError: something is missing or not executable; says what was looked up and where.
    """
    if not argv or not argv[0]:
        raise VsmError("command", "is empty", "Name a program to run.")
    search = _Search(argv[0], env, str(Path.cwd()) if cwd is None else cwd)
    executable = search.find(argv[0])
    search.follow(executable, list(argv[1:]))
    search.environment_paths()
    return Closure(executable=executable, paths=search.result(), folders=tuple(search.folders))


class _Search:
    """One look-up: collects paths with the first reason that each was needed for."""

    def __init__(self, command: str, env: Mapping[str, str], cwd: str) -> None:
        self.command, self.env, self.cwd = command, env, cwd
        self.found: dict[str, str] = {}
        self.folders: dict[str, None] = {}  # in order

    # -- finding -------------------------------------------------------------------------------

    def find(self, name: str) -> str:
        """Return the absolute path of a program, as it is to be executed."""
        if "/" in name:
            return self.executable(self.absolute(name))
        folders = [f for f in self.env.get("PATH", DEFAULT_PATH).split(":") if f.startswith("/")]
        shim = ""
        for folder in folders:
            candidate = os.path.join(folder, name)  # a string all the way to execve
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
                if not _is_shim(candidate):
                    self.folders[folder] = None
                    return candidate
                shim = shim or candidate
        if shim:
            raise self.shim(shim)
        raise self.error(
            f"no executable '{name}' in PATH ({':'.join(folders) or 'empty'})",
            "Install it, correct the name, or give its absolute path.",
        )

    def absolute(self, name: str) -> str:
        return os.path.normpath(os.path.join(self.cwd or "/", name))

    def executable(self, path: str) -> str:
        self.readable(path, "the executable")
        if not os.access(path, os.X_OK):
            raise self.error(f"{path} is not executable", f"Run `chmod +x {path}`.")
        return path

    def readable(self, path: str, what: str) -> None:
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise self.error(
                f"{what} {path}: {error.strerror}", "Correct the path or install what is missing."
            ) from error
        if not stat.S_ISREG(mode):
            raise self.error(f"{what} {path} is not a file", "Name the file itself.")

    def shim(self, path: str) -> VsmError:
        what = f"{path} is a shim, which looks for the program and would not find it confined"
        remedy = "Name the program itself: `pyenv which`, `asdf which` or the like says where."
        return self.error(what, remedy)

    def error(self, what: str, remedy: str) -> VsmError:
        return VsmError(self.command, what, remedy)

    # -- following -----------------------------------------------------------------------------

    def follow(self, path: str, arguments: list[str], depth: int = 0) -> None:
        """Add what `path` needs: the chain of `#!` lines, then the binary at its end."""
        if depth >= MOST_CHAIN:
            raise self.error(f"{path}: more than {MOST_CHAIN} nested `#!` lines", "Shorten them.")
        start = _first_bytes(path)
        if _is_shim(path):
            raise self.shim(path)
        if depth:
            self.check_interpreter(path, start)
        elif start and not start.startswith((b"#!", ELF_START)):
            remedy = "Name its interpreter in the command, or begin it with a `#!` line."
            raise self.error(f"{path} is neither a program nor a script that names one", remedy)
        if start.startswith(b"#!"):
            if not depth:
                self.script(path, "the script")
            self.follow_interpreter(path, start, arguments, depth)
            return
        self.binary(path, "the executable" if depth == 0 else "the script's interpreter")
        self.runtime(path, arguments, foreign=depth > 0)

    def check_interpreter(self, path: str, start: bytes) -> None:
        """Refuse what a script calls its interpreter and is none: a file that it wants to see."""
        if not start.startswith(b"#!"):
            known = not start or start.startswith(ELF_START)  # what cannot be read is not judged
        else:
            known = self.has(path)
        if not known:
            what = "a script itself" if start.startswith(b"#!") else "no program"
            remedy = "Name the interpreter that it needs in the command."
            raise self.error(f"the interpreter that it names, {path}, is {what}", remedy)

    def follow_interpreter(self, path: str, start: bytes, arguments: list[str], depth: int) -> None:
        line = start[2:].split(b"\n", 1)[0].decode("utf-8", "surrogateescape").strip()
        words = line.split()
        if not words or "\0" in line:
            raise self.error(f"{path}: its `#!` line names no interpreter", "Correct the line.")
        interpreter = words[0]
        long_line = EXEC_LINE.match(start.split(b"\n", 2)[1]) if start.count(b"\n") > 1 else None
        # Where the path is too long, pip and uv write `/bin/sh`, and a second line that execs it.
        if long_line and interpreter == "/bin/sh":
            self.interpreter(path, interpreter, [], depth)
            interpreter = long_line.group(1).decode("utf-8", "surrogateescape")
            if "\0" in interpreter:
                raise self.error(f"{path}: its second line names no interpreter", "Correct it.")
        elif os.path.basename(interpreter) == "env":
            self.interpreter(path, interpreter, [], depth)
            interpreter = self.env_target(path, words[1:])
        # The line's own arguments are left out: they would name files, and need not be read so.
        self.interpreter(path, interpreter, [path, *arguments], depth)

    def env_target(self, path: str, words: list[str]) -> str:
        names = [w for w in words if not w.startswith("-") and "=" not in w]
        if not names:
            raise self.error(f"{path}: its `#!` line gives env no program", "Correct the line.")
        return names[0]

    def interpreter(self, path: str, name: str, arguments: list[str], depth: int) -> None:
        try:
            found = self.find(name)
        except VsmError as error:
            raise self.error(
                f"{path}: its interpreter is missing ({error.what})",
                f"Install {name}, or correct the first line of {path}.",
            ) from error
        self.follow(found, arguments, depth + 1)

    def binary(self, path: str, reason: str) -> None:
        for hop in _link_chain(path):
            self.add(hop, reason)
        try:
            for library, needed_by in _libraries(path, self.env):
                self.add(library, f"a library of {needed_by}")
        except _TooMuchError:
            what = f"{path} asks for libraries in more places than any program does"
            raise self.error(what, "Do not trust this program.") from None

    def runtime(self, path: str, arguments: list[str], *, foreign: bool) -> None:
        name = os.path.basename(path)
        real = os.path.basename(os.path.realpath(path))
        if PYTHON_NAME.match(name) or PYTHON_NAME.match(real):
            self.python(path, foreign=foreign)
        elif name not in NODE_NAMES and real not in NODE_NAMES:
            return
        script = _script_argument(arguments)
        if script is not None:
            if not self.cwd and not script.startswith("/"):
                what = f"it would look for {script} in a folder of its own"
                raise self.error(what, "Write the full path, or set cwd.")
            script = self.absolute(script)
            if not os.path.isdir(script):  # python and node run folders too
                self.readable(script, "the script")
            self.script(script, "the script")

    # -- language trees ------------------------------------------------------------------------

    def python(self, path: str, *, foreign: bool) -> None:
        """Add what an interpreter needs; of a virtual environment that only a file names, parts."""
        for hop in _link_chain(path):
            prefix = os.path.dirname(os.path.dirname(hop))
            if not os.path.isfile(os.path.join(prefix, "pyvenv.cfg")):
                self.python_prefix(prefix)
                continue
            inside = not foreign or self.has(prefix)
            for part in ("",) if inside else VENV_PARTS:
                if os.path.exists(folder := os.path.join(prefix, part).rstrip("/")):
                    self.add_tree(folder, "the virtual environment")
            self.python_home(prefix)

    def python_home(self, venv: str) -> None:
        config = _first_bytes(os.path.join(venv, "pyvenv.cfg"), MOST_CONFIG_BYTES).decode(
            "utf-8", "replace"
        )
        lines = (line.partition("=") for line in config.splitlines())  # a pattern could take long
        home = next((value.strip() for key, _, value in lines if key.strip() == "home"), "")
        if not os.path.isdir(home):
            raise self.error(
                f"{venv}/pyvenv.cfg: home = {home or '(absent)'} is no folder",
                "Make the virtual environment again with an interpreter that exists.",
            )
        for folder in {home, os.path.realpath(home)}:
            self.python_prefix(os.path.dirname(folder))

    def python_prefix(self, prefix: str) -> None:
        """Add a Python installation: all of it, or, where that is a home folder, its parts.

        One has `os.py`, by which Python itself knows it; a folder of packages alone has not.
        """
        marks = sorted(Path(prefix, "lib").glob("python3*/os.py"))
        libraries = [mark.parent for mark in marks if mark.is_file()]
        if not libraries or _is_system(prefix):
            return
        if not _too_wide(prefix):
            self.add_tree(prefix, "the Python installation")
            return
        for library in libraries:
            self.add_tree(str(library), "the Python standard library")

    def script(self, path: str, reason: str) -> None:
        for hop in _link_chain(path):
            root, why = _package_root(hop)
            if root is None:
                self.add(hop, reason)
            else:
                self.add_tree(root, why)
                if os.path.isfile(os.path.join(root, "pyvenv.cfg")):
                    self.python_home(root)

    def environment_paths(self) -> None:
        for name in ("PYTHONPATH", "NODE_PATH", "LD_LIBRARY_PATH"):
            for entry in self.env.get(name, "").split(":"):
                if entry.startswith("/") and os.path.exists(entry):
                    self.add_tree(os.path.normpath(entry), name)

    # -- collecting ----------------------------------------------------------------------------

    def add(self, path: str, reason: str) -> None:
        """Add a file unless a system path has it."""
        if not _is_system(path):
            self.found.setdefault(path, reason)

    def add_tree(self, path: str, reason: str) -> None:
        """Add a folder under its own name and, through links, its real one."""
        for spelling in dict.fromkeys((path, os.path.realpath(path))):
            if _too_wide(spelling):
                raise self.error(
                    f"{reason} is {spelling}, which holds far more than the command",
                    "Move the program into a folder of its own.",
                )
            self.add(spelling, reason)

    def has(self, path: str) -> bool:
        """Whether a path is there by now: by the system, or in what was found."""
        return _is_system(path) or any(
            path == other or path.startswith(other + "/") for other in self.found
        )

    def result(self) -> tuple[NeededPath, ...]:
        """The paths without those that a folder among them contains."""
        kept = [
            path
            for path in self.found
            if not any(path.startswith(other + "/") for other in self.found if other != path)
        ]
        return tuple(NeededPath(path, self.found[path]) for path in sorted(kept))


def _is_shim(path: str) -> bool:
    """Whether a tool that keeps several versions (pyenv, asdf, mise, volta) put it there."""
    in_shims = os.path.basename(os.path.dirname(path)) == "shims"
    return in_shims or os.path.basename(os.path.realpath(path)) == "volta-shim"


def _script_argument(arguments: list[str]) -> str | None:
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word == "-" or word in NO_SCRIPT or re.match(r"^-[a-zA-Z]*[cm]$", word):
            return None
        elif word in TAKES_VALUE:
            skip = True
        elif not word.startswith("-"):
            return word
    return None


def _package_root(script: str) -> tuple[str | None, str]:
    """The folder that a script cannot do without, or None where the file stands alone."""
    parts = Path(script).parts
    if "node_modules" in parts:
        top = parts.index("node_modules")
        return str(Path(*parts[: top + 1])), "the package tree of the script"
    for folder in Path(script).parents:
        if _too_wide(str(folder)) or _is_system(str(folder)):
            break
        if (folder / "pyvenv.cfg").is_file():
            return str(folder), "the virtual environment of the script"
        if any((folder / mark).is_file() for mark in PACKAGE_MARKS):
            return str(folder), "the package of the script"
    return None, ""


def _is_system(path: str) -> bool:
    return any(path == top or path.startswith(top + "/") for top in SYSTEM)


def _too_wide(path: str) -> bool:
    """The root, a folder that many things share, a home folder, or a folder above one."""
    return path in SHARED or any(home == path or home.startswith(path + "/") for home in _homes())


def _homes() -> set[str]:
    homes = {os.environ.get("HOME", "")} | {entry.pw_dir for entry in pwd.getpwall()}
    real = {os.path.realpath(home) for home in homes if home.startswith("/")}
    # Service accounts have homes such as /usr/bin and /nonexistent; only people's count.
    return {home for home in real | homes if home not in ("", "/") and not _is_system(home)}


def _link_chain(path: str) -> Iterator[str]:
    """Every name that a path has on the way to the file: links, then the real one."""
    seen: dict[str, None] = {}
    current = path
    for _ in range(MOST_LINKS):
        seen[current] = None
        if not os.path.islink(current):
            break
        target = os.readlink(current)
        current = os.path.normpath(os.path.join(os.path.dirname(current), target))
    seen[os.path.realpath(path)] = None
    yield from seen


def _first_bytes(path: str, size: int = 1024) -> bytes:
    """Of a regular file; a worker that may write here may have put a pipe there just now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return b""  # execute-only binaries exist; nothing more can be learnt of them
    try:
        return os.read(fd, size) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


class _TooMuchError(Exception):
    """A program names so many libraries and folders that it can only want to keep us busy."""


def _linkage_of(path: str) -> Linkage | None:
    """Of an ELF file; None for any other, which is not even opened unless it is a regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return parse_linkage(lambda offset, size: os.pread(fd, size, offset))
    finally:
        os.close(fd)


def _libraries(path: str, env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Libraries outside the system folders, with what asked for each; the loader included.

    Raises:
        _TooMuchError: the search does not end soon.
    """
    start = os.path.realpath(path)
    queue, linkages, lookups = [start], {start: _linkage_of(start)}, 0
    while queue:
        current = queue.pop()
        linkage = linkages[current]
        if linkage is None:
            continue
        folders = _library_folders(current, linkage, env)
        lookups += len(folders) * (1 + len(linkage.needed))
        if lookups > MOST_LOOKUPS:
            raise _TooMuchError
        found = [linkage.loader] if linkage.loader.startswith("/") else []
        found += [p for name in linkage.needed if (p := _first_file(folders, name)) is not None]
        for library in found:
            real = os.path.realpath(library)
            if _is_system(real):
                continue
            if real not in linkages:
                linkages[real] = _linkage_of(real)
                queue.append(real)
            if linkages[real] is not None:  # any other file is none of a program's business
                for hop in _link_chain(library):
                    yield hop, current


def _library_folders(path: str, linkage: Linkage, env: Mapping[str, str]) -> list[str]:
    origin = os.path.dirname(path)
    own = [
        os.path.normpath(re.sub(r"\$ORIGIN|\$\{ORIGIN\}", lambda _: origin, entry))
        for entry in linkage.search
    ]
    return [*own, *env.get("LD_LIBRARY_PATH", "").split(":"), *LIBRARY_FOLDERS]


def _first_file(folders: list[str], name: str) -> str | None:
    candidates = [os.path.join(f, name) for f in folders if f.startswith("/")]
    return next((c for c in candidates if os.path.isfile(c)), None)
