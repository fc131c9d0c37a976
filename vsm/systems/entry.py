"""Where a forked system begins: descriptors, parent, stack dumps, confinement, then its loop.

Runs in the template's child, as the template's user until `confine_self` has returned; reads no
message from anyone before that. What cannot be confined as its profile requires exits 3.
"""

import asyncio
import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

from vsm.board.heartbeat import BoardWriter
from vsm.confinement.execution import Plan, confine_self
from vsm.link import Link
from vsm.linux.prctl import set_death_signal
from vsm.messages import CHANNEL_PARSERS, ChannelMessage, parse_to_system
from vsm.systems.base import SystemContext, SystemMain, run_system
from vsm.systems.preload import MODULES

EXIT_UNCONFINED: Final = 3


def enter(system: str, epoch: int, plan: str, fds: dict[str, int], parent: int) -> None:
    """Become `system`; returns when it has stopped."""
    set_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        return
    fds = _keep_only(fds)
    os.setsid()
    faulthandler.enable(sys.stderr)  # SIGABRT: every thread's stack, then death by the signal
    board = BoardWriter(epoch, system)
    layers = _confine(system, plan)
    set_death_signal(signal.SIGKILL)  # changing the uid clears it
    if os.getppid() != parent:
        return
    _run(system, fds, board, layers)


def _keep_only(fds: dict[str, int]) -> dict[str, int]:
    """Standard streams and this system's own descriptors, moved to 3, 4, …; all others closed."""
    names = [name for name in fds if name != "stderr"]
    high = [os.dup(fds[name]) for name in names]
    os.dup2(fds["stderr"], 1)
    os.dup2(fds["stderr"], 2)
    # Every source is above every target: dup'ed after all the others were open.
    kept = {name: 3 + index for index, name in enumerate(names)}
    for name, source in zip(names, _above(high, 3 + len(names)), strict=True):
        os.dup2(source, kept[name], inheritable=False)
    os.closerange(3 + len(names), _fd_limit())
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - for the process's life
    return kept


def _above(fds: list[int], least: int) -> list[int]:
    """Duplicates at `least` or above, so that moving them down overwrites none."""
    import fcntl

    return [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least) for fd in fds]


def _fd_limit() -> int:
    return max(int(name) for name in os.listdir("/proc/self/fd")) + 1


def _confine(system: str, plan: str) -> list[dict[str, str]]:
    try:
        return confine_self(Plan.from_json(json.loads(plan)))
    except Exception as error:  # noqa: BLE001 - whatever went wrong, it must not run unconfined
        sys.stderr.write(f"{system}: cannot confine itself: {error}\n")
        os._exit(EXIT_UNCONFINED)


def _run(
    system: str, fds: dict[str, int], board: BoardWriter, layers: list[dict[str, str]]
) -> None:
    main: SystemMain = importlib.import_module(MODULES[system]).main
    control = Link(socket.socket(fileno=fds.pop("control")), parse_to_system)
    ends = _channels(fds)
    with asyncio.Runner(loop_factory=_loop_factory(system)) as runner:
        runner.run(
            run_system(lambda: SystemContext(system, control, ends, board, layers=layers), main)
        )


def _channels(fds: dict[str, int]) -> dict[str, Link[ChannelMessage]]:
    return {
        name: Link(socket.socket(fileno=fd), CHANNEL_PARSERS[name.rpartition(":")[2]])
        for name, fd in fds.items()
    }


def _loop_factory(system: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if system != "system1":
        return asyncio.SelectorEventLoop
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
