"""Whether a text fits a pattern of the operator's, and how else the same text can be spelled.

Pure. The only sign of a pattern is `*`: any characters, none included. What is compared may come
from a client: matching takes time linear in the text for each part of the pattern.
"""

import posixpath
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final
from urllib.parse import unquote

ANY: Final = "*"
_MOST_UNQUOTED: Final = 3
_MOST_PATTERNS: Final = 4096


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text fits."""
    return matcher(pattern)(text)


@lru_cache(_MOST_PATTERNS)
def matcher(pattern: str) -> Callable[[str], bool]:
    """What says whether a whole text fits a pattern; made once for each."""
    first, *middle = pattern.split(ANY)
    if not middle:
        return pattern.__eq__
    last = middle.pop()
    if any(middle):
        return partial(_has_parts, first, tuple(middle), last)
    if not last:
        return (lambda text: text.startswith(first)) if first else (lambda _: True)
    if not first:
        return lambda text: text.endswith(last)
    return partial(_has_parts, first, (), last)


def _has_parts(first: str, middle: tuple[str, ...], last: str, text: str) -> bool:
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
    if not _may_mean_another(text):
        return (text,)
    plain = text
    for _ in range(_MOST_UNQUOTED):
        plain = unquote(plain)
    found = {text, _normal(text), plain, _normal(plain)}
    return tuple(sorted(found))


def _may_mean_another(text: str) -> bool:
    """Whether a path has anything in it by which it can be spelled in another way."""
    if "/." in text or "//" in text or "%" in text or "\\" in text:
        return True
    return text.startswith(".") or text.endswith(("/", "/\n"))


def _normal(text: str) -> str:
    scheme, mark, rest = text.replace("\\", "/").partition("://")
    path = rest if mark else scheme
    rooted = path.startswith("/")
    normal = posixpath.normpath(path) if path else path
    if rooted:
        normal = "/" + normal.lstrip("/")
    return f"{scheme}{mark}{normal}" if mark else normal
