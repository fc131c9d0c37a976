"""Secrets taken out of what a worker prints, and of the JSON that calls carry.

Pure, standard library only. A value is found as it is, and line by line where it has several; in
another form (encoded, split over two lines) it is not. In JSON it is found however its characters
are escaped, in JSON that is text within JSON too. Values so short that ordinary text would be hit
stay.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

LEAST_BYTES: Final = 6
_NESTED: Final = 2  # JSON as text within JSON is the rule in MCP's results
_STRING: Final = re.compile(
    r'"((?:[^"\\]|\\u[0-9a-fA-F]{4}|\\[^u])*)'
    r'("|(?:\\(?:u[0-9a-fA-F]{0,3})?)?$)'  # or what a cut left of an escaped character
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Redactor:
    """Takes the values of some secrets out of lines.

    Args:
        secrets: value by name, or names with values; the name stands where the value was.
    """

    def __init__(self, secrets: Mapping[str, str] | Iterable[tuple[str, str]]) -> None:
        pairs = secrets.items() if isinstance(secrets, Mapping) else secrets
        found = {
            part: f"[{name}]".encode()
            for name, value in pairs
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
            begin = raw.find(part[:LEAST_BYTES], max(0, len(raw) - len(part) + 1))
            while begin >= 0:
                if part.startswith(raw[begin:]):
                    return raw[:begin] + name
                begin = raw.find(part[:LEAST_BYTES], begin + 1)
        return raw


class JsonRedactor:
    """Takes the values of some secrets out of JSON text, whole or cut.

    Args:
        secrets: names and values.
    """

    def __init__(self, secrets: Iterable[tuple[str, str]]) -> None:
        self._redactor = Redactor(
            (name, form)
            for name, value in secrets
            for line in (value, *value.splitlines())
            for form in _nested(line.strip())
        )

    def text(self, text: str, *, cut: bool = False) -> str:
        """A text without them.

        Args:
            text: no JSON, or JSON that is text.
            cut: it is the beginning of more.
        """
        raw = text.encode("utf-8", "surrogatepass")
        hidden = self._redactor.cut(raw) if cut else self._redactor.line(raw)
        return hidden.decode("utf-8", "surrogatepass")

    def json(self, text: str, *, cut: bool) -> str:
        """JSON without them, be they strings, in strings, keys or numbers.

        Args:
            text: well-formed, as far as it goes.
            cut: it is the beginning of more.
        """
        parts, end = [], 0
        for found in _STRING.finditer(text):
            parts += [self.text(text[end : found.start()]), self._string(found, cut=cut)]
            end = found.end()
        return "".join([*parts, self.text(text[end:], cut=cut)])

    def _string(self, found: re.Match[str], *, cut: bool) -> str:
        closed = found[2] == '"'
        try:
            said = str(json.loads(f'"{found[1]}"', strict=False))
        except ValueError:  # of no JSON, which nobody sends us
            return self.text(found[0])
        if cut and not closed:
            said = said[:-1] if "\ud800" <= said[-1:] <= "\udbff" else said  # half a character
        hidden = _escaped(self.text(said, cut=cut and not closed))
        return f'"{hidden}{found[2] if closed else ""}'


def _escaped(text: str, *, ascii_only: bool = False) -> str:
    inside = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", inside)


def _nested(value: str) -> set[str]:
    """A value, and how it stands in JSON that is text."""
    forms = {value}
    for _ in range(_NESTED):
        forms |= {_escaped(form, ascii_only=only) for form in forms for only in (False, True)}
    return forms
