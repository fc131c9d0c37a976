"""What a zygote runs: a Python server up to where it reaches for its stdin, then a fork a session.

Runs in the worker, confined before the first line of it; the server's own interpreter executes
this text, which comes through the channel, so it needs nothing of vsm and nothing newer than
Python 3.8. Nobody trusts a word that it says: `vsm.processes.zygote` checks each.

The channel (SEQPACKET, JSON) is its stdin at the start. In: `{"number": n}` with three fds, an
order to fork. Out: `ready`, `unfit` (with `what`) or `failed` (a fork) from the zygote, and
`forked` from each fork itself, so that the kernel says which process it is.

A fork shares the memory of everything that the server did before: so a thread, an open file or
an event loop that cannot be taken along are refused. A fork is a subreaper, as is the zygote:
whatever a fork leaves behind comes to the zygote, which kills it.
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial

MYPY = False
if MYPY:
    from asyncio.selector_events import BaseSelectorEventLoop
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn, TextIO

MOST_ORDER_BYTES = 4096
MOST_SCRIPT_BYTES = 1 << 20
MOST_ANSWER_BYTES = 1 << 24
MOST_NAMES_BYTES = 1 << 20
MOST_TEXT = 400
REHEARSAL_S = 15.0
NAMES_S = 5.0
DEATH_SIGNAL, SUBREAPER = 1, 36  # linux/prctl.h
GUARD = b"__name__ == '__main__'"
HARMLESS = ("/dev/null", "/dev/urandom", "/dev/random")
CLIENT = {"name": "vsm", "version": "1"}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}
INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT}
LISTS = ("tools/list", "prompts/list", "resources/list")
libc = ctypes.CDLL(None)


class UnfitError(Exception):
    """Why this server cannot be forked."""


class Zygote:
    """The channel, and the forks that live.

    Args:
        channel: to the supervisor.
        words: the command's own: `-m MODULE …` or a script and its arguments.
    """

    def __init__(self, channel: socket.socket, words: list[str]) -> None:
        self.channel: socket.socket | None = channel
        self.words = words
        self.forks: set[int] = set()
        self.reaping = self.again = False
        self.loop: BaseSelectorEventLoop | None = None
        self.on_child: Any = signal.SIG_DFL
        self.stdin = sys.stdin

    def run(self) -> None:
        """Returns, or raises, in a fork alone: as its server did."""
        what = "it ended before it reached for its stdin"
        try:
            libc.prctl(SUBREAPER, 1, 0, 0, 0)
            self.import_server()
            for name in self.rehearse():
                attempt(partial(importlib.import_module, name))
            sys.stdin = sys.__stdin__ = Stdin(self.reached)  # type: ignore[assignment, misc]
            self.start_server()
        except UnfitError as error:
            what = str(error)
        except BaseException as error:  # whatever the server raised is its end
            if self.channel is None:
                raise
            what += f": {type(error).__name__}: {error}"
        if self.channel is not None:
            self.tell("unfit", what=what[:MOST_TEXT])

    def import_server(self) -> None:
        """What it imports before it does anything, so that this happens once."""
        first = self.words[0]
        if first == "-m":
            attempt(partial(importlib.import_module, self.words[1]))
            return
        with open(first, "rb") as file:
            guarded = GUARD in file.read(MOST_SCRIPT_BYTES).replace(b'"', b"'")
        if guarded:
            attempt(partial(runpy.run_path, first, run_name="vsm-zygote"))

    def start_server(self) -> None:
        """As the interpreter would have started it."""
        first, rest = self.words[0], self.words[1:]
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
            return
        sys.argv = [first, *rest]
        if sys.path and not sys.path[0]:
            sys.path[0] = os.path.dirname(os.path.realpath(first))
        runpy.run_path(first, run_name="__main__")

    # ---- rehearsal -----------------------------------------------------------------------------

    def rehearse(self) -> list[str]:
        """Names of the modules that the server imports until it has answered its first questions.

        A child of this process plays it through, so that nothing of it stays but the names.
        """
        stdin, questions = os.pipe()
        answers, stdout = os.pipe()
        names, said = os.pipe()
        pid = os.fork()
        if pid == 0:
            for number, fd in ((0, stdin), (1, stdout)):
                os.dup2(fd, number)
            for fd in (stdin, stdout, questions, answers, names):
                os.close(fd)
            self.play(said)
        for fd in (stdin, stdout, said):
            os.close(fd)
        with suppress(OSError, ValueError):
            converse(questions, answers)
        os.close(questions)
        text = read_until(names, time.monotonic() + NAMES_S, MOST_NAMES_BYTES)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(answers)
        os.close(names)
        found = text.decode("utf-8", "replace").split()
        return [name for name in found if not name.endswith("__main__")]

    def play(self, said: int) -> NoReturn:
        """In the child: be the server, then say what was imported."""
        before = set(sys.modules)
        try:
            if self.channel is not None:
                self.channel.close()
            attempt(self.start_server)
            with open(said, "w", encoding="utf-8") as file:
                # In their order: who is imported first may decide which of two versions serves.
                file.write("\n".join(name for name in sys.modules if name not in before))
        finally:
            os._exit(0)

    # ---- the moment to fork --------------------------------------------------------------------

    def reached(self) -> TextIO:
        """The server reaches for its stdin: obey orders; returns in forks alone."""
        self.loop = running_loop()
        self.refuse_what_cannot_be_shared()
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()
        gc.freeze()
        before = signal.signal(signal.SIGCHLD, lambda _signo, _frame: self.reap())
        self.on_child = signal.SIG_DFL if before is None else before
        self.tell("ready")
        while self.channel is not None:
            order, fds = receive(self.channel)
            if order is None:
                os._exit(0)
            self.obey(order["number"], fds)
        sys.stdin = sys.__stdin__ = self.stdin  # type: ignore[misc, assignment]
        return self.stdin

    def refuse_what_cannot_be_shared(self) -> None:
        """Raise UnfitError if a fork would not be whole, or not be alone with what it holds."""
        if len(os.listdir("/proc/self/task")) > 1:
            raise UnfitError("it has started a thread before it reached for its stdin")
        channel = -1 if self.channel is None else self.channel.fileno()
        own = {0, 1, 2, channel, *loop_fds(self.loop)}
        for number in map(int, os.listdir("/proc/self/fd")):
            path = HARMLESS[0]  # the listing's own descriptor is gone by now
            with suppress(OSError):
                path = os.readlink(f"/proc/self/fd/{number}")
            if number not in own and path not in HARMLESS:
                raise UnfitError(f"it has opened {path[:200]} before it reached for its stdin")

    def obey(self, number: int, fds: list[int]) -> None:
        """Fork; in the fork, `channel` is None from now on."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        try:
            pid = os.fork()
            if pid == 0:
                self.become_server(number, fds)
            else:
                self.forks.add(pid)
        except OSError as error:
            self.tell("failed", number=number, what=(error.strerror or "")[:MOST_TEXT])
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            for fd in fds:
                os.close(fd)
        if self.channel is not None:
            self.reap()  # a signal may have been merged with another

    def become_server(self, number: int, fds: list[int]) -> None:
        """In the fork: take the session's pipes, say so, let go of the channel."""
        try:
            channel, self.channel = self.channel, None
            self.forks.clear()
            signal.signal(signal.SIGCHLD, self.on_child)
            libc.prctl(DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
            libc.prctl(SUBREAPER, 1, 0, 0, 0)
            os.setsid()
            for target, fd in enumerate(fds):
                os.dup2(fd, target)
            own_loop(self.loop)
            if "numpy.random" in sys.modules:  # the standard library's sees to itself
                sys.modules["numpy.random"].seed()
            if channel is not None:
                channel.send(json.dumps({"kind": "forked", "number": number}).encode())
                channel.close()
        except BaseException:  # noqa: BLE001 - half a server must not serve
            os._exit(1)

    # ---- children ------------------------------------------------------------------------------

    def reap(self) -> None:
        """Collect the dead; kill whoever a dead fork left.

        A signal's handler may come in between any two lines of this. Then it only leaves word:
        whoever was collected meanwhile must not be killed by a list from before.
        """
        self.again = True
        if self.reaping:
            return
        self.reaping = True
        while self.again:
            self.again = False
            with suppress(ChildProcessError):
                while pid := os.waitpid(-1, os.WNOHANG)[0]:
                    self.forks.discard(pid)
                self.again |= self.kill_orphans()
        self.reaping = False

    def kill_orphans(self) -> bool:
        """Whether there was one; its death is awaited, for it may hand over more."""
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            orphans = {int(word) for word in file.read().split()} - self.forks
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        return bool(orphans)

    def tell(self, kind: str, **content: object) -> None:
        """Say one thing."""
        if self.channel is not None:
            self.channel.send(json.dumps({**content, "kind": kind}).encode())


class Stdin:
    """Stands where sys.stdin was, until somebody uses it."""

    def __init__(self, reached: Callable[[], TextIO]) -> None:
        self._reached = reached
        self._file: TextIO | None = None

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._real())

    def _real(self) -> TextIO:
        if self._file is None:
            self._file = self._reached()
        return self._file


