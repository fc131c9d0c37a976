"""Every call for the record: who, what, how it ended, how long, how many bytes.

Owns what is on its way to the call journal, the bound on that, and what becomes of a call when
it is reached: counted, or held back. What calls carry goes with the record only where the entry
of the integration asks for it; secrets, which this process does not know, are taken out by the
journal's, which this one only sends to. Runs in S1's event loop.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw

import vsm.core.demand as names
from vsm.gateway.call import Call, Go
from vsm.gateway.client import Client
from vsm.gateway.finder import RequestError
from vsm.journal.queue import JournalQueue
from vsm.journal.records import (
    Committed,
    Event,
    Ready,
    Resend,
    Trouble,
    event_fields,
    hello_message,
    parse_from_journal,
    severity_index,
)
from vsm.protocol import jsonrpc

Mode: TypeAlias = Literal["all", "counted", "off"]
CAPACITY_RECORDS: Final = 32_768
CAPACITY_BYTES: Final = 16 * 2**20
FLUSH_S: Final = 0.05
MAX_HELD: Final = 4096
WINDOW: Final = 8
_MOST_ANSWER_BYTES: Final = 128 * 1024
MAX_WHAT_CHARS: Final = 256
KINDS: Final = tuple(f"call.{name}" for name in (*names.OUTCOMES, "cancelled"))
_GROWTH: Final = 4  # of a byte that is JSON within JSON within JSON, at worst
_RESULT: Final = b'"result":'
_NO_ARGUMENTS: Final = frozenset({"_meta", "name", "task", "requestState"})
_json: Final = msgspec.json.Encoder().encode
_INFO, _WARNING = severity_index("info"), severity_index("warning")
_HELD_TOO_LONG: Final = (
    "the record of calls cannot be written, and no call goes unrecorded. See `vsm status`; "
    'gateway.audit = "counted" lets calls through.'
)


class _Noted(NamedTuple):
    at_ns: int
    steady_ns: int
    took_ns: int
    identity: str
    calls_itself: str
    integration: str
    method: str
    label: str
    outcome: int
    bytes_in: int
    bytes_out: int
    contents: dict[str, Any] | None = None


class CallLog:
    """The record of one incarnation of S1.

    Args:
        sock: a SEQPACKET end whose other one is the call journal's; ours from now on.
        sender: unique for ever.
        mode: "all" holds calls back when there is no room, "counted" drops and counts.
        rate: most calls a second that "counted" records.

    Attributes:
        kept_bytes: of which integrations' calls the contents are recorded, and how much of the
            arguments and of the result.
    """

    def __init__(self, sock: socket.socket, *, sender: str, mode: Mode, rate: int) -> None:
        self.mode = mode
        self.dropped = 0
        self.kept_bytes: Mapping[str, int] = {}
        self._contents_bytes = 0  # of the rows
        self._sock = sock
        self._sender = sender
        self._rate = rate
        self._left = rate
        self._unreported = 0
        self._rows: list[_Noted] = []
        self._held: deque[tuple[Call, Go, asyncio.TimerHandle]] = deque()
        self._queue = JournalQueue(CAPACITY_RECORDS, CAPACITY_BYTES)
        self._greeted = False
        self._loop = asyncio.get_running_loop()
        sock.settimeout(0)
        self._loop.add_reader(sock, self._readable)
        self._say(hello_message(sender, 0))
        self._flusher: asyncio.TimerHandle | None = None
        self._second: asyncio.TimerHandle | None = None

    # ---- calls -----------------------------------------------------------------------------

    def note(self, call: Call, outcome: int, bytes_out: int, answer: bytes | Raw = b"", /) -> None:
        """Record a call that has ended."""
        if self._is_too_much():
            return
        client = call.client
        most = self.kept_bytes.get(call.integration, 0) if self.kept_bytes else 0
        self._rows.append(
            _Noted(
                time.time_ns(),
                now := time.perf_counter_ns(),
                now - call.began_ns,
                client.identity,
                client.calls_itself,
                call.integration,
                call.method,
                call.label,
                outcome,
                sum(len(memoryview(value)) for value in call.params.values()),
                bytes_out,
                self._contents(call, answer, most) if most else None,
            )
        )
        if self._flusher is None:
            self._flush_later()

    def _contents(self, call: Call, answer: bytes | Raw, most: int) -> dict[str, Any]:
        """What a call carried, cut to `most` bytes each way; secrets are the journal's affair."""
        if not self._has_room():
            return {"left_out": "there was no room"}
        asked, said = contents_of(call, answer)
        kept = {"arguments": asked, "result": said}
        cut = [key for key, raw in kept.items() if len(memoryview(raw)) > most]
        texts = {
            key: bytes(memoryview(raw)[:most]).decode(
                errors="ignore"
            )  # half a character at the cut
            for key, raw in kept.items()
            if raw
        }
        self._contents_bytes += sum(map(len, texts.values()))
        return {**texts, **({"truncated": cut} if cut else {})}

    def refused(self, client: Client, method: str, label: str, outcome: int) -> None:
        """Record a request that no server was found for, or that a rule forbids."""
        if not self._is_too_much():
            who = client.identity, client.calls_itself
            now = time.time_ns(), time.perf_counter_ns()
            self._rows.append(_Noted(*now, 0, *who, "", method, label, outcome, 0, 0))
            self._flush_later()

    def _is_too_much(self) -> bool:
        if self.mode == "all":
            return False
        self._left -= 1
        if self._second is None:
            self._second = self._loop.call_later(1.0, self._next_second)
        if self._left >= 0:
            return False
        self.dropped += 1
        self._unreported += 1
        return True

    def admit(self, call: Call, go: Go, /) -> bool:
        """As a gate: hold a call that could not be recorded.

        Raises:
            RequestError: too many are held already.
        """
        if self._has_room():
            return True
        if len(self._held) >= MAX_HELD:
            self._forget_cancelled()
        if len(self._held) >= MAX_HELD:
            text = f"{call.integration}: {_HELD_TOO_LONG}"
            raise RequestError(jsonrpc.UNAVAILABLE, text, unserved=True)
        timer = self._loop.call_later(call.timeout_s or 60.0, self._give_up, call)
        self._held.append((call, go, timer))
        return False

    def _has_room(self) -> bool:
        # The queue keeps its last quarter for what is at least a warning; no call is.
        few = len(self._queue) + len(self._rows) < CAPACITY_RECORDS // 2
        waiting = self._queue.size + self._contents_bytes * _GROWTH
        return few and waiting < CAPACITY_BYTES // 2

    def _forget_cancelled(self) -> None:
        kept: deque[tuple[Call, Go, asyncio.TimerHandle]] = deque()
        for held in self._held:
            if held[0].client.in_flight.get(held[0].id_bytes) is held[0]:
                kept.append(held)
            else:
                held[2].cancel()
        self._held = kept

    def _give_up(self, call: Call) -> None:
        self._held = deque(entry for entry in self._held if entry[0] is not call)
        if call.client.in_flight.get(call.id_bytes) is call:
            call.failed(jsonrpc.UNAVAILABLE, f"{call.integration}: {_HELD_TOO_LONG}")

    def _let_go(self) -> None:
        while self._held and self._has_room():
            call, go, timer = self._held.popleft()
            timer.cancel()
            go(call)

    # ---- to the journal --------------------------------------------------------------------

    def _flush_later(self) -> None:
        """Send soon what was noted; nobody is woken while nothing is."""
        if self._flusher is None:
            self._flusher = self._loop.call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            self._flusher = None
        rows, self._rows, self._contents_bytes = self._rows, [], 0
        for row in rows:
            self._queue.add_encoded(_encoded(row), (row.at_ns, row.steady_ns), important=False)
        self._pump()
        if len(self._queue):  # until the journal has it: it may have to be sent again
            self._flush_later()

    def _next_second(self) -> None:
        self._second, self._left = None, self._rate
        if self._unreported:
            count, self._unreported = self._unreported, 0
            self._queue.add(_own("calls.dropped", {"count": count, "recorded": self._rate}))
            self._flush_later()

    def _pump(self) -> None:
        while self._greeted and self._queue.under_way < WINDOW:
            message = self._queue.next_message()
            if message is None:
                return
            if not self._say(message):
                self._queue.rewind(self._queue.acknowledged)
                return

    def _say(self, message: bytes) -> bool:
        try:
            self._sock.send(message, socket.MSG_NOSIGNAL)
        except (BlockingIOError, OSError):
            return False  # the next flush tries again
        return True

    def _readable(self) -> None:
        try:
            answer = parse_from_journal(self._sock.recv(_MOST_ANSWER_BYTES))
        except BlockingIOError:
            return
        except (ValueError, OSError):
            self._loop.remove_reader(self._sock)
            return
        if isinstance(answer, Resend):  # another process has taken over, and does not know us
            self._greeted = False
            self._queue.rewind(self._queue.acknowledged)
            self._say(hello_message(self._sender, self._queue.acknowledged))
        elif isinstance(answer, Ready | Committed):
            self._greeted = True
            self._queue.acknowledge(answer.sequence)
            self._pump()
            self._let_go()
        elif isinstance(answer, Trouble):
            self._queue.rewind(self._queue.acknowledged)

    def close(self) -> None:
        """Send what there is, and let go of the socket; the journal writes what it has."""
        self._flush()
        for timer in (self._flusher, self._second, *(timer for _, _, timer in self._held)):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()


