"""The launcher process: spawning, signalling, and a SIGKILL of every process at every stage."""

import asyncio
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from confined_worlds import BOUND_S, IS_ROOT, WORKER_UID, as_user, host, plan_for

from vsm.confinement.execution import Plan
from vsm.errors import ConfinementError
from vsm.linux import pidfd, prctl, seccomp
from vsm.processes.launch import ExitReport, LauncherLink, LaunchError, Spawned
from vsm.processes.launcher_link import is_confined

pytestmark = pytest.mark.isolation
WHO = "root" if IS_ROOT else "user"
TIERS = ["namespaced", "landlocked"]
# Says when it runs, has a descendant that left its session, and ends when stdin does.
SERVER = ["/bin/sh", "-c", "setsid sleep 1000 >/dev/null & echo ready; cat; exit 3"]


class Field:
    """A launcher and its workers; every fd and process of it is gone after `close`."""

    def __init__(self) -> None:
        self.exits: dict[str, asyncio.Future[ExitReport]] = {}
        self.lost = asyncio.Event()
        self.link = LauncherLink(self._exited, self.lost.set)
        self.inputs: dict[str, int] = {}
        self.pidfds: list[int] = []

    def _exited(self, name: str, report: ExitReport) -> None:
        self.exits[name].set_result(report)

    async def spawn(self, name: str, argv: list[str], tier: str) -> tuple[Spawned, int]:
        """Start it; its stdout's reading end is the caller's."""
        self.exits[name] = asyncio.get_running_loop().create_future()
        plan = plan_for(WHO, tier, argv, uid=WORKER_UID + len(self.exits) if IS_ROOT else None)
        stdin, self.inputs[name] = os.pipe2(os.O_CLOEXEC)
        stdout_read, stdout = os.pipe2(os.O_CLOEXEC)
        try:
            spawned = await self.link.spawn(name, plan, stdin, stdout, 2)
        except BaseException:
            os.close(stdout_read)
            os.close(self.inputs.pop(name))
            raise
        finally:
            os.close(stdin)
            os.close(stdout)
        self.pidfds.append(spawned.pidfd)
        return spawned, stdout_read

    async def ready(self, name: str, tier: str) -> Spawned:
        """Start the server above and wait for its word."""
        spawned, stdout = await self.spawn(name, SERVER, tier)
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(stdout, lambda: readable.done() or readable.set_result(None))
        await asyncio.wait_for(readable, BOUND_S)
        loop.remove_reader(stdout)
        assert os.read(stdout, 100) == b"ready\n"
        os.close(stdout)
        return spawned

    async def ended(self, name: str) -> ExitReport:
        return await asyncio.wait_for(self.exits[name], BOUND_S)

    async def close(self) -> None:
        await self.link.close()
        for fd in (*self.inputs.values(), *self.pidfds):
            os.close(fd)


def play(scene: Callable[[Field], Awaitable[None]]) -> None:
    async def run() -> None:
        field = Field()
        await field.link.start()
        try:
            await asyncio.wait_for(scene(field), 2 * BOUND_S)
        finally:
            await field.close()

    host(WHO)
    asyncio.run(run())


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def tree(pid: int) -> list[int]:
    """Pidfds of a process and all below it."""
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(os.pidfd_open(current))
        queue.extend(children(current))
    return found


def holds(pid: int, fd: int) -> bool:
    """Whether a process has the file of this descriptor open."""
    held = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.path.samestat(os.fstat(fd), one.stat()) for one in held)


async def spares_of(field: Field, workers: set[int]) -> set[int]:
    """The mini-inits made ahead of need; waits until there is one (the kernel has no event)."""
    for _ in range(int(BOUND_S / 0.005)):
        if found := set(children(field.link.pid)) - workers:
            return found
        await asyncio.sleep(0.005)
    pytest.fail("no spare was made")


def all_gone(pidfds: list[int]) -> bool:
    gone = [pidfd.wait(fd, BOUND_S) for fd in pidfds]
    for fd in pidfds:
        os.close(fd)
    return all(gone)


