"""The template: imports what the systems need once and forks each of them from itself.

Runs as its own process, exec'ed by the supervisor with a scrubbed environment, and holds no
secret. `multiprocess`'s fork context makes the children; nothing of its pipes or queues crosses
a boundary: a child is known by its pidfd and talks over its own control link. No thread and no
event loop may exist here: a fork would copy half of one.

    python -P -m vsm.processes.template LINK_FD PARENT_PID ENTRY MODULE…

ENTRY is "module:function"; the function runs in the child with (system, epoch, plan, fds by
name, the template's pid) and never returns to the template's code.
"""

import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import multiprocess

from vsm.link import Link, close_fds
from vsm.linux.prctl import set_death_signal
from vsm.messages import (
    Exited,
    Fork,
    Forked,
    Ping,
    Pong,
    TemplateReady,
    ToTemplate,
    parse_to_template,
)

Entry = Callable[[str, int, str, dict[str, int], int], None]


@dataclass
class _Child:
    system: str
    epoch: int
    process: Any  # multiprocess.Process: untyped package
    pidfd: int


class Template:
    """The template's state: its link and the children that it must reap."""

    def __init__(self, link: Link[ToTemplate], entry: Entry) -> None:
        self.link = link
        self.entry = entry
        self.children: dict[int, _Child] = {}  # by pidfd
        self.context = multiprocess.get_context("fork")

    def serve(self) -> None:
        """Fork and reap until the supervisor closes the link; the children die with us."""
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        while not self.link.closed:
            for fd, _ in poll.poll():
                if fd in self.children:
                    poll.unregister(fd)
                    self.reap(self.children.pop(fd))
                else:
                    self.requests(poll)

    def requests(self, poll: select.poll) -> None:
        """Fork what the supervisor asks for."""
        received = self.link.receive(0)
        if received is None:
            return
        message, fds = received
        if isinstance(message, Ping):
            close_fds(fds)
            self.link.send(Pong())
            return
        try:
            child = self.fork(message, dict(zip(message.fds, fds, strict=True)))
        except OSError as error:  # no process or descriptor is free: no reason to end the others
            sys.stderr.write(f"cannot fork {message.system}: {error.strerror}\n")
            status = os.EX_OSERR
            self.link.send(Exited(system=message.system, epoch=message.epoch, status=status))
            return
        finally:
            close_fds(fds)
        self.children[child.pidfd] = child
        poll.register(child.pidfd, select.POLLIN)
        told = Forked(system=child.system, epoch=child.epoch, pid=child.process.pid, fds=("pidfd",))
        self.link.send(told, [child.pidfd])

    def fork(self, request: Fork, fds: dict[str, int]) -> _Child:
        """Make one system; raises OSError, having undone everything."""
        _refuse_threads()
        before = _open_fds()
        process = self.context.Process(
            target=self.entry,
            args=(request.system, request.epoch, request.plan, fds, os.getpid()),
            name=request.system,
        )
        try:
            process.start()
            pidfd = os.pidfd_open(process.pid)
        except OSError:
            if process.pid is not None:
                process.kill()
                process.join()
                process.close()
            close_fds([*(_open_fds() - before)])  # multiprocess leaves its pipes open
            raise
        return _Child(request.system, request.epoch, process, pidfd)

    def reap(self, child: _Child) -> None:
        """Collect the exit status and report it; minus the number of the signal."""
        child.process.join()
        status = int(child.process.exitcode)
        child.process.close()
        os.close(child.pidfd)
        self.link.send(Exited(system=child.system, epoch=child.epoch, status=status))


def _open_fds() -> set[int]:
    """Without the listing's own, which is closed by then."""
    listed = os.listdir("/proc/self/fd")
    return {int(number) for number in listed if os.path.lexists(f"/proc/self/fd/{number}")}


def _refuse_threads() -> None:
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads exist in the template: a fork would not be safe")


def _load(entry: str, modules: list[str]) -> Entry:
    for module in modules:
        importlib.import_module(module)
    name, _, function = entry.partition(":")
    loaded: Entry = getattr(importlib.import_module(name), function)
    return loaded


def main(argv: list[str]) -> NoReturn:
    """Run the template until its supervisor goes away."""
    began = time.monotonic()
    link_fd, parent, entry, *modules = argv[1:]
    set_death_signal(signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Link(socket.socket(fileno=int(link_fd)), parse_to_template)
    template = Template(link, _load(entry, modules))
    gc.collect()
    gc.freeze()  # the children's collector leaves shared pages alone
    link.send(TemplateReady(imported_s=time.monotonic() - began))
    template.serve()
    # multiprocess would wait for the children at exit; they end when we do.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv)
