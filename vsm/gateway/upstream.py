"""One server's pipes: frames out, frames in, everything bounded.

Owns the two pipe ends given to it, the requests in flight and those that wait for room. Knows
which answer belongs to which call; what a call means is the router's business. Runs in S1's
event loop; every byte it reads was written by an untrusted server.
"""

import asyncio
import os
from collections import deque
from math import inf
from typing import Protocol, cast

from msgspec import UNSET

from vsm.gateway.call import Call, Inquiry, Waiting
from vsm.protocol import jsonrpc
from vsm.protocol.framing import LineSplitter, OversizedFrame, salvage_id
from vsm.protocol.ids import InFlight, Stray
from vsm.protocol.jsonrpc import DecodeError, Message, Object
from vsm.protocol.tables import SERVER_NOTIFICATIONS, SERVER_REQUESTS, Era

MAX_WAITING = 256
MAX_WAITING_BYTES = 16 * 1024 * 1024
HIGH_WATER_BYTES = 1024 * 1024
NOISE_PER_WINDOW = 2000
NOISE_WINDOW_S = 1.0
MAX_BROKEN_FRAMES = 1000
GONE_GRACE_S = 0.5
KNOWN_NOTIFICATIONS = SERVER_NOTIFICATIONS[Era.LEGACY] | SERVER_NOTIFICATIONS[Era.MODERN]
# Ends a line that was left unfinished. Where there is none it is valid and without effect in
# both eras, unlike an empty line, which some servers take for broken JSON and die of.
_EXPENDABLE = jsonrpc.notification("notifications/cancelled", b'{"requestId":0}')


class UpstreamOwner(Protocol):
    """What an upstream reports to: the router."""

    def upstream_request(self, upstream: "Upstream", message: Message) -> None:
        """The server asks the client side something."""

    def upstream_notification(self, upstream: "Upstream", method: str, params: Object) -> None:
        """The server tells something that is no progress of a call."""

    def upstream_lost(self, upstream: "Upstream", reason: str) -> None:
        """The server closed its output or is not to be borne; nothing more will come."""

    def upstream_idle(self, upstream: "Upstream") -> None:
        """Nothing is in flight any more."""

    def upstream_misbehaved(self, upstream: "Upstream", text: str) -> None:
        """The server broke a rule, for the first time in this way."""


class _Reading(asyncio.Protocol):
    def __init__(self, upstream: "Upstream") -> None:
        self._upstream = upstream
        self.data_received = upstream.received  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._upstream.output_ended()


class _Writing(asyncio.Protocol):
    def __init__(self, upstream: "Upstream") -> None:
        self._upstream = upstream

    def pause_writing(self) -> None:
        self._upstream.writable = False

    def resume_writing(self) -> None:
        self._upstream.writable = True
        self._upstream.pump()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._upstream.input_ended()