@pytest.mark.parametrize("tier", TIERS)
def test_a_worker_ends_by_itself_and_is_reported(tier: str) -> None:
    async def scene(field: Field) -> None:
        spawned = await field.ready("w", tier)
        processes = tree(spawned.pid)
        assert len(processes) >= 3
        os.close(field.inputs.pop("w"))
        report = await field.ended("w")
        assert (report.status, report.signal, report.cause) == (3, None, "server")
        assert report.cpu_s > 0
        assert all_gone(processes)

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("victim", ["server", "mini-init", "launcher"])
def test_a_killed_process_takes_its_worker_along(tier: str, victim: str) -> None:
    async def scene(field: Field) -> None:
        spawned = await field.ready("w", tier)
        processes = tree(spawned.pid)
        pids = {
            "server": children(spawned.pid)[0],
            "mini-init": spawned.pid,
            "launcher": field.link.pid,
        }
        os.kill(pids[victim], signal.SIGKILL)
        report = await field.ended("w")
        assert (report.signal, report.cause) == (signal.SIGKILL, victim)
        assert all_gone(processes)
        if victim == "launcher":
            await asyncio.wait_for(field.lost.wait(), BOUND_S)

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_launcher_and_mini_init_killed_at_once_leave_nothing(tier: str) -> None:
    async def scene(field: Field) -> None:
        spawned = await field.ready("w", tier)
        processes = tree(spawned.pid)
        os.kill(field.link.pid, signal.SIGSTOP)
        os.kill(spawned.pid, signal.SIGKILL)
        os.kill(field.link.pid, signal.SIGKILL)
        assert (await field.ended("w")).cause == "launcher"
        await asyncio.wait_for(field.lost.wait(), BOUND_S)
        assert all_gone(processes)

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_a_launcher_killed_while_workers_start_leaves_nothing(tier: str) -> None:
    async def scene(field: Field) -> None:
        names = [f"w{number}" for number in range(8)]
        spawns = [asyncio.ensure_future(field.spawn(name, SERVER, tier)) for name in names]
        await asyncio.wait(spawns, return_when=asyncio.FIRST_COMPLETED)
        os.kill(field.link.pid, signal.SIGKILL)
        results = await asyncio.gather(*spawns, return_exceptions=True)
        for name, result in zip(names, results, strict=True):
            if isinstance(result, BaseException):
                assert isinstance(result, LaunchError)
            else:
                os.close(result[1])
                assert (await field.ended(name)).cause == "launcher"
        await asyncio.wait_for(field.lost.wait(), BOUND_S)

    play(scene)


def test_a_start_that_ended_well_while_its_time_ran_out_is_not_given_up() -> None:
    """As where the supervisor was held up: both are due in the same turn of its loop."""

    async def scene(field: Field) -> None:
        await field.ready("one", "landlocked")
        field.link._give_up("one")
        os.close(field.inputs.pop("one"))
        report = await field.ended("one")
        assert (report.cause, report.status) == ("server", 3)

    play(scene)


