"""Which form the log has, and what of it is written."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from vsm import logs
logs.configure(sys.argv[1])
for level in sys.argv[2:]:
    logs.set_level(level)
    for method in ("debug", "info", "warning", "error"):
        getattr(logs.logger(), method)(f"{method} at {level}", worker="a\\x1b[31m")
print(logs.is_journal())
"""


def logged(file: Path, stream: str | None, style: str, *levels: str) -> tuple[list[str], bool]:
    """The lines of a process whose stderr is the file, and whether it took that for the journal."""
    environment = {name: text for name, text in os.environ.items() if name != "JOURNAL_STREAM"}
    if stream is not None:
        environment["JOURNAL_STREAM"] = stream
    with file.open("w", encoding="utf-8") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, style, *levels],
            env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True,
        )  # fmt: skip
    return file.read_text(encoding="utf-8").splitlines(), done.stdout == "True\n"


def test_under_a_journal_each_line_is_json(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.touch()
    status = file.stat()
    lines, journal = logged(file, f"{status.st_dev}:{status.st_ino}", "auto", "info")
    assert journal
    assert [json.loads(line)["event"] for line in lines] == [
        "info at info", "warning at info", "error at info"
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [None, "", "8:1", "not a pair"])
def test_a_variable_that_a_session_left_makes_no_journal_of_a_terminal(
    tmp_path: Path, stream: str | None
) -> None:
    lines, journal = logged(tmp_path / "log", stream, "auto", "info")
    assert not journal
    assert "[info" in lines[0]
    assert not any(line.startswith("{") for line in lines)


def test_a_style_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    assert (
        json.loads(logged(tmp_path / "log", None, "json", "error")[0][0])["worker"] == "a\ufffd[31m"
    )
    assert "[error" in logged(tmp_path / "log", None, "console", "error")[0][0]


def test_the_level_moves_while_it_runs(tmp_path: Path) -> None:
    lines, _ = logged(tmp_path / "log", None, "json", "error", "debug", "warning")
    assert [json.loads(line)["event"] for line in lines] == [
        "error at error",
        "debug at debug", "info at debug", "warning at debug", "error at debug",
        "warning at warning", "error at warning",
    ]  # fmt: skip


@pytest.mark.parametrize("reader", ["gone", "full"])
def test_nothing_fails_because_of_its_log(reader: str) -> None:
    """As with `vsm up 2>&1 | tee log`, where Ctrl-C ends tee first, and on a full disk."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with Path("/dev/full").open("w") as full:
        stderr = full.fileno() if reader == "full" else write_end
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, "console", "info", "error"],
            stdout=subprocess.PIPE, stderr=stderr, text=True, check=False,
        )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stdout) == (0, "False\n")


FLOOD = """
import os, sys
from vsm import logs
logs.configure("json")
for number in range(600):
    logs.logger().info("\\u20ac" * 700, number=number)
os.write(1, b"x")
os.read(0, 1)
logs.logger().info("again")
"""


def test_log_that_nobody_reads_holds_nobody_up_and_says_what_is_missing() -> None:
    """As with `vsm up 2>&1 | less`, or on a terminal that Ctrl-S holds."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", FLOOD], **pipes) as process:  # type: ignore[call-overload]
        try:
            assert select.select([process.stdout], [], [], 20)[0], "it waits"
            os.set_blocking(process.stderr.fileno(), False)
            read = process.stderr.read()
            os.set_blocking(process.stderr.fileno(), True)
            process.stdin.close()
            read += process.stderr.read()
            assert process.wait(20) == 0
        finally:
            process.kill()
    lines = read.splitlines()
    assert [json.loads(line)["number"] for line in lines[:10]] == list(range(10))
    last = json.loads(lines[-1])
    assert last["event"] == "again"
    whole = [line for line in lines if line.endswith(b"}")]
    assert len(whole) + last["missed_before"] == 601
