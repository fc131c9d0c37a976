"""Lasting workers of a program: `vsm.Supervisor` and `vsm.Pool` on real processes."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vsm
from vsm.library.run import close

BOUND_S = 60.0


@pytest.fixture(autouse=True, scope="module")
def runner() -> Iterator[None]:
    """The runner outlives a test by design; it is this module's."""
    vsm.run(int)
    yield
    close()


def run_bounded(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, BOUND_S))


async def heard(events: AsyncIterator[vsm.WorkerEvent], worker: str, kind: str) -> vsm.WorkerEvent:
    """The next event of that kind."""
    async for event in events:
        if (event.worker, event.kind) == (worker, kind):
            return event
    raise AssertionError(f"no {kind} of {worker}")


def open_pipes() -> int:
    """How many pipes' ends this process holds."""
    folder = Path("/proc/self/fd")
    return sum(str(fd.readlink()).startswith("pipe:") for fd in folder.iterdir() if fd.is_symlink())


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


# -- pool ------------------------------------------------------------------------------------------


def work(what: object) -> object:
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            time.sleep(600)
        case "memory":
            bytearray(900 << 20)
        case "raise":
            raise KeyError("none of these")
        case "chroot":
            os.chroot("/")
        case "set":
            return {1}
        case "leave":
            sys.exit(3)
        case "end":
            os._exit(4)
        case "array":
            return np.arange(6).reshape(2, 3)
    return what


ENDS = [
    ("kill", "signal", "SIGKILL"),
    ("raise", "exit", "KeyError: 'none of these'"),
    ("memory", "memory", "emory"),
    ("chroot", "violation", "not permitted"),
    ("set", "refused", "neither JSON"),
    ("leave", "exit", "SystemExit: 3"),
    ("end", "exit", "exit status 4"),
]


def test_a_pool_goes_on_after_every_kind_of_failed_call() -> None:
    async def main() -> None:
        async with vsm.Pool(work, size=2, limits={"memory_bytes": 256 << 20}) as pool:
            for what, cause, says in ENDS:
                reply = await pool.call(what)
                assert (reply.cause, reply.value) == (cause, None), reply
                assert says in reply.error
                with pytest.raises(vsm.RunError, match=r"vsm\.Pool"):
                    reply.check()
                replies = await asyncio.gather(*(pool.call(n) for n in range(4)))
                assert [reply.check() for reply in replies] == [0, 1, 2, 3]

    run_bounded(main())


def test_pool_values_are_json_bytes_and_arrays() -> None:
    async def main() -> None:
        async with vsm.Pool(work, size=1) as pool:
            assert (await pool.call({"a": [1, None]})).check() == {"a": [1, None]}
            assert (await pool.call(b"\x00\xff")).check() == b"\x00\xff"
            assert np.array_equal((await pool.call("array")).check(), [[0, 1, 2], [3, 4, 5]])

    run_bounded(main())


def test_a_pool_survives_sigkills_of_its_workers_from_outside() -> None:
    async def main() -> None:
        async with vsm.Pool(work, size=2) as pool:
            events = pool.events()
            for round_ in range(6):
                pid, name = next((pid, name) for name, pid in pool.pids.items())
                os.kill(pid, signal.SIGKILL)
                died = await heard(events, name, "died")
                assert (died.cause, died.reason) == ("signal", "it was killed by SIGKILL")
                await heard(events, name, "restarted")
                assert (await pool.call(round_)).check() == round_

    run_bounded(main())


def test_a_call_over_its_time_is_killed_and_one_that_waits_is_told() -> None:
    async def main() -> None:
        async with vsm.Pool(work, size=1) as pool:
            late = asyncio.create_task(pool.call("sleep", timeout_s=1.0))
            await asyncio.sleep(0)
            waits = await pool.call(1, timeout_s=0.2)
            assert (waits.cause, waits.worker) == ("timeout", "")
            assert ((await late).cause, late.result().error) == ("timeout", "its time was over")
            assert (await pool.call(2)).check() == 2

    run_bounded(main())


def test_a_cancelled_call_kills_its_worker_and_no_other() -> None:
    async def main() -> None:
        async with vsm.Pool(work, size=1) as pool:
            events = pool.events()
            call = asyncio.create_task(pool.call("sleep"))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (await heard(events, "pool-1", "died")).cause == "timeout"
            assert (await pool.call(1)).check() == 1

    run_bounded(main())


