"""The steps that build a worker's root file system, through file descriptors only.

They run in the worker's own mount namespace with capabilities over it, before the privileges
are dropped, in this order: MakeRoot, then links, binds, file systems and files, then EnterRoot.
Standard library only.
"""

import errno
import os
import stat
from typing import NamedTuple

from vsm.confinement.operations import IdMap, Operation, Site
from vsm.linux import mounts, namespaces

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE = mounts.RESOLVE_BENEATH | mounts.RESOLVE_NO_SYMLINKS
_QUIET = mounts.NO_SUID | mounts.NO_DEV
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class MakeRoot(NamedTuple):
    """An empty, private tmpfs that becomes the root."""

    size_bytes: int = 4 << 20
    layer: str = "root_filesystem"

    def execute(self, site: Site) -> str:
        """Cut propagation, then mount the new root over the old one (which "/" still names)."""
        mounts.make_private()
        options = {"size": str(self.size_bytes), "nr_inodes": "4096", "mode": "0755"}
        site.root_fd = mounts.new_filesystem("tmpfs", _QUIET, options)
        mounts.attach_over_root(site.root_fd)
        return ""

    def describe(self) -> str:
        """What."""
        return "new root: an empty private tmpfs"


class Link(NamedTuple):
    """A symbolic link in the new root, as the host has it."""

    path: str
    target: str
    layer: str = "root_filesystem"

    def execute(self, site: Site) -> str:
        """Make it, unless a bound tree brought it already."""
        parent, name = open_parent(site.root_fd, self.path)
        try:
            os.symlink(self.target, name, dir_fd=parent)
        except FileExistsError:
            if os.readlink(name, dir_fd=parent) != self.target:
                raise
        finally:
            os.close(parent)
        return ""

    def describe(self) -> str:
        """From and to."""
        return f"link {self.path} → {self.target}"


class Bind(NamedTuple):
    """A host path at its own name.

    Args:
        path: absolute, without symbolic links.
        write: whether it is writable.
        execute_files: whether programs in it may be run.
        id_map: (stored uid, seen uid, stored gid, seen gid), or () for none.
        device: a device node: usable although the root is nodev.
    """

    path: str
    write: bool
    id_map: tuple[int, ...] = ()
    device: bool = False
    layer: str = "root_filesystem"

    def execute(self, site: Site) -> str:
        """Copy the mount tree, set its attributes, only then attach it."""
        source = mounts.open_path(self.path)
        try:
            is_directory = stat.S_ISDIR(os.fstat(source).st_mode)
            tree = mounts.clone_tree(source, path=self.path)
        finally:
            os.close(source)
        try:
            id_map = site.id_maps[self.id_map] if self.id_map else None  # type: ignore[index]
            mounts.set_attributes(tree, self._attributes(), id_map_fd=id_map, path=self.path)
            attach(site.root_fd, tree, self.path, directory=is_directory)
        finally:
            os.close(tree)
        return ""

    def _attributes(self) -> int:
        if self.device:
            return mounts.NO_SUID | mounts.NO_EXEC
        return _QUIET | (0 if self.write else mounts.READ_ONLY)

    def describe(self) -> str:
        """Path and rights."""
        mapped = f", uid {self.id_map[0]} seen as {self.id_map[1]}" if self.id_map else ""
        rights = "device" if self.device else "read and write" if self.write else "read-only"
        return f"bind {self.path} ({rights}{mapped})"


class Mount(NamedTuple):
    """A new file system.

    Args:
        kind: "tmpfs" or "proc".
        path: where.
        size_bytes: tmpfs: its bound.
        mode: tmpfs: of its root, such as "1777".
    """

    kind: str
    path: str
    size_bytes: int = 0
    mode: str = ""
    layer: str = "root_filesystem"

    def execute(self, site: Site) -> str:
        """Make and attach it; /proc is read-only, so no setting of the kernel's is in reach."""
        if self.kind == "proc":
            attributes = _QUIET | mounts.NO_EXEC | mounts.READ_ONLY
            tree = mounts.new_filesystem("proc", attributes)
        else:
            options = {
                "size": str(self.size_bytes),
                "nr_inodes": str(inodes(self.size_bytes)),
                "mode": self.mode,
            }
            tree = mounts.new_filesystem("tmpfs", _QUIET, options)
        try:
            attach(site.root_fd, tree, self.path, directory=True)
        finally:
            os.close(tree)
        return ""

    def describe(self) -> str:
        """Kind, place and bound."""
        if self.kind == "proc":
            return f"mount proc on {self.path}, read-only"
        return (
            f"mount tmpfs on {self.path}, {self.size_bytes} bytes, {inodes(self.size_bytes)} files"
        )


