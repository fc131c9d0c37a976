"""The world that attempts see: files, sockets, processes and segments made for them.

Made and removed around an audit, in a temporary folder and on loopback; nothing of the host's
own is touched. Runs unconfined, as whoever asks for the audit.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from vsm import attempts
from vsm.attempts.base import last_error, libc

EVERYBODY = 0o777  # nothing but the sandbox is in an attacker's way
LEAKED_FD = 77
ASKED_SIGNALS = tuple(range(signal.SIGRTMIN + 3, signal.SIGRTMAX))
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECRET_VARIABLE = "VSM_TEST_SECRET"  # noqa: S105  # a name


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM come after the block: none falls between a thing and the note to undo it.

    For a process of one thread; what it starts within the block has them blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def copy_attempts(folder: Path) -> None:
    """Put the attempts where a confined interpreter can read them."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(attempts.__file__).parent, folder / "attempts", ignore=skip)


def block_device() -> str:
    """The node of a block device of the host's; "" if it shows none."""
    return next(
        (str(path) for path in Path("/dev").glob("[lnsv][vdo]*") if path.is_block_device()), ""
    )


class World:
    """Makes what is outside, and removes it.

    Args:
        folder: an empty one, in which everything is made; for everybody to write in.
        uid: whose files and whose process the targets are.
        limits: of the profile, by the attempts' names for them.
    """

    def __init__(self, folder: Path, uid: int, limits: dict[str, float]) -> None:
        self.folder, self.uid, self.limits = folder, uid, limits
        self.undo: list[Callable[[], object]] = []

    def __enter__(self) -> dict[str, Any]:
        try:
            return self.make()
        except BaseException:
            self.__exit__()
            raise

    def make(self) -> dict[str, Any]:
        """Everything, and what the attempts have to know of it."""
        folder = self.folder
        for name in ("copy", "open", "read"):
            (folder / name).mkdir()
        (folder / "open").chmod(EVERYBODY)
        copy_attempts(folder / "copy")
        victim = self.victim()
        network = os.readlink("/proc/self/ns/net")
        return {
            **self.files(folder),
            **self.sockets(folder),
            **self.ipc(),
            **self.limits,
            "victim": victim,
            "asked_signals": ASKED_SIGNALS,
            "starter": os.getpid() if self.uid == os.geteuid() else victim,
            "network_namespace": network,
            "cgroup_procs": next(map(str, Path("/sys/fs/cgroup").glob("**/cgroup.procs")), ""),
            "leaked_fd": LEAKED_FD,
            "secret_variable": SECRET_VARIABLE,
            "host_name": os.uname().nodename,
            "can_raise": False,
            "block_device": block_device(),
            "users": len(Path("/etc/passwd").read_text(errors="replace").splitlines()),
        }

    def __exit__(self, *_: object) -> None:
        for action in reversed(self.undo):
            action()

    def files(self, folder: Path) -> dict[str, Any]:
        """Files of the host, some of them the user's own."""
        opened = folder / "open"
        for name, text in (("writable.txt", "12345"), ("renamed.txt", ""), ("removed.txt", "")):
            (opened / name).write_text(text)
            (opened / name).chmod(0o666)
        for path in (folder / "secret.txt", folder / "read" / "readable.txt"):
            path.write_text("secret of the host")
            path.chmod(0o666)
        os.chmod(folder / "read", EVERYBODY)
        shutil.copy("/usr/bin/true", folder / "open" / "tool")
        shutil.copy("/usr/bin/id", folder / "read" / "setuid-id")
        (folder / "read" / "setuid-id").chmod(0o4755)
        (folder / "read" / "removed.txt").touch()
        (folder / "read" / "removed.txt").chmod(0o666)
        for path in (opened / "owned.txt", folder / "read" / "owned.txt"):
            path.touch(mode=0o644)
            os.chown(path, self.uid, -1)
        os.mkfifo(folder / "fifo")
        beside = Path(f"/tmp/vsm-world-{os.getpid()}-{folder.name}")  # noqa: S108 - removed below
        beside.touch()
        self.undo.append(beside.unlink)
        (folder / "fifo").chmod(0o666)
        return {
            "folder": str(folder),
            "beside": str(beside),
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
            "readable_owned": str(folder / "read" / "owned.txt"),
            "readable_removed": str(folder / "read" / "removed.txt"),
            "fifo": str(folder / "fifo"),
        }

    def sockets(self, folder: Path) -> dict[str, Any]:
        """Listeners on loopback, in the file system and in the abstract namespace."""
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
        os.chmod(unix, EVERYBODY)
        self.listen(socket.AF_UNIX, "\0" + abstract)
        datagram_path = str(folder / "datagram.sock")
        datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        datagram.bind(datagram_path)
        os.chmod(datagram_path, EVERYBODY)
        self.undo.append(datagram.close)
        return {
            "tcp": tcp.getsockname()[1],
            "tcp6": tcp6,
            "udp": udp.getsockname()[1],
            "unix": unix,
            "unix_datagram": datagram_path,
            "abstract": abstract,
        }

    def listen(self, family: int, address: str | tuple[str, int]) -> socket.socket:
        """One listener."""
        listener = socket.socket(family, socket.SOCK_STREAM)
        self.undo.append(listener.close)
        listener.bind(address)
        listener.listen(100)
        return listener

    def ipc(self) -> dict[str, Any]:
        """System V objects, a segment and a queue."""
        key = 0x56 << 24 | int.from_bytes(os.urandom(3), "big")  # another world's would be removed
        create = 0o3666  # IPC_CREAT | IPC_EXCL: never somebody else's
        for remove, ident in (
            (lambda i: libc.shmctl(i, 0, None), libc.shmget(key, 4096, create)),
            (lambda i: libc.msgctl(i, 0, None), libc.msgget(key, create)),
            (lambda i: libc.semctl(i, 0, 0), libc.semget(key, 1, create)),
        ):
            if ident < 0:
                raise last_error()
            self.undo.append(partial(remove, ident))
        shm = Path(f"/dev/shm/{self.folder.name}")  # noqa: S108 - removed below
        shm.touch()
        shm.chmod(0o666)
        self.undo.append(shm.unlink)
        return {"sysv_key": key, "shm_file": str(shm), "posix_queue": self.queue()}

    def queue(self) -> str:
        """A POSIX message queue; "" where there is none."""
        name = self.folder.name
        mask = os.umask(0)
        fd = libc.mq_open(b"/" + name.encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
        os.umask(mask)
        if fd < 0:
            return ""
        os.close(fd)
        self.undo.append(lambda: libc.mq_unlink(b"/" + name.encode()))
        return name

    def victim(self) -> int:
        """A process of the user's, in sleep."""
        uid = self.uid
        other = uid if uid != os.geteuid() else None
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ASKED_SIGNALS)  # stay pending: seen
        try:
            process = subprocess.Popen(["/bin/sleep", "3600"], user=other, group=other, cwd="/")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

        def end() -> None:
            process.kill()
            process.wait()

        self.undo.append(end)
        return process.pid
