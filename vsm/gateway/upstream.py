"""One server's pipes: frames out, frames in, everything bounded.

Owns the two pipe ends given to it, the requests in flight and those that wait for room. Knows
which answer belongs to which call; what a call means is the router's business, and what becomes
of one that fails is the guard's. Runs in S1's event loop; every byte it reads was written by an
untrusted server. One file, a bit long: what is in flight, its time and its bytes are one state.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Hashable
from math import inf
from typing import TYPE_CHECKING, Protocol, cast

from msgspec import UNSET, Raw

from vsm.core.fair_queue import FairQueue
from vsm.gateway.call import Call, Inquiry, Waiting
from vsm.gateway.elicitations import Elicitations
from vsm.gateway.intake import Intake
from vsm.gateway.resilience import Guard
from vsm.gateway.task_maker import Maker
from vsm.protocol import frames, jsonrpc
from vsm.protocol.framing import OversizedFrame, salvage_id
from vsm.protocol.ids import InFlight, Stray
from vsm.protocol.jsonrpc import DecodeError, Message, Object
from vsm.protocol.tables import META_SUBSCRIPTION, SERVER_NOTIFICATIONS, SERVER_REQUESTS, Era

if TYPE_CHECKING:
    from vsm.gateway.client import Client

MAX_WAITING_BYTES = 16 * 1024 * 1024
RESERVE = 4  # one in so many places is kept for clients that hold few
HIGH_WATER_BYTES = 1024 * 1024
MAX_UNREAD_BYTES = 64 * 1024 * 1024  # told to a server that reads nothing
NOISE_PER_WINDOW = 2000
NOISE_WINDOW_S = 1.0
MAX_BROKEN_FRAMES = 1000
MAX_ERROR_CHARS = 1000
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

    def calls_beside(self, upstream: "Upstream") -> int:
        """How many calls went to other integrations, ever."""

    def upstream_misbehaved(self, upstream: "Upstream", text: str) -> None:
        """The server broke a rule, for the first time in this way."""


class _Writing(asyncio.Protocol):
    def __init__(self, upstream: "Upstream") -> None:
        self._upstream = upstream

    def pause_writing(self) -> None:
        self._upstream.writable = False

    def resume_writing(self) -> None:
        if not self._upstream.lost:
            self._upstream.reads_again()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._upstream.input_ended()


class Upstream:
    """A server's connection.

    Args:
        worker: the worker's name. integration: whose server it is. guard: the integration's.
        epoch: this incarnation of S1. concurrency: most requests in flight.
        max_frame_bytes: the longest line that is read.
        remote: whether a worker of ours speaks for a server that is elsewhere.
        credentials: clients by whose name their calls go to it.
    """

    # More attributes than Python finds quickly in an object without them.
    __slots__ = (
        "__weakref__",
        "_cancelled",
        "_credentials",
        "_grace",
        "_in_flight",
        "_inquiries",
        "_limit",
        "_loop",
        "_max_frame_bytes",
        "_noise",
        "_noise_since",
        "_noticed",
        "_others",
        "_out",
        "_owner",
        "_queue",
        "_reserve",
        "_standing",
        "_timer",
        "_timer_at",
        "_unread_bytes",
        "_writer",
        "broken_frames",
        "client",
        "closed",
        "elicitations",
        "era",
        "failed_some",
        "guard",
        "intake",
        "integration",
        "maker",
        "makes_tasks",
        "private",
        "remote",
        "strays",
        "title",
        "unanswered",
        "worker",
        "writable",
    )

    def __init__(
        self,
        owner: UpstreamOwner,
        *,
        worker: str,
        integration: str,
        guard: Guard,
        epoch: int,
        concurrency: int,
        max_frame_bytes: int,
        remote: bool = False,
        credentials: frozenset[str] = frozenset(),
    ) -> None:
        self._owner = owner
        self.worker = worker
        self.integration = integration
        self.title = integration  # what callers are told it is called
        self.private = False  # nobody but `client` may hear of it
        self.client: Client | None = None
        self.elicitations = Elicitations()
        self.failed_some = False
        self.guard = guard
        self.era = Era.LEGACY
        self.writable = True
        self.closed = False
        self.makes_tasks = False  # unasked: what it answers may name one
        self.maker = Maker(self)
        self.unanswered = 0  # calls that were sent
        self.strays = 0
        self.broken_frames = 0
        self._loop = asyncio.get_running_loop()
        self.remote = remote
        self._credentials = credentials
        self._limit = concurrency
        self._reserve = concurrency // RESERVE
        self._standing = 0
        self._inquiries = 0
        self._cancelled = 0
        self._max_frame_bytes = max_frame_bytes
        self.intake = Intake(self, max_frame_bytes)
        self._in_flight: InFlight[Waiting] = InFlight(epoch)
        self._queue: FairQueue[Hashable, Call] = FairQueue(
            guard.settings.max_waiting,
            MAX_WAITING_BYTES,
            lambda lane: guard.weigh(lane),  # noqa: PLW0108 - S2 puts another one there
        )
        self._writer: asyncio.WriteTransport | None = None
        self._out: list[bytes] = []
        self._unread_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._grace: asyncio.TimerHandle | None = None
        self._others = 0
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
        stdin = os.fdopen(stdin_fd, "wb", 0)
        writer, _ = await self._loop.connect_write_pipe(lambda: _Writing(self), stdin)
        self._writer = writer
        writer.set_write_buffer_limits(HIGH_WATER_BYTES)
        await self.intake.open(stdout_fd)
        if self.closed:
            self._close_pipes()
        self._flush()

    def close(self, reason: str) -> None:
        """Fail what waits, with `reason`, and let go of the pipes."""
        if self.closed:
            return
        self.closed = True
        self._fail_all(reason)
        self.maker.end()
        for timer in (self._timer, self._grace):
            if timer is not None:
                timer.cancel()
        self._close_pipes()

    def _close_pipes(self) -> None:
        self.intake.close()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.abort()

    def _fail_all(self, reason: str) -> None:
        lost = "" if self.client is None else " The state of this session is lost with it."
        text = f"{self.title}: {reason} while the request was in flight; it may have run.{lost}"
        self._limit -= self._standing
        self._standing = 0
        for waiting in self._in_flight.drain():
            self._end(waiting, reason if isinstance(waiting, Inquiry) else text)
        for call in self._queue.drain():
            self._end(call, f"{self.title}: {reason} {_before_sent(call)}.{lost}")

    def _end(self, waiting: Waiting, text: str) -> None:
        """Fail what waited, unless the guard keeps it for the next server."""
        if not isinstance(waiting, Call):
            waiting.failed(jsonrpc.UNAVAILABLE, text)
            return
        sent = waiting.sent
        if self.private or not self.guard.keeps(waiting, jsonrpc.UNAVAILABLE, text):
            self.failed_some = True
            waiting.failed(jsonrpc.UNAVAILABLE, text)
        else:
            self.unanswered += sent

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
        calls = self.calls()
        if self._grace is None:  # it is lost before those that wait are told: they may ask
            self._grace = self._loop.call_later(GONE_GRACE_S, self._report_lost, reason)
        self.intake.stop()
        self.writable = False
        self._fail_all(reason)
        if calls and not self.private:  # what one session did to its own is nobody else's affair
            self.guard.server_lost(reason)

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

    @property
    def asked(self) -> int:
        """How many requests were sent."""
        return self._in_flight.issued

    @property
    def tally(self) -> tuple[int, int]:
        """How many of the clients' calls that were sent it has answered, and how many not."""
        waiting = self._in_flight.waiting.values()  # with those whose client is asked something
        calls = sum(1 for item in waiting if not isinstance(item, Inquiry))
        done = self._in_flight.issued - self._inquiries - self._cancelled - calls
        return done - self.unanswered, self.unanswered

    def calls(self) -> list[Call]:
        """The clients' calls in flight."""
        return [item for item in self._in_flight.waiting.values() if isinstance(item, Call)]

    # ---- out -------------------------------------------------------------------------------

    def call(self, call: Call) -> None:
        """Send a client's call, or keep it until there is room; fail it when there is none."""
        call.upstream = self
        deadline = call.deadline
        if call.timeout_s is not None and (deadline is None or not call.retries):
            deadline = call.deadline = self._loop.time() + call.timeout_s
        if self.writable and len(self._in_flight.waiting) < self._limit - self._reserve:
            self._send_call(call)
        elif self.lost:
            self._end(call, f"{self.title}: the server ended {_before_sent(call)}.")
        elif self.writable and self._may_use_reserve(call):
            self._send_call(call)
        else:
            self._enqueue(call)
        if deadline is not None and deadline < self._timer_at:
            self._arm()

    def _may_use_reserve(self, call: Call) -> bool:
        """Whether one of the last places is for this client: those who hold few have them."""
        lane = _lane(call)
        if len(self._in_flight.waiting) >= self._limit or self._queue.waiting(lane):
            return False
        return self._held()[lane] < self._reserve

    def _held(self) -> Counter[Hashable]:
        """How many calls of each client are in flight."""
        return Counter(map(_lane, self.calls()))

    def _enqueue(self, call: Call) -> None:
        self._queue.limit = self.guard.settings.max_waiting
        self.guard.queued += 1
        for left_out in self._queue.add(_lane(call), call, _size(call)):
            self.guard.turned_away += 1
            left_out.failed(
                jsonrpc.UNAVAILABLE,
                f"{self.title} is saturated: {len(self._in_flight)} requests in flight and "
                f"{len(self._queue)} waiting. Try again later, or raise its concurrency.",
            )

    def _send_call(self, call: Call) -> None:
        call.sent = True
        request_id = call.upstream_id = self._in_flight.add(call)
        params = call.params
        if call.progress is not None:
            meta = jsonrpc.nested(params, "_meta")
            meta["progressToken"] = jsonrpc.raw_of(request_id)
            params["_meta"] = jsonrpc.raw_of(meta)
        frame = b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}\n' % (
            request_id,
            call.method.encode(),
            jsonrpc.encode(params),
        )
        if self._credentials:
            view = call.client.view
            if view is not None and view.name in self._credentials:
                frame = frames.tagged(frame, view.name)
        self._write(frame)

    def ask(self, method: str, params: object, inquiry: Inquiry) -> int:
        """Send a question of the gateway's own, past the queue; returns its id."""
        inquiry.sent = True
        self._inquiries += 1
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
        if self._in_flight.take(request_id) is None:
            return
        self._standing -= 1
        self._limit -= 1
        self._tell_cancelled(request_id, "no longer needed")

    def tell(self, frame: bytes) -> None:
        """Send a notification or an answer, without a line end; not for ever if nobody reads."""
        if not self.writable:
            self._unread_bytes += len(frame)
            if self._unread_bytes > MAX_UNREAD_BYTES and not self.lost:
                self._give_up("the server does not read its input")
            if self.lost:
                return
        self._write(frame + b"\n")

    def mention(self, frame: bytes) -> None:
        """Send what a client tells; dropped while the server is behind with reading."""
        if self.writable:
            self._write(frame + b"\n")

    def cancel(self, call: Call, reason: str) -> None:
        """Forget a call and tell the server, if it knows of it."""
        if call.sent:
            self._cancelled += 1
            self._in_flight.discard(call.upstream_id)
            self._tell_cancelled(call.upstream_id, reason)
            self.pump()
        else:
            self._queue.remove(_lane(call), call)
        self._rest()

    def _tell_cancelled(self, request_id: int, reason: str) -> None:
        params = jsonrpc.encode({"requestId": request_id, "reason": reason})
        self.tell(jsonrpc.notification("notifications/cancelled", params))

    def reads_again(self) -> None:
        """The server has caught up with reading."""
        self.writable, self._unread_bytes = True, 0
        self.pump()

    def pump(self) -> None:
        """Send what waits, as far as there is room."""
        queue, waiting = self._queue, self._in_flight.waiting
        while queue and self.writable and len(waiting) < self._limit - self._reserve:
            self._send_call(cast("Call", queue.pop()))
        if not queue or not self.writable or len(waiting) >= self._limit:
            return
        held = self._held()
        while len(waiting) < self._limit:
            call = queue.pop(lambda lane: held[lane] < self._reserve)
            if call is None:
                return
            held[_lane(call)] += 1
            self._send_call(call)

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
            if waiting is not None:  # else what came of another one ended the server
                self._tell_cancelled(request_id, "timed out")
                waiting.failed(jsonrpc.TIMED_OUT, self._timeout_text(waiting))
        for call in [call for call in self._queue if _is_late(call, now)]:
            self._queue.remove(_lane(call), call)
            call.failed(jsonrpc.TIMED_OUT, self._timeout_text(call))
        self.pump()
        self._arm()
        self._rest()

    def _timeout_text(self, waiting: object) -> str:
        limit_s, key = getattr(waiting, "timeout_s", 0), "call_timeout_s"
        if isinstance(waiting, Call) and self._latest(waiting) <= self._loop.time():
            limit_s, key = self.guard.settings.call_limit_s, "resilience.call_limit_s"
        ran = "it may still run" if getattr(waiting, "sent", False) else "it was not sent"
        return (
            f"{self.title} did not answer within {limit_s:g} s; {ran}. "
            f"Raise {key} of the integration if it needs longer."
        )

    def _latest(self, call: Call) -> float:
        """When a call ends, whatever progress it makes."""
        return call.began_ns / 1e9 + self.guard.settings.call_limit_s

    # ---- in --------------------------------------------------------------------------------

    def take(self, frame: bytes | OversizedFrame) -> bool:
        """Take a line of the server's; whether it answers what somebody waits for."""
        if type(frame) is not bytes:
            self._oversized(cast("OversizedFrame", frame))
            return False
        try:
            message = jsonrpc.decode(frame if frame.find(b"\r") < 0 else jsonrpc.compact(frame))
        except DecodeError as error:
            self._broken(frame, error)
            return False
        if message.method is not UNSET:
            self._spoke(message)
            return False
        in_flight = self._in_flight
        waiting = in_flight.take(message.id)
        if waiting is None:
            self._strayed(in_flight.stray(message.id))
            return False
        if self._standing:
            self._no_longer_stands(waiting)
        # A remote server's worker, which is ours, may say that there is no answer.
        if not (self.remote and message.error is not UNSET and self._unanswered(waiting, message)):
            waiting.answered(message)
        if len(in_flight.waiting) <= self._standing and not self._queue:
            self._owner.upstream_idle(self)
        return True

    def _no_longer_stands(self, waiting: Waiting) -> None:
        """Something was answered: a standing question of our own gives its place back."""
        if type(waiting) is Inquiry and waiting.timeout_s is None:
            self._standing -= 1
            self._limit -= 1

    def _strayed(self, stray: Stray) -> None:
        """The server answered what nobody waits for."""
        self.strays += 1
        self._make_noise()
        self.notice(stray.name, f"{self.title} sent {stray.value}.")

    def turn_over(self) -> None:
        """Answers made room: send what waits."""
        if self._queue:
            self.pump()

    def is_alone(self) -> bool:
        """Whether no other integration was called since this was asked last."""
        before, self._others = self._others, self._owner.calls_beside(self)
        return before == self._others

    def _unanswered(self, waiting: Waiting, message: Message) -> bool:
        """Whether a remote server's worker says that there was no answer; then it has failed."""
        error = jsonrpc.error_of(cast("Raw", message.error))
        if error is None or error.code not in {frames.NOT_REACHED, frames.BROKEN}:
            return False
        text = error.message[:MAX_ERROR_CHARS]
        if error.code == frames.BROKEN:
            waiting.failed(jsonrpc.INTERNAL_ERROR, text)
        elif isinstance(waiting, Call):
            self.guard.not_reached(waiting, text)
            waiting.sent = False
            waiting.failed(jsonrpc.UNAVAILABLE, text)
        else:
            waiting.failed(jsonrpc.UNAVAILABLE, text)
        return True

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
            elif not self._is_of_predecessor(params):
                self._owner.upstream_notification(self, method, params)

    def _is_of_predecessor(self, params: Object) -> bool:
        """Whether a subscription of an earlier gateway process says it, which ends now.

        Ours says the same. Without an end each gateway that dies would leave one behind.
        """
        listen_id = jsonrpc.identifier(jsonrpc.nested(params, "_meta"), META_SUBSCRIPTION)
        if type(listen_id) is not int or self._in_flight.stray(listen_id) is not Stray.PREDECESSOR:
            return False
        self._tell_cancelled(listen_id, "no longer needed")
        return True

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
                call.deadline = min(self._loop.time() + call.timeout_s, self._latest(call))
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
        text = f"{self.title} sent an invalid message: {error.message}."
        self._spoiled(frame, frame, text)

    def _oversized(self, frame: OversizedFrame) -> None:
        text = (
            f"{self.title} sent {frame.size_bytes} bytes in one message, over the "
            f"{self._max_frame_bytes} that it may. Raise max_frame_bytes of the integration."
        )
        self._spoiled(frame.head, frame.tail, text)

    def _spoiled(self, head: bytes, tail: bytes, text: str) -> None:
        """Fail the call that an unusable frame seems to answer; give up on a stream of them."""
        self.broken_frames += 1
        self._make_noise()
        self.notice("oversized" if head is not tail else "invalid", text)
        waiting = self._in_flight.take(salvage_id(head, tail))
        if waiting is not None:
            self._no_longer_stands(waiting)
            waiting.failed(jsonrpc.INTERNAL_ERROR, text)
            self._rest()
        if self.broken_frames == MAX_BROKEN_FRAMES:
            self._give_up(f"the server sent {MAX_BROKEN_FRAMES} invalid messages")

    def notice(self, cause: str, text: str) -> None:
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
        if left > 0 and not self.closed:
            self.intake.hold(left)
            rate = f"more than {NOISE_PER_WINDOW} messages a second that answer no call"
            self.notice("flood", f"{self.title} sends {rate}: it is read slowly.")


def _size(call: Call) -> int:
    return sum(len(memoryview(value)) for value in call.params.values())


def _lane(call: Call) -> Hashable:
    """Who shares the queue: a client; those whose requests stand alone are one together."""
    return call.client if call.client.lasts else None


def _before_sent(call: Call) -> str:
    ran = "may have run on an earlier one" if call.may_have_run else "did not run"
    return f"before the request was sent; it {ran}"


def _is_late(waiting: Waiting, now: float) -> bool:
    return waiting.deadline is not None and waiting.deadline <= now
