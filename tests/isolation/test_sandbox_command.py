"""`vsm sandbox run` hands on streams, the terminal, signals and the exit status.

As whoever runs the tests and, where that is root, as an ordinary user as well.
"""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from supervised import NOBODY, OURSELVES, Who, folder_of, ordinary_user

pytestmark = pytest.mark.isolation
VSM = [sys.executable, "-m", "vsm"]
WORDS = ["sandbox", "run", "--profile", "integration"]
RUN = [*VSM, *WORDS]
TIERS = ("namespaced", "landlocked")
READY = "import sys, signal, time; print('READY', flush=True);"


@pytest.fixture(params=["ourselves", "an ordinary user"])
def who(
    request: pytest.FixtureRequest, scratch: Path, require: Callable[[str, bool, str], None]
) -> Iterator[Who]:
    """Who runs the command."""
    if request.param == "ourselves":
        yield OURSELVES
        return
    if os.geteuid() != 0:
        pytest.skip("the tests are run by an ordinary user as it is")
    with folder_of(NOBODY, scratch) as folder:
        yield ordinary_user(folder, require)


def run(*words: str, by: Who = OURSELVES, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 60, "check": False, **options}
    argv, terms = _command(by)
    return subprocess.run([*argv, *words], **terms | options)  # noqa: PLW1510  # among the options


def _command(by: Who) -> tuple[list[str], dict[str, Any]]:
    """The argv of `sandbox run`, and the Popen options that make it that user's."""
    if by.uid is None:
        return RUN, {}
    terms = {"user": by.uid, "group": by.uid, "extra_groups": [], "cwd": "/", "env": by.environment}
    return [*by.command, *WORDS], terms


@pytest.mark.parametrize("tier", TIERS)
def test_streams_and_status_pass_through_and_nothing_is_added(who: Who, tier: str) -> None:
    script = "cat; echo to-stderr >&2; exit 7"
    done = run("--tier", tier, "--", "/bin/sh", "-c", script, by=who, input="from stdin")
    assert (done.stdout, done.stderr, done.returncode) == ("from stdin", "to-stderr\n", 7)


@pytest.mark.parametrize("tier", TIERS)
def test_death_by_a_signal_is_128_and_its_number(who: Who, tier: str) -> None:
    done = run("--tier", tier, "--", "/bin/sh", "-c", "kill -9 $$", by=who)
    assert done.returncode == 128 + signal.SIGKILL, done.stderr


@pytest.mark.parametrize("tier", TIERS)
def test_closed_streams_are_empty_inside_and_hold_nothing_of_vsms(who: Who, tier: str) -> None:
    script = (
        "import os\n"
        "links = [os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)]\n"
        "os.write(2, '\\n'.join(links).encode())\n"
        "os._exit(7 + len(os.read(0, 1)))\n"
    )
    argv, terms = _command(who)
    words = [*argv, "--tier", tier, "--", "/usr/bin/python3", "-c", script]
    for closed, seen in (("<&-", "0"), (">&-", "1"), ("<&- >&-", "01")):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *words],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
            **terms,
        )  # fmt: skip
        links = done.stderr.splitlines()
        assert [links[int(number)] for number in seen] == ["/dev/null"] * len(seen), done
        assert (done.returncode, len(links)) == (7, 3), done


def test_verbose_prints_every_layer() -> None:
    done = run("-v", "--", "/bin/true")
    for layer in ("user", "root_filesystem", "network", "landlock", "seccomp", "memory"):
        assert f"vsm: {layer}: " in done.stderr


def test_missing_command_is_named_with_where_it_was_looked_for() -> None:
    done = run("--", "no-such-program")
    assert done.returncode != 0
    assert "no-such-program" in done.stderr
    assert "PATH" in done.stderr


def test_required_layer_that_is_missing_stops_the_command(tmp_path: Path) -> None:
    profile = tmp_path / "proxy.toml"
    profile.write_text(
        'extends = "integration"\n[network]\nmode = "proxy"\nallow = ["a.org:443"]\n'
    )
    done = run("--profile", str(profile), "--tier", "landlocked", "--", "/bin/echo", "it ran")
    assert done.returncode == 3
    assert "it ran" not in done.stdout
    assert "proxy" in done.stderr