def _encoded(row: _Noted) -> str:
    """The record as `vsm.journal.records.encode` would make it, for a tenth of the time."""
    detail = {
        "what": row.label[:MAX_WHAT_CHARS],
        "method": row.method,
        "client": row.calls_itself,
        "ms": row.took_ns / 1e6,
        "bytes_in": row.bytes_in,
        "bytes_out": row.bytes_out,
    }
    if row.contents is not None:
        detail["contents"] = row.contents
    kind = KINDS[row.outcome]
    fields = ("e", row.at_ns, row.steady_ns, row.identity or "unknown", kind)
    text = _json(detail).decode()
    return _json((*fields, None, row.integration or None, _INFO, text)).decode()


def contents_of(call: Call, answer: bytes | Raw) -> tuple[bytes | Raw, bytes | Raw]:
    """What a call carried in and out, as JSON; b"" for nothing."""
    if "arguments" in call.params:
        asked: bytes | Raw = call.params["arguments"]
    else:
        asked = jsonrpc.encode({k: v for k, v in call.params.items() if k not in _NO_ARGUMENTS})
    if not isinstance(answer, Raw):  # a whole frame; an id has no bare quotes
        answer = answer.partition(_RESULT)[2][:-1]
    return asked, answer


def _own(kind: str, detail: dict[str, object]) -> Event:
    now = (time.time_ns(), time.monotonic_ns())
    return Event(*now, "gateway", kind, None, None, _WARNING, event_fields(detail))
