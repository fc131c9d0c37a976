"""Between the eras: what a request or a result gains and loses when it changes sides.

Sans-io. Also judges a modern request's own envelope and, over HTTP, its headers.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Raw

from vsm.protocol import era, jsonrpc
from vsm.protocol.jsonrpc import DecodeError, Object
from vsm.protocol.tables import (
    ASKED_CAPABILITY,
    ENVELOPE_KEYS,
    LOG_LEVELS,
    META_CAPABILITIES,
    META_LOG_LEVEL,
    META_VERSION,
    MODERN_VERSIONS,
)

VERSION_HEADER: Final = "mcp-protocol-version"
METHOD_HEADER: Final = "mcp-method"
NAME_HEADER: Final = "mcp-name"
NAMED_BY: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}

_WRAPPED = re.compile(r"=\?base64\?(.*)\?=")
_COMPLETE = Raw(b'"complete"')
_STALE = Raw(b"0")
_PRIVATE = Raw(b'"private"')
_INPUT_REQUIRED = "input_required"


class QuestionError(Exception):
    """A modern server answered a legacy client's request by asking back."""


class EnvelopeError(DecodeError):
    """A modern request contradicts itself; `data` goes into the error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(code, message)
        self.data = data


def is_modern(meta: Object) -> bool:
    """Whether a request's `_meta` carries the modern envelope."""
    return META_VERSION in meta


def check(
    method: str, params: Object, meta: Object, headers: Mapping[str, str] | None = None
) -> None:
    """Judge a modern request by its `_meta` and, over HTTP, by its headers.

    Raises:
        EnvelopeError: a key is missing or of a wrong type, a header contradicts the body, or
            the version is not served; judged in this order.
    """
    if META_VERSION not in meta or META_CAPABILITIES not in meta:
        missing = [key for key in (META_VERSION, META_CAPABILITIES) if key not in meta]
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"params._meta lacks {', '.join(missing)}")
    version = jsonrpc.text(meta, META_VERSION)
    if version is None:
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"{META_VERSION} is a string")
    if not bytes(meta[META_CAPABILITIES]).startswith(b"{"):
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"{META_CAPABILITIES} is an object")
    if headers is not None:
        check_headers(method, params, version, headers)
    if version not in MODERN_VERSIONS:
        raise unsupported_version(version)


def unsupported_version(version: str) -> EnvelopeError:
    """The error for a version that is not served."""
    return EnvelopeError(
        jsonrpc.UNSUPPORTED_VERSION,
        "Unsupported protocol version",
        {"supported": list(MODERN_VERSIONS), "requested": version},
    )


def check_headers(
    method: str, params: Object, version: str | None, headers: Mapping[str, str]
) -> None:
    """Judge the HTTP headers of a modern request against its body, which is of a `version`.

    Raises:
        EnvelopeError: a header contradicts the body.
    """
    if headers.get(VERSION_HEADER) != version:
        raise _mismatch(VERSION_HEADER, "the protocol version in params._meta")
    if headers.get(METHOD_HEADER) != method:
        raise _mismatch(METHOD_HEADER, "the method")
    key = NAMED_BY.get(method)
    if key is not None and key in params:
        sent = headers.get(NAME_HEADER)
        if sent is None or unwrap_header(sent) != jsonrpc.text(params, key):
            raise _mismatch(NAME_HEADER, f"params.{key}")


def _mismatch(header: str, member: str) -> EnvelopeError:
    return EnvelopeError(
        jsonrpc.HEADER_MISMATCH, f"the header {header} does not match {member} of the body"
    )


def unwrap_header(value: str) -> str | None:
    """A header's value, undone of its base64 wrapping; None where the wrapping is malformed."""
    match = _WRAPPED.fullmatch(value) if value.startswith("=?") else None
    if match is None:
        return value
    try:
        decoded = base64.b64decode(match.group(1), validate=True)
        if base64.b64encode(decoded).decode() != match.group(1):
            return None
        return decoded.decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def for_legacy_server(meta: Object) -> Object:
    """A modern client's `_meta` as a legacy server may see it."""
    return {key: value for key, value in meta.items() if key not in ENVELOPE_KEYS}


def of_legacy_client(
    gateway: dict[str, Any], capabilities: Object, log_level: int | None
) -> Object:
    """The envelope of a legacy client's requests towards modern servers.

    `log_level` is the index in LOG_LEVELS that it asked for; by default it hears "info" and up.
    """
    own = {k: jsonrpc.raw_of(v) for k, v in era.envelope(gateway).items()}
    asked = {k: v for k, v in capabilities.items() if k in ASKED_CAPABILITY.values()}
    level = LOG_LEVELS[log_level] if log_level is not None else "info"
    return {
        **own,
        META_CAPABILITIES: jsonrpc.raw_of(asked),
        META_LOG_LEVEL: jsonrpc.raw_of(level),
    }


def result_for_modern(result: Raw, *, cacheable: bool) -> bytes:
    """A legacy server's result as the modern era wants it.

    Raises:
        DecodeError: it is not an object.
    """
    members = jsonrpc.members(result)
    members["resultType"] = _COMPLETE
    if cacheable:
        members["ttlMs"] = _STALE
        members["cacheScope"] = _PRIVATE
    return jsonrpc.encode(members)


def result_for_legacy(result: Raw) -> bytes:
    """A modern server's result as the legacy era knows it.

    Raises:
        DecodeError: it is not an object.
        QuestionError: it asks the client something, which a legacy client cannot answer.
    """
    members = jsonrpc.members(result)
    if jsonrpc.text(members, "resultType") == _INPUT_REQUIRED:
        raise QuestionError
    for key in ("resultType", "ttlMs", "cacheScope"):
        members.pop(key, None)
    return jsonrpc.encode(members)
