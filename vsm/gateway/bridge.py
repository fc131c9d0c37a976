"""Calls between the eras, and the questions that servers ask while they run.

A legacy server asks by a request of its own and waits; a modern client is asked by the answer
to its call and comes back with another one. In between the call is parked here, named by a
sealed state that the client carries. The other way round, a modern server's question is put to
the legacy client as a request, and the call is sent again with what it said.
Runs in S1's event loop.
"""

import asyncio
import hashlib
import secrets
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import UNSET, Raw

from vsm.core.demand import CANCELLED
from vsm.gateway import finder
from vsm.gateway.call import Call
from vsm.protocol import envelope, jsonrpc
from vsm.protocol.envelope import QuestionError
from vsm.protocol.jsonrpc import DecodeError, Message, Object
from vsm.protocol.sealing import Seal, SealError
from vsm.protocol.tables import ASKED_CAPABILITY, ASKING, CACHEABLE, META_CAPABILITIES

if TYPE_CHECKING:
    from vsm.gateway.client import Client
    from vsm.gateway.fleet import Fleet
    from vsm.gateway.upstream import Upstream

QUESTION_TIMEOUT_S: Final = 600.0
MAX_PARKED: Final = 16  # of one server: each holds one of its places
MAX_PARKED_BYTES: Final = 16 * 1024 * 1024  # of one server's questions
MAX_QUESTIONS: Final = 16
MAX_ROUNDS: Final = 16
RETRY_DELAY_S: Final = 0.1
_STATE: Final = struct.Struct(">16sI16s")


class BridgeError(DecodeError):
    """A question cannot be asked, or its answer not be taken."""


class BridgedCall(Call, kw_only=True):
    """A call whose client and server speak different eras.

    Args:
        to_modern: the client is the modern one.
        capabilities: what the client says that it can be asked.
    """

    bridge: "Bridge"
    to_modern: bool
    capabilities: Object = msgspec.field(default_factory=dict)
    rounds: int = 0

    def change_era(self, params: Object, meta: Object) -> None:
        """Make the request's `_meta` what the server's era expects."""
        if self.to_modern:
            self.capabilities = jsonrpc.nested(meta, META_CAPABILITIES)
            sent = envelope.for_legacy_server(meta)
        else:
            self.capabilities = self.client.capabilities
            sent = {**meta, **self.client.envelope}
        if sent:
            params["_meta"] = jsonrpc.raw_of(sent)
        else:
            params.pop("_meta", None)

    def answered(self, message: Message) -> None:
        """Translate the server's answer, or ask the client what the server wants to know."""
        if message.result is UNSET:
            super().answered(message)
            return
        try:
            body = self._translated(message.result)
        except QuestionError:
            self.bridge.ask_legacy_client(self, message.result)
        except DecodeError:
            self.failed(jsonrpc.INTERNAL_ERROR, f"{self.integration} sent a malformed result.")
        else:
            self.client.in_flight.pop(self.id_bytes, None)
            self._deliver(body)

    def cancel(self, reason: str) -> None:
        """The client no longer wants the answer, and is asked nothing more for it."""
        self.bridge.drop_questions(self)
        super().cancel(reason)

    def _translated(self, result: Raw) -> bytes:
        if self.to_modern:
            return envelope.result_for_modern(result, cacheable=self.method in CACHEABLE)
        return envelope.result_for_legacy(result)


@dataclass(eq=False)
class Parked:
    """A legacy server's call whose modern client was asked and has yet to come back.

    It stands in for the call among what waits for the server.

    Args:
        asked: the questions that the client was told, by the names it answers them under:
            the server's id of each and the question. unasked: those that came since.
        outcome: what the server answered meanwhile.
    """

    call: BridgedCall
    upstream: "Upstream"
    state_id: bytes
    digest: bytes
    asked: dict[str, tuple[bytes, Object]] = field(default_factory=dict)
    unasked: dict[str, tuple[bytes, Object]] = field(default_factory=dict)
    rounds: int = 0
    questions: int = 0
    outcome: Message | tuple[int, str] | None = None
    timer: asyncio.TimerHandle | None = None
    deadline: float | None = None
    timeout_s: float | None = None
    sent: bool = True

    def answered(self, message: Message) -> None:
        """The server answered without waiting for the client: keep it until the client comes."""
        self.outcome = message

    def failed(self, code: int, text: str) -> None:
        """The server is gone: the client hears it when it comes."""
        self.outcome = (code, text)

    def keep(
        self, questions: dict[str, tuple[bytes, Object]], message: Message, method: str, params: Raw
    ) -> None:
        """Keep a question among those that were told, or among those that were not."""
        self.questions += 1
        question = {"method": jsonrpc.raw_of(method), "params": params}
        questions[f"vsm-{self.questions}"] = (jsonrpc.encode(message.id), question)

    @property
    def size_bytes(self) -> int:
        """Of its questions."""
        every = (*self.asked.values(), *self.unasked.values())
        return sum(len(memoryview(question["params"])) for _, question in every)

    def withdrawn(self, id_bytes: bytes) -> None:
        """The server no longer wants an answer to one question; it is asked, but not passed on."""
        for questions in (self.asked, self.unasked):
            for name, (asked_id, _) in list(questions.items()):
                if asked_id == id_bytes:
                    del questions[name]