def test_the_death_of_a_launcher_is_told_though_a_start_was_cancelled_before_it_was_heard() -> None:
    async def scene(field: Field) -> None:
        os.kill(field.link.pid, signal.SIGSTOP)  # the order waits
        start = asyncio.ensure_future(field.spawn("one", SERVER, "landlocked"))
        while not field.link.describe()["workers"]:  # noqa: ASYNC110 - a turn of the loop
            await asyncio.sleep(0)
        start.cancel()
        await asyncio.wait([start])
        os.kill(field.link.pid, signal.SIGKILL)
        await asyncio.wait_for(field.lost.wait(), BOUND_S)

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_a_spawn_is_refused_while_workers_of_a_dead_launcher_still_end(tier: str) -> None:
    async def scene(field: Field) -> None:
        one = await field.ready("one", tier)
        os.kill(one.pid, signal.SIGSTOP)  # it does not see that its launcher is gone
        os.kill(field.link.pid, signal.SIGKILL)
        while field.link.pidfd >= 0:  # noqa: ASYNC110 - before anybody is told
            await asyncio.sleep(0)
        assert not field.lost.is_set()
        with pytest.raises(LaunchError, match="the launcher does not run"):
            await asyncio.wait_for(field.spawn("two", SERVER, tier), BOUND_S)
        assert (await field.ended("one")).cause == "launcher"
        await asyncio.wait_for(field.lost.wait(), BOUND_S)

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_signals_reach_the_server_and_kill_reaches_all(tier: str) -> None:
    async def scene(field: Field) -> None:
        await field.ready("term", tier)
        await field.link.signal("term", signal.SIGTERM)
        assert (await field.ended("term")).signal == signal.SIGTERM
        spawned = await field.ready("kill", tier)
        processes = tree(spawned.pid)
        await field.link.kill("kill")
        assert (await field.ended("kill")).signal == signal.SIGKILL
        assert all_gone(processes)

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_64_workers_start_at_once_and_no_fd_is_left(tier: str) -> None:
    async def scene(field: Field) -> None:
        def fds() -> tuple[int, int]:
            mine = len(os.listdir("/proc/self/fd"))
            return mine, len(os.listdir(f"/proc/{field.link.pid}/fd"))

        before = fds()
        names = [f"w{number}" for number in range(64)]
        started = await asyncio.gather(*(field.spawn(n, ["/bin/true"], tier) for n in names))
        for name, (spawned, stdout) in zip(names, started, strict=True):
            assert (await field.ended(name)).status == 0
            os.close(stdout)
            os.close(spawned.pidfd)
            os.close(field.inputs.pop(name))
        field.pidfds.clear()
        end = time.monotonic() + BOUND_S
        while (more := fds()[1] - before[1]) not in (0, 3, 6):  # a spare or two, three fds each
            assert time.monotonic() < end, more  # one may be being made
        assert fds()[0] == before[0]

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_a_program_that_is_missing_is_reported_and_the_launcher_goes_on(tier: str) -> None:
    async def scene(field: Field) -> None:
        with pytest.raises(LaunchError, match="cannot exec /bin/nothing: No such file"):
            await field.spawn("w", ["/bin/nothing"], tier)
        await field.ready("w", tier)

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_a_launcher_without_free_descriptors_refuses_and_keeps_its_workers(tier: str) -> None:
    """And not as if a layer could not be applied: that would be hopeless for ever."""

    async def scene(field: Field) -> None:
        first = await field.ready("first", tier)
        _, most = resource.prlimit(field.link.pid, resource.RLIMIT_NOFILE)
        for limit in range(20, 5, -1):
            resource.prlimit(field.link.pid, resource.RLIMIT_NOFILE, (limit, most))
            with pytest.raises(LaunchError):
                await field.spawn(f"of{limit}", SERVER, tier)
        assert not pidfd.wait(first.pidfd, 0)
        resource.prlimit(field.link.pid, resource.RLIMIT_NOFILE, (most, most))
        await field.ready("last", tier)

    play(scene)


def test_a_launcher_holds_nothing_that_its_starter_inherited() -> None:
    async def scene(field: Field) -> None:
        assert not holds(field.link.pid, inherited)

    inherited, other = os.pipe()
    os.set_inheritable(inherited, True)
    try:
        play(scene)
    finally:
        os.close(inherited)
        os.close(other)


def test_a_worker_whose_descriptors_do_not_arrive_is_killed() -> None:
    async def scene(field: Field) -> None:
        hear = field.link._hear

        def lose(message: dict[str, Any], fds: list[int]) -> None:
            for fd in fds:
                os.close(fd)
            hear(message, [])

        field.link._hear = lose  # type: ignore[method-assign]
        with pytest.raises(LaunchError, match="ended as it began"):
            await asyncio.wait_for(field.spawn("w", SERVER, TIERS[0]), BOUND_S / 2)

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_a_worker_that_was_prepared_ahead_is_as_confined_as_the_first(tier: str) -> None:
    code = (
        "import os; print(open('/proc/self/status').read());"
        "print('FDS', sorted(os.listdir('/proc/self/fd')))"
    )

    async def scene(field: Field) -> None:
        answers, layers = [], []
        for number in range(3):
            spares = children(field.link.pid)
            name = f"w{number}"
            spawned, stdout = await field.spawn(name, ["/usr/bin/python3", "-c", code], tier)
            assert (spawned.pid in spares) == (number > 0)
            layers.append([(layer["name"], layer["state"]) for layer in spawned.layers])
            assert (await field.ended(name)).status == 0
            answers.append(os.read(stdout, 65536).decode())
            os.close(stdout)
            await spares_of(field, set())
        wanted = ("CapEff", "CapBnd", "Seccomp", "NoNewPrivs", "Umask", "SigBlk", "SigIgn", "FDS ")
        facts = [
            [line for line in answer.splitlines() if line.startswith(wanted)] for answer in answers
        ]
        assert len(facts[0]) == len(wanted) + 1  # Seccomp_filters too
        assert facts[0] == facts[1] == facts[2]
        assert f"SigBlk:\t{0:016x}" in facts[0]  # though its first process blocks what it reads
        assert layers[0] == layers[1] == layers[2]

    play(scene)


