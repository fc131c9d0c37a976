"""What `vsm connect` must remember of a session to go on with it at a gateway that is new.

Sees every line in both directions and says what to pass on. When the gateway is gone: errors for
what was in flight. When there is one again: the legacy client's handshake, log level and
subscriptions, before anything else. A question of the gateway gets an id that no later gateway
uses, so that an answer to a dead one is not taken for an answer to its successor. Pure.

Lines have no line end; a block is whole lines with theirs. The gateway's begin with `jsonrpc` and
`id`, so that a large answer need not be decoded to be known. Nor need a call of a tool that
begins or ends like that be: nearly all lines are one, and a block of them passes as it is.
"""

import json
import re
from typing import Any, Final, NamedTuple

OURS: Final = "vsm-connect-"
LOST: Final = -32000
LOST_TEXT: Final = (
    "vsm went away while the request was in flight; it may have run. The connection is made again."
)
_ID: Final = rb'\{"jsonrpc":"2\.0","id":(-?\d+|"(?:[^"\\]|\\.)*"),"'
_ANSWER: Final = re.compile(_ID + rb"(?:result|error)\":")
_QUESTION: Final = re.compile(_ID + rb"method\":")
_PLAIN_ANSWER: Final = re.compile(rb'\{"jsonrpc":"2\.0","id":(\d{1,15}),"(?:result|error)":')
_PLAIN_HEAD: Final = re.compile(rb'\{"jsonrpc":"2\.0","id":(\d{1,15}),"method":"tools/call"')
_PLAIN_TAIL: Final = re.compile(rb',"jsonrpc":"2\.0","id":(\d{1,15})\}$')
_METHOD_FIRST: Final = b'{"method":"tools/call",'
_TAIL_BYTES: Final = 48
_WITHDRAWN: Final = b'{"jsonrpc":"2.0","method":"notifications/cancelled"'
_CHANGES: Final = {
    "tools": "notifications/tools/list_changed",
    "prompts": "notifications/prompts/list_changed",
    "resources": "notifications/resources/list_changed",
}

Key = int | str
Frame = dict[str, Any]


_PLAIN_REQUEST: Final[Frame] = {"method": "tools/call"}
"""What is kept of a request of which nothing is needed but that it waits."""


class RejoinError(Exception):
    """The new gateway cannot continue the session."""


class Passed(NamedTuple):
    """What follows from a line of the gateway."""

    to_client: tuple[bytes, ...] = ()
    to_gateway: tuple[bytes, ...] = ()