@dataclass(eq=False)
class Round:
    """A modern server's questions to a legacy client, until every one is answered."""

    call: BridgedCall
    state: Raw | None
    missing: set[str]
    responses: dict[str, Raw] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False)
class RoundQuestion:
    """One of them, as the client's session keeps it."""

    bridge: "Bridge"
    round: Round
    name: str

    def answered(self, message: Message) -> None:
        """The client answered."""
        self.bridge.client_said(self.round, self.name, message)

    def dropped(self, reason: str) -> None:
        """The client will not answer, and its call ends."""
        self.bridge.give_up(self.round, reason)


class Bridge:
    """What is parked, and the questions between.

    Args:
        fleet: finds the server again for a call that is sent again.
    """

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self._seal = Seal()
        self._parked: dict[bytes, Parked] = {}
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Forget everything."""
        for parked in list(self._parked.values()):
            self._forget(parked)

    def parked_of(self, upstream: "Upstream") -> list[Parked]:
        """The server's calls whose clients were asked and did not come back yet."""
        return [parked for parked in self._parked.values() if parked.upstream is upstream]

    def client_left(self, client: "Client") -> None:
        """A client with a connection of its own is gone, and what it was asked with it."""
        for parked in [p for p in self._parked.values() if p.call.client is client]:
            self._end(parked, "the client is gone")

    # ---- a legacy server asks a modern client ----------------------------------------------

    def ask_modern_client(self, call: BridgedCall, upstream: "Upstream", message: Message) -> None:
        """Answer the client's call by the server's question, and park the call.

        Raises:
            BridgeError: the client cannot be asked; the text says why.
        """
        method, params = _question(call.capabilities, message)
        if call.method not in ASKING:
            raise BridgeError(jsonrpc.METHOD_NOT_FOUND, f"{call.method} cannot be asked back")
        if len(self.parked_of(upstream)) >= MAX_PARKED:
            raise BridgeError(jsonrpc.UNAVAILABLE, "too many clients are being asked already")
        self._check_size(upstream, params)
        parked = Parked(call, upstream, secrets.token_bytes(16), _digest(call))
        parked.keep(parked.asked, message, method, params)
        self._park(parked)

    def ask_parked(self, parked: Parked, message: Message) -> None:
        """The server asks more before the client came back: it hears it when it comes.

        Raises:
            BridgeError: the client cannot be asked.
        """
        method, params = _question(parked.call.capabilities, message)
        if len(parked.asked) + len(parked.unasked) >= MAX_QUESTIONS:
            raise BridgeError(jsonrpc.UNAVAILABLE, "the client has too many questions open")
        self._check_size(parked.upstream, params)
        parked.keep(parked.unasked, message, method, params)

    def _check_size(self, upstream: "Upstream", params: Raw) -> None:
        """Judge whether there is room for one more of a server's questions."""
        held = sum(parked.size_bytes for parked in self.parked_of(upstream))
        if held + len(memoryview(params)) > MAX_PARKED_BYTES:
            raise BridgeError(jsonrpc.UNAVAILABLE, "what is being asked already is too large")

    def _park(self, parked: Parked) -> None:
        """Tell the client what is asked, and keep the call until it comes back."""
        call = parked.call
        parked.rounds += 1
        self._parked[parked.state_id] = parked
        expires_at = self._loop.time() + QUESTION_TIMEOUT_S
        if parked.timer is not None:
            parked.timer.cancel()
        expired = "nobody answered the question"
        parked.timer = self._loop.call_at(expires_at, self._end, parked, expired)
        payload = _STATE.pack(parked.state_id, parked.rounds, parked.digest)
        result = {
            "resultType": "input_required",
            "inputRequests": {name: question for name, (_, question) in parked.asked.items()},
            "requestState": self._seal.close(payload, expires_at),
        }
        if parked.outcome is None:
            parked.upstream.stand_in(call.upstream_id, parked)
        call.client.in_flight.pop(call.id_bytes, None)
        call.sink.answer(jsonrpc.answer(call.id_bytes, jsonrpc.encode(result)))

    def _end(self, parked: Parked, reason: str) -> None:
        """Nobody will come back: the server's questions and its call end."""
        self._forget(parked)
        parked.call.row.cancel()
        if parked.call.log is not None:
            parked.call.log.note(parked.call, CANCELLED, 0)
        parked.upstream.guard.cancelled(parked.call)
        if parked.outcome is None:
            for id_bytes, _ in (*parked.asked.values(), *parked.unasked.values()):
                parked.upstream.tell(jsonrpc.failure(id_bytes, jsonrpc.INTERNAL_ERROR, reason))
            parked.upstream.cancel(parked.call, reason)

    def _forget(self, parked: Parked) -> None:
        self._parked.pop(parked.state_id, None)
        if parked.timer is not None:
            parked.timer.cancel()

    def resume(self, call: BridgedCall) -> None:
        """A modern client comes back: `call` is the new request for the parked one.

        Raises:
            BridgeError: its state is not good, or its answers are not.
        """
        parked = self._claim(call)
        responses = jsonrpc.nested(call.params, "inputResponses")
        if any(not bytes(responses.get(name, b"{")).startswith(b"{") for name in parked.asked):
            raise BridgeError(jsonrpc.INVALID_PARAMS, "each of inputResponses is an object")
        for name in [name for name in parked.asked if name in responses]:
            id_bytes, _ = parked.asked.pop(name)
            parked.upstream.tell(jsonrpc.answer(id_bytes, responses[name]))
        old = parked.call
        old.client, old.sink, old.id_bytes = call.client, call.sink, call.id_bytes
        old.progress, old.capabilities = call.progress, call.capabilities
        old.log_level = call.log_level
        parked.asked.update(parked.unasked)
        parked.unasked.clear()
        if parked.asked and parked.outcome is None:
            self._park(parked)
        else:
            self._continue(parked)

    def _claim(self, call: BridgedCall) -> Parked:
        token = jsonrpc.text(call.params, "requestState") or ""
        try:
            payload = self._seal.open(token, self._loop.time())
        except SealError as error:
            raise _bad_state(str(error)) from None
        state_id, rounds, digest = _STATE.unpack(payload)
        parked = self._parked.get(state_id)
        if parked is None or parked.rounds != rounds:
            raise _bad_state("was used before, or what it belongs to has ended")
        if parked.call.client.owner != call.client.owner:
            raise _bad_state("belongs to another client")
        if digest != _digest(call):
            raise _bad_state("belongs to another request")
        return parked

    def _continue(self, parked: Parked) -> None:
        self._forget(parked)
        call, outcome = parked.call, parked.outcome
        if isinstance(outcome, Message):
            call.answered(outcome)
        elif outcome is not None:
            call.failed(*outcome)
        else:
            call.client.in_flight[call.id_bytes] = call
            parked.upstream.stand_in(call.upstream_id, call)
            parked.upstream.postpone(call, call.timeout_s or QUESTION_TIMEOUT_S)

    # ---- a modern server asks a legacy client ----------------------------------------------

    def ask_legacy_client(self, call: BridgedCall, result: Raw) -> None:
        """Put the questions of an `input_required` result to the client that called."""
        # What the server was sent is answered: nothing is there to cancel, and its time is over.
        call.sent, call.deadline = False, None
        call.rounds += 1
        try:
            self._ask_round(call, jsonrpc.members(result))
        except DecodeError as error:
            call.failed(error.code, f"{call.integration} asks back: {error.message}.")

    def _ask_round(self, call: BridgedCall, members: Object) -> None:
        if call.rounds > MAX_ROUNDS:
            raise BridgeError(jsonrpc.INTERNAL_ERROR, f"more than {MAX_ROUNDS} times for one call")
        questions = jsonrpc.nested(members, "inputRequests")
        if questions and not call.client.can_answer:
            raise BridgeError(jsonrpc.INTERNAL_ERROR, "the client sends no more")
        call.client.make_room()
        if len(questions) + len(call.client.asked) > MAX_QUESTIONS:
            raise BridgeError(jsonrpc.INTERNAL_ERROR, f"more than {MAX_QUESTIONS} things at once")
        asked = {name: _embedded(call, raw) for name, raw in questions.items()}
        one = Round(call, members.get("requestState"), set(asked))
        if not asked:
            delay_s = RETRY_DELAY_S * call.rounds
            one.timer = self._loop.call_later(delay_s, self._send_again, one)
            return
        one.timer = self._loop.call_later(QUESTION_TIMEOUT_S, self._unanswered, one)
        for name, (method, params) in asked.items():
            asked_id = call.client.number_question()
            call.client.asked[asked_id] = RoundQuestion(self, one, name)
            call.sink.ask(jsonrpc.request(asked_id, method, params))

    def client_said(self, one: Round, name: str, message: Message) -> None:
        """A legacy client answered one question; with the last one the call goes on."""
        call = one.call
        if name not in one.missing or not _waits(call):
            return
        if message.result is UNSET:
            error = jsonrpc.error_of(cast("Raw", message.error))
            said = "an error" if error is None else f"an error: {error.message[:200]}"
            self.give_up(one, f"the client answered the question with {said}")
            return
        one.missing.discard(name)
        one.responses[name] = message.result
        if not one.missing:
            self._send_again(one)

    @staticmethod
    def drop_questions(call: BridgedCall) -> None:
        """Take no answers to what was asked for a call that ended."""
        for asked_id, question in list(call.client.asked.items()):
            if isinstance(question, RoundQuestion) and question.round.call is call:
                del call.client.asked[asked_id]
                if question.round.timer is not None:
                    question.round.timer.cancel()

    def _unanswered(self, one: Round) -> None:
        self.give_up(one, f"the client did not answer within {QUESTION_TIMEOUT_S:g} s")

    def give_up(self, one: Round, reason: str) -> None:
        """There will be no answer to a round: its call fails with the reason."""
        one.missing.clear()
        if one.timer is not None:
            one.timer.cancel()
        self.drop_questions(one.call)
        if _waits(one.call):
            text = f"{one.call.integration} asked back, and {reason}."
            one.call.failed(jsonrpc.INTERNAL_ERROR, text)

    def _send_again(self, one: Round) -> None:
        if one.timer is not None:
            one.timer.cancel()
        call = one.call
        if not _waits(call):
            return
        integration = self._fleet.integrations.get(call.integration)
        upstream = None if integration is None else integration.upstream
        if integration is not None and integration.instances is not None:
            upstream = call.upstream if call.upstream and not call.upstream.lost else None
        if integration is None or upstream is None or not integration.takes_calls:
            why = f"{call.integration} is gone" if integration is None else integration.unavailable
            call.failed(jsonrpc.UNAVAILABLE, why)
            return
        try:
            finder.check_offered(integration, call)
            finder.check_era(call, upstream)
        except finder.RequestError as error:
            call.failed(error.code, error.message)
            return
        params = {**call.params, "inputResponses": jsonrpc.raw_of(one.responses)}
        params.pop("requestState", None)
        if one.state is not None:
            params["requestState"] = one.state
        call.params = params
        upstream.call(call)


