import asyncio
import ctypes
import mmap
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

import vsm
from vsm.confinement.probe import probe_host
from vsm.core.egress import Rules
from vsm.library import profile_cache, runner_egress, runner_link
from vsm.library.run import close

FACTOR = 3
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def runner() -> Iterator[None]:
    """The runner outlives a test by design; it is this module's."""
    vsm.run(int)
    yield
    close()


def scaled(value: int) -> int:
    return value * FACTOR


def twice(value: int) -> int:
    return scaled(value) + scaled(value)


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, "ü", [1, {"a": None}], b"\x00\xff", b"", 10**30]
)
def test_values_come_back(value: object) -> None:
    result = vsm.run(lambda: value)
    assert (result.value, result.cause, result.status) == (value, "ok", 0)


@pytest.mark.parametrize("dtype", ["?", "u1", "<i4", ">i8", "f2", "f8", "c16"])
def test_an_array_comes_back_as_it_was_and_cannot_be_written(dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    result = vsm.run(lambda: np.arange(12).reshape(3, 4).astype(dtype).T)
    assert result.value.dtype == array.dtype
    assert np.array_equal(result.value, array.T)
    with pytest.raises(ValueError, match="read-only"):
        result.value[0, 0] = 1


@pytest.mark.parametrize("shape", [(0, 3), (), (1024, 1024)])
def test_arrays_of_every_size_come_back(shape: tuple[int, ...]) -> None:
    value = vsm.run(lambda: np.ones(shape)).value
    assert (value.shape, value.sum()) == (shape, np.ones(shape).sum())


def test_functions_of_a_module_that_the_worker_cannot_see_travel_with_what_they_use() -> None:
    assert vsm.run(twice, 7).check() == 42


def test_a_value_that_is_no_json_is_refused_and_says_so() -> None:
    result = vsm.run(lambda: {1, 2})
    assert (result.cause, result.value) == ("refused", None)
    assert "neither JSON, bytes nor an array" in result.error
    with pytest.raises(vsm.RunError, match="neither JSON"):
        result.check()


def test_an_array_of_objects_is_refused() -> None:
    result = vsm.run(lambda: np.array([object()]))
    assert (result.cause, "not of numbers" in result.error) == ("refused", True)


def test_a_value_larger_than_allowed_is_refused() -> None:
    result = vsm.run(lambda: b"x" * 1001, value_bytes=1000)
    assert (result.cause, "1001 bytes" in result.error) == ("refused", True)


def test_what_cannot_travel_is_an_error_before_anything_runs() -> None:
    with pytest.raises(vsm.VsmError, match="cannot travel"):
        vsm.run(lambda lock: lock, select.epoll())


# -- a worker that lies ----------------------------------------------------------------------------


def _forge(head: bytes, content: bytes, *, seal: bool) -> None:
    """Take the channel that the worker's own code would use, and say something else."""
    import fcntl

    channel = next(fd for fd in range(3, 64) if _is_socket(fd))
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    if seal:
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    with socket.socket(fileno=channel) as link:
        socket.send_fds(link, [head], [fd])
    os._exit(0)


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


ARRAY = b'"form": "array", "kind": "value"'
FORGERIES = [
    (b'{"kind": "value", "form": "bytes", "size": 4}', b"abcd", False, "not sealed"),
    (b'{"kind": "value", "form": "bytes", "size": 5}', b"abcd", True, "another size"),
    (b'{"kind": "value", "form": "bytes", "size": 1e9}', b"abcd", True, "claims"),
    (b'{"kind": "value", "form": "bytes", "size": 99999999999}', b"abcd", True, "claims"),
    (b'{"kind": "value", "form": "pickle", "size": 4}', b"abcd", True, "no known form"),
    (b'{"kind": "value", "form": "json", "size": 4}', b"[[[[", True, "no JSON"),
    (b'{"size": 8, "dtype": "|O8", "shape": [1], ' + ARRAY + b"}", b"12345678", True, "numbers"),
    (b'{"size": 8, "dtype": "<f8", "shape": [2], ' + ARRAY + b"}", b"12345678", True, "size"),
    (b'{"size": 8, "dtype": "<f8", "shape": [-1], ' + ARRAY + b"}", b"12345678", True, "shape"),
    (b"[" * 4000, b"", True, "JSON"),
    (b"{}", b"", True, "no value"),
    (b"x" * 40000, b"", True, "too long"),
]


@pytest.mark.parametrize(("head", "content", "seal", "says"), FORGERIES)
def test_a_forged_answer_is_refused(head: bytes, content: bytes, seal: bool, says: str) -> None:
    result = vsm.run(lambda: _forge(head, content, seal=seal))
    assert (result.cause, result.value) == ("refused", None)
    assert says in result.error


def test_an_honest_forgery_is_taken() -> None:
    """The control: what the cases above change is all that is wrong with them."""
    head = b'{"kind": "value", "form": "bytes", "size": 4}'
    assert vsm.run(lambda: _forge(head, b"abcd", seal=True)).value == b"abcd"


# -- ends ------------------------------------------------------------------------------------------


def test_an_exception_is_an_exit_with_its_words_and_its_traceback() -> None:
    result = vsm.run(lambda: 1 / 0)
    assert (result.cause, result.status) == ("exit", 1)
    assert result.error == "ZeroDivisionError: division by zero"
    assert b"Traceback" in result.stderr


def test_words_of_an_exception_are_its_own_and_not_its_notes() -> None:
    def fail() -> None:
        error = ValueError("too large")
        error.add_note("see the manual")
        raise error

    result = vsm.run(fail)
    assert result.error == "ValueError: too large"
    assert b"see the manual" in result.stderr


@pytest.mark.parametrize("stderr", ["closed", "none"])
def test_an_error_is_told_whatever_the_work_made_of_its_stderr(stderr: str) -> None:
    def fail() -> None:
        if stderr == "closed":
            sys.stderr.close()
        else:
            sys.stdout = sys.stderr = None
        raise ValueError("too large")

    result = vsm.run(fail)
    assert (result.cause, result.status, result.error) == ("exit", 1, "ValueError: too large")


def test_an_exit_status_is_the_workers() -> None:
    assert vsm.run(["/bin/sh", "-c", "exit 7"]).status == 7
    assert vsm.run(lambda: sys.exit(9)).status == 9
    result = vsm.run(lambda: sys.exit(0))
    assert (result.cause, result.status, result.error) == ("exit", 0, "SystemExit: 0")


def test_a_signal_is_named() -> None:
    result = vsm.run(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert (result.cause, result.signal, result.status) == ("signal", signal.SIGSEGV, None)


def test_a_run_over_its_time_is_killed() -> None:
    started = time.monotonic()
    result = vsm.run(lambda: threading.Event().wait(), timeout_s=0.3)
    assert (result.cause, result.error) == ("timeout", "its time was over")
    assert time.monotonic() - started < 20


def test_a_run_over_the_wall_time_of_its_limits_is_over_its_time() -> None:
    result = vsm.run(["/bin/sleep", "60"], limits={"wall_time_s": 1})
    assert (result.cause, result.error) == ("timeout", "its time was over")


def test_wall_time_is_not_used_up_before_the_run_begins() -> None:
    """By a worker that was confined ahead and waited for its run."""
    for slept_s in (0, 1.2):
        result = vsm.run(time.sleep, slept_s, limits={"wall_time_s": 2})
        assert result.cause == "ok", result.error
        time.sleep(1.2 - slept_s)


def test_times_may_be_longer_than_poll_can_wait() -> None:
    month_s = 30 * 86400
    assert vsm.run(int, timeout_s=month_s, limits={"wall_time_s": month_s}).cause == "ok"
    assert vsm.run(int, timeout_s=float("inf")).cause == "ok"


def test_output_survives_a_time_out() -> None:
    def talk() -> None:
        os.write(1, b"so far\n")
        threading.Event().wait()

    assert vsm.run(talk, timeout_s=2.0).stdout == b"so far\n"  # it has the time to begin


def test_memory_over_the_limit_is_a_memory_end() -> None:
    result = vsm.run(lambda: len(bytearray(400 << 20)), limits={"memory_bytes": 96 << 20})
    assert (result.cause, result.value) == ("memory", None)


def test_a_refused_system_call_is_a_violation() -> None:
    result = vsm.run(lambda: os.chroot("/"))
    assert (result.cause, result.error.split(":")[0]) == ("violation", "PermissionError")


def _write(path: str) -> None:
    with open(path, "w") as file:
        file.write("x")


def _bind(kind: int, family: int = socket.AF_INET) -> None:
    socket.socket(family, kind).close()


@pytest.mark.parametrize(
    "refused",
    [
        lambda: _write("/usr/bin/vsm-test"),  # read-only
        lambda: _write("/vsm-test"),
        lambda: _bind(socket.SOCK_RAW),
        lambda: _bind(socket.SOCK_RAW, socket.AF_PACKET),
        lambda: os.nice(-1),
    ],
)
def test_a_refused_file_or_socket_or_right_is_a_violation(refused: Callable[[], None]) -> None:
    result = vsm.run(refused)
    assert (result.cause, result.value) == ("violation", None), result


def test_refused_system_calls_are_counted_by_name(
    require: Callable[[str, bool, str], None],
) -> None:
    """By the kernel: a worker that hides its exception hides nothing."""
    require("seccomp notification", probe_host().seccomp_notification, "no listener here")

    def hide() -> str:
        for _ in range(3):
            with suppress(OSError):
                os.chroot("/")
        return "nothing to see"

    result = vsm.run(hide)
    assert (result.check(), result.refused_calls) == ("nothing to see", {"chroot": 3})
    for tier in ("namespaced", "landlocked"):
        if tier == probe_host().tier or os.access("/root", os.X_OK) is False:
            assert vsm.run(hide, tier=tier).refused_calls == {"chroot": 3}
    assert vsm.run(["/usr/sbin/chroot", "/", "/bin/true"]).refused_calls["chroot"] == 1
    assert vsm.run(pow, 2, 3).refused_calls == {}  # the control


def test_node_makes_no_refused_call_when_it_starts(
    require: Callable[[str, bool, str], None],
) -> None:
    node = shutil.which("node") or ""
    require("node", node != "", "not installed")
    result = vsm.run([node, "-e", "console.log(1)"], profile="node-server")
    assert (result.stdout, result.refused_calls) == (b"1\n", {})


def test_the_controls_of_these_are_no_violation(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert vsm.run(_write, str(tmp_path / "file"), write=[tmp_path]).ok
    assert vsm.run(_write, "/tmp/file").ok  # its own
    assert vsm.run(_bind, socket.SOCK_STREAM).ok
    assert vsm.run(_write, "/absent/file").cause == "exit"


def test_words_of_a_worker_are_nothing_that_a_terminal_obeys() -> None:
    def fail() -> None:
        raise ValueError("\x1b[2J\u202egone\x00" + "ü" * 3000)

    error = vsm.run(fail).error
    assert error.startswith("ValueError: \ufffd[2J\ufffdgone\ufffdü")
    assert len(error) == 2000


def _foreign_call() -> None:
    """getpid by the 32-bit entry, which every filter here answers with death."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(ctypes.c_long)(address)()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the 32-bit entry is x86's")
def test_a_foreign_system_call_kills_and_is_a_violation() -> None:
    result = vsm.run(_foreign_call)
    assert (result.cause, result.signal) == ("violation", signal.SIGSYS)


def test_output_is_bounded() -> None:
    result = vsm.run(lambda: os.write(1, b"x" * 50_000), output_bytes=1000)
    assert (len(result.stdout), result.truncated, result.value) == (1000, True, 50_000)


# -- confinement -----------------------------------------------------------------------------------


def test_the_layers_in_force_are_said_and_hold(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    result = vsm.run(lambda: os.path.exists(str(secret)))
    assert result.value is False
    assert {layer["name"]: layer["state"] for layer in result.layers}["seccomp"] == "in force"


def test_read_and_write_open_what_they_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_text("7")
    out.mkdir()
    out.chmod(0o777)

    def work() -> int:
        (out / "result").write_text(source.read_text())
        return int(source.read_text())

    assert vsm.run(work, read=[source], write=[out]).check() == 7
    assert (out / "result").read_text() == "7"


def test_a_replaced_file_is_seen_by_the_next_run(tmp_path: Path) -> None:
    """A worker confined ahead of its run must not show what was there before."""
    tmp_path.chmod(0o755)
    source = tmp_path / "source"
    for text in ("1", "2", "3"):
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.rename(source)
        assert vsm.run(source.read_text, read=[source]).value == text


@pytest.mark.parametrize("cwd", [True, False])
def test_a_folder_made_anew_is_the_next_runs(cwd: bool, tmp_path: Path) -> None:
    """Nor must it fail of what was not there in between, while a worker was confined ahead."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "job"
    for number in range(20):
        folder.mkdir()
        (folder / "input").write_text(f"{number}")
        if cwd:
            found = vsm.run(Path("input").read_text, read=[tmp_path], cwd=str(folder))
        else:
            found = vsm.run((folder / "input").read_text, read=[folder])
        assert found.value == f"{number}"
        shutil.rmtree(folder)


def test_runs_share_no_state() -> None:
    def leave() -> None:
        os.environ["LEFT"] = "x"
        Path("/tmp/left").write_text("x")
        sys.modules["left"] = sys

    vsm.run(leave).check()
    seen = vsm.run(
        lambda: [os.environ.get("LEFT"), os.path.exists("/tmp/left"), "left" in sys.modules]
    )
    assert seen.value == [None, False, False]


def test_random_numbers_differ_between_runs() -> None:
    draws = {vsm.run(lambda: int(np.random.randint(1 << 60))).value for _ in range(4)}  # noqa: NPY002
    assert len(draws) == 4


def test_an_argv_runs_with_its_input_and_the_programs_environment_stays_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OF_THE_PROGRAM", "x")
    result = vsm.run(["/bin/sh", "-c", "cat; env"], stdin=b"in\n", env={"OWN": "1"})
    lines = result.stdout.splitlines()
    assert lines[0] == b"in"
    assert b"OWN=1" in lines
    assert not any(line.startswith(b"OF_THE_PROGRAM") for line in lines)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: vsm.run("ls -l"), "an argv"),
        (lambda: vsm.run([]), "an argv"),
        (lambda: vsm.run(["no-such-program"]), "no executable"),
        (lambda: vsm.run(int, profile="nosuch"), "nosuch"),
        (lambda: vsm.run(int, profile="system1"), "vsm's own"),
        (lambda: vsm.run(int, limits={"memory": 1}), "no such limit"),
        (lambda: vsm.run(int, limits={"processes": -1}), "processes"),
        (lambda: vsm.run(int, read=["/nosuch"]), "does not exist"),
        (lambda: vsm.run(int, read="/etc"), "a list of paths"),
        (lambda: vsm.run(int, env={"A=B": "x"}), "no variable"),
        (lambda: vsm.run(int, cwd="/nosuch"), "cannot enter"),
        (lambda: vsm.run(int, cwd=5), "expected text"),  # type: ignore[arg-type]
        (lambda: vsm.run(int, tier="none"), "no such tier"),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_so(call: Callable[[], object], says: str) -> None:
    with pytest.raises(vsm.VsmError, match=says):
        call()


def test_a_path_that_is_no_text_is_an_error_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    with pytest.raises(vsm.ConfigurationError, match="not UTF-8"):
        vsm.run(int, read=[folder])


def test_an_unmet_layer_stops_the_run(tmp_path: Path) -> None:
    """Fails closed: a tier that the profile does not accept is no weaker run."""
    profile = tmp_path / "strict.toml"
    profile.write_text('extends = "integration"\ntier = "namespaced"\n')
    with pytest.raises(vsm.ConfinementError, match="namespaced tier"):
        vsm.run(int, profile=str(profile), tier="landlocked")


def test_an_edited_profile_counts_from_the_next_run_on(tmp_path: Path) -> None:
    """What was read of a profile is kept only while nothing of it changed."""
    parent, child = tmp_path / "parent.toml", tmp_path / "child.toml"
    parent.write_text('extends = "integration"\n')
    child.write_text('extends = "./parent.toml"\n')
    past = time.time() - 60
    for _ in range(3):
        assert vsm.run(_count_variables, profile=str(child)).check() == 0
        os.utime(parent, (past, past))
    parent.write_text('extends = "integration"\n[environment]\nVSM_TEST = "1"\n')
    assert vsm.run(_count_variables, profile=str(child)).check() == 1
    child.write_text('extends = "integration"\n')
    assert vsm.run(_count_variables, profile=str(child)).check() == 0
    child.chmod(0o666)
    with pytest.raises(vsm.ConfigurationError, match="everybody may write it"):
        vsm.run(int, profile=str(child))


def _count_variables() -> int:
    return len([name for name in os.environ if name == "VSM_TEST"])


def test_what_was_read_of_a_profile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text('extends = "integration"\n')
    monkeypatch.setattr(profile_cache, "_SETTLED_NS", -1)
    first = profile_cache.load(str(profile))
    assert profile_cache.load(str(profile)) is first
    monkeypatch.setattr(profile_cache, "_SETTLED_NS", 1 << 62)
    profile.chmod(0o600)
    assert profile_cache.load(str(profile)) is not first  # changed, and too lately to be kept
    assert profile_cache.load(str(profile)) is not profile_cache.load(str(profile))


def test_the_landlocked_tier_runs_callables_too() -> None:
    text = """
import sys
sys.path += sys.argv[1:]
import vsm
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)
result = vsm.run(depth, 800, tier="landlocked")
print(result.check(), result.tier)
"""
    # Another uid, as root gives one, must be able to reach the interpreter.
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    program = system if os.path.exists(system) else sys.executable
    done = subprocess.run(
        [program, "-c", text, *sys.path], capture_output=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.stdout == b"800 landlocked\n", done.stderr


# -- network ---------------------------------------------------------------------------------------


@pytest.fixture
def greeter(require: Callable[[str, bool, str], None]) -> Iterator[int]:
    """The port of a server of our own on loopback that says hello to everybody."""
    require("network namespace", probe_host().tier == "namespaced", "the tier is landlocked")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    with server.accept()[0] as client:
                        client.sendall(b"hello")

        thread = threading.Thread(target=greet)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def fetch(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        return connection.recv(100)


def test_a_proxied_run_reaches_what_its_profile_allows_and_nothing_else(greeter: int) -> None:
    assert fetch(greeter) == b"hello"  # the control
    here, networked = f"127.0.0.1:{greeter}", vsm.Profile.load("networked")
    allowed = networked.extended(network={"allow": [here]})
    result = vsm.run(fetch, greeter, profile=allowed)
    assert result.check() == b"hello"
    assert (result.egress[here]["allowed"], result.egress[here]["received_bytes"]) == (1, 5)
    for profile in (networked.extended(network={"allow": ["127.0.0.1:9"]}), "integration"):
        result = vsm.run(fetch, greeter, profile=profile)
        assert (result.cause, result.value, "refused" in result.error) == ("exit", None, True)


def test_a_killed_egress_process_is_replaced(greeter: int) -> None:
    networked = vsm.Profile.load("networked")
    allowed = networked.extended(network={"allow": [f"127.0.0.1:{greeter}"]})
    for _ in range(3):
        assert vsm.run(fetch, greeter, profile=allowed).check() == b"hello"
        runner = psutil.Process(runner_link.runner_pid())
        (egress,) = [one for one in runner.children() if _name(one) == "vsm-egress"]
        egress.kill()


def test_without_an_egress_process_nobody_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails closed: a worker whose way out cannot be confined is ended and says why."""

    class Worker:
        key, said = "run1", ""
        rules = Rules((), {}, ())
        listeners: tuple[int, ...] = ()

        def cut_off(self, error: vsm.VsmError) -> None:
            self.said = str(error)

    def fail(*_: object) -> None:
        raise OSError(11, "no process")

    monkeypatch.setattr(runner_egress, "EgressLink", fail)
    worker = Worker()
    runner_egress.RunnerEgress(probe_host(), select.poll()).serve(worker)
    assert "no process" in worker.said


# -- programs --------------------------------------------------------------------------------------


def test_threads_run_side_by_side() -> None:
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(vsm.run(scaled, n).value))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(str, results)) == sorted(str(n * 3) for n in range(12))


def test_more_runs_than_places_wait_for_one() -> None:
    async def main() -> list[object]:
        runs = (vsm.run_async(scaled, n) for n in range(40))
        return [result.value for result in await asyncio.gather(*runs)]

    assert asyncio.run(main()) == [n * 3 for n in range(40)]


def test_a_run_whose_time_is_over_before_there_is_a_place_times_out() -> None:
    async def main() -> None:
        runs = [asyncio.ensure_future(vsm.run_async(time.sleep, 600)) for _ in range(30)]
        await asyncio.sleep(0)  # they are ordered first
        late = await vsm.run_async(int, timeout_s=0.2)
        assert (late.cause, late.tier, late.layers) == ("timeout", "", ())
        for run in runs:
            run.cancel()
        await asyncio.wait(runs)

    asyncio.run(main())
    assert vsm.run(int).value == 0


def test_an_event_loop_is_not_blocked_and_a_cancelled_run_is_killed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    os.mkfifo(out / "alive")
    (out / "alive").chmod(0o666)

    def live() -> None:
        held = os.open(out / "alive", os.O_WRONLY)
        os.write(held, b"1")
        threading.Event().wait()

    async def main() -> None:
        fifo = os.open(out / "alive", os.O_RDONLY | os.O_NONBLOCK)
        try:
            task = asyncio.create_task(vsm.run_async(live, write=[out], timeout_s=None))
            while not await _came(fifo):
                assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await _ended(fifo)
        finally:
            os.close(fifo)

    asyncio.run(asyncio.wait_for(main(), 30))


async def _came(fd: int) -> bool:
    await asyncio.sleep(0.01)
    try:
        return os.read(fd, 1) == b"1"
    except BlockingIOError:
        return False


async def _ended(fd: int) -> None:
    """The writer's end of a FIFO closes with its last holder."""
    gone = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_reader(fd, gone.set_result, None)
    await gone
    asyncio.get_running_loop().remove_reader(fd)


def test_run_async_times_out() -> None:
    result = asyncio.run(vsm.run_async(lambda: threading.Event().wait(), timeout_s=0.3))
    assert result.cause == "timeout"


def test_an_interrupted_run_is_killed_and_the_next_one_works() -> None:
    """As ^C in a terminal or in a notebook."""

    class InterruptError(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise InterruptError

    runner = psutil.Process(runner_link.runner_pid())
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(InterruptError):
            vsm.run(["/bin/sleep", "1000"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert vsm.run(pow, 2, 3).check() == 8
    deadline = time.monotonic() + 30
    while "sleep" in _names_below(runner):
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.02)


def _script(text: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=ROOT
    )


def test_a_fork_of_a_program_has_a_runner_of_its_own() -> None:
    text = """
import os, vsm
from vsm.library.runner_link import runner_pid
assert vsm.run(int).ok
ours = runner_pid()
pid = os.fork()
if pid == 0:
    assert runner_pid() == 0
    assert vsm.run(lambda: 5).value == 5
    assert runner_pid() not in (0, ours)
    from vsm.library.run import close
    close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert vsm.run(lambda: 6).value == 6
assert runner_pid() == ours
print("done")
"""
    program = _script(text)
    assert program.communicate(timeout=60)[0] == b"done\n"
    assert program.returncode == 0


def test_a_program_without_stdin_stdout_and_stderr_runs_work() -> None:
    code = "import os, vsm; os._exit(b'Traceback' not in vsm.run(lambda: 1 / 0).stderr)"
    command = f'exec {sys.executable} -c "{code}" <&- >&- 2>&-'
    assert subprocess.run(["/bin/sh", "-c", command], check=False, timeout=60).returncode == 0


def test_a_program_whose_directory_was_removed_runs_work(tmp_path: Path) -> None:
    code = "import os, vsm; os._exit(vsm.run(int).value + vsm.run(['/bin/true']).status)"
    done = subprocess.run(
        ["/bin/sh", "-c", f'rmdir {tmp_path}; exec {sys.executable} -P -c "{code}"'],
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0


def test_a_runner_holds_nothing_that_the_program_inherited() -> None:
    """Such as the lock of `flock 9`, or the pipe of one who waits for the program's end."""
    code = """
import os, vsm
from vsm.library.runner_link import runner_pid
vsm.run(int)
held = [os.stat(f"/proc/{runner_pid()}/fd/{fd}") for fd in os.listdir(f"/proc/{runner_pid()}/fd")]
print(any(os.path.samestat(os.fstat(INHERITED), one) for one in held))
"""
    read_end, write_end = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code.replace("INHERITED", f"{write_end}")],
        pass_fds=[write_end],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(read_end)
    os.close(write_end)
    assert done.stdout == "False\n", done.stderr


def test_a_killed_program_leaves_nothing() -> None:
    """The leak check of every test here looks for processes, groups and directories."""
    text = """
import os, threading, vsm
from vsm.library.runner_link import runner_pid
vsm.run(int)
print(runner_pid(), flush=True)
threading.Thread(target=lambda: vsm.run(["/bin/sleep", "1000"], timeout_s=None)).start()
threading.Thread(target=lambda: vsm.run(["/bin/sleep", "1000"], tier="landlocked")).start()
input()
"""
    program = _script(text)
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    runner = os.pidfd_open(pid)
    try:
        _wait_descendants(pid, "sleep", 2)
        program.kill()
        program.wait()
        assert select.select([runner], [], [], 20)[0], "the runner outlived its program"
    finally:
        os.close(runner)
        program.kill()
        program.communicate()


def _names_below(root: psutil.Process) -> list[str]:
    return [_name(child) for child in root.children(recursive=True)]


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:  # it ended as we looked
        return ""


def _wait_descendants(root: int, name: str, count: int) -> None:
    deadline, names = time.monotonic() + 30, list[str]()
    while time.monotonic() < deadline:
        names = _names_below(psutil.Process(root))
        if names.count(name) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(names)


def test_a_killed_runner_fails_the_run_and_the_next_run_has_another() -> None:
    text = """
import os, signal, sys, threading, time, psutil, vsm
from vsm.library.runner_link import runner_pid
def is_sleep(child):
    try:
        return child.name() == "sleep"
    except psutil.NoSuchProcess:  # it ended as we looked
        return False
def kill():
    runner = psutil.Process(runner_pid())
    while not any(map(is_sleep, runner.children(recursive=True))):
        time.sleep(0.02)
    runner.kill()
vsm.run(int)
threading.Thread(target=kill).start()
try:
    vsm.run(["/bin/sleep", "1000"], timeout_s=60)
except vsm.VsmError as error:
    assert "the runner died" in str(error), error
    print(vsm.run(lambda: 6).value)
"""
    program = _script(text)
    assert program.communicate(timeout=60)[0] == b"6\n"
    assert program.returncode == 0


def test_a_terminated_runner_cleans_up_and_the_next_run_has_another() -> None:
    """A service manager sends SIGTERM to every process at once."""
    text = """
import os, signal, vsm
from vsm.library.runner_link import runner_pid
vsm.run(int)
fd = os.pidfd_open(runner_pid())
signal.pidfd_send_signal(fd, signal.SIGTERM)
import select
assert select.select([fd], [], [], 20)[0]
print(vsm.run(lambda: 6).value)
"""
    program = _script(text)
    assert program.communicate(timeout=60)[0] == b"6\n"


CLOSED = "only root looks into the runner, which forbids it to its own user"


@pytest.mark.skipif(os.geteuid() != 0, reason=CLOSED)
def test_a_hundred_runs_leave_nothing_and_grow_nothing() -> None:
    import psutil

    for _ in range(5):
        vsm.run(scaled, 1).check()
    runner = psutil.Process(runner_link.runner_pid())
    before = len(os.listdir("/proc/self/fd")), runner.num_fds(), runner.memory_info().rss
    for n in range(100):
        assert vsm.run(scaled, n).value == n * 3
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert runner.num_fds() <= before[1] + 12  # spares come and go
    assert runner.memory_info().rss < before[2] + (2 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason=CLOSED)
def test_a_secret_is_in_no_other_process_no_argv_and_no_error() -> None:
    secret = "s3cr3t-" + os.urandom(8).hex()

    def work() -> list[object]:
        import resource

        found = os.environ["TOKEN"]
        cmdline = Path("/proc/self/cmdline").read_bytes().decode()
        return [found, found in cmdline, max(resource.getrlimit(resource.RLIMIT_CORE)) <= 1]

    assert vsm.run(work, env={"TOKEN": secret}).value == [secret, False, True]
    runner = runner_link.runner_pid()
    for file in ("cmdline", "environ"):
        assert secret.encode() not in Path(f"/proc/{runner}/{file}").read_bytes()
    assert not _memory_holds(runner, secret.encode())
    with pytest.raises(vsm.VsmError) as caught:
        vsm.run(["no-such-program"], env={"TOKEN": secret})
    assert secret not in str(caught.value)
    with pytest.raises(vsm.VsmError) as caught:
        vsm.run(int, env={"TOKEN": secret + "\0"})
    assert secret not in str(caught.value)


def _memory_holds(pid: int, needle: bytes) -> bool:
    """The runner's own memory: what it knew, the workers forked from it would know."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            area, modes, *_ = line.split()
            if not modes.startswith("rw"):
                continue
            first, last = (int(part, 16) for part in area.split("-"))
            memory.seek(first)
            try:
                if needle in memory.read(last - first):
                    return True
            except OSError:
                continue
    return False


def test_an_order_that_is_too_long_is_an_error_and_ends_no_other_run(tmp_path: Path) -> None:
    paths = [tmp_path / f"{'x' * 200}{number}" for number in range(700)]
    for path in paths:
        path.touch()
    assert vsm.run(["/bin/true"]).cause == "ok"
    runner = runner_link.runner_pid()
    with pytest.raises(vsm.VsmError, match="exceed 128 KiB") as told:
        vsm.run(["/bin/true"], read=paths)
    assert "fewer paths" in told.value.remedy
    assert vsm.run(["/bin/true"]).cause == "ok"
    assert runner_link.runner_pid() == runner


MANY = """
import asyncio, resource, time, vsm
from vsm.library.runner_link import runner_pid
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (320, most))
vsm.run(int)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

async def main():
    runs = [asyncio.ensure_future(vsm.run_async(time.sleep, 600)) for _ in range(100)]
    done, _ = await asyncio.wait(runs, return_when=asyncio.FIRST_COMPLETED)
    for run in runs:
        run.cancel()
    await asyncio.wait(runs)
    print({str(run.exception()).partition(" ")[2].partition(" ")[2] for run in done})

before = runner_pid()
asyncio.run(main())
while True:
    try:
        value = vsm.run(int).value
        break
    except vsm.VsmError as error:
        assert "runs wait already" in str(error)  # those that were cancelled have to end
        time.sleep(0.01)
print(value, runner_pid() == before)
"""


def test_more_runs_than_can_wait_are_refused_and_end_no_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines() == [
        "{'runs wait already. Give fewer at a time, or `ulimit -n` more.'}",
        "0 True",
    ], done.stderr


SCARCE = """
import os, resource, vsm

def count():
    return len(os.listdir("/proc/self/fd"))

vsm.run(int)
before, limits = count(), resource.getrlimit(resource.RLIMIT_NOFILE)
refused = 0
for free in range(1, 16):
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + free, limits[1]))
    try:
        vsm.run(int)
    except (OSError, vsm.VsmError):
        refused += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(refused > 5, count() - before, vsm.run(int).value)
"""


def test_a_program_without_free_descriptors_loses_none_more() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCARCE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "True 0 0\n", done.stderr
