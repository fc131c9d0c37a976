"""Runs the steps of an installation confined: each in a fresh worker, one after the other.

Runs in the command line, single-threaded. A step sees the interpreter that it needs, the
build directory (writable) and what the registry's configuration names (readable); with hosts it
may reach exactly those, without it has no network at all. The profile's `limits.disk` and
`disk_files` are looked at while it runs and once more at its end: nothing else bounds what an
archive unpacks to.
"""

import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from vsm.commands.sandbox import FIRST_RUN_UID, egress_process
from vsm.commands.sandbox import _group as control_group
from vsm.configuration.profile import Limits, Profile, load_profile
from vsm.confinement import disk_use
from vsm.confinement.cgroup import CgroupFacts, detect
from vsm.confinement.closure import DEFAULT_PATH, closure
from vsm.confinement.plan import WorkerRequest, compile_plan
from vsm.confinement.probe import HostFacts, probe_host
from vsm.egress.link import EgressLink
from vsm.errors import VsmError
from vsm.processes.launch import LaunchError, Spawned, spawn_confined, wait_confined

STEP_TIMEOUT_S: Final = 900.0
_MOST_OUTPUT_BYTES: Final = 1 << 20
_END_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.5  # between two looks at the disk
_PAUSES: Final = 4  # times as long as a look took, at least


class Done(NamedTuple):
    """How a step ended.

    Args:
        status: exit status; 128 + n after signal n.
        output: stdout and stderr, the end of it.
        unreached: host → why, of those that were asked for and never answered.
        timed_out: it took too long and was killed.
    """

    status: int
    output: str
    timed_out: bool = False
    unreached: Mapping[str, str] = MappingProxyType({})


class InstallSandbox:
    """Confines the steps of one installation.

    Args:
        build: the directory in which it all happens, writable.
        read: further host paths that every step sees.
    """

    def __init__(self, build: Path, read: Sequence[str] = ()) -> None:
        self._build = build
        self._read = tuple(read)
        self._groups: CgroupFacts = detect()
        self._host: HostFacts = probe_host(groups=self._groups)
        self._profile = load_profile("installer")

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        allow: Sequence[str] = (),
        timeout_s: float = STEP_TIMEOUT_S,
    ) -> Done:
        """Run one step to its end.

        Args:
            argv: the command; `argv[0]` a name or a path.
            env: all that it gets beside the profile's.
            allow: hosts, as `network.allow` has them.
            timeout_s: then it is killed.

        Raises:
            VsmError: it could not be confined or started.
        """
        profile = self._profile_for(allow)
        with (
            control_group(profile, self._groups) as group,
            egress_process(profile, self._host) as egress,
        ):
            path = env.get("PATH", os.environ.get("PATH", DEFAULT_PATH))
            needed = closure(argv, env={**profile.environment, **env, "PATH": path})
            request = WorkerRequest(
                name="install",
                argv=(needed.executable, *argv[1:]),
                cwd=str(self._build),
                env=dict(env),
                path=needed.folders,
                read=(*needed.read, *self._read),
                kept=self._read,
                write=(str(self._build),),
                uid=FIRST_RUN_UID + os.getpid() if self._host.root else None,
                cgroups=group.paths if group else (),
                cgroup_layers=group.layers if group else (),
            )
            plan = compile_plan(profile, request, self._host)
            disk = _DiskWatch(self._build, profile.limits)
            with _started(plan) as (spawned, reader):
                if egress is not None:
                    link, rules = egress
                    link.serve("install", rules, spawned.listeners)
                done = _finish(spawned, reader, timeout_s, disk)
            disk.check(last=True)
            if disk.trouble:
                remedy = "Do not trust it; if you do: limits.disk of a profile `installer`."
                raise VsmError("install", disk.trouble, remedy)
            return done._replace(unreached=_unreached(egress[0])) if egress else done

    def _profile_for(self, allow: Sequence[str]) -> Profile:
        if not allow:
            return self._profile
        network = msgspec.structs.replace(
            self._profile.network, mode="proxy", allow=tuple(dict.fromkeys(allow))
        )
        return msgspec.structs.replace(self._profile, network=network)


@contextmanager
def _started(plan: object) -> Iterator[tuple[Spawned, int]]:
    """A worker and the reading end of its output; both are gone afterwards, however it ends."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        spawned = spawn_confined(plan, null, writer, writer)  # type: ignore[arg-type]
    except LaunchError as error:
        os.close(reader)
        raise VsmError("install", str(error)) from error
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
        os.close(null)
    try:
        yield spawned, reader
    except BaseException:
        os.kill(spawned.pid, signal.SIGKILL)
        wait_confined(spawned, _END_TIMEOUT_S)
        raise
    finally:
        os.close(reader)
        for fd in spawned.listeners:
            os.close(fd)


def _unreached(link: EgressLink) -> dict[str, str]:
    link.wait_last_counts("install")
    rows = link.counts.get("install", {})
    return {name: row["reason"] for name, row in rows.items() if not row["allowed"]}


class _DiskWatch:
    """Finds out whether a step has put too much on the disk; `trouble` says so, once it has.

    The worker is asked of nothing: its folder is measured, however it changes under the look.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = str(folder), limits
        self._next_s = 0.0
        self.trouble = ""

    def check(self, *, last: bool = False) -> None:
        """Look, unless the last look is recent; `last`: in any case, and nothing may be hidden."""
        began_s = time.monotonic()
        if self.trouble or (began_s < self._next_s and not last):
            return
        for use in disk_use.measure([self._folder]):
            self.trouble = self._judge(use, last=last)
            if self.trouble:
                break
        now_s = time.monotonic()
        self._next_s = now_s + max(_LOOK_S, (now_s - began_s) * _PAUSES)

    def _judge(self, use: disk_use.Use, *, last: bool) -> str:
        most_bytes, most_files = self._limits.disk_bytes, self._limits.disk_files
        if most_bytes is not None and use.size_bytes > most_bytes:
            return f"it unpacks to more than {most_bytes >> 20} MiB"
        if most_files is not None and use.entries > most_files:
            return f"it unpacks to more than {most_files} files"
        return f"what it unpacks to has {use.unseen}" if last and use.unseen else ""


def _finish(spawned: Spawned, reader: int, timeout_s: float, disk: _DiskWatch) -> Done:
    """Read until everything inside has ended, or kill it."""
    output, timed_out, waited_for = b"", False, reader
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        disk.check()
        if left_s <= 0 or disk.trouble:
            timed_out = True
            os.kill(spawned.pid, signal.SIGKILL)
            break
        if not select.select([waited_for], [], [], min(left_s, _LOOK_S))[0]:
            continue
        if waited_for == spawned.pidfd:
            break
        block = os.read(reader, 65536)
        if not block:
            waited_for = spawned.pidfd  # it may have closed its output, and run on
        output = (output + block)[-_MOST_OUTPUT_BYTES:]
    report = wait_confined(spawned, _END_TIMEOUT_S)
    status = 128 + (report.signal or 0) if report.status is None else report.status
    return Done(status, output.decode(errors="replace"), timed_out)