def _waits(call: Call) -> bool:
    return call.client.in_flight.get(call.id_bytes) is call


def _bad_state(reason: str) -> BridgeError:
    text = f"requestState {reason}. Make the call again without it."
    return BridgeError(jsonrpc.INVALID_PARAMS, text)


def _digest(call: Call) -> bytes:
    """What a call asks for, whatever the order and the white space of its JSON."""
    apart = ("_meta", "inputResponses", "requestState")
    try:
        asked: Any = {k: msgspec.json.decode(v) for k, v in call.params.items() if k not in apart}
        body = msgspec.json.encode([call.integration, call.method, asked], order="deterministic")
    except (RecursionError, msgspec.DecodeError):
        text = "the arguments are nested too deeply, or hold a number out of range"
        raise BridgeError(jsonrpc.INVALID_PARAMS, text) from None
    return hashlib.sha256(body).digest()[:16]


def _question(capabilities: Object, message: Message) -> tuple[str, Raw]:
    """A server's question without what belongs to its own session.

    Raises:
        BridgeError: the client does not offer to be asked this.
    """
    method = cast("str", message.method)
    params = jsonrpc.members(message.params)
    check_offered(capabilities, method, params)
    for key in ("_meta", "task"):
        params.pop(key, None)
    return method, jsonrpc.raw_of(params)


