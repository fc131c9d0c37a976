"""The command by which a person logs in, as a worker says it and the supervisor reads it.

Pure. Somebody is to type it into a shell, and a foreign server chose the scope in it: that is
plain words, or it is left out. The supervisor takes nothing but the scope from what a worker said.
"""

import re
from collections.abc import Iterable
from typing import Final

_WORD: Final = r"[\w:/.~+][\w:/.~+-]{0,127}"  # no option of a command line
_WORDS: Final = rf"{_WORD}(?: {_WORD}){{0,31}}"
_TOO_LITTLE: Final = re.compile(r'\berror="?insufficient_scope\b')
_SCOPE: Final = re.compile(rf'\bscope="({_WORDS})"', re.ASCII)


def missing_scope(challenge: str) -> str:
    """What a WWW-Authenticate says that a token has to allow (RFC 6750, 3.1); "" if nothing."""
    if not _TOO_LITTLE.search(challenge):
        return ""
    found = _SCOPE.search(challenge)
    return found[1] if found else ""


def login_command(name: str, client: str = "", scope: str = "") -> str:
    """What to type; `client` is whose login, "" the integration's own."""
    whose = f" --client {client}" if client else ""
    return f"vsm login {name}{whose}" + (f" --scope '{scope}'" if scope else "")


def scope_said(name: str, lines: Iterable[str]) -> str:
    """The scope of the last line that ends with the integration's own command; "" if none.

    Args:
        name: the integration's.
        lines: what its worker printed, the last one last.
    """
    command = re.compile(rf"Run `vsm login {re.escape(name)}(?: --scope '({_WORDS})')?`$", re.ASCII)
    for line in reversed(list(lines)):
        if found := command.search(line):
            return found[1] or ""
    return ""
