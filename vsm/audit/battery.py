"""`vsm sandbox audit`: the whole battery inside one profile's sandbox on this host, and outside.

Makes a world of targets, starts one confined process that runs every attempt in a child, and one
unconfined that proves that the attempts can succeed. Single-threaded (it forks); any privilege;
what it made is gone afterwards. Limits are lowered for the run, so that bombs stay small: the
mechanism that holds them is the profile's.
"""

import base64
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from vsm.attempts import ATTEMPTS, outcome_of
from vsm.audit.result import Result, judge
from vsm.audit.world import EVERYBODY, LEAKED_FD, SECRET_VARIABLE, World, uninterrupted
from vsm.configuration.profile import Limits, Profile
from vsm.confinement import uids
from vsm.confinement.cgroup import Cgroups, Group, limits_of
from vsm.confinement.closure import closure
from vsm.confinement.execution import Plan, confine_self
from vsm.confinement.operations import FilterSystemCalls
from vsm.confinement.plan import Tier, WorkerRequest, compile_plan
from vsm.confinement.probe import HostFacts
from vsm.core.seccomp import Action, simulate
from vsm.errors import VsmError
from vsm.processes.launch import LaunchError, spawn_confined, wait_confined

CODE = "import sys; sys.path.insert(0, sys.argv.pop(1)); from attempts.base import main; main()"
MEMORY, PROCESSES, OPEN_FILES, FILE, TMP, SHM = 96 << 20, 24, 128, 8 << 20, 16 << 20, 8 << 20
CORES = 0.1
LAST_NUMBER, GETPID = 480, 39
X32 = 0x4000_0000
TIMEOUT_S = 120.0
NEAR_FOLDER = 50  # bytes: two of our names and a socket's below it are 107 at the most
# A system starts no program and inherits its sockets on purpose; its own fork stands for it.
NOT_FOR_SYSTEMS = {"exhaustion", "inheritance"}

Outcomes = dict[str, dict[str, str]]


class _Site(NamedTuple):
    """Where an audit runs."""

    profile: Profile
    tier: Tier | None
    host: HostFacts
    folder: Path
    world: dict[str, Any]
    groups: frozenset[str]


class Control:
    """What the attempts did unconfined; one is enough for many audits of the same user."""

    def __init__(self) -> None:
        self.outcomes: Outcomes = {}


def audit(
    profile: Profile,
    host: HostFacts,
    *,
    tier: Tier | None = None,
    control: Control | None = None,
    groups: frozenset[str] = frozenset(),
) -> Result:
    """Try everything, or what belongs to some groups of attempts; see the module.

    Raises:
        ConfinementError: the profile cannot be applied here, or not in this tier.
    """
    small = lowered(profile)
    with _world(small, host) as (folder, world):
        site = _Site(small, tier, host, folder, world, groups)
        run = _inside_of_itself if profile.confine == "self" else _inside
        plan, layers, inside = run(site)
        control = control or Control()
        missing = [name for name in inside if name not in control.outcomes]
        if missing:
            control.outcomes |= _outside(site, missing)
    outside = control.outcomes
    user = "root" if host.root else "user"
    states = {layer["name"]: layer["state"] for layer in layers}
    rows = tuple(
        judge(ATTEMPTS[n], inside[n], outside[n], tier=plan.tier, user=user, layers=states)
        for n in inside
    )
    return Result(profile=profile.name, tier=plan.tier, user=user, layers=states, rows=rows)  # type: ignore[arg-type]


def lowered(profile: Profile) -> Profile:
    """The profile with limits that a small bomb reaches; what has no limit keeps none."""
    limits = profile.limits
    small = msgspec.structs.replace(
        limits,
        memory_bytes=limits.memory_bytes and min(limits.memory_bytes, MEMORY),
        processes=limits.processes and min(limits.processes, PROCESSES),
        open_files=limits.open_files and min(limits.open_files, OPEN_FILES),
        file_size_bytes=limits.file_size_bytes and min(limits.file_size_bytes, FILE),
    )
    files = profile.files
    tmp, shm = min(files.tmp_bytes, TMP), min(files.shm_bytes, SHM)
    files = msgspec.structs.replace(files, tmp_bytes=tmp, shm_bytes=shm)
    return msgspec.structs.replace(profile, limits=small, files=files)


