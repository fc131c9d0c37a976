"""What calls were made with and answered with, as far as the record of calls may hold it.

Owns the rule that no secret of the configuration gets into the file. S1, which sends contents,
knows none; the supervisor, which does, adds each to a memfd of which this process has the reading
end, before it starts the worker that gets it: whoever could repeat a secret began after it could
be read here. Where nothing can be read, contents are left out. Standard library only; runs in the
process of the call journal.
"""

import json
import os
from typing import Any, Final

from vsm.core.redaction import JsonRedactor
from vsm.journal.records import MAX_COLUMN_BYTES, Event, Record

_MARK: Final = '"contents":'  # within JSON text its quotes would be escaped
_BLOCK_BYTES: Final = 64 * 1024
_LEFT_OUT: Final = "the secrets of the configuration are not known here"


def hidden_line(name: str, value: str) -> bytes:
    """A secret as a line of the memfd."""
    return json.dumps([name, value]).encode() + b"\n"


class Contents:
    """Takes secrets out of records.

    Args:
        fd: a memfd with lines of `hidden_line`, to which more may be added at any time; ours.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0
        self._rest = b""
        self._hidden: list[tuple[str, str]] = []
        self._redactor: JsonRedactor | None = None

    def fit(self, record: Record) -> Record:
        """The record as it may be written."""
        if not isinstance(record, Event) or _MARK not in record.detail:
            return record
        try:
            self._read()
            detail = json.loads(record.detail)
            self._redact(detail)
            text = json.dumps(detail, ensure_ascii=False, separators=(",", ":"))
            text.encode()  # half a character that was escaped cannot be written
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"they cannot be read: {type(error).__name__}"
            text = json.dumps({"contents": {"left_out": reason}})
        if len(text) > MAX_COLUMN_BYTES:
            text = json.dumps({**detail, "contents": {"left_out": "too long"}})
        return record._replace(detail=text)

    def _read(self) -> None:
        """Take the secrets that were added."""
        known = len(self._hidden)
        while block := os.pread(self._fd, _BLOCK_BYTES, self._offset):
            self._offset += len(block)
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                name, value = json.loads(line)
                self._hidden.append((name, value))
        if len(self._hidden) > known:
            self._redactor = JsonRedactor(self._hidden)

    def _redact(self, detail: dict[str, Any]) -> None:
        contents = detail["contents"]
        if self._redactor is None:
            detail["contents"] = {"left_out": _LEFT_OUT}
            return
        for key in ("arguments", "result"):
            if key in contents:
                cut = key in contents.get("truncated", ())
                contents[key] = self._redactor.json(contents[key], cut=cut)
        for key in ("what", "client"):
            detail[key] = self._redactor.text(detail[key])
