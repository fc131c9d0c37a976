"""[clients.NAME] of vsm.toml: what single clients see, and by which token they are known.

Runs in the command line and the supervisor, which reads the tokens; S1 gets both with its start.
"""

from typing import Final

import msgspec

from vsm.errors import ConfigurationError

MAX_CLIENTS: Final = 256
_MOST_PATTERNS: Final = 256
_PATTERN_CHARS: Final = 128


class ClientDocument(msgspec.Struct, frozen=True, kw_only=True):
    """[clients.NAME] as written.

    Args:
        integrations: those that it sees; None is all.
        tools: patterns of tools' names, the last that matches decides; "!" hides. () is all.
        search: three tools to find and call the others, in place of all.
        token_file: holds the bearer token that it shows over HTTP.
    """

    integrations: tuple[str, ...] | None = None
    tools: tuple[str, ...] = ()
    search: bool = False
    token_file: str = ""


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The same, checked, with an absolute path."""

    name: str
    integrations: tuple[str, ...] | None = None
    tools: tuple[str, ...] = ()
    search: bool = False
    token_file: str = ""


def check_client(name: str, table: ClientDocument, known: set[str], where: str) -> None:
    """Refuse what cannot be meant.

    Args:
        name: of the client.
        table: as written.
        where: for errors.
        known: the integrations that there are.

    Raises:
        ConfigurationError: an unknown integration, or a pattern that no name can match.
    """
    for one in table.integrations or ():
        if one not in known | {"vsm"}:
            names = ", ".join(sorted(known)) or "none"
            raise ConfigurationError(
                f"{where}.integrations", f"no integration {one[:64]!r}", f"Known: {names}."
            )
    if len(table.tools) > _MOST_PATTERNS or any(
        not 0 < len(one.removeprefix("!")) <= _PATTERN_CHARS for one in table.tools
    ):
        what = f"expected at most {_MOST_PATTERNS} patterns of up to {_PATTERN_CHARS} characters"
        raise ConfigurationError(f"{where}.tools", what, 'Write "git__*" or "!git__push".')
    if name == "default" and table.token_file:
        what = '"default" is whoever comes without a token of its own'
        raise ConfigurationError(f"{where}.token_file", what, "Give the client a name.")