def test_profile_of_vsms_own_processes_is_refused() -> None:
    done = run("--profile", "system1", "--", "/bin/echo", "it ran")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vsm: --profile: the profile system1 is for vsm's own processes")
    assert 'Take "integration"' in done.stderr


@pytest.mark.parametrize("tier", TIERS)
def test_folder_that_is_not_there_inside_is_named_with_what_it_has_to_be(tier: str) -> None:
    done = run("--tier", tier, "--cwd", "/no/such/folder", "--", "/bin/echo", "it ran")
    assert (done.returncode, done.stdout) == (1, "")
    assert "/no/such/folder, which has to exist, and to be among what it sees" in done.stderr


def test_environment_has_what_was_given_and_nothing_else() -> None:
    env = {**os.environ, "SECRET": "1", "PASSED": "2"}
    done = run("--env", "A=b=c", "--env", "PASSED", "--", "/usr/bin/env", env=env)
    lines = set(done.stdout.splitlines())
    assert {"A=b=c", "PASSED=2"} <= lines
    assert not any(line.startswith(("SECRET=", "PYTEST")) for line in lines)


@pytest.mark.parametrize("by", ["its #! line", "its pyvenv.cfg"])
def test_a_program_gets_no_file_of_the_host_by_naming_it_in_its_own_files(
    tmp_path: Path, by: str
) -> None:
    local = tmp_path / "local"  # as ~/.local is: packages of pip's, and everything else
    key = local / "share" / "key"
    (local / "lib" / "python3.11").mkdir(parents=True)
    (local / "bin").mkdir()
    key.parent.mkdir()
    key.write_text("a private key")
    key.chmod(0o600)
    steal = f"print(open({str(key)!r}).read())\n"
    if by == "its #! line":
        server = tmp_path / "package" / "server"
        server.parent.mkdir()
        # The kernel makes one argument of it, a value of -W, which Python ignores.
        server.write_text(f"#!/usr/bin/python3 -Wi {key}\n{steal}")
        server.chmod(0o755)
        argv = [str(server)]
    else:
        python = tmp_path / "env" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to("/usr/bin/python3")
        (tmp_path / "env" / "pyvenv.cfg").write_text(f"home = {local}/bin\n")
        argv = [str(python), "-ISc", steal]
    unconfined = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert unconfined.stdout == "a private key\n"
    done = run("--tier", "namespaced", "--", *argv)
    assert "FileNotFoundError" in done.stderr, done
    assert done.stdout == ""


def test_read_paths_are_readable_and_write_paths_keep_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "out").mkdir()
    (folder / "in.txt").write_text("input")
    script = f"cat {folder}/in.txt > {folder}/out/copy && ! touch {folder}/in.txt 2>/dev/null"
    paths = ("--read", str(folder / "in.txt"), "--write", str(folder / "out"))
    done = run("--tier", "namespaced", *paths, "--", "/bin/sh", "-c", script)
    assert done.returncode == 0, done.stderr
    copy = folder / "out" / "copy"
    assert copy.read_text() == "input"
    assert copy.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(who: Who, tier: str, signo: signal.Signals) -> None:
    script = f"signal.signal({int(signo)}, lambda *_: sys.exit(42)); {READY} time.sleep(60)"
    script = f"import sys, signal, time; {script}"
    with _started(who, "--tier", tier, "--", "/usr/bin/python3", "-c", script) as process:
        process.send_signal(signo)
        assert process.wait(30) == 42


@pytest.mark.parametrize("tier", TIERS)
def test_nothing_survives_when_the_command_line_is_killed(
    who: Who, tier: str, wait_gone: Any
) -> None:
    script = f"import os; {READY} print(os.getpid(), flush=True); time.sleep(600)"
    with _started(who, "--tier", tier, "--", "/usr/bin/python3", "-c", script) as process:
        children = _descendants(process.pid)
        assert children
        process.kill()
        process.wait(30)
        for pid in children:
            wait_gone(pid)
    # What the killed one could not remove, the next run does.
    assert run("--", "/bin/true", by=who).returncode == 0


