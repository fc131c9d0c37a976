"""The supervisor's side of a zygote: a confined Python server that is forked for each session.

Runs in the supervisor. Owns its end of the channel; the process at the other end is the
integration's worker (`vsm.processes.zygote_program`), foreign like any server. What it says is
a few words, bounded and checked; which process a fork is comes from the kernel. Whatever does not
fit ends it.
"""

import array
import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from vsm.errors import ConfigurationError
from vsm.linux import pidfd, senders
from vsm.output import printable
from vsm.processes.launcher_link import LaunchError

PROGRAM: Final = Path(__file__).with_name("zygote_program.py")
# Reads what it shall run from its stdin, so that a list of processes stays readable.
BOOT: Final = "import os;exec(compile(os.read(0,1<<17),'vsm-zygote','exec'))"
FORK_TIMEOUT_S: Final = 10.0
_MOST_MESSAGE_BYTES: Final = 4096
_MOST_LINE_BYTES: Final = 256
_INTERPRETER: Final = "python"
_WITH_VALUE: Final = frozenset({"-W", "-X"})

Text = Annotated[str, msgspec.Meta(max_length=512)]


class Said(msgspec.Struct, forbid_unknown_fields=True):
    """What comes from the other end."""

    kind: Literal["ready", "unfit", "forked", "failed"]
    number: int = 0
    what: Text = ""


class Fork(NamedTuple):
    """A process; owns the pidfd."""

    pid: int
    pidfd: int


def zygote_argv(command: tuple[str, ...], *, where: str) -> tuple[str, ...]:
    """The argv that starts a zygote of a Python server.

    Args:
        command: the server's, the program's path absolute.
        where: of the key, for errors.

    Raises:
        ConfigurationError: it is not `python … -m MODULE`, `python … SCRIPT` or a Python script.
    """
    program, words = command[0], list(command[1:])
    options: list[str] = []
    if not os.path.basename(program).startswith(_INTERPRETER):
        return (_interpreter_of(program, where), "-c", BOOT, program, *words)
    while words and words[0].startswith("-") and words[0] != "-m":
        if words[0] in {"-c", "-"}:
            break
        options += [words.pop(0) for _ in range(2 if words[0] in _WITH_VALUE else 1) if words]
    if not words or words[0] in {"-c", "-"} or words == ["-m"]:
        what = "a zygote needs `python -m MODULE`, `python SCRIPT` or a script of Python"
        raise ConfigurationError(where, what, "Name the module, or leave zygote out.")
    return (program, *options, "-c", BOOT, *words)


def _interpreter_of(script: str, where: str) -> str:
    """What the first line of a script names."""
    try:
        with open(script, "rb") as file:
            line = file.readline(_MOST_LINE_BYTES)
    except OSError as error:
        raise ConfigurationError(where, f"{script}: {error.strerror}") from error
    words = line[2:].decode("utf-8", "replace").split() if line.startswith(b"#!") else []
    if len(words) == 1 and os.path.basename(words[0]).startswith(_INTERPRETER):
        return words[0]
    what = f"{script} is no script that names its Python in the first line"
    raise ConfigurationError(where, what, 'Write ["…/bin/python", "-m", "MODULE"].')


