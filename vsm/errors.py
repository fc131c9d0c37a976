"""Errors that a user sees: what happened, where, and what to do.

Every error that reaches a terminal, a log or a client is a VsmError or is turned into one at
the boundary. `str(error)` reads `where: what. What to do.`
"""

import errno
import os
from typing import Final

_REMEDIES: Final = {
    errno.ENOSPC: "Make room on that file system.",
    errno.EDQUOT: "Make room within the quota.",
    errno.EROFS: "Use a file system that can be written.",
    errno.EACCES: "Run it as the owner, or use a path of your own.",
}
_WITHOUT_PATH: Final = {errno.ENOSPC, errno.EDQUOT}  # write(2) knows none


def sound(text: str) -> str:
    """The text, escaped where it has bytes of a name that are no UTF-8: no message holds those."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class VsmError(Exception):
    """Something failed and the person in front of vsm can do something about it.

    Args:
        where: the file and key, or the worker, that it concerns ("" where there is none).
        what: what was expected and what was found, without a final stop.
        remedy: what to do, one sentence ("" where nothing can be done).
    """

    exit_code = 1

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        where, what, remedy = sound(where), sound(what), sound(remedy)
        super().__init__(where, what, remedy)
        self.where = where
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}." if self.where else f"{self.what}."
        return f"{head} {self.remedy}" if self.remedy else head


class ConfigurationError(VsmError):
    """A vsm.toml or a profile is wrong: file, key, expected and found."""

    exit_code = 2


class NotFoundError(VsmError):
    """There is no integration, worker, tool, approval or installed server of that name."""

    exit_code = 5


class ConfinementError(VsmError):
    """A layer that a profile requires cannot be applied here; the worker does not start.

    Args:
        layer: the layer's name, as in `vsm.configuration.profile.LAYERS`.
    """

    exit_code = 3

    def __init__(self, where: str, what: str, remedy: str = "", *, layer: str) -> None:
        super().__init__(where, what, remedy)
        self.layer = layer


def from_os_error(error: OSError, command: str) -> VsmError | None:
    """What a full, read-only or closed file system refused; None for what is vsm's own mistake."""
    path = error.filename2 or error.filename
    if path is None and error.errno == errno.ENOENT and _is_nowhere():
        return VsmError(command, "the directory that it runs in was removed", "`cd` to another.")
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None or (path is None and error.errno not in _WITHOUT_PATH):
        return None
    return VsmError(str(path or command), error.strerror or str(error), remedy)


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
