"""One identity's conversation with a remote server, in whichever era the gateway speaks.

A raw forwarder: what the gateway says is posted as it is, what the server says is checked to be
one JSON-RPC message and passed on as it is; methods and members that nobody knows pass. Owns what
streamable HTTP adds: the session of the legacy era and its renewal, the headers of the modern
one, streams and their resumption. Runs in a remote server's worker. One file, a bit long: a
session, its streams and what is asked on them change together.
"""

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET, Raw

from vsm.protocol import jsonrpc
from vsm.protocol.events import EventParser, TooLargeError
from vsm.protocol.frames import BROKEN, NOT_REACHED
from vsm.protocol.jsonrpc import DecodeError, Message, Object
from vsm.protocol.mirror import Mirror, modern_version, without
from vsm.protocol.tables import LISTEN_FILTERS
from vsm.remote.door import Door, HandshakeRefusedError, RefusedError
from vsm.remote.http_client import Exchange, HttpError

MOST_ASKED: Final = 256  # questions of the server that are open
MOST_ERROR_BYTES: Final = 64 * 1024
MOST_URIS: Final = 1024
MOST_RESUMPTIONS: Final = 5  # in a row that brought nothing
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 30.0
AT_ONCE_S: Final = 1.0  # a stream of announcements that ends within it was opened in vain
FAREWELL_S: Final = 2.0
_HANDSHAKES: Final = frozenset({"server/discover", "initialize"})
_CHANGES: Final = {
    "tools": b"notifications/tools/list_changed",
    "prompts": b"notifications/prompts/list_changed",
    "resources": b"notifications/resources/list_changed",
}
_EVENTS: Final = "text/event-stream"
_JSON: Final = "application/json"
_ACCEPT: Final = f"{_JSON}, {_EVENTS}"
_OK: Final = 200
_ACCEPTED: Final = range(200, 300)
_BAD_REQUEST: Final = 400
_NOT_FOUND: Final = 404
_LOST: Final = re.compile(rb"(?i)\b(?:no valid|invalid|unknown) session\b|\bsession not found\b")
_NO_STREAM: Final = frozenset({400, 404, 405, 406, 501})
_FAULTS: Final = range(500, 600)
_MOST_SESSION_CHARS: Final = 1024

Emit = Callable[[bytes], Awaitable[None]]
OnAnswer = Callable[[bytes, Message], Awaitable[None]]


class SessionLostError(Exception):
    """The server does not know the session any more; the request did not run."""

    def __init__(self) -> None:
        super().__init__("its session is lost")


class SurfaceChangedError(Exception):
    """The renewed session offers something else: everything has to begin anew."""


@dataclass
class Questions:
    """What the server asked, under ids of our own: those of several sessions may be alike.

    `open` has who asked, and the server's own id.
    """

    open: dict[str, "tuple[Peer, jsonrpc.Id]"] = field(default_factory=dict)
    _count: int = 0

    def add(self, peer: "Peer", asked: jsonrpc.Id) -> "tuple[str, tuple[Peer, jsonrpc.Id] | None]":
        """The id under which it is passed on, and the oldest, where that has to make room.

        Many a question is never answered: its client is gone, or its call over.
        """
        full = len(self.open) >= MOST_ASKED
        oldest = self.open.pop(next(iter(self.open))) if full else None
        self._count += 1
        own = f"r{self._count}"
        self.open[own] = (peer, asked)
        return own, oldest

    def find(self, peer: "Peer", asked: jsonrpc.Id) -> str | None:
        """The id under which a question was passed on."""
        wanted = (peer, asked)
        return next((own for own, known in self.open.items() if known == wanted), None)


@dataclass
class Common:
    """What the peers of a worker share.

    Args:
        emit: passes a line on to the gateway, and waits while it takes none.
        initialize: the gateway's handshake, for sessions that are opened later.
        failed: ends the worker, with what is said of it.
    """

    emit: Emit
    failed: Callable[[BaseException], None]
    most_frame_bytes: int
    mirror: Mirror = field(default_factory=Mirror)
    questions: Questions = field(default_factory=Questions)
    initialize: bytes = b""


