"""The life of `vsm up`: start, commands that change it, end."""

import asyncio
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from running import VSM, DidNotStartError, Running, running

from vsm.commands.up import MOST_OPEN_FILES

CALL = ("call", "time", "get_current_time", '{"timezone": "UTC"}')


def _state(vsm: Running, name: str = "time") -> str:
    return next(str(w["state"]) for w in vsm.status()["workers"] if w["name"] == name)


def _left(vsm: Running) -> set[str]:
    return {path.name for path in (vsm.folder / "run").iterdir()}


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_order_and_removes_its_files(signal_number: int) -> None:
    with running(None) as vsm:
        assert {"control.sock", "mcp.sock", "token", "endpoint.json"} <= _left(vsm)
        assert vsm.stop(signal_number) == 0
        assert _left(vsm) <= {"lock"}


@pytest.mark.parametrize("stderr", ["/dev/full", ">(exec true)"])
def test_signal_ends_it_although_nobody_takes_its_log(stderr: str) -> None:
    """The disk is full; or it is `vsm up 2>&1 | tee log`, and Ctrl-C ends tee first."""
    prefix = ("bash", "-c", f'exec "$@" 2> {stderr}', "bash")
    with running(None, prefix=prefix) as vsm:
        assert vsm.stop(signal.SIGINT) == 0
        assert _left(vsm) <= {"lock"}


def test_it_takes_as_many_descriptors_as_it_may_have() -> None:
    """A session begins with 1024: each server takes some."""
    with running(None, prefix=("sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh")) as vsm:
        soft, hard = resource.prlimit(vsm.process.pid, resource.RLIMIT_NOFILE)
        assert soft == min(MOST_OPEN_FILES, hard) > 256
        assert vsm.stop() == 0


def test_stop_all_ends_it_and_returns_when_it_has_ended(time_config: Path) -> None:
    with running(time_config) as vsm:
        assert vsm.vsm("stop", "--all").returncode == 0
        assert vsm.process.poll() == 0
        assert vsm.vsm("status").returncode == 4


def test_integration_is_stopped_started_restarted_and_drained(time_config: Path) -> None:
    with running(time_config) as vsm:
        assert vsm.vsm(*CALL).returncode == 0
        for command, state in (
            ("stop", "stopped"),
            ("start", "ready"),
            ("restart", "ready"),
            ("drain", "stopped"),
            ("start", "ready"),
        ):
            done = vsm.vsm(command, "time")
            assert (done.returncode, done.stdout) == (0, f"time: {state}\n"), (command, done)
            assert _state(vsm) == state
            assert (vsm.vsm(*CALL).returncode == 0) == (state == "ready")
        assert vsm.stop() == 0


def test_panic_stops_integrations_and_refuses_calls_until_resumed(time_config: Path) -> None:
    with running(time_config) as vsm:
        assert vsm.vsm(*CALL).returncode == 0
        assert vsm.vsm("panic").returncode == 0
        assert vsm.status()["panic"] is True
        assert "PANIC" in vsm.vsm("status").stdout
        refused = vsm.vsm(*CALL)
        assert refused.returncode != 0
        assert "time is stopped by `vsm panic`. `vsm resume` starts it" in refused.stderr
        assert vsm.vsm("start", "time").returncode == 1
        assert vsm.vsm("resume").returncode == 0
        assert vsm.vsm(*CALL).returncode == 0
        assert vsm.stop() == 0


def test_second_one_in_the_same_directory_is_refused(time_config: Path) -> None:
    with running(None) as vsm:
        second = vsm.vsm("up", "--config", str(time_config), "--http", "")
        assert second.returncode == 1
        assert "another vsm runs here" in second.stderr
        assert vsm.status()["ready"] is True
        assert vsm.stop() == 0


def test_taken_port_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(DidNotStartError, match="is taken") as caught,
            running(None, "--http", address),
        ):
            pass
    assert address in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_missing_command_quarantines_that_integration_alone(time_config: Path) -> None:
    with time_config.open("a", encoding="utf-8") as file:
        file.write('[integrations.broken]\ncommand = ["/nowhere/server"]\n')
    with running(time_config) as vsm:
        assert vsm.vsm(*CALL).returncode == 0
        broken = next(w for w in vsm.status()["workers"] if w["name"] == "broken")
        assert broken["state"] == "quarantined"
        assert "/nowhere/server" in broken["detail"]
        for command in ("start", "restart"):
            done = vsm.vsm(command, "time", "broken")
            assert done.returncode == 1
            assert "time: ready\nbroken: quarantined: /nowhere/server: " in done.stdout
        logs = vsm.vsm("logs", "broken")
        assert (logs.returncode, logs.stdout) == (0, "")
        assert "broken has written nothing" in logs.stderr
        assert _state(vsm) == "ready"
        assert vsm.stop() == 0


