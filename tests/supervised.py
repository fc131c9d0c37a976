"""A real `vsm up` with misbehaving servers: start it, ask it, kill it, look at what is left."""

import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
from running import START_TIMEOUT_S, VSM, Running

import vsm as vsm_package

SERVER = Path(__file__).resolve().parent / "servers/misbehaving.py"
SYSTEMS = ("system1", "system2", "system3", "system4", "system5")
STAGES = ["worker=template", "worker=launcher", "worker=good", "system3", "vsm: ready"]
# Run as an ordinary user: the last user namespace that it can make, with itself in it.
NO_NAMESPACES = """
import ctypes, os, sys
uid, gid = os.getuid(), os.getgid()
if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
    raise OSError(ctypes.get_errno(), "unshare")
for name, text in (
    ("self/setgroups", "deny"), ("self/uid_map", f"{uid} {uid} 1"),
    ("self/gid_map", f"{gid} {gid} 1"), ("sys/user/max_user_namespaces", "0"),
):
    with open(f"/proc/{name}", "w") as file:
        file.write(text)
os.execv(sys.argv[1], sys.argv[1:])
"""
BOUND_S = START_TIMEOUT_S
NOBODY = 65534

Row = dict[str, Any]


@dataclass(frozen=True)
class Who:
    """A user who runs vsm: None is this process's own."""

    uid: int | None = None
    command: tuple[str, ...] = (VSM,)
    environment: dict[str, str] = field(default_factory=dict)


OURSELVES = Who()
STARTED: "list[Started]" = []  # by this test; see tests/integration/conftest.py


