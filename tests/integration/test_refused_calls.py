"""Refused system calls are counted by name, stay refused whoever dies, and cost nobody else."""

import asyncio
import ctypes
import errno
import os
import platform
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from confined_worlds import BOUND_S, IS_ROOT, WORKER_UID, host, plan_for
from running import Running, running
from supervised import all_ready, ask, call, rows, wait_until, write_config

from vsm.configuration.profile import Profile, load_profile
from vsm.core import refusals
from vsm.core.seccomp import compile_filter, reported, rules_for
from vsm.core.syscalls import names, numbers
from vsm.linux import prctl, seccomp
from vsm.processes.launch import ExitReport, LauncherLink, LaunchError

pytestmark = pytest.mark.isolation
WHO = "root" if IS_ROOT else "user"
MACHINE = platform.machine()
BPF = numbers(MACHINE)["bpf"]
# As many threads ask at once as the worker's number of tasks allows, and a child asks, too.
ASKS = f"""
import ctypes, os, threading
libc = ctypes.CDLL(None, use_errno=True)
def ask():
    libc.syscall({BPF}, -1, 0, 0)
    assert ctypes.get_errno() == 1, ctypes.get_errno()
threads = [threading.Thread(target=ask) for _ in range(20)]
[t.start() for t in threads]
[t.join() for t in threads]
if os.fork() == 0:
    ask()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert libc.prctl(22, 2, 0, 0, 0) == -1  # no filter of its own, so no listener
"""


@pytest.fixture(autouse=True)
def _there_is_notification(require: Callable[[str, bool, str], None]) -> None:
    require("user notification", host(WHO).seccomp_notification, "not in this kernel")


