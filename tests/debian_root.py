"""A Debian root with vsm's dependencies, for proofs on another kernel or service manager.

Made once by mmdebstrap in a cache directory that only root may enter, and used again only while it
is what was made. Needs root; used by scripts/service-proof and scripts/kernel-proof.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv/bin/python"
PYTHONS = {"trixie": "3.13", "bookworm": "3.11"}
STEP_S = 360.0
MAKING_S = 1800.0  # some hundred packages over a network, beside whatever else the machine does
MONTH_S = 30 * 86400


class FailedError(Exception):
    """A step did not show what it has to show."""


def run(*command: str, timeout_s: float = STEP_S, **more: object) -> str:
    """Run it and return what it printed; its words are the error's."""
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            command, capture_output=True, text=True, check=False, timeout=timeout_s, **more
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{' '.join(command)}: not done within {timeout_s:g} s") from error
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        raise FailedError(f"{' '.join(command)}: exit status {done.returncode}\n{said}")
    return str(done.stdout)


def say(text: str) -> None:
    """One line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def wheel(folder: Path) -> Path:
    """Build the tree's wheel."""
    run(str(PYTHON), "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    return next(folder.glob("vsm-*.whl"))


def base_root(
    cache: Path, built: Path, suite: str, packages: str, also: tuple[str, ...] = ()
) -> Path:
    """A Debian root with vsm's dependencies in /opt/vsm; made once for each set of them.

    Args:
        cache: of `owned`. built: vsm's wheel. suite: of Debian.
        packages: Debian's, with commas. also: more of PyPI's.
    """
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.")[0]
    stamp = hashlib.sha256((suite + packages + wanted).encode()).hexdigest()[:16]
    base, seal = cache / f"{suite}-{stamp}", cache / f"{suite}-{stamp}.seal"
    if _is_sound(base, seal):
        return base
    for old in cache.glob(f"{suite}-*"):
        say(f"removing {old.name}: not what this run needs")
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    began = time.monotonic()
    say(f"making a Debian root in {base} ...")
    fresh = cache / f"{base.name}.new"
    with ThreadPoolExecutor() as beside, tempfile.TemporaryDirectory(prefix="vsm-wheels-") as got:
        downloading = beside.submit(_download, Path(got), built, PYTHONS[suite], also)
        run(
            "mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", suite,
            str(fresh), timeout_s=MAKING_S,
        )  # fmt: skip
        downloading.result()
        shutil.copytree(got, fresh / "opt/wheels")
    run("chroot", str(fresh), "python3", "-m", "venv", "/opt/vsm")
    install(fresh, built, also)
    shutil.rmtree(fresh / "opt/wheels")
    fresh.rename(base)
    seal.write_text(_fingerprint(base), encoding="ascii")
    say(f"made in {time.monotonic() - began:.0f} s")
    return base


def _download(folder: Path, built: Path, version: str, also: tuple[str, ...]) -> None:
    run(
        str(PYTHON), "-m", "pip", "download", "-q", "--dest", str(folder), "--only-binary", ":all:",
        "--python-version", version, *platforms(), *also, str(built),
    )  # fmt: skip


def _is_sound(base: Path, seal: Path) -> bool:
    """Whether it is whole, unchanged since it was made, and not too old."""
    if not (base.is_dir() and seal.is_file()) or time.time() - seal.stat().st_mtime > MONTH_S:
        return False
    return seal.read_text(encoding="ascii") == _fingerprint(base)


def _fingerprint(base: Path) -> str:
    """What every file of a root is, by its inode; a change of content changes its time."""
    seen = hashlib.sha256()
    for folder, folders, files in os.walk(base):
        folders.sort()
        for path in (folder, *(os.path.join(folder, name) for name in sorted(files))):
            it = os.lstat(path)
            row = (
                path,
                it.st_mode,
                it.st_uid,
                it.st_gid,
                it.st_size,
                it.st_mtime_ns,
                it.st_ctime_ns,
            )
            seen.update(repr(row).encode())
    return seen.hexdigest()


@contextlib.contextmanager
def owned(cache: Path) -> Iterator[Path]:
    """The cache directory, root's alone, and nobody else's until the block ends."""
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = cache.lstat()
    if found.st_uid != 0 or found.st_mode & 0o077 or not cache.is_dir() or cache.is_symlink():
        raise FailedError(f"{cache}: expected a directory that only root may enter. Remove it.")
    with (cache / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever has it ends within TOGETHER_S
        yield cache


def platforms() -> list[str]:
    """The wheels that a Debian of today can use."""
    tags = [f"manylinux_2_{minor}" for minor in (41, 39, 38, 36, 35, 34, 31, 28, 27, 26, 24, 17)]
    machine = os.uname().machine
    return [word for tag in [*tags, "manylinux2014"] for word in ("--platform", f"{tag}_{machine}")]


def install(root: Path, built: Path, also: tuple[str, ...] = ()) -> None:
    """Install the wheel in the root's environment, without a network."""
    target = root / "opt" / built.name
    shutil.copy(built, target)
    run(
        "chroot", str(root), "/opt/vsm/bin/python", "-m", "pip", "install", "-q", "--no-index",
        "--force-reinstall", *([] if (root / "opt/wheels").is_dir() else ["--no-deps"]),
        "--find-links", "/opt/wheels", *also, f"/opt/{built.name}",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PIP_CONFIG_FILE": "/dev/null"},
    )  # fmt: skip
    target.unlink()
