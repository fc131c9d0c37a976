"""`vsm profile learn`: what it writes is enough for the same run, and for nothing more."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from vsm.audit import learn as learning
from vsm.audit.learn import MOST_PATHS, OTHERS
from vsm.confinement.probe import HostFacts, probe_host
from vsm.core.egress import MOST_LISTENERS
from vsm.errors import VsmError

Require = Callable[[str, bool, str], None]
TIERS = ("namespaced", "landlocked")
PYTHON = "/usr/bin/python3"
# Forks, so that a descendant's calls are seen too.
WORK = "import os; pid = os.fork(); pid or os._exit(os.umask(0o77) * 0); os.waitpid(pid, 0)"
ASKS_HOSTS = """
import socket, urllib.request
try:
    urllib.request.urlopen("https://other.invalid/", timeout=20)
    raise SystemExit("it was let through")
except OSError as error:
    assert "403" in str(error), error
try:
    with socket.create_connection(("asked.invalid", 443), timeout=20) as connection:
        assert not connection.recv(1)  # no such host: the egress process hangs up
except ConnectionError:
    pass
"""
SPIES = """
import os
for name in ("environ", "mem", "fd/0"):
    try:
        os.open(f"/proc/{os.getppid()}/{name}", os.O_RDONLY)
        raise SystemExit(f"the mini-init's {name} was opened")
    except PermissionError:
        pass
