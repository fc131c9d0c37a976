"""A wall clock that a test may set, for processes that the test starts and all below them.

A library in place of libc's readings of CLOCK_REALTIME, named by an /etc/ld.so.preload that only
a mount namespace of its own sees: so processes that start others without an environment have it
too. Steady clocks stay the kernel's.
"""

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "servers/wall_clock.c"
_ENTER = 'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc && exec "$@"'


class WallClock:
    """One clock, and the words by which processes get it."""

    def __init__(self, folder: Path) -> None:
        self._ahead = folder / "ahead"
        self.set(0)
        etc, library = folder / "etc", folder / "wall_clock.so"
        etc.mkdir()
        etc.chmod(0o755)
        (etc / "ld.so.preload").write_text(f"{library}\n", encoding="utf-8")
        defined = f'-DAHEAD="{self._ahead}"'
        words = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", defined]
        subprocess.run([*words, "-o", str(library), str(SOURCE)], check=True)
        self.prefix = ("unshare", "--mount", "sh", "-c", _ENTER, str(etc))

    def set(self, ahead_s: int) -> None:
        """Make it go so much before the real one, from now on, for all who have it."""
        with self._ahead.open("r+b" if self._ahead.exists() else "w+b") as file:
            file.write(struct.pack("q", ahead_s))

    def missing(self) -> str:
        """Why processes cannot have it here."""
        done = subprocess.run([*self.prefix, "true"], capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stderr.strip()


def compiler() -> bool:
    """Whether there is one."""
    return shutil.which("cc") is not None
