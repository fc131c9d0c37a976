"""What the journal's link carries: events, decisions, outcomes, and the messages around them.

Owns the shape, the bounds and the check of a record, and both directions' messages. Pure and
standard library only: the journal process imports it and must stay small. A record travels as a
JSON array, a message as one JSON object with a `kind`; the framing is `vsm.link`'s.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias, TypeGuard

SEVERITIES: Final = ("debug", "info", "notice", "warning", "error", "critical")
JOURNAL_FILE: Final = "journal.db"  # in the state directory
MAX_TEXT: Final = 256  # characters of a name: kind, source, worker, rule, choice …
MAX_JSON_BYTES: Final = 16 * 1024  # of one JSON column; a longer one is cut, and says so
MAX_COLUMN_BYTES: Final = 3 * MAX_JSON_BYTES  # what the journal takes: calls with their contents
MAX_RECORDS: Final = 100  # of one message of vsm's own sender
DAY_NS: Final = 86_400 * 10**9
MAX_INTEGER: Final = 2**63 - 1  # SQLite's
_KEPT_TEXT: Final = 8 * 1024  # of a cut JSON column, as text


class Event(NamedTuple):
    """Something that happened. `severity` is an index into SEVERITIES, `detail` JSON text."""

    at_ns: int
    monotonic_ns: int
    source: str
    kind: str
    worker: str | None
    integration: str | None
    severity: int
    detail: str


class Decision(NamedTuple):
    """Something that vsm chose. `key` is unique for ever: an outcome is attached by it later."""

    at_ns: int
    monotonic_ns: int
    source: str
    key: str
    subject: str
    rule: str
    inputs: str
    alternatives: str
    choice: str


class Outcome(NamedTuple):
    """What came of a decision."""

    at_ns: int
    key: str
    outcome: str


Record: TypeAlias = Event | Decision | Outcome

_DUMPS: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=str).encode
_TAGS: Final[dict[str, type[Record]]] = {"e": Event, "d": Decision, "o": Outcome}
_LETTERS: Final = {kind: tag for tag, kind in _TAGS.items()}
_INTEGERS: Final = frozenset({"at_ns", "monotonic_ns", "severity"})
_OPTIONAL: Final = frozenset({"worker", "integration"})
_JSON: Final = frozenset({"detail", "inputs", "alternatives", "outcome"})


class Retention(NamedTuple):
    """What is kept: the oldest record goes first, whichever table it is in."""

    age_ns: int = 30 * DAY_NS
    size_bytes: int = 256 * 2**20


class Records(NamedTuple):
    """Consecutive records of one sender; `first` is the sequence number of the first."""

    first: int
    records: list[Record]


class Hello(NamedTuple):
    """The first message of a sender: nothing of it is written twice.

    Everything up to `acknowledged` was on disk once, and the sender has it no more.
    """

    sender: str
    acknowledged: int


# ---- what the journal answers ---------------------------------------------------------------


class Confined(NamedTuple):
    """The layers that are in force for the process: a JSON list of name, state and detail."""

    layers: str


class Ready(NamedTuple):
    """The file is open; everything of this sender up to `sequence` is on disk already."""

    sequence: int
    schema: int


class Committed(NamedTuple):
    """Everything up to `sequence` is on disk."""

    sequence: int


class Resend(NamedTuple):
    """A message was missed: send again what follows `sequence`."""

    sequence: int


class Trouble(NamedTuple):
    """Nothing can be written now, or something had to be done about the file; it goes on."""

    reason: str


class Refused(NamedTuple):
    """The journal ends: this cannot be mended by trying again soon."""

    reason: str


ToJournal: TypeAlias = Hello | Records
FromJournal: TypeAlias = Confined | Ready | Committed | Resend | Trouble | Refused

_ANSWERS: Final[dict[str, type[FromJournal]]] = {
    "confined": Confined,
    "ready": Ready,
    "committed": Committed,
    "resend": Resend,
    "trouble": Trouble,
    "refused": Refused,
}
_ANSWER_KINDS: Final = {kind: name for name, kind in _ANSWERS.items()}


def json_text(value: object) -> str:
    """A JSON column: compact, ASCII, and cut to a marked excerpt when it is too long.

    What JSON does not know is written as text: a record is never lost for its detail.
    """
    try:
        text = _DUMPS(value)
    except (ValueError, TypeError, RecursionError) as error:
        text = json.dumps({"unrepresentable": str(error)[:MAX_TEXT]})
    if len(text) <= MAX_JSON_BYTES:
        return text
    # ASCII, so characters are bytes; escaping the excerpt again at most doubles it.
    kept = json.dumps({"truncated": text[:_KEPT_TEXT], "length": len(text)})
    return kept if len(kept) <= MAX_JSON_BYTES else json.dumps({"length": len(text)})


def short(text: str) -> str:
    """A name as a column takes it: bounded, valid UTF-8, without NUL."""
    if len(text) <= MAX_TEXT and text.isascii() and "\0" not in text:
        return text
    return text[:MAX_TEXT].encode("utf-8", "replace").decode().replace("\0", "")


def severity_index(name: str) -> int:
    """The index of a severity's name; ValueError names the known ones."""
    if name not in SEVERITIES:
        raise ValueError(f"expected one of {', '.join(SEVERITIES)}, found {name[:40]!r}")
    return SEVERITIES.index(name)


