"""Which host paths a worker sees, and how: the root that is built, or the Landlock rules.

Pure look-ups of the host's file system in the parent; the steps that result are executed in the
launcher's child. Used by `vsm.confinement.plan` only.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from vsm.configuration.profile import Profile
from vsm.confinement.operations import Operation
from vsm.confinement.root_operations import Bind, EnterRoot, Link, MakeRoot, Mount, WriteFile
from vsm.errors import ConfinementError

_MOST_LINKS = 40
_RESOLVER = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
# What a C library reads of /etc; nothing secret, and readable by everybody anyway.
_HOST_ETC = (*_RESOLVER, "/etc/passwd", "/etc/group", "/etc/localtime")
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files\n"  # no name server is in reach
_HOSTS = "127.0.0.1 localhost sandbox\n::1 localhost\n"
_DEVICE_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
_OTHER_READ = stat.S_IROTH
_OTHER_READ_ENTER = stat.S_IROTH | stat.S_IXOTH


class Request(Protocol):
    """What of `vsm.confinement.plan.WorkerRequest` this module reads."""

    @property
    def name(self) -> str:
        """Of the worker."""

    @property
    def argv(self) -> tuple[str, ...]:
        """What is exec'ed."""

    @property
    def read(self) -> tuple[str, ...]:
        """Host paths."""

    @property
    def kept(self) -> tuple[str, ...]:
        """Host paths."""

    @property
    def write(self) -> tuple[str, ...]:
        """Host paths."""

    @property
    def written(self) -> tuple[str, ...]:
        """Host paths that some worker may write."""

    @property
    def state_dir(self) -> str | None:
        """A host directory."""

    @property
    def scratch_dir(self) -> str | None:
        """A directory to make."""


class IdMaps(Protocol):
    """What of the host's facts this module reads."""

    @property
    def idmapped_mounts(self) -> bool:
        """Whether they work."""