@pytest.mark.parametrize("tier", TIERS)
def test_a_killed_spare_is_replaced_and_does_no_harm(tier: str) -> None:
    async def scene(field: Field) -> None:
        first = await field.ready("first", tier)
        spares = await spares_of(field, {first.pid})
        sentinels = [os.pidfd_open(pid) for pid in spares]
        for pid in spares:
            os.kill(pid, signal.SIGKILL)
        assert all_gone(sentinels)
        second = await field.ready("second", tier)
        assert second.pid not in spares

    play(scene)


def test_a_layer_that_fails_is_named_and_nothing_runs() -> None:
    async def scene(field: Field) -> None:
        plan = plan_for(WHO, "namespaced", ["/bin/true"])
        table = plan.to_json()
        for step in table["operations"]:
            if step["operation"] == "Bind" and step["path"] == "/usr":
                step["path"] = "/no/such/folder"
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            with pytest.raises(ConfinementError, match="/no/such/folder") as refusal:
                await field.link.spawn("w", Plan.from_json(table), null, null, null)
        finally:
            os.close(null)
        assert refusal.value.layer == "root_filesystem"

    play(scene)


def test_a_killed_supervisor_takes_launcher_and_workers_along(tmp_path: Path) -> None:
    plan = plan_for(WHO, "landlocked", SERVER)
    program = f"""
import asyncio, json, os, sys
from vsm.confinement.execution import Plan
from vsm.processes.launch import LauncherLink
async def main():
    link = LauncherLink(lambda *a: None)
    await link.start()
    plan = Plan.from_json(json.loads(sys.argv[1]))
    out, inner = os.pipe()
    spawned = await link.spawn("w", plan, os.open("/dev/zero", os.O_RDONLY), inner, 2)
    os.read(out, 100)
    print(link.pid, spawned.pid, flush=True)
    await asyncio.sleep({BOUND_S})
asyncio.run(main())
"""
    argv = [sys.executable, "-c", program, json.dumps(plan.to_json())]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=tmp_path) as supervisor:
        assert supervisor.stdout
        launcher, mini_init = map(int, supervisor.stdout.readline().split())
        processes = [*tree(launcher)]
        assert len(processes) >= 4
        assert mini_init != launcher
        supervisor.kill()
        supervisor.wait(BOUND_S)
    assert all_gone(processes)


def test_the_mini_init_cannot_be_traced_by_its_server() -> None:
    code = "import os; os.open('/proc/%d/mem' % os.getppid(), os.O_RDWR)"

    async def scene(field: Field) -> None:
        for tier in TIERS:
            name = f"w-{tier}"
            _, stdout = await field.spawn(name, ["/usr/bin/python3", "-c", code], tier)
            assert (await field.ended(name)).status == 1
            os.close(stdout)

    play(scene)


def test_inside_a_filtered_container_only_workers_count_as_confined() -> None:
    allow_all = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)

    def child(*, filtered: bool) -> int:
        ready, told = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                if filtered:
                    seccomp.install(allow_all)
                os.write(told, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.read(ready, 1)
        os.close(ready)
        os.close(told)
        return pid

    def work() -> list[bool]:
        prctl.set_no_new_privileges()
        seccomp.install(allow_all)  # what a container runtime does to everything in it
        pids = [child(filtered=False), child(filtered=True)]
        answers = [is_confined(pid) for pid in pids]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return answers

    assert as_user("root", work) == [False, True]