def inodes(size_bytes: int) -> int:
    """How many files a tmpfs of that size may hold."""
    return max(1024, size_bytes // 4096)


class WriteFile(NamedTuple):
    """A small generated file, such as /etc/passwd."""

    path: str
    content: str
    layer: str = "root_filesystem"

    def execute(self, site: Site) -> str:
        """Write it, world-readable."""
        parent, name = open_parent(site.root_fd, self.path)
        try:
            fd = os.open(name, _NEW_FILE, 0o644, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            os.fchmod(fd, 0o644)
            if self.content:
                os.write(fd, self.content.encode())
        finally:
            os.close(fd)
        return ""

    def describe(self) -> str:
        """Which."""
        return f"write {self.path} ({len(self.content)} bytes)"


class EnterRoot(NamedTuple):
    """Make the new root read-only and enter it; the old one is gone."""

    layer: str = "root_filesystem"

    def execute(self, site: Site) -> str:
        """Pivot, then detach the old root."""
        mounts.set_attributes(site.root_fd, mounts.READ_ONLY, recursive=False, path="new root")
        mounts.enter_root(site.root_fd)
        os.close(site.root_fd)
        site.root_fd = -1
        return "private root, everything else of the host absent"

    def describe(self) -> str:
        """What."""
        return "make the new root read-only, enter it, detach the host's"


def open_parent(root_fd: int, path: str) -> tuple[int, str]:
    """Create the folders above `path` in the new root, open to everybody.

    No link is followed on the way: "/" is the host's root still, so one would lead out there.

    Returns:
        An fd of the last of them, the caller's, and the last part of the path.
    """
    folder, _, name = path.strip("/").rpartition("/")
    if not folder:
        return os.dup(root_fd), name
    try:
        return mounts.open_path(folder, at=root_fd, resolve=_INSIDE), name
    except FileNotFoundError:
        return _make_folders(root_fd, folder), name


def _make_folders(root_fd: int, path: str) -> int:
    made = os.dup(root_fd)
    try:
        for part in path.split("/"):
            _make_directory(made, part)
            below = mounts.open_path(part, at=made, resolve=_INSIDE)
            os.close(made)
            made = below
    except OSError:
        os.close(made)
        raise
    return made


def attach(root_fd: int, tree_fd: int, path: str, *, directory: bool) -> None:
    """Mount a detached tree at `path` of the new root, making the mount point if need be."""
    target = path.strip("/")
    try:
        place = mounts.open_path(target, at=root_fd, resolve=_INSIDE)
    except FileNotFoundError:
        place = _make_place(root_fd, path, directory=directory)
    try:
        mounts.attach(tree_fd, place, path=path)
    finally:
        os.close(place)


def _make_place(root_fd: int, path: str, *, directory: bool) -> int:
    parent, name = open_parent(root_fd, path)
    try:
        if directory:
            _make_directory(parent, name)
        else:
            os.close(os.open(name, _NEW_FILE, 0o444, dir_fd=parent))
        return mounts.open_path(name, at=parent, resolve=_INSIDE)
    finally:
        os.close(parent)


def _make_directory(folder: int, name: str) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
    except OSError as error:
        # EROFS: it lies in a bound tree, so it is there or the next step says what is missing.
        if error.errno not in (errno.EEXIST, errno.EROFS):
            raise


def id_map_keys(operations: tuple[Operation, ...]) -> list[IdMap]:
    """The id maps that the steps need, each once, in order."""
    found: dict[IdMap, None] = {}
    for step in operations:
        if isinstance(step, Bind) and step.id_map:
            stored_uid, seen_uid, stored_gid, seen_gid = step.id_map
            found[stored_uid, seen_uid, stored_gid, seen_gid] = None
    return list(found)


def open_id_maps(operations: tuple[Operation, ...]) -> dict[IdMap, int]:
    """In the parent, before the fork: the user namespaces that serve as id maps."""
    return {key: namespaces.id_map_namespace(*key) for key in id_map_keys(operations)}