class Zygote:
    """One zygote.

    Args:
        on_ready: it can be forked.
        on_unfit: it is of no use, for this reason, and whether another one would be neither; it
            is to be killed.
    """

    def __init__(self, on_ready: Callable[[], None], on_unfit: Callable[[str, bool], None]) -> None:
        self._on_ready = on_ready
        self._on_unfit = on_unfit
        self._link, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)  # noqa: FBT003 - the method takes no keyword
        senders.ask_for_senders(self._link)
        self._waiting: dict[int, asyncio.Future[Fork]] = {}
        self._given_up: set[int] = set()  # ordered, and whoever wanted it has gone
        self._init_pid = self._pid = 0
        self._ended = False
        asyncio.get_running_loop().add_reader(self._link, self._readable)

    @property
    def stdin(self) -> int:
        """What is to be its stdin; this object's."""
        return self._theirs.fileno()

    def begin(self, init_pid: int) -> None:
        """It runs, below the mini-init of this pid: tell it what it is."""
        self._init_pid = init_pid
        self._theirs.close()
        try:
            self._link.send(PROGRAM.read_bytes())
        except OSError as error:
            self._unfit(f"it does not take its program: {error.strerror}")

    async def fork(self, number: int, stdio: tuple[int, int, int]) -> Fork:
        """Make one more process of it; if this is cancelled, that process is killed.

        Args:
            number: of the instance, never used before.
            stdio: its fds, kept by the caller.

        Raises:
            LaunchError: there is none.
        """
        if self._ended:
            raise LaunchError("the zygote has ended")
        answer: asyncio.Future[Fork] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", stdio))]
            self._link.sendmsg([json.dumps({"number": number}).encode()], rights)
            async with asyncio.timeout(FORK_TIMEOUT_S):
                return await answer
        except asyncio.CancelledError:
            if answer.cancelled():
                self._given_up |= {number} & self._waiting.keys()  # unless it came meanwhile
            elif answer.exception() is None:  # it had come, and nobody took it
                _kill(answer.result())
            raise
        except TimeoutError:
            if answer.done() and not answer.cancelled():
                return answer.result()  # it was there in time: we were late
            self._unfit(f"it did not fork within {FORK_TIMEOUT_S:g} s")
            raise LaunchError("the zygote did not fork in time") from None
        except OSError as error:
            raise LaunchError(f"the zygote takes no order: {error.strerror}") from error
        finally:
            self._waiting.pop(number, None)

    def end(self) -> None:
        """Ask it to end, by the end of the channel; whoever waits for a fork waits in vain."""
        if self._ended:
            return
        self._ended = True
        asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()
        self._theirs.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LaunchError("the zygote ended"))

    def _unfit(self, reason: str, *, hopeless: bool = False) -> None:
        if not self._ended:
            self.end()
            self._on_unfit(reason, hopeless)

    def _readable(self) -> None:
        letter = senders.Letter(b"", 0, -1)
        try:
            letter = senders.receive(self._link, _MOST_MESSAGE_BYTES)
            if not letter.data:
                self._unfit("it has ended")
                return
            self._hear(msgspec.json.decode(letter.data, type=Said), letter)
        except BlockingIOError:
            return
        except OSError as error:
            self._unfit(f"its channel broke: {error.strerror}")
        except (ValueError, msgspec.MsgspecError):
            self._unfit("it broke the protocol of zygotes", hopeless=True)
        finally:
            if letter.pidfd >= 0:
                os.close(letter.pidfd)

    def _hear(self, said: Said, letter: senders.Letter) -> None:
        """Raises ValueError for a word out of turn."""
        if said.kind == "unfit":
            self._unfit(printable(said.what.encode()), hopeless=True)
            return
        parent = _parent(letter.pid)
        if said.kind == "ready" and not self._pid and parent and parent == self._init_pid:
            self._pid = letter.pid
            self._on_ready()
            return
        answer = self._waiting.get(said.number)
        given_up = said.number in self._given_up if answer is None else answer.cancelled()
        if given_up and said.kind in {"forked", "failed"}:
            self._given_up.discard(said.number)
            self._waiting.pop(said.number, None)
            if said.kind == "forked" and (fork := self._sender(letter)) is not None:
                _kill(fork)
            return
        if answer is None or answer.done():
            raise ValueError(said.kind)
        if said.kind == "failed":
            what = printable(said.what.encode())
            answer.set_exception(LaunchError(f"the zygote could not fork: {what}"))
        elif said.kind == "forked":
            fork = self._sender(letter)
            if fork is None:
                answer.set_exception(LaunchError("the fork ended at once"))
            else:
                answer.set_result(fork)
        else:
            raise ValueError(said.kind)

    def _sender(self, letter: senders.Letter) -> Fork | None:
        """The sender, if that is the zygote's own child; None if it is dead.

        Raises:
            ValueError: it is another process.
        """
        try:
            fd = os.dup(letter.pidfd) if letter.pidfd >= 0 else pidfd.open_pidfd(letter.pid)
        except OSError:
            fd = -1
        parent = _parent(letter.pid)  # looked at while the process is held
        if fd >= 0 and self._pid and parent == self._pid:
            return Fork(letter.pid, fd)
        if fd >= 0:
            os.close(fd)
        if parent:
            raise ValueError("not a child of the zygote")
        return None


def _kill(fork: Fork) -> None:
    pidfd.send_signal(fork.pidfd, signal.SIGKILL)
    os.close(fork.pidfd)


def _parent(pid: int) -> int:
    """The parent's pid, 0 where there is no such process."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat.rpartition(b")")[2].split()[1])
    return 0
