"""One client request on its way: who asked, under which id, and where the answer goes.

Runs in S1. A call is answered exactly once: by the server, by a failure, or, when the client
cancelled it or left, not at all.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import msgspec
from msgspec import UNSET, Raw

from vsm.core.demand import CANCELLED, OK, PROTOCOL_ERROR
from vsm.gateway.accounting import now_ns, outcome_of, outcome_of_failure
from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import Id, Message

if TYPE_CHECKING:
    from vsm.board.demand import DemandRow
    from vsm.gateway.client import Client
    from vsm.gateway.upstream import Upstream


LARGE_BYTES: Final = 16 * 1024


class Sink(Protocol):
    """Where the answer to one request goes, and what belongs to that request."""

    def answer(self, frame: bytes) -> None:
        """Send the one answer; `frame` has no line end."""

    def notify(self, frame: bytes) -> None:
        """Send a notification that belongs to the request; may be dropped."""

    def ask(self, frame: bytes) -> None:
        """Send a question that belongs to the request; never dropped silently."""


class Waiting(Protocol):
    """What waits for a server's answer: a client's call or a question of the gateway's own."""

    deadline: float | None
    timeout_s: float | None
    sent: bool

    def answered(self, message: Message) -> None:
        """The server answered."""

    def failed(self, code: int, text: str) -> None:
        """No answer will come; `text` says why and what to do."""


class Call(msgspec.Struct, eq=False):  # a struct is made three times as quickly as a class
    """A client's request that a server of its own era answers: the result goes on as it is.

    Args:
        client: who asked. sink: where the answer goes.
        id_bytes: the client's id as JSON. method, params: what was asked.
        row, label: where the call is counted, and as which demand class.
        timeout_s: how long a server may take.
        log: where it is written down when it ends.
        log_level: of a modern request; None: no log messages.
        may_have_run: on an earlier server.
    """

    client: "Client"
    sink: Sink
    id_bytes: bytes
    method: str
    params: jsonrpc.Object
    integration: str
    row: "DemandRow"
    label: str
    timeout_s: float | None = None
    log: "CallRecord | None" = None
    progress: Raw | None = None
    log_level: int | None = None
    sent: bool = False
    retries: int = 0
    may_have_run: bool = False
    deadline: float | None = None
    upstream: "Upstream | None" = None
    upstream_id: int = 0
    began_ns: int = msgspec.field(default_factory=now_ns)

    def answered(self, message: Message) -> None:
        """Pass the server's answer on, under the client's id."""
        self.client.in_flight.pop(self.id_bytes, None)
        result = message.result
        if result is UNSET:
            self._answered_with_error(message)
        else:
            self._deliver(result)

    def _deliver(self, result: bytes | Raw) -> None:
        frame = jsonrpc.answer(self.id_bytes, result)
        self.sink.answer(frame)
        if len(frame) > LARGE_BYTES:
            # Looking for the key takes as long as decoding did; the answer goes out before, at the
            # end of this turn of the loop.
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._count_late, frame, now_ns())
        else:
            self._count(frame)
        if self.upstream is not None:
            guard = self.upstream.guard
            if guard.alert or self.retries:
                guard.answered(self)

    def _count(self, frame: bytes) -> None:
        outcome = outcome_of(frame) if self.method == "tools/call" else OK
        self.row.count(self.label, outcome, self.began_ns)
        if self.log is not None:
            self.log.note(self, outcome, len(frame), frame)

    def _count_late(self, frame: bytes, answered_ns: int) -> None:
        self.began_ns += now_ns() - answered_ns
        self._count(frame)

    def _answered_with_error(self, message: Message) -> None:
        error = message.error
        body = None if error is UNSET else jsonrpc.error_of(error)
        if error is UNSET or body is None:
            self._fail(jsonrpc.INTERNAL_ERROR, f"{self.integration} sent a malformed error.")
        else:
            self.sink.answer(jsonrpc.forwarded_error(self.id_bytes, error))
            self.row.count(self.label, PROTOCOL_ERROR, self.began_ns)
            if self.log is not None:
                self.log.note(self, PROTOCOL_ERROR, len(memoryview(error)), error)
            if self.upstream is not None:
                self.upstream.elicitations.required(self.client, body)
                self.upstream.guard.answered(self)

    def failed(self, code: int, text: str) -> None:
        """Answer with an error of the gateway's own."""
        self.client.in_flight.pop(self.id_bytes, None)
        self._fail(code, text)

    def _fail(self, code: int, text: str) -> None:
        sent = self.sent or self.may_have_run
        data = {"integration": self.integration, "sent": sent}
        self.sink.answer(jsonrpc.failure(self.id_bytes, code, text, data))
        outcome = outcome_of_failure(code)
        self.row.count(self.label, outcome, self.began_ns)
        if self.log is not None:
            self.log.note(self, outcome, 0)
        if self.upstream is not None:
            self.upstream.unanswered += self.sent
            self.upstream.guard.failed(self, code, text)

    def progressed(self, params: jsonrpc.Object) -> None:
        """Pass a progress notification on, under the client's token."""
        if self.progress is not None:
            params["progressToken"] = self.progress
            body = jsonrpc.encode(params)
            self.sink.notify(jsonrpc.notification("notifications/progress", body))

    def cancel(self, reason: str) -> None:
        """The client no longer wants the answer: forget it and tell the server."""
        self.client.in_flight.pop(self.id_bytes, None)
        self.row.cancel()
        if self.log is not None:
            self.log.note(self, CANCELLED, 0)
        if self.upstream is not None:
            self.upstream.cancel(self, reason)
            self.upstream.guard.cancelled(self)


