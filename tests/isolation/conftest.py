"""The world that attackers see: what the tests made outside of the sandbox, for each user.

Attempts run as root's workers and as an ordinary user's, in both tiers; `Arena.run` starts the
driver as that user. An interpreter that the ordinary user may run is found or the tests skip.
"""

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

import vsm
from vsm.paths import shipped_profiles

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # importlib mode adds no folder; the attempts are shared
NOBODY = 65534
LEAKED_FD = 77
SECRET_VARIABLE = "VSM_TEST_SECRET"
PROFILE = """
extends = "integration"
tier = "landlocked"
[files]
tmp = "16M"
shm = "8M"
[limits]
memory = "96M"
processes = 24
cpu = 1
open_files = 128
file_size = "8M"
"""
LIMITS = {
    "memory_bytes": 96 << 20,
    "processes": 24,
    "open_files": 128,
    "file_size_bytes": 8 << 20,
    "tmp_bytes": 16 << 20,
    "shm_bytes": 8 << 20,
    "cpu_cores": 0.1,  # in a run of its own: it would slow all others down
}


@dataclass
class Arena:
    """One user's world: what is outside, and how to run a command inside."""

    user: str
    uid: int
    python: str
    environment: dict[str, str]
    folder: Path
    world: dict[str, Any]
    require: Callable[[str, bool, str], None]
    host: dict[str, Any] = field(default_factory=dict)  # what the probe says
    layers: dict[str, str] = field(default_factory=dict)  # of the last confined run

    def profile(self, text: str = "", name: str = "battery") -> str:
        """A profile file: the battery's, or one that adds `text` to it."""
        path = self.folder / "profiles" / f"{name}.toml"
        base = self.folder / "profiles" / "battery.toml"
        if not base.exists():
            base.write_text(PROFILE)
        if not text:
            return str(base)
        path.write_text(f'extends = "{base}"\n{text}')
        return str(path)

    def run(
        self,
        argv: list[str],
        *,
        tier: str | None = None,
        confined: bool = True,
        profile: str | None = None,
        **spec: Any,
    ) -> dict[str, Any]:
        """Run a command as this user; the driver's answer."""
        spec = {
            "argv": argv,
            "confined": confined,
            "profile": profile or self.profile(),
            "tier": tier,
            "world": str(self.folder),
            "env": {},
            "read": [str(HERE / "attempts.py"), self.world["read_folder"]],
            "write": [],
            **spec,
        }
        if confined:
            self.probe()
            spec["facts"] = self.host
        spec["read"] = [str(self.visible(p)) for p in spec["read"]]
        command = [self.python, str(self.visible(HERE / "driver.py")), json.dumps(spec)]
        done = subprocess.run(
            command,
            **self.identity(),
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return json.loads(done.stdout)

    def attempts(self, names: list[str], **spec: Any) -> dict[str, dict[str, str]]:
        """Run attempts in one confined (or unconfined) process: name → outcome, detail."""
        script = str(self.visible(HERE / "attempts.py"))
        argv = ["/usr/bin/python3", "-SI", script, json.dumps(self.world), *names]
        answer = self.run(argv, **spec)
        assert answer.get("exit") == 0, answer
        self.layers = {layer["name"]: layer["state"] for layer in answer.get("layers", ())}
        results: dict[str, dict[str, str]] = json.loads(answer["stdout"])
        return results

    def need(self, tier: str) -> None:
        """Skip, or fail where skipping is forbidden, if this user's host lacks a tier."""
        self.probe()
        host = self.host
        works = host["tier"] == tier if tier == "namespaced" else host["landlock_abi"] > 0
        self.require(f"the {tier} tier for {self.user}", works, json.dumps(host["reasons"]))

    def probe(self) -> None:
        """Ask once what this host gives this user."""
        if not self.host:
            probe = [self.python, "-m", "vsm", "sandbox", "probe", "--json"]
            done = subprocess.run(probe, check=True, capture_output=True, **self.identity())
            self.host = json.loads(done.stdout)["host"]

    def identity(self) -> dict[str, Any]:
        """How subprocess.run becomes this user."""
        other = self.uid != os.geteuid()
        return {
            "user": self.uid if other else None,
            "group": self.uid if other else None,
            "extra_groups": [] if other else None,
            "env": {**self.environment, SECRET_VARIABLE: "1"},
            "cwd": "/",
        }

    def visible(self, path: str | Path) -> Path:
        """The copy of a test's file that this user may read."""
        path = Path(path)
        return self.folder / "copy" / path.name if path.parent == HERE else path


@pytest.fixture(scope="session", params=["root", "user"])
def arena(
    request: pytest.FixtureRequest, scratch: Path, require: Callable[[str, bool, str], None]
) -> Iterator[Arena]:
    """A world outside, made for root or for an ordinary user; both need root to make."""
    require("root's workers", request.param == "user" or os.geteuid() == 0, "not root")
    uid = NOBODY if request.param == "user" and os.geteuid() == 0 else os.geteuid()
    scratch.chmod(0o711)
    folder = Path(tempfile.mkdtemp(prefix=f"world-{request.param}-", dir=scratch))
    folder.chmod(0o777)  # nothing but the sandbox is in an attacker's way
    made = Arena(request.param, uid, "", {}, folder, {}, require)
    with World(made) as world:
        made.world = world
        yield made
    shutil.rmtree(folder)


class World:
    """Makes and removes what is outside."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.undo = arena, list[Callable[[], object]]()

    def __enter__(self) -> dict[str, Any]:
        arena, folder = self.arena, self.arena.folder
        for name in ("copy", "profiles", "open", "read"):
            (folder / name).mkdir()
        (folder / "open").chmod(0o777)
        (folder / "profiles").chmod(0o755)
        for name in ("attempts.py", "driver.py"):
            shutil.copy(HERE / name, folder / "copy" / name)
        arena.profile()
        arena.python, arena.environment = _interpreter(arena)
        victim = self.victim()
        network = os.readlink("/proc/self/ns/net")
        return {
            **self.files(folder),
            **self.sockets(folder),
            **self.ipc(),
            **LIMITS,
            "victim": victim,
            "starter": os.getpid() if arena.uid == os.geteuid() else victim,
            "network_namespace": network,
            "cgroup_procs": next(map(str, Path("/sys/fs/cgroup").glob("**/cgroup.procs")), ""),
            "leaked_fd": LEAKED_FD,
            "secret_variable": SECRET_VARIABLE,
            "host_name": os.uname().nodename,
            "can_raise": False,
        }

    def __exit__(self, *_: object) -> None:
        for action in reversed(self.undo):
            action()

    def files(self, folder: Path) -> dict[str, Any]:
        opened = folder / "open"
        for name, text in (("writable.txt", "12345"), ("renamed.txt", ""), ("removed.txt", "")):
            (opened / name).write_text(text)
            (opened / name).chmod(0o666)
        for path in (folder / "secret.txt", folder / "read" / "readable.txt"):
            path.write_text("secret of the host")
            path.chmod(0o666)
        os.chmod(folder / "read", 0o777)
        shutil.copy("/usr/bin/true", folder / "open" / "tool")
        shutil.copy("/usr/bin/id", folder / "read" / "setuid-id")
        (folder / "read" / "setuid-id").chmod(0o4755)
        (folder / "open" / "owned.txt").touch(mode=0o644)
        os.chown(folder / "open" / "owned.txt", self.arena.uid, -1)
        os.mkfifo(folder / "fifo")
        (folder / "fifo").chmod(0o666)
        return {
            "folder": str(folder),
            "owned": str(opened / "owned.txt"),
            "secret": str(folder / "secret.txt"),
            "open_folder": str(opened),
            "writable": str(opened / "writable.txt"),
            "writable_size": 5,
            "renamed": str(opened / "renamed.txt"),
            "removed": str(opened / "removed.txt"),
            "read_folder": str(folder / "read"),
            "readable": str(folder / "read" / "readable.txt"),
            "tool": str(opened / "tool"),
            "setuid_tool": str(folder / "read" / "setuid-id"),
            "fifo": str(folder / "fifo"),
        }

    def sockets(self, folder: Path) -> dict[str, Any]:
        tcp = self.listen(socket.AF_INET, ("127.0.0.1", 0))
        try:
            tcp6 = self.listen(socket.AF_INET6, ("::1", 0)).getsockname()[1]
        except OSError:
            tcp6 = 0
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self.undo.append(udp.close)
        unix, abstract = str(folder / "unix.sock"), f"vsm-test-{os.getpid()}-{folder.name}"
        self.listen(socket.AF_UNIX, unix)
        os.chmod(unix, 0o777)
        self.listen(socket.AF_UNIX, "\0" + abstract)
        return {
            "tcp": tcp.getsockname()[1],
            "tcp6": tcp6,
            "udp": udp.getsockname()[1],
            "unix": unix,
            "abstract": abstract,
        }

    def listen(self, family: int, address: Any) -> socket.socket:
        listener = socket.socket(family, socket.SOCK_STREAM)
        self.undo.append(listener.close)
        listener.bind(address)
        listener.listen(100)
        return listener

    def ipc(self) -> dict[str, Any]:
        libc = ctypes.CDLL(None, use_errno=True)
        key = 0x56534D00 + self.arena.folder.stat().st_ino % 0xFF
        create = 0o1666
        for remove, ident in (
            (lambda i: libc.shmctl(i, 0, None), libc.shmget(key, 4096, create)),
            (lambda i: libc.msgctl(i, 0, None), libc.msgget(key, create)),
            (lambda i: libc.semctl(i, 0, 0), libc.semget(key, 1, create)),
        ):
            assert ident >= 0, os.strerror(ctypes.get_errno())
            self.undo.append(lambda remove=remove, ident=ident: remove(ident))
        shm = Path(f"/dev/shm/{self.arena.folder.name}")
        shm.touch()
        shm.chmod(0o666)
        self.undo.append(shm.unlink)
        return {"sysv_key": key, "shm_file": str(shm), "posix_queue": self.queue(libc)}

    def queue(self, libc: Any) -> str:
        name = self.arena.folder.name
        mask = os.umask(0)
        fd = libc.mq_open(b"/" + name.encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
        os.umask(mask)
        if fd < 0:
            return ""
        os.close(fd)
        self.undo.append(lambda: libc.mq_unlink(b"/" + name.encode()))
        return name

    def victim(self) -> int:
        uid = self.arena.uid
        other = uid if uid != os.geteuid() else None
        process = subprocess.Popen(["/usr/bin/sleep", "3600"], user=other, group=other, cwd="/")

        def end() -> None:
            process.kill()
            process.wait()

        self.undo.append(end)
        return process.pid


def _interpreter(arena: Arena) -> tuple[str, dict[str, str]]:
    """A Python that this user may run, and the environment in which it imports vsm."""
    if arena.uid == os.geteuid():
        return sys.executable, {"PATH": "/usr/bin:/bin"}
    library = arena.folder / "library"
    library.mkdir()
    package, codec = Path(vsm.__file__).parent, Path(msgspec.__file__).parent
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, library / "vsm", ignore=skip)
    shutil.copytree(codec, library / "msgspec", ignore=skip)
    if not (library / "vsm" / "sandbox_profiles").exists():
        shutil.copytree(shipped_profiles(), library / "sandbox_profiles")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(library),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{own}", f"/usr/local/bin/{own}"):
        try:
            done = subprocess.run(
                [python, "-c", "import msgspec, vsm.plan"],
                user=arena.uid,
                group=arena.uid,
                extra_groups=[],
                env=environment,
                cwd="/",
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return python, environment
    arena.require(f"a {own} that an ordinary user may run", False, "none was found")
    raise AssertionError