"""
MORE = "import os; os.mkfifo(os.environ['TMPDIR'] + '/made')"


def vsm(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vsm", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def learn(tier: str, output: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return vsm(
        "profile", "learn", "integration", "--tier", tier, "--output", str(output), "--", *argv
    )


def run(tier: str, profile: str, code: str) -> int:
    return vsm(
        "sandbox", "run", "--profile", profile, "--tier", tier, "--", PYTHON, "-c", code
    ).returncode


@pytest.fixture(scope="module")
def facts() -> HostFacts:

    return probe_host()


@pytest.mark.parametrize("tier", TIERS)
def test_learnt_profile_runs_the_same_and_no_more(
    tmp_path: Path, require: Require, facts: HostFacts, tier: str
) -> None:
    require("user notification", facts.seccomp_notification, "not in this kernel")
    works = facts.tier in {"namespaced", tier}
    require(f"the {tier} tier", works, "no namespaces")
    output = tmp_path / "learnt.toml"
    done = learn(tier, output, PYTHON, "-c", WORK)
    assert done.returncode == 0, done.stderr
    text = output.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    assert '"umask",  # ' in text
    assert {"umask", "execve"} <= set(document["syscalls"]["allow"])
    assert "mknodat" not in document["syscalls"]["allow"]
    assert vsm("profile", "check", str(output)).returncode == 0
    assert run(tier, str(output), WORK) == 0
    assert run(tier, "integration", MORE) == 0
    assert run(tier, str(output), MORE) == 1


def test_refused_call_is_refused_and_never_learnt(
    tmp_path: Path, require: Require, facts: HostFacts
) -> None:
    require("user notification", facts.seccomp_notification, "not in this kernel")
    output = tmp_path / "learnt.toml"
    code = "import ctypes; raise SystemExit(ctypes.CDLL(None).unshare(0x10000000) != -1)"
    done = learn("landlocked", output, PYTHON, "-c", code)
    assert done.returncode == 0
    text = output.read_text(encoding="utf-8")
    assert "unshare" not in tomllib.loads(text)["syscalls"]["allow"]
    assert re.search(r"(?m)^# +1  unshare$", text)
    assert "1 refused of 1 kinds" in done.stderr


@pytest.mark.parametrize("tier", TIERS)
def test_the_command_does_not_see_into_the_mini_init(
    tmp_path: Path, require: Require, facts: HostFacts, tier: str
) -> None:
    require("user notification", facts.seccomp_notification, "not in this kernel")
    require(f"the {tier} tier", facts.tier in {"namespaced", tier}, "no namespaces")
    output = tmp_path / "learnt.toml"
    done = learn(tier, output, PYTHON, "-c", SPIES)
    assert done.returncode == 0, done.stderr
    if tier == "namespaced":  # without namespaces every mini-init needs it
        calls = tomllib.loads(output.read_text(encoding="utf-8"))["syscalls"]["allow"]
        assert "prctl" not in calls


def test_hosts_are_learnt_and_none_is_reached_that_the_profile_does_not_allow(
    tmp_path: Path, require: Require, facts: HostFacts
) -> None:
    require("user notification", facts.seccomp_notification, "not in this kernel")
    require("the namespaced tier", facts.tier == "namespaced", "no namespaces")
    base, output = tmp_path / "base.toml", tmp_path / "learnt.toml"
    allow = 'mode = "proxy"\nallow = ["asked.invalid:443", "unasked.invalid:443"]'
    base.write_text(f'extends = "integration"\n[network]\n{allow}\n', encoding="utf-8")
    words = ("profile", "learn", str(base), "--output", str(output), "--", PYTHON, "-c", ASKS_HOSTS)
    done = vsm(*words)
    assert done.returncode == 0, done.stderr
    text = output.read_text(encoding="utf-8")
    assert tomllib.loads(text)["network"]["allow"] == ["-unasked.invalid:443"]
    assert re.search(r"(?m)^# +1 +0 +1  other\.invalid:443$", text)
    assert vsm("profile", "check", str(output)).returncode == 0


def test_a_profile_with_as_many_ports_as_there_may_be_can_be_learnt_from(
    tmp_path: Path, require: Require, facts: HostFacts
) -> None:
    require("user notification", facts.seccomp_notification, "not in this kernel")
    require("the namespaced tier", facts.tier == "namespaced", "no namespaces")
    base, output = tmp_path / "base.toml", tmp_path / "learnt.toml"
    allow = [f"unasked.invalid:{8000 + number}" for number in range(MOST_LISTENERS)]
    base.write_text(f'extends = "networked"\n[network]\nallow = {json.dumps(allow)}\n')
    done = vsm("profile", "learn", str(base), "--output", str(output), "--", "/bin/true")
    assert done.returncode == 0, done.stderr
    unused = tomllib.loads(output.read_text(encoding="utf-8"))["network"]["allow"]
    assert unused == [f"-{entry}" for entry in allow]


def test_a_command_that_is_killed_as_it_is_found_did_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    assert command.stdin
    pidfd = os.pidfd_open(command.pid)

    def take(pid: int, fd: int) -> int:
        command.kill()
        raise ProcessLookupError(pid, fd)

    monkeypatch.setattr(learning._Fd, "read_link", lambda _: "anon_inode:seccomp notify")
    monkeypatch.setattr(learning, "_descendants", lambda root: [root])
    monkeypatch.setattr(learning, "_take", take)
    try:
        with pytest.raises(VsmError, match="did not start"):
            learning._find_listener(command.pid, pidfd)
    finally:
        os.close(pidfd)
        command.kill()
        command.stdin.close()
        command.wait()


def test_of_paths_without_end_no_more_are_kept_than_a_bound(
    tmp_path: Path, require: Require, facts: HostFacts
) -> None:
    """The command chooses them, and the observer is not confined."""
    require("user notification", facts.seccomp_notification, "not in this kernel")
    code = f"import os\nfor n in range({MOST_PATHS}):\n"
    code += "    try: os.open(f'/nowhere/{n}', 0)\n    except OSError: pass\n"
    done = learn(facts.tier, tmp_path / "out.toml", PYTHON, "-ISc", code)
    assert done.returncode == 0, done.stderr
    assert f"{MOST_PATHS + 1} paths" in done.stderr  # the bound, and one row for the others
    assert OTHERS in (tmp_path / "out.toml").read_text()


def test_status_of_the_command_is_the_answer(
    tmp_path: Path, require: Require, facts: HostFacts
) -> None:
    require("user notification", facts.seccomp_notification, "not in this kernel")
    output = tmp_path / "learnt.toml"
    assert learn("landlocked", output, PYTHON, "-c", "raise SystemExit(7)").returncode == 7


def test_killed_observer_leaves_nothing(tmp_path: Path, require: Require, facts: HostFacts) -> None:
    require("user notification", facts.seccomp_notification, "not in this kernel")
    code = "print('ready', flush=True); import time; time.sleep(60)"
    words = ("profile", "learn", "integration", "--tier", "namespaced", "--output", "/dev/null")
    require("the namespaced tier", facts.tier == "namespaced", "no namespaces")
    command = [sys.executable, "-m", "vsm", *words, "--", PYTHON, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as learning:
        assert learning.stdout is not None
        assert learning.stdout.readline() == b"ready\n"
        os.kill(learning.pid, signal.SIGKILL)
        assert learning.stdout.read() == b""  # every holder of the pipe has ended
    # Its control group goes with the next run, as that of any killed command line.
    assert vsm("sandbox", "run", "--", "/usr/bin/true").returncode == 0
