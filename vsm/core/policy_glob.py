"""Whether a text fits a pattern of the operator's, and how else the same text can be spelled.

Pure. The only sign of a pattern is `*`: any characters, none included. What is compared may come
from a client: matching takes time linear in the text for each part of the pattern.
"""

import posixpath
import re
from typing import Final
from urllib.parse import unquote

ANY: Final = "*"
_MOST_UNQUOTED: Final = 3
# Without any of these a path is spelled in one way only.
_UNUSUAL: Final = re.compile(r"[%\\]|//|/\.|/$|^\.", re.DOTALL)


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text fits."""
    if pattern == ANY:
        return True
    first, *middle = pattern.split(ANY)
    if not middle:
        return text == pattern
    last = middle.pop()
    end = len(text) - len(last)
    if end < len(first) or not text.startswith(first) or not text.endswith(last):
        return False
    position = len(first)
    for part in middle:
        found = text.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def spellings(text: str) -> tuple[str, ...]:
    """The text, and what it means as a path or a URI: without `..`, `//`, `%2e` and the like."""
    if _UNUSUAL.search(text) is None:
        return (text,)
    plain = text
    for _ in range(_MOST_UNQUOTED):
        plain = unquote(plain)
    found = {text, _normal(text), plain, _normal(plain)}
    return tuple(sorted(found))


def _normal(text: str) -> str:
    scheme, mark, rest = text.replace("\\", "/").partition("://")
    path = rest if mark else scheme
    rooted = path.startswith("/")
    normal = posixpath.normpath(path) if path else path
    if rooted:
        normal = "/" + normal.lstrip("/")
    return f"{scheme}{mark}{normal}" if mark else normal