class Upstream:
    """A server's connection.

    Args:
        worker: the worker's name. integration: whose server it is.
        epoch: this incarnation of S1. concurrency: most requests in flight.
        max_frame_bytes: the longest line that is read.
    """

    def __init__(
        self,
        owner: UpstreamOwner,
        *,
        worker: str,
        integration: str,
        epoch: int,
        concurrency: int,
        max_frame_bytes: int,
    ) -> None:
        self._owner = owner
        self.worker = worker
        self.integration = integration
        self.era = Era.LEGACY
        self.writable = True
        self.closed = False
        self.strays = 0
        self.broken_frames = 0
        self._loop = asyncio.get_running_loop()
        self._limit = concurrency
        self._standing = 0
        self._max_frame_bytes = max_frame_bytes
        self._splitter = LineSplitter(max_frame_bytes)
        self._in_flight: InFlight[Waiting] = InFlight(epoch)
        self._queue: deque[Call] = deque()
        self._queued_bytes = 0
        self._reader: asyncio.ReadTransport | None = None
        self._writer: asyncio.WriteTransport | None = None
        self._out: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._grace: asyncio.TimerHandle | None = None
        self._noise = 0
        self._noise_since = 0.0
        self._noticed: set[str] = set()

    # ---- life ------------------------------------------------------------------------------

    async def open(self, stdin_fd: int, stdout_fd: int, *, resume: bool = False) -> None:
        """Own the pipes from now on: `stdin_fd` to write to, `stdout_fd` to read from.

        With `resume` an earlier S1 used them and may have died within a line: ours start with
        a line that may be lost, and what is left of one of the server's is one broken frame.
        """
        if resume:
            self._out.append(_EXPENDABLE + b"\n")
        stdin, stdout = os.fdopen(stdin_fd, "wb", 0), os.fdopen(stdout_fd, "rb", 0)
        writer, _ = await self._loop.connect_write_pipe(lambda: _Writing(self), stdin)
        self._writer = writer
        writer.set_write_buffer_limits(HIGH_WATER_BYTES)
        reader, _ = await self._loop.connect_read_pipe(lambda: _Reading(self), stdout)
        self._reader = reader
        if self.closed:
            self._close_pipes()
        self._flush()

    def close(self, reason: str) -> None:
        """Fail what waits, with `reason`, and let go of the pipes."""
        if self.closed:
            return
        self.closed = True
        self._fail_all(reason)
        for timer in (self._timer, self._grace):
            if timer is not None:
                timer.cancel()
        self._close_pipes()

    def _close_pipes(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.abort()

    def _fail_all(self, reason: str) -> None:
        for waiting in self._in_flight.drain():
            waiting.failed(
                jsonrpc.UNAVAILABLE,
                f"{self.integration}: {reason} while the request was in flight; it may have run.",
            )
        queue, self._queue = self._queue, deque()
        self._queued_bytes = 0
        for waiting in queue:
            waiting.failed(
                jsonrpc.UNAVAILABLE,
                f"{self.integration}: {reason} before the request was sent; it did not run.",
            )

    def output_ended(self) -> None:
        """The server closed its standard output, or died."""
        if not self.closed:
            self._give_up("the server closed its output")

    def input_ended(self) -> None:
        """The server closed its standard input, or died."""
        if not self.closed:
            self._give_up("the server closed its input")

    def _give_up(self, reason: str) -> None:
        """Fail what waits now; report it once the supervisor had time to say it itself."""
        self._fail_all(reason)
        if self._grace is None:
            self._grace = self._loop.call_later(GONE_GRACE_S, self._report_lost, reason)
        self.writable = False

    def _report_lost(self, reason: str) -> None:
        if not self.closed:
            self._owner.upstream_lost(self, reason)

    @property
    def lost(self) -> bool:
        """Whether nothing more can be asked."""
        return self.closed or self._grace is not None

    @property
    def in_flight(self) -> int:
        """How many requests wait, sent or not."""
        return len(self._in_flight) - self._standing + len(self._queue)

    def calls(self) -> list[Call]:
        """The clients' calls in flight."""
        return [item for item in self._in_flight.waiting.values() if isinstance(item, Call)]

    # ---- out -------------------------------------------------------------------------------

    def call(self, call: Call) -> None:
        """Send a client's call, or keep it until there is room; fail it when there is none."""
        call.upstream = self
        if call.timeout_s is not None:
            call.deadline = self._loop.time() + call.timeout_s
        if self.writable and len(self._in_flight.waiting) < self._limit:
            self._send_call(call)
        elif self.lost:
            remedy = "Try again shortly, or see `vsm status`."
            call.failed(jsonrpc.UNAVAILABLE, f"{self.integration}: the server has ended. {remedy}")
        else:
            self._enqueue(call)
        if call.deadline is not None and call.deadline < self._timer_at:
            self._arm()

    def _enqueue(self, call: Call) -> None:
        size = _size(call)
        full = len(self._queue) >= MAX_WAITING or self._queued_bytes + size > MAX_WAITING_BYTES
        if full:
            call.failed(
                jsonrpc.UNAVAILABLE,
                f"{self.integration} is saturated: {len(self._in_flight)} requests in flight and "
                f"{len(self._queue)} waiting. Try again later, or raise its concurrency.",
            )
            return
        self._queued_bytes += size
        self._queue.append(call)

    def _send_call(self, call: Call) -> None:
        call.sent = True
        request_id = call.upstream_id = self._in_flight.add(call)
        params = call.params
        if call.progress is not None:
            meta = jsonrpc.nested(params, "_meta")
            meta["progressToken"] = jsonrpc.raw_of(request_id)
            params["_meta"] = jsonrpc.raw_of(meta)
        self._write(
            b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}\n'
            % (request_id, call.method.encode(), jsonrpc.encode(params))
        )

    def ask(self, method: str, params: object, inquiry: Inquiry) -> int:
        """Send a question of the gateway's own, past the queue; returns its id."""
        inquiry.sent = True
        request_id = self._in_flight.add(inquiry)
        if inquiry.timeout_s is None:
            self._standing += 1
            self._limit += 1
        else:
            inquiry.deadline = self._loop.time() + inquiry.timeout_s
        self._write(jsonrpc.request(request_id, method, jsonrpc.encode(params)) + b"\n")
        self._arm()
        return request_id

    def forget(self, request_id: int) -> None:
        """Withdraw a standing question of the gateway's own."""
        if type(self._in_flight.take(request_id)) is Stray:
            return
        self._standing -= 1
        self._limit -= 1
        self._tell_cancelled(request_id, "no longer needed")

    def tell(self, frame: bytes) -> None:
        """Send a notification or an answer, without a line end."""
        self._write(frame + b"\n")

    def cancel(self, call: Call, reason: str) -> None:
        """Forget a call and tell the server, if it knows of it."""
        if call.sent:
            self._in_flight.discard(call.upstream_id)
            self._tell_cancelled(call.upstream_id, reason)
            self.pump()
        else:
            self._queue = deque(entry for entry in self._queue if entry is not call)
        self._rest()

    def _tell_cancelled(self, request_id: int, reason: str) -> None:
        params = jsonrpc.encode({"requestId": request_id, "reason": reason})
        self.tell(jsonrpc.notification("notifications/cancelled", params))

    def pump(self) -> None:
        """Send what waits, as far as there is room."""
        while self._queue and self.writable and len(self._in_flight) < self._limit:
            call = self._queue.popleft()
            self._queued_bytes -= _size(call)
            self._send_call(call)
        if not self._queue:
            self._queued_bytes = 0

    def _write(self, frame: bytes) -> None:
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(frame)

    def _flush(self) -> None:
        out = self._out
        if not out or self._writer is None:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        if not self.closed:
            self._writer.write(data)

    # ---- time ------------------------------------------------------------------------------

    def _arm(self) -> None:
        waiting = [*self._in_flight.waiting.values(), *self._queue]
        deadlines = [item.deadline for item in waiting if item.deadline is not None]
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, inf
        if deadlines and not self.closed:
            self._timer_at = min(deadlines)
            self._timer = self._loop.call_at(self._timer_at, self._expire)

    def _expire(self) -> None:
        self._timer, self._timer_at = None, inf
        now = self._loop.time()
        late = [i for i, w in self._in_flight.waiting.items() if _is_late(w, now)]
        for request_id in late:
            waiting = self._in_flight.take(request_id)
            self._tell_cancelled(request_id, "timed out")
            cast("Waiting", waiting).failed(jsonrpc.TIMED_OUT, self._timeout_text(waiting))
        kept: deque[Call] = deque()
        for entry in self._queue:
            if _is_late(entry, now):
                entry.failed(jsonrpc.TIMED_OUT, self._timeout_text(entry))
            else:
                kept.append(entry)
        self._queue = kept
        self.pump()
        self._arm()
        self._rest()

    def _timeout_text(self, waiting: object) -> str:
        limit = getattr(waiting, "timeout_s", 0)
        ran = "it may still run" if getattr(waiting, "sent", False) else "it was not sent"
        return (
            f"{self.integration} did not answer within {limit:g} s; {ran}. "
            "Raise call_timeout_s of the integration if it needs longer."
        )

    # ---- in --------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Take bytes from the server's standard output."""
        for frame in self._splitter.feed(data):
            if type(frame) is not bytes:
                self._oversized(cast("OversizedFrame", frame))
                continue
            try:
                message = jsonrpc.decode(frame if b"\r" not in frame else jsonrpc.compact(frame))
            except DecodeError as error:
                self._broken(frame, error)
                continue
            if message.method is UNSET:
                self._answered(message)
            else:
                self._spoke(message)
        if self._queue:
            self.pump()

    def _answered(self, message: Message) -> None:
        waiting = self._in_flight.take(message.id)
        if type(waiting) is Stray:
            self.strays += 1
            self._make_noise()
            self._notice(waiting.name, f"{self.integration} sent {waiting.value}.")
            return
        if type(waiting) is Inquiry and waiting.timeout_s is None:
            self._standing -= 1
            self._limit -= 1
        cast("Waiting", waiting).answered(message)
        if len(self._in_flight.waiting) <= self._standing:
            self._rest()

    def _rest(self) -> None:
        if not self.in_flight:
            self._owner.upstream_idle(self)

    def _spoke(self, message: Message) -> None:
        self._make_noise()
        method = cast("str", message.method)
        if message.id is not UNSET:
            self._asked(message, method)
        elif method in SERVER_NOTIFICATIONS[self.era] or method not in KNOWN_NOTIFICATIONS:
            try:
                params = jsonrpc.members(message.params)
            except DecodeError:
                self.broken_frames += 1
                return
            if method == "notifications/progress":
                self._progressed(params)
            else:
                self._owner.upstream_notification(self, method, params)

    def _asked(self, message: Message, method: str) -> None:
        id_bytes = jsonrpc.encode(message.id)
        if method == "ping":
            self.tell(jsonrpc.answer(id_bytes, b"{}"))
        elif method in SERVER_REQUESTS[self.era]:
            self._owner.upstream_request(self, message)
        else:
            text = f"{method[:80]}: not a request that a server may make of a client."
            self.tell(jsonrpc.failure(id_bytes, jsonrpc.METHOD_NOT_FOUND, text))

    def _progressed(self, params: Object) -> None:
        token = jsonrpc.identifier(params, "progressToken")
        call = self._in_flight.waiting.get(token) if type(token) is int else None
        if isinstance(call, Call):
            if call.timeout_s is not None:
                call.deadline = self._loop.time() + call.timeout_s
            call.progressed(params)

    def postpone(self, call: Call, timeout_s: float) -> None:
        """Give a call more time: somebody is being asked."""
        call.deadline = self._loop.time() + timeout_s
        self._arm()

    def stand_in(self, request_id: int, waiting: Waiting) -> None:
        """Let `waiting` take what comes for a request that was sent by another."""
        if request_id in self._in_flight.waiting:
            self._in_flight.waiting[request_id] = waiting

    # ---- what a server should not do -------------------------------------------------------

    def _broken(self, frame: bytes, error: DecodeError) -> None:
        text = f"{self.integration} sent an invalid message: {error.message}."
        self._spoiled(frame, frame, text)

    def _oversized(self, frame: OversizedFrame) -> None:
        text = (
            f"{self.integration} sent {frame.size_bytes} bytes in one message, over the "
            f"{self._max_frame_bytes} that it may. Raise max_frame_bytes of the integration."
        )
        self._spoiled(frame.head, frame.tail, text)

    def _spoiled(self, head: bytes, tail: bytes, text: str) -> None:
        """Fail the call that an unusable frame seems to answer; give up on a stream of them."""
        self.broken_frames += 1
        self._make_noise()
        self._notice("oversized" if head is not tail else "invalid", text)
        waiting = self._in_flight.take(salvage_id(head, tail))
        if type(waiting) is not Stray:
            cast("Waiting", waiting).failed(jsonrpc.INTERNAL_ERROR, text)
            self._rest()
        if self.broken_frames == MAX_BROKEN_FRAMES:
            self._give_up(f"the server sent {MAX_BROKEN_FRAMES} invalid messages")

    def _notice(self, cause: str, text: str) -> None:
        """Say it once for each cause; the counters say how often."""
        if cause not in self._noticed:
            self._noticed.add(cause)
            self._owner.upstream_misbehaved(self, text)

    def _make_noise(self) -> None:
        """Count a frame that answers no call; a flood of them is read slowly, not dropped."""
        self._noise += 1
        if self._noise < NOISE_PER_WINDOW:
            return
        now = self._loop.time()
        left = self._noise_since + NOISE_WINDOW_S - now
        self._noise, self._noise_since = 0, now
        if left > 0 and self._reader is not None and not self.closed:
            self._reader.pause_reading()
            rate = f"more than {NOISE_PER_WINDOW} messages a second that answer no call"
            self._notice("flood", f"{self.integration} sends {rate}: it is read slowly.")
            self._loop.call_later(left, self._resume_reading)

    def _resume_reading(self) -> None:
        if self._reader is not None and not self.closed and self._grace is None:
            self._reader.resume_reading()


def _size(call: Call) -> int:
    return sum(len(memoryview(value)) for value in call.params.values())


def _is_late(waiting: Waiting, now: float) -> bool:
    return waiting.deadline is not None and waiting.deadline <= now