class Grants(NamedTuple):
    """Every path that the worker gets, symbolic links resolved.

    Args:
        name: the worker's.
        uid: the worker's own uid when root starts it, else None.
        links: symbolic links passed on the way, path → target.
        system_links: those of them on the way to `system`.
        system: real paths of the profile's files.system; in `read` too.
        read: real paths, read-only and executable.
        kept: those of them that were named to be so.
        write: real paths.
        devices: device nodes.
        mapped: whether id-mapped mounts work.
        proc: whether /proc is there.
        host_network: whether the host's resolver files are wanted.
        tmp_bytes: bound of /tmp.
        shm_bytes: bound of /dev/shm.
        names: lines of /etc/hosts beside localhost.
    """

    name: str
    uid: int | None
    links: dict[str, str]
    system_links: dict[str, str]
    system: tuple[str, ...]
    read: tuple[str, ...]
    kept: tuple[str, ...]
    write: tuple[str, ...]
    devices: tuple[str, ...]
    mapped: bool
    proc: bool
    host_network: bool
    tmp_bytes: int
    shm_bytes: int
    names: str = ""

    @classmethod
    def collect(
        cls, profile: Profile, request: Request, uid: int | None, host: IdMaps, names: str = ""
    ) -> "Grants":
        """Resolve what profile and request name; a missing path of theirs is an error."""
        files, system_links = profile.files, dict[str, str]()
        resolver = _RESOLVER if profile.network.mode == "host" else ()
        system = [
            real
            for path in (*files.system, *resolver)
            if (real := _resolve(path, system_links, ""))
        ]
        links = dict(system_links)
        state = (request.state_dir,) if request.state_dir else ()
        read = [_resolve(path, links, request.name) for path in (*files.read, *request.read)]
        write = [
            _resolve(path, links, request.name) for path in (*files.write, *request.write, *state)
        ]
        kept = [_resolve(path, {}, request.name) for path in (*files.read, *request.kept)]
        devices = [path for path in files.devices if Path(path).is_char_device()]
        for path in (*read, *write):
            _refuse_root(path, request.name)
        others = (_resolve(path, {}, "") for path in request.written)
        _refuse_written_links(links, {*write, *others}, request.name)
        return cls(
            name=request.name,
            uid=uid,
            links=links,
            system_links=system_links,
            system=tuple(system),
            read=_topmost([*system, *read], write),
            kept=tuple(path for path in kept if path not in write),
            write=_topmost(write, read),
            devices=tuple(dict.fromkeys(devices)),
            mapped=host.idmapped_mounts,
            proc=files.proc,
            host_network=profile.network.mode == "host",
            tmp_bytes=files.tmp_bytes,
            shm_bytes=files.shm_bytes,
            names=names,
        )

    # -- namespaced --------------------------------------------------------------------------------

    def shared_root_operations(self) -> Iterator[Operation]:
        """The part of the root that the profile alone decides: in memory first, then binds."""
        yield MakeRoot()
        yield Mount("tmpfs", "/tmp", self.tmp_bytes, "1777")  # noqa: S108 - inside
        yield Mount("tmpfs", "/dev/shm", self.shm_bytes, "1777")  # noqa: S108 - inside
        if self.proc:
            yield Mount("proc", "/proc")
            for path, target in _DEVICE_LINKS:
                yield Link(path, target)
        for path in self.devices:
            yield Bind(path, write=True, device=True)
        for path, target in self._outer_links(self.system_links):
            yield Link(path, target)
        for path in _by_depth(self._shared()):
            yield self._bind(path, write=False)

    def own_root_operations(self) -> Iterator[Operation]:
        """The part of the root that is this worker's, from the top down; then enter it."""
        links = {p: t for p, t in self.links.items() if p not in self.system_links}
        for path, target in self._outer_links(links):
            yield Link(path, target)
        for path, content in self._etc():
            if not self._covered(path):
                yield WriteFile(path, content)
        above = self._above_read()
        for path in _by_depth({*self.read, *self.write, *above} - self._shared()):
            if path in above:
                id_map = self._id_map(above[path], write=True)
                yield Bind(path, write=True, id_map=id_map)
            else:
                yield self._bind(path, write=path in self.write)
        yield EnterRoot()

    def _above_read(self) -> dict[str, str]:
        """The folders between a writable one and what is read-only in it, with the former.

        Mounts of their own, for a mount point cannot be renamed: moved away, another could be put
        in its place.
        """
        return {
            str(folder): top
            for path in self.read
            for top in _by_depth({top for top in self.write if _is_beneath(path, top)})[-1:]
            for folder in Path(path).parents
            if _is_beneath(str(folder), top)
        }

    def _shared(self) -> set[str]:
        """System paths with nothing of the worker's above them, which would have to come first."""
        own = {*self.read, *self.write} - set(self.system)
        return {
            path
            for path in set(self.system) & set(self.read) - set(self.write)
            if not any(_is_beneath(path, other) for other in own)
        }

    def namespaced_rules(self) -> Iterator[tuple[str, str]]:
        """Landlock inside the new root, where what is not granted does not exist anyway."""
        yield "read", "/"
        for path in ("/tmp", "/dev/shm", *self.write):  # noqa: S108 - inside
            yield "write", path
        for path in self.devices:
            yield "device", path

    def _bind(self, path: str, *, write: bool) -> Bind:
        return Bind(path, write=write, id_map=self._id_map(path, write=write))

    def _id_map(self, path: str, *, write: bool) -> tuple[int, ...]:
        """Show the path's owner as the worker, where the worker could not use it otherwise."""
        if self.uid is None:
            return ()
        status = os.stat(path)
        usable = status.st_uid == self.uid or (not write and _open_to_all(status))
        if usable:
            return ()
        if not self.mapped:
            raise ConfinementError(
                self.name,
                f"{path} belongs to uid {status.st_uid}, and id-mapped mounts do not work here",
                f"chown it to uid {self.uid}, or use a kernel ≥ 5.12 and ext4, xfs or btrfs.",
                layer="root_filesystem",
            )
        return (status.st_uid, self.uid, status.st_gid, self.uid)

    def _outer_links(self, links: dict[str, str]) -> Iterator[tuple[str, str]]:
        """Links that no bound tree brings."""
        bound = {*self.read, *self.write}
        for path, target in links.items():
            if not any(_is_beneath(path, parent) for parent in bound):
                yield path, target

    def _covered(self, path: str) -> bool:
        bound = {*self.read, *self.write}
        return path in self.links or any(path == p or _is_beneath(path, p) for p in bound)

    def _etc(self) -> Iterator[tuple[str, str]]:
        uid = os.geteuid() if self.uid is None else self.uid
        yield "/etc/passwd", f"worker:x:{uid}:{uid}::/tmp:/bin/sh\n"
        yield "/etc/group", f"worker:x:{uid}:\n"
        if not self.host_network:
            yield "/etc/hosts", _HOSTS + self.names
            yield "/etc/nsswitch.conf", _NSSWITCH
            yield "/etc/resolv.conf", ""

    # -- landlocked --------------------------------------------------------------------------------

    def host_rules(self, scratch: str) -> Iterator[tuple[str, str]]:
        """Landlock on the host's own file system."""
        for path in (*self.read, *(real for etc in _HOST_ETC if (real := _resolve(etc, {}, "")))):
            yield "read", path
        if self.proc:
            yield "read", "/proc"
        for path in (*self.write, scratch):
            if path:
                yield "write", path
        for path in self.devices:
            yield "device", path

    def check_kept(self) -> None:
        """Refuse what could not stay read-only: a rule of Landlock allows, none takes away."""
        for path in self.kept:
            for folder in self.write:
                if _is_beneath(path, folder):
                    raise ConfinementError(
                        self.name,
                        f"{path} is to be read-only, but lies in {folder}, which is writable",
                        "Let `write` name the folders that need it, or use the namespaced tier.",
                        layer="root_filesystem",
                    )

    def check_reachable(self) -> None:
        """Refuse what the worker's uid could not use: no mount can open it to it here."""
        if self.uid is None:
            return
        for path in (*self.read, *self.write):
            self._check_folders(path)
            status = os.stat(path)
            own = status.st_uid == self.uid
            if not own and not _open_to_all(status):
                raise self._unreachable(path, path)
            if path in self.write and not own and not status.st_mode & stat.S_IWOTH:
                raise ConfinementError(
                    self.name,
                    f"{path} is not writable by uid {self.uid}",
                    f"chown it to uid {self.uid}, or use the namespaced tier.",
                    layer="root_filesystem",
                )

    def _check_folders(self, path: str) -> None:
        for folder in Path(path).parents:
            status = folder.stat()
            needed = stat.S_IXGRP if status.st_gid == self.uid else stat.S_IXOTH
            if status.st_uid != self.uid and not status.st_mode & needed:
                raise self._unreachable(path, str(folder))

    def _unreachable(self, path: str, closed: str) -> ConfinementError:
        what = f"uid {self.uid} cannot enter {closed}"
        return ConfinementError(
            self.name,
            what if path == closed else f"{what}, on the way to {path}",
            "Install it where everybody may read, such as /opt, or use the namespaced tier.",
            layer="root_filesystem",
        )


