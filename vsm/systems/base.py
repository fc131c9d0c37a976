"""The loop that every system runs in: control link, channels, heartbeat, graceful stop.

Owns what the five have in common; what a system decides is in its own module. Runs in a child
of the template, confined by the system's own profile before it reads a message from anyone.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from vsm.board.heartbeat import BoardWriter
from vsm.core import channels
from vsm.link import MAX_QUEUED, Link, close_fds
from vsm.messages import (
    Answer,
    Body,
    ChannelMessage,
    LayerReport,
    Query,
    Ready,
    Start,
    ToSystem,
)

HEARTBEAT_INTERVAL_S = 0.5
TOO_LARGE = "the answer is larger than a message can be"

MessageCallback: TypeAlias = Callable[[Any, list[int]], None]
SystemMain: TypeAlias = Callable[["SystemContext"], Coroutine[Any, Any, None]]


class SystemContext:
    """What a system's `main` gets: its links, its board, and when to stop.

    Args:
        name: "system1" … "system5".
        control: the link to the supervisor.
        ends: this system's ends of its channels, by channel name.
        board: the heartbeat board, already sealed.
        layers: how this process is confined, as it came out.
    """

    def __init__(
        self,
        name: str,
        control: Link[ToSystem],
        ends: dict[str, Link[ChannelMessage]],
        board: BoardWriter,
        *,
        layers: list[dict[str, str]],
    ) -> None:
        self.name = name
        self.control = control
        mine = {channel.name for channel in channels.sends(name)}
        self.outgoing = {key: link for key, link in ends.items() if key in mine}
        self.incoming = {key: link for key, link in ends.items() if key not in mine}
        self.board = board
        self.layers = layers
        self.stopping = asyncio.Event()
        self.failure: BaseException | None = None
        self.answers: dict[str, Callable[[], Body]] = {"state": self.channel_state}
        self.answers_about: dict[str, Callable[[str], Body]] = {}
        self._callbacks: dict[str, MessageCallback] = {}
        self._held: list[tuple[ToSystem, list[int]]] | None = []
        self._start: asyncio.Future[tuple[Start, dict[str, int]]] = (
            asyncio.get_running_loop().create_future()
        )

    def open(self) -> None:
        """Begin to receive orders. The control link's end of file means stop."""
        self.control.start(self._on_control, self._on_control_closed)

    def _on_control_closed(self) -> None:
        self.stopping.set()
        self._start.cancel()

    def _begin(self, message: Start, fds: list[int]) -> None:
        """Before this a spare must not take what is in its predecessor's channels."""
        self._start.set_result((message, dict(zip(message.fds, fds, strict=True))))
        for name, link in self.incoming.items():
            link.start(self._channel_callback(name), lambda: None)

    async def wait_start(self) -> bool:
        """Wait for `start`; False when the link closed instead."""
        await asyncio.wait({self._start})
        return not self._start.cancelled()

    async def started(self) -> tuple[Start, dict[str, int]]:
        """The `start` message and its descriptors by name, now the caller's.

        What came after it is held until the caller's next await, so that no message is lost
        before its callback is registered.
        """
        started = await self._start
        asyncio.get_running_loop().call_soon(self._deliver_held)
        return started

    def handle(self, kind: str, callback: MessageCallback) -> None:
        """Call `callback(message, fds)` for a control message; it owns the descriptors.

        `kind` may also be a channel's name ("system1>system2:summary"). Register before the first
        await after `started()`; what has no callback is dropped and its descriptors are closed.
        """
        self._callbacks[kind] = callback

    def answer(self, what: str, body: Callable[[], Body]) -> None:
        """Answer `query what` with what `body()` returns at that moment."""
        self.answers[what] = body

    def answer_about(self, what: str, body: Callable[[str], Body]) -> None:
        """Answer `query what` with what `body(about)` returns."""
        self.answers_about[what] = body

    def run_beside(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run it beside `main`. Where it fails the system ends, and a successor begins.

        A system that beats, and whose periodic turn is dead, would be taken for one that works.
        """
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._beside_ended)
        return task

    def _beside_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.failure = failure
            self.stopping.set()

    def ready(self) -> None:
        """Report readiness, with the board."""
        layers = tuple(LayerReport.model_validate(layer) for layer in self.layers)
        self.control.send(Ready(layers=layers, fds=("board",)), [self.board.fileno()])

    def report(self, message: Any) -> bool:  # noqa: ANN401 - any model of FromSystem
        """Send to the supervisor; False when it was dropped."""
        return self.control.send(message)

    def send(self, receiver: str, message: ChannelMessage) -> bool:
        """Send on the one legal channel to `receiver` for this kind.

        Raises:
            KeyError: no such channel: the table does not allow it.
        """
        channel = f"{self.name}>{receiver}:{message.kind}"
        return self.outgoing[channel].send(message)

    def channel_state(self) -> Body:
        """What each channel end of this system has seen."""
        rows: Body = {}
        for name, link in (self.outgoing | self.incoming).items():
            seen = link.statistics()
            rows[name] = {
                "sent": seen.sent,
                "received": seen.received,
                "invalid": seen.invalid,
                "dropped": seen.dropped,
            }
        return {"channels": rows}

    def _on_control(self, message: ToSystem, fds: list[int]) -> None:
        if isinstance(message, Start) and not self._start.done():
            self._begin(message, fds)
        elif isinstance(message, Query):
            self._reply(message)
        elif message.kind == "stop":
            self.stopping.set()
        elif self._held is not None:
            self._held.append((message, fds))
        elif message.kind in self._callbacks:
            self._callbacks[message.kind](message, fds)
        else:
            close_fds(fds)

    def _deliver_held(self) -> None:
        held, self._held = self._held or [], None
        for message, fds in held:
            try:
                self._on_control(message, fds)
            except Exception as error:  # noqa: BLE001 - as of those that are not held: the others come
                told = {"message": f"{self.name}: {message.kind}", "exception": error}
                asyncio.get_running_loop().call_exception_handler(told)

    def _reply(self, query: Query) -> None:
        answer, about = self.answers.get(query.what), self.answers_about.get(query.what)
        if about is not None:
            body = about(query.about)
        else:
            body = answer() if answer else {"error": f"no answer to {query.what!r}"}
        if not self.control.send(Answer(id=query.id, body=body)):
            self.control.send(Answer(id=query.id, body={"error": TOO_LARGE}))

    def _channel_callback(self, name: str) -> MessageCallback:
        def receive(message: ChannelMessage, fds: list[int]) -> None:
            close_fds(fds)  # channels carry no descriptors
            if name in self._callbacks:
                self._callbacks[name](message, [])

        return receive

    def beat(self, lag_s: float) -> None:
        """Write one heartbeat: alive now, and what the links have seen."""
        links: list[Link[Any]] = [self.control, *self.outgoing.values(), *self.incoming.values()]
        seen = [link.statistics() for link in links]
        self.board.beat(
            lag_ns=max(0, int(lag_s * 1e9)),
            received=sum(one.received for one in seen),
            invalid=sum(one.invalid for one in seen),
            dropped=sum(one.dropped for one in seen),
        )
        for index, channel in enumerate(channels.sends(self.name)):
            if channel.name in self.outgoing:
                one = self.outgoing[channel.name].statistics()
                self.board.channel(
                    index,
                    sent=one.sent,
                    sent_bytes=one.sent_bytes,
                    dropped=one.dropped,
                    queued=one.queued,
                    limit=MAX_QUEUED,
                )


async def _heartbeat(context: SystemContext) -> None:
    while True:
        due = time.monotonic() + HEARTBEAT_INTERVAL_S
        await asyncio.sleep(HEARTBEAT_INTERVAL_S)
        context.beat(time.monotonic() - due)


async def run_system(make_context: Callable[[], SystemContext], main: SystemMain) -> None:
    """Run one system until it is told to stop; `main` returns when `context.stopping` is set.

    Raises:
        BaseException: what ended work that ran beside `main`.
    """
    context = make_context()
    context.open()
    if not await context.wait_start():
        return
    context.beat(0.0)
    heart = context.run_beside(_heartbeat(context))
    try:
        await main(context)
    finally:
        heart.cancel()
        context.control.flush()
    if context.failure is not None:
        raise context.failure
