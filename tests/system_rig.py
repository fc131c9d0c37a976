"""One of the five systems without its process: links whose other ends are here."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vsm.board.heartbeat import BoardWriter
from vsm.core import channels
from vsm.link import Link, channel_pair, close_fds, socketpair
from vsm.messages import CHANNEL_PARSERS, Message, parse_from_system, parse_to_system
from vsm.systems.base import SystemContext, SystemMain, run_system


class Rig:
    """A system's context, and what it says to the supervisor and to others."""

    def __init__(self, name: str) -> None:
        control, other = socketpair()
        self.sockets: list[socket.socket] = [other]
        self.supervisor: Link[Any] = Link(other, parse_from_system)
        ends: dict[str, Link[Any]] = {}
        self.heard: dict[str, Link[Any]] = {}
        for channel in channels.sends(name):
            sender, receiver = channel_pair()
            parse = CHANNEL_PARSERS[channel.carries]
            ends[channel.name] = Link(sender, parse)
            self.heard[channel.name] = Link(receiver, parse)
        self.writer = BoardWriter(1)
        link = Link(control, parse_to_system)
        self.context = SystemContext(name, link, ends, self.writer, layers=[])

    def said(self, channel: str = "") -> list[Any]:
        link = self.heard[channel] if channel else self.supervisor
        found = []
        while (received := link.receive(0)) is not None:
            found.append(received[0])
            close_fds(received[1])
        return found

    def close(self) -> None:
        links = [self.context.control, self.supervisor, *self.context.outgoing.values()]
        for link in [*links, *self.heard.values()]:
            link.close()
        self.writer.close()


@contextmanager
def ran(name: str, main: SystemMain, *told: Message) -> Iterator[Rig]:
    """A system that was told this, after it has ended; what ended it is raised here."""
    rigs: list[Rig] = []

    def make() -> SystemContext:
        rigs.append(Rig(name))
        for message in told:
            rigs[0].supervisor.send(message)
        return rigs[0].context

    try:
        asyncio.run(asyncio.wait_for(run_system(make, main), 30))
        yield rigs[0]
    finally:
        rigs[0].close()


def of(kind: type, messages: list[Any]) -> list[Any]:
    return [message for message in messages if isinstance(message, kind)]