class Launched:
    """One launcher with one worker of ours, and what is counted of it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.ended: asyncio.Future[ExitReport] = asyncio.get_running_loop().create_future()
        self.link = LauncherLink(
            lambda _worker, report: self.ended.set_result(report), on_denied=self._denied
        )

    def _denied(self, worker: str, calls: dict[int, int]) -> None:
        assert worker == "w"
        self.counts.update({names(MACHINE)[nr]: count for nr, count in calls.items()})

    async def run(
        self, tier: str, code: str, *, report: bool = True, profile: Profile | None = None
    ) -> ExitReport:
        uid = WORKER_UID if IS_ROOT else None
        argv = ["/usr/bin/python3", "-SIc", code]
        plan = plan_for(WHO, tier, argv, uid=uid, report=report, profile=profile)
        await self.link.start()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            spawned = await self.link.spawn("w", plan, null, null, 2)
            os.close(spawned.pidfd)
            return await asyncio.wait_for(self.ended, BOUND_S)
        finally:
            os.close(null)
            await self.link.close()


def launched(
    tier: str, code: str, *, report: bool = True, profile: Profile | None = None
) -> tuple[ExitReport, Counter[str]]:
    async def scene() -> tuple[ExitReport, Counter[str]]:
        one = Launched()
        return await one.run(tier, code, report=report, profile=profile), one.counts

    host(WHO)
    return asyncio.run(scene())


@pytest.fixture(params=["namespaced", "landlocked"])
def tier(request: pytest.FixtureRequest, require: Callable[[str, bool, str], None]) -> str:
    facts = host(WHO)
    require("the tier", facts.tier in {"namespaced", request.param}, "no namespaces")
    return str(request.param)


def test_refused_calls_of_threads_and_children_are_counted_by_name(tier: str) -> None:
    report, counts = launched(tier, ASKS)
    assert (report.status, report.signal) == (0, None)
    assert counts["bpf"] == 21
    assert counts["prctl"] == 1


def test_without_a_report_the_kernel_answers_and_nothing_is_counted(tier: str) -> None:
    report, counts = launched(tier, ASKS, report=False)
    assert (report.status, report.signal) == (0, None)
    assert not counts


def without(*calls: str) -> Profile:
    """The strict profile without some calls more."""
    plain = load_profile("integration")
    syscalls = msgspec.structs.replace(plain.syscalls, deny=calls)
    return msgspec.structs.replace(plain, syscalls=syscalls)


def test_a_refused_call_of_the_mini_init_itself_is_answered_before_its_server_runs(
    tier: str,
) -> None:
    with pytest.raises(LaunchError, match=r"cannot enter .*: Operation not permitted"):
        launched(tier, "pass", profile=without("chdir"))


def test_a_mini_init_that_cannot_hand_the_listener_out_has_none(tier: str) -> None:
    report, counts = launched(tier, ASKS, profile=without("sendmsg"))
    assert (report.status, report.signal) == (0, None)
    assert not counts


@pytest.mark.parametrize("answered", [True, False], ids=["answered", "responder-gone"])
def test_a_refused_call_stays_refused_whether_or_not_somebody_answers(answered: bool) -> None:
    rules = rules_for(("@system-service",), (), unix_sockets=False, inet=False, tier="namespaced")
    program = compile_filter(reported(rules), MACHINE)
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.syscall(BPF, -1, 0, 0)
            assert ctypes.get_errno() != errno.EPERM or os.geteuid()  # the control
            prctl.set_no_new_privileges()
            listener = seccomp.install_reported(program, every_thread=False)
            os.write(theirs, b"%d\n" % listener)
            if not answered:
                os.close(listener)
            libc.syscall(BPF, -1, 0, 0)
            code = ctypes.get_errno()
        finally:
            os._exit(code)
    os.close(theirs)
    try:
        if answered:
            _answer_from_outside(pid, int(os.read(ours, 20)))
    finally:
        os.close(ours)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == (errno.EPERM if answered else errno.ENOSYS)


def _answer_from_outside(pid: int, number: int) -> None:
    owner = os.pidfd_open(pid)
    listener = seccomp.take_descriptor(owner, number)
    os.close(owner)
    assert seccomp.is_listener(listener)
    assert not seccomp.is_listener(0)
    assert select.select([listener], [], [], BOUND_S)[0]
    asked = seccomp.receive(listener)
    assert asked is not None
    assert (asked.pid, asked.nr) == (pid, BPF)
    seccomp.refuse(listener, asked.ident)
    os.close(listener)


# ---- a whole vsm ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vsm(
    session_leaves_nothing: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    del session_leaves_nothing
    folder = tmp_path_factory.mktemp("refused")
    quiet = folder / "quiet.toml"
    quiet.write_text('extends = "integration"\n[syscalls]\nreport = false\n', encoding="utf-8")
    config = write_config(
        folder, asks="well", neighbour="well", quiet='well;profile = "./quiet.toml"'
    )
    with running(config) as one:
        wait_until(one, all_ready)
        yield one
        assert one.stop() == 0


def test_they_are_in_status_log_and_journal_of_that_worker_alone(vsm: Running) -> None:
    assert "[1, 1, 1, 1]" in call(vsm, "asks", "act", mode="refused")
    expected = {"ptrace": 3, "bpf": 1}
    seen = wait_until(vsm, lambda seen: seen["asks"]["refused_calls"] == expected)
    assert seen["neighbour"]["refused_calls"] == {}
    assert "refused by the system-call filter calls='ptrace 3, bpf 1' worker=asks" in vsm.log()
    done = vsm.vsm("events", "--kind", "worker.calls_refused", "--worker", "asks", "--json")
    assert '"ptrace"' in done.stdout
    assert "REFUSED SYSTEM CALL" in vsm.vsm("status", "asks").stdout


def test_a_profile_can_leave_the_counting_out(vsm: Running) -> None:
    assert "[1, 1, 1, 1]" in call(vsm, "quiet", "act", mode="refused")
    quiet = rows(vsm)["quiet"]
    assert quiet["refused_calls"] == {}
    seccomp_layer = next(one for one in quiet["layers"] if one["name"] == "seccomp")
    assert "counted" not in seccomp_layer["detail"]


def test_a_flood_of_refused_calls_slows_down_the_one_who_asks_alone(vsm: Running) -> None:
    began_s, earlier = time.monotonic(), rows(vsm)["asks"]["refused_calls"].get("bpf", 0)
    assert "begun" in call(vsm, "asks", "act", mode="refused-flood")
    wait_until(vsm, lambda seen: seen["asks"]["refused_calls"]["bpf"] > 1500)
    assert "[1, 1, 1, 1]" in call(vsm, "neighbour", "act", mode="refused")
    assert "hi" in call(vsm, "asks", "echo", text="hi")
    before = rows(vsm)["asks"]["refused_calls"]["bpf"]
    # A second's worth in the beginning and what came since, never what it asked for.
    allowed = refusals.MOST_A_SECOND * (1 + time.monotonic() - began_s)
    assert before - earlier <= allowed + 1
    os.kill(rows(vsm)["asks"]["pid"], signal.SIGKILL)
    wait_until(vsm, lambda seen: seen["asks"]["restarts"] == 1 and seen["asks"]["state"] == "ready")
    assert rows(vsm)["asks"]["refused_calls"]["bpf"] >= before
    assert ask(vsm, "status")["ready"]
