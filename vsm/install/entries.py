"""The entries of configurations that run an installed server.

Runs in the command line. Read without checking: a configuration may be wrong elsewhere, or have
become so by what was just uninstalled.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vsm import paths


class NamedEntry(NamedTuple):
    """An integration of a configuration, by its name."""

    file: Path
    integration: str


def entries_of(server: str, files: Iterable[Path]) -> Iterator[NamedEntry]:
    """The entries whose command has a path in a server's tree, be it still there or not.

    Args:
        server: its name.
        files: configurations; those that are not there or cannot be read name nothing.
    """
    tree = os.path.realpath(paths.state_dir() / "servers" / server)
    for file in dict.fromkeys(Path(os.path.realpath(one)) for one in files):
        for name, entry in _integrations(file).items():
            if any(_is_below(file.parent / word, tree) for word in _command(entry)):
                yield NamedEntry(file, name)


def _integrations(file: Path) -> dict[str, object]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("integrations")
    except (OSError, ValueError):  # no TOML, or not UTF-8
        return {}
    return table if isinstance(table, dict) else {}


def _command(entry: object) -> list[str]:
    words = entry.get("command") if isinstance(entry, dict) else None
    return [str(word) for word in words if "\0" not in str(word)] if isinstance(words, list) else []


def _is_below(path: Path, tree: str) -> bool:
    return os.path.realpath(path).startswith(f"{tree}/")
