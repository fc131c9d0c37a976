"""A container start of an interpreter, by whatever container runtime is on PATH, or why not.

The runtimes get one bundle: an empty root with the interpreter's files bound into it, read-only,
namespaces of their own, no capabilities, no network. podman gets an image made of nothing (its
storage is below this run's directory) with the same files bound into it. Nothing is pulled; no
daemon is started. Where version 2 of control groups is mounted beside version 1, crun starts
nothing: it and podman then run in a mount namespace without it, which costs a millisecond.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

_HYBRID = "/sys/fs/cgroup/unified"
_PLAIN = ["unshare", "--mount", "sh", "-c", f'umount {_HYBRID} && exec "$@"', "sh"]
RUNTIMES = {
    "crun": ["--cgroup-manager=disabled"],
    "runc": [],
    "runsc": ["--ignore-cgroups", "--network=none", "--rootless=false"],
}
"""Name on PATH → options; runsc is gVisor's."""
CODE = "print(2 ** 10)"
_TIMEOUT_S = 60
_BOUND = ("/usr", "/lib", "/lib64", "/bin")
_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")


class Containers:
    """What can start a container here; a context manager, for its bundle is a folder.

    Attributes:
        variants: name → one start to its end.
        absent: name → why there is none.
    """

    def __enter__(self) -> Self:
        self.variants: dict[str, Callable[[], None]] = {}
        self.absent: dict[str, str] = {}
        self._count = 0
        self._folder = tempfile.TemporaryDirectory(prefix="vsm-r-", ignore_cleanup_errors=True)
        self._imported = False
        bundle = Path(self._folder.name)
        (bundle / "root").mkdir()
        (bundle / "config.json").write_text(json.dumps(_configuration()), encoding="utf-8")
        for name, options in RUNTIMES.items():
            self._try(f"{name} run", name, partial(self._start, options=options))
        self._try("podman run", "podman", self._podman)
        self._try("docker run", "docker", self._docker)
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def _try(self, label: str, name: str, start: Callable[[str], None]) -> None:
        path = shutil.which(name)
        if path is None:
            self.absent[label] = f"no {name} on PATH"
            return
        try:
            start(path)
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            text = said if isinstance(said, str) else said.decode(errors="replace")
            self.absent[label] = (text.strip().splitlines() or ["it said nothing"])[0][:120]
            return
        self.variants[label] = lambda: start(path)

    def _start(self, path: str, *, options: list[str]) -> None:
        self._count += 1
        state = os.path.join(self._folder.name, "state")
        container = f"vsm-r-{os.getpid()}-{self._count}"
        runtime = [*_before(path), path, "--root", state, *options]
        try:
            _run([*runtime, "run", "--bundle", self._folder.name, container])
        except (subprocess.SubprocessError, OSError):
            delete = [*runtime, "delete", "--force", container]
            subprocess.run(delete, check=False, capture_output=True)
            raise

    def _podman(self, path: str) -> None:
        """`podman run --rm` of a local image, without control groups."""
        stored = [f"--root={self._folder.name}/storage", f"--runroot={self._folder.name}/run"]
        settings = os.path.join(self._folder.name, "containers.conf")
        Path(settings).write_text(  # else its locks stay in /dev/shm
            f'[engine]\nlock_type = "file"\ntmp_dir = "{self._folder.name}/tmp"\n', encoding="utf-8"
        )
        podman = ["env", f"CONTAINERS_CONF={settings}", *_before(path), path, *stored]
        if not self._imported:
            archive = os.path.join(self._folder.name, "image.tar")
            with tarfile.open(archive, "w"):
                pass
            importing = [*podman, "import", "--quiet", archive, "vsm-bench"]
            subprocess.run(importing, check=True, capture_output=True, timeout=_TIMEOUT_S)
            self._imported = True
        bound = [f"--volume={folder}:{folder}:ro" for folder in _folders()]
        limits = [f"--ulimit={name}=1024:1024" for name in ("nofile", "nproc")]
        isolation = ["--network=none", "--cgroups=disabled", "--cap-drop=all", *limits]
        command = [*podman, "run", "--rm", "--pull=never", *isolation, *bound, "vsm-bench"]
        _run([*command, sys.executable, "-SI", "-c", CODE])

    def _docker(self, path: str) -> None:
        """Only an image that is there already: nothing is pulled."""
        command = [path, "run", "--rm", "--pull=never", "--network=none", "python:3-slim"]
        _run([*command, "python3", "-SI", "-c", CODE])


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, timeout=_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL
    )
    if done.stdout != b"1024\n":
        raise subprocess.SubprocessError(f"it printed {done.stdout[:60]!r}")


def _before(path: str) -> list[str]:
    """What has to come before a program that refuses both versions of control groups at once."""
    needed = os.path.basename(path) in {"crun", "podman"} and os.path.isdir(_HYBRID)
    return _PLAIN if needed else []


def _folders() -> list[str]:
    """What the interpreter needs, with nothing twice."""
    own = {os.path.realpath(folder) for folder in (sys.base_prefix, sys.prefix)}
    found = [folder for folder in _BOUND if os.path.isdir(folder)]
    return [*found, *sorted(folder for folder in own if not folder.startswith("/usr"))]


def _configuration() -> dict[str, Any]:
    mounts = [
        {"destination": folder, "source": folder, "type": "bind", "options": ["rbind", "ro"]}
        for folder in _folders()
    ]
    proc = {"destination": "/proc", "type": "proc", "source": "proc"}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 65534, "gid": 65534},
            "args": [sys.executable, "-SI", "-c", CODE],
            "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "root", "readonly": True},
        "hostname": "container",
        "mounts": [proc, {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}, *mounts],
        "linux": {"namespaces": [{"type": name} for name in _NAMESPACES]},
    }