@pytest.mark.parametrize("tier", TIERS)
def test_terminal_passes_through(who: Who, tier: str) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && stty size"
    words = ["--tier", tier, "--", "/bin/sh", "-c", script]
    output, status = _in_terminal(who, words, keys=b"")
    assert (output, status) == (b"0 0\r\n", 0)


@pytest.mark.parametrize("tier", TIERS)
def test_interrupt_key_interrupts_the_command_once(who: Who, tier: str) -> None:
    script = (
        "import signal, sys, time\n"
        "count = []\n"
        "signal.signal(signal.SIGINT, lambda *_: count.append(1))\n"
        "print('READY', flush=True)\n"
        "while not count: time.sleep(0.01)\n"
        "time.sleep(0.2)\n"
        "sys.exit(len(count))\n"
    )
    words = ["--tier", tier, "--", "/usr/bin/python3", "-c", script]
    output, status = _in_terminal(who, words, keys=b"\x03")
    assert status == 1, output


def test_probe_prints_a_row_for_every_layer() -> None:
    done = subprocess.run(
        [*VSM, "sandbox", "probe", "--json"], capture_output=True, timeout=60, check=True
    )
    answer = json.loads(done.stdout)
    from vsm.configuration.profile import LAYERS

    assert [row["layer"] for row in answer["layers"]] == list(LAYERS)
    assert all(row["remedy"] for row in answer["layers"] if row["state"] != "works")


class _started:  # noqa: N801  # reads as a verb
    """A sandboxed command that has printed READY."""

    def __init__(self, by: Who, *words: str) -> None:
        argv, terms = _command(by)
        self.process = subprocess.Popen([*argv, *words], stdout=subprocess.PIPE, text=True, **terms)

    def __enter__(self) -> subprocess.Popen[str]:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "READY\n"
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def _descendants(pid: int) -> list[int]:
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        children = Path(f"/proc/{current}/task/{current}/children").read_text().split()
        found += map(int, children)
        queue += map(int, children)
    return found


def _in_terminal(by: Who, words: list[str], *, keys: bytes) -> tuple[bytes, int]:
    """Run in a terminal of its own; type `keys` after READY; all output and the status."""
    argv, terms = _command(by)
    pid, terminal = pty.fork()
    if pid == 0:
        if by.uid is not None:
            os.chdir("/")
            os.setgroups([])
            os.setresgid(by.uid, by.uid, by.uid)
            os.setresuid(by.uid, by.uid, by.uid)
        os.execve(argv[0], [*argv, *words], terms.get("env", os.environ))
    output = b""
    try:
        for block in _blocks(terminal):
            output += block
            if keys and b"READY" in output:
                os.write(terminal, keys)
                keys = b""
    finally:
        os.close(terminal)
    return output, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _blocks(terminal: int) -> Iterator[bytes]:
    while select.select([terminal], [], [], 30)[0]:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # EIO: the last process of the terminal has ended
            return
        if not block:
            return
        yield block


@pytest.mark.parametrize("tier", TIERS)
def test_resizing_and_continuing_reach_the_command_and_stopping_stops_vsm(
    who: Who, tier: str
) -> None:
    script = (
        "import os, signal\n"
        "told, tell = os.pipe()\n"
        "os.set_blocking(tell, False)\n"
        "signal.set_wakeup_fd(tell)\n"
        "for one in (signal.SIGCONT, signal.SIGWINCH):\n"
        "    signal.signal(one, lambda *_: None)\n"
        "print('READY', flush=True)\n"
        "for _ in range(2):\n"
        "    print(signal.Signals(os.read(told, 1)[0]).name, flush=True)\n"
    )
    argv, terms = _command(who)
    command = [*argv, "--tier", tier, "--", "/usr/bin/python3", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, **terms) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"READY\n"
        process.send_signal(signal.SIGWINCH)
        assert process.stdout.readline() == b"SIGWINCH\n"
        process.send_signal(signal.SIGTSTP)
        # As a shell's job control expects. A terminal sends it to the command as well.
        stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED)
        assert stopped is not None
        assert stopped.si_code == os.CLD_STOPPED
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == b"SIGCONT\n"
        assert process.wait(20) == 0