def test_calls_run_side_by_side_and_each_gets_its_own_answer() -> None:
    async def main() -> None:
        async with vsm.Pool(lambda n: [n, os.getpid()], size=3) as pool:
            replies = await asyncio.gather(*(pool.call(n) for n in range(60)))
            assert [reply.value[0] for reply in replies] == list(range(60))
            assert {reply.worker for reply in replies} == {"pool-1", "pool-2", "pool-3"}

    run_bounded(main())


def test_pools_live_in_loops_of_other_threads_too() -> None:
    found: dict[int, list[object]] = {}

    async def main(number: int) -> None:
        async with vsm.Pool(work, size=1) as pool:
            found[number] = [(await pool.call([number, n])).value for n in range(5)]

    threads = [threading.Thread(target=run_bounded, args=(main(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    assert vsm.run(pow, 2, 5).check() == 32
    for thread in threads:
        thread.join()
    assert found == {number: [[number, n] for n in range(5)] for number in range(3)}


def _channel() -> socket.socket:
    """The worker's end of its channel to the program."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and _is_packet_socket(fd):
            return socket.socket(fileno=os.dup(fd))
    raise AssertionError("no channel")


def _is_packet_socket(fd: int) -> bool:
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
    if not is_socket:
        return False
    with socket.socket(fileno=os.dup(fd)) as found:
        return found.type == socket.SOCK_SEQPACKET


def speak(what: str) -> str:
    if what == "honest":
        return what
    head = {"kind": "error", "text": "forged", "denied": "", "call": 10**6}
    message = b"[" if what == "garbage" else json.dumps(head).encode()
    _channel().send(message)
    time.sleep(600)
    return ""


@pytest.mark.parametrize(("what", "cause"), [("garbage", "refused"), ("other call", "signal")])
def test_what_is_no_answer_to_the_call_costs_the_worker_its_life(what: str, cause: str) -> None:
    async def main() -> None:
        async with vsm.Pool(speak, size=1) as pool:
            events = pool.events()
            reply = await pool.call(what)
            assert (reply.cause, reply.value) == (cause, None)
            await heard(events, "pool-1", "died")
            assert (await pool.call("honest")).check() == "honest"

    run_bounded(main())


def speak_later(what: str) -> str:
    def forge() -> None:
        time.sleep(0.1)
        _channel().send(json.dumps({"kind": "start", "text": "forged"}).encode())

    if what == "forge":
        threading.Thread(target=forge).start()
    return what


def test_a_worker_that_has_served_cannot_say_that_it_cannot_begin() -> None:
    """It would never be started again."""

    async def main() -> None:
        async with vsm.Pool(speak_later, size=1) as pool:
            assert (await pool.call("forge")).ok
            await heard(pool.events(), "pool-1", "died")
            assert (await pool.call("honest")).check() == "honest"

    run_bounded(main())


def test_a_pool_whose_function_cannot_be_loaded_says_so() -> None:
    module = type(sys)("vsm_test_absent_module")
    exec("class Absent:\n    def __call__(self): pass", vars(module))
    sys.modules[module.__name__] = module
    vars(module)["Absent"].__module__ = module.__name__

    async def main() -> None:
        with pytest.raises(vsm.ConfigurationError, match="cannot begin"):
            await vsm.Pool(vars(module)["Absent"]()).__aenter__()
        with pytest.raises(vsm.VsmError, match="no worker runs"):
            await vsm.Pool(work).call(1)

    try:
        run_bounded(main())
    finally:
        del sys.modules[module.__name__]


def test_a_pool_survives_the_death_of_the_runner() -> None:
    """In a program of its own, because the runner is this module's."""
    text = """
import asyncio, os, signal, time, vsm
from vsm.library import runner_link
async def main():
    async with vsm.Pool(lambda s: time.sleep(s), size=1) as pool:
        call = asyncio.create_task(pool.call(600))
        await asyncio.sleep(0)
        os.kill(runner_link.runner_pid(), signal.SIGKILL)
        reply = await call
        print(reply.cause, "the runner died" in reply.error, (await pool.call(0)).cause)
    print([event.kind async for event in pool.events()])
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    printed = "exit True ok\n['started', 'died', 'restarted', 'stopped']\n"
    assert (done.stdout, done.stderr) == (printed, "")


def test_what_is_given_up_unheard_ends_nothing_else() -> None:
    """The runner's word that it began is unread when its socket closes: a reset, and no end."""
    text = """
import select, vsm
from vsm.library import runner_link
from vsm.library.exchange import Exchange
from vsm.library.order import Request, prepare
sleep = Request(
    ("/bin/sleep", "600"), (), "integration", None, (), (), None, None, None, 1, lasting=True
)
given_up = Exchange(*prepare(sleep), b"", output_bytes=1, most_bytes=1)
pid = runner_link.runner_pid()
select.select(given_up.fds[:1], [], [])
given_up.close()
print(vsm.run(["/bin/true"]).cause, runner_link.runner_pid() == pid)
"""
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("ok True\n", "")


def test_the_landlocked_tier_serves_pools_and_pipes_too() -> None:
    text = """
import asyncio, os, sys
sys.path += sys.argv[1:]
import vsm
def work(what):
    return os.kill(os.getpid(), 9) if what == "kill" else what
async def main():
    async with vsm.Pool(work, size=1, tier="landlocked") as pool:
        print([(await pool.call(what)).cause for what in (1, "kill", 2)])
    cat = vsm.WorkerSpec("cat", ["/usr/bin/cat"], tier="landlocked")
    async with vsm.Supervisor([cat]) as supervisor:
        reader, writer = await supervisor["cat"].connect()
        writer.write(b"hello")
        writer.close()
        print(await reader.read())
asyncio.run(main())
"""
    # Another uid, as root gives one, must be able to reach the interpreter.
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    program = system if os.path.exists(system) else sys.executable
    done = subprocess.run(
        [program, "-c", text, *sys.path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "['ok', 'signal', 'ok']\nb'hello'\n", done.stderr


# -- supervisor ------------------------------------------------------------------------------------


def shout(suffix: str) -> None:
    for line in sys.stdin:
        sys.stdout.write(line.strip().upper() + suffix + "\n")
        sys.stdout.flush()


CAT = vsm.WorkerSpec("cat", ["/usr/bin/cat"], profile="integration")


async def ask(worker: vsm.Worker, text: bytes) -> bytes:
    reader, writer = await worker.connect()
    writer.write(text)
    return await reader.readline()


def test_workers_have_pipes_layers_and_a_new_life_after_a_sigkill() -> None:
    async def main() -> None:
        specs = [CAT, vsm.WorkerSpec("shout", shout, ("!",))]
        async with vsm.Supervisor(specs) as supervisor:
            events = supervisor.events()
            for name, line in (("cat", b"hello\n"), ("shout", b"HELLO!\n")):
                worker = supervisor[name]
                assert await ask(worker, b"hello\n") == line
                states = {layer["name"]: layer["state"] for layer in worker.layers}
                assert (states["seccomp"], states["landlock"]) == ("in force", "in force")
                with pytest.raises(vsm.VsmError, match="taken already"):
                    await worker.connect()
            for name, line in (("cat", b"again\n"), ("shout", b"AGAIN!\n")):
                os.kill(supervisor[name].pid, signal.SIGKILL)
                died = await heard(events, name, "died")
                assert (died.incarnation, died.cause) == (1, "signal")
                assert (await heard(events, name, "restarted")).incarnation == 2
                assert await ask(supervisor[name], b"again\n") == line
            assert [worker.restarts for worker in supervisor] == [1, 1]
        kinds = [(event.worker, event.kind) async for event in supervisor.events()]
        assert kinds[-2:] == [("cat", "stopped"), ("shout", "stopped")] or kinds[-2:] == [
            ("shout", "stopped"),
            ("cat", "stopped"),
        ]

    run_bounded(main())


def test_a_worker_that_nobody_connected_to_has_its_stdin_closed_when_it_is_to_end() -> None:
    patient = ["/bin/sh", "-c", "trap '' TERM; echo ready >&2; cat"]

    async def main() -> None:
        async with vsm.Supervisor([vsm.WorkerSpec("w", patient, stop_timeout_s=30)]) as supervisor:
            while supervisor["w"].stderr != b"ready\n":  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.01)
            await asyncio.wait_for(supervisor["w"].stop(), 20)
            with pytest.raises(vsm.VsmError, match="does not run"):
                await supervisor["w"].connect()
            assert (await heard(supervisor.events(), "w", "stopped")).cause == "ok"

    run_bounded(main())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_pipes_are_closed_where_whoever_connects_is_cancelled(steps: int) -> None:
    async def main() -> None:
        spec = vsm.WorkerSpec("cat", ["/usr/bin/cat"], restart="temporary")
        async with vsm.Supervisor([spec]) as supervisor:
            connecting = asyncio.create_task(supervisor["cat"]._process.connect())  # type: ignore[union-attr]
            before = open_pipes()
            for _ in range(steps):
                await asyncio.sleep(0)
            assert connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            await heard(supervisor.events(), "cat", "died")
            assert open_pipes() <= before - 2

    run_bounded(main())


def test_a_worker_that_keeps_failing_is_given_up_and_can_be_started_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "fails").touch()

    def fail() -> None:
        if os.path.exists(tmp_path / "fails"):
            raise ValueError("as always")
        time.sleep(600)

    spec = vsm.WorkerSpec(
        "fails", fail, read=[tmp_path], intensity=2, backoff_initial_s=0.01, backoff_max_s=0.02
    )

    async def main() -> None:
        async with vsm.Supervisor([CAT, spec]) as supervisor:
            events = supervisor.events()
            gave_up = await heard(events, "fails", "gave_up")
            assert (gave_up.incarnation, "as always" in gave_up.reason) == (3, True)
            with pytest.raises(vsm.VsmError, match="as always"):
                await supervisor["fails"].wait_ready()
            assert supervisor["cat"].phase == "ready"
            (tmp_path / "fails").unlink()
            await supervisor["fails"].start()
            await supervisor["fails"].stop()
            assert supervisor["fails"].phase == "stopped"

    run_bounded(main())


def test_last_words_are_in_the_event_and_in_the_error() -> None:
    text = "echo the port is taken >&2; exit 3"
    spec = vsm.WorkerSpec("words", ["/bin/sh", "-c", text], intensity=0)
    supervisor = vsm.Supervisor([spec])

    async def main() -> None:
        with suppress(vsm.VsmError):  # it may have been given up already
            await supervisor.__aenter__()
        await heard(supervisor.events(), "words", "gave_up")
        with pytest.raises(vsm.VsmError, match=r"exit status 3\. It wrote 'the port is taken'"):
            await supervisor["words"].wait_ready()
        await supervisor.__aexit__(None, None, None)
        died = await heard(supervisor.events(), "words", "died")
        assert (died.cause, died.stderr) == ("exit", b"the port is taken\n")

    run_bounded(main())


def test_a_workers_secret_is_in_no_text_about_it() -> None:
    secret = "s3cr3t-" + os.urandom(8).hex()
    argv = ["/bin/sh", "-c", 'test -n "$KEY" && read line && exit 3']
    spec = vsm.WorkerSpec("keeper", argv, env={"KEY": secret}, intensity=0)
    supervisor = vsm.Supervisor([spec])

    async def main() -> None:
        async with supervisor:
            _, stdin = await supervisor["keeper"].connect()
            pid = supervisor["keeper"].pid
            told = [repr(spec), repr(supervisor["keeper"]), str(supervisor["keeper"].layers)]
            told.append(command_line(pid))
            stdin.write(b"end\n")
            gave_up = await heard(supervisor.events(), "keeper", "gave_up")
            told.append(repr(gave_up))
            assert "exit status 3" in gave_up.reason  # it had the secret
            assert secret not in "".join(told)

    run_bounded(main())


def test_a_supervisor_is_used_once_and_commands_need_it_to_run() -> None:
    async def main() -> None:
        supervisor = vsm.Supervisor([CAT])
        with pytest.raises(vsm.VsmError, match="does not run"):
            await supervisor["cat"].start()
        async with supervisor:
            pass
        with pytest.raises(vsm.VsmError, match="does not run"):
            await supervisor["cat"].start()
        with pytest.raises(vsm.VsmError, match="entered before"):
            await supervisor.__aenter__()

    run_bounded(main())


def test_a_function_that_exits_in_order_is_not_started_again_where_only_failures_are() -> None:
    def leave() -> None:
        sys.stdin.readline()
        sys.exit()

    async def main() -> None:
        spec = vsm.WorkerSpec("leaves", leave, restart="transient")
        async with vsm.Supervisor([spec]) as supervisor:
            _, writer = await supervisor["leaves"].connect()
            writer.close()
            assert (await heard(supervisor.events(), "leaves", "died")).cause == "ok"
            await supervisor["leaves"].wait_ready()
            assert supervisor["leaves"].phase == "stopped"

    run_bounded(main())


@pytest.mark.parametrize(
    ("restart", "status", "ends"),
    [
        ("temporary", 1, ["started", "died"]),
        ("transient", 0, ["started", "died"]),
        ("permanent", 0, ["started", "died", "restarted", "died", "gave_up"]),
    ],
)
def test_restart_types(restart: Any, status: int, ends: list[str]) -> None:
    spec = vsm.WorkerSpec(
        "ends", ["/bin/sh", "-c", f"read x; exit {status}"], restart=restart, intensity=1
    )

    async def main() -> None:
        async with vsm.Supervisor([spec]) as supervisor:
            events = supervisor.events()
            for _ in range(ends.count("died")):
                _, writer = await supervisor["ends"].connect()
                writer.close()
                died = await heard(events, "ends", "died")
                assert died.cause == ("exit" if status else "ok")
        assert [event.kind async for event in supervisor.events()] == ends

    run_bounded(main())


@pytest.mark.parametrize(
    ("strategy", "restarted"),
    [("one_for_one", {"b"}), ("rest_for_one", {"b", "c"}), ("one_for_all", {"a", "b", "c"})],
)
def test_strategies(strategy: Any, restarted: set[str]) -> None:
    specs = [vsm.WorkerSpec(name, ["/usr/bin/cat"]) for name in "abc"]

    async def main() -> None:
        async with vsm.Supervisor(specs, strategy=strategy) as supervisor:
            events = supervisor.events()
            os.kill(supervisor["b"].pid, signal.SIGKILL)
            for name in sorted(restarted):
                await heard(supervisor.events(), name, "restarted")
            assert {worker.name for worker in supervisor if worker.restarts} == restarted
            await heard(events, "b", "restarted")

    run_bounded(main())


WRONG: list[tuple[Callable[[], vsm.Supervisor], type[vsm.VsmError], str]] = [
    (lambda: vsm.Supervisor([CAT, CAT]), vsm.ConfigurationError, "two of one name"),
    (lambda: vsm.Supervisor([]), vsm.ConfigurationError, "no workers"),
    (
        lambda: vsm.Supervisor([CAT], strategy="all"),  # type: ignore[arg-type]
        vsm.ConfigurationError,
        "no such strategy",
    ),
    (
        lambda: vsm.Supervisor([vsm.WorkerSpec("x", ["/usr/bin/absent"])]),
        vsm.VsmError,
        "No such file",
    ),
    (
        lambda: vsm.Supervisor([CAT, vsm.WorkerSpec("x", ["/usr/bin/cat"], profile="absent")]),
        vsm.ConfigurationError,
        "absent",
    ),
    (
        lambda: vsm.Supervisor([CAT, vsm.WorkerSpec("x", ["/usr/bin/cat"], cwd="/absent")]),
        vsm.VsmError,
        "/absent",
    ),
]


@pytest.mark.parametrize(("make", "kind", "says"), WRONG)
def test_a_wrong_specification_is_an_error_and_nothing_runs(
    make: Callable[[], vsm.Supervisor], kind: type[vsm.VsmError], says: str
) -> None:
    async def main() -> None:
        with pytest.raises(kind, match=says):
            async with make():
                raise AssertionError("it began")

    run_bounded(main())


def test_more_workers_than_places_is_an_error_and_runs_find_a_place() -> None:
    specs = [
        vsm.WorkerSpec(f"w{n}", ["/usr/bin/cat"], intensity=0, backoff_max_s=0.01)
        for n in range(25)
    ]

    async def main() -> None:
        with pytest.raises(vsm.VsmError, match="24 workers run already"):
            await vsm.Supervisor(specs).__aenter__()
        async with vsm.Supervisor(specs[:24]):
            assert (await vsm.run_async(pow, 2, 3)).check() == 8

    run_bounded(main())