@contextmanager
def limit_group(name: str, limits: Limits, host: HostFacts) -> "Iterator[Group | None]":
    """A control group with these limits, where one works; removed with what is in it."""
    if host.cgroup.kind == "none":
        yield None
        return
    cgroups = Cgroups(host.cgroup)
    try:
        yield cgroups.create(
            name,
            limits_of(limits),
        )
    finally:
        cgroups.close()


# -- the world -------------------------------------------------------------------------------------


@contextmanager
def _world(profile: Profile, host: HostFacts) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Below a folder that nobody enters but us and the worker: we write by these names, too."""
    limits, files = profile.limits, profile.files
    numbers = {
        "memory_bytes": limits.memory_bytes or MEMORY,
        "processes": limits.processes or PROCESSES,
        "open_files": limits.open_files or OPEN_FILES,
        "file_size_bytes": limits.file_size_bytes or FILE,
        "tmp_bytes": files.tmp_bytes or TMP,
        "shm_bytes": files.shm_bytes or SHM,
        "cpu_cores": CORES,
    }
    with ExitStack() as made:
        try:
            with uninterrupted():
                closed = Path(tempfile.mkdtemp(prefix="vsm-audit-", dir=_near_folder()))
                made.callback(shutil.rmtree, closed)
                worker = _run_uid(host)
                if worker is not None:
                    os.chown(closed, -1, worker)
                    closed.chmod(0o710)
                folder = closed / closed.name
                folder.mkdir()
                folder.chmod(EVERYBODY)
                world = made.enter_context(World(folder, os.geteuid(), numbers))
            yield folder, world
        finally:
            with uninterrupted():
                made.close()


def _near_folder() -> str:
    """$TMPDIR, or /tmp where the address of a socket in it would be too long (see unix(7))."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= NEAR_FOLDER else "/tmp"  # noqa: S108 - as mkdtemp


def _names(site: _Site, *, cpu: bool) -> list[str]:
    own = site.profile.confine == "self"
    return [
        name
        for name, attempt in ATTEMPTS.items()
        if ("cpu" in attempt.guards) == cpu
        and not (own and attempt.group in NOT_FOR_SYSTEMS)
        and (not site.groups or attempt.group in site.groups)
    ]


# -- inside ----------------------------------------------------------------------------------------


def _inside(site: _Site) -> tuple[Plan, list[dict[str, str]], Outcomes]:
    """One confined process for all; one of a tenth of a processor for what counts its time."""
    plan, layers, outcomes = _confined(site, _names(site, cpu=False))
    if site.profile.limits.cpu_cores is not None:
        limits = msgspec.structs.replace(site.profile.limits, cpu_cores=CORES)
        site = site._replace(profile=msgspec.structs.replace(site.profile, limits=limits))
    slow = _names(site, cpu=True)
    if slow:
        outcomes |= _confined(site, slow)[2]
    return plan, layers, outcomes


def _confined(site: _Site, names: list[str]) -> tuple[Plan, list[dict[str, str]], Outcomes]:
    with limit_group("audit", site.profile.limits, site.host) as group:
        request, python = _request(site, group)
        plan = compile_plan(site.profile, request, site.host)
        world = {**site.world, "refused_calls": refused_calls(plan)}
        argv = (*python, json.dumps(world), *names)
        plan = plan._replace(argv=argv)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _careless(site):
            layers = _run(plan, out.fileno(), err.fileno())
            return plan, layers, _answers(out, err)


def _request(site: _Site, group: "Group | None") -> tuple[WorkerRequest, tuple[str, ...]]:
    needed = closure([_python()], env={"PATH": "/usr/local/bin:/usr/bin:/bin"})
    copy = str(site.folder / "copy")
    python = (needed.executable, "-SI", "-c", CODE, copy)
    request = WorkerRequest(
        name="audit",
        argv=python,
        read=(*needed.read, copy, site.world["read_folder"]),
        uid=_run_uid(site.host),
        tier=site.tier,
        cgroups=group.paths if group else (),
        cgroup_layers=group.layers if group else (),
    )
    return request, python