def test_command_that_the_kernel_does_not_execute_is_tried_once(time_config: Path) -> None:
    """A program of another machine: that is seen by whoever executes it, and by nobody before."""
    server = time_config.parent / "server"
    magic, program, machine = b"\x7fELF\2\1\1" + bytes(9), 2, 8  # EM_MIPS
    header = struct.pack("<HHIQQQIHHHHHH", program, machine, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)
    server.write_bytes(magic + header)
    server.chmod(0o755)
    with time_config.open("a", encoding="utf-8") as file:
        file.write(f'[integrations.broken]\ncommand = ["{server}"]\n')
    with running(time_config) as vsm:
        done = vsm.vsm("start", "broken")
        assert "broken: quarantined: broken: cannot exec " in done.stdout
        broken = next(w for w in vsm.status()["workers"] if w["name"] == "broken")
        assert broken["restarts"] <= 1  # that of the command just given


def test_bare_tool_names_are_found(time_config: Path) -> None:
    with time_config.open("a", encoding="utf-8") as file:
        file.write('prefix = ""\n')
    with running(time_config) as vsm:
        assert "\nconvert_time " in vsm.vsm("tools", "time").stdout
        assert vsm.vsm(*CALL).returncode == 0
        assert vsm.stop() == 0


def test_unknown_integration_cannot_be_left_out(time_config: Path) -> None:
    with (
        pytest.raises(DidNotStartError, match="no integration 'tmie'"),
        running(time_config, "--without", "tmie"),
    ):
        pass


async def _tools(entry: dict[str, object]) -> set[str]:
    server = StdioServerParameters(
        command=str(entry["command"]),
        args=list(entry["args"]),  # type: ignore[call-overload]
        env={**os.environ, **entry["env"]},  # type: ignore[dict-item]
    )
    async with Client(server) as client:
        return {tool.name for tool in (await client.list_tools()).tools}


def _typed(vsm: Running) -> "subprocess.CompletedProcess[str]":
    """The first announced command, in a shell whose PATH has no vsm."""
    (line,) = [ln for ln in vsm.log().splitlines() if ln.strip().startswith("from a shell")]
    return subprocess.run(
        ["/bin/sh", "-c", line.split("from a shell")[1]],
        env=vsm.environment | {"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_announced_entry_for_a_desktop_client_works_as_printed(time_config: Path) -> None:
    with running(time_config) as vsm:
        printed = re.search(r"^    \{\n.*?^    \}\n", vsm.log(), re.MULTILINE | re.DOTALL)
        assert printed
        entry = json.loads(printed[0])["vsm"]
        assert "time__get_current_time" in asyncio.run(_tools(entry))
        assert vsm.url in vsm.log()
        assert vsm.token not in vsm.log()
        assert "system1" in _typed(vsm).stdout
        assert vsm.stop() == 0


@pytest.mark.parametrize(
    "victim", ["launcher", "template", *(f"system{n}" for n in range(1, 6)), "time"]
)
def test_calls_answer_again_after_a_process_was_killed(time_config: Path, victim: str) -> None:
    with running(time_config) as vsm:
        assert vsm.vsm(*CALL).returncode == 0
        pid = next(w["pid"] for w in vsm.status()["workers"] if w["name"] == victim)
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        done = vsm.vsm("call", "--timeout", "30", *CALL[1:])
        if done.returncode != 0:  # it may have been in flight; the next one is not
            done = vsm.vsm("call", "--timeout", "30", *CALL[1:])
        assert done.returncode == 0, done.stderr + vsm.log()
        assert vsm.stop() == 0


def test_killed_supervisor_leaves_no_process_and_the_next_one_tidies_up(time_config: Path) -> None:
    with running(time_config) as vsm:
        assert vsm.vsm(*CALL).returncode == 0
        vsm.process.kill()
        vsm.process.wait()
        with running(time_config, again=vsm.folder) as successor:
            assert successor.vsm(*CALL).returncode == 0
            assert successor.stop() == 0
            assert _left(successor) <= {"lock"}


def test_followed_log_shows_new_lines_without_what_a_terminal_obeys(time_config: Path) -> None:
    with time_config.open("a", encoding="utf-8") as file:
        file.write(
            "[integrations.noisy]\n"
            "command = ['/bin/sh', '-c', 'printf \"one \\033[31mline\\n\" >&2; exec cat']\n"
            "start_timeout_s = 60\n"
        )
    with running(time_config) as vsm:
        with subprocess.Popen(
            [VSM, "logs", "-f", "noisy"], env=vsm.environment, stdout=subprocess.PIPE, text=True
        ) as follower:
            assert follower.stdout
            lines = [follower.stdout.readline()]
            vsm.vsm("stop", "noisy")
            starter = subprocess.Popen([VSM, "start", "noisy"], env=vsm.environment)
            lines.append(follower.stdout.readline())
            follower.send_signal(signal.SIGINT)
            assert follower.wait(30) == 130
            starter.terminate()
            starter.wait()
        assert [line.startswith("one ") and line.endswith("[31mline\n") for line in lines] == [
            True
        ] * 2
        assert "\x1b" not in "".join(lines)
        assert vsm.stop() == 0