class Peer:
    """One identity at the server.

    Args:
        door: makes the exchanges. common: what is everybody's.
        own: whether it is the integration's own, which the gateway's handshake is with.
    """

    def __init__(self, door: Door, common: Common, *, own: bool) -> None:
        self._door = door
        self._common = common
        self._own = own
        self._session = ""
        self._version = ""
        self._modern = ""
        self._generation = 0
        self._renewals = 0
        self._offered: tuple[Any, Any] | None = None
        self._joined = False
        self._lost = False  # and no other one was opened yet
        self._lock = asyncio.Lock()
        self._log_level: bytes | None = None
        self._uris: dict[str, None] = {}
        self._hearing: asyncio.Task[None] | None = None

    # ---- from the gateway ----------------------------------------------------------------------

    async def request(self, frame: bytes, message: Message) -> None:
        """Post a request and pass on what comes of it: exactly one answer, unless cancelled."""
        method = str(message.method)
        try:
            await self._request(frame, message, method)
        except HttpError as error:
            await self._fail(message, self._code(method, error), _in_full(error))
        except SessionLostError:
            await self._fail(message, NOT_REACHED, "it forgets sessions at once; it did not run")
        except HandshakeRefusedError as error:
            if self._own and method in _HANDSHAKES:
                self._common.failed(error)
            else:
                await self._fail(message, jsonrpc.UNAVAILABLE, str(error))
        except RefusedError as error:
            await self._fail(message, jsonrpc.UNAVAILABLE, str(error))
        except SurfaceChangedError as error:
            await self._fail(message, jsonrpc.UNAVAILABLE, str(error))
            self._common.failed(error)

    async def notification(self, frame: bytes, message: Message) -> None:
        """Post a notification; one that fails is said on stderr."""
        method = str(message.method)
        if not self._own and not self._joined:
            return
        try:
            await self._tell(frame, {"mcp-method": method} if self._modern else {})
        except (HttpError, RefusedError, SessionLostError) as error:
            say(f"{method[:80]} was not taken: {error}")
            return
        if method == "notifications/initialized" and not self._modern:
            self._hear()

    async def answer(self, message: Message, asked: jsonrpc.Id) -> None:
        """Post the client's answer to a question of the server."""
        id_bytes = jsonrpc.encode(asked)
        if message.result is not UNSET:
            frame = jsonrpc.answer(id_bytes, message.result)
        else:
            frame = jsonrpc.forwarded_error(id_bytes, cast("Raw", message.error))
        try:
            await self._tell(frame, {})
        except (HttpError, RefusedError, SessionLostError) as error:
            say(f"an answer was not taken: {error}")

    async def cancelled(self, frame: bytes) -> None:
        """Tell of a cancelled request; in the modern era the end of its stream says it."""
        if not self._modern:
            with contextlib.suppress(HttpError, RefusedError, SessionLostError):
                await self._tell(frame, {})

    async def close(self) -> None:
        """End the session, if the server takes the time to hear it."""
        if self._hearing is not None:
            self._hearing.cancel()
        if self._session:
            with contextlib.suppress(HttpError, RefusedError, TimeoutError):
                async with asyncio.timeout(FAREWELL_S), self._door.aside:
                    (await self._door.open("DELETE", self._headers())).leave()
        await self._door.close()

    # ---- requests ------------------------------------------------------------------------------

    async def _request(self, frame: bytes, message: Message, method: str) -> None:
        params = jsonrpc.members(message.params)
        version = modern_version(params)
        if version is not None:
            self._modern = version if method != "server/discover" else self._modern
            headers = self._common.mirror.headers(message, params, version)
            if method == "subscriptions/listen":
                await self._listen(frame, message, headers, params)
            else:
                tools = method == "tools/list"
                on_answer = self._emit_tools if tools else self._emit_answer
                await self._converse(frame, message, headers, on_answer)
        elif method == "initialize":
            self._modern = ""
            self._common.initialize = frame
            await self._open_session(frame, message, self._emit_answer)
        else:
            await self._request_in_session(frame, message, method, params)

    async def _listen(
        self, frame: bytes, message: Message, headers: dict[str, str], params: Object
    ) -> None:
        """A subscription, opened again when its stream breaks, until it is cancelled."""
        vain = 0
        wanted = jsonrpc.nested(params, "notifications")
        missed: list[str] = []  # told only to a server that is there again: it is asked for lists

        async def opened() -> None:
            for method in missed:
                await self._common.emit(jsonrpc.notification(method))

        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._converse(frame, message, headers, on_stream=opened)
            except HttpError as error:
                if not vain:
                    say(f"a subscription broke off: {error}")
            else:
                return
            lasted_s = asyncio.get_running_loop().time() - began
            vain = 0 if lasted_s > LONGEST_PAUSE_S else vain + 1
            missed = [method for method, name in LISTEN_FILTERS.items() if name in wanted]
            await asyncio.sleep(_pause_s(None, vain))

    async def _request_in_session(
        self, frame: bytes, message: Message, method: str, params: Object
    ) -> None:
        if not self._own:
            await self._join()
        async with self._lock:  # not while another session is being opened
            generation = self._generation
        try:
            if self._lost:
                raise SessionLostError  # noqa: TRY301 - as if the server had said so
            await self._converse(frame, message, {})
        except SessionLostError:
            await self._renew(generation)
            await self._converse(frame, message, {})
        self._note_wish(frame, method, params)

    def _note_wish(self, frame: bytes, method: str, params: Object) -> None:
        """What a renewed session has to be asked for again."""
        uri = jsonrpc.text(params, "uri")
        if method == "logging/setLevel":
            self._log_level = frame
        elif method == "resources/subscribe" and uri and len(self._uris) < MOST_URIS:
            self._uris[uri] = None
        elif method == "resources/unsubscribe" and uri:
            self._uris.pop(uri, None)

    async def _converse(
        self,
        frame: bytes,
        message: Message,
        headers: dict[str, str],
        on_answer: OnAnswer | None = None,
        on_stream: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """One request, from posting it to its answer; `on_stream` hears of a stream's beginning."""
        on_answer = on_answer or self._emit_answer
        room = self._door.aside if message.method == "subscriptions/listen" else self._door.calls
        async with room:
            exchange = await self._post(frame, headers)
            async with exchange:
                if await self._is_answered(exchange, message, on_answer):
                    return
                if on_stream is not None:
                    await on_stream()
                parser = EventParser(self._common.most_frame_bytes)
                if await self._read_events(exchange, parser, message, on_answer):
                    return
            await self._resume(parser, message, on_answer)

    async def _is_answered(self, exchange: Exchange, message: Message, on_answer: OnAnswer) -> bool:
        """Take an answer that is no stream.

        Raises:
            RefusedError, HttpError, SessionLostError: there is none.
        """
        if exchange.status != _OK:
            await self._refused(exchange, message, on_answer)
            return True
        if exchange.media_type == _EVENTS:
            return False
        if exchange.media_type != _JSON:
            kind = printable(exchange.media_type or "nothing said")
            raise HttpError(f"it answered with {kind} where JSON or events belong", sent=True)
        body = await exchange.body(self._common.most_frame_bytes)
        try:
            line = jsonrpc.compact(body)
            answer = jsonrpc.decode(line)
        except DecodeError as error:
            raise HttpError(f"its answer is invalid: {error.message}", sent=True) from None
        line, answer = _named(line, answer, message)
        if answer.method is not UNSET or answer.id != message.id:
            raise HttpError("its answer is to something else", sent=True)
        await on_answer(line, answer)
        return True

    async def _refused(self, exchange: Exchange, message: Message, on_answer: OnAnswer) -> None:
        """An HTTP error: the JSON-RPC error in it, or what its status says."""
        status = exchange.status
        error = await _error_in(exchange)
        if error is not None:
            line = jsonrpc.forwarded_error(jsonrpc.encode(message.id), error)
            await on_answer(line, jsonrpc.decode(line))
            return
        if status in _ACCEPTED:
            raise HttpError(f"it took the request with HTTP {status} and gave no answer", sent=True)
        if status in _FAULTS:
            raise HttpError(f"it answered HTTP {status}", sent=True)
        raise RefusedError(f"it answered HTTP {status}")

    async def _read_events(
        self,
        exchange: Exchange,
        parser: EventParser,
        message: Message | None,
        on_answer: OnAnswer | None = None,
    ) -> bool:
        """Pass on what a stream brings, up to the answer to `message`; whether that came."""
        try:
            async for event in _events(exchange, parser):
                if event and await self._heard(event, message, on_answer):
                    return True
        except TooLargeError as error:
            raise HttpError(f"it sent {error}", sent=True) from None
        except HttpError:
            if parser.last_id is None or self._modern:
                raise
        return False

    async def _resume(self, parser: EventParser, message: Message, on_answer: OnAnswer) -> None:
        """Go on with a stream that broke off before its answer, where the server can."""
        vain = 0
        while parser.last_id is not None and not self._modern and vain < MOST_RESUMPTIONS:
            await asyncio.sleep(_pause_s(parser.retry_s, vain))
            vain += 1
            before = parser.last_id
            again = EventParser(self._common.most_frame_bytes)
            again.last_id, again.retry_s = before, parser.retry_s
            try:
                exchange = await self._get(before)
            except (HttpError, RefusedError) as error:  # of the request we know that it was sent
                what = f"its stream ended before the answer, and then {error}"
                raise HttpError(what, sent=True) from None
            async with exchange:
                if exchange.status != _OK or exchange.media_type != _EVENTS:
                    break
                if await self._read_events(exchange, again, message, on_answer):
                    return
            parser = again
            vain = 0 if parser.last_id != before else vain
        raise HttpError("its stream ended before the answer", sent=True)

    # ---- what the server says ------------------------------------------------------------------

    async def _heard(
        self, data: bytes, awaited: Message | None, on_answer: OnAnswer | None
    ) -> bool:
        """Pass on one message; whether it was the answer to `awaited`."""
        try:
            line = jsonrpc.compact(data)
            message = jsonrpc.decode(line)
        except DecodeError:  # the gateway counts it, and sees whose answer it was meant to be
            await self._common.emit(data.replace(b"\n", b" ").replace(b"\r", b" "))
            return False
        if message.method is UNSET:
            if awaited is not None:
                line, message = _named(line, message, awaited)
            if awaited is None or message.id != awaited.id or on_answer is None:
                say("an answer came that this stream has no request for")
                return False
            await on_answer(line, message)
            return True
        if message.id is not UNSET:
            await self._asked(message)
        elif message.method == "notifications/cancelled":
            await self._withdrawn(message)
        else:
            await self._common.emit(line)
        return False

    async def _emit_answer(self, line: bytes, _: Message) -> None:
        await self._common.emit(line)

    async def _emit_tools(self, line: bytes, message: Message) -> None:
        """As it came, less what the modern era has clients leave out."""
        unfit = self._common.mirror.listed(message.result)
        if unfit and message.result is not UNSET:
            for what in unfit.values():
                say(f"left out the tool {what}")
            page = without(message.result, unfit)
            line = jsonrpc.answer(jsonrpc.raw_of(message.id), page)
        await self._common.emit(line)

    async def _asked(self, message: Message) -> None:
        asked = cast("jsonrpc.Id", message.id)
        own, oldest = self._common.questions.add(self, asked)
        params = b"{}" if message.params is UNSET else message.params
        await self._common.emit(jsonrpc.request(own, str(message.method), params))
        if oldest is not None:
            peer, unanswered = oldest
            text = "too many questions are open"
            refusal = jsonrpc.decode(jsonrpc.failure(b"0", jsonrpc.UNAVAILABLE, text))
            await peer.answer(refusal, unanswered)

    async def _withdrawn(self, message: Message) -> None:
        try:
            params = jsonrpc.members(message.params)
        except DecodeError:
            return  # it names no question
        asked = jsonrpc.identifier(params, "requestId")
        own = None if asked is None else self._common.questions.find(self, asked)
        if own is not None:
            del self._common.questions.open[own]
            params["requestId"] = jsonrpc.raw_of(own)
            body = jsonrpc.encode(params)
            await self._common.emit(jsonrpc.notification(str(message.method), body))

    # ---- the legacy session --------------------------------------------------------------------

    async def _open_session(self, frame: bytes, message: Message, on_answer: OnAnswer) -> None:
        """Shake hands; the session is there before its answer is passed on."""
        self._session = self._version = ""

        async def opened(line: bytes, answer: Message) -> None:
            with contextlib.suppress(DecodeError):
                result = jsonrpc.members(answer.result)
                self._version = jsonrpc.text(result, "protocolVersion") or ""
                self._offered = (self._version, _plain(result.get("capabilities")))
            await on_answer(line, answer)

        await self._converse(frame, message, {}, opened)

    async def _join(self) -> None:
        """Have a session of its own; the first request opens it."""
        async with self._lock:
            if not self._joined:
                await self._shake_hands()
                self._joined = True

    async def _shake_hands(self) -> None:
        """The gateway's handshake once more, answered to nobody.

        Raises:
            RefusedError, HttpError: there is no session to be had; what needs it did not run.
        """
        self._renewals += 1
        frame, message = _renumbered(self._common.initialize, f"vsm-{self._renewals}")
        refused = [True]

        async def answered(_: bytes, answer: Message) -> None:
            refused[0] = answer.result is UNSET

        try:
            await self._open_session(frame, message, answered)
            if refused[0]:
                raise RefusedError("it opens no other session")
            await self._tell(jsonrpc.notification("notifications/initialized"), {})
        except HttpError as error:
            raise HttpError(f"no session could be opened: {error}", sent=False) from None

    async def _renew(self, generation: int) -> None:
        """Open another session in the place of one that is lost, unless somebody has.

        Raises:
            SurfaceChangedError: it offers something else than the first one.
        """
        async with self._lock:
            if generation != self._generation:
                return
            offered = self._offered
            self._lost = True
            try:
                await self._shake_hands()
            except BaseException:
                self._offered = offered  # the next one is held against that, too
                raise
            self._lost = False
            self._generation += 1
            if self._own and offered != self._offered:
                text = "it offers something else after its session was lost"
                raise SurfaceChangedError(text)
            say("its session was lost; another one was opened")
        if self._own:
            await self._restore()

    async def _restore(self) -> None:
        """Ask a renewed session for what its predecessor was asked; its lists may differ."""
        subscribe = [
            jsonrpc.request(f"vsm-uri-{n}", "resources/subscribe", jsonrpc.encode({"uri": uri}))
            for n, uri in enumerate(self._uris)
        ]
        for frame in [*([self._log_level] if self._log_level else []), *subscribe]:
            with contextlib.suppress(HttpError, RefusedError, SessionLostError):
                await self._converse(frame, jsonrpc.decode(frame), {}, _ignore)
        self._hear()
        capabilities = self._offered[1] if self._offered else None
        for name, method in _CHANGES.items():
            if isinstance(capabilities, dict) and name in capabilities:
                await self._common.emit(b'{"jsonrpc":"2.0","method":"%b"}' % method)

    def _hear(self) -> None:
        """Keep a stream open for what belongs to no request."""
        if self._hearing is not None:
            self._hearing.cancel()
        if self._own:
            self._hearing = asyncio.create_task(self._keep_hearing())

    async def _keep_hearing(self) -> None:
        last_id: bytes | None = None
        retry_s: float | None = None
        vain = 0
        while True:
            parser = EventParser(self._common.most_frame_bytes)
            parser.last_id, parser.retry_s = last_id, retry_s
            heard_before, taken = vain, False
            try:
                async with self._door.aside:
                    exchange = await self._get(last_id)
                    async with exchange:
                        if exchange.status in _NO_STREAM and not last_id:
                            return
                        if exchange.status == _OK and exchange.media_type == _EVENTS:
                            began, taken = asyncio.get_running_loop().time(), True
                            await self._read_events(exchange, parser, None)
                            lasted_s = asyncio.get_running_loop().time() - began
                            brought = lasted_s > AT_ONCE_S or parser.last_id != last_id
                            vain = 0 if brought else vain
            except (HttpError, RefusedError, SessionLostError) as error:
                if not heard_before:
                    say(f"the stream of what it announces broke off: {error}")
            # An id that the server no longer knows would be refused for ever.
            last_id = parser.last_id if taken or vain < MOST_RESUMPTIONS else None
            retry_s = parser.retry_s
            await asyncio.sleep(_pause_s(retry_s, vain))
            vain += 1

    # ---- exchanges -----------------------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        """What belongs to every request of a session."""
        found = {}
        if self._modern:
            found["mcp-protocol-version"] = self._modern
        elif self._version:
            found["mcp-protocol-version"] = printable(self._version)
        if self._session and not self._modern:
            found["mcp-session-id"] = self._session
        return found

    async def _post(self, frame: bytes, headers: dict[str, str]) -> Exchange:
        own = {} if "mcp-method" in headers else self._headers()
        kinds = {"content-type": _JSON, "accept": _ACCEPT}
        exchange = await self._door.open("POST", {**own, **headers, **kinds}, frame)
        in_session = "mcp-session-id" in own  # by now it may be lost, or another
        if in_session and await _says_session_lost(exchange):
            exchange.leave()
            raise SessionLostError
        session = "" if in_session else exchange.headers.get("mcp-session-id", "")
        if session and not self._session and exchange.status == _OK and not self._modern:
            if printable(session) != session or len(session) > _MOST_SESSION_CHARS:
                exchange.leave()
                raise HttpError("its session id is no text for a header", sent=True)
            self._session = session
        return exchange

    async def _get(self, last_id: bytes | None) -> Exchange:
        headers = {**self._headers(), "accept": _EVENTS}
        if last_id is not None:
            headers["last-event-id"] = printable(last_id.decode("latin-1"))
        return await self._door.open("GET", headers)

    async def _tell(self, frame: bytes, headers: dict[str, str]) -> None:
        """Post what has no answer."""
        async with self._door.aside:
            exchange = await self._post(frame, {**self._headers(), **headers})
            async with exchange:
                if exchange.status not in _ACCEPTED:
                    raise RefusedError(f"it answered HTTP {exchange.status}")

    def _code(self, method: str, error: HttpError) -> int:
        """How the gateway is told; a nonsense answer to its first question may be of an old era."""
        if not error.sent:
            return NOT_REACHED
        asked_first = method == "server/discover" and not self._modern
        return jsonrpc.UNAVAILABLE if asked_first else BROKEN

    async def _fail(self, message: Message, code: int, text: str) -> None:
        id_bytes = jsonrpc.encode(message.id)
        text = f"{self._door.name} ({self._door.origin}): {text}."
        await self._common.emit(jsonrpc.failure(id_bytes, code, text))


def _in_full(error: HttpError) -> str:
    return f"{error}; it {'may have run' if error.sent else 'did not run'}"


async def _events(exchange: Exchange, parser: EventParser) -> AsyncIterator[bytes]:
    async for block in exchange.blocks():
        for event in parser.feed(block):
            if event.name == b"message":
                yield event.data


def _named(line: bytes, answer: Message, asked: Message) -> tuple[bytes, Message]:
    """An error that does not say to what it is answers the one thing that was asked."""
    if answer.id is not None or answer.error is UNSET or jsonrpc.error_of(answer.error) is None:
        return line, answer
    line = jsonrpc.forwarded_error(jsonrpc.encode(asked.id), answer.error)
    return line, jsonrpc.decode(line)


async def _error_in(exchange: Exchange) -> Raw | None:
    """The JSON-RPC error in a body, if there is one."""
    if exchange.media_type != _JSON:
        return None
    try:
        message = jsonrpc.decode(jsonrpc.compact(await exchange.body(MOST_ERROR_BYTES)))
    except (HttpError, DecodeError):
        return None
    if message.error is UNSET or jsonrpc.error_of(message.error) is None:
        return None
    return message.error


async def _says_session_lost(exchange: Exchange) -> bool:
    """By 404; or by 400 in words, as servers made with older SDKs do."""
    if exchange.status != _BAD_REQUEST:
        return exchange.status == _NOT_FOUND
    try:
        return _LOST.search(await exchange.body(MOST_ERROR_BYTES)) is not None
    except HttpError:
        return False
    except asyncio.CancelledError:  # nobody else has it yet
        exchange.leave()
        raise


async def _ignore(_: bytes, __: Message) -> None:
    """Nobody waits for this answer."""


def _renumbered(frame: bytes, request_id: str) -> tuple[bytes, Message]:
    message = jsonrpc.decode(frame)
    params = b"{}" if message.params is UNSET else message.params
    again = jsonrpc.request(request_id, str(message.method), params)
    return again, jsonrpc.decode(again)


def _plain(raw: Raw | None) -> Any:  # noqa: ANN401 - JSON
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _pause_s(wished_s: float | None, vain: int) -> float:
    """How long to leave a server alone: as it wishes, else longer each time in vain."""
    own_s: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(vain, 16))
    return own_s if wished_s is None else max(0.05, min(wished_s, 300.0), own_s if vain else 0.0)


def printable(text: str) -> str:
    """A foreign text as it may be shown, and put into a header."""
    return "".join(char for char in text[:1024] if " " <= char <= "~").strip()


def say(text: str) -> None:
    """One line for `vsm logs`."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()