class Started:
    """A `vsm up` that this module started itself, ready or not."""

    def __init__(self, folder: Path, config: Path, http: str = "", who: Who = OURSELVES) -> None:
        self.folder = folder
        self.who = who
        self.environment = (who.environment or dict(os.environ)) | {
            "VSM_RUNTIME_DIR": str(folder / "run"),
            "VSM_STATE_DIR": str(folder / "state"),
        }
        with (folder / "log").open("wb") as log:
            STARTED.append(self)
            self.process = self.start("up", "--http", http, "--config", str(config), to=log)

    def start(self, *words: str, to: "IO[bytes] | int") -> "subprocess.Popen[bytes]":
        """A command of vsm, as the same user."""
        uid = self.who.uid
        return subprocess.Popen(
            [*self.who.command, *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=to,
            stderr=to,
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def wait_log(self, text: str) -> None:
        end = time.monotonic() + BOUND_S
        while text not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, f"{text!r} is not in the log:\n{self.log()}"
            pause(0.002)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(BOUND_S)


Vsm = Running | Started


def pause(seconds: float) -> None:
    """Leave the processor to what is waited for."""
    select.select([], [], [], seconds)


def write_config(folder: Path, **modes: str) -> Path:
    """One integration for each keyword, in that mode; text after ";" is more TOML."""
    tables = []
    server = shutil.copy(SERVER, folder)  # where the user of the folder can read it
    for name, mode in modes.items():
        word, _, more = mode.partition(";")
        command = json.dumps(["/usr/bin/python3", str(server), word])
        tables.append(f"[integrations.{name}]\ncommand = {command}\n{more}\n")
    path = folder / "vsm.toml"
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


def ask(vsm: Vsm, command: str, **arguments: object) -> Any:
    """One question over the control socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(BOUND_S)
        connection.connect(str(vsm.folder / "run/control.sock"))
        question = json.dumps({"command": command, "arguments": arguments}) + "\n"
        connection.sendall(question.encode())
        answer = json.loads(connection.makefile().readline())
    assert answer["ok"], answer
    return answer["result"]


def rows(vsm: Vsm) -> dict[str, Row]:
    return {row["name"]: row for row in ask(vsm, "status")["workers"]}


def state(vsm: Vsm, system: str) -> dict[str, Any]:
    """What a system says of itself: one that got no processor in time is asked again."""
    end = time.monotonic() + BOUND_S
    while (found := ask(vsm, "status")["systems"][system]) == {"error": "no answer"}:
        assert time.monotonic() < end, vsm.log()
        pause(0.02)
    told: dict[str, Any] = found
    return told


def predictions(vsm: Running) -> dict[str, Any]:
    """What system 4 expects, asked for in the same way."""
    end = time.monotonic() + BOUND_S
    while True:
        done = vsm.vsm("reflect", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)["predictions"]
        if found.get("not_enough_evidence") != "system 4 does not answer":
            return found
        assert time.monotonic() < end, vsm.log()


def variety(vsm: Running) -> dict[str, Any]:
    """What system 4 measured, asked for in the same way."""
    end = time.monotonic() + BOUND_S
    while "system 4 does not answer" in (done := vsm.vsm("variety", "--json")).stderr:
        assert time.monotonic() < end, vsm.log()
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def wait_until(vsm: Vsm, holds: Callable[[dict[str, Row]], bool]) -> dict[str, Row]:
    """Ask until it holds, bounded."""
    end = time.monotonic() + BOUND_S
    while not holds(seen := rows(vsm)):
        assert time.monotonic() < end, f"{seen}\n{vsm.log()}"
        pause(0.02)
    return seen


def all_ready(seen: dict[str, Row]) -> bool:
    return all(row["state"] == "ready" for row in seen.values())


def call(vsm: Running, integration: str, tool: str, **arguments: object) -> str:
    done = vsm.vsm("call", integration, tool, json.dumps(arguments))
    return done.stdout + done.stderr


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    found: set[int] = set()
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    todo = [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found.update(children)
        todo += children
    return found


def wait_all_gone(pidfds: dict[int, int]) -> None:
    """Wait by pidfd until each has ended; closes the pidfds."""
    end = time.monotonic() + BOUND_S
    for pid, pidfd in pidfds.items():
        left = max(0.0, end - time.monotonic())
        assert select.select([pidfd], [], [], left)[0], f"process {pid} outlives its supervisor"
        os.close(pidfd)


def watch(pids: set[int]) -> dict[int, int]:
    watched = {}
    for pid in pids:
        try:
            watched[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
    return watched


def call_in_flight(vsm: Vsm, seconds: float = 60) -> "subprocess.Popen[bytes]":
    """Begin a slow call of "good"; it is in its tool when this returns."""
    wait_until(vsm, lambda seen: seen["good"]["state"] == "ready")
    words = ("call", "good", "slow", json.dumps({"seconds": seconds}))
    if isinstance(vsm, Started):
        client = vsm.start(*words, to=subprocess.DEVNULL)
    else:
        client = subprocess.Popen(
            [VSM, *words], env=vsm.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    wait_until(vsm, lambda seen: in_flight(seen) or client.poll() is not None)
    return client


def server_of(seen: dict[str, Row], name: str = "good") -> int:
    """The pid of the server below an integration's mini-init; 0 when there is none."""
    pid = seen[name]["pid"]
    return max(descendants(pid), default=0) if pid else 0


def in_flight(seen: dict[str, Row]) -> bool:
    """The server sleeps in its tool: in a clock call and in no read."""
    try:
        text = Path(f"/proc/{server_of(seen)}/syscall").read_text(encoding="ascii")
    except OSError:
        return False
    return text.split()[0] in {"35", "230"}  # nanosleep, clock_nanosleep on x86_64


def left_of(vsm: Vsm) -> list[str]:
    """What is still there of a vsm, one line each: files, sockets, groups, mounts, segments."""
    owner = f"vsm-{vsm.process.pid}-"
    groups = [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if f"/{owner}" in folder]
    lines = [f"file {path}" for path in (vsm.folder / "run").glob("*")]
    lines += [f"private directory {path}" for path in Path("/tmp").glob(f"{owner}*")]
    lines += [f"group {folder}" for folder in groups]
    for table in ("/proc/net/unix", "/proc/self/mountinfo"):
        text = Path(table).read_text(encoding="utf-8", errors="replace")
        lines += [row for row in text.splitlines() if owner in row or f"{vsm.folder}/run/" in row]
    return lines


def wait_nothing_left(vsm: Vsm) -> None:
    """A killed supervisor's launcher needs a moment."""
    end = time.monotonic() + BOUND_S
    while lines := left_of(vsm):
        assert time.monotonic() < end, "\n".join(lines)
        pause(0.02)


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone with all that was below it."""
    tree = watch({pid} | descendants(pid))
    os.kill(pid, signal.SIGKILL)
    wait_all_gone(tree)


def ordinary_user(folder: Path, require: Callable[[str, bool, str], None]) -> Who:
    """Uid 65534 with an interpreter that it may run and a copy of vsm that it may read.

    Args:
        folder: becomes that user's; what has to be copied goes there.
    """
    if os.geteuid() != 0:
        return OURSELVES
    package = Path(vsm_package.__file__).parent.parent
    site = Path(msgspec.__file__).parent.parent
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for roots in ((package, site), (folder / "package", folder / "site")):
        if roots[0].parent == folder:
            shutil.copytree(package / "vsm", roots[0] / "vsm")
            shutil.copytree(package / "sandbox_profiles", roots[0] / "sandbox_profiles")
            shutil.copytree(site, roots[1], ignore=shutil.ignore_patterns("tests"))
        for python in (sys.executable, f"/usr/bin/{own}", f"/usr/local/bin/{own}"):
            who = Who(NOBODY, (python, "-P", "-m", "vsm"), _user_environment(folder, *roots))
            if _can_import(who):
                return who
    require(f"a {own} that an ordinary user may run", False, "none was found")
    raise AssertionError


def without_namespaces(who: Who) -> Who:
    """The same user on a host without user namespaces: the limit of one of its own is 0."""
    python = sys.executable if who.uid is None else who.command[0]
    return dataclasses.replace(who, command=(python, "-c", NO_NAMESPACES, *who.command))


def _user_environment(folder: Path, *roots: Path) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": ":".join(map(str, roots)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _can_import(who: Who) -> bool:
    check = [
        who.command[0],
        "-P",
        "-c",
        "import vsm.supervision.supervisor, numpy, uvloop, httptools",
    ]
    try:
        done = subprocess.run(
            check, env=who.environment, cwd="/", user=who.uid, group=who.uid, extra_groups=[],
            capture_output=True, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return done.returncode == 0


@contextlib.contextmanager
def folder_of(uid: int, scratch: Path) -> Iterator[Path]:
    """A directory that belongs to a user, below the session's."""
    scratch.chmod(0o711)
    folder = Path(tempfile.mkdtemp(prefix="u", dir=scratch))
    os.chown(folder, uid, uid)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