class CallRecord(Protocol):
    """Where every call that ends is written down."""

    def note(self, call: Call, outcome: int, bytes_out: int, answer: bytes | Raw = b"", /) -> None:
        """Take a call.

        Args:
            call: that has ended.
            outcome: an index of OUTCOMES, or CANCELLED.
            bytes_out: of the answer.
            answer: its frame, or the server's error; b"" where it is the gateway's own.
        """


class Gate(Protocol):
    """Decides whether a call may be sent now; an integration has any number of them."""

    def admit(self, call: Call, go: Callable[[Call], None], /) -> bool:
        """Whether the call may be sent.

        False: it is held, and `go(call)` or `call.failed(…)` follows; a call that was cancelled
        meanwhile is not in `call.client.in_flight` any more, and `go` does nothing then.

        Raises:
            RequestError: the call is refused.
        """


Go: TypeAlias = Callable[[Call], None]
Passage: TypeAlias = tuple[tuple[Callable[[Call, Go], bool], Go], ...]


def passage(gates: tuple[Gate, ...], release: Callable[[tuple[Gate, ...], Call], None]) -> Passage:
    """The way past gates: what asks each, and how a call that it held goes on past the rest.

    Made once for many calls.

    Args:
        gates: in their order.
        release: sends a call that was held past the gates that are left.
    """
    return tuple(
        (gate.admit, partial(release, gates[number:])) for number, gate in enumerate(gates, 1)
    )


def is_admitted(call: Call, way: Passage) -> bool:
    """Whether every gate on a call's way lets it pass now; raises RequestError."""
    for admit, go in way:  # noqa: SIM110 - the hot path: a generator costs
        if not admit(call, go):
            return False
    return True


class Inquiry:
    """A question of the gateway's own; the answer goes to a callback."""

    __slots__ = ("deadline", "on_answer", "on_failure", "sent", "timeout_s")

    def __init__(
        self,
        on_answer: "AnswerCallback",
        on_failure: "FailureCallback",
        *,
        timeout_s: float | None,
    ) -> None:
        self.on_answer = on_answer
        self.on_failure = on_failure
        self.timeout_s = timeout_s
        self.deadline: float | None = None
        self.sent = False

    def answered(self, message: Message) -> None:
        """The server answered."""
        self.on_answer(message)

    def failed(self, code: int, text: str) -> None:
        """No answer will come."""
        self.on_failure(code, text)


class AnswerCallback(Protocol):
    """Takes a server's answer."""

    def __call__(self, message: Message, /) -> None:
        """The server answered."""


class FailureCallback(Protocol):
    """Takes the reason why there is none."""

    def __call__(self, code: int, text: str, /) -> None:
        """No answer will come."""


def id_json(value: Id) -> bytes:
    """An id as JSON."""
    return b"%d" % value if type(value) is int else jsonrpc.encode(value)
