"""Reading and writing in a tree that confined steps wrote, as if they were taken over.

Runs in the command line, unconfined, between the steps and after them. What pip or npm left may
be anything, as they parsed what a registry sent: a link where a file of vsm's was, a pipe, a
gigabyte. So no link is followed, only plain files are opened, and no more is read than asked for.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

from vsm.errors import VsmError

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_TRUST: Final = "Do not trust this package or its registry."
MOST_DEPTH: Final = 64


@contextmanager
def folder(root: Path, path: str = "") -> Iterator[int]:
    """A descriptor of a folder inside `root`, reached without following a link.

    Raises:
        VsmError: it is none.
    """
    fd = os.open(root, _FOLDER)
    try:
        for part in filter(None, path.split("/")):
            try:
                inner = os.open(part, _FOLDER, dir_fd=fd)
            except OSError as error:
                what = f"{path}: expected a folder: {error.strerror}"
                raise VsmError(str(root), what, _NO_TRUST) from error
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_file(root: Path, path: str) -> Iterator[BufferedReader]:
    """A plain file inside `root`, to read.

    Raises:
        FileNotFoundError: nothing is there.
        VsmError: it is something else.
    """
    above, _, name = path.rpartition("/")
    with folder(root, above) as fd:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.fdopen(os.open(name, flags, dir_fd=fd), "rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            what = f"{path}: expected a file: {error.strerror}"
            raise VsmError(str(root), what, _NO_TRUST) from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise VsmError(str(root), f"{path} is no file", _NO_TRUST)
        yield file


def read_file(root: Path, path: str, most_bytes: int) -> bytes:
    """What a plain file inside `root` holds.

    Raises:
        FileNotFoundError: nothing is there.
        VsmError: it is something else, or larger.
    """
    with open_file(root, path) as file:
        found = file.read(most_bytes + 1)
    if len(found) > most_bytes:
        raise VsmError(str(root), f"{path} has more than {most_bytes} bytes", _NO_TRUST)
    return found


def write_file(root: Path, path: str, text: str, mode: int = 0o644) -> None:
    """Put a new file inside `root`, in place of whatever had its name.

    Raises:
        VsmError: its folder is none.
    """
    above, _, name = path.rpartition("/")
    with folder(root, above) as fd:
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise VsmError(str(root), f"{path}: {error.strerror}", _NO_TRUST) from error
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, mode, dir_fd=fd), "w", encoding="utf-8") as file:
            file.write(text)


def freeze(tree: Path, links_out: frozenset[str] = frozenset()) -> None:
    """Make everything readable by everybody and writable by nobody; set-id bits go.

    Args:
        tree: the folder.
        links_out: of links that lead out of it, those that may: paths relative to it.

    Raises:
        VsmError: it holds something else than files, folders and links to them, or lies too deep.
    """
    real = os.path.realpath(tree)
    try:
        for above in reversed(_folders(tree)):
            for name in os.listdir(above):
                path = os.path.join(above, name)
                mode = os.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    inside = os.path.realpath(path).startswith(f"{real}/")
                    if not inside and os.path.relpath(path, tree) not in links_out:
                        raise VsmError(path, "is a link that leads out of the package", _NO_TRUST)
                elif stat.S_ISREG(mode):
                    os.chmod(path, 0o555 if mode & stat.S_IXUSR else 0o444)
                elif not stat.S_ISDIR(mode):
                    raise VsmError(path, "is neither a file nor a link", _NO_TRUST)
            os.chmod(above, 0o555)  # noqa: S103 - a worker's uid has to read it
    except OSError as error:
        raise VsmError(str(error.filename)[:200], str(error.strerror), _NO_TRUST) from error


def _folders(tree: Path) -> list[str]:
    """A folder and all inside it, each before what it holds."""
    found = [str(tree)]
    for above in found:  # it grows: os.walk would recurse, as deep as a package likes
        if above.count("/") - found[0].count("/") > MOST_DEPTH:
            raise VsmError(str(tree), f"has folders deeper than {MOST_DEPTH}", _NO_TRUST)
        with os.scandir(above) as entries:
            found += [one.path for one in entries if one.is_dir(follow_symlinks=False)]
    return found


def remove(path: Path) -> None:
    """Remove whatever is there: a tree, a frozen one too, however deep; absent is fine."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        path.unlink()
        return
    os.chmod(path, 0o700)
    top = os.open(path, _FOLDER)
    try:
        while names := os.listdir(top):
            for name in names:
                _remove_flat(top, name)
    finally:
        os.close(top)
    path.rmdir()


def _remove_flat(top: int, name: str) -> None:
    """Remove an entry of `top`; folders in it are moved up into `top`, so nothing gets deep."""
    if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
        os.unlink(name, dir_fd=top)
        return
    os.chmod(name, 0o700, dir_fd=top)
    fd = os.open(name, _FOLDER, dir_fd=top)
    try:
        for inner in os.listdir(fd):
            if stat.S_ISDIR(os.lstat(inner, dir_fd=fd).st_mode):
                os.chmod(inner, 0o700, dir_fd=fd)
                os.rename(inner, f".{secrets.token_hex(16)}", src_dir_fd=fd, dst_dir_fd=top)
            else:
                os.unlink(inner, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=top)
