"""Secrets taken out of what a worker prints.

Pure. A value is found as it is, and line by line where it has several; in another form (encoded,
split over two lines) it is not. Values so short that ordinary text would be hit stay.
"""

from collections.abc import Mapping
from typing import Final

LEAST_BYTES: Final = 6


class Redactor:
    """Takes the values of some secrets out of lines.

    Args:
        secrets: value by name; the name stands where the value was.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        found = {
            part: f"[{name}]".encode()
            for name, value in secrets.items()
            for line in (value, *value.splitlines())
            if len(part := line.strip().encode(errors="surrogateescape")) >= LEAST_BYTES
        }
        # The longest first: one may be part of another.
        self._parts = sorted(found.items(), key=lambda one: -len(one[0]))

    def line(self, raw: bytes) -> bytes:
        """A whole line without them."""
        for part, name in self._parts:
            raw = raw.replace(part, name)
        return raw

    def cut(self, raw: bytes) -> bytes:
        """The beginning of a line without them, and without the beginning of one at its end."""
        raw = self.line(raw)
        for part, name in self._parts:
            for length in range(min(len(part) - 1, len(raw)), LEAST_BYTES - 1, -1):
                if raw.endswith(part[:length]):
                    return raw[:-length] + name
        return raw