def attempt(action: Callable[[], object]) -> None:
    """Foreign code, ahead of its time: what fails now says so when it is due."""
    with suppress(BaseException):
        action()


# ---- the event loop ----------------------------------------------------------------------------


def running_loop() -> BaseSelectorEventLoop | None:
    """The loop that the server runs in, None for one without; raises UnfitError for other kinds."""
    from asyncio import selector_events

    loop = asyncio._get_running_loop()
    if loop is None or isinstance(loop, selector_events.BaseSelectorEventLoop):
        return loop
    raise UnfitError(f"its event loop is not asyncio's own: {type(loop).__name__}")


def loop_fds(loop: Any) -> tuple[int, ...]:  # noqa: ANN401 - its parts are private
    """What a loop that watches nothing holds open."""
    if loop is None:
        return ()
    return loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()


def own_loop(loop: Any) -> None:  # noqa: ANN401 - its parts are private
    """In a fork: an epoll set and a wake-up socket of its own in place of the shared ones."""
    if loop is None:
        return
    shared = loop._selector
    loop._selector = type(shared)()
    shared.close()  # not unregistered: the set is everybody's
    loop._ssock.close()
    loop._csock.close()
    loop._internal_fds -= 1
    loop._make_self_pipe()
    asyncio._set_running_loop(loop)
    if loop._signal_handlers:
        signal.set_wakeup_fd(loop._csock.fileno())