def _resolve(path: str, links: dict[str, str], required_by: str) -> str:
    """The real path; records the links on the way. "" if absent and not required."""
    todo, done, budget = [*reversed(Path(path).parts[1:])], "", _MOST_LINKS
    while todo:
        part = todo.pop()
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        step = f"{done}/{part}"
        try:
            target = os.readlink(step) if stat.S_ISLNK(os.lstat(step).st_mode) else ""
        except OSError as error:
            if not required_by:
                return ""
            raise ConfinementError(
                required_by,
                f"{path}: {error.strerror}",
                "Correct the path.",
                layer="root_filesystem",
            ) from error
        if not target:
            done = step
            continue
        budget -= 1
        if budget < 0:
            raise ConfinementError(required_by, f"{path}: too many links", layer="root_filesystem")
        links[step] = target
        if target.startswith("/"):
            done = ""
        todo.extend(reversed([p for p in target.split("/") if p not in ("", ".")]))
    return done or "/"


def _topmost(paths: list[str], others: list[str]) -> tuple[str, ...]:
    """Drop what another path of the list brings along, unless one of `others` lies between."""
    unique, between = dict.fromkeys(paths), set(others)
    return tuple(
        path
        for path in unique
        if not any(
            _is_beneath(path, above)
            and not any(_is_beneath(path, one) and _is_beneath(one, above) for one in between)
            for above in unique
        )
    )


def _by_depth(paths: set[str]) -> list[str]:
    return sorted(paths, key=lambda path: (path.count("/"), path))


def _is_beneath(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/") and path != folder


def _open_to_all(status: os.stat_result) -> bool:
    wanted = _OTHER_READ_ENTER if stat.S_ISDIR(status.st_mode) else _OTHER_READ
    return status.st_mode & wanted == wanted


def _refuse_written_links(links: dict[str, str], written: set[str], name: str) -> None:
    """A worker that may put a link where a grant leads through would choose what is granted."""
    for link in links:
        for folder in written:
            if folder and _is_beneath(link, folder):
                raise ConfinementError(
                    name,
                    f"{link} is a symbolic link in {folder}, where a worker may put any",
                    "Name the folder that it leads to.",
                    layer="root_filesystem",
                )


def _refuse_root(path: str, name: str) -> None:
    if path in ("/", "/proc", "/sys", "/dev"):
        raise ConfinementError(
            name,
            f"{path} cannot be granted as a whole",
            "Name the folders that it needs.",
            layer="root_filesystem",
        )