def _python() -> str:
    """One that a worker's uid can run in the landlocked tier, if the host has one."""
    return next(
        (
            path
            for path in ("/usr/bin/python3", "/usr/local/bin/python3")
            if os.access(path, os.X_OK)
        ),
        sys.executable,
    )


def _run_uid(host: HostFacts) -> int | None:
    return uids.run_uid(0) if host.root else None


def _run(plan: Plan, out: int, err: int) -> list[dict[str, str]]:
    with open(os.devnull, "rb") as null:
        try:
            spawned = spawn_confined(plan, null.fileno(), out, err)
        except LaunchError as error:
            raise VsmError("sandbox audit", str(error), "") from error
    wait_confined(spawned, TIMEOUT_S)
    return spawned.layers


@contextmanager
def _careless(site: _Site) -> Iterator[None]:
    """What a careless parent leaks: a descriptor, a variable, its working directory."""
    before = os.getcwd()
    os.chdir(site.folder)
    fd = os.open("secret.txt", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(fd, LEAKED_FD, inheritable=True)
    os.close(fd)
    os.environ[SECRET_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[SECRET_VARIABLE]
        os.close(LEAKED_FD)
        os.chdir(before)


def refused_calls(plan: Plan) -> list[int]:
    """The numbers that the plan's filter answers itself, whatever the arguments of the sweep."""
    programs = [s.program for s in plan.operations if isinstance(s, FilterSystemCalls)]
    if not programs or os.uname().machine != "x86_64":
        return []
    program, arguments = base64.b64decode(programs[0]), (-1,) * 6
    numbers = (*range(LAST_NUMBER), *(X32 | nr for nr in range(LAST_NUMBER)))
    refusals = (Action.EPERM, Action.ENOSYS)
    return [nr for nr in numbers if simulate(program, "x86_64", nr, arguments) in refusals]


def _answers(out: IO[bytes], err: IO[bytes]) -> Outcomes:
    out.seek(0)
    err.seek(0)
    raw = out.read()
    if not raw:
        said = err.read().decode(errors="replace").strip().splitlines()
        what = f"the attempts did not run: {said[-1] if said else 'no output'}"
        raise VsmError("sandbox audit", what, "Does the profile allow a Python to run?")
    answers: Outcomes = json.loads(raw)
    return answers


def _inside_of_itself(site: _Site) -> tuple[Plan, list[dict[str, str]], Outcomes]:
    """As a system does: a child confines itself, then tries. It cannot fork, so one for each."""
    with limit_group("audit", site.profile.limits, site.host) as group:
        request = WorkerRequest(
            name=site.profile.name,
            argv=(),
            uid=_run_uid(site.host),
            cgroups=group.paths if group else (),
            cgroup_layers=group.layers if group else (),
        )
        plan = compile_plan(site.profile, request, site.host)
        world = {**site.world, "parent": os.getpid(), "open_at_start": []}
        outcomes = {
            name: outcome_of(_after_confining(plan, name), world)
            for name in _names(site, cpu=False)
        }
    return plan, plan.layers, outcomes


def _after_confining(plan: Plan, name: str) -> Callable[[dict[str, Any]], None]:
    def run(world: dict[str, Any]) -> None:
        confine_self(plan)
        ATTEMPTS[name].action(world)

    return run


# -- outside ---------------------------------------------------------------------------------------


def _outside(site: _Site, names: list[str]) -> Outcomes:
    world = {**site.world, "is_control": True, "refused_calls": [GETPID]}
    copy = str(site.folder / "copy")
    argv = [_python(), "-SI", "-c", CODE, copy, json.dumps(world), *names]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _careless(site):
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os.execv(argv[0], argv)  # noqa: S606
            finally:
                os._exit(127)
        os.waitpid(pid, 0)
        return _answers(out, err)
