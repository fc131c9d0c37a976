"""The world that attackers see: what the tests made outside of the sandbox, for each user.

Attempts run as root's workers and as an ordinary user's, in both tiers; `Arena.run` starts the
driver as that user. An interpreter that the ordinary user may run is found or the tests skip.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from running import START_TIMEOUT_S

import vsm
from vsm.audit.battery import CODE
from vsm.audit.world import SECRET_VARIABLE, World
from vsm.paths import shipped_profiles

HERE = Path(__file__).parent
NOBODY = 65534
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
            "read": [str(self.folder / "copy"), self.world["read_folder"]],
            "write": [],
            **spec,
        }
        if confined:
            self.probe()
            if tier == "landlocked" and self.old_landlock and "host" not in spec:
                spec["profile"] = self._lacking_landlock(spec["profile"])
            spec["facts"] = self.host
        spec["read"] = [str(self.visible(p)) for p in spec["read"]]
        command = [self.python, str(self.visible(HERE / "driver.py")), json.dumps(spec)]
        done = subprocess.run(
            command,
            **self.identity(),
            capture_output=True,
            timeout=4 * START_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return json.loads(done.stdout)

    def attempts(self, names: list[str], **spec: Any) -> dict[str, dict[str, str]]:
        """Run attempts in one confined (or unconfined) process: name → outcome, detail."""
        copy = str(self.folder / "copy")
        world = {**self.world, "is_control": not spec.get("confined", True)}
        argv = ["/usr/bin/python3", "-SI", "-c", CODE, copy, json.dumps(world), *names]
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

    @property
    def old_landlock(self) -> bool:
        """Whether the landlocked tier is refused here to profiles that need all of Landlock."""
        return 0 < self.host["landlock_abi"] < (3 if self.user == "root" else 6)

    def _lacking_landlock(self, profile: str) -> str:
        path = Path(profile).with_name(f"old-{Path(profile).name}")
        path.write_text(f'extends = "{profile}"\nmay_lack = ["landlock"]\n')
        return str(path)

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
    (folder / "profiles").mkdir(mode=0o755)
    with World(folder, uid, LIMITS) as world:
        shutil.copy(HERE / "driver.py", folder / "copy" / "driver.py")
        made.profile()
        made.python, made.environment = _interpreter(made)
        made.world = world
        yield made
    shutil.rmtree(folder)


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
                [python, "-c", "import msgspec, vsm.confinement.plan"],
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
