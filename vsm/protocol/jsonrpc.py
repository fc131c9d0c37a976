"""JSON-RPC 2.0 messages, decoded once: params, result and error stay raw, checked JSON.

Sans-io. `decode` checks UTF-8, JSON syntax, nesting and the message's shape; nothing of a
frame is forwarded that did not pass it. Runs in S1 on untrusted bytes.
"""

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
UNAVAILABLE: Final = -32000
TIMED_OUT: Final = -32001
RESOURCE_NOT_FOUND: Final = -32002
DENIED: Final = -32003
HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022
URL_REQUIRED: Final = -32042

Id: TypeAlias = int | str
Object: TypeAlias = dict[str, Raw]

MAX_ID_CHARS: Final = 256
MAX_ID: Final = 1 << 63


class DecodeError(Exception):
    """A frame is no valid message: `code` and `message` say why, in JSON-RPC's terms."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Message(msgspec.Struct, gc=False):
    """One JSON-RPC message of any kind; what is absent is UNSET."""

    jsonrpc: Literal["2.0"]
    id: Annotated[int, Meta(ge=-MAX_ID, le=MAX_ID - 1)] | str | UnsetType | None = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class ErrorBody(msgspec.Struct):
    """The `error` member of an answer."""

    code: int
    message: str = ""
    data: Raw | UnsetType = UNSET


_message_of = msgspec.json.Decoder(Message).decode
_objects = msgspec.json.Decoder(Object)
_errors = msgspec.json.Decoder(ErrorBody)
_strings = msgspec.json.Decoder(str)
encode: Final = msgspec.json.Encoder().encode


def decode(frame: bytes) -> Message:
    """Check and decode one frame.

    Raises:
        DecodeError: not UTF-8, not JSON, nested too deeply, or not one JSON-RPC message.
    """
    try:
        if not frame.isascii():
            frame.decode()
        message = _message_of(frame)
    except UnicodeDecodeError as error:
        raise DecodeError(PARSE_ERROR, f"invalid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise DecodeError(PARSE_ERROR, "JSON is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise DecodeError(INVALID_REQUEST, f"not a JSON-RPC message: {error}") from None
    except msgspec.DecodeError as error:
        raise DecodeError(PARSE_ERROR, f"invalid JSON: {error}") from None
    if (
        type(message.id) is not int
        or (message.method is UNSET) is (message.result is UNSET)
        or message.error is not UNSET
    ):  # neither a plain request nor a plain result, as nearly all are
        _check_shape(message)
    return message


def _check_shape(message: Message) -> None:
    if message.method is UNSET:
        if message.id is UNSET or (message.result is UNSET) == (message.error is UNSET):
            raise DecodeError(INVALID_REQUEST, "neither a request nor an answer")
    elif message.result is not UNSET or message.error is not UNSET:
        raise DecodeError(INVALID_REQUEST, "both a request and an answer")
    elif message.id is None:
        raise DecodeError(INVALID_REQUEST, "a request's id is a string or an integer")
    _check_id(message.id)


def _check_id(value: int | str | UnsetType | None) -> None:
    if isinstance(value, str):
        if len(value) > MAX_ID_CHARS:
            raise DecodeError(INVALID_REQUEST, f"an id has at most {MAX_ID_CHARS} characters")
    elif isinstance(value, int) and not -MAX_ID <= value < MAX_ID:
        raise DecodeError(INVALID_REQUEST, "an integer id fits in 64 bits")


def compact(body: bytes) -> bytes:
    """`body` without line ends between its tokens, so that it can be one line of a stream.

    JSON cannot hold a line end within a token, so only white space is removed.

    Raises:
        DecodeError: it is not JSON.
    """
    if body.find(b"\n") < 0 and body.find(b"\r") < 0:  # `in` makes an exception and drops it
        return body
    try:
        return msgspec.json.format(body, indent=-1)
    except RecursionError:
        raise DecodeError(PARSE_ERROR, "JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise DecodeError(PARSE_ERROR, f"invalid JSON: {error}") from None


def members(raw: Raw | UnsetType) -> Object:
    """The members of a raw object, each still raw; of an absent one, none.

    Raises:
        DecodeError: it is not an object.
    """
    if raw is UNSET:
        return {}
    try:
        return _objects.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise DecodeError(INVALID_PARAMS, "expected an object") from None


def nested(parent: Object, key: str) -> Object:
    """The members of the object under `key`; empty where it is absent or no object."""
    raw = parent.get(key)
    if raw is None:
        return {}
    try:
        return _objects.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def text(parent: Object, key: str) -> str | None:
    """The string under `key`, or None where it is absent or no string."""
    raw = parent.get(key)
    if raw is None:
        return None
    try:
        return _strings.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def identifier(parent: Object, key: str) -> Id | None:
    """The id or token (a string or an integer) under `key`, or None."""
    raw = parent.get(key)
    if raw is None:
        return None
    try:
        value = msgspec.json.decode(raw, type=int | str)
        _check_id(value)
    except (msgspec.DecodeError, UnicodeDecodeError, DecodeError):
        return None
    return value


def raw_of(value: object) -> Raw:
    """`value` as raw JSON, to be put among the members of an object."""
    return Raw(encode(value))


def error_of(raw: Raw) -> ErrorBody | None:
    """An answer's error, or None where it is malformed."""
    try:
        return _errors.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def request(request_id: Id, method: str, params: bytes | Raw) -> bytes:
    """A request, without a line end."""
    return b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}' % (
        encode(request_id),
        encode(method),
        bytes(params),
    )


def notification(method: str, params: bytes | Raw | None = None) -> bytes:
    """A notification, without a line end."""
    if params is None:
        return b'{"jsonrpc":"2.0","method":%b}' % encode(method)
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), bytes(params))


def answer(request_id: bytes, result: bytes | Raw) -> bytes:
    """An answer to the request whose id is `request_id`, already JSON."""
    return b"".join((b'{"jsonrpc":"2.0","id":', request_id, b',"result":', result, b"}"))


def forwarded_error(request_id: bytes, error: Raw) -> bytes:
    """An error answer whose body, checked by `error_of`, goes on as it is."""
    return b"".join((b'{"jsonrpc":"2.0","id":', request_id, b',"error":', error, b"}"))


def failure(request_id: bytes, code: int, message: str, data: object = None) -> bytes:
    """An error answer of our own."""
    body: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id, encode(body))


def strings(raw: Raw) -> list[str]:
    """A raw array of strings; empty where it is none."""
    try:
        return msgspec.json.decode(raw, type=list[str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