def check_offered(capabilities: Object, method: str, params: Object) -> None:
    """Judge a question by what the client declared.

    Raises:
        BridgeError: the client does not offer to be asked this.
    """
    key = ASKED_CAPABILITY.get(method)
    if key is None or key not in capabilities:
        text = f"the client does not offer {method[:80]}"
        raise BridgeError(jsonrpc.METHOD_NOT_FOUND, text)
    offered = jsonrpc.nested(capabilities, key)
    if method == "elicitation/create":
        mode = jsonrpc.text(params, "mode") or "form"
        # Before there were modes, a client declared none and meant forms.
        if mode not in offered and (mode != "form" or "url" in offered):
            how = {"form": "form", "url": "URL"}.get(mode, mode[:80])
            raise BridgeError(
                jsonrpc.INVALID_PARAMS, f"the client does not offer elicitation by {how}"
            )
    if "tools" not in offered and ("tools" in params or "toolChoice" in params):
        text = "the client does not offer tools in sampling"
        raise BridgeError(jsonrpc.INVALID_PARAMS, text)


def _embedded(call: BridgedCall, raw: Raw) -> tuple[str, Raw]:
    question = jsonrpc.members(raw)
    method = jsonrpc.text(question, "method") or ""
    params = jsonrpc.nested(question, "params")
    check_offered(call.capabilities, method, params)
    return method, jsonrpc.raw_of(params)