class Rejoin:
    """One client's session, whatever gateways serve it.

    `joined` is whether the client's lines may be passed on.
    """

    def __init__(self) -> None:
        self.joined = True
        self.generation = 0
        self.in_flight: dict[Key, Frame] = {}
        self._initialize: Frame | None = None
        self._version: object = None
        self._initialized = False
        self._log_level: Frame | None = None
        self._subscribed: dict[str, None] = {}
        self._questions: set[str] = set()

    # ---- while there is a gateway ----------------------------------------------------------

    def sent_block(self, block: bytes) -> bytes:
        """Lines of the client: as they go to the gateway."""
        lines, in_flight = _lines(block), self.in_flight
        kept: list[bytes] = []
        changed = False
        for line in lines:
            plain = _PLAIN_HEAD.match(line) or _plain_tail(line)
            if plain is not None:
                in_flight[int(plain[1])] = _PLAIN_REQUEST
                kept.append(line)
                continue
            passed = self.sent(line)
            changed |= passed is not line
            if passed is not None:
                kept.append(passed)
        return _block(kept) if changed else block

    def received_block(self, block: bytes) -> tuple[bytes, bytes]:
        """Lines of the gateway: what goes to the client, and what back to the gateway.

        Raises:
            RejoinError: it does not take the session up again.
        """
        lines, in_flight = _lines(block), self.in_flight
        to_client: list[bytes] = []
        to_gateway: list[bytes] = []
        changed = False
        for line in lines:
            plain = _PLAIN_ANSWER.match(line)
            if plain is not None and in_flight.get(key := int(plain[1])) is _PLAIN_REQUEST:
                del in_flight[key]
                to_client.append(line)
                continue
            passed = self.received(line)
            changed |= passed.to_client != (line,)
            to_client += passed.to_client
            to_gateway += passed.to_gateway
        return _block(to_client) if changed else block, _block(to_gateway)

    def sent(self, line: bytes) -> bytes | None:
        """A line of the client: as it goes to the gateway; None where it came too late."""
        try:
            frame = json.loads(line)
        except (ValueError, RecursionError):
            return line
        if not isinstance(frame, dict):
            return line
        if "method" not in frame:
            return self._answer_sent(frame, line)
        if _is_key(frame.get("id")):
            self._request_sent(frame)
        elif frame["method"] == "notifications/initialized":
            self._initialized = True
        elif frame["method"] == "notifications/cancelled":
            cancelled = _params(frame).get("requestId")
            if cancelled is not None and _is_key(cancelled):
                self.in_flight.pop(cancelled, None)
        return line

    def _request_sent(self, frame: Frame) -> None:
        method = frame["method"]
        kept = method in {"initialize", "logging/setLevel"} or "subscribe" in str(method)
        self.in_flight[frame["id"]] = frame if kept else {"method": method}
        if method == "initialize":
            self._initialize = frame

    def _answer_sent(self, frame: Frame, line: bytes) -> bytes | None:
        """The client's answer to a question, under the id that the gateway gave it."""
        asked = frame.get("id")
        if not self.generation and not isinstance(asked, str):
            return line
        if not self.generation:
            self._questions.discard(str(asked))
            return line
        mark = self._mark()
        if not isinstance(asked, str) or not asked.startswith(mark):
            return None
        self._questions.discard(asked)
        return _encode({**frame, "id": json.loads(asked.removeprefix(mark))})

    def received(self, line: bytes) -> Passed:
        """A line of the gateway.

        Raises:
            RejoinError: it does not take the session up again.
        """
        answer = _ANSWER.match(line)
        if answer is not None:
            key = json.loads(answer[1])
            if isinstance(key, str) and key.startswith(OURS):
                return self._rejoined(line) if key == self._handshake_id() else Passed()
            self._answered(key, line)
            return Passed((line,))
        question = _QUESTION.match(line)
        if question is not None:
            return Passed((self._asked(line, question),))
        if self.generation and line.startswith(_WITHDRAWN):
            return Passed((self._withdrawn(line),))
        return Passed((line,))

    def _answered(self, key: Key, line: bytes) -> None:
        request = self.in_flight.pop(key, None)
        method = "" if request is None else request["method"]
        if method == "initialize":
            self._version = _result(line).get("protocolVersion")
        elif request is not None and method == "logging/setLevel":
            self._log_level = request
        elif request is not None and method in {"resources/subscribe", "resources/unsubscribe"}:
            uri = _params(request).get("uri")
            if method == "resources/unsubscribe":
                self._subscribed.pop(str(uri), None)
            elif isinstance(uri, str) and b'"result"' in line[:1024]:
                self._subscribed[uri] = None

    def _asked(self, line: bytes, question: re.Match[bytes]) -> bytes:
        if not self.generation:
            asked = json.loads(question[1])
            if isinstance(asked, str):
                self._questions.add(asked)
            return line
        asked = self._mark() + question[1].decode()
        self._questions.add(asked)
        return line[: question.start(1)] + _encode(asked) + line[question.end(1) :]

    def _withdrawn(self, line: bytes) -> bytes:
        frame = json.loads(line)
        params = _params(frame)
        if not _is_key(params.get("requestId")):
            return line
        asked = self._mark() + json.dumps(params["requestId"])
        self._questions.discard(asked)
        return _encode({**frame, "params": {**params, "requestId": asked}})

    def _mark(self) -> str:
        return f"vsm-{self.generation}:"

    # ---- between two gateways --------------------------------------------------------------

    def lost(self) -> list[bytes]:
        """The gateway is gone: what the client is told of what was under way."""
        kept = {k: r for k, r in self.in_flight.items() if r["method"] == "initialize"}
        error = {"code": LOST, "message": LOST_TEXT, "data": {"sent": True}}
        told = [
            _encode({"jsonrpc": "2.0", "id": key, "error": error})
            for key in self.in_flight
            if key not in kept
        ]
        for asked in sorted(self._questions):
            params = {"requestId": asked, "reason": "vsm went away"}
            method = "notifications/cancelled"
            told.append(_encode({"jsonrpc": "2.0", "method": method, "params": params}))
        self.in_flight = kept
        self._questions.clear()
        self.generation += 1
        self.joined = False
        return told

    def rejoin(self) -> list[bytes]:
        """There is a gateway again: what it is told first."""
        if self._initialize is None:
            self.joined = True
            return []
        if self._initialize["id"] in self.in_flight:  # not answered yet: the client waits for it
            self.joined = True
            return [_encode(self._initialize)]
        return [_encode({**self._initialize, "id": self._handshake_id()})]

    def _handshake_id(self) -> str:
        return f"{OURS}{self.generation}"

    def _rejoined(self, line: bytes) -> Passed:
        result = _result(line)
        version = result.get("protocolVersion")
        if version != self._version:
            raise RejoinError(f"the session spoke {self._version}, the new vsm offers {version}")
        self.joined = True
        wishes: list[Frame] = [] if self._log_level is None else [self._log_level]
        subscribe = "resources/subscribe"
        wishes += [{"method": subscribe, "params": {"uri": uri}} for uri in self._subscribed]
        to_gateway = [
            _encode({"jsonrpc": "2.0", **wish, "id": f"{self._handshake_id()}-{number}"})
            for number, wish in enumerate(wishes)
        ]
        if self._initialized:
            ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            to_gateway.insert(0, _encode(ready))
        offers = result.get("capabilities")
        changed = [
            _encode({"jsonrpc": "2.0", "method": method})
            for name, method in _CHANGES.items()
            if self._initialized and isinstance(offers, dict) and name in offers
        ]
        return Passed(tuple(changed), tuple(to_gateway))


def _plain_tail(line: bytes) -> "re.Match[bytes] | None":
    """The end of a plain request whose id comes last: before its outermost brace, so its own."""
    if not line.startswith(_METHOD_FIRST):
        return None
    return _PLAIN_TAIL.search(line[-_TAIL_BYTES:])


def _lines(block: bytes) -> list[bytes]:
    """The lines of a block; of a single long one without looking at every byte."""
    if block.find(b"\n") == len(block) - 1:
        return [block[:-1]]
    return block.split(b"\n")[:-1]


def _block(lines: list[bytes]) -> bytes:
    return b"\n".join((*lines, b""))


def _is_key(value: object) -> bool:
    return type(value) in {int, str}


def _params(frame: Frame) -> Frame:
    params = frame.get("params")
    return params if isinstance(params, dict) else {}


def _result(line: bytes) -> Frame:
    result = json.loads(line).get("result")
    return result if isinstance(result, dict) else {}


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