# ---- bytes -------------------------------------------------------------------------------------


def receive(channel: socket.socket) -> tuple[dict[str, int] | None, list[int]]:
    """An order and its fds; None at the end of the channel."""
    size = socket.CMSG_SPACE(3 * array.array("i").itemsize)
    data, ancillary, _, _ = channel.recvmsg(MOST_ORDER_BYTES, size, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


def converse(questions: int, answers: int) -> None:
    """Put the gateway's first questions; whatever is answered will do."""
    deadline = time.monotonic() + REHEARSAL_S

    def ask(number: int, method: str, params: dict[str, Any]) -> bool:
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        os.write(questions, json.dumps(message).encode() + b"\n")
        answer = json.loads(read_until(answers, deadline, MOST_ANSWER_BYTES, b"\n"))
        return isinstance(answer, dict) and "result" in answer

    params: dict[str, Any] = {"_meta": ENVELOPE}
    if not ask(1, "server/discover", params):
        params = {}
        ask(2, "initialize", INITIALIZE)
        os.write(questions, b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
    for number, method in enumerate(LISTS, 3):
        ask(number, method, params)


def read_until(fd: int, deadline: float, most: int, end: bytes = b"") -> bytes:
    """Bytes up to `end`, or to the end of the file."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    found = b""
    while len(found) < most and not (end and found.endswith(end)):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            break
        block = os.read(fd, 65536)
        if not block:
            break
        found += block
    return found


def main() -> None:
    """Take the channel away from where the server's stdin will be."""
    channel = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    os.close(nothing)
    Zygote(channel, sys.argv[1:]).run()


if __name__ == "__main__":
    main()