def encode(record: Record) -> str:
    """The record as a JSON array."""
    return _DUMPS((_LETTERS[type(record)], *record))


def records_message(first: int, encoded: Iterable[str]) -> bytes:
    """A `records` message of what `encode` made."""
    return b'{"kind":"records","first":%d,"records":[%s]}' % (first, ",".join(encoded).encode())


def hello_message(sender: str, acknowledged: int) -> bytes:
    """A `hello` message."""
    return json.dumps({"kind": "hello", "sender": sender, "acknowledged": acknowledged}).encode()


def answer_message(answer: FromJournal) -> bytes:
    """One of the journal's own messages."""
    return json.dumps({"kind": _ANSWER_KINDS[type(answer)], **answer._asdict()}).encode()


def parse_to_journal(payload: bytes) -> ToJournal:
    """Read a message for the journal. A bad record in a good message becomes an event about it.

    Raises:
        ValueError: not such a message.
    """
    fields = _object(payload)
    if fields.get("kind") == "hello":
        sender = _checked_text("sender", fields.get("sender"))
        return Hello(sender, _checked_integer("acknowledged", fields.get("acknowledged")))
    rows = fields.get("records")
    if fields.get("kind") != "records" or not isinstance(rows, list):
        raise ValueError("expected a hello or records")
    first = _checked_integer("first", fields.get("first"))
    _checked_integer("last", first + len(rows))
    return Records(first, [_record_or_complaint(row) for row in rows])


def parse_from_journal(payload: bytes) -> FromJournal:
    """Read one of the journal's own messages.

    Raises:
        ValueError: not such a message.
    """
    fields = _object(payload)
    answer = _ANSWERS.get(str(fields.pop("kind", "")))
    if answer is None or set(fields) != set(answer._fields):
        raise ValueError("expected an answer of the journal")
    for name, value in fields.items():
        if name in {"reason", "layers"}:
            _checked_text(name, value, limit=MAX_JSON_BYTES)
        else:
            _checked_integer(name, value)
    return answer(**fields)


def decode(row: object) -> Record:
    """Check one record's array.

    Raises:
        ValueError: an unknown tag, a missing column, a wrong type or a bound exceeded.
    """
    if _is_plain_event(row):
        return Event(*row[1:])
    tag = row[0] if isinstance(row, list) and row else None
    kind = _TAGS.get(tag) if isinstance(tag, str) else None
    if not isinstance(row, list) or kind is None:
        raise ValueError("expected a tagged array")
    if len(row) != len(kind._fields) + 1:
        raise ValueError(f"expected {len(kind._fields)} columns, found {len(row) - 1}")
    for name, value in zip(kind._fields, row[1:], strict=True):
        _check_column(name, value)
    return kind(*row[1:])


def _is_plain_event(row: object) -> TypeGuard[list[Any]]:
    """Whether it is an event of ASCII text within all bounds.

    Nearly every record is, and this costs a third of the check that can say what is wrong.
    """
    if type(row) is not list or len(row) != len(Event._fields) + 1 or row[0] != "e":
        return False
    _, at_ns, monotonic_ns, source, kind, worker, integration, severity, detail = row
    return (
        type(at_ns) is int
        and 0 <= at_ns <= MAX_INTEGER
        and type(monotonic_ns) is int
        and 0 <= monotonic_ns <= MAX_INTEGER
        and type(severity) is int
        and 0 <= severity < len(SEVERITIES)
        and _is_plain(source, MAX_TEXT)
        and _is_plain(kind, MAX_TEXT)
        and (worker is None or _is_plain(worker, MAX_TEXT))
        and (integration is None or _is_plain(integration, MAX_TEXT))
        and _is_plain(detail, MAX_COLUMN_BYTES)
    )


def _is_plain(value: object, limit: int) -> bool:
    return type(value) is str and len(value) <= limit and value.isascii() and "\0" not in value


def _record_or_complaint(row: object) -> Record:
    try:
        return decode(row)
    except ValueError as error:
        detail = json_text({"reason": str(error)})
        return Event(0, 0, "journal", "journal.invalid_record", None, None, 3, detail)


def _check_column(name: str, value: object) -> None:
    if name in _INTEGERS:
        number = _checked_integer(name, value)
        if name == "severity" and number >= len(SEVERITIES):
            raise ValueError(f"severity: {number}")
    elif value is not None or name not in _OPTIONAL:
        _checked_text(name, value, limit=MAX_COLUMN_BYTES if name in _JSON else MAX_TEXT)


def _checked_integer(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INTEGER:
        raise ValueError(f"{name}: expected a whole number")
    return value


def _checked_text(name: str, value: object, *, limit: int = MAX_TEXT) -> str:
    if not isinstance(value, str) or len(value) > limit or "\0" in value:
        raise ValueError(f"{name}: expected text of at most {limit} characters")
    value.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
    return value


def _object(payload: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(payload)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(fields, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - the receiver's one kind of error
    return fields


def event_fields(detail: Mapping[str, object] | None) -> str:
    """The detail column of an event; nothing to say is an empty object."""
    return json_text(dict(detail or {}))
