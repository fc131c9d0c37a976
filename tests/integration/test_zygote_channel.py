"""The supervisor's end of a zygote's channel, and a zygote that runs unconfined at the other."""

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vsm.processes import zygote
from vsm.processes.launch import LaunchError
from vsm.processes.zygote import BOOT, Zygote

BOUND_S = 60.0
SERVER = "import sys\nfor line in sys.stdin:\n    print(line.strip(), flush=True)\n"
# Stands for foreign code that runs before the program of vsm's comes, such as a .pth file.
EAGER = """
import json, os, socket, sys
link = socket.socket(fileno=0)
if os.fork() == 0:
    link.send(b'{"kind": "ready"}')
    os._exit(0)
os.wait()
print("said", flush=True)
link.recv(1 << 17)
"""


class Rig:
    """A zygote with what became of it."""

    def __init__(self) -> None:
        self.ready, self.unfit = asyncio.Event(), asyncio.Event()
        self.reason: tuple[str, bool] | None = None
        self.zygote = Zygote(self.ready.set, self._is_unfit)

    def _is_unfit(self, reason: str, hopeless: bool) -> None:
        self.reason = (reason, hopeless)
        self.unfit.set()


@asynccontextmanager
async def rig(*argv: str) -> AsyncIterator[tuple[Rig, "subprocess.Popen[bytes]"]]:
    """Its program, told nothing yet."""
    it = Rig()
    process = subprocess.Popen(  # noqa: ASYNC220 - brief
        [sys.executable, *argv], stdin=it.zygote.stdin, stdout=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(BOUND_S):
            yield it, process
    finally:
        it.zygote.end()
        process.kill()
        process.communicate()


@pytest.fixture
def server(tmp_path: Path) -> str:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return str(path)


class Pipes:
    """A session's stdin and stdout; what goes to the fork is closed here once it was sent."""

    def __init__(self) -> None:
        stdin, self.write = os.pipe()
        self.read, stdout = os.pipe()
        self.theirs = (stdin, stdout, os.open(os.devnull, os.O_RDWR))

    def sent(self) -> None:
        for fd in self.theirs:
            os.close(fd)

    def close(self) -> None:
        os.close(self.write)
        os.close(self.read)


async def reads(fd: int) -> bytes:
    """A line, or what there is before the end."""
    found = b""
    while not found.endswith(b"\n"):
        block = await asyncio.to_thread(os.read, fd, 100)
        if not block:
            break
        found += block
    return found


@pytest.mark.parametrize("answer", ["later", "before", "with it"])
def test_a_fork_that_nobody_waits_for_any_more_is_killed_and_breaks_nothing(
    server: str, answer: str
) -> None:
    asyncio.run(given_up(server, answer))


async def given_up(server: str, answer: str) -> None:
    async with rig("-c", BOOT, server) as (it, _):
        it.zygote.begin(os.getpid())
        await it.ready.wait()
        one, two = Pipes(), Pipes()
        forking = asyncio.create_task(it.zygote.fork(1, one.theirs))
        await asyncio.sleep(0)  # the order is sent
        if answer != "later":  # at the last moment, of which whoever waited has not heard
            assert select.select([it.zygote._link], [], [], BOUND_S)[0]
        if answer == "before":
            it.zygote._readable()
        forking.cancel()
        if answer == "with it":
            it.zygote._readable()
        with pytest.raises(asyncio.CancelledError):
            await forking
        one.sent()
        assert await reads(one.read) == b""  # nobody holds its other end
        fork = await it.zygote.fork(2, two.theirs)
        two.sent()
        os.write(two.write, b"hello\n")
        assert await reads(two.read) == b"hello\n"
        assert (it.reason, it.zygote._given_up) == (None, set())
        os.close(fork.pidfd)
        one.close()
        two.close()


def test_a_fork_whose_answer_was_there_in_time_counts_however_late_it_is_heard(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the supervisor that was held up, and all sessions of the zygote would end for it."""
    monkeypatch.setattr(zygote, "FORK_TIMEOUT_S", 0.05)
    asyncio.run(heard_late(server))


async def heard_late(server: str) -> None:
    async with rig("-c", BOOT, server) as (it, _):
        it.zygote.begin(os.getpid())
        await it.ready.wait()
        pipes = Pipes()
        forking = asyncio.create_task(it.zygote.fork(1, pipes.theirs))
        await asyncio.sleep(0)  # the order is sent
        assert select.select([it.zygote._link], [], [], BOUND_S)[0]
        time.sleep(2 * zygote.FORK_TIMEOUT_S)  # noqa: ASYNC251 - the loop is held up
        fork = await forking
        pipes.sent()
        assert it.reason is None
        os.close(fork.pidfd)
        pipes.close()


def test_an_answer_to_what_nobody_gave_up_is_out_of_turn(server: str) -> None:
    asyncio.run(out_of_turn(server))


async def out_of_turn(server: str) -> None:
    async with rig("-c", BOOT, server) as (it, _):
        it.zygote.begin(os.getpid())
        await it.ready.wait()
        pipes = Pipes()
        fork = await it.zygote.fork(1, pipes.theirs)
        pipes.sent()
        with socket.socket(fileno=os.dup(it.zygote._link.fileno())) as link:
            link.send(json.dumps({"number": 1}).encode())  # the order once more
        await it.unfit.wait()
        assert it.reason == ("it broke the protocol of zygotes", True)
        os.close(fork.pidfd)
        pipes.close()


def test_a_word_from_before_it_was_begun_counts_for_nothing() -> None:
    asyncio.run(too_early())


async def too_early() -> None:
    async with rig("-c", EAGER) as (it, process):
        assert process.stdout is not None
        process.stdout.readline()  # the loop hears of it when its sender is dead and gone
        await it.unfit.wait()
        assert not it.ready.is_set()
        with pytest.raises(LaunchError):
            await it.zygote.fork(1, (0, 1, 2))
