"""Files that a command writes when it is done: looked at before it begins, so that no work is lost.

Runs as the person at the terminal.
"""

import os
from pathlib import Path

from vsm.errors import ConfigurationError


def check_writable(path: Path, option: str) -> None:
    """Refuse what could not be written in the end.

    Raises:
        ConfigurationError: it is no file, or its folder is not there or may not be written.
    """
    there = path if os.path.lexists(path) else path.parent
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
    elif not os.access(there, os.W_OK):
        what = f"{there} may not be written"
    else:
        return
    raise ConfigurationError(option, f"{path}: {what}", "Name another file.")
